"""The ways to compute attention that are timed against each other, on CPUs and on GPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from .problems import Problem

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

OURS = "tvm_flash"
NAIVE_LIMIT_BYTES = 4 * 2**30  # beyond this it measures nothing but the memory


@dataclass(frozen=True)
class Contender:
    """A way to compute attention, the layout that it reads ("bshd" or "bhsd"), and where it runs.

    ``make(problem, device)`` returns attention(q, k, v), differentiable. It imports and compiles
    what it needs, and raises where that is missing.
    """

    name: str
    make: Callable[[Problem, str], Attention]
    layout: str
    devices: tuple[str, ...] = ("cpu", "cuda")


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
    """The contenders among ``names`` that fit in memory for ``problem``."""
    fits = problem.naive_bytes() < NAIVE_LIMIT_BYTES
    return [c for c in CONTENDERS if c.name in names and (c.name != "naive" or fits)]


class Prepared:
    """One contender with its inputs in place: ``forward`` and ``backward`` are what is timed."""

    def __init__(self, contender: Contender, problem: Problem, device: str = "cpu", seed: int = 0):
        self.contender, self.problem = contender, problem
        self.attention = contender.make(problem, device)
        generator = torch.Generator(device).manual_seed(seed)
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
        values = torch.randn(shape, generator=generator, device=generator.device)
        values = values.to(getattr(torch, self.problem.dtype))
        return values if self.contender.layout == "bshd" else values.transpose(1, 2).contiguous()
