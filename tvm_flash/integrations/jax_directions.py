"""Forward, gradients and gradients of tables of a problem, each a function of arrays by name.

vmap folds a call into its batch where the table of arguments says that entries are independent.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from ..problem.arguments import arguments, direction_reasons
from ..problem.lengths import bucket_of
from ..problem.spec import LSE_WITHOUT_KEYS, AttentionSpec
from ..runtime.kernels import resolve
from .jax_kernels import Arrays, call_kernel
from .jax_problem import Problem


def forward(problem: Problem, given: Arrays) -> dict[str, jax.Array]:
    """out and, where the spec has them, lse and lse_low."""
    if not given["q"].size or not given["k"].size:
        return _without_keys(problem.spec, given)
    results = _call(problem, "forward", given)
    if problem.spec.sequences == "packed":
        is_row = _rows(given["ends_q"], given["q"])
        empty = {"out": (0.0, is_row[:, None, None]), "lse": (-jnp.inf, is_row)}
        for name in results.keys() & empty:
            fill, seen = empty[name]
            results[name] = jnp.where(seen, results[name], fill)
    return results


def gradients(problem: Problem, given: Arrays) -> dict[str, jax.Array]:
    """d{name} for q, k, v, the sink and the tables that have one, of what the forward gave too."""
    found = _call(problem, _ordered(problem, "backward"), given)
    if problem.spec.sequences == "packed":
        for name, ends in (("q", "ends_q"), ("k", "ends_k"), ("v", "ends_k")):
            is_row = _rows(given[ends], given[name])[:, None, None]
            found[f"d{name}"] = jnp.where(is_row, found[f"d{name}"], 0.0)
    if problem.spec.differentiable_tables:
        sums = _call(problem, _ordered(problem, "tables"), given)
        found |= {name: x.sum(0).astype(given[name[1:]].dtype) for name, x in sums.items()}
    return found


def _ordered(problem: Problem, direction: str) -> str:
    return f"{direction}_deterministic" if problem.deterministic else direction


def _rows(ends: jax.Array, x: jax.Array) -> jax.Array:
    """Which rows of packed ``x`` are of a sequence: nobody writes the others."""
    return jnp.arange(x.shape[0]) < (ends[-1] if ends.size else 0)


def _without_keys(spec: AttentionSpec, given: Arrays) -> dict[str, jax.Array]:
    """What rows have that see no key: torch's path has the same (frontend/results.py)."""
    q, v = given["q"], given["v"]
    shape = (*q.shape[:-3], q.shape[-2], q.shape[-3])  # (B, H, Sq), (H, total)
    lse = jnp.full(shape, -jnp.inf)
    if spec.softmax in LSE_WITHOUT_KEYS and q.ndim == 4:
        known = given["sink"] if spec.softmax == "sink" else LSE_WITHOUT_KEYS[spec.softmax]
        lse = jnp.broadcast_to(jnp.reshape(known, (-1, 1)), shape)
    found = {"out": jnp.zeros((*q.shape[:-1], v.shape[-1]), q.dtype), "lse": lse}
    found["lse_low"] = jnp.zeros(shape)
    return {name: found[name] for name in ("out", *spec.forward_statistics)}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call(problem: Problem, direction: str, given: Arrays) -> dict[str, jax.Array]:
    """The outputs of the kernel of ``direction``, which has no derivative of its own."""
    return _mapped_call(problem, direction, given)


def _refuse(problem, direction, saved, cotangents):
    raise NotImplementedError(
        "attention has no second derivatives here: its gradients are kernels too; differentiate "
        "jax.nn.dot_product_attention"
    )


_call.defvjp(lambda *call: (_mapped_call(*call), None), _refuse)


def _mapped_call(problem: Problem, direction: str, given: Arrays) -> dict[str, jax.Array]:
    """The outputs of one call; vmap makes one of all, or one after the other."""
    spec = problem.spec if not direction.startswith("tables") else problem.spec.learning()
    if reasons := direction_reasons(spec, direction):
        raise NotImplementedError("; ".join(reasons))
    own = [a for a in arguments(spec, direction) if a.is_tensor]
    given = {a.name: given[a.name] for a in own if a.name in given}
    axes = {f"table{load.table}": load.axes for load in spec.table_loads}
    # A table's dimensions are of its own, so what reads it says whether they are of entries.
    entries = {a.name for a in own if (axes.get(a.name) or a.shape)[:1] in (("B",), ("b",))}
    outputs = {a.name for a in own if a.role == "output"}
    # Words of dropout are of the number of an entry.
    folds = outputs <= entries and not spec.dropout

    @custom_vmap
    def call(given):
        kernel = _kernel(problem, spec, direction)
        return call_kernel(kernel, given, problem.by_name)

    @call.def_vmap
    def _(size, are_mapped, given):
        mapped = {name for name, is_mapped in are_mapped[0].items() if is_mapped}
        if folds and mapped <= entries:
            results = _folded(call, size, mapped, entries, given)
        else:
            results = _in_turn(call, mapped, given)
        return results, dict.fromkeys(results, True)

    return call(given)


def _folded(call, size: int, mapped: set, entries: set, given: Arrays) -> dict[str, jax.Array]:
    """One call with the entries of all ``size`` mapped ones."""

    def fold(name: str, x: jax.Array) -> jax.Array:
        if name not in entries:
            return x
        x = x if name in mapped else jnp.broadcast_to(x, (size, *x.shape))
        return x.reshape(-1, *x.shape[2:])

    results = call({name: fold(name, x) for name, x in given.items()})
    return {name: x.reshape(size, -1, *x.shape[1:]) for name, x in results.items()}


def _in_turn(call, mapped: set, given: Arrays) -> dict[str, jax.Array]:
    shared = {name: x for name, x in given.items() if name not in mapped}
    return jax.lax.map(lambda own: call({**shared, **own}), {n: given[n] for n in mapped})


def _kernel(problem: Problem, spec: AttentionSpec, direction: str):
    capability = None
    if problem.device == "cuda":
        capability = tuple(int(n) for n in jax.devices("gpu")[0].compute_capability.split("."))
    bucket = bucket_of(direction.removesuffix("_deterministic"), *problem.lengths)
    bucket = "long" if direction.startswith("tables") else bucket
    return resolve(spec, direction, problem.device, capability, bucket)
