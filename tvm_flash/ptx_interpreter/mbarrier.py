"""mbarrier objects in shared memory (PTX ISA 9.7.13.15)."""

import numpy as np

from . import kernel as k
from .access import SharedAccess
from .async_copy import Copies
from .clocks import ENGINES
from .control import move
from .errors import AsyncHazard, SharedRace, fault
from .lanes import Context
from .load_store import space_of
from .opcodes import opcode
from .spaces import SHARED_BASE, SHARED_ORIGIN

LARGEST_COUNT = (1 << 20) - 1


class MBarrier:
    """One mbarrier: `pending` arrivals and `bytes` of copies until its phase completes."""

    def __init__(self, count, number):
        self.count = self.pending = count
        self.bytes, self.phase = 0, 0
        self.copies = 0  # in flight
        self.engine = number % ENGINES
        self.stamp = self.thread = 0


class MBarriers:
    """All mbarriers of a run, by (block, shared offset)."""

    def __init__(self, run):
        self.run, self.table = run, {}
        self.parked = {}  # (block, offset) -> [(lane numbers, basic block)]
        run.describe_wait.append(self.describe)

    def init(self, ins, c, places, counts):
        """mbarrier.init by single lanes."""
        for lane, place in enumerate(places):
            count = int(counts[lane])
            if not 1 <= count <= LARGEST_COUNT:
                raise fault(AsyncHazard, ins, c, lane, f"mbarrier count {count} is out of range")
            if place in self.table and self.run.checks.async_:
                raise fault(
                    AsyncHazard, ins, c, lane,
                    f"the mbarrier at shared offset {place[1]} is initialised already",
                    "One thread initialises it, once; mbarrier.inval must precede another init.",
                )  # fmt: skip
            barrier = self.table[place] = MBarrier(count, len(self.table))
            if self.run.races:
                barrier.stamp = self.run.races.clocks.now
                barrier.thread = int(c.index[lane]) % self.run.threads
        if self.run.races:
            self.run.races.clocks.tick()

    def find(self, ins, c, lanes, place):
        """The mbarrier that `lanes` (a number or an array) mean; its init must come before."""
        barrier = self.table.get(place)
        lanes = np.atleast_1d(lanes)
        if barrier is None:
            raise fault(
                AsyncHazard, ins, c, int(lanes[0]),
                f"no mbarrier was initialised at shared offset {place[1]}",
                "mbarrier.init must come first, then a fence and a barrier.",
            )  # fmt: skip
        races = self.run.races
        if races:
            thread = c.index[lanes] % self.run.threads
            fine = races.clocks.ordered(place[0], thread, barrier.stamp, barrier.thread)
            if not fine.all():
                raise fault(
                    SharedRace, ins, c, int(lanes[~fine][0]),
                    f"the mbarrier at shared offset {place[1]} is used unordered after its init",
                    "Put a barrier of the block after mbarrier.init.",
                )  # fmt: skip
        return barrier

    def find_for_copy(self, ins, c, lane, place):
        """The same for the asynchronous proxy: the init must have been fenced."""
        barrier = self.find(ins, c, lane, place)
        races = self.run.races
        checks = self.run.checks
        if races and checks.async_ and checks.init_fence and races.clocks.proxy is not None:
            block, thread = int(c.block[lane]), int(c.index[lane]) % self.run.threads
            clocks = races.clocks
            if not clocks.visible_to_proxy(block, thread, barrier.stamp, barrier.thread):
                raise fault(
                    AsyncHazard, ins, c, lane,
                    f"copies do not see the init of the mbarrier at offset {place[1]}",
                    "fence.mbarrier_init or fence.proxy.async is missing after mbarrier.init.",
                )  # fmt: skip
        return barrier

    def arrive(self, ins, c, lane, place, count, release):
        """One lane arrives `count` times; returns the phase it arrived in."""
        barrier = self.find(ins, c, lane, place)
        phase = barrier.phase
        if self.run.races and release:
            self.run.races.clocks.release(("mbar", place[1]), _single(c, lane))
        barrier.pending -= count
        if barrier.pending < 0:
            raise fault(
                AsyncHazard, ins, c, lane,
                f"more arrivals at the mbarrier at shared offset {place[1]} than its count "
                f"{barrier.count}",
                "Look at the count of mbarrier.init and at which lanes arrive.",
            )  # fmt: skip
        self.advance(place, barrier)
        return phase

    def complete_bytes(self, place, count):
        """A copy wrote `count` bytes."""
        barrier = self.table[place]
        barrier.bytes -= count
        if self.run.races:
            self.run.races.clocks.publish_engine(("mbar", place[1]), place[0], barrier.engine)
        self.advance(place, barrier)

    def advance(self, place, barrier):
        """Complete the phase if nothing is pending, and wake the lanes that wait."""
        if barrier.pending or barrier.bytes:
            return
        block, offset = place
        if self.run.races:
            self.run.races.clocks.rename(("mbar", offset), ("done", offset), block)
        barrier.phase += 1
        barrier.pending = barrier.count
        for index, target in self.parked.pop(place, ()):
            self.run.scheduler.wake(index, target)

    def park(self, ins, index, place):
        """Lanes wait for the phase to complete and then try again."""
        self.run.scheduler.park(index, ins)
        self.parked.setdefault(place, []).append((index, ins.block))

    def describe(self):
        """The state of the mbarriers that lanes wait on, for deadlock reports."""
        for (block, offset), _ in self.parked.items():
            barrier = self.table[block, offset]
            yield (
                f"mbarrier at shared offset {offset} of block {self.run.numbers[block]}: phase "
                f"{barrier.phase}, {barrier.pending} of {barrier.count} arrivals and "
                f"{barrier.bytes} bytes pending"
            )


