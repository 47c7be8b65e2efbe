"""FlashAttention's rule: errors up to twice PyTorch's own in the dtype, three times for gradients.

Both errors are taken against float64; a round-off is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..problem.dtype import DTYPES

FACTORS = {"out": 2, "lse": 2, "dq": 3, "dk": 3, "dv": 3}
ROUND_OFF = 1e-5


@dataclass(frozen=True)
class Deviation:
    """How far one result (a key of FACTORS) is from float64, and how far it may be."""

    result: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the rule holds (an error that is not finite does not)."""
        return self.error <= self.allowed

    @property
    def share(self) -> float:
        """The part of ``allowed`` that was used; inf where even the baseline is not finite."""
        return self.error / self.allowed if math.isfinite(self.error) else math.inf

    def __str__(self) -> str:
        relation = "within" if self.ok else "exceeds"
        return f"{self.result}: error {self.error:.3g} {relation} {self.allowed:.3g}"


def deviations(
    dtype: str,
    found: Mapping[str, torch.Tensor],
    exact: Mapping[str, torch.Tensor],
    plain: Mapping[str, torch.Tensor],
    score_size: float = 0.0,
) -> list[Deviation]:
    """The rule for each result of ``found``; ``plain`` is what PyTorch gives in ``dtype``.

    score_size: of large scores, whose rounding in float32 decides how accurate PyTorch is, and
    chance whether it is more accurate than a kernel that rounds as often.
    """
    return [
        Deviation(
            name,
            largest_error(got, exact[name]),
            _allowed(name, dtype, exact[name], plain[name], score_size),
        )
        for name, got in found.items()
    ]


def _allowed(
    name: str, dtype: str, exact: torch.Tensor, plain: torch.Tensor, score_size: float
) -> float:
    baseline = largest_error(plain, exact)
    # What rounding a score does to its exponential, relative to it.
    baseline += score_size * 2.0**-24 * largest_error(exact, torch.zeros_like(exact))
    round_off = DTYPES[dtype].lse_round_off if name == "lse" else ROUND_OFF
    return FACTORS[name] * baseline + round_off


def largest_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest absolute difference; equal infinities are equal, NaN is infinitely wrong."""
    if got.shape != want.shape:
        raise ValueError(f"a result of shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    got, want = got.double(), want.double()
    # An infinite error becomes the largest number: no tolerance made of it is NaN.
    error = torch.where(got == want, 0.0, (got - want).abs()).nan_to_num(nan=math.inf)
    return error.max().item() if error.numel() else 0.0
