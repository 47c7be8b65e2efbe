"""The gradients of linear attention: three calls of its operator, and one sum for the decay."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from .linear_decay import decay_gradient
from .recording import named, parameters

# Inputs that have gradients.
_DIFFERENTIABLE = ("q", "k", "v", "decay", "state")


class LinearRecording:
    """``save`` and ``gradients`` of ``autograd.differentiable`` for the operator of linear
    attention, which the gradients call."""

    def __init__(self, linear):
        self._linear = linear

    def save(self, ctx, inputs, outputs) -> None:
        """Keep what the call was given, and its rows."""
        given = named(self._linear, inputs)
        ctx.plain = [given.pop(name) for name in ("reverse", "normalize", "state_age", "causal")]
        ctx.count = len(inputs)
        ctx.save_for_backward(*given.values(), *outputs[:2])
        ctx.mark_non_differentiable(outputs[1])

    def gradients(self, ctx, dout, _, dstate) -> tuple[torch.Tensor | None, ...]:
        """dQ, dK and dV are linear attention of the same tensors in other places.

        r_i scales rows of the output: of dQ's too, in dK and dV it weights the keys, which are the
        queries then, while the weight of a key scales a row of theirs. Those two go from the last
        row to the first.
        """
        needed = self._needed(ctx)
        q, k, v, *extras, weight, out_weight, decay, state, out, normalizer = ctx.saved_tensors
        q_extra, k_extra, v_extra = extras
        reverse, normalize, age, causal = ctx.plain
        heads, group = q.shape[2], q.shape[2] // k.shape[2]
        if normalize:
            factor = torch.where(normalizer == 0, 0.0, 1 / normalizer)
            dextra = -(out.float() * dout.float()).sum(-1).transpose(1, 2)
        else:
            factor, dextra = out_weight, torch.zeros_like(normalizer)

        def walk(rows, extras, weights, state, reverse, age=0):
            return self._linear(*rows, *extras, *weights, decay, state, reverse, 0, age, causal)

        before, behind = (_across(x, k.shape[3] + 1) for x in (state, dstate))
        extras, weights = (dextra, v_extra, k_extra), (weight, factor)
        dq, *_ = walk((dout, v, k), extras, weights, before, reverse, age)
        k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
        k_extra, v_extra, weight = (
            x.repeat_interleave(group, dim=1) for x in (k_extra, v_extra, weight)
        )
        weights = factor, weight
        dk, *_ = walk((v, dout, q), (v_extra, dextra, q_extra), weights, behind, 1 - reverse)
        dv, _, dseen = walk((k, q, dout), (k_extra, q_extra, dextra), weights, dstate, 1 - reverse)
        ddecay = None
        if "decay" in needed and causal:
            rows = ((q, q_extra), (k, k_extra), (v, v_extra, weight), (dout, dextra, factor))
            rows = [_complete(*x) for x in rows]
            ddecay = decay_gradient(*rows, decay, state, dstate, reverse, age)
        dbefore = dseen * decay[:, None, None] if age and k.shape[1] else dseen
        dk, dv = (x.unflatten(2, (heads // group, group)).sum(3) for x in (dk, dv))
        gradients = dict(zip(_DIFFERENTIABLE, (dq, dk, dv, ddecay, dbefore), strict=True))
        return tuple([gradients.get(name) for name in parameters(self._linear)][: ctx.count])

    def _needed(self, ctx) -> set[str]:
        """Names of the inputs that want gradients; NotImplementedError for one that has none."""
        needs = zip(parameters(self._linear), ctx.needs_input_grad, strict=False)
        needed = {name for name, is_needed in needs if is_needed}
        if not needed <= {*_DIFFERENTIABLE}:
            raise NotImplementedError(
                "linear attention has gradients of q, k, v, decay and the state, and no second ones"
            )
        return needed


def _across(state: torch.Tensor, columns: int) -> torch.Tensor:
    """A state (B, H, Ds, Es) as (B, H, Es, columns): 0 in the column beside k if it has none."""
    return pad(state, (0, 0, 0, columns - state.shape[2])).transpose(2, 3)


def _complete(rows: torch.Tensor, extra: torch.Tensor, weight=None) -> torch.Tensor:
    """Rows (B, S, H, D) with their column (B, H, S), times a weight (B, H, S): (B, H, S, D + 1)."""
    rows = torch.cat((rows.transpose(1, 2).float(), extra[..., None]), -1)
    return rows if weight is None else rows * weight[..., None]
