"""Sequences of many lengths packed in one tensor, and attention over each alone by plain torch."""

from __future__ import annotations

import torch

from tvm_flash.cases import Inputs
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import deviations, results

HEADS, KV_HEADS, DIM = 4, 2, 32


def random(*shape, seed=0, dtype=torch.float32):
    """Normally distributed numbers, equal for equal seeds."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def int32(*numbers) -> torch.Tensor:
    """A vector of int32."""
    return torch.tensor(numbers, dtype=torch.int32)


def cumulative(lengths) -> torch.Tensor:
    """cu_seqlens (B + 1,) int32 of ``lengths``."""
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).int()


def packed_inputs(lengths, dtype=torch.float32, seed=0, slack=0, **variant) -> Inputs:
    """Inputs of sequences of ``lengths``, pairs of queries and keys; ``slack`` rows follow them."""
    rows, keys = (sum(x) + slack for x in zip(*lengths, strict=True))
    shapes = ((rows, HEADS), (keys, KV_HEADS), (keys, KV_HEADS), (rows, HEADS))
    tensors = [random(*x, DIM, seed=seed + n, dtype=dtype) for n, x in enumerate(shapes)]
    return Inputs(*tensors, random(HEADS, rows, seed=seed + 4), variant)


def each_alone(lengths):
    """``attention_reference`` of each sequence of packed tensors; rows of none are 0, lse -inf."""
    queries, keys = (torch.tensor(x).tolist() for x in zip(*lengths, strict=True))

    def attend(q, k, v, **variant):
        parts = (x[: sum(n)].split(n) for x, n in ((q, queries), (k, keys), (v, keys)))
        found = [
            attention_reference(*(x[None] for x in entry), **of_entry(variant, b))
            for b, entry in enumerate(zip(*parts, strict=True))
        ]
        rest = len(q) - sum(queries)
        outs = [out[0] for out, _ in found] + [q.new_zeros(rest, q.shape[1], v.shape[2])]
        lses = [lse[0] for _, lse in found] + [q.new_full((q.shape[1], rest), -torch.inf)]
        return torch.cat(outs), torch.cat(lses, 1)

    return attend


def of_entry(variant, b: int) -> dict:
    """Keywords for sequence ``b`` alone: slopes of its own, functions that are told its number."""
    own = dict(variant)
    if getattr(slopes := variant.get("alibi_slopes"), "ndim", 1) == 2:
        own["alibi_slopes"] = slopes[b]
    for name, place in (("score_mod", 1), ("mask_mod", 0)):
        if name in variant:
            own[name] = _told(variant[name], place, b)
    return own


def _told(function, place: int, b: int):
    return lambda *x: function(*x[:place], torch.full_like(x[place], b), *x[place + 1 :])


def assert_rule(attend, inputs: Inputs, lengths, backward: bool = True) -> None:
    """Assert the error rule for ``attend`` (q, k, v, **variant) -> (out, lse) of packed inputs."""
    dtype, alone = str(inputs.q.dtype).removeprefix("torch."), each_alone(lengths)
    for deviation in deviations(
        dtype,
        results(attend, inputs, backward=backward),
        results(alone, inputs, torch.float64, backward=backward),
        results(alone, inputs, backward=backward),
    ):
        assert deviation.ok, str(deviation)
