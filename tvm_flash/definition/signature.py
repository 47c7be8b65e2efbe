"""Run-time shapes, strides and captured tables that every definition takes as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.tirx.layout import S, TileLayout

from ..problem.spec import AttentionSpec


@dataclass(frozen=True)
class View:
    """Shape and strides (elements) of an argument: all run-time values, last stride 1."""

    shape: tuple
    strides: tuple


class Signature:
    """The symbolic sizes of one attention problem, shared by all forms of its definition.

    q, out and their gradients are (B, Sq, H, D | Dv); k, v are (B, Sk, Hk, D | Dv); row statistics
    are (B, H, Sq) float32, contiguous. Sizes and strides are int64: offsets never overflow.
    """

    def __init__(self, spec: AttentionSpec):
        self.spec = spec
        self.batch, self.heads, self.kv_heads, self.seqlen_q, self.seqlen_k = (
            tirx.Var(name, "int64") for name in ("B", "H", "Hk", "Sq", "Sk")
        )
        self.rows = (self.batch, self.heads, self.seqlen_q)
        tables = [_symbols(f"table{n}_dim", t.ndim) for n, t in enumerate(spec.table_types)]
        if spec.alibi:
            tables[0] = [self.batch, self.heads]  # a slope for each
        self.tables = tuple(
            declare(f"table{n}", tables[n], t.dtype, _symbols(f"table{n}_stride", t.ndim))
            for n, t in enumerate(spec.table_types)
        )

    @property
    def group(self):
        """Query heads per key/value head."""
        return tirx.truncdiv(self.heads, self.kv_heads)

    def query(self, name: str) -> View:
        """(B, Sq, H, D): queries or their gradient."""
        return _view(name, self.batch, self.seqlen_q, self.heads, self.spec.head_dim)

    def output(self, name: str) -> View:
        """(B, Sq, H, Dv): output or its gradient."""
        return _view(name, self.batch, self.seqlen_q, self.heads, self.spec.head_dim_v)

    def key(self, name: str) -> View:
        """(B, Sk, Hk, D): keys or their gradient."""
        return _view(name, self.batch, self.seqlen_k, self.kv_heads, self.spec.head_dim)

    def value(self, name: str) -> View:
        """(B, Sk, Hk, Dv): values or their gradient."""
        return _view(name, self.batch, self.seqlen_k, self.kv_heads, self.spec.head_dim_v)

    def backward_views(self) -> list[View]:
        """q, k, v, out, dout, dq, dk, dv."""
        read = [
            self.query("q"),
            self.key("k"),
            self.value("v"),
            self.output("o"),
            self.output("do"),
        ]
        return [*read, self.query("dq"), self.key("dk"), self.value("dv")]

    def finish(
        self, func: tirx.PrimFunc, symbol: str, statistics: Sequence[str] = ()
    ) -> tirx.PrimFunc:
        """``func`` with a parameter for each table before its last one (``softmax_scale``), and of
        "lse" and "lse_low" (buffers L, L_low) only those among ``statistics``.

        The script parser has no variable argument lists, so a body reads the tables as free
        buffers and they are bound here.
        """
        of_rows = {"L": "lse", "L_low": "lse_low"}
        used = [p for p in func.params[:-1] if of_rows.get(p.name) in (None, *statistics)]
        params = [*used, *self.tables, func.params[-1]]
        bound = tirx.PrimFunc(params, func.body, func.ret_type, func.attrs)
        return bound.with_attr({"global_symbol": symbol, "tirx.noalias": True})


def as_module(func: tirx.PrimFunc) -> tvm.IRModule:
    """A module that holds ``func`` under its global symbol."""
    return tvm.IRModule({func.attrs["global_symbol"]: func})


def _view(name: str, *shape) -> View:
    return View(shape, (*_symbols(f"{name}_stride", 3), 1))


def declare(name: str, shape, dtype: str, strides=()) -> tirx.Buffer:
    """A buffer parameter; ``strides`` empty: dense.

    TIRx addresses by the layout, the launcher's checks read the strides: both say the same.
    """
    layout = None
    if len(shape):
        layout = TileLayout(S[tuple(shape) : tuple(strides)] if strides else S[tuple(shape)])
    return tirx.decl_buffer(shape, dtype, name=name, strides=strides or None, layout=layout)


def _symbols(name: str, count: int) -> list[tirx.Var]:
    return [tirx.Var(f"{name}{axis}", "int64") for axis in range(count)]
