"""FlashAttention's numbers as a spec and its call have them: kinds here, values there."""

from __future__ import annotations

from typing import Any

# (left, right): no end on either side.
NO_WINDOW = (-1, -1)


def kinds_of(
    causal: bool = False, window_size: tuple = NO_WINDOW, softcap: float = 0.0
) -> dict[str, bool]:
    """The fields of AttentionSpec for a window (left, right), -1 no end, and a cap, 0 none."""
    left, right = window_size
    return {
        "causal": causal or right == 0,
        "window_left": left >= 0,
        "window_right": right > 0,
        "softcap": softcap > 0,
    }


def numbers_by_name(
    softmax_scale: float, window_size: tuple = NO_WINDOW, softcap: float = 0.0
) -> dict[str, Any]:
    """The numbers of a call by their names; a spec takes those that it has."""
    left, right = window_size
    named = {"window_left": left, "window_right": right, "softcap": softcap}
    return {"softmax_scale": softmax_scale, **named}


def usual_numbers(head_dim: int, seqlen_k: int) -> dict[str, Any]:
    """What a spec is timed and modelled with: a quarter of the keys on a side that has an end, and
    the cap of Gemma 2's attention (2024)."""
    end = max(1, seqlen_k // 4)
    return numbers_by_name(head_dim**-0.5, (end, end), 50.0)
