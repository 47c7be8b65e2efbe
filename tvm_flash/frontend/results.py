"""Memory for what a kernel writes, by the roles of its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from ..problem.arguments import (
    NUMBERS,
    TABLE,
    Argument,
    arguments,
    call_sizes,
    named_sizes,
    names,
    numbers_of,
    shape_of,
    sizes_of_shapes,
)
from ..problem.lengths import bucket_of
from ..problem.spec import LSE_WITHOUT_KEYS, AttentionSpec
from ..runtime.call import wants_zeros
from . import placement
from .spec_names import spec_of

try:
    # What the code that torch.compile makes calls: 0.8 microseconds, where new_empty takes 2.
    from torch._C._dynamo.guards import _empty_strided_cpu
except ImportError:

    def _empty_strided_cpu(size, stride, dtype):
        return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


_RESULTS, _GRADIENTS = (names(TABLE[x], "output") for x in ("forward", "backward"))


@lru_cache(maxsize=4096)
def forward_plan(text: str, query, value) -> tuple[AttentionSpec, str | None, tuple, tuple]:
    """What is the same for all forward calls of a spec and of these shapes of q and v.

    The spec of ``text``, the length bucket (None where there is nothing to compute), size, strides
    and dtype of each output, and which of ``NUMBERS`` its call has. Shapes repeat: one look-up
    takes the place of arithmetic.
    """
    spec = spec_of(text)
    own = tuple(NUMBERS.index(a) for a in numbers_of(spec))
    is_empty = 0 in query or 0 in value
    bucket = None if is_empty else bucket_of("forward", query[1], value[1])
    return spec, bucket, forward_layouts(spec, query, value), own


def forward_layouts(spec: AttentionSpec, query, value) -> tuple:
    """Size, strides and dtype of each output for these shapes of q and v."""
    found = arguments(spec, "forward")
    sizes = sizes_of_shapes(found, {"q": query, "v": value})
    return tuple(_layouts([a for a in found if a.role == "output"], sizes).values())


def layouts_of(kernel, sizes, threads: int) -> dict[str, tuple]:
    """Size, strides and dtype, by name, of what a call of ``kernel`` may need memory for.

    sizes: as ``problem.arguments.size_values`` takes them.
    """
    are_named = isinstance(sizes, Mapping)
    return _known_layouts(kernel, tuple(sizes.items()) if are_named else sizes, are_named, threads)


@lru_cache(maxsize=1024)
def _known_layouts(kernel, sizes: tuple, are_named: bool, threads: int) -> dict[str, tuple]:
    found = [a for a in kernel.arguments if a.is_tensor and not a.is_table]
    return _layouts(found, kernel.sizes(dict(sizes) if are_named else sizes, threads))


def from_layouts(layouts, q) -> list[torch.Tensor]:
    """Empty tensors of these layouts beside q; in memory, past the dispatcher."""
    if q.is_cpu:
        return [_empty_strided_cpu(*layout) for layout in layouts]
    return [q.new_empty_strided(size, strides, dtype=dtype) for size, strides, dtype in layouts]


def allocated(argument: Argument, layout: tuple, given) -> torch.Tensor:
    """Memory for ``argument`` where q lies, in the strides of what it is like.

    given: the operator's parameters by name.
    """
    like = given[argument.like] if argument.like else None
    if like is not None and not (like.is_cpu and like.is_contiguous()):
        return _writable_like(like)
    (tensor,) = from_layouts((layout,), given["q"])
    return tensor.zero_() if wants_zeros(argument) else tensor


def outputs(direction: str, spec: AttentionSpec, given) -> dict[str, torch.Tensor]:
    """Empty outputs of an operator of dense tensors by name, without a kernel; of symbolic sizes
    too."""
    sizes = named_sizes(call_sizes(given["q"].shape, given["v"].shape))
    return outputs_of(arguments(spec, direction), spec, sizes, given)


def outputs_of(found, spec: AttentionSpec, sizes, given) -> dict[str, torch.Tensor]:
    """Empty outputs among the arguments ``found``, of a call of these named ``sizes``."""
    q, values = given["q"], {**sizes, "D": spec.head_dim, "Dv": spec.head_dim_v}
    return {
        a.name: _writable_like(given[a.like])
        if a.like
        else q.new_empty(shape_of(a, values), dtype=getattr(torch, a.dtype))
        for a in found
        if a.role == "output"
    }


def results_without_keys(softmax: str, sink: torch.Tensor | None, out, *statistics) -> tuple:
    """out and its statistics, written, of rows that see no key."""
    if statistics and sink is not None:
        statistics[0].copy_(sink[:, None].expand_as(statistics[0]))
    elif statistics:
        statistics[0].fill_(LSE_WITHOUT_KEYS.get(softmax, -torch.inf))
    return out.zero_(), *statistics[:1], *(low.zero_() for low in statistics[1:])


def gradients_without_keys(found: dict[str, torch.Tensor], given) -> dict[str, torch.Tensor]:
    """Empty gradients, written, of a call on dense tensors without keys, whose lse is the sink."""
    for x in found.values():
        x.zero_()
    if given["sink"] is not None and given["dlse"] is not None and given["dlse"].numel():
        found["dsink"].copy_(given["dlse"].sum((0, 2)))
    return found


def completed_results(results) -> tuple:
    """All outputs of a forward operator: one that the spec lacks is a tensor without elements."""
    lacking, out = len(_RESULTS) - len(results), results[0]
    absent = (out.new_empty(out.shape[0], 0, dtype=torch.float32) for _ in range(lacking))
    return (*results, *absent)


def completed_gradients(found: Mapping[str, torch.Tensor], q: torch.Tensor) -> tuple:
    """All outputs of a backward operator: one that the spec lacks is a tensor without elements."""
    return tuple(
        found[x] if x in found else q.new_empty(0, dtype=torch.float32) for x in _GRADIENTS
    )


def _writable_like(x: torch.Tensor) -> torch.Tensor:
    """An empty gradient of ``x``, with its strides where kernels can write these."""
    like = torch.empty_like(x)
    return like if placement.has_readable_rows(like) else x.new_empty(x.shape)


def _dense_strides(shape) -> tuple[int, ...]:
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.insert(0, strides[0] * extent)
    return tuple(strides)


def _layouts(found, values) -> dict[str, tuple]:
    shapes = {a.name: shape_of(a, values) for a in found}
    return {
        a.name: (shapes[a.name], _dense_strides(shapes[a.name]), getattr(torch, a.dtype))
        for a in found
    }
