"""What each task of a CPU form takes, in order: of expressions in kernels, of ints in models."""

from __future__ import annotations

from ....problem.arithmetic import INTS, Arithmetic
from ....problem.work import Work


def groups_of_tile(share, most: int, arithmetic: Arithmetic = INTS, step: int = 1):
    """How many groups of rows a tile of the forward has, which share staged keys.

    At most ``most``, at least 1, and no more than ``share``: all groups over the tasks wanted.
    step: tiles have a multiple of so many groups, the rows of a listed block, or one group.
    """
    if step > 1:
        share = arithmetic.quotient(share, step) * step
    return arithmetic.maximum(arithmetic.minimum(share, most), 1)


def tile_work(batch, heads, tiles, arithmetic: Arithmetic = INTS) -> Work:
    """The forward: a task for each tile of query rows.

    Last rows first: with a causal mask they take longest.
    """
    axes = {"entry": batch, "head": heads, "tile": tiles}
    return Work(axes, last_first=True, arithmetic=arithmetic)


def chunk_work(chunks, head_blocks, arithmetic: Arithmetic = INTS) -> Work:
    """The split forward: a task for each chunk of keys and tile of packed rows, and some heads.

    Heads of a chunk go side by side, as their keys lie.
    """
    return Work({"slot": chunks, "head": head_blocks}, arithmetic=arithmetic)


def heads_of_task(chunks, kv_heads, most: int, tasks, arithmetic: Arithmetic = INTS):
    """How many key/value heads a task of the split forward takes, whose keys lie side by side.

    At most ``most``, and fewer where there would be less than so many ``tasks``.
    """
    share = arithmetic.quotient(chunks * kv_heads, tasks)
    return arithmetic.maximum(arithmetic.minimum(share, arithmetic.minimum(most, kv_heads)), 1)


def dealt_work(batch, kv_heads, copies, arithmetic: Arithmetic = INTS) -> Work:
    """The backward: ``copies`` tasks a head, to which its key tiles are dealt out in turn."""
    return Work({"entry": batch, "head": kv_heads, "part": copies}, arithmetic=arithmetic)
