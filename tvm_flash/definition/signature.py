"""Run-time shapes, strides and captured tables that every definition takes as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.layout import S, TileLayout

from ..problem.arguments import TABLE, Argument, Up, arguments, named_sizes, numbers_of
from ..problem.spec import AttentionSpec

# By name, whatever the direction: a forward's output has the shape that the backward reads.
KNOWN = {argument.name: argument for table in TABLE.values() for argument in table}

# What definitions call them, as papers do.
LETTERS = {
    "q": "Q", "k": "K", "v": "V", "out": "O", "dout": "dO", "lse": "L", "lse_low": "L_low",
    "dlse": "dL", "dq": "dQ", "dk": "dK", "dv": "dV", "delta": "delta_r", "dq_acc": "A",
}  # fmt: skip
_NAMES = {letter: name for name, letter in LETTERS.items()}


@dataclass(frozen=True)
class View:
    """Shape and strides (elements) of an argument: all run-time values, last stride 1."""

    shape: tuple
    strides: tuple


class Signature:
    """The symbolic sizes of one attention problem, shared by all forms of its definition.

    Arguments are those of problem.arguments. Sizes and strides are int64: offsets never overflow.
    numbers: those of the call, by name.
    direction: whose call ``finish`` makes of a function; None for one with arguments of its own.
    """

    def __init__(self, spec: AttentionSpec, direction: str | None = None):
        self.spec, self.direction = spec, direction
        self.batch, self.heads, self.kv_heads, self.seqlen_q, self.seqlen_k = (
            tirx.Var(name, "int64") for name in ("B", "H", "Hk", "Sq", "Sk")
        )
        self.rows = (self.batch, self.heads, self.seqlen_q)
        counts = (*self.rows[:2], self.kv_heads, self.seqlen_q, self.seqlen_k)
        self.sizes = {**named_sizes(counts), "D": spec.head_dim, "Dv": spec.head_dim_v}
        self.tables = tuple(
            declare(a.name, self._table_shape(a), a.dtype, _symbols(f"{a.name}_stride", a.shape))
            for a in arguments(spec, "forward")
            if a.name.startswith("table")
        )
        self.numbers = {a.name: tirx.Var(a.name, a.dtype) for a in numbers_of(spec)}

    def _table_shape(self, table: Argument) -> list:
        own = self.sizes
        return [own[size] if size in own else tirx.Var(size, "int64") for size in table.shape]

    @property
    def group(self):
        """Query heads per key/value head."""
        return tirx.truncdiv(self.heads, self.kv_heads)

    def view(self, name: str, **sizes) -> View:
        """Shape and strides of the argument ``name``.

        sizes: those of a workspace: copies, head_dim_pad, and rows, the number of Sq rounded up.
        """
        argument, known = KNOWN[name], {**self.sizes, **sizes}
        shape = tuple(known["rows" if isinstance(size, Up) else size] for size in argument.shape)
        if argument.dense:
            return View(shape, ())
        strides = _symbols(f"{_STRIDES.get(name, name)}_stride", shape[1:])
        return View(shape, (*strides, 1))

    def dtype(self, name: str) -> str:
        """The element type of the argument ``name``."""
        return KNOWN[name].dtype or self.spec.dtype

    def own(self, name: str, **sizes):
        """The argument ``name`` as the annotation of a script's parameter, see ``view``."""
        view = self.view(name, **sizes)
        return T.Buffer(view.shape, self.dtype(name), strides=view.strides or None)

    def finish(
        self,
        func: tirx.PrimFunc,
        symbol: str,
        statistics: Sequence[str] | None = None,
        inputs: Sequence[tirx.Buffer] = (),
    ) -> tirx.PrimFunc:
        """``func`` with a parameter more for each table, each of ``inputs`` and each number, and
        without those of its arguments that the direction's call has not.

        statistics: those of a definition that saves others than the spec's call ("lse", "lse_low").

        The script parser has no variable argument lists, so a body has all tensors that any spec
        has, reads tables and numbers as free variables, and they are bound here.
        """
        call = {a.name for a in arguments(self.spec, self.direction)} if self.direction else None
        if statistics is not None:
            call = (call - {"lse", "lse_low"}) | {*statistics}
        own = [p for p in func.params if call is None or _NAMES.get(p.name, p.name) in call]
        params = [*own, *self.tables, *inputs, *self.numbers.values()]
        bound = tirx.PrimFunc(params, func.body, func.ret_type, func.attrs)
        return bound.with_attr({"global_symbol": symbol, "tirx.noalias": True})


# Strides are named after the papers' letters too.
_STRIDES = {"out": "o", "dout": "do"}


def argument_of(buffer: tirx.Buffer) -> Argument | None:
    """The argument that a kernel's parameter is."""
    return KNOWN.get(_NAMES.get(buffer.name, buffer.name))


def as_module(func: tirx.PrimFunc) -> tvm.IRModule:
    """A module that holds ``func`` under its global symbol."""
    return tvm.IRModule({func.attrs["global_symbol"]: func})


def declare(name: str, shape, dtype: str, strides=()) -> tirx.Buffer:
    """A buffer parameter; ``strides`` empty: dense.

    TIRx addresses by the layout, the launcher's checks read the strides: both say the same.
    """
    layout = None
    if len(shape):
        layout = TileLayout(S[tuple(shape) : tuple(strides)] if strides else S[tuple(shape)])
    return tirx.decl_buffer(shape, dtype, name=name, strides=strides or None, layout=layout)


def _symbols(name: str, axes) -> list[tirx.Var]:
    return [tirx.Var(f"{name}{axis}", "int64") for axis in range(len(axes))]
