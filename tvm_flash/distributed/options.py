"""Options of ``ring_attention``: those of ``attention`` that parts of a softmax can have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from inspect import signature
from typing import Any

from ..frontend.functional import attention, options_of
from ..frontend.problem import Features

# What to do instead, where it is not to take ulysses_attention.
_INSTEAD = {
    "alibi_slopes": "give them as a score_mod: score - slopes[h] * (q_idx - k_idx).abs()",
    "alignment": "the last query stands on the last key; give other masks as a mask_mod",
    "block_mask": "give its mask_mod, or use ulysses_attention",
    "block_table": "keys in pages are not divided among ranks",
    "max_seqlen_q": "leave it out: the lengths are read",
    "max_seqlen_k": "leave it out: the lengths are read",
}


def check_unserved(given: Mapping[str, Any]) -> None:
    """Raise for keywords that ``ring_attention`` has not, unless they ask for nothing.

    TypeError for one that ``attention`` does not know either, ValueError for another.
    """
    for name, value in given.items():
        if name not in _defaults():
            raise TypeError(f"ring_attention() got an unexpected keyword argument {name!r}")
        default = _defaults()[name]
        if value is default or (isinstance(value, (int, float, str)) and value == default):
            continue
        shown = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else f"={value!r:.60}"
        instead = _INSTEAD.get(name, "use ulysses_attention")
        raise ValueError(f"{name}{shown} is not served by ring_attention: {instead}")


@cache
def _defaults() -> dict[str, Any]:
    """The keywords of ``attention`` and what they are by default."""
    return {name: x.default for name, x in signature(attention).parameters.items()}


def as_numbers(causal, window_size, softcap, softmax_scale, head_dim: int) -> tuple:
    """The window (left, right), None for no end, scale and softcap; raises as ``attention``."""
    features, scale, numbers = options_of(causal, window_size, softcap, softmax_scale, None)
    if Features(*features).is_steep:
        raise ValueError(f"softmax_scale={scale} is beyond what ring_attention merges: 1024")
    left, right, softcap, _ = numbers
    right = 0 if Features(*features).causal else right
    window = tuple(end if end >= 0 else None for end in (left, right))
    return window, head_dim**-0.5 if scale is None else scale, softcap
