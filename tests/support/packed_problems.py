"""Entries of many lengths, packed in one tensor or in pages, and attention over each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tvm_flash.cases import Inputs
from tvm_flash.reference import attention_reference
from tvm_flash.verify.layouts import in_pages
from tvm_flash.verify.rule import deviations, results

HEADS, KV_HEADS, DIM = 4, 2, 32
Tensors = dict[str, torch.Tensor]


def random(*shape, seed=0, dtype=torch.float32):
    """Normally distributed numbers, equal for equal seeds."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def int32(*numbers) -> torch.Tensor:
    """A vector of int32."""
    return torch.tensor(numbers, dtype=torch.int32)


def cumulative(lengths) -> torch.Tensor:
    """cu_seqlens (B + 1,) int32 of ``lengths``."""
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).int()


@dataclass(frozen=True)
class Entries:
    """Lengths of queries and keys by entry, and heads; ``gap`` rows of none lie around each."""

    rows: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int = 2
    kv_heads: int = 1
    gap: int = 0

    @cached_property
    def spans(self) -> Tensors:
        """starts_q, ends_q, starts_k, ends_k (B,) int32."""
        found = {}
        for name, lengths in (("q", int32(*self.rows)), ("k", int32(*self.keys))):
            ends = torch.cumsum(lengths + self.gap, 0, dtype=torch.int32)
            found |= {f"starts_{name}": ends - lengths, f"ends_{name}": ends}
        return found

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of a call by name."""
        count = len(self.rows)
        return {
            "B": count, "H": self.heads, "Hk": self.kv_heads,
            "total_q": sum(self.rows) + self.gap * (count + 1),
            "total_k": sum(self.keys) + self.gap * (count + 1),
            "max_seqlen_k": max(self.keys, default=0),
        }  # fmt: skip

    def slices(self, which: str) -> list[slice]:
        """Rows of each entry in the tensors of queries ("q") or keys ("k")."""
        starts, ends = (self.spans[f"{end}_{which}"].tolist() for end in ("starts", "ends"))
        return [slice(*span) for span in zip(starts, ends, strict=True)]

    def outside(self, which: str) -> torch.Tensor:
        """Whether a row of queries ("q") or keys ("k") is of no entry, bool (total,)."""
        of_none = torch.ones(self.sizes[f"total_{which}"], dtype=torch.bool)
        for own in self.slices(which):
            of_none[own] = False
        return of_none

    def inputs(self, dim: int, dim_v: int = 0, dtype=torch.float32, seed=0, **variant) -> Inputs:
        """Normally distributed inputs: tensors (total, heads, columns), dlse (H, total_q)."""
        queries = self.sizes["total_q"], self.heads
        keys = self.sizes["total_k"], self.kv_heads
        wide = dim_v or dim
        shapes = ((*queries, dim), (*keys, dim), (*keys, wide), (*queries, wide))
        tensors = [random(*x, seed=seed + n, dtype=dtype) for n, x in enumerate(shapes)]
        return Inputs(*tensors, random(*queries[::-1], seed=seed + 4), variant)

    def alone(self, q, k, v, **variant) -> tuple[torch.Tensor, torch.Tensor]:
        """``attention_reference`` of each entry; out of rows of none is 0, their lse -inf."""
        # Sums of no columns: zeros that autograd follows to q where there are no entries too.
        zeros = q[..., :0].sum(-1, dtype=torch.promote_types(q.dtype, torch.float32))
        lse = zeros.T.contiguous() - torch.inf
        out = zeros[..., None].to(q.dtype).repeat(1, 1, v.shape[2])
        places = zip(self.slices("q"), self.slices("k"), strict=True)
        for entry, (rows, keys) in enumerate(places):
            own = (q[None, rows], k[None, keys], v[None, keys])
            one, one_lse = attention_reference(*own, **of_entry(variant, entry))
            out[rows], lse[:, rows] = one[0], one_lse[0]
        return out, lse

    def in_pages(self, k, v, size: int, left: Sequence[int]) -> Tensors:
        """k, v (pages, size, Hk, columns) in no order, page_table, starts_k, ends_k.

        left: positions before an entry's first key. All that no entry has is NaN, or in no table.
        """
        starts, lengths = int32(*left), int32(*self.keys)
        counts = [-(-end // size) for end in (starts + lengths).tolist()]
        order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(size))
        table = torch.full((len(counts), max(counts, default=0) + 1), -7, dtype=torch.int32)
        for entry, own in enumerate(order[: sum(counts)].split(counts)):
            table[entry, : len(own)] = own
        pages = [
            in_pages(x[~self.outside("k")], self.keys, table, len(order), size, left)
            for x in (k, v)
        ]
        spans = {"starts_k": starts, "ends_k": starts + lengths}
        return {"k": pages[0], "v": pages[1], "page_table": table, **spans}


def of_entry(variant, b: int) -> dict:
    """Keywords for entry ``b`` alone: slopes of its own, functions that are told its number."""
    own = dict(variant)
    if getattr(slopes := variant.get("alibi_slopes"), "ndim", 1) == 2:
        own["alibi_slopes"] = slopes[b]
    for name, place in (("score_mod", 1), ("mask_mod", 0)):
        if name in variant:
            own[name] = _told(variant[name], place, b)
    return own


def _told(function, place: int, b: int):
    return lambda *x: function(*x[:place], torch.full_like(x[place], b), *x[place + 1 :])


def packed_entries(lengths) -> Entries:
    """Entries one behind the other of ``lengths``, pairs of queries and keys."""
    return Entries(*zip(*lengths, strict=True), HEADS, KV_HEADS)


def packed_inputs(lengths, dtype=torch.float32, **variant) -> Inputs:
    """Inputs of ``packed_entries``."""
    return packed_entries(lengths).inputs(DIM, dtype=dtype, **variant)


def assert_rule(attend, inputs: Inputs, lengths, backward: bool = True) -> None:
    """Assert the error rule for ``attend`` (q, k, v, **variant) -> (out, lse) of packed inputs."""
    dtype, alone = str(inputs.q.dtype).removeprefix("torch."), packed_entries(lengths).alone
    for deviation in deviations(
        dtype,
        results(attend, inputs, backward=backward),
        results(alone, inputs, torch.float64, backward=backward),
        results(alone, inputs, backward=backward),
    ):
        assert deviation.ok, str(deviation)
