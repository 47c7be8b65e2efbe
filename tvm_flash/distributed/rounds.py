"""The rounds of ring attention, forward and backward, as one node of autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..frontend.merging import merge_states
from .kernels import Kernels
from .plan import Block, Plan
from .ranks import Ranks, Transfer


class RingAttention(torch.autograd.Function):
    """out (rows, H, Dv) and lse (H, rows) of this rank's q (rows, H, D), k and v (rows, Hk, ..).

    Kept for the backward are these five.
    """

    @staticmethod
    def forward(ctx, q, k, v, ranks: Ranks, plan: Plan, kernels: Kernels):
        out = q.new_zeros((*q.shape[:-1], v.shape[-1]), dtype=torch.float32)
        lse = q.new_full((q.shape[1], q.shape[0]), -torch.inf, dtype=torch.float32)
        for step, *keys in _rounds(ranks, plan, k, v):
            for call in plan.received[step].calls:
                rows, part = slice(*call.queries), kernels.forward(call, q, *keys)
                out[rows], lse[:, rows] = merge_states(
                    out[rows], lse[:, rows], part[0].float(), part[1]
                )
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.how = ranks, plan, kernels
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout, dlse):
        q, k, v, out, lse = ctx.saved_tensors
        ranks, plan, kernels = ctx.how
        dout = torch.zeros_like(out) if dout is None else dout
        dq, *own = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
        returned = None
        for step, *keys in _rounds(ranks, plan, k, v):
            block = plan.received[step]
            sums = own if step == 0 else [torch.zeros_like(x, dtype=torch.float32) for x in keys]
            for call in block.calls:
                dq_part, *parts = kernels.backward(call, q, *keys, out, dout, lse, dlse)
                dq[slice(*call.queries)] += dq_part
                for total, part in zip(sums, parts, strict=True):
                    total[slice(*call.keys)] += part
            if step:
                if returned is not None:
                    returned.add_to(own)
                returned = _returned(ranks, plan, step, sums, (k, v))
        if returned is not None:
            returned.add_to(own)
        dk, dv = own
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _rounds(ranks: Ranks, plan: Plan, k, v) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """The steps, each with the keys and values of its block, while the next ones are on their way.

    Held at a time are two blocks of others; of a step in which nothing is seen there are none.
    """
    coming = _keys_of(ranks, plan, 1, k, v)
    yield 0, k, v
    for step in range(1, ranks.world):
        keys = coming.wait()
        coming = _keys_of(ranks, plan, step + 1, k, v)
        yield step, *keys


def _keys_of(ranks: Ranks, plan: Plan, step: int, k, v) -> Transfer | None:
    """The transfer of the keys and values of ``step``; None behind the last."""
    if step >= ranks.world:
        return None
    sent, received = plan.sent[step], plan.received[step]
    rows = [_rows(x, sent) for x in (k, v) if sent.calls]
    memory = [x.new_empty((received.length, *x.shape[1:])) for x in (k, v) if received.calls]
    return Transfer(ranks, ranks.peer(step), rows, ranks.peer(-step), memory)


def _rows(x: torch.Tensor, block: Block) -> torch.Tensor:
    """The rows of ``x`` that ``block`` names, one behind the other."""
    found = [x[start:stop] for start, stop in block.rows]
    return found[0].contiguous() if len(found) == 1 else torch.cat(found)


class _Returned(NamedTuple):
    """Gradients of rows of this rank's keys and values, which another rank has computed."""

    block: Block
    transfer: Transfer

    def add_to(self, totals) -> None:
        """Wait for them, and add them to the sums of all of this rank's rows."""
        for total, part in zip(totals, self.transfer.wait(), strict=False):
            before = 0
            for start, stop in self.block.rows:
                total[start:stop] += part[before : before + stop - start]
                before += stop - start


def _returned(ranks: Ranks, plan: Plan, step: int, sums, own) -> _Returned:
    """Send ``sums`` to the rank whose keys were here, receive those of ``own`` keys from theirs.

    sums: gradients of keys and of values; none of a step in which nothing was seen.
    """
    here, there = plan.received[step], plan.sent[step]
    sent = [total.to(_dtype(here, x)) for total, x in zip(sums, own, strict=False)]
    memory = [
        x.new_empty((there.length, *x.shape[1:]), dtype=_dtype(there, x))
        for x in own
        if there.calls
    ]
    transfer = Transfer(ranks, ranks.peer(-step), sent, ranks.peer(step), memory)
    return _Returned(there, transfer)


def _dtype(block: Block, x: torch.Tensor) -> torch.dtype:
    """In what gradients travel: as a kernel gave them, or as those of several calls are summed."""
    return x.dtype if len(block.calls) == 1 else torch.float32
