"""Memory for what a kernel writes, by the roles of its arguments."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..problem.arguments import Argument, arguments, shape_of, size_values
from ..problem.lengths import bucket_of
from ..problem.spec import AttentionSpec
from ..runtime.call import wants_zeros
from . import placement
from .spec_names import spec_of

try:
    # What the code that torch.compile makes calls: 0.8 microseconds, where new_empty takes 2.
    from torch._C._dynamo.guards import _empty_strided_cpu
except ImportError:

    def _empty_strided_cpu(size, stride, dtype):
        return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


@lru_cache(maxsize=4096)
def forward_plan(text: str, query, value) -> tuple[AttentionSpec, str | None, tuple]:
    """What is the same for all forward calls of a spec and of these shapes of q and v.

    The spec of ``text``, the length bucket (None where there is nothing to compute), and size,
    strides and dtype of each output. Shapes repeat: one look-up takes the place of arithmetic.
    """
    spec = spec_of(text)
    values = size_values(spec, _sizes(query, value))
    layouts = tuple(
        (shape, _dense_strides(shape), getattr(torch, argument.dtype))
        for argument in arguments(spec, "forward")
        if argument.role == "output"
        for shape in [shape_of(argument, values)]
    )
    is_empty = 0 in query or 0 in value
    return spec, None if is_empty else bucket_of("forward", query[1], value[1]), layouts


def from_layouts(layouts, q) -> list[torch.Tensor]:
    """The outputs of ``forward_plan`` beside q; in memory, past the dispatcher."""
    if q.is_cpu:
        return [_empty_strided_cpu(*layout) for layout in layouts]
    return [
        torch.empty_strided(*layout[:2], dtype=layout[2], device=q.device) for layout in layouts
    ]


def outputs(direction: str, spec: AttentionSpec, given) -> dict[str, torch.Tensor]:
    """Empty outputs of an operator beside its tensors, by name; of symbolic sizes too.

    given: the operator's parameters by name.
    """
    q, v = given["q"], given["v"]
    values = size_values(spec, _sizes(q.shape, v.shape))
    found = [a for a in arguments(spec, direction) if a.role == "output"]
    return {a.name: allocated(a, shape_of(a, values), given) for a in found}


def allocated(argument: Argument, shape, given) -> torch.Tensor:
    """Memory for ``argument`` where q lies, in the strides of what it is like."""
    if argument.like:
        return _writable_like(given[argument.like])
    make = given["q"].new_zeros if wants_zeros(argument) else given["q"].new_empty
    return make(shape, dtype=getattr(torch, argument.dtype))


def _writable_like(x: torch.Tensor) -> torch.Tensor:
    """An empty gradient of ``x``, with its strides where kernels can write these."""
    like = torch.empty_like(x)
    return like if placement.has_readable_rows(like) else x.new_empty(x.shape)


def _sizes(query, value) -> tuple:
    """B, H, Hk, Sq, Sk of q (B, Sq, H, D) and v (B, Sk, Hk, Dv)."""
    return query[0], query[2], value[2], query[1], value[1]


def _dense_strides(shape) -> tuple[int, ...]:
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.insert(0, strides[0] * extent)
    return tuple(strides)
