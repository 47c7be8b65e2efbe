"""Block masks of a mask_mod, evaluated row of blocks by row of blocks, and of torch's BlockMask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from ..score.program import operands
from ..score.trace import trace_mask_mod
from .block_mask import FULL, HIDDEN, PARTIAL, BlockMask, mask_of_lists, visits_of
from .field_checks import check_block

# Pairs that are looked at together: their intermediate results stay in a core's cache.
_PAIRS = 1 << 18


def block_mask(
    mask_mod: Callable,
    batch: int,
    heads: int,
    seqlen_q: int | Sequence[int],
    seqlen_k: int | Sequence[int],
    block: tuple[int, int] = (128, 128),
    device: torch.device | str | None = None,
) -> BlockMask:
    """The blocks in which ``mask_mod(b, h, q_idx, k_idx)`` shows a pair, for ``attention``.

    Each pair is looked at once, in parts of a row of blocks, so that no S x S array is made;
    entries or heads that mask_mod does not tell apart share their lists. seqlen_q, seqlen_k: for
    packed sequences both the lengths of each, ints or a tensor (``cu_seqlens_q.diff()``); mask_mod
    is then called with positions inside a sequence. block: (queries, keys), multiples of 16.
    device: of the tensors that are attended to, and of what mask_mod captures (None: that of
    torch's default).

    Raises ValueError, TypeError for sizes that are none, UnsupportedSpec as ``attention`` does.
    """
    block = check_block("block", block)
    _check_sizes({"batch": batch, "heads": heads}, 1)
    if isinstance(seqlen_q, int) and isinstance(seqlen_k, int):
        _check_sizes({"seqlen_q": seqlen_q, "seqlen_k": seqlen_k}, 1)
        lengths = [(seqlen_q, seqlen_k)]
    else:
        seqlen_q, seqlen_k = (
            _of_each(name, x, batch) for name, x in (("seqlen_q", seqlen_q), ("seqlen_k", seqlen_k))
        )
        lengths = list(zip(seqlen_q, seqlen_k, strict=True))
    device = torch.empty(0, device=device).device
    program, tables = trace_mask_mod(mask_mod, device)
    entries = batch if reads(program, "b") else 1
    own_heads = heads if reads(program, "h") else 1
    if len(lengths) < entries:
        lengths = lengths * entries
    states = (
        part
        for b, own in enumerate(lengths)
        for h in range(own_heads)
        for part in _rows_of_blocks(mask_mod, b, h, *own, block, device)
    )
    counts, visited = visits_of(states)
    rows = [-(-own // block[0]) for own, _ in lengths for _ in range(own_heads)]
    counts = pad_sequence(counts.split(rows), batch_first=True)
    return mask_of_lists(
        seqlen_q, seqlen_k, block, counts.view(len(lengths), own_heads, -1), visited,
        **_functions(mask_mod, program, tables, visited),
    )  # fmt: skip


def _check_sizes(sizes: Mapping[str, int], least: int) -> None:
    for name, size in sizes.items():
        if type(size) is not int:
            raise TypeError(f"{name}={size!r:.60} must be an int")
        if size < least:
            raise ValueError(f"{name}={size} must be at least {least}")


def _of_each(name: str, lengths: Sequence[int] | torch.Tensor, batch: int) -> tuple[int, ...]:
    """The length of each of ``batch`` sequences."""
    if not isinstance(lengths, Sequence | torch.Tensor):
        raise TypeError(
            f"{name}={lengths!r:.60} must be an int, or the lengths of {batch} sequences: both are"
        )
    found = tuple(lengths.tolist() if isinstance(lengths, torch.Tensor) else lengths)
    if len(found) != batch:
        raise ValueError(f"{name} has the lengths of {len(found)} sequences, {batch=}")
    _check_sizes({f"{name}[{n}]": own for n, own in enumerate(found)}, 0)
    if not any(found):
        raise ValueError(f"{name} has no positions at all: such a batch needs no block mask")
    return found


def from_torch(mask) -> BlockMask:
    """A BlockMask of torch.nn.attention.flex_attention's, of its lists and its mask_mod.

    Raises ValueError for blocks whose sizes kernels have no tiles for, or that are not there.
    """
    seqlen_q, seqlen_k = mask.seq_lengths
    block = check_block("BLOCK_SIZE of the BlockMask", tuple(mask.BLOCK_SIZE))
    keys = -(-seqlen_k // block[1])
    entries, heads, rows = mask.kv_num_blocks.shape
    states = torch.zeros(
        entries * heads * rows, keys, dtype=torch.uint8, device=mask.kv_num_blocks.device
    )
    for state, counts, lists in (
        (PARTIAL, mask.kv_num_blocks, mask.kv_indices),
        (FULL, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        if counts is not None:
            if (counts > lists.shape[-1]).any():
                raise ValueError(
                    f"the BlockMask counts {int(counts.max())} blocks of keys, its lists have room "
                    f"for {lists.shape[-1]}"
                )
            listed = torch.arange(lists.shape[-1], device=lists.device) < counts[..., None]
            row, place = listed.flatten(0, 2).nonzero(as_tuple=True)
            blocks = lists.flatten(0, 2)[row, place].long()
            if ((blocks < 0) | (blocks >= keys)).any():
                raise ValueError(f"the BlockMask lists blocks of keys outside 0..{keys - 1}")
            states[row, blocks] = state
    counts, visited = visits_of([states])
    program, tables = trace_mask_mod(mask.mask_mod, states.device)
    return mask_of_lists(
        seqlen_q, seqlen_k, block, counts.view(entries, heads, rows), visited,
        **_functions(mask.mask_mod, program, tables, visited),
    )  # fmt: skip


def _functions(mask_mod: Callable, program, tables, visited: torch.Tensor) -> dict:
    """What hides pairs: nothing where no block is partial."""
    if not (visited % 2).any():
        return {}
    return {"mask_mod": mask_mod, "program": program, "tables": tuple(tables)}


def reads(program, symbol: str) -> bool:
    """Whether the result of ``program`` depends on ``symbol``."""
    number = program.instructions.index((symbol,))
    return any(number in operands(instruction) for instruction in program.instructions)


def _rows_of_blocks(
    mask_mod: Callable, b: int, h: int, seqlen_q: int, seqlen_k: int, block: tuple[int, int], device
) -> Iterator[torch.Tensor]:
    """The states of the blocks of one head, a row of blocks (1, blocks of keys) at a time."""
    entry, head = (torch.tensor(n, device=device) for n in (b, h))
    keys = torch.arange(seqlen_k, device=device)
    parts = keys.split(max(_PAIRS // (block[0] * block[1]), 1) * block[1])
    for first in range(0, seqlen_q, block[0]):
        rows = torch.arange(first, min(first + block[0], seqlen_q), device=device)[:, None]
        states = []
        for own in parts:
            seen = mask_mod(entry, head, rows, own).expand(len(rows), len(own))
            some = _by_block(seen.any(0), block[1], False).any(1)
            every = _by_block(seen.all(0), block[1], True).all(1)
            states.append(torch.where(every, FULL, torch.where(some, PARTIAL, HIDDEN)))
        yield torch.cat(states)[None]


def _by_block(seen: torch.Tensor, block: int, padding: bool) -> torch.Tensor:
    """``seen`` of some keys as (blocks, block), the last block filled up with ``padding``."""
    missing = -len(seen) % block
    return torch.nn.functional.pad(seen, (0, missing), value=padding).view(-1, block)
