"""The gradient of linear attention's decay: a sum over pairs, differentiated term by term.

Of a head's decay g alone the loss is L = sum g^(i - j) a_ij over rows i >= j of a_ij = (q_i . k_j)
(dout_i . v_j), so that dL/dg = sum (i - j) g^(i - j - 1) a_ij. Nothing in it is divided by g, and
terms are added with the weights they have, so that it is as exact for 1e-20 as for 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from .autograd import below_autograd, differentiable
from .library import define, register_composed, without_derivative

# An operator, so that compilers of programs see no loop over rows whose number may be symbolic.
decay_gradient = define(
    "linear_decay_gradient(Tensor q, Tensor k, Tensor v, Tensor dout, Tensor decay, "
    "Tensor state, Tensor dstate, SymInt reverse, SymInt state_age) -> Tensor"
)

# Rows whose pairs are made one by one, and how many such chunks are joined at once.
_CHUNK, _RUN = 64, 32


@dataclass(frozen=True)
class _Dual:
    """A tensor that depends on g, and its derivative by g."""

    value: torch.Tensor
    slope: torch.Tensor

    def map(self, linear: Callable) -> _Dual:
        return _Dual(linear(self.value), linear(self.slope))

    def plus(self, other: _Dual) -> _Dual:
        return _Dual(self.value + other.value, self.slope + other.slope)

    def times(self, other: _Dual, product: Callable) -> _Dual:
        """``product``, linear in both, of two that depend on g."""
        slope = product(self.value, other.slope) + product(self.slope, other.value)
        return _Dual(product(self.value, other.value), slope)


def _power(decay: torch.Tensor, steps: torch.Tensor) -> _Dual:
    """g^steps, float32 (H, *steps.shape), 0 where steps is negative."""
    base = decay.double().view(-1, *[1] * steps.dim())
    value = torch.where(steps >= 0, base ** steps.clamp(min=0), 0.0)
    slope = steps.clamp(min=0) * base ** (steps - 1).clamp(min=0)
    return _Dual(value.float(), slope.float())


def _run(q, k, v, dout, decay, state, dstate, reverse: int, state_age: int) -> torch.Tensor:
    """dL/dg (H,) float32.

    q and k (B, H, S, D), v and dout (B, H, S, E), float32 and complete: with their columns beside
    q, k and v, weights multiplied in. state (B, H, Ds, E) before the first row, which sees it
    state_age rows old, Ds at most D; dstate, upstream of the state behind the last row.
    """
    if reverse:
        q, k, v, dout = (x.flip(2) for x in (q, k, v, dout))
    by_states = _by_states(q, k, v, dout, decay, state, dstate, int(state_age))
    return (by_states + _by_pairs(q, k, v, dout, decay)).to(decay.dtype)


def _by_states(q, k, v, dout, decay, state, dstate, age: int) -> torch.Tensor:
    """dL/dg (H,) of what rows have of ``state``, and ``dstate`` of rows and of ``state``."""
    rows = q.shape[2]
    place = torch.arange(rows, device=q.device)
    asked = ((q[..., : state.shape[2]] @ state) * dout).sum(-1)
    left = ((k[..., : state.shape[2]] @ dstate) * v).sum(-1)
    passed = (state * dstate).sum((0, 2, 3))
    age_behind = torch.tensor(max(rows - 1 + age, 0), device=q.device)
    return (
        (asked.sum(0) * _power(decay, place + age).slope).sum(-1, dtype=torch.float64)
        + (left.sum(0) * _power(decay, place.flip(0)).slope).sum(-1, dtype=torch.float64)
        + passed * _power(decay, age_behind).slope
    )


def _by_pairs(q, k, v, dout, decay) -> torch.Tensor:
    """dL/dg (H,) float64 of all pairs of rows."""
    chunk, total = max(1, min(_CHUNK, q.shape[2])), decay.new_zeros((), dtype=torch.float64)
    nothing = q.new_zeros((*q.shape[:2], q.shape[3] * v.shape[3]))
    before = _Dual(nothing, nothing)
    for run in zip(*(x.split(chunk * _RUN, 2) for x in (q, k, v, dout)), strict=True):
        missing = -run[0].shape[2] % chunk
        run = [pad(x, (0, 0, 0, missing)).unflatten(2, (-1, chunk)) for x in run]
        far, before = _far_pairs(*run, decay, before)
        total = total + _near_pairs(*run, decay) + far
    return total


def _near_pairs(q, k, v, dout, decay) -> torch.Tensor:
    """dL/dg of the pairs of each chunk: rows are (B, H, chunks, rows of one, ...)."""
    row = torch.arange(q.shape[3], device=q.device)
    pairs = ((q @ k.mT) * (dout @ v.mT)).sum((0, 2))
    return (pairs * _power(decay, row[:, None] - row).slope).sum((1, 2), dtype=torch.float64)


def _far_pairs(q, k, v, dout, decay, before: _Dual) -> tuple[torch.Tensor, _Dual]:
    """dL/dg of pairs of two chunks, and of a chunk with keys before this run of chunks.

    before (B, H, D E): the state behind those keys; given back is the one behind the run. A row
    sees the state behind the chunk before its own, its place in the chunk and a row more away.
    """
    chunks, rows = q.shape[2:4]
    place, number = (torch.arange(n, device=q.device) for n in (rows, chunks + 1))

    def sums(left: torch.Tensor, right: torch.Tensor, steps: torch.Tensor) -> _Dual:
        """(B, H, chunks, D E): of each chunk the sum of g^steps left right^T over its rows."""
        return _power(decay, steps).map(
            lambda power: ((left * power[:, None, :, None]).mT @ right).flatten(-2)
        )

    asked, made = sums(q, dout, place), sums(k, v, place.flip(0))
    between = _power(decay, rows * (number[:, None] - 1 - number[:-1]))
    states = between.times(made, torch.matmul).plus(
        _power(decay, rows * number).map(lambda power: power[..., None]).times(
            before.map(lambda state: state[:, :, None]), torch.mul
        )
    )  # fmt: skip
    seen = states.map(lambda state: state[:, :, :-1])
    found = asked.times(seen, lambda x, y: (x * y).sum((0, 2, 3), dtype=torch.float64))
    step = _Dual(decay.double(), torch.ones_like(decay))
    return step.times(found, torch.mul).slope, states.map(lambda state: state[:, :, -1])


def _results(q, k, v, dout, decay, *_) -> torch.Tensor:
    return torch.empty_like(decay)


_ONCE = without_derivative("the gradient of a decay has no gradient")
register_composed(
    decay_gradient,
    _run,
    _results,
    differentiable("linear_decay_gradient", below_autograd(decay_gradient), *_ONCE),
)
