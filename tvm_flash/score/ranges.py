"""What the integers of a program can be, where indices count from 0: divisions are cheaper then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Of the first pair past every position: lengths are up to 2^29, and a tile reaches further.
_POSITIONS = 2**30
_INDICES = 2**31


class Range(NamedTuple):
    """The least and the greatest value of an integer."""

    low: int
    high: int


def ranges(instructions: Sequence[tuple], dtypes: Sequence[str]) -> list[Range | None]:
    """The range of each instruction's value in a program of such result types; None: unknown.

    Holds where b, h, q_idx and k_idx are 0 or more. Floating-point numbers are unknown, and so is
    what may not fit its type, for it wraps around.
    """
    found: list[Range | None] = []
    for instruction, dtype in zip(instructions, dtypes, strict=True):
        known = _range(instruction, found)
        fits = known is not None and _fits(known, dtype)
        found.append(known if fits else None)
    return found


def _fits(known: Range, dtype: str) -> bool:
    bits = {"bool": 1, "int32": 31, "int64": 63}.get(dtype, 0)
    return -(2**bits) <= known.low and known.high < 2**bits


def _range(instruction: tuple, found: Sequence[Range | None]) -> Range | None:
    op, *rest = instruction
    if op in ("q_idx", "k_idx"):
        return Range(0, _POSITIONS - 1)
    if op in ("b", "h"):
        return Range(0, _INDICES - 1)
    if op == "const":
        return Range(int(rest[1]), int(rest[1])) if isinstance(rest[1], int) else None
    if op == "cast":
        return found[rest[1]]
    if op == "where":
        rest = rest[1:]
    if op not in _RULES or any(found[number] is None for number in rest):
        return None
    return _RULES[op](*(found[number] for number in rest))


def _product(a: Range, b: Range) -> Range:
    ends = [x * y for x in a for y in b]
    return Range(min(ends), max(ends))


def _quotient(a: Range, b: Range) -> Range | None:
    if b.low < 1:
        return None
    ends = [x // y for x in a for y in b]
    return Range(min(ends), max(ends))


_RULES = {
    "add": lambda a, b: Range(a.low + b.low, a.high + b.high),
    "sub": lambda a, b: Range(a.low - b.high, a.high - b.low),
    "mul": _product,
    "neg": lambda a: Range(-a.high, -a.low),
    "abs": lambda a: Range(max(a.low, -a.high, 0), max(a.high, -a.low)),
    "maximum": lambda a, b: Range(max(a.low, b.low), max(a.high, b.high)),
    "minimum": lambda a, b: Range(min(a.low, b.low), min(a.high, b.high)),
    "floordiv": _quotient,
    "mod": lambda a, b: Range(0, b.high - 1) if b.low >= 1 else None,
    "where": lambda a, b: Range(min(a.low, b.low), max(a.high, b.high)),
}
