"""Keys and values of sequences that come, grow, branch and go, in pages of one size."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import wraps

import torch

from .page_allocator import Growth, PageAllocator
from .page_pool import PagePool, slots_of
from .values import as_integer


def _changes(method: Callable) -> Callable:
    """``method`` that writes the cache's tensors, without autograd; RuntimeError where none may."""

    @wraps(method)
    def run(self, *args, **kwargs):
        if self.k_pages.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                "the cache was made in inference mode: change it there, or make it outside"
            )
        with torch.no_grad():
            return method(self, *args, **kwargs)

    return run


class PagedCache:
    """Keys and values of many sequences, in pages that are taken as sequences grow.

    Plain tensors, which keep their place in memory (docs/serving.md has a picture):

    - ``k_pages`` (num_layers, num_pages, page_size, num_kv_heads, head_dim), ``v_pages`` alike with
      head_dim_v; a layer of them is what kernels read
    - ``page_table`` (max_sequences, most pages) int32: the pages of each sequence, in order; 0
      where it has none
    - ``seqlens`` (max_sequences,) int32: its tokens

    A sequence is named by its row in both. Nothing is differentiable. Not to be changed by two
    threads at once. What raises leaves the cache as it was.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        head_dim_v: int | None = None,
        *,
        num_layers: int = 1,
        max_sequences: int = 256,
        max_seqlen: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        """A cache without sequences, its pages zero.

        max_seqlen: what a sequence may grow to, rounded up to whole pages; default: all pages.
        dtype, device: as for torch.zeros. ValueError, TypeError: sizes that are no positive
        integers.
        """
        pages = {
            "num_layers": num_layers,
            "num_pages": num_pages,
            "page_size": page_size,
            "num_kv_heads": num_kv_heads,
        }
        shape = [_positive(name, size) for name, size in pages.items()]
        head_dim = _positive("head_dim", head_dim)
        head_dim_v = head_dim if head_dim_v is None else _positive("head_dim_v", head_dim_v)
        max_seqlen = num_pages * page_size if max_seqlen is None else max_seqlen
        most_pages = min(num_pages, -(-_positive("max_seqlen", max_seqlen) // page_size))
        table = (_positive("max_sequences", max_sequences), most_pages)
        self.k_pages = torch.zeros(*shape, head_dim, dtype=dtype, device=device)
        self.v_pages = torch.zeros(*shape, head_dim_v, dtype=dtype, device=device)
        self._pool = PagePool(self.k_pages, self.v_pages)
        self.page_table = torch.zeros(table, dtype=torch.int32, device=device)
        self.seqlens = torch.zeros(max_sequences, dtype=torch.int32, device=device)
        self._allocator = PageAllocator(num_pages, page_size, *table)

    @property
    def sequences(self) -> tuple[int, ...]:
        """The sequences in the cache, in the order they came."""
        return tuple(self._allocator.pages)

    def __repr__(self) -> str:
        layers, pages, page_size, heads, dim = self.k_pages.shape
        return (
            f"PagedCache({layers} layers, {pages} pages of {page_size} tokens, "
            f"{self.num_free_pages} free, {heads} heads of {dim}, {self.k_pages.dtype}, "
            f"{self.k_pages.device})"
        )

    @property
    def num_free_pages(self) -> int:
        """How many pages no sequence has."""
        return len(self._allocator.free_pages)

    @_changes
    def allocate(self) -> int:
        """A new sequence without tokens; CacheFull where max_sequences are in use."""
        return self._allocator.allocate()

    @_changes
    def fork(self, sequence: int) -> int:
        """A new sequence with the tokens of another, in the same pages.

        Copies no page: who first appends to a partly filled one that is shared gets a copy of it.
        Raises CacheFull where max_sequences are in use, ValueError for an unknown sequence.
        """
        fork = self._allocator.fork(sequence)
        self.page_table[fork] = self.page_table[sequence]
        self.seqlens[fork] = self.seqlens[sequence]
        return fork

    @_changes
    def free(self, ids: Sequence[int]) -> None:
        """Remove sequences; ValueError where one is unknown or named twice, and none is removed."""
        ids = _integers("ids", ids)
        rows = self._rows(ids)
        self._allocator.free(ids)
        self.page_table[rows] = 0
        self.seqlens[rows] = 0

    @_changes
    def append(self, ids: Sequence[int], k: torch.Tensor, v: torch.Tensor, counts=1) -> None:
        """Write new tokens after those of the sequences ``ids``: ``extend`` and ``write`` in one.

        k (num_layers, total, num_kv_heads, head_dim) and v alike hold the new tokens of ids[0],
        then those of ids[1]; the first dimension may be left out where there is one layer. counts:
        how many of each sequence, an int for all or integers (len(ids),); total is their sum.

        Raises as ``extend`` and ``write``.
        """
        growth = self._plan(ids, counts)
        layers, total = len(self.k_pages), sum(growth.counts)
        has_layers = layers > 1 or getattr(k, "ndim", 0) == 4
        self._pool.check(k, v, (layers, total) if has_layers else (total,))
        slots = self._slots(growth)
        self._pool.copy(growth.copies)
        for layer in range(layers):
            self._pool.write(slots, *((k[layer], v[layer]) if has_layers else (k, v)), layer)
        self._commit(growth)

    @_changes
    def extend(self, ids: Sequence[int], counts=1) -> torch.Tensor:
        """Make sequences longer by ``counts`` (as for ``append``), for tokens still to be written.

        For models of several layers, and for kernels that append: they write each layer's keys
        and values when they have them. Returns the slots of the new tokens (total,) int64, where
        slot s is row s % page_size of page s // page_size.

        Raises CacheFull where too few pages are free; ValueError, TypeError for unknown sequences,
        wrong counts and a sequence that would exceed max_seqlen.
        """
        growth = self._plan(ids, counts)
        slots = self._slots(growth)
        self._pool.copy(growth.copies)
        self._commit(growth)
        return slots

    @_changes
    def write(self, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int = 0) -> None:
        """Write k (total, num_kv_heads, head_dim) and v alike to ``slots`` (total,) of a layer.

        slots: from ``extend``. ValueError, TypeError for tensors of other shapes, dtype, device,
        and on CPUs for slots that do not exist.
        """
        self._check_layer(layer)
        self._pool.check_slots(slots)
        self._pool.check(k, v, (len(slots),))
        self._pool.write(slots, k, v, layer)

    def block_table(self, ids: Sequence[int]) -> torch.Tensor:
        """The pages of sequences, (len(ids), most pages) int32; a copy. ValueError as ``free``."""
        return self.page_table[self._rows(ids)]

    def seqlens_of(self, ids: Sequence[int]) -> torch.Tensor:
        """The tokens of sequences, (len(ids),) int32; a copy. ValueError as ``free``."""
        return self.seqlens[self._rows(ids)]

    def gather(self, sequence: int, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """k (seqlen, num_kv_heads, head_dim) and v alike of a sequence, copied out of its pages.

        ValueError for an unknown sequence or layer.
        """
        self._check_layer(layer)
        self._allocator.check([sequence])
        pages, length = self._allocator.pages[sequence], self._allocator.lengths[sequence]
        return self._pool.read(pages, length, layer)

    @_changes
    def compact(self) -> int:
        """Move pages so that those in use are the first; returns how many are in use.

        Tokens and sequences stay what they are, ``page_table`` is rewritten: tables and slots
        taken before are void.
        """
        moves = self._allocator.moves()
        self._pool.copy(list(moves.items()))
        place = self._indices([moves.get(page, page) for page in range(self.k_pages.shape[1])])
        self.page_table.copy_(place[self.page_table.long()])
        self._allocator.move(moves)
        return self.k_pages.shape[1] - self.num_free_pages

    def _plan(self, ids, counts) -> Growth:
        ids = _integers("ids", ids)
        counts = [counts] * len(ids) if isinstance(counts, int) else _integers("counts", counts)
        if len(counts) != len(ids) or min(counts, default=0) < 0:
            raise ValueError(f"{counts=} must be {len(ids)} integers >= 0, one for each sequence")
        return self._allocator.plan(ids, counts)

    def _slots(self, growth: Growth) -> torch.Tensor:
        return slots_of(growth, self._allocator.page_size).to(self.k_pages.device)

    def _commit(self, growth: Growth) -> None:
        """Bring tables and lengths, then the allocator, to what was planned."""
        if growth.taken:
            first = [start // self._allocator.page_size for start in growth.starts]
            entries = [
                (sequence, column, page)
                for sequence, start, tail in zip(growth.ids, first, growth.tails, strict=True)
                for column, page in enumerate(tail, start)
            ]
            rows, columns, pages = self._indices(entries).unbind(1)
            self.page_table[rows, columns] = pages.int()
        lengths = list(map(operator.add, growth.starts, growth.counts))
        self.seqlens[self._indices(growth.ids)] = self._indices(lengths).int()
        self._allocator.commit(growth)

    def _rows(self, ids) -> torch.Tensor:
        ids = _integers("ids", ids)
        self._allocator.check(ids)
        return self._indices(ids)

    def _indices(self, numbers: list) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.k_pages.device)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < len(self.k_pages):
            raise ValueError(f"{layer=} must lie in 0..{len(self.k_pages) - 1}")


def _positive(name: str, value) -> int:
    number = as_integer(name, value)
    if number < 1:
        raise ValueError(f"{name}={number} must be at least 1")
    return number


def _integers(name: str, values) -> list[int]:
    """``values``, a sequence or a tensor of integers, as a list."""
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise TypeError(f"{name}={values!r} must be integers, in a list or a tensor") from None
