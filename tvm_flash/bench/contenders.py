"""The three ways to compute attention that are timed against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from .problems import Problem

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

NAIVE_LIMIT_BYTES = 4 * 2**30  # beyond this it measures nothing but the memory


def ours(problem: Problem) -> Attention:
    """This package; q, k, v (B, S, H, D) contiguous."""
    from ..frontend.flash_attn import flash_attn_func

    window = (-1, -1) if problem.window is None else (problem.window, 0)
    return partial(flash_attn_func, causal=problem.causal, window_size=window)


def sdpa(problem: Problem) -> Attention:
    """torch's scaled_dot_product_attention; q, k, v (B, H, S, D) contiguous, as it likes them.

    It has no window: that is a boolean mask, made here and not timed.
    """
    options: dict = {"is_causal": problem.causal}
    if problem.window is not None:
        options = {"attn_mask": visible(problem)}
    if problem.key_heads != problem.heads:
        options["enable_gqa"] = True
    return partial(F.scaled_dot_product_attention, **options)


def naive(problem: Problem) -> Attention:
    """Two matmuls around a softmax; q, k, v (B, H, S, D) contiguous."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if problem.group > 1:
            k, v = (t.repeat_interleave(problem.group, dim=1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) * (1.0 / math.sqrt(q.shape[-1]))
        if problem.causal:
            scores = scores.masked_fill(~visible(problem), float("-inf"))
        return torch.softmax(scores, dim=-1) @ v

    return attention


def visible(problem: Problem) -> torch.Tensor:
    """(S, S) booleans: whether a row sees a key, of a causal ``problem``."""
    pairs = torch.ones(problem.queries, problem.seqlen, dtype=torch.bool).tril()
    return pairs if problem.window is None else pairs.triu(-problem.window)


@dataclass(frozen=True)
class Contender:
    """A way to compute attention, made for a problem, and the layout it reads: "bshd" or "bhsd"."""

    name: str
    make: Callable[[Problem], Attention]
    layout: str


CONTENDERS = (
    Contender("tvm_flash", ours, "bshd"),
    Contender("sdpa", sdpa, "bhsd"),
    Contender("naive", naive, "bhsd"),
)
EVERYBODY = tuple(contender.name for contender in CONTENDERS)


def contenders_for(problem: Problem, names: tuple[str, ...] = EVERYBODY) -> list[Contender]:
    """Those of ``names`` that fit in memory for ``problem``."""
    fits = problem.naive_bytes() < NAIVE_LIMIT_BYTES
    return [c for c in CONTENDERS if c.name in names and (c.name != "naive" or fits)]


class Prepared:
    """One contender with its inputs in place: ``forward`` and ``backward`` are what is timed."""

    def __init__(self, contender: Contender, problem: Problem, seed: int = 0):
        self.contender, self.problem = contender, problem
        self.attention = contender.make(problem)
        generator = torch.Generator().manual_seed(seed)
        p = problem
        rows = (p.batch, p.queries, p.heads, p.head_dim)
        keys = (p.batch, p.seqlen, p.key_heads, p.head_dim)
        drawn = (self._draw(shape, generator) for shape in (rows, keys, keys, rows))
        self.q, self.k, self.v, self.dout = drawn
        self.out: torch.Tensor | None = None

    def forward(self) -> torch.Tensor:
        """The output; call it under torch.no_grad() to keep nothing for a backward."""
        return self.attention(self.q, self.k, self.v)

    def record(self) -> None:
        """Run the forward that ``backward`` goes back through."""
        for tensor in (self.q, self.k, self.v):
            tensor.requires_grad_()
        self.out = self.forward()

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
