"""Numbers of tiles and workers as TIR expressions."""

from __future__ import annotations

from tvm import tirx

from ..problem.arithmetic import Arithmetic
from ..problem.visits import Visibility
from .signature import Signature


def int32(value):
    """``value`` as int32: lengths are checked to fit 31 bits, masks and positions get half-width
    lanes."""
    if isinstance(value, int):
        return tirx.const(value, "int32")
    return value if value.ty.dtype == "int32" else tirx.Cast("int32", value)


TIR = Arithmetic(
    minimum=tirx.min,
    maximum=tirx.max,
    quotient=lambda a, b: tirx.truncdiv(int32(a), b),
    remainder=lambda a, b: tirx.truncmod(int32(a), b),
    select=lambda condition, a, b: tirx.Select(condition, int32(a), int32(b)),
    either=tirx.Or,
)


def visibility(sig: Signature) -> Visibility:
    """``Visibility`` of the lengths of ``sig``; positions are int32."""
    return Visibility(sig.spec, int32(sig.seqlen_q), int32(sig.seqlen_k), TIR)
