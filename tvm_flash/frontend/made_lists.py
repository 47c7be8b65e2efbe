"""What blocks a mask_mod leaves to visit: made once for what the function says, and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import torch
from torch.cuda import is_current_stream_capturing

from ..problem.block_maker import block_mask, reads
from ..score.program import ScoreProgram
from .packed_rows import is_readable

# Heads of all entries for each list: torch looks at a pair of a query and a key in 3 to 24 ns, a
# kernel computes one of a head in 4 (float32, D = 64, Zen 4), so that the first call takes at most
# twice as long, where nothing is hidden.
LEAST_HEADS = 16
LEAST_PAIRS = 2**21
# Elements of captured tensors, which are compared with those of the calls before.
MOST_ELEMENTS = 2**18
# Lists of more blocks than this gain less than the smaller tiles cost (docs/block_masks.md).
DENSEST = 0.75
BLOCK = (128, 128)
_MOST_KEPT = 32
Stored = tuple[torch.Tensor, ...]  # as BlockMask.stored


class _Kept:
    """The last answers by key, None among them; a key is all that decides the answer."""

    def __init__(self) -> None:
        self._lock, self._answers = Lock(), OrderedDict()

    def get(self, key, make: Callable[[], Stored | None] | None) -> Stored | None:
        """The answer to ``key``, made where it is a new one; without ``make`` None then."""
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
        if make is None:
            return None
        answer = make()
        with self._lock:
            self._answers[key] = answer
            while len(self._answers) > _MOST_KEPT:
                self._answers.popitem(last=False)
        return answer


_kept = _Kept()


class Call(NamedTuple):
    """What decides the lists of a dense call beside its mask_mod.

    hides: causal, has_left, has_right, alignment, left and right of its own mask and window.
    """

    batch: int
    heads: int
    seqlen_q: int
    seqlen_k: int
    hides: tuple

    @property
    def is_small(self) -> bool:
        few = self.batch * self.heads < LEAST_HEADS
        return few or self.seqlen_q * self.seqlen_k < LEAST_PAIRS

    def shares(self, program: ScoreProgram) -> bool:
        """Whether enough heads share each list of ``program``."""
        batch, heads = reads(program, "b"), reads(program, "h")
        shared = (1 if batch else self.batch) * (1 if heads else self.heads)
        return shared >= LEAST_HEADS


def lists_of(
    mask_mod: Callable, program: ScoreProgram, tables: Sequence, call: Call, device
) -> Stored | None:
    """The lists of a mask_mod, kept or made."""
    if (
        not call.shares(program)
        or sum(x.numel() for x in tables) > MOST_ELEMENTS
        or not all(is_readable(x) and not x.requires_grad for x in tables)
        or not _reads_within(program, tables, call[:4])
    ):
        return None
    values = tuple((x.shape, _bytes_of(x)) for x in tables)

    def make() -> Stored | None:
        seen = _all_hidden(mask_mod, call.seqlen_q, call.seqlen_k, *call.hides)
        mask = block_mask(seen, *call[:4], BLOCK, device)
        return None if mask.density > DENSEST else mask.stored

    # How many blocks there are is waited for, which a CUDA graph that is captured cannot.
    waits = device.type == "cuda" and is_current_stream_capturing()
    return _kept.get((program, values, call, device), None if waits else make)


def _bytes_of(table: torch.Tensor) -> bytes:
    """The numbers of ``table``, copied: its owner may resize it, which numpy would forbid."""
    plain = table.resolve_neg().clone(memory_format=torch.contiguous_format)
    return plain.cpu().view(-1).view(torch.uint8).numpy().tobytes()


def _reads_within(program: ScoreProgram, tables, sizes: tuple[int, int, int, int]) -> bool:
    """Whether tables are read at b, h, q_idx and k_idx alone, and have elements for all.

    Only then torch, which makes the lists, and kernels, which clamp an index, read the same ones.
    """
    extents = dict(enumerate(sizes))  # the symbols are the first instructions
    return all(
        place in extents and extents[place] <= extent
        for op, *operands in program.instructions
        if op == "load"
        for place, extent in zip(operands[1:], tables[operands[0]].shape, strict=True)
    )


def _all_hidden(
    mask_mod: Callable, seqlen_q: int, seqlen_k: int, causal: bool, has_left: bool,
    has_right: bool, alignment: str, left: int, right: int,
) -> Callable:  # fmt: skip
    """``mask_mod`` with what the call's own causal mask and window hide: lists replace these."""
    shift = seqlen_k - seqlen_q if alignment == "bottom_right" else 0

    def seen(b, h, q_idx, k_idx):
        distance = k_idx - q_idx - shift
        found = mask_mod(b, h, q_idx, k_idx)
        if causal:
            found = found & (distance <= 0)
        if has_left:
            found = found & (distance >= -left)
        if has_right:
            found = found & (distance <= right)
        return found

    return seen
