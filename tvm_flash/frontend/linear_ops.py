"""The operator of linear attention, whose gradients are three calls of itself."""

from __future__ import annotations

import torch

from ..problem.arguments import TABLE
from ..problem.linear import LINEAR_NUMBERS
from . import linear_kernel
from .autograd import below_autograd, differentiable
from .library import define, register_composed
from .linear_gradients import LinearRecording
from .schemas import schema

linear = define(schema("linear", TABLE["linear"], LINEAR_NUMBERS, ("bool causal=False",)))


def filled(value: float, like: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, heads, S) float32 of one value, beside the rows of ``like`` (B, S, ...)."""
    row = like.new_full((like.shape[1],), value, dtype=torch.float32)
    return row.expand(like.shape[0], heads, like.shape[1])


_recording = LinearRecording(linear)
register_composed(
    linear,
    linear_kernel.run,
    linear_kernel.results,
    differentiable("linear", below_autograd(linear), _recording.save, _recording.gradients),
)
