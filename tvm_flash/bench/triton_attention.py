"""The Triton kernels as a differentiable PyTorch function, tuned over a few tile sizes."""

from __future__ import annotations

import math

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from . import triton_kernels as kernels

LOG2E = math.log2(math.e)
LARGEST_TILE = 128
KEY = ["D", "CAUSAL", "TMA", "seqlen_q"]


def _config(block_q: int, block_k: int, num_warps: int, num_stages: int) -> triton.Config:
    tiles = {"BLOCK_Q": block_q, "BLOCK_K": block_k}
    return triton.Config(tiles, num_stages, num_warps, pre_hook=_set_blocks)


def _set_blocks(arguments: dict) -> None:
    """Tensor maps copy the tiles of the configuration that is tried."""
    blocks = {"q": "BLOCK_Q", "dout": "BLOCK_Q", "k": "BLOCK_K", "v": "BLOCK_K"}
    for name, block in blocks.items():
        if isinstance(arguments.get(name), TensorDescriptor):
            arguments[name].block_shape = [1, arguments[block], arguments["D"]]


# Those that do not fit a head_dim (shared memory, registers) lose in the tuner by themselves.
FORWARD = [
    _config(128, 128, 8, 2),
    _config(128, 64, 8, 3),
    _config(128, 64, 4, 3),
    _config(128, 64, 8, 2),
    _config(128, 32, 8, 3),
    _config(64, 64, 4, 3),
    _config(64, 32, 4, 2),
]
KEY_GRADIENTS = [
    _config(64, 128, 8, 2),
    _config(32, 128, 4, 3),
    _config(64, 64, 4, 2),
    _config(32, 64, 4, 2),
    _config(32, 64, 8, 1),
]
QUERY_GRADIENT = [
    _config(128, 64, 8, 2),
    _config(128, 32, 4, 3),
    _config(64, 64, 4, 2),
    _config(64, 32, 4, 2),
    _config(64, 32, 8, 1),
]
_forward = triton.autotune(FORWARD, KEY)(kernels.attention_forward)
_key_gradients = triton.autotune(KEY_GRADIENTS, KEY)(kernels.attention_key_gradients)
_query_gradient = triton.autotune(QUERY_GRADIENT, KEY)(kernels.attention_query_gradient)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, tma: bool
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v of (B, H, S, D) contiguous; D a power of two."""
    return _Attention.apply(q, k, v, causal, tma)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal: bool, tma: bool):
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        scale = q.shape[-1] ** -0.5
        sizes = (q.shape[2], k.shape[2])
        options = _options(q, k, causal, tma)
        inputs = [_source(x, tma) for x in (q, k, v)]
        _forward[_tiles(q, "BLOCK_Q")](*inputs, out, lse, scale * LOG2E, *sizes, **options)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.tma = causal, tma
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, out, lse = ctx.saved_tensors
        dout, delta = dout.contiguous(), torch.empty_like(lse)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        scale = q.shape[-1] ** -0.5
        numbers = (scale, scale * LOG2E, q.shape[2], k.shape[2])
        options = _options(q, k, ctx.causal, ctx.tma)
        rows, block = q.shape[2], 64
        grid = (triton.cdiv(rows, block), q.shape[0] * q.shape[1])
        kernels.attention_delta[grid](out, dout, delta, rows, q.shape[-1], block)
        inputs = [*(_source(x, ctx.tma) for x in (q, k, v, dout)), lse, delta]
        _key_gradients[_tiles(k, "BLOCK_K")](*inputs, dk, dv, *numbers, **options)
        _query_gradient[_tiles(q, "BLOCK_Q")](*inputs, dq, *numbers, **options)
        return dq, dk, dv, None, None


def _options(q: torch.Tensor, k: torch.Tensor, causal: bool, tma: bool) -> dict:
    ragged = any(x.shape[2] % LARGEST_TILE for x in (q, k))
    return {"D": q.shape[-1], "CAUSAL": causal, "RAGGED": ragged, "TMA": tma}


def _tiles(x: torch.Tensor, block: str):
    """The grid: tiles of ``x``'s rows, heads."""
    heads = x.shape[0] * x.shape[1]
    return lambda meta: (triton.cdiv(x.shape[2], meta[block]), heads)


def _source(x: torch.Tensor, tma: bool):
    """``x`` (B, H, S, D) as the kernels read it; the tuner sets the block of a descriptor."""
    if not tma:
        return x
    heads = x.flatten(0, 1)
    return TensorDescriptor(heads, list(heads.shape), list(heads.stride()), [1, 1, x.shape[-1]])
