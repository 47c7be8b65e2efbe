"""Ragged attention problems: entries of any lengths, packed and in pages, with a float64 answer."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from tvm_flash.reference import attention_reference


@dataclass(frozen=True)
class Ragged:
    """Entries of so many ``rows`` and ``keys`` each, one behind the other, of random data.

    before: rows of no entry in front of each.
    """

    rows: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    dim_v: int = 16
    dtype: torch.dtype = torch.float32
    before: int = 0
    seed: int = 0
    tensors: dict[str, torch.Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)
        shapes = {
            "q": (self.total_q, self.heads, self.dim),
            "k": (self.total_k, self.kv_heads, self.dim),
            "v": (self.total_k, self.kv_heads, self.dim_v),
            "dout": (self.total_q, self.heads, self.dim_v),
            "dlse": (self.heads, self.total_q),
        }
        for name, shape in shapes.items():
            dtype = torch.float32 if name == "dlse" else self.dtype
            self.tensors[name] = torch.randn(shape, generator=generator).to(dtype)

    @property
    def total_q(self) -> int:
        return sum(self.rows) + self.before * len(self.rows)

    @property
    def total_k(self) -> int:
        return sum(self.keys) + self.before * len(self.keys)

    def spans(self, axis: str) -> list[tuple[int, int]]:
        """(first, past) of each entry on an axis, "q" or "k"."""
        lengths = self.rows if axis == "q" else self.keys
        steps = [0]
        for length in lengths:
            steps.append(steps[-1] + self.before + length)
        return [(a + self.before, b) for a, b in pairwise(steps)]

    def bounds(self) -> dict[str, torch.Tensor]:
        """starts_q, ends_q, starts_k, ends_k (B,) int32."""
        found = {}
        for axis in ("q", "k"):
            for place, side in enumerate(("starts", "ends")):
                numbers = [span[place] for span in self.spans(axis)]
                found[f"{side}_{axis}"] = torch.tensor(numbers, dtype=torch.int32)
        return found

    def entry(self, number: int) -> dict[str, torch.Tensor]:
        """q, k, v, dout (1, rows, heads, columns) and dlse (1, heads, rows) of one entry."""
        queries, keys = (slice(*self.spans(axis)[number]) for axis in ("q", "k"))
        own = {name: self.tensors[name][queries][None] for name in ("q", "dout")}
        own |= {name: self.tensors[name][keys][None] for name in ("k", "v")}
        return own | {"dlse": self.tensors["dlse"][None, :, queries]}

    def answers(self, dtype=torch.float64, **options):
        """out, lse, (dq, dk, dv) of the dense reference in ``dtype``, as packed tensors.

        Rows of no entry: out, gradients 0, lse -inf.
        """
        x = self.tensors
        out = torch.zeros(*x["q"].shape[:2], self.dim_v, dtype=dtype)
        lse = torch.full(x["dlse"].shape, -math.inf, dtype=dtype)
        gradients = [torch.zeros(x[name].shape, dtype=dtype) for name in ("q", "k", "v")]
        for number in range(len(self.rows)):
            own = {name: part.to(dtype) for name, part in self.entry(number).items()}
            leaves = [own[name].requires_grad_() for name in ("q", "k", "v")]
            one, one_lse = attention_reference(*leaves, **options)
            queries, keys = (slice(*self.spans(axis)[number]) for axis in ("q", "k"))
            out[queries], lse[:, queries] = one[0].detach(), one_lse[0].detach()
            finite = torch.where(one_lse.isinf(), 0.0, one_lse)
            found = torch.autograd.grad((one, finite), leaves, (own["dout"], own["dlse"]))
            for total, part, place in zip(gradients, found, (queries, keys, keys), strict=True):
                total[place] = part[0]
        return out, lse, gradients


@dataclass(frozen=True)
class Pages:
    """The keys of a ``Ragged`` problem in pages, in an order of their own; the rest is NaN.

    left: positions before the first key of each entry.
    """

    problem: Ragged
    size: int
    left: tuple[int, ...]

    def laid(self) -> dict[str, torch.Tensor]:
        """k, v (pages, size, Hk, columns), page_table, starts_k, ends_k."""
        x = self.problem
        ends = [left + keys for left, keys in zip(self.left, x.keys, strict=True)]
        most = max([-(-end // self.size) for end in ends], default=0)
        count = most * len(ends) + 1
        order = torch.randperm(count, generator=torch.Generator().manual_seed(x.seed))
        table = order[: most * len(ends)].to(torch.int32).view(len(ends), most)
        pages = {}
        for name in ("k", "v"):
            rows = x.tensors[name]
            pages[name] = rows.new_full((count, self.size, *rows.shape[1:]), math.nan)
            for number, (first, past) in enumerate(x.spans("k")):
                at = self.left[number] + torch.arange(past - first)
                page = table[number, at // self.size].long()
                pages[name][page, at % self.size] = rows[first:past]
        bounds = {"starts_k": self.left, "ends_k": ends}
        numbers = {name: torch.tensor(x, dtype=torch.int32) for name, x in bounds.items()}
        return {**pages, "page_table": table, **numbers}
