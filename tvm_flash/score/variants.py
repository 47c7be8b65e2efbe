"""Causal, window, softcap and ALiBi as ordinary mods."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .bias import BIAS_AXES


def softcap(cap: float) -> Callable:
    """score_mod: cap * tanh(score / cap), which bounds scores by ``cap`` > 0 (Gemma 2, 2024)."""

    def score_mod(score, b, h, q_idx, k_idx):
        # One multiplication: a division costs several times as much on vectors.
        return torch.tanh(score * (1.0 / cap)) * cap

    return score_mod


def alibi(slopes: torch.Tensor) -> Callable:
    """score_mod: score - slopes[b, h] * |q_idx - k_idx| (Press et al., 2021); q_idx aligned.

    ``slopes`` is (B, H).
    """

    def score_mod(score, b, h, q_idx, k_idx):
        return score - slopes[b, h] * torch.abs(q_idx - k_idx)

    return score_mod


def bias(axes: str, table: torch.Tensor) -> Callable:
    """score_mod: score + table[...]; ``axes`` are the letters of the dimensions that ``table`` has.

    "hk" is table[h, k_idx].
    """

    def score_mod(score, *symbols):
        index = tuple(x for x, at in zip(symbols, BIAS_AXES, strict=True) if at in axes)
        return score + (table[index] if index else table)

    return score_mod


def causal(b, h, q_idx, k_idx):
    """mask_mod: keys up to the row's own position; q_idx aligned."""
    return k_idx <= q_idx


def window(left: int | None, right: int | None) -> Callable:
    """mask_mod: keys in [q_idx - left, q_idx + right], both ends visible; q_idx aligned.

    None is no end on that side; one of the two must be there. Ends may be negative.
    """
    if left is None and right is None:
        raise ValueError("a window without an end hides nothing: leave the mask out")

    def mask_mod(b, h, q_idx, k_idx):
        if left is None:
            return k_idx <= q_idx + right
        if right is None:
            return k_idx >= q_idx - left
        return (k_idx >= q_idx - left) & (k_idx <= q_idx + right)

    return mask_mod


def and_masks(*mask_mods: Callable) -> Callable:
    """mask_mod: visible where all of ``mask_mods`` say so."""

    def mask_mod(b, h, q_idx, k_idx):
        visible = mask_mods[0](b, h, q_idx, k_idx)
        for other in mask_mods[1:]:
            visible = visible & other(b, h, q_idx, k_idx)
        return visible

    return mask_mod


def or_masks(*mask_mods: Callable) -> Callable:
    """mask_mod: visible where any of ``mask_mods`` says so."""

    def mask_mod(b, h, q_idx, k_idx):
        visible = mask_mods[0](b, h, q_idx, k_idx)
        for other in mask_mods[1:]:
            visible = visible | other(b, h, q_idx, k_idx)
        return visible

    return mask_mod


def alignment_offset(alignment: str, seqlen_q, seqlen_k):
    """What is added to q_idx to make it a position among the keys."""
    return seqlen_k - seqlen_q if alignment == "bottom_right" else 0
