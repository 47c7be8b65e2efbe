"""What a launch executed and moved: instructions, bank conflicts, sectors, bytes."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .load_store import vector_length
from .memory import RAW
from .spaces import STATE, VALID

SECTOR, BANKS = 32, 32


class Touched:
    """Which bytes of a buffer were asked for."""

    def __init__(self, buffer):
        self.flags = np.zeros(-(-buffer.nbytes // 16), np.complex128).view(np.uint8)
        self.raw = {n: self.flags.view(dtype) for n, dtype in RAW.items()}


class Counts:
    """Counters shared by all chunks of a launch."""

    def __init__(self, program):
        self.program = program
        self.block_counts = np.zeros(len(program.blocks), np.int64)
        self.predicated = set()
        self.barriers = self.max_shared = 0
        self.conflicts, self.line_sectors = Counter(), Counter()
        self.sectors = {"read": Counter(), "write": Counter()}
        self.bytes = {"read": Counter(), "write": Counter()}
        self.touched = {"read": {}, "write": {}}
        self.atomics = Counter()
        self.memo = {}

    def global_access(self, access, c, buffer, chosen, item, kind):
        """One warp-wide access to a buffer: items of access.size bytes."""
        if kind == "atomic":
            self.atomics[buffer.name] += len(item) * vector_length(access.ins)
            return
        kind = "write" if kind == "write" else "read"
        warp = c.index >> 5 if chosen is None else c.index[chosen] >> 5
        key = (warp << 44) | item.astype(np.int64)
        key.sort()
        fresh = np.count_nonzero(key[1:] != key[:-1]) + 1
        per_sector = max(SECTOR // access.size, 1).bit_length() - 1
        place = key >> per_sector
        sectors = np.count_nonzero(place[1:] != place[:-1]) + 1
        self.bytes[kind][buffer.name] += fresh * access.size
        self.sectors[kind][buffer.name] += sectors
        self.line_sectors[access.ins.line] += sectors
        self.touch(buffer, item, access.size, kind)

    def touch(self, buffer, item, size, kind):
        """Mark items of a buffer as asked for."""
        flags = self.touched[kind].get(buffer.name)
        if flags is None:
            flags = self.touched[kind][buffer.name] = Touched(buffer)
        flags.raw[size][item] = STATE[VALID, size]

    def bulk(self, line, buffer, sectors, nbytes, kind):
        """A bulk copy moved whole rows."""
        self.bytes[kind][buffer.name] += nbytes
        self.sectors[kind][buffer.name] += sectors
        self.line_sectors[line] += sectors

    def shared_access(self, access, c, item):
        """One warp-wide access to shared memory: wavefronts beyond the least possible."""
        first = int(item[0])
        aligned = first - first % (128 // access.size)
        relative = item - aligned
        key = access.size, relative.tobytes(), None if c.whole else c.index.tobytes()
        extra = self.memo.get(key)
        if extra is None:
            extra = self.memo[key] = extra_wavefronts(relative * access.size, access.size, c.index)
        if extra:
            self.conflicts[access.ins.line] += extra

    def executed(self):
        """(warp-level executions per opcode, set of executed lines)."""
        opcodes, lines = Counter(), set()
        for block in self.program.blocks:
            times = int(self.block_counts[block.number])
            for at in range(block.first, block.last if times else block.first):
                ins = self.program.kernel.instructions[at]
                if ins.predicate is None or at in self.predicated or ins.opcode.startswith("bra"):
                    opcodes[ins.opcode] += times
                    lines.add(ins.line)
        return opcodes, lines


def extra_wavefronts(offset, size, index):
    """Wavefronts beyond one per phase, for byte offsets of lanes; 8 lanes of 16 bytes make a
    phase, 16 of 8, 32 of up to 4. Lanes that read one word share it."""
    lanes = 32 if size <= 4 else 128 // size
    phase = index // lanes
    words = (offset[:, None] >> 2) + np.arange(max(size // 4, 1))
    words -= min(int(words.min()) // BANKS * BANKS, 0)
    span = -(-int(words.max() + 1) // BANKS) * BANKS
    unique = np.unique(phase[:, None] * span + words)
    slot = np.unique(unique // span, return_inverse=True)[1]
    per_bank = np.bincount(slot * BANKS + unique % BANKS, minlength=(slot.max() + 1) * BANKS)
    return int((per_bank.reshape(-1, BANKS).max(axis=1) - 1).sum())


@dataclass
class Report:
    """Counts of one launch.

    instructions: executions by warps, per opcode. lines: PTX lines executed.
    bank_conflicts: extra wavefronts per PTX line. sectors: {"read"|"write": {buffer: 32-byte
    sectors that warps asked for}}, sectors_by_line the same per PTX line. bytes_read,
    bytes_written: per buffer, bytes asked for, each byte once per warp and instruction.
    unique: {"read"|"write": {buffer: distinct bytes touched}}. atomics: numbers updated, per
    buffer. barriers: warps that arrived at barriers of the block. max_shared: bytes."""

    instructions: Counter
    lines: set
    bank_conflicts: Counter
    sectors: dict
    sectors_by_line: Counter
    bytes_read: Counter
    bytes_written: Counter
    unique: dict
    atomics: Counter
    barriers: int
    max_shared: int

    @property
    def coverage(self):
        """(opcodes executed, PTX lines executed)."""
        return set(self.instructions), self.lines

    @property
    def total_bank_conflicts(self):
        """Extra wavefronts of the launch."""
        return self.bank_conflicts.total()

    @classmethod
    def of(cls, counts):
        """The report of finished counters."""
        opcodes, lines = counts.executed()
        unique = {
            kind: {name: int(np.count_nonzero(t.flags)) for name, t in touched.items()}
            for kind, touched in counts.touched.items()
        }
        return cls(
            opcodes, lines, counts.conflicts, counts.sectors, counts.line_sectors,
            counts.bytes["read"], counts.bytes["write"], unique, counts.atomics, counts.barriers,
            counts.max_shared,
        )  # fmt: skip
