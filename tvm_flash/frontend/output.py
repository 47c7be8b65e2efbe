"""Memory that a caller gives for a result."""

from __future__ import annotations

import torch

from .checks import check_alike


def check_out(out, q: torch.Tensor, v: torch.Tensor) -> None:
    """Raise unless ``out`` is memory for the result of attention of q (..., H, D) to v (..., Dv).

    TypeError, ValueError: no tensor, of another dtype, device or shape, one that shares memory with
    itself, or that autograd does not let be written.
    """
    check_alike("out", out, q, q.ndim)
    if out.shape != (shape := (*q.shape[:-1], v.shape[-1])):
        raise ValueError(f"out of shape {tuple(out.shape)} must be of shape {tuple(shape)}")
    if is_expanded(out):
        raise ValueError(f"out of strides {out.stride()} is expanded: its rows are one memory")
    if out.requires_grad and torch.is_grad_enabled():
        raise ValueError("out requires a gradient: give its .detach(), or call under no_grad()")
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return
    if q.requires_grad and torch.is_grad_enabled() and out._is_view():
        raise ValueError(
            "out is a view, q requires a gradient: give q.detach(), or call under no_grad()"
        )
    if out.is_inference():
        raise ValueError("out was made in inference mode: give its .clone(), or call there")


def is_expanded(x: torch.Tensor) -> bool:
    """Whether elements of ``x`` may share memory, so that it cannot be written."""
    reach = 0  # of the dimensions with smaller strides
    for step, n in sorted(zip(x.stride(), x.shape, strict=True)):
        if n > 1:
            if step <= reach:
                return True
            reach += step * (n - 1)
    return False
