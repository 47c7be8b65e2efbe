"""Tensors whose gradients are not computed, refused where one is wanted."""

from __future__ import annotations

import torch
from torch._C import _functorch
from torch.autograd import forward_ad


def check_no_gradient(name: str, x: torch.Tensor) -> None:
    """NotImplementedError for a tensor that wants a gradient."""
    if wants_gradient(x):
        raise NotImplementedError(missing_gradient(name, x))


def missing_gradient(name: str, x: torch.Tensor) -> str:
    """What is wrong with a tensor that wants a gradient."""
    return (
        f"{name} of shape {tuple(x.shape)} requires grad: its gradient is not computed; pass its "
        ".detach(), or call under torch.no_grad()"
    )


def wants_gradient(x: torch.Tensor) -> bool:
    """Whether autograd would reach ``x``, in this mode and in the transforms around the call."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        return True
    if not torch.is_grad_enabled():
        return False
    if x.requires_grad:
        return True
    if torch.compiler.is_compiling() or not _functorch.is_functorch_wrapped_tensor(x):
        return False
    return wants_gradient(_functorch.get_unwrapped(x))  # vmap hides what it maps over
