"""Which entry, head and rows a block takes: by division, or by a search where entries differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import TIR, Sequences, int32, sequences_of
from ...problem.arithmetic import INTS, Arithmetic
from ...problem.sequences import PackedSequences, kind_of
from ...problem.work import Slots, Work, slot_count
from .arch import FULL_WARP, WARP
from .builder import CudaKernel, assign, leave_unless, loop_while
from .program import Grid, blocks


@dataclass(frozen=True)
class Place:
    """What a block takes: registers, but for ``first``, the expression of its first row.

    sequences: those of the call, with the entry's span in registers where entries differ. rows,
    keys: the entry's queries and keys, int32. part: of the keys.
    """

    entry: Any
    head: Any
    first: Any
    sequences: Sequences
    rows: Any
    keys: Any
    part: Any = 0


def query_work(sizes: Mapping[str, Any], block_q: int) -> Work:
    """A block for each query tile of each head, the last rows of a head or an entry first.

    sizes: of a call by name. Where entries differ there is one for each of their slots.
    """
    return Work(_axes("q", sizes, "H", block_q), last_first=True)


def key_work(sizes: Mapping[str, Any], block_k: int) -> Work:
    """A block for each key tile of each key/value head, or for each slot of them.

    Under a causal mask the first keys are seen by most rows: those blocks go out first.
    """
    return Work(_axes("k", sizes, "Hk", block_k))


def row_work(sizes: Mapping[str, Any], rows: int) -> Work:
    """A block for each ``rows`` queries of each head, whatever entry they are of."""
    return query_work(kind_of(sizes).as_equal(sizes), rows)


def group_work(sizes: Mapping[str, Any], rows: int, parts: Any = 1) -> Work:
    """A block for each ``rows`` rows of each key/value head and each part of its keys.

    Each query has a row for each query head of the group.
    """
    a = _arithmetic_of(sizes)
    axes = _axes("q", sizes, "Hk", rows, each=a.quotient(sizes["H"], sizes["Hk"]))
    return Work({"part": parts, **axes}, last_first=True)


def query_grid(block_q: int) -> Grid:
    """The launch of ``query_work``, whose places ``find_query_tile`` finds."""
    return lambda sizes: (query_work(sizes, block_q).count, 1, 1)


def key_grid(block_k: int) -> Grid:
    """The launch of ``key_work``, whose places ``find_key_tile`` finds."""
    return lambda sizes: (key_work(sizes, block_k).count, 1, 1)


def row_grid(rows: int) -> Grid:
    """The launch of ``row_work``, whose places ``find_row`` finds."""
    return lambda sizes: (row_work(sizes, rows).count, 1, 1)


def group_grid(rows: int, split: bool) -> Grid:
    """The launch of ``group_work``, of all parts or of none, whose places ``find_group`` finds."""
    return lambda sizes: (group_work(sizes, rows, sizes["splits"] if split else 1).count, 1, 1)


def find_query_tile(kernel: CudaKernel, block_q: int) -> Place:
    """The place of this block in ``query_work``. A block without a tile ends here."""
    work, sequences = query_work(kernel.sig.sizes, block_q), sequences_of(kernel.sig)
    if not kernel.sig.spans:
        return _at(kernel, work, block_q, sequences)
    return _search(kernel, work, sequences, sequences.query_slots(block_q), of_keys=False)


def find_key_tile(kernel: CudaKernel, block_k: int) -> Place:
    """The place of this block in ``key_work``. A block without a tile ends here."""
    work, sequences = key_work(kernel.sig.sizes, block_k), sequences_of(kernel.sig)
    if not kernel.sig.spans:
        return _at(kernel, work, block_k, sequences)
    return _search(kernel, work, sequences, sequences.key_slots(block_k), of_keys=True)


def packed_row_work(sizes: Mapping[str, Any], parts: int) -> Work:
    """A warp for each of so many parts of each packed row, or of a slot without a row."""
    rows = sizes["total_q"]
    slots = slot_count(sizes["B"], rows, 1, INTS if isinstance(rows, int) else TIR)
    return Work({"slot": slots, "part": parts})


def find_packed_row(kernel: CudaKernel, parts: int) -> Place:
    """The place of this warp in ``packed_row_work``, its part as ``head``.

    A warp without a row, or whose row has no key of the same number, ends here.
    """
    work, sequences = packed_row_work(kernel.sig.sizes, parts), sequences_of(kernel.sig)
    worker = kernel.scalar(kernel.block * kernel.num_warps + kernel.warp)
    slots, place = sequences.query_slots(1), replace(work, arithmetic=TIR).place(worker)
    slot = kernel.scalar(place["slot"], name="slot")
    entry = _uniform(kernel, _last_begun(kernel, slots, slot))
    span = tuple(_uniform(kernel, int32(number)) for number in sequences.span(entry))
    sequences = sequences.holding(span)
    rows, keys = (kernel.scalar(length) for length in sequences.lengths(entry))
    row = kernel.scalar(int32(slot - slots.begin(entry)), name="row")
    leave_unless(tirx.And(row >= 0, row < tirx.min(rows, keys)))
    return Place(entry, kernel.scalar(place["part"]), row, sequences, rows, keys)


def find_row(kernel: CudaKernel, rows: int) -> Place:
    """The place of this block in ``row_work``: where entries differ, as if all were one."""
    sig = kernel.sig
    *_, sequences = sequences_of(sig).every_query(sig.batch)
    return _at(kernel, row_work(sig.sizes, rows), rows, sequences)


def find_group(kernel: CudaKernel, rows: int, group, split: bool) -> Place:
    """The place of this block in ``group_work``. A block without a row ends here.

    group: query heads of one, a register.
    """
    sig, sequences = kernel.sig, sequences_of(kernel.sig)
    work = group_work(sig.sizes, rows, sig.sizes["splits"] if split else 1)
    if not sig.spans:
        return _at(kernel, work, rows, sequences)
    slots = sequences.query_slots(rows, each=tirx.Cast("int64", group))
    return _search(kernel, work, sequences, slots, of_keys=False, each=group)


def _axes(of: str, sizes: Mapping[str, Any], heads: str, block: int, each: Any = 1) -> dict:
    arithmetic = _arithmetic_of(sizes)
    return kind_of(sizes).axes(of, sizes, sizes[heads], block, each, arithmetic)


def _arithmetic_of(sizes: Mapping[str, Any]) -> Arithmetic:
    return INTS if isinstance(sizes["H"], int) else TIR


def _at(kernel: CudaKernel, work: Work, block: int, sequences: Sequences) -> Place:
    place = _place(kernel, work, "tile")
    head, entry = kernel.scalar(place["head"]), kernel.scalar(place["entry"])
    lengths = map(int32, sequences.lengths(entry))
    part = place.get("part", 0)
    return Place(entry, head, place["tile"] * block, sequences, *lengths, part)


def _search(
    kernel: CudaKernel, work: Work, sequences: PackedSequences, slots: Slots, of_keys: bool,
    each: Any = 1,
) -> Place:  # fmt: skip
    """The place of this block's slot, whose tile is of queries or, with ``of_keys``, of keys; each
    of these makes ``each`` rows of tiles."""
    place = _place(kernel, work, "slot")
    head, slot = kernel.scalar(place["head"]), kernel.scalar(place["slot"], name="slot")
    entry = _uniform(kernel, _last_begun(kernel, slots, slot))
    span = sequences.span(entry)
    if "k" not in kernel.buffers:  # its keys are nobody's, and nothing says where they end
        span = (*span[:2], 0, 0)
    sequences = sequences.holding(tuple(_uniform(kernel, int32(number)) for number in span))
    rows, keys = (kernel.scalar(length) for length in sequences.lengths(entry))
    number = _uniform(kernel, int32(slot - slots.begin(entry)))
    tiles = kernel.scalar(blocks((keys if of_keys else rows) * each, slots.block), name="tiles")
    leave_unless(tirx.And(number >= 0, number < tiles))
    if work.last_first:
        number = tiles - 1 - number
    part = place.get("part", 0)
    return Place(entry, head, number * slots.block, sequences, rows, keys, part)


def _last_begun(kernel: CudaKernel, slots: Slots, slot):
    """A register with the last entry that begins at ``slot`` or before; the first, if none does.

    Each lane of a warp tries an entry, so that a round leaves a 32nd of them: loads that wait for
    one another are what a search takes. Entries out of order may give any of them.
    """
    entry, past = kernel.scalar(0), kernel.scalar(int32(slots.entries), name="past")
    with loop_while(past - entry > 1):
        step = kernel.scalar(blocks(past - entry, WARP), name="step")
        tried = kernel.scalar(entry + (kernel.lane + 1) * step, name="tried")
        begin = slots.begin(tirx.min(tried, past - 1))
        begun = tirx.And(tried < past, begin <= tirx.Cast("int64", slot))
        assign(entry, entry + _lanes_where(begun) * step)
        assign(past, tirx.min(past, entry + step))
    return entry


def _lanes_where(condition):
    """In how many lanes of the warp the condition holds, int32."""
    source = (
        "__device__ __forceinline__ int tvm_flash_lanes(bool x)"
        " { return __popc(__ballot_sync(0xffffffffu, x)); }"
    )
    return T.cuda.func_call("tvm_flash_lanes", condition, source_code=source, return_type="int32")


def _uniform(kernel: CudaKernel, value):
    """A register that the compiler knows to be the same in all lanes of a warp: it was loaded.

    Addresses and numbers made of it then take uniform registers, as those of a block's number do.
    """
    value = tirx.const(value, "int32") if isinstance(value, int) else value
    return kernel.scalar(T.tvm_warp_shuffle(T.uint32(FULL_WARP), value, 0, WARP, WARP))


def _place(kernel: CudaKernel, work: Work, last: str) -> dict:
    """What this block takes of ``work``, int32; the extent of axis ``last`` is in a register."""
    axes = {name: int32(extent) for name, extent in work.axes.items()}
    axes[last] = kernel.scalar(axes[last])
    return replace(work, axes=axes, arithmetic=TIR).place(kernel.block)
