"""The operator of linear attention, whose gradients are three calls of itself."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import pad

from ..problem.arguments import TABLE
from ..problem.lengths import bucket_of
from ..problem.linear import LINEAR_NUMBERS
from ..problem.spec import AttentionSpec
from ..problem.splits import BLOCKS_PER_SM, splits_of
from ..runtime.kernels import resolve
from .autograd import below_autograd, differentiable
from .checks import NAMES
from .library import define, register_composed
from .placement import place_of, processors_of, readable_rows
from .recording import named, parameters
from .schemas import schema

linear = define(schema("linear", TABLE["linear"], LINEAR_NUMBERS, ("bool causal=False",)))

# Inputs that have gradients.
_DIFFERENTIABLE = ("q", "k", "v", "decay", "state")
# The rounding of float32 numbers, relative to them.
_ROUNDING = 2.0**-24


def filled(value: float, like: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, heads, S) float32 of one value, beside the rows of ``like`` (B, S, ...)."""
    row = like.new_full((like.shape[1],), value, dtype=torch.float32)
    return row.expand(like.shape[0], heads, like.shape[1])


def _run(
    q, k, v, q_extra, k_extra, v_extra, key_weight, out_weight, decay, state, reverse: int,
    normalize: int, state_age: int, causal: bool = False,
):  # fmt: skip
    """The operator; its arguments are the kernel's but for the results."""
    results = _results(q, k, v, q_extra, k_extra, v_extra, key_weight, out_weight, decay, state)
    batch, heads = state.shape[:2]
    if not batch * heads:
        return results
    spec = _spec(q.dtype, q.shape[3], v.shape[3], causal)
    bucket = bucket_of("linear", q.shape[1], k.shape[1])
    kernel = resolve(spec, "linear", *place_of(q), bucket)
    rows = max(q.shape[1], k.shape[1])
    splits = _parts(batch * heads, rows, kernel, q, v.shape[3])
    parts = state.new_empty((splits, batch, heads, q.shape[3] + 1, state.shape[3]))
    q, k, v = map(readable_rows, (q, k, v))
    of_rows = (q_extra, k_extra, v_extra, key_weight, out_weight)
    of_rows = [x if x.stride(2) == 1 else x.contiguous() for x in of_rows]
    kernel.function(
        q, k, v, *of_rows, decay.contiguous(), state.contiguous(), *results, parts,
        int(reverse), int(normalize), int(state_age),
    )  # fmt: skip
    return results


def _results(q, k, v, *others):
    """Memory for out, out_extra and state_out; of fake tensors too."""
    state = others[6]
    return (
        q.new_empty((*q.shape[:3], v.shape[3])),
        state.new_empty((q.shape[0], q.shape[2], q.shape[1])),
        torch.empty_like(state, memory_format=torch.contiguous_format),
    )


