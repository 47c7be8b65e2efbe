"""Tensors that no kernel reads, nested, sparse or negated lazily, refused with what to pass."""

from __future__ import annotations

import torch


def check_dense(name: str, x: torch.Tensor) -> None:
    """TypeError for a tensor that is not rows of elements at fixed strides."""
    if x.is_nested:
        raise TypeError(
            f"{name} is a nested tensor, must be dense: pad it (torch.nested.to_padded_tensor) and "
            "hide padded keys by attention's mask_mod=lambda b, h, q_idx, k_idx: k_idx < lengths[b]"
            "; attention takes q, k and v of layout torch.jagged as they are"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name} of layout {x.layout} must be torch.strided: pass its .to_dense()")


def check_in_memory(name: str, x: torch.Tensor) -> None:
    """As ``check_dense``; TypeError too for a tensor whose memory holds its negative."""
    check_dense(name, x)
    if not torch.compiler.is_compiling() and x.is_neg():
        raise TypeError(f"{name} is negated lazily (x.is_neg()): pass its .resolve_neg()")
