"""A kernel's call: what it is given, in order, with memory for what it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..problem.arguments import WRITTEN, Argument, shape_of

Make = Callable[[Argument], Any]


def new_tensors(values: Mapping[str, Any]) -> Make:
    """Makes contiguous memory on the CPU for an argument of a call of these ``size_values``."""

    def make(argument: Argument) -> torch.Tensor:
        fill = torch.zeros if wants_zeros(argument) else torch.empty
        return fill(shape_of(argument, values), dtype=getattr(torch, argument.dtype))

    return make


def wants_zeros(argument: Argument) -> bool:
    """Whether ``argument`` is zeros where nobody gives it."""
    return argument.zeroed or argument.role not in WRITTEN


def completed(
    arguments: Sequence[Argument], given: Mapping[str, Any], make: Make
) -> dict[str, Any]:
    """What a call takes by name, in order: what is ``given``, other tensors from ``make``.

    ``given`` may hold more than the kernel takes, and None. Raises ValueError for one that only the
    caller can give.
    """
    call = {}
    for argument in arguments:
        value = given.get(argument.name)
        if value is None:
            if not _can_be_made(argument):
                raise ValueError(f"{argument.name} is missing: this kernel needs it")
            value = make(argument)
        call[argument.name] = value
    return call


def _can_be_made(argument: Argument) -> bool:
    return argument.role in ("output", "workspace") or (
        argument.role == "input" and argument.optional
    )
