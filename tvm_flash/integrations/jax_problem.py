"""What a call from JAX asks for: checked, and split into what is compiled and what is traced."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from ..problem.dtype import DTYPES
from ..problem.option_checks import check_sink_shape, check_slopes_shape, check_softmax
from ..problem.size_checks import check_packed_sizes, check_sizes
from ..problem.spec import AttentionSpec
from ..score.bias import bias_axes, bias_program
from ..score.program import ScoreProgram


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


def as_softmax(softmax: str, sink, heads: int, return_lse: bool) -> tuple[str, dict]:
    """The kind of softmax that a call asks for by both, and its sink (H,) float32 by name, if any.

    ValueError for what does not go together.
    """
    check_softmax(softmax, sink is not None, return_lse)
    if sink is None:
        return softmax, {}
    sink = _floating("sink", sink)
    check_sink_shape(sink.shape, heads)
    return "sink", {"sink": sink.astype(jnp.float32)}


def _floating(name: str, x) -> jax.Array:
    """``x`` as an array; TypeError unless it is floating point."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} of {x.dtype} must be floating point")
    return x


def as_tables(
    slopes, bias, shape: Sequence[int | None]
) -> tuple[dict[str, jax.Array], ScoreProgram | None]:
    """ALiBi's slopes and a bias as arguments of kernels, and the program that adds the bias.

    shape: B, H, Sq, Sk of a call; None where entries differ, whose bias is of the longest.
    """
    tables, program = [], None
    if slopes is not None:
        tables.append(_as_slopes(slopes, *shape[:2]))
    if bias is not None:
        table, program = _as_bias(bias, shape)
        tables.append(table)
    return {f"table{n}": table for n, table in enumerate(tables)}, program


def _as_bias(bias, shape: Sequence[int | None]) -> tuple[jax.Array, ScoreProgram]:
    """``bias`` without the dimensions that are 1, and the program that adds it."""
    bias = _floating("bias", bias)
    sizes = (1,) * (4 - bias.ndim) + bias.shape
    fits = len(sizes) == 4 and all(
        n == 1 or wanted is None or n == wanted for n, wanted in zip(sizes, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"bias of shape {bias.shape} must broadcast to (B, H, Sq, Sk) = {tuple(shape)}"
        )
    table = bias.reshape([n for n in sizes if n != 1])
    return table, bias_program(bias_axes(sizes), table.dtype.name)


def _as_slopes(slopes, batch: int, heads: int) -> jax.Array:
    """ALiBi's slopes (H,) or (B, H) as (B, H) float32."""
    slopes = _floating("alibi_slopes", slopes).astype(jnp.float32)
    check_slopes_shape(slopes.shape, batch, heads)
    return jnp.broadcast_to(slopes, (batch, heads))


def _spans_of(name: str, cumulative, total: int) -> tuple[jax.Array, jax.Array]:
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


def packed_spans(q, k, cu_seqlens_q, cu_seqlens_k) -> dict[str, jax.Array]:
    """starts_q, ends_q, starts_k, ends_k (B,) int32 of packed q and k, checked where known.

    TypeError, ValueError for what does not lie within their rows, where one is missing, or where
    they are not of equally many sequences.
    """
    if cu_seqlens_q is None or cu_seqlens_k is None:
        raise ValueError("packed sequences need both cu_seqlens_q and cu_seqlens_k")
    found = {}
    for axis, cumulative, x in (("q", cu_seqlens_q, q), ("k", cu_seqlens_k, k)):
        ends = _spans_of(f"cu_seqlens_{axis}", cumulative, x.shape[0])
        found[f"starts_{axis}"], found[f"ends_{axis}"] = ends
    if found["starts_q"].shape != found["starts_k"].shape:
        entries = [found[f"starts_{axis}"].shape[0] for axis in "qk"]
        raise ValueError(
            f"cu_seqlens_q and cu_seqlens_k are of {entries} sequences: make one of each"
        )
    return found


def lengths_of(
    longest: Sequence, rows: Sequence[int], spans: Mapping[str, jax.Array]
) -> tuple[int, int]:
    """The most queries and keys of a packed sequence: ``longest``, or where None all ``rows``.

    TypeError, ValueError for what does not hold, where ``spans`` are known.
    """
    most_q, most_k = (
        _longest_of(axis, most, total, spans)
        for axis, most, total in zip("qk", longest, rows, strict=True)
    )
    return most_q, most_k


def _longest_of(axis: str, most, rows: int, spans: Mapping[str, jax.Array]) -> int:
    """``most`` rows of a sequence, all ``rows`` for None; TypeError, ValueError unless that holds,
    where ``spans`` are known.

    axis: "q" or "k".
    """
    if most is None:
        return rows
    name = f"max_seqlen_{axis}"
    if not hasattr(most, "__index__") or operator.index(most) < 0:
        raise TypeError(f"{name}={most!r} must be an integer >= 0")
    most = min(operator.index(most), rows)
    starts, ends = (spans[f"{end}_{axis}"] for end in ("starts", "ends"))
    if not isinstance(ends, jax.core.Tracer):
        longest = int(np.max(np.asarray(ends) - np.asarray(starts), initial=0))
        if longest > most:
            raise ValueError(f"{name}={most} is too small: there is a sequence of {longest} rows")
    return most