class _single:
    """One lane of a context, as a context for Clocks.release."""

    def __init__(self, c, lane):
        self.index, self.block = c.index[lane : lane + 1], c.block[lane : lane + 1]


class Where:
    """The (block, shared offset) of an mbarrier operand for every lane."""

    def __init__(self, ins, bind, operand):
        self.view, self.row, offset = bind.address(operand, narrow=space_of(ins) == "shared")
        self.offset = offset
        self.access = SharedAccess(ins, 8, bind.checks)

    def __call__(self, c):
        address = c.v[self.view][self.row].reshape(-1).astype(np.int64) + self.offset
        address = np.where(address >= SHARED_BASE, address - SHARED_BASE, address)
        self.access.index(c, address)
        return list(zip(c.block.tolist(), (address - SHARED_ORIGIN).tolist(), strict=True))


def where(ins, bind, operand):
    """A Where, and the promise that the run has MBarriers."""
    bind.needs(MBarriers)
    return Where(ins, bind, operand)


@opcode("mbarrier.init")
def init(ins, bind):
    """mbarrier.init.b64 [a], count."""
    at, count = where(ins, bind, ins.operands[0]), bind.src(ins.operands[1], "u32")
    return lambda c: c.run.part(MBarriers).init(ins, c, at(c), c.v["u32"][count].reshape(-1))


@opcode("mbarrier.inval")
def invalidate(ins, bind):
    """mbarrier.inval.b64 [a]."""
    at = where(ins, bind, ins.operands[0])

    def run(c):
        state = c.run.part(MBarriers)
        for lane, place in enumerate(at(c)):
            barrier = state.find(ins, c, lane, place)
            if barrier.copies or place in state.parked:
                raise fault(
                    AsyncHazard, ins, c, lane,
                    f"the mbarrier at shared offset {place[1]} is still in use: {barrier.copies} "
                    f"copies in flight, {len(state.parked.get(place, ()))} groups of lanes waiting",
                )  # fmt: skip
            del state.table[place]

    return run


@opcode("mbarrier.arrive", "mbarrier.arrive_drop")
def arrive(ins, bind):
    """mbarrier.arrive{.expect_tx}{.noComplete}.b64 state, [a]{, count or bytes}."""
    operands = ins.operands
    state = None if isinstance(operands[0], (k.Sink, k.Address)) else bind.out(operands[0])
    if not isinstance(operands[0], k.Address):
        operands = operands[1:]
    at = where(ins, bind, operands[0])
    number = bind.src(operands[1], "u32") if len(operands) > 1 else None
    expect, release = "expect_tx" in ins.mods, "relaxed" not in ins.mods
    drop = ins.opcode.startswith("mbarrier.arrive_drop")

    def run(c):
        barriers = c.run.part(MBarriers)
        given = c.v["u32"][number].reshape(-1) if number is not None else np.ones(c.n, np.uint32)
        phases = np.empty(c.n, np.uint64)
        for lane, place in enumerate(at(c)):
            count = int(given[lane])
            barrier = barriers.find(ins, c, lane, place)
            if expect:
                barrier.bytes += count
                count = 1
            if drop:
                barrier.count -= count
            phases[lane] = barriers.arrive(ins, c, lane, place, count, release)
        if state is not None:
            c.v["u64"][state][...] = phases.reshape(c.shape)

    return run


