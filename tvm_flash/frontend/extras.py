"""Keywords of FlashAttention-3 that functions here lack: ignored, or refused by name."""

from __future__ import annotations

from typing import Any

import torch

# FlashAttention-3's keywords that change speed alone, and others with what to do without them.
_OF_SPEED = ("pack_gqa", "sm_margin", "scheduler_metadata")
# What others call the learned logits of heads, ``attention``'s sink.
_SINKS = ("s_aux", "sinks", "learnable_sink")
_NO_FLOAT8 = "q, k and v are float32, bfloat16 or float16: multiply them, or softmax_scale, by it"
_REFUSED = {
    "attention_chunk": "give `attention` a mask_mod: with Sq queries at the end of Sk keys, "
    "(q_idx + Sk - Sq) // chunk == k_idx // chunk",
    "qv": "no kernel adds a second product to the scores; join q and qv, k and v along head_dim",
    "q_descale": _NO_FLOAT8, "k_descale": _NO_FLOAT8, "v_descale": _NO_FLOAT8,
}  # fmt: skip
# Keywords that are of another function here, or of FlashAttention-3.
_RENAMED = {"page_table": "block_table", "return_softmax_lse": "return_attn_probs"}


def shared_options(
    softmax_scale, causal, window_size, softcap, alibi_slopes, others: dict[str, Any]
) -> dict[str, Any]:
    """The keywords of ``attention`` of those that FlashAttention's functions share.

    others: keywords of FlashAttention-3; raises as ``sink_of``.
    """
    return {
        "softmax_scale": softmax_scale, "causal": causal, "window_size": window_size,
        "softcap": softcap, "alibi_slopes": alibi_slopes,
        "sink": sink_of(others) if others else None,
    }  # fmt: skip


def sink_of(others: dict[str, Any]) -> torch.Tensor | None:
    """The sink among ``others``, by any of its names.

    NotImplementedError or TypeError for keywords of FlashAttention-3 that are not served.
    """
    for name, value in others.items():
        if name in _OF_SPEED or name in _SINKS:
            continue
        if name not in _REFUSED:
            other = f": here it is {_RENAMED[name]}" if name in _RENAMED else ""
            raise TypeError(f"unexpected keyword argument {name!r}{other}")
        if value is not None and not (isinstance(value, int) and value == 0):
            given = type(value).__name__ if isinstance(value, torch.Tensor) else f"{value!r:.60}"
            raise NotImplementedError(f"{name}={given} is not served: {_REFUSED[name]}")
    sinks = [others[name] for name in _SINKS if others.get(name) is not None]
    if len(sinks) > 1:
        raise TypeError(f"{', '.join(_SINKS)} are one thing: give one")
    return sinks[0] if sinks else None
