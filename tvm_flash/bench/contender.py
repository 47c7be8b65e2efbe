"""A way to compute attention that is timed, and its inputs in the layout that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .problems import Problem

# What a contender reads and writes: one tensor, or one for each sequence.
Tensors = torch.Tensor | list[torch.Tensor]
Attention = Callable[[Tensors, Tensors, Tensors], Tensors]

OURS = "tvm_flash"


class Layout(NamedTuple):
    """Where a contender has its rows: q, out and dq as ``queries`` arranges what is drawn, k, v and
    their gradients as ``keys``; ``rows`` brings either back to how it was drawn.

    Each is called with the problem and a tensor (``rows``: or a list of them).
    """

    queries: Callable[[Problem, torch.Tensor], Tensors]
    keys: Callable[[Problem, torch.Tensor], Tensors]
    rows: Callable[[Problem, Tensors], torch.Tensor]


def _as_drawn(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    return x


def _heads_first(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).contiguous()


AS_DRAWN = Layout(_as_drawn, _as_drawn, _as_drawn)
HEADS_FIRST = Layout(_heads_first, _heads_first, lambda problem, x: x.transpose(1, 2))
# Dense problems are drawn as (B, S, H, D).
LAYOUTS = {"bshd": AS_DRAWN, "bhsd": HEADS_FIRST}


@dataclass(frozen=True)
class Contender:
    """A way to compute attention, the layout that it reads, and where it runs.

    ``make(problem, device)`` returns attention(q, k, v), differentiable. It imports and compiles
    what it needs, and raises where that is missing. layout: a ``Layout``, or a name of ``LAYOUTS``.
    of: the class of problems that it takes. computes: whether its results are those of the problem,
    and compared; else it moves as many bytes, as fast as can be.
    """

    name: str
    make: Callable[[Problem, str], Attention]
    layout: str | Layout
    devices: tuple[str, ...] = ("cpu", "cuda")
    of: type[Problem] = Problem
    computes: bool = True


class Prepared:
    """One contender with its inputs in place: ``forward`` and ``backward`` are what is timed."""

    def __init__(self, contender: Contender, problem: Problem, device: str = "cpu", seed: int = 0):
        self.contender, self.problem = contender, problem
        self.attention = contender.make(problem, device)
        layout = contender.layout
        self.layout = LAYOUTS[layout] if isinstance(layout, str) else layout
        generator = torch.Generator(device).manual_seed(seed)
        of_q, of_k = problem.drawn_shapes
        arrange = (self.layout.queries, self.layout.keys, self.layout.keys, self.layout.queries)
        self.q, self.k, self.v, self.dout = (
            arranged(problem, self._draw(shape, generator))
            for shape, arranged in zip((of_q, of_k, of_k, of_q), arrange, strict=True)
        )
        self.out: Tensors | None = None

    def forward(self) -> Tensors:
        """The output; call it under torch.no_grad() to keep nothing for a backward."""
        return self.attention(self.q, self.k, self.v)

    def record(self) -> None:
        """Run the forward that ``backward`` goes back through."""
        for tensor in _each(self.q, self.k, self.v):
            tensor.requires_grad_()
        self.out = self.forward()

    def backward(self) -> tuple[Tensors, ...]:
        """dq, dk, dv; call ``record`` first."""
        assert self.out is not None, "record() has not run"
        inputs = (self.q, self.k, self.v)
        outs, douts = [*_each(self.out)], [*_each(self.dout)]
        found = iter(torch.autograd.grad(outs, [*_each(*inputs)], douts, retain_graph=True))
        return tuple(
            [next(found) for _ in x] if isinstance(x, list) else next(found) for x in inputs
        )

    def as_drawn(self, found: Tensors) -> torch.Tensor:
        """A result, which this contender has in its layout, as inputs are drawn."""
        return self.layout.rows(self.problem, found)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        values = torch.randn(shape, generator=generator, device=generator.device)
        return values.to(getattr(torch, self.problem.dtype))


def _each(*found: Tensors) -> Iterator[torch.Tensor]:
    for x in found:
        yield from x if isinstance(x, list) else [x]
