"""Attention of JAX arrays on these kernels: under jit, grad and vmap, on CPUs and NVIDIA GPUs.

Needs jax and jax-tvm-ffi, and not torch. Kernels come from libraries that were loaded with
``tvm_flash.load``, or are compiled at their first use where TVM is installed.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from ..problem.spec import AttentionSpec
from .jax_directions import forward, gradients
from .jax_kernels import PLATFORMS, Arrays
from .jax_numbers import Numbers, as_flag
from .jax_problem import (
    Problem,
    as_softmax,
    as_tables,
    check_arrays,
    lengths_of,
    packed_spans,
)

__all__ = ["attention"]


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: jax.Array | None = None,
    bias: jax.Array | None = None,
    alignment: str = "bottom_right",
    softmax: str = "softmax",
    sink: jax.Array | None = None,
    cu_seqlens_q: jax.Array | None = None,
    cu_seqlens_k: jax.Array | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    rng: jax.Array | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
    platform: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """softmax(q k^T * softmax_scale + bias) v of JAX arrays, differentiable once.

    q (B, Sq, H, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv), of float32, bfloat16 or float16; H a
    multiple of Hk. Options mean what they mean in ``tvm_flash.attention``: bias, alibi_slopes (H,)
    or (B, H), and sink (H,) have gradients. Numbers and flags are Python's, known when a call is
    traced. cu_seqlens_q, cu_seqlens_k (B + 1,) int32: sequences packed in q (total_q, H, D), k, v
    (total_k, Hk, D), of at most max_seqlen_q queries and max_seqlen_k keys (default: all rows).
    dropout_p: rng is a key of jax.random, from which alone follows what is dropped. deterministic:
    gradients have the same bits every run, as they have on CPUs. platform: "cpu" or "cuda";
    default, where jax computes by default.

    Returns out (B, Sq, H, Dv), and with ``return_lse`` also lse (B, H, Sq) float32, natural log,
    differentiable; rows that see no key give 0 and -inf. vmap makes one call of all where no entry
    of a batch depends on another, else one after the other (packed sequences, dropout, a mapped
    sink).

    Raises ValueError or TypeError for wrong arguments, UnsupportedSpec for what kernels cannot do,
    NotImplementedError for a second derivative, ImportError without jax-tvm-ffi.
    """
    cumulative, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    is_packed = any(x is not None for x in cumulative)
    q, k, v = check_arrays(q, k, v, 3 if is_packed else 4)
    heads, batch, lengths, spans = q.shape[-2], q.shape[0], (q.shape[-3], k.shape[-3]), {}
    if is_packed:
        spans = packed_spans(q, k, *cumulative)
        batch, lengths = spans["starts_q"].shape[0], lengths_of(longest, lengths, spans)
    softmax, own = as_softmax(softmax, sink, heads, return_lse)
    shape = (batch, heads, None, None) if is_packed else (batch, heads, *lengths)
    tables, program = as_tables(alibi_slopes, bias, shape)
    given = {"q": q, "k": k, "v": v, **spans, **own, **tables}
    numbers = Numbers.given(
        q.shape[-1],
        softmax_scale=softmax_scale,
        window_size=window_size,
        softcap=softcap,
        dropout_p=dropout_p,
    )
    if numbers.dropout:
        given["rng"] = _words(dropout_p, rng)
    spec = AttentionSpec(
        dtype=q.dtype.name,
        head_dim=q.shape[-1],
        head_dim_v=v.shape[-1],
        alibi=alibi_slopes is not None,
        score_mod=program,
        alignment=alignment,
        softmax=softmax,
        sequences="packed" if is_packed else "dense",
        **numbers.kinds(as_flag("causal", causal)),
    )
    problem = Problem(
        spec,
        numbers.of(spec, longest_k=lengths[1]),
        _device(platform),
        lengths,
        as_flag("deterministic", deterministic),
    )
    out, lse = _attend(problem, given)
    return (out, lse) if return_lse else out


def _words(dropout_p: float, rng) -> jax.Array:
    """(4,) uint32 of a key of jax.random: two integers of 64 bits."""
    if rng is None:
        raise ValueError(f"{dropout_p=} needs rng, a key of jax.random")
    return jax.random.bits(rng, (4,), jnp.uint32)


def _device(platform: str | None) -> str:
    """The device that kernels are asked for: "cpu" or "cuda"."""
    known = {name: ours for ours, theirs in PLATFORMS.items() for name in (ours, theirs)}
    name = jax.default_backend() if platform is None else platform
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"platform={name!r} must be one of {', '.join(PLATFORMS)}")
    return known[name]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(problem: Problem, given: Arrays) -> tuple[jax.Array, jax.Array | None]:
    """out and lse of arrays by the names of the kernel's arguments."""
    return _forward(problem, given)[0]


def _forward(problem: Problem, given: Arrays):
    results = forward(problem, given)
    return (results["out"], results.get("lse")), (given, results)


def _backward(problem: Problem, saved, cotangents):
    given, results = saved
    dout, dlse = cotangents
    own = {**given, **results, "dout": dout}
    own |= {} if dlse is None else {"dlse": dlse}
    found = gradients(problem, own)
    return ({name: found.get(f"d{name}") for name in given},)


_attend.defvjp(_forward, _backward)
