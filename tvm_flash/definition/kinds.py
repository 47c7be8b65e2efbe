"""What is derived of each kind of attention, made once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from tvm import tirx

from ..problem.spec import AttentionSpec
from .derive import Gradient, Recurrence, derive, derive_gradient
from .plain import plain_forward
from .signature import Signature


@cache
def recurrence_of(kind: str, dropout: bool = False) -> Recurrence:
    """The recurrence of a kind, with every statistic that a spec may ask for.

    Nothing after the mask depends on the rest of a spec, so that any spec's definition serves.
    """
    spec = AttentionSpec(dtype="float32", head_dim=8, softmax=kind, dropout=dropout)
    return derive(plain_forward(spec, statistics=("lse", "lse_low")))


def row_numbers(sig: Signature, h, buffers: Mapping[str, tirx.Buffer] | None = None) -> dict:
    """By name what the inputs of a kind are in the rows of head ``h``; buffers: where a kernel has
    them, else those of ``sig``."""
    found = sig.inputs if buffers is None else buffers
    return {name: found[name][h,] for name in sig.inputs}


@cache
def gradient_of(kind: str) -> Gradient:
    """What the backward of a kind takes."""
    return derive_gradient(recurrence_of(kind))
