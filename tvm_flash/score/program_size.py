"""How large a program becomes as one expression, with its derivative: what compiling it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Instructions; nodes of their tree and of its derivative; instructions one inside the other.
MAX_INSTRUCTIONS = 4_096
MAX_TREE_NODES = 20_000
MAX_DEPTH = 256

# How often an operand stands in what the instruction becomes on the way to machine code, or is
# visited again by TVM's simplifier, which comes to the same; once, where none is named.
_USES = {"load": 2, "tanh": 5, "tan": 2, "xor": 2, "mod": 2, "fmod": 2}
_OF_INTEGERS = {"abs": 3, "mod": 1.7, "floordiv": 1.7}
_BY_VARIABLE = 6  # of an integer division by what is no constant
_TO_INTEGER = 4  # of a cast from float32
# Nodes of its own: a polynomial, or a call of the library for each lane of a vector.
_OWN = {
    **dict.fromkeys(("exp", "exp2", "sigmoid", "tanh"), 120),
    **dict.fromkeys(("log", "log2", "log1p", "sin", "cos", "tan", "atan", "erf", "pow"), 60),
}


class Size(NamedTuple):
    """Nodes of an expression, of its derivative by the score (0: it has none), and its depth."""

    value: float
    slope: float
    depth: int

    @property
    def excess(self) -> str:
        """What is too large (empty: nothing)."""
        if self.depth > MAX_DEPTH:
            return f"{self.depth} operations one inside the other, limit {MAX_DEPTH}"
        if (nodes := self.value + self.slope) > MAX_TREE_NODES:
            return f"{nodes:.0f} terms with its derivative, limit {MAX_TREE_NODES}"
        return ""


def size_of(
    instruction: tuple, operands: Sequence[Size], types: Sequence[str], constant_divisor: bool
) -> Size:
    """Size of an instruction's value, given its operands' sizes and types.

    constant_divisor: whether its last operand is a constant.
    """
    op = instruction[0]
    if not operands:
        return Size(1, float(op == "score"), 1)
    is_float = types[0] == "float32"
    uses = _USES.get(op, 1) if is_float else _OF_INTEGERS.get(op, _USES.get(op, 1))
    if op in ("mod", "floordiv") and not is_float and not constant_divisor:
        uses = _BY_VARIABLE
    if op == "cast" and is_float:
        uses = _TO_INTEGER
    value = 1 + _OWN.get(op, 0) + uses * sum(operand.value for operand in operands)
    slope = _slope(op, value, operands) if any(operand.slope for operand in operands) else 0
    # Numbers beyond float's range would be infinite, and infinity minus itself NaN.
    return Size(min(value, 1e30), min(slope, 1e30), 1 + max(operand.depth for operand in operands))


def _slope(op: str, value: float, operands: Sequence[Size]) -> float:
    values, slopes = sum(x.value for x in operands), sum(x.slope for x in operands)
    if op in ("add", "sub", "neg"):
        return 1 + slopes
    if op == "where":
        return 1 + operands[0].value + slopes
    if op in ("maximum", "minimum"):  # which is larger, or neither
        return 6 + 2 * (values + slopes)
    if op in _STEPS:
        return 0
    if op == "mul":
        return 3 + values + slopes
    return 10 + slopes + (2 if op in _SQUARED else 1) * (values + value)


# Operations whose derivative holds their argument or themselves twice.
_SQUARED = ("tanh", "sigmoid", "tan", "atan", "erf", "div", "pow")
_STEPS = (
    "floor ceil round trunc cast eq ne lt le gt ge and or not xor load shift_left shift_right"
).split()
