"""Numbers of tiles and workers as TIR expressions."""

from __future__ import annotations

from tvm import tirx

from ..problem.arithmetic import Arithmetic
from ..problem.sequences import DenseSequences
from ..problem.visits import Visibility
from .signature import Signature


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


def sequences_of(sig: Signature) -> DenseSequences:
    """The sequences of a call of ``sig``; lengths are int64, as its sizes are."""
    return DenseSequences(sig.seqlen_q, sig.seqlen_k)


def lengths_of(sig: Signature, entry) -> tuple:
    """(seqlen_q, seqlen_k) of ``entry`` of the batch, int32."""
    return tuple(map(int32, sequences_of(sig).lengths(entry)))


def visibility(sig: Signature, entry) -> Visibility:
    """``Visibility`` in ``entry`` of the batch; positions are int32."""
    return Visibility(sig.spec, *lengths_of(sig, entry), sig.numbers, TIR)
