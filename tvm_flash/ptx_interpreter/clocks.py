"""Who knows what: vector clocks of the threads of every block (happens-before of PTX ISA 8).

Time is one counter per run that every release advances. clock[b, u, v] is the time before which
the accesses of thread v are ordered before what thread u does next. Columns past the threads stand
for copy engines, one per mbarrier. A barrier of all threads moves `base`, not T x T clocks."""

import numpy as np

from .errors import LaunchError

ENGINES = 48
LAST = 1 << 24


class Clocks:
    """Clocks of one run; `proxy` clocks say what the asynchronous proxy may see."""

    def __init__(self, run, proxies):
        self.run, self.threads = run, run.threads
        self.columns = run.threads + ENGINES
        shape = (run.blocks, run.threads, self.columns)
        self.now = 1
        self.base = np.ones(run.blocks, np.int32)
        self.warp_base = np.ones((run.blocks, run.threads // 32), np.int32)
        self.clock = np.zeros(shape, np.int32)
        self.proxy = np.zeros(shape, np.int32) if proxies else None
        self.pending = {}

    def _matrices(self):
        return (self.clock,) if self.proxy is None else (self.clock, self.proxy)

    def tick(self):
        """Everything so far is earlier than everything from now on."""
        self.now += 1
        if self.now >= LAST:
            raise LaunchError("more synchronisation than the race check can number: launch less")

    def ordered(self, block, thread, stamp, column):
        """Whether accesses (stamp, column) come before the next ones of `thread`, elementwise."""
        direct = (stamp < self.base[block]) & (column < self.threads)
        return direct | (stamp < self.clock[block, thread, column]) | (column == thread)

    def visible_to_proxy(self, block, thread, stamp, column):
        """Whether generic writes (stamp, column) are fenced for asynchronous use by `thread`."""
        return stamp < self.proxy[block, thread, column]

    def _rows(self, matrix, block, thread):
        """The knowledge of some threads, their own accesses included: [threads, columns]."""
        rows = matrix[block, thread].copy()
        if matrix is self.clock:
            rows[:, : self.threads] = np.maximum(rows[:, : self.threads], self.base[block][:, None])
            rows[np.arange(len(thread)), thread] = self.now + 1
        return rows

    def release(self, key, c):
        """The lanes of `c` publish what they know under (key, block)."""
        thread = c.index % self.threads
        for which, matrix in enumerate(self._matrices()):
            rows = self._rows(matrix, c.block, thread)
            for block in np.unique(c.block):
                self._publish((key, int(block), which), rows[c.block == block].max(axis=0))
        self.tick()

    def _publish(self, key, row):
        old = self.pending.get(key)
        self.pending[key] = row if old is None else np.maximum(old, row)

    def publish_engine(self, key, block, engine):
        """A copy engine publishes what it wrote so far under (key, block)."""
        row = np.zeros(self.columns, np.int32)
        row[self.threads + engine] = self.now + 1
        for which in range(len(self._matrices())):
            self._publish((key, block, which), row)
        self.tick()

    def acquire(self, key, block, thread):
        """Threads of one block learn what was published under (key, block)."""
        for which, matrix in enumerate(self._matrices()):
            row = self.pending.get((key, block, which))
            if row is not None:
                matrix[block, thread] = np.maximum(matrix[block, thread], row)

    def rename(self, key, other, block):
        """What was published under `key` is from now on under `other`."""
        for which in range(len(self._matrices())):
            row = self.pending.pop((key, block, which), None)
            if row is not None:
                self._publish((other, block, which), row)

    def forget(self, key, block):
        """Drop what was published under (key, block)."""
        for which in (0, 1):
            self.pending.pop((key, block, which), None)

    def everyone(self, block):
        """All threads of a block met."""
        self.tick()
        self.base[block] = self.now
        self.warp_base[block] = self.now
        engines = self.clock[block, :, self.threads :]
        self.clock[block, :, self.threads :] = engines.max(axis=0)
        if self.proxy is not None:
            self.proxy[block] = self.proxy[block].max(axis=0)

    def warps_met(self, index):
        """All lanes of whole warps, [warps * 32], met."""
        groups = index.reshape(-1, 32)
        self._met(groups)
        first = groups[:, 0]
        self.warp_base[first // self.threads, first % self.threads // 32] = self.now

    def lanes_met(self, index):
        """Some lanes of one warp met."""
        self._met(index[None, :])

    def _met(self, groups):
        block, thread = groups // self.threads, groups % self.threads
        for matrix in self._matrices():
            best = matrix[block, thread].max(axis=1)
            if matrix is self.clock:
                np.put_along_axis(best, thread, self.now + 1, axis=1)
            matrix[block, thread] = best[:, None]
        self.tick()

    def fence_proxy(self, c):
        """The lanes of `c` make all they know visible to the asynchronous proxy."""
        thread = c.index % self.threads
        rows = self._rows(self.clock, c.block, thread)
        self.proxy[c.block, thread] = np.maximum(self.proxy[c.block, thread], rows)
        self.tick()
