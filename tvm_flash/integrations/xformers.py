"""xFormers' memory_efficient_attention: its names, parameters, shapes and bias classes.

xFormers itself is not needed: its biases are known by their classes' names.
"""

from __future__ import annotations

from typing import Any

import torch

from ..frontend.functional import attention
from ..score.layouts import check_dense
from .xformers_biases import seen_rows, tensor_bias

# Shapes of query, key and value, by their number of dimensions.
_FORMS = {3: "(B, M, K)", 4: "(B, M, H, K)", 5: "(B, M, G, H, K)"}


def memory_efficient_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """softmax(query key^T * scale + attn_bias) value, differentiable, dropout by ``p`` included.

    query (B, M, H, K), key (B, Mk, H, K), value (B, Mk, H, Kv), of one dtype; (B, M, K) for one
    head, (B, M, G, H, K) for G groups of H heads, of which those of key and value that ``expand``
    repeats are read once. attn_bias: floating point, (B, H, M, Mk), differentiable; or an object of
    xFormers' classes (``xformers_biases``), of which those of pages have no gradient. op: read by
    nobody. output_dtype: a cast of the result. Returns (B, M, H, Kv), or as query is; 0 in rows
    that see no key.

    Raises ValueError, TypeError for wrong arguments, NotImplementedError for classes of biases that
    are not known, UnsupportedSpec for what kernels cannot do.
    """
    out = _attention(query, key, value, attn_bias, p, scale)
    return _cast(out, output_dtype)


def memory_efficient_attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``memory_efficient_attention`` without gradients."""
    given = (query, key, value, attn_bias, p, scale)
    with torch.no_grad():
        return memory_efficient_attention(*given, op=op, output_dtype=output_dtype)


def memory_efficient_attention_forward_requires_grad(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) of ``memory_efficient_attention``, both differentiable.

    lse (B, H, M) float32, natural log, -inf in rows that see no key; (B, G, H, M) for groups, (1,
    H, total) beside block-diagonal biases. Dropout raises NotImplementedError, as xFormers' does.
    """
    if p:
        raise NotImplementedError(f"{p=}: with dropout call memory_efficient_attention")
    out, lse = _attention(query, key, value, attn_bias, p, scale, return_lse=True)
    return _cast(out, output_dtype), lse


def _cast(out: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None:
        return out
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"output_dtype={dtype!r} must be a floating dtype of torch")
    return out.to(dtype)


def _attention(query, key, value, attn_bias, p, scale, return_lse=False):
    q, k, v = _checked(query, key, value)
    options = {"softmax_scale": scale, "dropout_p": p, "return_lse": return_lse}
    if isinstance(attn_bias, torch.Tensor):
        _check_rank(attn_bias, query)
        options["bias"] = tensor_bias(attn_bias, q)
    elif attn_bias is not None:
        (q, k, v), seen = seen_rows(attn_bias, (q, k, v))
        options |= seen
    result = attention(q, k, v, **options)
    out, lse = result if return_lse else (result, None)
    heads = query.shape[2:-1] or (1,)
    out = out.reshape(*query.shape[:-1], value.shape[-1])
    return (out, lse.reshape(len(query), *heads, -1)) if return_lse else out


def _checked(query, key, value) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three as (B, S, H, D); raises unless they are tensors that share one of ``_FORMS``."""
    given = {"query": query, "key": key, "value": value}
    for name, x in given.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
        check_dense(name, x)
    if query.ndim not in _FORMS or not query.ndim == key.ndim == value.ndim:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in given.items())
        raise ValueError(f"shapes of {shapes} must all be {', '.join(_FORMS.values())}")
    if query.ndim == 5 and not query.shape[2] == key.shape[2] == value.shape[2]:
        groups = [x.shape[2] for x in given.values()]
        raise ValueError(f"groups of query, key, value are {groups}: make them equal")
    if query.ndim == 3:
        return query.unsqueeze(2), key.unsqueeze(2), value.unsqueeze(2)
    if _repeats_heads(key) and _repeats_heads(value):
        key, value = key.narrow(-2, 0, 1), value.narrow(-2, 0, 1)
    if query.ndim == 4:
        return query, key, value
    return query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3)


def _repeats_heads(x: torch.Tensor) -> bool:
    """Whether ``expand`` made the heads of ``x``, and gradients may go to the one that there is."""
    return x.stride(-2) == 0 and x.shape[-2] > 1 and not (x.is_leaf and x.requires_grad)


def _check_rank(bias: torch.Tensor, query: torch.Tensor) -> None:
    """ValueError unless a bias has a dimension for each of the query's: none may be guessed."""
    if bias.ndim != query.ndim:
        wanted = "(B, M, Mk)" if query.ndim == 3 else "(B, heads, M, Mk)"
        raise ValueError(
            f"attn_bias of shape {tuple(bias.shape)} beside query of shape {tuple(query.shape)} "
            f"must be {wanted}, of as many dimensions as query"
        )
