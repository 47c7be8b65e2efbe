"""Races on shared memory: the last write and the last reads of every granule of bytes."""

import numpy as np

from .clocks import LAST, Clocks
from .errors import AsyncHazard, SharedRace, fault
from .kernel import ACQUIRE, RELEASE

COLUMN, ATOMIC, STAMP = 2047, 2048, 12  # packed write: stamp << 12 | atomic << 11 | column
# packed read: stamp << 6 | lane, or MANY lanes of the warp, or one stands for all lanes
# of the warp (ANY) or of the warpgroup (GROUP)
MANY, ANY, GROUP = 32, 33, 34
IN_FLIGHT_STAMP = LAST  # the stamp of a read that no wait has ended yet
HINT = "A barrier (or the arrive and wait of an mbarrier) is missing between the two."


class SharedRaces:
    """Shadow of the shared memory of all blocks of a run."""

    def __init__(self, run, proxies):
        self.run, self.clocks = run, Clocks(run, proxies)
        self.size = run.kernel.shared_granule
        self.warps = run.threads // 32
        count = len(run.shared.bytes) // self.size
        self.writes = np.zeros(count, np.int64)
        self.reads = np.zeros(count * self.warps, np.int32)
        self.steps = {}

    def access(self, access, c, item, kind, items=None):
        """Check and record an access of the lanes of `c`: read, collective, write or atomic."""
        places = self._places(access, item)
        thread = c.index % self.run.threads
        ordering = access.ins.ordering if kind != "write" or items is not None else ()
        if ordering:
            self._strong(access, c, places, thread, item, kind, ordering)
            return
        self._check_writes(access, c, places, thread, kind)
        if kind in ("read", "collective"):
            self._record_read(places, c, thread, kind == "collective")
            return
        self._check_reads(access, c, places, thread, kind)
        self._record_write(places, c, thread, kind)
        if kind == "write":
            self._check_collisions(access, c, places, thread, item, items)

    def _strong(self, access, c, places, thread, item, kind, ordering):
        """Relaxed, acquire and release accesses: like atomics, and they may order threads."""
        self._check_writes(access, c, places, thread, "atomic")
        if ordering & ACQUIRE:
            for place, block, one in zip(item.tolist(), c.block.tolist(), thread, strict=True):
                self.clocks.acquire(("flag", place), block, np.array([one]))
        if kind != "read":
            self._check_reads(access, c, places, thread, "atomic")
            self._record_write(places, c, thread, "atomic")
        if ordering & RELEASE:
            for place in np.unique(item).tolist():
                self.clocks.release(("flag", place), c)

    def _places(self, access, item):
        count = max(access.size // self.size, 1)
        if count not in self.steps:
            self.steps[count] = np.arange(count)
        return item[:, None] * count + self.steps[count]

    def _check_writes(self, access, c, places, thread, kind):
        packed = self.writes.take(places)
        stamp = packed >> STAMP
        if packed.max() == 0:
            return
        base = self.clocks.base[c.block][:, None]
        old = (stamp < base) & ((packed & COLUMN) < self.run.threads)
        if old.all():
            return
        i, j = np.nonzero(~old)
        value = packed[i, j]
        fine = self.clocks.ordered(c.block[i], thread[i], value >> STAMP, value & COLUMN)
        if kind == "atomic":
            fine |= (value & ATOMIC) != 0
        if not fine.all():
            at = int(np.flatnonzero(~fine)[0])
            self._report(access, c, places, i[at], j[at], kind, int(value[at]) & COLUMN, "write")

    def _check_reads(self, access, c, places, thread, kind):
        columns = places[:, :, None] * self.warps + np.arange(self.warps)
        packed = self.reads.take(columns)
        base = self.clocks.base[c.block][:, None, None]
        recent = (packed >> 6) >= base
        if not recent.any():
            return
        i, j, warp = np.nonzero(recent)
        key = ((c.index[i] * self.warps + warp) << 31) | packed[i, j, warp]
        first = np.unique(key, return_index=True)[1]
        i, j, warp = i[first], j[first], warp[first]
        value = packed[i, j, warp]
        fine = self._reads_ordered(c.block[i], thread[i], value >> 6, value & 63, warp)
        if not fine.all():
            at = int(np.flatnonzero(~fine)[0])
            lane = int(value[at]) & 63
            other = int(warp[at]) * 32 + (lane if lane < MANY else 0)
            if value[at] >> 6 >= IN_FLIGHT_STAMP:
                self._in_flight(access, c, places, i[at], j[at], other)
            self._report(access, c, places, i[at], j[at], kind, other, "read")

    def _reads_ordered(self, block, thread, stamp, lane, warp):
        """Whether reads by lanes of warps come before what the threads do next."""
        columns = warp[:, None] * 32 + np.arange(32)
        known = self.clocks.ordered(block[:, None], thread[:, None], stamp[:, None], columns)
        one = known[np.arange(len(lane)), np.minimum(lane, 31)]
        many = np.where(lane == ANY, known.any(axis=1), known.all(axis=1))
        for at in np.flatnonzero(lane == GROUP):
            team = warp[at] // 4 * 128 + np.arange(128)
            known = self.clocks.ordered(block[at], thread[at], stamp[at], team)
            many[at] = known.any()
        return np.where(lane < MANY, one, many) & (stamp < IN_FLIGHT_STAMP)

    def _record_read(self, places, c, thread, collective):
        """A lane's read; or, when the warp reads as one, a read that each lane speaks for."""
        warp, lane = thread >> 5, (thread & 31).astype(np.int32)
        if collective:
            lane[:] = ANY
        columns = places * self.warps + warp[:, None]
        old = self.reads.take(columns)
        limit = np.maximum(self.clocks.base[c.block], self.clocks.warp_base[c.block, warp])
        mixed = ((old >> 6) >= limit[:, None]) & ((old & 63) != lane[:, None])
        pending = (old >> 6) >= IN_FLIGHT_STAMP
        new = np.where(mixed, np.int32(MANY), lane[:, None]) | np.int32(self.clocks.now << 6)
        new = np.where(pending, old, new)
        self.reads[columns] = new
        lost = self.reads.take(columns) != new
        if lost.any():
            self.reads[columns[lost]] = np.int32(self.clocks.now << 6 | MANY)

    def _record_write(self, places, c, thread, kind):
        flag = ATOMIC if kind == "atomic" else 0
        self.writes[places] = (self.clocks.now << STAMP) | flag | thread[:, None].astype(np.int64)

    def _check_collisions(self, access, c, places, thread, item, items):
        """Lanes of one instruction may write the same bytes only with the same values."""
        winner = self.writes.take(places) & COLUMN
        lost = (winner != thread[:, None]).any(axis=1)
        if not lost.any():
            return
        if items is not None:
            size = access.size
            stored = self.run.shared.raw[size].take(item[lost])
            mine = np.ascontiguousarray(items[lost]).view(np.uint8).reshape(-1, size)
            lost[lost] = (stored.view(np.uint8).reshape(-1, size) != mine).any(axis=1)
        if lost.any():
            i = int(np.flatnonzero(lost)[0])
            j = int(np.flatnonzero(winner[i] != thread[i])[0])
            self._report(access, c, places, i, j, "write", int(winner[i, j]), "write")

    def landed(self, access, index, item):
        """A copy of the lanes `index` has written its destination."""
        thread = (index % self.run.threads).astype(np.int64)
        places = self._places(access, item)
        self.writes[places] = (self.clocks.now << STAMP) | thread[:, None]

    def engine_wrote(self, item, engine):
        """A bulk copy has written 16-byte items."""
        column = self.run.threads + engine
        places = item[:, None] * (16 // self.size) + np.arange(16 // self.size)
        self.writes[places] = (self.clocks.now << STAMP) | column

    def proxy_read(self, access, c, item):
        """A bulk copy issued by the one lane of `c` reads 16-byte items."""
        places = self._places(access, item)
        self._check_proxy(access.ins, c, 0, np.unique(self.writes[places]), (int(c.index[0]),))

    def warpgroup_read(self, ins, c, lane, block, item):
        """A wgmma of the warpgroup that starts at `lane` of `c` reads 16-byte items."""
        count = 16 // self.size
        packed = np.unique(self.writes[item[:, None] * count + np.arange(count)])
        leaders = [int(c.index[lane + 32 * w]) for w in range(4)]
        self._check_proxy(ins, c, lane, packed, leaders)

    def _check_proxy(self, ins, c, lane, packed, lanes):
        """Writes must come before, and generic ones must have been fenced."""
        stamp, column = packed >> STAMP, packed & COLUMN
        generic = (column < self.run.threads) & (stamp > 0)
        for index in lanes:
            block, thread = divmod(index, self.run.threads)
            fine = self.clocks.ordered(block, thread, stamp, column) | (stamp == 0)
            if not fine.all():
                raise fault(
                    SharedRace, ins, c, lane, "reads shared memory that races with "
                    + self._who(c, lane, int(column[~fine][0])), HINT,
                )  # fmt: skip
            if not self.run.checks.async_:
                continue
            unseen = generic & ~self.clocks.visible_to_proxy(block, thread, stamp, column)
            if unseen.any():
                raise fault(
                    AsyncHazard, ins, c, lane, "reads shared memory by the asynchronous proxy, "
                    + self._who(c, lane, int(column[unseen][0])) + ", without a proxy fence",
                    "fence.proxy.async must stand after the writes and before the barrier.",
                )  # fmt: skip

    def hold(self, warp, item):
        """A warp's asynchronous reads of 16-byte items are in flight."""
        self.reads[self._read_columns(warp, item)] = np.int32(IN_FLIGHT_STAMP << 6 | ANY)

    def unhold(self, warp, item, lane=ANY):
        """A warp's asynchronous reads are done; `lane` of the warp knows, or any of them."""
        self.reads[self._read_columns(warp, item)] = np.int32(self.clocks.now << 6 | lane)

    def _read_columns(self, warp, item):
        count = 16 // self.size
        places = (item[:, None] * count + np.arange(count)).reshape(-1)
        return places * self.warps + warp % self.warps

    def _who(self, c, lane, column):
        if column >= self.run.threads:
            return "an asynchronous copy"
        first = int(c.block[lane]) * self.run.threads
        return f"a write by thread {self.run.place(first + column)[1]}"

    def arrive(self, key, c):
        """Lanes arrive at a barrier."""
        self.clocks.release(key, c)

    def complete(self, key, blocks, lanes, everyone):
        """A barrier lets `lanes` of `blocks` go on; everyone: it joined all threads."""
        threads = self.run.threads
        owner = lanes // threads
        for block in blocks.tolist():
            self.clocks.acquire(key, block, lanes[owner == block] % threads)
            self.clocks.forget(key, block)
            if everyone:
                self.clocks.everyone(block)

    def warp_sync(self, c):
        """bar.warp.sync of whole warps."""
        self.clocks.warps_met(c.index)

    def lanes_sync(self, index):
        """bar.warp.sync of some lanes of a warp."""
        self.clocks.lanes_met(index)

    def _report(self, access, c, places, i, j, kind, column, other):
        who = f"thread {column}" if column < self.run.threads else "an asynchronous copy"
        if column < self.run.threads:
            who = f"thread {self.run.place(int(c.block[i]) * self.run.threads + column)[1]}"
        raise fault(
            SharedRace, access.ins, c, int(i),
            f"{kind} of shared offset {self._offset(c, places, i, j)} races with a {other} by "
            + who,
            HINT,
        )  # fmt: skip

    def _in_flight(self, access, c, places, i, j, reader):
        raise fault(
            AsyncHazard, access.ins, c, int(i),
            f"write to shared offset {self._offset(c, places, i, j)} that a wgmma or bulk copy of "
            f"warp {reader // 32} still reads",
            "Wait for it (wgmma.wait_group, cp.async.bulk.wait_group.read) and tell this thread.",
        )  # fmt: skip

    def _offset(self, c, places, i, j):
        return int(places[i, j]) * self.size - int(c.shared_base[i])
