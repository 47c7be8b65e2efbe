"""Attention of Hugging Face transformers 5: ``attn_implementation="tvm"`` once it is registered.

The mask of a model's forward is read from its mask function, not from an array of queries x keys:
causal, windows and packed positions become what kernels know, anything else that can be traced a
mask_mod. Needs transformers, which is imported by ``register``.
"""

from __future__ import annotations

import warnings

import torch

from ..frontend.functional import attention
from ..frontend.sdpa import as_mods
from .transformers_masks import Seen, seen_keys

_NO_WEIGHTS = "no weights are kept here: output_attentions=True needs attn_implementation='eager'"


def register(name: str = "tvm") -> str:
    """Make ``name`` an attn_implementation of every model; returns ``name``.

    ``AutoModel.from_config(config, attn_implementation=name)``, ``model.set_attn_implementation``.
    A name with "flash" in it raises ValueError: transformers would look for FlashAttention's
    package. ImportError without transformers 5.
    """
    if "flash" in name:
        raise ValueError(f"{name=} must not contain 'flash': transformers keeps that to itself")
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        needed = "transformers 5.24 or later is needed: pip install 'tvm-flash[transformers]'"
        raise ImportError(needed) from error

    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, seen_keys)
    return name


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Seen | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **others,
) -> tuple[torch.Tensor, None]:
    """out (B, Sq, H, Dv) of query (B, H, Sq, D), key, value (B, Hk, Sk, D | Dv), and no weights.

    attention_mask: of ``seen_keys``; a model's own, bool or float and (B or 1, H or 1, Sq, Sk), is
    taken as it is; None is causal from the first key on, where the module is causal. s_aux (H,): a
    learned sink; position_bias: broadcasts to (B, H, Sq, Sk), differentiable. others: what this
    model's layers hand over besides, of no meaning here; weights that are asked for
    (output_attentions) are not there, which is a warning.
    """
    if others.get("output_attentions"):
        warnings.warn(_NO_WEIGHTS, stacklevel=2)
    seen = attention_mask
    if not isinstance(seen, Seen):
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        seen = _as_seen(attention_mask, query, key, bool(causal))
    key, value = (x[:, :, : seen.keys] for x in (key, value))
    rows = [x.transpose(1, 2) for x in (query, key, value)]
    if len(query) != len(key):  # learned queries of one entry for all
        rows[0] = rows[0].expand(len(key), -1, -1, -1)
    if seen.lengths:
        rows = [x.flatten(0, 1) for x in rows]
    bias = None if position_bias is None else position_bias[..., : rows[1].shape[-3]]
    out = attention(
        *rows, softmax_scale=scaling, softcap=softcap or 0.0, bias=bias, dropout_p=dropout,
        sink=s_aux, **seen.options, **seen.lengths,
    )  # fmt: skip
    return out.view(-1, query.shape[2], *out.shape[-2:]), None


def _as_seen(mask: torch.Tensor | None, query, key, is_causal: bool) -> Seen:
    sizes = (max(len(query), len(key)), query.shape[1], query.shape[2], key.shape[2])
    if mask is not None:
        sizes = (*sizes[:3], mask.shape[-1])
        return Seen(sizes, {"score_mod": as_mods(mask, sizes)}, keys=mask.shape[-1])
    is_causal = is_causal and query.shape[2] > 1
    return Seen(
        sizes, {"causal": is_causal, "alignment": "top_left" if is_causal else "bottom_right"}
    )