@opcode("mbarrier.expect_tx", "mbarrier.complete_tx")
def transaction(ins, bind):
    """mbarrier.expect_tx, .complete_tx: bytes awaited, bytes done."""
    at, number = where(ins, bind, ins.operands[0]), bind.src(ins.operands[1], "u32")
    sign = 1 if "expect_tx" in ins.mods else -1

    def run(c):
        barriers = c.run.part(MBarriers)
        given = c.v["u32"][number].reshape(-1)
        for lane, place in enumerate(at(c)):
            barrier = barriers.find(ins, c, lane, place)
            barrier.bytes += sign * int(given[lane])
            if sign < 0:
                barriers.advance(place, barrier)

    return run


@opcode("mbarrier.test_wait", "mbarrier.try_wait", ends=True, starts=True)
def wait(ins, bind):
    """mbarrier.try_wait/test_wait{.parity}.b64 p, [a], state or parity.

    Both block until the phase completes: a false result only says that the time limit passed."""
    at = where(ins, bind, ins.operands[1])
    parity = "parity" in ins.mods
    view = "u32" if parity else "u64"
    row, p = bind.src(ins.operands[2], view), bind.out(ins.operands[0], "pred")
    acquire = "relaxed" not in ins.mods

    def run(c):
        barriers = c.run.part(MBarriers)
        token = c.v[view][row].reshape(-1)
        done = np.zeros(c.n, bool)
        for place, lanes in _groups(at(c)):
            barrier = barriers.find(ins, c, lanes, place)
            if parity:
                done[lanes] = (barrier.phase & 1) != (token[lanes] & 1)
            else:
                done[lanes] = token[lanes] < barrier.phase
            waiting = lanes[~done[lanes]]
            if len(waiting):
                barriers.park(ins, c.index[waiting], place)
            ready = c.index[lanes[done[lanes]]] % c.run.threads
            if c.run.races and acquire and len(ready):
                c.run.races.clocks.acquire(("done", place[1]), place[0], ready)
        c.v["pred"][p][done.reshape(c.shape)] = True
        if done.all():
            move(c, ins.block + 1)
        else:
            c.run.scheduler.goto_index(c.index[done], ins.block + 1)

    return run


def _groups(places):
    """(place, lanes as an array) for each distinct place."""
    found = {}
    for lane, place in enumerate(places):
        found.setdefault(place, []).append(lane)
    return [(place, np.array(lanes)) for place, lanes in found.items()]


@opcode("cp.async.mbarrier.arrive")
def arrive_after_copies(ins, bind):
    """cp.async.mbarrier.arrive{.noinc}.b64 [a]: arrive when this lane's copies have landed.

    They land when nothing else can run: as late as the mbarrier allows."""
    at = where(ins, bind, ins.operands[0])
    adds = "noinc" not in ins.mods
    bind.needs(Deferred)

    def run(c):
        barriers = c.run.part(MBarriers)
        for lane, place in enumerate(at(c)):
            barrier = barriers.find(ins, c, lane, place)
            if adds:
                barrier.pending += 1
            c.run.part(Deferred).add(ins, c, lane, place)

    return run


class Deferred:
    """Arrivals that wait for the cp.async copies of their lanes."""

    def __init__(self, run):
        self.run, self.waiting = run, []
        run.part(Copies)
        run.idle.append(self.land)

    def add(self, ins, c, lane, place):
        """One lane's arrival."""
        everything = self.run.part(Copies).issued
        self.waiting.append((ins, _lane_context(c, lane), place, everything))

    def land(self):
        """Land the copies of the oldest arrivals, then arrive."""
        if not self.waiting:
            return False
        waiting, self.waiting = self.waiting, []
        for ins, c, place, issued in waiting:
            self.run.part(Copies).land_before(c, issued)
            self.run.part(MBarriers).arrive(ins, c, 0, place, 1, True)
        return True


def _lane_context(c, lane):
    one = slice(lane, lane + 1)
    return Context(c.run, c.index[one], c.block[one], c.index[one] >> 5, False, (1,), {})
