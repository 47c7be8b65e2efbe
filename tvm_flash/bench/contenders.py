"""The three ways to compute attention that are timed against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .problems import Problem

Attention = Callable[..., torch.Tensor]

NAIVE_LIMIT_BYTES = 4 * 2**30  # beyond this it measures nothing but the memory


def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """This package; q, k, v (B, S, H, D) contiguous."""
    from ..flash_attn import flash_attn_func

    return flash_attn_func(q, k, v, causal=causal)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """torch's scaled_dot_product_attention; q, k, v (B, H, S, D) contiguous, as it likes them."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """Two matmuls around a softmax; q, k, v (B, H, S, D) contiguous."""
    scores = q @ k.transpose(-1, -2) * (1.0 / math.sqrt(q.shape[-1]))
    if causal:
        size = scores.shape[-1]
        hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


@dataclass(frozen=True)
class Contender:
    """A way to compute attention and the layout it reads: "bshd" or "bhsd"."""

    name: str
    attention: Attention
    layout: str


CONTENDERS = (
    Contender("tvm_flash", ours, "bshd"),
    Contender("sdpa", sdpa, "bhsd"),
    Contender("naive", naive, "bhsd"),
)


def contenders_for(problem: Problem) -> list[Contender]:
    """Those that fit in memory for ``problem``."""
    fits = problem.naive_bytes() < NAIVE_LIMIT_BYTES
    return [c for c in CONTENDERS if c.name != "naive" or fits]


class Prepared:
    """One contender with its inputs in place: ``forward`` and ``backward`` are what is timed."""

    def __init__(self, contender: Contender, problem: Problem, seed: int = 0):
        self.contender, self.problem = contender, problem
        generator = torch.Generator().manual_seed(seed)
        shape = (problem.batch, problem.seqlen, problem.heads, problem.head_dim)
        self.q, self.k, self.v, self.dout = (self._draw(shape, generator) for _ in range(4))
        self.out: torch.Tensor | None = None

    def forward(self) -> torch.Tensor:
        """The output alone, nothing kept for a backward."""
        with torch.no_grad():
            return self.contender.attention(self.q, self.k, self.v, self.problem.causal)

    def record(self) -> None:
        """Run the forward that ``backward`` goes back through."""
        inputs = [t.requires_grad_() for t in (self.q, self.k, self.v)]
        self.out = self.contender.attention(*inputs, self.problem.causal)

    def backward(self) -> tuple[torch.Tensor, ...]:
        """dq, dk, dv; call ``record`` first."""
        assert self.out is not None, "record() has not run"
        inputs = (self.q, self.k, self.v)
        return torch.autograd.grad(self.out, inputs, self.dout, retain_graph=True)

    def to_bshd(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` of this contender's layout as (B, S, H, D)."""
        return tensor if self.contender.layout == "bshd" else tensor.transpose(1, 2)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        values = torch.randn(shape, generator=generator).to(getattr(torch, self.problem.dtype))
        return values if self.contender.layout == "bshd" else values.transpose(1, 2).contiguous()
