"""A cache of keys and values in memory of some form, and what is appended to it."""

from __future__ import annotations

import torch
from packed_problems import DIM, HEADS, KV_HEADS, int32, random

from tvm_flash import flash_attn_with_kvcache

B, CAPACITY = 3, 80
SEQLENS = int32(37, 0, 64)
ANGLES = torch.outer(torch.arange(CAPACITY + 20), 1e4 ** -torch.linspace(0, 1, DIM // 2))
COS, SIN = ANGLES.cos(), ANGLES.sin()


class Held:
    """A cache of B sequences of CAPACITY rows in memory of some form; rows not in use are NaN.

    store: "rows", "chosen" (cache_batch_idx), or a page size. ``keywords`` are of the call.
    """

    def __init__(self, store, dtype=torch.float32, layout="bshd", seqlens=SEQLENS):
        self.keywords, self.layout = {}, layout
        page = CAPACITY if isinstance(store, str) else store
        each = -(-CAPACITY // page)
        order = torch.randperm(B * each + 2, generator=torch.Generator().manual_seed(page))
        self.table = order[: B * each].reshape(B, each).int()
        if store == "rows":
            self.table = int32(0, 1, 2)[:, None]
        elif store == "chosen":
            self.keywords = {"cache_batch_idx": self.table[:, 0]}
        else:
            self.keywords = {"block_table": self.table}
        shape = (B * each + 2, page, KV_HEADS, DIM)
        shape = shape if layout == "bshd" else (shape[0], KV_HEADS, page, DIM)
        self.k, self.v = (torch.full(shape, torch.nan, dtype=dtype) for _ in "kv")
        for entry, length in enumerate(seqlens.tolist()):
            for seed, pages in enumerate((self.k, self.v)):
                rows = random(length, KV_HEADS, DIM, seed=10 * entry + seed, dtype=dtype)
                for place, part in enumerate(rows.split(page) if length else ()):
                    self._rows_first(pages)[self.table[entry, place], : len(part)] = part

    def rows(self, entry: int, pages=None) -> torch.Tensor:
        """The rows of k, or of ``pages``, that a sequence may use, in order; a copy."""
        pages = self._rows_first(self.k if pages is None else pages)
        return pages[self.table[entry].long()].flatten(0, 1)

    def _rows_first(self, pages):
        return pages if self.layout == "bshd" else pages.transpose(1, 2)

    def __call__(self, q, *new, **options):
        return flash_attn_with_kvcache(
            q, self.k, self.v, *new, cache_layout=self.layout, return_softmax_lse=True,
            **self.keywords, **options,
        )  # fmt: skip


def turned(x, start, columns: int, interleaved: bool, moves: bool = True):
    """x (S, H, D) with pairs of its first ``columns`` turned as complex numbers, from ``start``."""
    if not len(x):
        return x.double()
    position = start + torch.arange(len(x)) * moves
    turn = torch.complex(COS.double(), SIN.double())[position, None, : columns // 2]
    order = (-1, 2) if interleaved else (2, -1)
    pairs = x[..., :columns].double().unflatten(-1, order)
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    pairs = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    return torch.cat((pairs.flatten(-2), x[..., columns:].double()), -1)


def new_rows(counts, dtype=torch.float32, seed=50) -> list:
    """k and v of new tokens, for each sequence a tensor of so many rows."""
    return [
        [random(n, KV_HEADS, DIM, seed=seed + 2 * b + i, dtype=dtype) for b, n in enumerate(counts)]
        for i in range(2)
    ]


def append_to(held: Held, **changes):
    """A call that appends a row to each sequence, but for ``changes``."""
    rows = {"k": random(B, 1, KV_HEADS, DIM, seed=1), "v": random(B, 1, KV_HEADS, DIM, seed=2)}
    options = {"cache_seqlens": SEQLENS, "causal": True, **rows, **changes}
    return held(options.pop("q", random(B, 1, HEADS, DIM)), **options)
