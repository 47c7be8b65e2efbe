"""Numbers and flags of a call from JAX: Python's, known when it is traced."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..problem.arguments import LONGEST, MAX_WINDOW, NUMBERS, numbers_of
from ..problem.numbers import NO_WINDOW, kinds_of, numbers_by_name
from ..problem.spec import AttentionSpec

# Beyond it scores are so large that a float32 lse says little of a row's sum.
_STEEP = 1024.0


@dataclass(frozen=True)
class Numbers:
    """The numbers of a call, Python's; window: (left, right), -1 for no end."""

    scale: float
    window: tuple[int, int]
    softcap: float
    dropout: float

    @classmethod
    def given(cls, head_dim: int, *, softmax_scale, window_size, softcap, dropout_p) -> Numbers:
        """As ``attention`` takes them; TypeError, ValueError by name for what kernels do not."""
        scale = head_dim**-0.5 if softmax_scale is None else _number("softmax_scale", softmax_scale)
        if not -_STEEP <= scale <= _STEEP:
            raise ValueError(f"softmax_scale={scale} must lie in {-_STEEP}..{_STEEP}: multiply q")
        cap = 0.0 if softcap is None else _number("softcap", softcap)
        found = cls(scale, _window(window_size), cap, _number("dropout_p", dropout_p))
        found._check_limits()
        return found

    def kinds(self, causal: bool) -> dict[str, bool]:
        """The fields of AttentionSpec that say which of them there are."""
        return kinds_of(causal, self.window, self.softcap, self.dropout)

    def of(self, spec: AttentionSpec, longest_k: int) -> tuple[tuple[str, float], ...]:
        """Names and values of those that the kernels of ``spec`` have.

        longest_k: keys that no entry exceeds.
        """
        values = {**self._by_name, LONGEST.name: longest_k}
        return tuple((a.name, values[a.name]) for a in numbers_of(spec))

    @property
    def _by_name(self) -> dict[str, float]:
        return numbers_by_name(self.scale, self.window, self.softcap, self.dropout)

    def _check_limits(self) -> None:
        """ValueError where a number that a call has is out of what kernels take."""
        for a in NUMBERS:
            value, (least, most) = self._by_name[a.name], a.limits
            if value != a.absent and not least <= value <= most:
                raise ValueError(f"{a.name}={value} must lie in {least}..{most}")


def _number(name: str, value) -> float:
    """``value`` as a float; TypeError for what is none (JAX's own for one that is traced)."""
    if not hasattr(value, "__float__") or getattr(value, "shape", ()) not in ((), (1,)):
        raise TypeError(f"{name}={value!r} must be a number")
    return float(value)


def as_flag(name: str, value) -> bool:
    """``value`` as a bool; TypeError for text, containers and None."""
    if not hasattr(value, "__bool__") or value is None:
        raise TypeError(f"{name}={value!r} must be True or False")
    return bool(value)


def _window(window_size) -> tuple[int, int]:
    """(left, right) of a pair of integers; None or a negative one is no end."""
    if window_size is None:
        return NO_WINDOW
    sides = window_size if isinstance(window_size, Sequence) else np.atleast_1d(window_size)
    if len(sides) != 2 or not all(side is None or hasattr(side, "__index__") for side in sides):
        raise TypeError(f"{window_size=} must be two integers (left, right); -1 is no bound")
    left, right = (-1 if side is None else max(-1, operator.index(side)) for side in sides)
    # No sequence is as long.
    return tuple(side if side <= MAX_WINDOW else -1 for side in (left, right))
