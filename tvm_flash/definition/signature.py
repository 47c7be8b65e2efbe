"""Run-time shapes, strides and captured tables that every definition takes as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul

import tvm
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.layout import S, TileLayout

from ..problem.argument import Padded
from ..problem.arguments import (
    RNG,
    SOFTMAX_INPUTS,
    TABLES,
    Argument,
    arguments,
    columns_of,
    numbers_of,
)
from ..problem.sequences import KINDS
from ..problem.spec import AttentionSpec

# By kind of sequences and name, whatever the direction: a forward's output has the shape that the
# backward reads.
KNOWN = {
    kind: {argument.name: argument for found in table.values() for argument in found}
    for kind, table in TABLES.items()
}
# Sizes that a spec or a kernel's tile fixes.
_OF_KERNELS = ("D", "Dv", "D+1", "Dv+1", "copies", "head_dim_pad")
# The attribute of a function that names its kind, where that is not "dense".
SEQUENCES = "tvm_flash.sequences"

# What definitions call them, as papers do.
LETTERS = {
    "q": "Q", "k": "K", "v": "V", "out": "O", "dout": "dO", "lse": "L", "lse_low": "L_low",
    "dlse": "dL", "dq": "dQ", "dk": "dK", "dv": "dV", "dsink": "dSink", "delta": "delta_r",
    "dq_acc": "A",
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
    numbers: those of the call, by name; spans: what says where entries lie, by name, where the
    kind of sequences has it; inputs: what the kind of softmax takes besides scores, by name; rng:
    seed and offset of dropout, None without. table_gradients: those of learned tables, by number,
    in ``parts`` copies.
    seqlen_q, seqlen_k: of dense sequences. batch_rows: queries of all entries.
    direction: whose call ``finish`` makes of a function; None for one with arguments of its own.
    """

    def __init__(self, spec: AttentionSpec, direction: str | None = None):
        self.spec, self.direction = spec, direction
        self._known, shapes = KNOWN[spec.sequences], KINDS[spec.sequences].shapes
        found = [size for argument in self._known.values() for size in argument.shape]
        symbolic = [x for x in dict.fromkeys(found) if isinstance(x, str) and x not in _OF_KERNELS]
        self.sizes = {name: tirx.Var(name, "int64") for name in symbolic}
        self.batch, self.heads, self.kv_heads = (self.sizes[name] for name in ("B", "H", "Hk"))
        self.seqlen_q, self.seqlen_k = self.sizes.get("Sq"), self.sizes.get("Sk")
        self.rows = tuple(self.sizes[name] for name in shapes.statistic)
        self.batch_rows = reduce(mul, (self.sizes[name] for name in shapes.queries))
        self.sizes |= columns_of(spec)
        self.spans = {
            a.name: declare(a.name, [self.sizes[size] for size in a.shape], a.dtype)
            for a in shapes.own
        }
        own = arguments(spec, direction or "forward")
        self.tables = tuple(
            declare(a.name, self._table_shape(a), a.dtype, _symbols(f"{a.name}_stride", a.shape))
            for a in own
            if a.is_table
        )
        self.parts = tirx.Var("parts", "int64")
        self.table_gradients = {
            n: declare(f"dtable{n}", [self.parts, *self.tables[n].shape], "float32")
            for n in spec.learned
        }
        self.inputs = {
            a.name: declare(a.name, [self.sizes.get(size, size) for size in a.shape], a.dtype)
            for a in own
            if a.name in (*SOFTMAX_INPUTS, RNG)
        }
        self.rng = self.inputs.pop(RNG, None)
        self.numbers = {a.name: tirx.Var(a.name, a.dtype) for a in numbers_of(spec, direction)}

    def _table_shape(self, table: Argument) -> list:
        own = self.sizes
        return [own[size] if size in own else tirx.Var(size, "int64") for size in table.shape]

    @property
    def group(self):
        """Query heads per key/value head."""
        return tirx.truncdiv(self.heads, self.kv_heads)

    def view(self, name: str, **sizes) -> View:
        """Shape and strides of the argument ``name``.

        sizes: those of a workspace: copies, head_dim_pad, and rows, of sums of dQ.
        """
        argument, known = self._known[name], {**self.sizes, **sizes}
        shape = tuple(
            known["rows"] if isinstance(size, Padded) else known.get(size, size)
            for size in argument.shape
        )
        if argument.dense:
            return View(shape, ())
        strides = _symbols(f"{_STRIDES.get(name, name)}_stride", shape[1:])
        # A stride has the type that its axis is counted in.
        unit = 1 if isinstance(shape[-1], int) else tirx.const(1, "int64")
        return View(shape, (*strides, unit))

    def dtype(self, name: str) -> str:
        """The element type of the argument ``name``."""
        return self._known[name].dtype or self.spec.dtype

    def own(self, name: str, **sizes):
        """The argument ``name`` as the annotation of a script's parameter, see ``view``."""
        view = self.view(name, **sizes)
        return T.Buffer(view.shape, self.dtype(name), strides=view.strides or None)

    def finish(
        self,
        func: tirx.PrimFunc,
        symbol: str,
        statistics: Sequence[str] | None = None,
    ) -> tirx.PrimFunc:
        """``func`` with a parameter more for each of the spans, inputs, tables and numbers, and
        without those of its arguments that the direction's call has not.

        statistics: those of a definition that saves others than the spec's call ("lse", "lse_low").

        The script parser has no variable argument lists, so a body has all tensors that any spec
        has, reads tables and numbers as free variables, and they are bound here.
        """
        call = {a.name for a in arguments(self.spec, self.direction)} if self.direction else None
        if statistics is not None:
            call = (call - {"lse", "lse_low"}) | {*statistics}
        own = [p for p in func.params if call is None or _NAMES.get(p.name, p.name) in call]
        params = [
            *own, *self.spans.values(), *self.inputs.values(), *[self.rng] * self.spec.dropout,
            *self.tables, *self.table_gradients.values(), *self.numbers.values(),
        ]  # fmt: skip
        bound = tirx.PrimFunc(params, func.body, func.ret_type, func.attrs)
        if self.spans:
            bound = bound.with_attr(SEQUENCES, self.spec.sequences)
        return bound.with_attr({"global_symbol": symbol, "tirx.noalias": True})


# Strides are named after the papers' letters too.
_STRIDES = {"out": "o", "dout": "do"}


def argument_of(func: tirx.PrimFunc, buffer: tirx.Buffer) -> Argument | None:
    """The argument that a parameter of the kernel ``func`` is."""
    kind = str(func.attrs.get(SEQUENCES, "dense"))
    return KNOWN[kind].get(_NAMES.get(buffer.name, buffer.name))


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
