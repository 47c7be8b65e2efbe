"""Scale, window and softcap: their values are numbers of a call, a spec says which there are."""

from __future__ import annotations

from typing import Any

# (left, right): no end on either side.
NO_WINDOW = (-1, -1)


def kinds_of(
    causal: bool = False,
    window_size: tuple = NO_WINDOW,
    softcap: float = 0.0,
    dropout: float = 0.0,
) -> dict[str, bool]:
    """The fields of AttentionSpec of a window (left, right), -1 being no end, of a cap and of a
    probability of dropout, 0 being none."""
    left, right = window_size
    return {
        "causal": causal or right == 0,
        "window_left": left >= 0,
        "window_right": right > 0,
        "softcap": softcap > 0,
        "dropout": dropout > 0,
    }


def numbers_by_name(
    softmax_scale: float,
    window_size: tuple = NO_WINDOW,
    softcap: float = 0.0,
    dropout: float = 0.0,
) -> dict[str, Any]:
    """The numbers of a call by the names of its arguments, also those that a spec has not."""
    left, right = window_size
    window = {"window_left": left, "window_right": right}
    return {"softmax_scale": softmax_scale, **window, "softcap": softcap, "dropout": dropout}


def usual_numbers(head_dim: int, seqlen_k: int) -> dict[str, Any]:
    """The numbers that specs are timed and modelled with, by name.

    A window of a quarter of the keys on each side, the cap of Gemma 2's attention (2024), and the
    dropout of the Transformer's (Vaswani et al., 2017).
    """
    end = max(1, seqlen_k // 4)
    return numbers_by_name(head_dim**-0.5, (end, end), 50.0, 0.1)
