"""The problems that are timed: equal work at every length, as FlashAttention's papers do it."""

from __future__ import annotations

from tvm_flash.bench import Problem

HEAD_DIMS = (64, 128, 256)
SEQLENS = (512, 1024, 2048, 4096, 8192, 16384)
TOKENS = 16384  # batch x seqlen
HIDDEN = 2048  # heads x head_dim
QUICK = {"head_dims": (64, 128), "seqlens": (512, 2048)}


def problems(
    dtype: str, head_dims: tuple[int, ...] = HEAD_DIMS, seqlens: tuple[int, ...] = SEQLENS
) -> list[Problem]:
    """Every head_dim and length with a full and a causal mask; TOKENS and HIDDEN are kept."""
    return [
        Problem(dtype, dim, seqlen, causal, batch=TOKENS // seqlen, heads=HIDDEN // dim)
        for dim in head_dims
        for causal in (False, True)
        for seqlen in seqlens
    ]
