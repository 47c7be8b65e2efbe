"""The ways to compute attention that are timed against each other, on CPUs and on GPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from .contender import OURS, Attention, Contender
from .flex import compiled_flex
from .problems import Problem
from .sequences.contenders import SEQUENCE_CONTENDERS

NAIVE_LIMIT_BYTES = 4 * 2**30  # beyond this it measures nothing but the memory


def ours(problem: Problem, device: str) -> Attention:
    """This package; q, k, v (B, S, H, D) contiguous."""
    from ..frontend.flash_attn import flash_attn_func

    window = (-1, -1) if problem.window is None else (problem.window, 0)
    return partial(flash_attn_func, causal=problem.causal, window_size=window)


def sdpa(problem: Problem, device: str) -> Attention:
    """torch's scaled_dot_product_attention; q, k, v (B, H, S, D) contiguous, as it likes them.

    It has no window: that is a boolean mask, made here and not timed.
    """
    options: dict = {"is_causal": problem.causal}
    if problem.window is not None:
        options = {"attn_mask": visible(problem, device)}
    if problem.key_heads != problem.heads:
        options["enable_gqa"] = True
    return partial(F.scaled_dot_product_attention, **options)


def naive(problem: Problem, device: str) -> Attention:
    """Two matmuls around a softmax; q, k, v (B, H, S, D) contiguous."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if problem.group > 1:
            k, v = (t.repeat_interleave(problem.group, dim=1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) * (1.0 / math.sqrt(q.shape[-1]))
        if problem.causal:
            scores = scores.masked_fill(~visible(problem, device), float("-inf"))
        return torch.softmax(scores, dim=-1) @ v

    return attention


def sdpa_backend(name: str) -> Callable[[Problem, str], Attention]:
    """``sdpa`` by one of torch's backends, a name of ``SDPBackend``."""

    def make(problem: Problem, device: str) -> Attention:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen, function = getattr(SDPBackend, name), sdpa(problem, device)

        def attention(q, k, v):
            with sdpa_kernel(chosen):
                return function(q, k, v)

        return attention

    return make


def flex(problem: Problem, device: str) -> Attention:
    """torch's flex_attention, compiled for this problem."""

    def causal(b, h, q_idx, k_idx):
        return q_idx >= k_idx

    return compiled_flex(problem, problem.seqlen, causal if problem.causal else None, device)


def triton(tma: bool) -> Callable[[Problem, str], Attention]:
    """The Triton kernels beside this file; tma: whether they copy by tensor maps."""

    def make(problem: Problem, device: str) -> Attention:
        from .triton_attention import attention

        return lambda q, k, v: attention(q, k, v, problem.causal, tma)

    return make


def visible(problem: Problem, device: str = "cpu") -> torch.Tensor:
    """(S, S) booleans: whether a row sees a key, of a causal ``problem``."""
    shape = (problem.queries, problem.seqlen)
    pairs = torch.ones(shape, dtype=torch.bool, device=device).tril()
    return pairs if problem.window is None else pairs.triu(-problem.window)


CONTENDERS = (
    Contender(OURS, ours, "bshd"),
    Contender("sdpa", sdpa, "bhsd", ("cpu",)),
    Contender("naive", naive, "bhsd", ("cpu",)),
    Contender("sdpa_flash", sdpa_backend("FLASH_ATTENTION"), "bhsd", ("cuda",)),
    Contender("sdpa_cudnn", sdpa_backend("CUDNN_ATTENTION"), "bhsd", ("cuda",)),
    Contender("sdpa_efficient", sdpa_backend("EFFICIENT_ATTENTION"), "bhsd", ("cuda",)),
    Contender("flex", flex, "bhsd", ("cuda",)),
    Contender("triton", triton(tma=False), "bhsd", ("cuda",)),
    Contender("triton_tma", triton(tma=True), "bhsd", ("cuda",)),
)


def names_on(device: str) -> tuple[str, ...]:
    """Who runs on ``device``."""
    return tuple(c.name for c in CONTENDERS if device in c.devices)


EVERYBODY = names_on("cpu")


def contenders_for(problem: Problem, names: Sequence[str] = EVERYBODY) -> list[Contender]:
    """The contenders among ``names`` that take ``problem`` and fit in memory for it."""
    everybody = (*CONTENDERS, *SEQUENCE_CONTENDERS)
    named = [c for c in everybody if c.name in names and c.of is type(problem)]
    fits = problem.naive_bytes() < NAIVE_LIMIT_BYTES
    return [c for c in named if c.name != "naive" or fits]
