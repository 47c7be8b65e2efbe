"""Operations on whole numbers that are Python's, or expressions of a compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import floordiv, mod, or_


@dataclass(frozen=True)
class Arithmetic:
    """The operations that number tiles and workers, beside +, -, * and comparisons.

    quotient(a, b), remainder(a, b): for a >= 0, b > 0; a negative ``a`` may give any quotient <= 0.
    select(condition, a, b): ``a`` where it holds, else ``b``. either(a, b): the logical or.
    """

    minimum: Callable
    maximum: Callable
    quotient: Callable
    remainder: Callable
    select: Callable
    either: Callable


def _select(condition, a, b):
    return a if condition else b


INTS = Arithmetic(min, max, floordiv, mod, _select, or_)
