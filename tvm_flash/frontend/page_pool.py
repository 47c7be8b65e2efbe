"""The memory of a paged cache: rows written to slots, pages copied and read."""

from __future__ import annotations

import torch

from ..score.layouts import check_dense
from .page_allocator import Growth


class PagePool:
    """Pages k (num_layers, num_pages, page_size, num_kv_heads, head_dim) and v alike.

    A slot is a row of all the pages of a layer: row s % page_size of page s // page_size.
    """

    def __init__(self, k: torch.Tensor, v: torch.Tensor):
        self._pages = {"k": k, "v": v}

    def check(self, k: torch.Tensor, v: torch.Tensor, lead: tuple[int, ...]) -> None:
        """Raise unless k and v hold rows of their pages behind the dimensions ``lead``.

        lead: (total,) or (num_layers, total). TypeError: no tensor, dtype. ValueError: the rest.
        """
        for (name, pages), x in zip(self._pages.items(), (k, v), strict=True):
            _check_rows(name, x, lead, pages)

    def check_slots(self, slots: torch.Tensor) -> None:
        """Raise unless ``slots`` (total,) are int64 beside the pages, and where read, of theirs."""
        pages = self._pages["k"]
        if not isinstance(slots, torch.Tensor) or slots.dtype != torch.int64:
            given = getattr(slots, "dtype", type(slots).__name__)
            raise TypeError(f"slots must be a tensor of torch.int64, not {given}")
        if slots.ndim != 1 or slots.device != pages.device:
            raise ValueError(
                f"slots of shape {tuple(slots.shape)} on {slots.device} must be (total,) on "
                f"{pages.device}"
            )
        count = pages.shape[1:3].numel()
        if slots.is_cpu and slots.numel() and not (slots.min() >= 0 and slots.max() < count):
            wrong = slots[(slots < 0) | (slots >= count)][0]
            raise ValueError(f"slot {wrong} must lie in 0..{count - 1}")

    def write(self, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> None:
        """Write k (total, num_kv_heads, head_dim) and v alike to ``slots`` (total,) int64."""
        own = [pages.untyped_storage().data_ptr() for pages in self._pages.values()]
        new = [x.clone() if x.untyped_storage().data_ptr() in own else x for x in (k, v)]
        for pages, x in zip(self._pages.values(), new, strict=True):
            pages[layer].flatten(0, 1).index_copy_(0, slots, x)

    def read(self, pages: list[int], length: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first ``length`` rows of k and of v in ``pages``, in order; copies."""
        k, v = self._pages.values()
        numbers = torch.tensor(pages, dtype=torch.int64, device=k.device)
        return k[layer][numbers].flatten(0, 1)[:length], v[layer][numbers].flatten(0, 1)[:length]

    def copy(self, moves: list[tuple[int, int]]) -> None:
        """Copy (source, target) pages of all layers, at once: no source is a target."""
        if not moves:
            return
        for pages in self._pages.values():
            sources, targets = torch.tensor(moves, device=pages.device).unbind(1)
            for layer in pages:  # one at a time, for the memory that takes
                layer.index_copy_(0, targets, layer[sources])


def slots_of(growth: Growth, page_size: int) -> torch.Tensor:
    """Where the tokens that come with ``growth`` lie, (total,) int64 on the CPU, all at once."""
    pages = _on_cpu([page for tail in growth.tails for page in tail])
    sizes = _on_cpu([len(tail) for tail in growth.tails])
    starts, counts = _on_cpu(growth.starts), _on_cpu(growth.counts)
    # The same for all tokens of a sequence: position less number among all that come, and the
    # place in ``pages`` where the sequence's page 0 would be.
    shift = starts - (counts.cumsum(0) - counts)
    page_0 = sizes.cumsum(0) - sizes - starts // page_size
    position = torch.arange(sum(growth.counts), device="cpu") + shift.repeat_interleave(counts)
    page = pages[position // page_size + page_0.repeat_interleave(counts)]
    return page * page_size + position % page_size


def _on_cpu(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _check_rows(name: str, x, lead: tuple[int, ...], pages: torch.Tensor) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    check_dense(name, x)
    if x.dtype != pages.dtype:
        raise TypeError(f"{name}.dtype={x.dtype} must be the cache's {pages.dtype}: convert it")
    if x.device != pages.device:
        raise ValueError(f"{name} is on {x.device}, the cache on {pages.device}: move it")
    if x.shape != (shape := (*lead, *pages.shape[3:])):
        layers = "num_layers, " if len(lead) == 2 else ""
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} must be ({layers}total, num_kv_heads, head_dim) = "
            f"{shape}"
        )
