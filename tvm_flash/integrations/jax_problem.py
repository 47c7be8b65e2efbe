"""What a call from JAX asks for: checked, and split into what is compiled and what is traced."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..problem.arguments import LONGEST, NUMBERS, numbers_of
from ..problem.dtype import DTYPES
from ..problem.numbers import NO_WINDOW, kinds_of, numbers_by_name
from ..problem.size_checks import check_packed_sizes, check_sizes
from ..problem.spec import SOFTMAXES, AttentionSpec, has_sum
from ..score.bias import bias_axes, bias_program

# Beyond it scores are so large that a float32 lse says little of a row's sum.
_STEEP = 1024.0


@dataclass(frozen=True)
class Problem:
    """What is known of a call when it is traced: equal ones share what XLA compiles.

    numbers: names and values of the kernel's numbers. device: "cpu" or "cuda". lengths: the most
    queries and keys of an entry. deterministic: gradients have the same bits every run.
    """

    spec: AttentionSpec
    numbers: tuple[tuple[str, float], ...]
    device: str
    lengths: tuple[int, int]
    deterministic: bool

    @cached_property
    def by_name(self) -> dict[str, float]:
        return dict(self.numbers)


def check_arrays(q, k, v, rank: int) -> list[jax.Array]:
    """The three as arrays; TypeError, ValueError unless they are alike and fit each other."""
    q, k, v = found = [jnp.asarray(x) for x in (q, k, v)]
    for name, x in zip("qkv", found, strict=True):
        if x.ndim != rank:
            form = "(total, heads, head_dim)" if rank == 3 else "(batch, rows, heads, head_dim)"
            raise ValueError(f"{name} of shape {x.shape} must have {rank} dimensions: {form}")
        if x.dtype.name not in DTYPES or x.dtype != q.dtype:
            dtypes = ", ".join(f"{x.dtype}" for x in found)
            raise TypeError(f"q, k, v are {dtypes}: they must all be one of {', '.join(DTYPES)}")
    (check_sizes if rank == 4 else check_packed_sizes)(q.shape, k.shape, v.shape)
    return found


def check_softmax(softmax: str, sink, heads: int, return_lse: bool) -> str:
    """The kind of softmax of a call; ValueError for what does not go together."""
    kinds = [kind for kind in SOFTMAXES if kind != "sink"]
    if softmax not in kinds:
        raise ValueError(f"{softmax=} must be one of {', '.join(kinds)}; for a sink give sink")
    if return_lse and not has_sum(softmax):
        raise ValueError(f"{softmax=} has no lse: it has no sum over a row")
    if sink is None:
        return softmax
    if softmax != "softmax":
        raise ValueError(f"sink is of softmax='softmax', not {softmax!r}")
    if jnp.shape(sink) != (heads,):
        raise ValueError(f"sink of shape {jnp.shape(sink)} must be (num_heads,) = ({heads},)")
    return "sink"


def spec_and_numbers(
    dtype: str, head_dim: int, head_dim_v: int, scale, window_size, softcap, dropout_p: float,
    bias_shape: Sequence[int] | None, bias_dtype: str, longest_k: int | None, **fields: Any,
) -> tuple[AttentionSpec, tuple[tuple[str, float], ...]]:  # fmt: skip
    """The spec of a call, and names and values of its numbers, checked by their limits.

    longest_k: keys that no entry of packed sequences exceeds. fields: others of the spec.
    """
    scale = head_dim**-0.5 if scale is None else float(scale)
    if not -_STEEP <= scale <= _STEEP:
        raise ValueError(f"softmax_scale={scale} must lie in {-_STEEP}..{_STEEP}: multiply q")
    window, softcap, dropout_p = _window(window_size), float(softcap), float(dropout_p)
    kinds = kinds_of(fields.pop("causal"), window, softcap, dropout_p)
    program = None
    if bias_shape is not None:
        program = bias_program(bias_axes(bias_shape), bias_dtype)
    spec = AttentionSpec(
        dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v, score_mod=program, **kinds, **fields
    )
    values = numbers_by_name(scale, window, softcap, dropout_p)
    _check_limits(values)
    if longest_k is not None:
        values[LONGEST.name] = longest_k
    return spec, tuple((a.name, values[a.name]) for a in numbers_of(spec))


def _window(window_size) -> tuple[int, int]:
    """(left, right) of a pair of integers; None or a negative one is no end."""
    sides = NO_WINDOW if window_size is None else tuple(window_size)
    if len(sides) != 2:
        raise TypeError(f"{window_size=} must be two integers (left, right); -1 is no bound")
    left, right = (-1 if side is None else max(-1, operator.index(side)) for side in sides)
    return left, right


def _check_limits(values: dict[str, float]) -> None:
    """ValueError where a number that a call has is out of what kernels take."""
    for a in NUMBERS:
        value, (least, most) = values[a.name], a.limits
        if value != a.absent and not least <= value <= most:
            raise ValueError(f"{a.name}={value} must lie in {least}..{most}")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{a.name}={value} must be a number")


def as_bias(bias, shape: Sequence[int | None]) -> tuple[jax.Array, tuple[int, ...]]:
    """``bias`` without the dimensions that are 1, and its four sizes.

    shape: B, H, Sq, Sk; None where entries differ, whose bias is of the longest.
    """
    bias = jnp.asarray(bias)
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        raise TypeError(f"bias of {bias.dtype} must be floating point: it is added to scores")
    sizes = (1,) * (4 - bias.ndim) + bias.shape
    fits = len(sizes) == 4 and all(
        n == 1 or wanted is None or n == wanted for n, wanted in zip(sizes, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"bias of shape {bias.shape} must broadcast to (B, H, Sq, Sk) = {tuple(shape)}"
        )
    return bias.reshape([n for n in sizes if n != 1]), sizes


def as_slopes(slopes, batch: int, heads: int) -> jax.Array:
    """ALiBi's slopes (H,) or (B, H) as (B, H) float32."""
    slopes = jnp.asarray(slopes, jnp.float32)
    if slopes.shape not in ((heads,), (batch, heads)):
        raise ValueError(
            f"alibi_slopes of shape {slopes.shape} must be (num_heads,) = ({heads},) or (batch, "
            f"num_heads) = ({batch}, {heads})"
        )
    return jnp.broadcast_to(slopes, (batch, heads))


def spans_of(name: str, cumulative, total: int) -> tuple[jax.Array, jax.Array]:
    """Starts and ends (B,) int32 of ``cumulative`` lengths (B + 1,), which are checked where they
    are known: ValueError for what does not lie within ``total`` rows."""
    cumulative = jnp.asarray(cumulative)
    if cumulative.ndim != 1 or cumulative.dtype != jnp.int32 or cumulative.size < 1:
        raise TypeError(f"{name} of {cumulative.dtype}, {cumulative.shape} must be int32, (B + 1,)")
    if not isinstance(cumulative, jax.core.Tracer):
        known = np.asarray(cumulative)
        if known[0] != 0 or known[-1] > total or (np.diff(known) < 0).any():
            raise ValueError(
                f"{name}={known.tolist()} must begin with 0, not decrease, and end within the "
                f"{total} rows"
            )
    return cumulative[:-1], cumulative[1:]