def _parts(heads: int, rows: int, kernel, q: torch.Tensor, head_dim_v: int) -> int:
    """Parts of a sequence that run at once: where heads alone would leave processors idle."""
    chunks = rows // kernel.meta["block_k"]
    if q.is_cuda:
        blocks = heads * -(-head_dim_v // kernel.meta["block_v"])
        return splits_of(blocks, max(chunks, 1), processors_of(q) * BLOCKS_PER_SM)
    return max(1, min(-(-torch.get_num_threads() // heads), chunks))


@lru_cache(maxsize=256)
def _spec(dtype: torch.dtype, head_dim: int, head_dim_v: int, causal: bool) -> AttentionSpec:
    widths = {"head_dim": head_dim, "head_dim_v": head_dim_v}
    return AttentionSpec(dtype=NAMES[dtype], causal=causal, computes="linear", **widths)


def _save(ctx, inputs, outputs) -> None:
    given = named(linear, inputs)
    ctx.plain = [given.pop(name) for name in ("reverse", "normalize", "state_age", "causal")]
    ctx.count = len(inputs)
    ctx.save_for_backward(*given.values(), *outputs)
    ctx.mark_non_differentiable(outputs[1])


def _gradients(ctx, dout, _, dstate):
    """dQ, dK and dV are linear attention of the same tensors in other places.

    r_i scales rows of the output: of dQ's too, in dK and dV it weights the keys, which are the
    queries then, while the weight of a key scales a row of theirs. Those two go from the last row
    to the first.
    """
    needed = _needed(ctx)
    q, k, v, *extras, weight, out_weight, decay, state, out, normalizer, state_out = (
        ctx.saved_tensors
    )
    q_extra, k_extra, v_extra = extras
    reverse, normalize, age, causal = ctx.plain
    heads, group = q.shape[2], q.shape[2] // k.shape[2]
    if normalize:
        factor = torch.where(normalizer == 0, 0.0, 1 / normalizer)
        dextra = -(out.float() * dout.float()).sum(-1).transpose(1, 2)
    else:
        factor, dextra = out_weight, torch.zeros_like(normalizer)

    def walk(rows, extras, weights, state, reverse, age=0):
        return linear(*rows, *extras, *weights, decay, state, reverse, 0, age, causal)

    before, behind = (_across(x, k.shape[3] + 1) for x in (state, dstate))
    dq, *_ = walk((dout, v, k), (dextra, v_extra, k_extra), (weight, factor), before, reverse, age)
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    k_extra, v_extra, weight = (
        x.repeat_interleave(group, dim=1) for x in (k_extra, v_extra, weight)
    )
    weights = factor, weight
    dk, *_ = walk((v, dout, q), (v_extra, dextra, q_extra), weights, behind, 1 - reverse)
    dv, _, dseen = walk((k, q, dout), (k_extra, q_extra, dextra), weights, dstate, 1 - reverse)
    is_older = age and k.shape[1]
    ddecay = None
    if "decay" in needed:
        ddecay = _decay_gradient(decay, (q, dq), (k, dk), (state_out, dstate), reverse)
        if is_older:
            ddecay += (state * dseen).sum((0, 2, 3))
    dbefore = dseen * decay[:, None, None] if is_older else dseen
    dk, dv = (x.unflatten(2, (heads // group, group)).sum(3) for x in (dk, dv))
    gradients = dict(zip(_DIFFERENTIABLE, (dq, dk, dv, ddecay, dbefore), strict=True))
    return tuple([gradients.get(name) for name in parameters(linear)][: ctx.count])


def _needed(ctx) -> set[str]:
    """Names of the inputs that want gradients; NotImplementedError for one that has none."""
    needs = zip(parameters(linear), ctx.needs_input_grad, strict=False)
    needed = {name for name, is_needed in needs if is_needed}
    if not needed <= {*_DIFFERENTIABLE}:
        raise NotImplementedError(
            "linear attention has gradients of q, k, v, decay and the state, and no second ones"
        )
    return needed


def _across(state: torch.Tensor, columns: int) -> torch.Tensor:
    """A state (B, H, Ds, Es) as (B, H, Es, columns): 0 in the column beside k if it has none."""
    return pad(state, (0, 0, 0, columns - state.shape[2])).transpose(2, 3)


def _decay_gradient(decay, of_queries, of_keys, of_state, reverse: int) -> torch.Tensor:
    """dL/dg of each head: g dL/dg = sum_i i (dq_i . q_i - dk_i . k_i) + (n - 1) dstate . state_out.

    A pair (i, j) has the power i - j: its share of L is in dq_i . q_i and in dk_j . k_j, that of
    j in the state behind the last row, of power n - 1 - j, in the latter and in dstate . state_out.
    0 where the sum is less than its terms' rounding, which a small g would magnify.
    """
    of_query, of_key = ((x.double() * dx.double()).sum(-1) for x, dx in (of_queries, of_keys))
    rows = of_query.shape[1]
    place = torch.arange(rows, dtype=torch.float64, device=decay.device)
    place = place.flip(0) if reverse else place
    behind, upstream = (x.double() for x in of_state)
    of_rows, of_state = (of_query - of_key) * place[:, None], max(rows - 1, 0) * behind * upstream
    total = of_rows.sum((0, 1)) + of_state.sum((0, 2, 3))
    terms = (of_query.abs() + of_key.abs()) * place[:, None]
    terms = terms.sum((0, 1)) + of_state.abs().sum((0, 2, 3))
    is_known = (decay > 0) & (total.abs() > _ROUNDING * terms)
    return torch.where(is_known, total / decay, 0.0).to(decay.dtype)


register_composed(
    linear, _run, _results, differentiable("linear", below_autograd(linear), _save, _gradients)
)
