"""Numbers of tiles and workers as TIR expressions."""

from __future__ import annotations

from tvm import tirx

from ..problem.arithmetic import Arithmetic
from ..problem.listed import ListedVisibility
from ..problem.sequences import KINDS, DenseSequences, PackedSequences
from ..problem.spec import BLOCK_LISTS
from ..problem.visits import Visibility
from .signature import Signature

Sequences = DenseSequences | PackedSequences


def int32(value):
    """``value`` as int32, which lengths are checked to fit: positions get half-width lanes."""
    is_narrow = isinstance(value, int) or value.ty.dtype == "int32"
    return value if is_narrow else tirx.Cast("int32", value)


def _expression(value):
    return tirx.const(value, "int32") if isinstance(value, int) else value


TIR = Arithmetic(
    minimum=tirx.min,
    maximum=tirx.max,
    quotient=lambda a, b: tirx.truncdiv(_expression(a), b),
    remainder=lambda a, b: tirx.truncmod(_expression(a), b),
    select=lambda condition, a, b: tirx.Select(condition, _expression(a), _expression(b)),
    either=tirx.Or,
)


def sequences_of(sig: Signature) -> Sequences:
    """The sequences of a call of ``sig``; lengths are int64, as its sizes are."""
    if not sig.spans:
        return DenseSequences(sig.seqlen_q, sig.seqlen_k)
    longest = tirx.Cast("int64", sig.numbers.get("max_seqlen_k", tirx.const(0, "int32")))
    return KINDS[sig.spec.sequences](sig.sizes, _wide(sig.spans), longest, TIR)


def lengths_of(sig: Signature, entry) -> tuple:
    """(seqlen_q, seqlen_k) of ``entry`` of the batch, int32."""
    return tuple(map(int32, sequences_of(sig).lengths(entry)))


def visibility(sig: Signature, lengths: tuple, entry=None) -> Visibility:
    """``Visibility`` in an ``entry`` of these lengths; positions are int32.

    Without ``entry`` lists of blocks are not looked at.
    """
    known = sig.spec, *map(int32, lengths), sig.numbers
    if entry is None or not sig.spec.block_mask:
        return Visibility(*known, TIR)
    lists = [_Narrow(table) for table in sig.tables[-len(BLOCK_LISTS) :]]
    return ListedVisibility(*known, lists, entry, TIR)


class _Narrow:
    """Numbers of a table and its extents as int32, whatever they are asked for by."""

    def __init__(self, table: tirx.Buffer):
        self._table, self.shape = table, [int32(extent) for extent in table.shape]

    def __getitem__(self, index):
        places = index if isinstance(index, tuple) else (index,)
        return self._table[tuple(tirx.Cast("int64", place) for place in places)]


class _Wide:
    """The numbers of an int32 buffer as int64, which rows are counted in."""

    def __init__(self, buffer: tirx.Buffer):
        self._buffer = buffer

    def __getitem__(self, index):
        return tirx.Cast("int64", self._buffer[index])


def _wide(spans) -> dict[str, _Wide]:
    return {name: _Wide(buffer) for name, buffer in spans.items()}
