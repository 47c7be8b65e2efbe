"""Block lists that a call with a mask_mod alone gets, made once for what the function says."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from threading import Lock

import torch
from torch._C import _is_tracing

from ..problem.block_maker import block_mask, reads
from ..problem.block_mask import BlockMask
from ..runtime.kernels import cannot_compile
from ..score.program import ScoreProgram
from ..score.trace import trace_mask_mod
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
_BLOCK = (128, 128)
_MOST_KEPT = 32


class _Kept:
    """The last answers by key, None among them; a key is all that decides the answer."""

    def __init__(self) -> None:
        self._lock, self._answers = Lock(), OrderedDict()

    def get(self, key, make: Callable[[], BlockMask | None]) -> BlockMask | None:
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
        answer = make()
        with self._lock:
            self._answers[key] = answer
            while len(self._answers) > _MOST_KEPT:
                self._answers.popitem(last=False)
        return answer


_kept = _Kept()


def made_blocks(mask_mod: Callable, q, k, features: tuple, numbers: tuple) -> BlockMask | None:
    """The BlockMask that serves a dense call with ``mask_mod`` faster, None where none does.

    features, numbers: of ``functional.options_of``. The same function of the same values of what it
    captured, on the same sizes, has the same answer in every call, so that equal calls have equal
    bits. On CPUs alone, where numbers are read without waiting for anybody; not where nothing can
    be compiled, and a library may hold the kernel of the mask_mod alone.
    """
    (batch, seqlen_q, heads, _), seqlen_k = q.shape, k.shape[1]
    if seqlen_q * seqlen_k < LEAST_PAIRS or batch * heads < LEAST_HEADS:
        return None
    if not (q.is_cpu and is_readable(q) and not _cannot_compile()) or _is_tracing():
        return None
    program, tables = trace_mask_mod(mask_mod, q.device)
    own = (batch if reads(program, "b") else 1) * (heads if reads(program, "h") else 1)
    if (
        batch * heads < LEAST_HEADS * own
        or sum(x.numel() for x in tables) > MOST_ELEMENTS
        or not all(is_readable(x) and not x.requires_grad for x in tables)
        or not _reads_within(program, tables, (batch, heads, seqlen_q, seqlen_k))
    ):
        return None
    hides = (*features[:3], features[5], *numbers[:2])
    # Copies: the caller may change a table after this call, or resize it.
    tables = tuple(x.resolve_neg().clone(memory_format=torch.contiguous_format) for x in tables)
    values = tuple((x.shape, x.view(-1).view(torch.uint8).numpy().tobytes()) for x in tables)
    key = (program, values, batch, heads, seqlen_q, seqlen_k, hides)

    def make() -> BlockMask | None:
        seen = _all_hidden(mask_mod, seqlen_q, seqlen_k, *hides)
        mask = block_mask(seen, batch, heads, seqlen_q, seqlen_k, _BLOCK, q.device)
        if mask.density > DENSEST:
            return None
        return replace(mask, mask_mod=mask_mod, program=program, tables=tables)

    return _kept.get(key, make)


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


# Asked in each call; looking for packages takes longer than that.
_cannot_compile = cache(cannot_compile)
