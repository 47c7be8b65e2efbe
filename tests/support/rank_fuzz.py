"""Calls that ranks share, drawn at random: sizes, documents, layouts, masks, sinks, heads."""

from __future__ import annotations

import random
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from packed_problems import Entries
from packed_problems import random as normal
from rank_tasks import DIM, SINK, attend, leaning, striped, summed

from tvm_flash.cases import Inputs
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import deviations, results


class Drawn(NamedTuple):
    """A call: of ``entries`` packed, or dense of ``batch`` entries with these rows and keys.

    rows, keys: of the whole sequence, padding behind the documents included.
    """

    world: int
    how: str
    layout: str
    heads: tuple[int, int]
    batch: int
    rows: int
    keys: int
    entries: Entries | None
    variant: dict

    @property
    def inputs(self) -> Inputs:
        """What every rank draws alike; rows of padding are NaN, for nobody may read them."""
        lead = () if self.entries is not None else (self.batch,)
        queries, keys = (
            (*lead, rows, heads, DIM)
            for rows, heads in zip((self.rows, self.keys), self.heads, strict=True)
        )
        tensors = [normal(*x, seed=n) for n, x in enumerate((queries, keys, keys, queries))]
        if self.entries is not None:
            ends = sum(self.entries.rows), *[sum(self.entries.keys)] * 2
            for x, end in zip(tensors, ends, strict=False):
                x[end:] = torch.nan
        dlse = normal(*lead, self.heads[0], self.rows, seed=4)
        return Inputs(*tensors, dlse, self.variant)

    @property
    def cumulative(self) -> dict[str, torch.Tensor]:
        """cu_seqlens_q and cu_seqlens_k, if documents are packed."""
        if self.entries is None:
            return {}
        sides = {"cu_seqlens_q": self.entries.rows, "cu_seqlens_k": self.entries.keys}
        return {
            name: torch.tensor([0, *lengths]).cumsum(0).int() for name, lengths in sides.items()
        }

    def reference(self, q, k, v, **variant):
        """out and lse of one process, in the dtype of q; rows of padding are 0 and -inf."""
        if self.entries is None:
            return attention_reference(q, k, v, **variant)
        used, of_keys = (sum(x) for x in (self.entries.rows, self.entries.keys))
        out, lse = self.entries.alone(q[:used], k[:of_keys], v[:of_keys], **variant)
        more = self.rows - used
        pad = torch.nn.functional.pad
        return pad(out, (0, 0, 0, 0, 0, more)), pad(lse, (0, more), value=-torch.inf)


def drawn(seed: int, worlds: tuple[int, ...], few: bool) -> Drawn:
    """The call of ``seed``; few: of the kernels that any call of a ring has."""
    draw = random.Random(seed)
    world, how = draw.choice(worlds), draw.choice(["ring", "ring", "ring" if few else "ulysses"])
    if how == "ulysses" and world == 3:
        world = 1  # four heads
    layout = draw.choice(["zigzag", "contiguous"]) if how == "ring" else "contiguous"
    count = 2 * world if layout == "zigzag" else world
    rows, keys = (count * draw.randint(1, 40 // count) for _ in range(2))
    keys = keys if draw.random() < 0.4 else rows
    is_packed = draw.random() < 0.6
    entries = _documents(draw, rows, keys) if is_packed else None
    heads = (4, draw.choice([1, 2, 4]))
    batch = draw.choice([1, 2, 3])
    return Drawn(
        world, how, layout, heads, batch, rows, keys,
        None if entries is None else Entries(*entries, *heads), _variant(draw, few),
    )  # fmt: skip


def _documents(draw, rows: int, keys: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths of documents, of queries and keys, many of them 0 or 1; what is left is padding."""
    count = draw.choice([0, 1, 2, 4, 7])
    queries = _lengths(draw, rows, count)
    return queries, queries if keys == rows and draw.random() < 0.7 else _lengths(draw, keys, count)


def _lengths(draw, total: int, count: int) -> tuple[int, ...]:
    found = []
    for _ in range(count):
        left = total - sum(found)
        found.append(min(left, draw.choice([0, 1, 2, draw.randint(0, left)])))
    if found and draw.random() < 0.6:
        found[draw.randrange(count)] += total - sum(found)
    return tuple(found)


def _variant(draw, few: bool) -> dict:
    found = {}
    if draw.random() < 0.5:
        found["causal"] = True
    if draw.random() < 0.5 and not few:
        found["window_size"] = (draw.choice([-1, 0, 1, 3, 20]), draw.choice([-1, 0, 1, 3, 20]))
    kinds = ("sink", "hidden sink", "", "", "softcap", "score", "mask")
    kind = draw.choice(kinds[:3] if few else kinds)
    if kind == "softcap":
        found["softcap"] = 5.0
    elif kind == "sink":
        found["sink"] = SINK
    elif kind == "hidden sink":
        found["sink"] = torch.tensor([-torch.inf, 1.0, -torch.inf, -3.0])
    elif kind == "score":
        found["score_mod"] = leaning
    elif kind == "mask":
        found["mask_mod"] = striped
    return found


def complaints(seeds: range, worlds: tuple[int, ...], few: bool = False) -> list[str]:
    """What this rank's results of the calls of ``seeds`` say against the error rule."""
    found, groups = [], _groups()
    for seed in seeds:
        call = drawn(seed, worlds, few)
        if dist.get_rank() >= call.world:
            continue
        inputs, group = call.inputs, groups[call.world - 1]
        exact = results(call.reference, inputs, torch.float64)
        plain = results(call.reference, inputs)
        is_packed = call.entries is not None
        function = attend(call.how, call.layout, is_packed, call.cumulative, group)
        own = summed(results(function, inputs, return_lse=True), group)
        bad = [str(x) for x in deviations("float32", own, exact, plain) if not x.ok]
        found += [f"{seed}: {x} of {call}" for x in bad]
    return found


@cache
def _groups() -> list:
    """The groups of the first rank, of the first two and so on; all ranks make them at once."""
    return [dist.new_group(list(range(n))) for n in range(1, dist.get_world_size() + 1)]
