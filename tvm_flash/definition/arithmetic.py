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


def sequences(sig: Signature) -> DenseSequences:
    """The sequences of a call of ``sig``; lengths are int32."""
    return DenseSequences(int32(sig.seqlen_q), int32(sig.seqlen_k))


def visibility(sig: Signature, entry=0) -> Visibility:
    """``Visibility`` in ``entry`` of the batch; positions are int32."""
    return Visibility(sig.spec, *sequences(sig).lengths(entry), TIR)
