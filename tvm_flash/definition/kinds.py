"""The kinds of attention that have a plain definition, and what is derived of each, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ..problem.spec import AttentionSpec
from .derive import Gradient, Recurrence, derive, derive_gradient
from .plain import plain_forward
from .sigmoid import Sigmoid
from .signature import Signature
from .sink import Sink
from .softmax import Softmax
from .softmax1 import Softmax1

KINDS = {"softmax": Softmax, "sink": Sink, "softmax1": Softmax1, "sigmoid": Sigmoid}


@cache
def recurrence_of(kind: str) -> Recurrence:
    """The recurrence of a kind, with every statistic that a spec may ask for.

    Nothing after the mask depends on the rest of a spec, so that any spec's definition serves.
    """
    spec = AttentionSpec(dtype="float32", head_dim=8)
    return derive(plain_forward(spec, KINDS[kind], ("lse", "lse_low")))


def row_numbers(kind: str, sig: Signature) -> tuple[tuple, Callable]:
    """(inputs, numbers): parameters of a kind besides those of all, and by name what they are in
    the rows of head ``h``."""
    inputs = tuple(KINDS[kind](sig).inputs)
    return inputs, lambda h: {buffer.name: buffer[h] for buffer in inputs}


@cache
def gradient_of(kind: str) -> Gradient:
    """What the backward of a kind takes."""
    return derive_gradient(recurrence_of(kind))
