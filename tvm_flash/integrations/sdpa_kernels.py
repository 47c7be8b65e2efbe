"""The kernels that torch's operators of attention get: theirs where ours do not serve a call.

Each has the parameters of its operator, after torch's own kernel and the dispatcher's keys, and
gives results in the strides that torch's fake kernels promise to its compiler.
"""

from __future__ import annotations

import torch

from ..errors import UnsupportedSpec
from ..frontend import ops  # noqa: F401  defines the operators
from ..frontend.functional import options_of
from ..frontend.problem import problem_of
from ..frontend.sdpa import as_mods
from ..frontend.values import NO_WINDOW
from ..problem.arguments import NUMBERS

_SERVED = (torch.float32, torch.bfloat16, torch.float16)


def _forward_cpu(
    theirs, keys, query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None
):
    posed = _posed(query, key, value, is_causal, attn_mask, scale, dropout_p)
    if posed is None:
        return theirs.call_boxed(
            keys, query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )
    rows, tables, numbers = posed
    out, lse, _ = torch.ops.tvm_flash.attention_forward(*rows, tables, **numbers)
    # torch's backward multiplies by exp(-lse): of rows without a key its forward gives 0.
    lse = torch.where(lse == -torch.inf, 0.0, lse).transpose(1, 2).contiguous()
    return _like(query, out.transpose(1, 2)), lse.transpose(1, 2)


def _backward_cpu(
    theirs, keys, grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, *,
    attn_mask=None, scale=None,
):  # fmt: skip
    posed = _posed(query, key, value, is_causal, attn_mask, scale, dropout_p)
    if posed is None:
        return theirs.call_boxed(
            keys, grad_out, query, key, value, out, logsumexp, dropout_p, is_causal,
            attn_mask=attn_mask, scale=scale,
        )  # fmt: skip
    grads = _gradients(posed, grad_out, out, logsumexp)
    return tuple(x.contiguous().transpose(1, 2) for x in grads)


def _forward_cuda(
    theirs, keys, query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *,
    scale=None,
):  # fmt: skip
    posed = _posed(query, key, value, is_causal, None, scale, dropout_p)
    if posed is None or return_debug_mask:
        return theirs.call_boxed(
            keys, query, key, value, dropout_p, is_causal, return_debug_mask, scale=scale
        )
    rows, tables, numbers = posed
    out, lse, _ = torch.ops.tvm_flash.attention_forward(*rows, tables, **numbers)
    seed = query.new_empty(2, dtype=torch.uint64)
    nothing = (seed, query.new_empty((), dtype=torch.uint64), query.new_empty(0))
    lengths = (query.shape[2], key.shape[2])
    return _like(query, out.transpose(1, 2)), lse, None, None, *lengths, *nothing


def _backward_cuda(
    theirs, keys, grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k,
    dropout_p, is_causal, philox_seed, philox_offset, *, scale=None,
):  # fmt: skip
    posed = _posed(query, key, value, is_causal, None, scale, dropout_p)
    if posed is None or cum_seq_q is not None:
        return theirs.call_boxed(
            keys, grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k,
            dropout_p, is_causal, philox_seed, philox_offset, scale=scale,
        )  # fmt: skip
    grads = (x.transpose(1, 2) for x in _gradients(posed, grad_out, out, logsumexp))
    return tuple(_like(x, grad) for x, grad in zip((query, key, value), grads, strict=True))


# Names of aten operators, the dispatch key, and the kernel that the operator gets for it.
PAIRS = (
    ("_scaled_dot_product_flash_attention_for_cpu", "CPU", _forward_cpu),
    ("_scaled_dot_product_flash_attention_for_cpu_backward", "CPU", _backward_cpu),
    ("_scaled_dot_product_flash_attention", "CUDA", _forward_cuda),
    ("_scaled_dot_product_flash_attention_backward", "CUDA", _backward_cuda),
)


def _posed(query, key, value, is_causal, attn_mask, scale, dropout_p):
    """The problem of a call: rows (B, S, H, D), captured tables, other arguments by name.

    None for what kernels here do not serve.
    """
    if query.dtype not in _SERVED or dropout_p:
        return None
    alignment = "top_left" if is_causal else "bottom_right"
    rows = tuple(x.transpose(1, 2) for x in (query, key, value))
    try:
        features, scale, numbers = options_of(is_causal, NO_WINDOW, 0.0, scale, None, alignment)
        shape = (*query.shape[:3], key.shape[2])
        mods = None if attn_mask is None else as_mods(attn_mask, shape)
        (spec, default_scale), tables = problem_of(*rows, features, mods, None)
    except (ValueError, UnsupportedSpec):  # torch has accepted the call
        return None
    scale = default_scale if scale is None else scale
    names = (a.name for a in NUMBERS[1:])  # the first is softmax_scale
    plain = dict(zip(names, numbers, strict=True), spec=spec, softmax_scale=scale)
    return rows, list(tables), plain


def _gradients(posed, grad_out, out, lse):
    """dq, dk, dv (B, S, H, D), of torch's own lse too: it has no low part."""
    rows, tables, numbers = posed
    results = torch.ops.tvm_flash.attention_backward(
        *rows, out.transpose(1, 2), grad_out.transpose(1, 2), lse.contiguous(),
        lse_low=torch.zeros_like(lse, memory_format=torch.contiguous_format), tables=tables,
        **numbers,
    )  # fmt: skip
    return results[:3]


def _like(like: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``x`` in the strides that torch.empty_like(like) has."""
    wanted = torch.empty_like(like)
    return x if x.stride() == wanted.stride() else wanted.copy_(x)
