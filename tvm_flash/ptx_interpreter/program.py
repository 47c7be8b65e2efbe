"""A kernel ready to run: basic blocks of closures, decoded once per kernel and checks."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .decode import Binder, decode
from .granules import smallest_shared
from .lanes import VIEWS
from .opcodes import ENDS, STARTS, key_of
from .polling import polling_blocks
from .warpgroup import guard


@dataclass
class Block:
    """A basic block; `end` is the closure of an instruction that moves lanes, or None."""

    number: int
    first: int
    last: int
    body: list = field(default_factory=list)
    end: object = None
    touched: dict = field(default_factory=dict)
    rows: list = field(default_factory=list)


class Program:
    """Basic blocks in the order of the text, and the rows their closures use."""

    def __init__(self, kernel, checks):
        for index, ins in enumerate(kernel.instructions):
            ins.index = index
        self.kernel = kernel
        kernel.shared_granule = smallest_shared(kernel)
        self.bind = Binder(kernel, checks)
        self.blocks, self.block_at = _blocks(kernel)
        self.bind.block_of_label = {
            name: self.block_at[at] if at < len(kernel.instructions) else len(self.blocks)
            for name, at in kernel.labels.items()
        }
        self.polls = polling_blocks(kernel, self.blocks, self.bind.block_of_label)
        for block in self.blocks:
            self._decode(block)
        if self.bind.wgmma_rows:
            for block in self.blocks:
                self._guard(block)

    def _decode(self, block):
        for at in range(block.first, block.last):
            ins = self.kernel.instructions[at]
            ins.block = block.number
            closure, rows = decode(ins, self.bind)
            block.rows.append((ins, list(rows)))
            if key_of(ins) in ENDS:
                block.end = closure
            else:
                block.body.append(closure)
        block.touched = _arrays([row for _, rows in block.rows for row in rows])

    def _guard(self, block):
        """Put checks of wgmma registers around the instructions that touch them."""
        body, segment, pending = [], [], []

        def close():
            before, after = guard(segment[:], self.bind.wgmma_rows)
            if before:
                body.append(before)
            body.extend(pending)
            if after:
                body.append(after)
            segment.clear()
            pending.clear()

        for closure, entry in zip(block.body, block.rows, strict=False):
            if getattr(closure, "wgmma", False):
                close()
                body.append(closure)
            else:
                segment.append(entry)
                pending.append(closure)
        close()
        block.body = body


def _arrays(touched):
    result = {}
    for width in VIEWS:
        rows = sorted({row for w, row, _ in touched if w == width})
        written = sorted({row for w, row, out in touched if w == width and out})
        if rows:
            result[width] = np.array(rows), np.array(written, np.int64)
    return result


def _blocks(kernel):
    count = len(kernel.instructions)
    starts = {0, *kernel.labels.values()}
    for at, ins in enumerate(kernel.instructions):
        key = key_of(ins)
        if key in ENDS:
            starts.add(at + 1)
        if key in STARTS:
            starts.add(at)
    edges = [*sorted(s for s in starts if s < count), count]
    blocks, block_at = [], {}
    for first, last in pairwise(edges):
        block_at[first] = len(blocks)
        blocks.append(Block(len(blocks), first, last))
    return blocks, block_at


def program_of(kernel, checks):
    """The program of a kernel under these checks, decoded on first use."""
    if checks not in kernel.programs:
        kernel.programs[checks] = Program(kernel, checks)
    return kernel.programs[checks]
