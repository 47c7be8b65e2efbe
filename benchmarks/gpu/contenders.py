"""The ways to compute attention on a CUDA device that are timed against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tvm_flash.bench import Problem

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
OURS = "tvm_flash"


@dataclass(frozen=True)
class Contender:
    """A name, the layout of its inputs ("bshd" or "bhsd"), and what makes its function.

    ``make(problem, device)`` returns attention(q, k, v), differentiable. It imports and compiles
    what it needs, and raises where that is missing.
    """

    name: str
    layout: str
    make: Callable[[Problem, str], Attention]


def _ours(problem: Problem, device: str) -> Attention:
    from tvm_flash import flash_attn_func

    return lambda q, k, v: flash_attn_func(q, k, v, causal=problem.causal)


def _sdpa(backend: str) -> Callable[[Problem, str], Attention]:
    def make(problem: Problem, device: str) -> Attention:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = getattr(SDPBackend, backend)

        def attention(q, k, v):
            with sdpa_kernel(chosen):
                return F.scaled_dot_product_attention(q, k, v, is_causal=problem.causal)

        return attention

    return make


def _flex(problem: Problem, device: str) -> Attention:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def causal(b, h, q_idx, k_idx):
        return q_idx >= k_idx

    mask = None
    if problem.causal:
        mask = create_block_mask(causal, None, None, problem.seqlen, problem.seqlen, device=device)
    # Its cache holds a few shapes; beyond them it would run flex_attention unfused.
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def _triton(tma: bool) -> Callable[[Problem, str], Attention]:
    def make(problem: Problem, device: str) -> Attention:
        from .triton_attention import attention

        return lambda q, k, v: attention(q, k, v, problem.causal, tma)

    return make


CONTENDERS = (
    Contender(OURS, "bshd", _ours),
    Contender("sdpa_flash", "bhsd", _sdpa("FLASH_ATTENTION")),
    Contender("sdpa_cudnn", "bhsd", _sdpa("CUDNN_ATTENTION")),
    Contender("sdpa_efficient", "bhsd", _sdpa("EFFICIENT_ATTENTION")),
    Contender("flex", "bhsd", _flex),
    Contender("triton", "bhsd", _triton(tma=False)),
    Contender("triton_tma", "bhsd", _triton(tma=True)),
)


class Prepared:
    """One contender with its inputs in place: ``forward`` and ``backward`` are what is timed."""

    def __init__(self, contender: Contender, problem: Problem, device: str, seed: int = 0):
        self.contender, self.problem = contender, problem
        self.attention = contender.make(problem, device)
        generator = torch.Generator(device).manual_seed(seed)
        self.q, self.k, self.v, self.dout = (self._draw(device, generator) for _ in range(4))
        self.out: torch.Tensor | None = None

    def forward(self) -> torch.Tensor:
        """The output alone, nothing kept for a backward."""
        with torch.no_grad():
            return self.attention(self.q, self.k, self.v)

    def record(self) -> None:
        """Run the forward that ``backward`` goes back through."""
        self.out = self.attention(*(x.requires_grad_() for x in (self.q, self.k, self.v)))

    def backward(self) -> tuple[torch.Tensor, ...]:
        """dq, dk, dv; call ``record`` first."""
        inputs = (self.q, self.k, self.v)
        return torch.autograd.grad(self.out, inputs, self.dout, retain_graph=True)

    def as_bshd(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` of this contender's layout as (B, S, H, D)."""
        return tensor if self.contender.layout == "bshd" else tensor.transpose(1, 2)

    def _draw(self, device: str, generator: torch.Generator) -> torch.Tensor:
        problem = self.problem
        shape = (problem.batch, problem.seqlen, problem.heads, problem.head_dim)
        values = torch.randn(shape, generator=generator, device=device)
        values = values.to(getattr(torch, problem.dtype))
        return values if self.contender.layout == "bshd" else values.transpose(1, 2).contiguous()
