"""What a mask function of transformers lets queries see, as ``attention`` takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

from ..errors import UnsupportedSpec
from ..frontend.captured import Captured, captured_on
from ..frontend.values import NO_WINDOW


@dataclass(frozen=True, eq=False)
class Seen(BlockMask):
    """Which keys each query of a model's forward sees: made once, for all layers of a kind.

    sizes: (B, 1, Sq, Sk) of the mask that it stands for. options: arguments of ``attention``. keys:
    how many of a cache are there (None: all). lengths: arguments of packed sequences, which lie
    behind each other in the rows of the batch. A BlockMask by name alone: transformers hands no
    other object on from ``generate`` to a model.
    """

    sizes: tuple[int, int, int, int]
    options: dict[str, Any]
    keys: int | None = None
    lengths: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """What transformers asks masks that are ready for."""
        return self.sizes


def seen_keys(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **others: Any,
) -> Seen | torch.Tensor | None:
    """transformers' mask interface: a ``Seen`` for ``mask_function``, or the array that sdpa has.

    attention_mask (B, keys) bool: False for padding. The array, (B, 1, Sq, Sk), is left to what
    torch.compile or torch.export reads, to static caches, which are made for these (their q_offset
    is a tensor), and to functions that cannot be traced.
    """
    from transformers import masking_utils

    mask_function = mask_function or masking_utils.causal_mask_function
    given = {
        "batch_size": batch_size, "q_length": q_length, "kv_length": kv_length,
        "q_offset": q_offset, "kv_offset": kv_offset, "mask_function": mask_function,
        "attention_mask": attention_mask, "local_size": local_size,
    }  # fmt: skip
    if not (torch.compiler.is_compiling() or isinstance(q_offset, torch.Tensor)):
        try:
            return _seen(masking_utils, **given, device=others.get("device"))
        except (UnsupportedSpec, NotImplementedError):
            pass
    return masking_utils.sdpa_mask(**given, **others)


def _seen(
    utils, batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask,
    local_size, device,
) -> Seen:  # fmt: skip
    """``seen_keys`` of what can be traced; UnsupportedSpec, NotImplementedError for what cannot."""
    sizes = (batch_size, 1, q_length, kv_length)
    padding = utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    own = captured_on(device, None, mask_function)
    is_whole = padding is None or bool(padding.all())
    keys = q_offset + q_length - kv_offset  # those from the first to the last query's
    for known, window in _plain_kinds(utils, local_size):
        is_causal = known is not utils.bidirectional_mask_function and window[1] == 0
        is_aligned = keys <= kv_length if is_causal else keys == kv_length
        if window != NO_WINDOW and not is_aligned:
            continue
        if _is_of(own, known, device):
            options = {"causal": is_causal, "window_size": window}
            number = keys if is_causal else kv_length
            if not is_whole:
                options["mask_mod"] = _padded(padding, kv_offset)
            return Seen(sizes, options, number)
        packed = _packed(utils, known, own.tables) if is_whole else None
        if packed is not None and _is_of(own, packed, device):
            lengths = _lengths(own.tables[-1])
            return Seen(sizes, {"causal": is_causal, "window_size": window}, lengths=lengths)
    place = torch.tensor([q_offset, kv_offset], device=device)  # read: one kernel for all steps
    padded = None if is_whole else _padded(padding, 0)

    def mask_mod(b, h, q_idx, k_idx):
        q_idx, k_idx = q_idx + place[0], k_idx + place[1]
        seen = mask_function(b, h, q_idx, k_idx)
        return seen if padded is None else seen & padded(b, h, q_idx, k_idx)

    return Seen(sizes, {"mask_mod": captured_on(device, None, mask_mod)})


def _plain_kinds(utils, size: int | None) -> Iterator[tuple[Callable, tuple[int, int]]]:
    """Mask functions that kernels know, with their windows (left, right)."""
    yield utils.causal_mask_function, (-1, 0)
    yield utils.bidirectional_mask_function, NO_WINDOW
    if size is not None:
        yield utils.sliding_window_causal_mask_function(size), (size - 1, 0)
        yield utils.sliding_window_bidirectional_mask_function(size), (size, size)


def _is_of(own: Captured, known: Callable, device) -> bool:
    """Whether ``own`` was traced of a function that does the same as ``known``, step by step."""
    return own.mask_mod == captured_on(device, None, known).mask_mod


def _packed(utils, known: Callable, tables: tuple[torch.Tensor, ...]) -> Callable | None:
    """``known`` between positions inside sequences, which number the rows of the last table."""
    if not 1 <= len(tables) <= 2 or any(x.ndim != 2 for x in tables):
        return None
    inside = utils.remap_positions_for_packed_sequence(known, tables[0])
    return utils.and_masks(inside, utils.packed_sequence_mask_function(tables[-1]))


def _lengths(numbers: torch.Tensor) -> dict[str, Any]:
    """Packed sequences of rows with equal ``numbers`` (B, S): arguments of ``attention``."""
    begins = torch.ones_like(numbers, dtype=torch.bool)
    begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    starts = begins.flatten().nonzero().flatten()
    ends = torch.cat([starts, starts.new_tensor([numbers.numel()])]).to(torch.int32)
    longest = int(ends.diff().max())
    return {f"cu_seqlens_{x}": ends for x in "qk"} | {f"max_seqlen_{x}": longest for x in "qk"}


def _padded(padding: torch.Tensor, offset: int) -> Callable:
    """A mask_mod that hides padding of keys that begin at ``offset``."""
    kept = padding[:, offset:] if offset else padding

    def mask_mod(b, h, q_idx, k_idx):
        return kept[b, k_idx]

    return mask_mod
