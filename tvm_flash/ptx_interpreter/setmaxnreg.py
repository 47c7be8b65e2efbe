"""setmaxnreg: registers moved between the warps of a block (PTX ISA 9.7.19.5)."""

import numpy as np

from .errors import Deadlock, fault
from .opcodes import opcode

FILE = 65536  # 32-bit registers of a multiprocessor


class Pool:
    """How many registers each warp of each block holds.

    A kernel starts with the most that lets its promised blocks share the file, rounded down to 8,
    as ptxas chooses under .maxntid and .minnctapersm; without a bound nothing can be checked."""

    def __init__(self, run):
        self.run = run
        kernel = run.kernel
        self.known = bool(kernel.maxnreg or kernel.maxntid or kernel.reqntid)
        threads = run.threads * (kernel.minnctapersm or 1)
        self.start = kernel.maxnreg or min(FILE // threads // 8 * 8, 255)
        warps = run.threads // 32
        self.held = np.full((run.blocks, warps), self.start, np.int64)
        self.total = self.start * warps
        self.waiting = []
        self.granted = np.zeros(run.lanes // 32, bool)
        run.idle.append(self.retry)

    def change(self, ins, c, count, grow):
        """Warps of `c` ask for `count` registers a thread; those that must wait are parked."""
        warps = self.run.threads // 32
        for warp in c.warps.tolist():
            block, inside = divmod(warp, warps)
            now = int(self.held[block, inside])
            if self.known and ((grow and count < now) or (not grow and count > now)):
                verb = "inc" if grow else "dec"
                raise fault(
                    Deadlock, ins, c, 0, f"setmaxnreg.{verb} {count} of a warp that has {now}",
                    f"The kernel starts with {self.start} registers a thread.",
                )  # fmt: skip
            self._try(ins, warp, block, inside, count)

    def _try(self, ins, warp, block, inside, count):
        others = int(self.held[block].sum()) - int(self.held[block, inside])
        lanes = np.arange(warp * 32, warp * 32 + 32)
        lanes = lanes[self.run.scheduler.alive[lanes]]
        if self.known and others + count > self.total:
            self.run.scheduler.park(lanes, ins)
            self.waiting.append((ins, warp, block, inside, count))
            return False
        self.held[block, inside] = count
        self.run.scheduler.wake(lanes, ins.block + 1)
        return True

    def of_warp(self, warp):
        """Registers a thread that a warp of the run holds now."""
        return int(self.held[divmod(warp, self.run.threads // 32)])

    def retry(self):
        """Let warps go on for which registers have become free."""
        waiting, self.waiting = self.waiting, []
        return any([self._try(*entry) for entry in waiting])


@opcode("setmaxnreg", ends=True, starts=True)
def set_registers(ins, bind):
    """setmaxnreg.inc/.dec.sync.aligned.u32 n: inc waits until the block's pool has them."""
    bind.needs(Pool)
    count, grow = ins.operands[0].value, "inc" in ins.mods
    if count % 8 or not 24 <= count <= 256:
        raise ValueError("the count must be a multiple of 8 from 24 to 256")
    return lambda c: c.run.part(Pool).change(ins, c, count, grow)
