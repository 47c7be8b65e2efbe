"""Barriers of a block and of a warp (PTX ISA 9.7.13.1-3)."""

import numpy as np

from . import kernel as k
from .control import move
from .errors import Deadlock, fault
from .opcodes import opcode

CLUSTER = 16  # barrier.cluster uses a seventeenth barrier


class Barriers:
    """The sixteen named barriers of every block of a run."""

    def __init__(self, run):
        self.run = run
        self.arrived = np.zeros((run.blocks, 17), np.int64)
        self.expected = np.zeros((run.blocks, 17), np.int64)  # 0: all threads alive
        self.waiting = np.full(run.lanes, -1, np.int8)  # barrier a lane waits at
        self.resume = np.zeros(run.lanes, np.int32)
        self.reduced = {}
        run.on_exit.append(self.lanes_left)

    def arrive(self, ins, c, number, count, wait, following):
        """Lanes of `c` reach barrier `number` of their blocks (counts in threads, 0: all)."""
        run = self.run
        blocks = np.bincount(c.block, minlength=run.blocks)
        here = np.flatnonzero(blocks)
        self._agree(ins, c, here, number, count)
        self.arrived[here, number] += blocks[here]
        run.counts.barriers += len(c.warps)
        if run.races is not None:
            run.races.arrive(("bar", number), c)
        if wait:
            self.waiting[c.index] = number
            self.resume[c.index] = following
            run.scheduler.park(c.index, ins)
        else:
            run.scheduler.goto_index(c.index, following)
        self._complete(ins, c, here, number)

    def _agree(self, ins, c, here, number, count):
        started = here[self.arrived[here, number] > 0]
        if (self.expected[started, number] != count).any():
            raise fault(
                Deadlock, ins, c, 0,
                f"barrier {number} is used with count {count} while others wait with "
                f"{int(self.expected[started[0], number])} (0: all threads)",
                "All uses of one barrier phase must name the same number of threads.",
            )  # fmt: skip
        self.expected[here, number] = count

    def _complete(self, ins, c, here, number):
        needed = self.expected[here, number]
        if (needed == 0).any():
            alive = self.run.scheduler.alive.reshape(self.run.blocks, -1).sum(axis=1)
            needed = np.where(needed == 0, alive[here], needed)
        arrived = self.arrived[here, number]
        if (arrived > needed).any() and c is not None:
            raise fault(
                Deadlock, ins, c, 0,
                f"barrier {number} got {int(arrived.max())} threads for {int(needed.min())}",
                "Look at the thread count of the barrier.",
            )  # fmt: skip
        done = here[(arrived >= needed) & (arrived > 0)]
        if len(done):
            self._release(done, number)

    def _release(self, done, number):
        run = self.run
        self.arrived[done, number] = 0
        chosen = np.zeros(run.blocks, bool)
        chosen[done] = True
        lanes = np.flatnonzero((self.waiting == number) & np.repeat(chosen, run.threads))
        if run.races is not None:
            alive = run.scheduler.alive.reshape(run.blocks, -1).sum(axis=1)
            for block in done:
                mine = lanes[lanes // run.threads == block]
                whole = len(mine) == alive[block]
                run.races.complete(("bar", number), np.array([block]), mine, whole)
        self.waiting[lanes] = -1
        resume = self.resume[lanes]
        for target in np.unique(resume):
            run.scheduler.wake(lanes[resume == target], int(target))

    def lanes_left(self, lanes):
        """Threads that exit no longer count at barriers of all threads."""
        for number in np.flatnonzero(self.arrived.any(axis=0)):
            here = lanes.blocks[self.arrived[lanes.blocks, number] > 0]
            implicit = here[self.expected[here, number] == 0]
            if len(implicit):
                self._complete(None, None, implicit, int(number))


def _numbers(ins, bind, operands):
    """Rows of barrier number and count; None for an absent count."""
    rows = [bind.src(operand, "u32") for operand in operands]
    return rows[0], rows[1] if len(rows) > 1 else None


def _each(c, number, count, body):
    """Call body(context, number, count) for every pair of values among the lanes."""
    numbers = c.v["u32"][number].reshape(-1)
    counts = c.v["u32"][count].reshape(-1) if count is not None else np.zeros(c.n, np.uint32)
    first = int(numbers[0]), int(counts[0])
    if (numbers == first[0]).all() and (counts == first[1]).all():
        body(c, *first)
        return
    for pair in sorted(set(zip(numbers.tolist(), counts.tolist(), strict=True))):
        chosen = (numbers == pair[0]) & (counts == pair[1])
        c.part(chosen, (), lambda child, pair=pair: body(child, *pair))


def _barrier(ins, bind, wait):
    bind.needs(Barriers)
    number, count = _numbers(ins, bind, ins.operands)
    following = ins.block + 1

    def run(c):
        barriers = c.run.part(Barriers)
        _each(
            c, number, count,
            lambda child, n, m: barriers.arrive(ins, child, n, m, wait, following),
        )  # fmt: skip

    return run


@opcode("bar.sync", "barrier.sync", "bar.cta.sync", "barrier.cta.sync", ends=True)
def barrier_sync(ins, bind):
    """bar.sync a{, b}: wait until b threads, or all, have arrived."""
    return _barrier(ins, bind, True)


@opcode("bar.arrive", "barrier.arrive", "bar.cta.arrive", "barrier.cta.arrive", ends=True)
def barrier_arrive(ins, bind):
    """bar.arrive a, b: count without waiting."""
    return _barrier(ins, bind, False)


@opcode("bar.red", "barrier.red", "bar.cta.red", "barrier.cta.red", ends=True, starts=True)
def barrier_reduce(ins, bind):
    """bar.red.popc/and/or d, a{, b}, p: all threads get the reduction of their predicates."""
    bind.needs(Barriers)
    source = ins.operands[-1]
    negated = isinstance(source, k.Not)
    p = bind.src(source.operand if negated else source, "pred")
    number, count = _numbers(ins, bind, ins.operands[1:-1])
    mode = next(m for m in ins.mods if m in ("popc", "and", "or"))
    d = bind.out(ins.operands[0], 32 if mode == "popc" else "pred")
    view = "u32" if mode == "popc" else "pred"

    def run(c):
        state = c.run.part(Reductions)
        value = c.v["pred"][p].reshape(-1)
        ready = state.ready[c.index]
        if ready.all():
            c.v[view][d][...] = state.take(c, mode).reshape(c.shape)
            move(c, ins.block + 1)
            return
        state.add(c, ~value if negated else value)
        barriers = c.run.part(Barriers)
        _each(
            c, number, count, lambda child, n, m: barriers.arrive(ins, child, n, m, True, ins.block)
        )

    return run


class Reductions:
    """Predicates handed to bar.red; the second visit of a lane takes the result."""

    def __init__(self, run):
        self.ready = np.zeros(run.lanes, bool)
        self.value = np.zeros(run.lanes, bool)

    def add(self, c, value):
        """First visit."""
        self.ready[c.index], self.value[c.index] = True, value

    def take(self, c, mode):
        """Second visit: the barrier is complete."""
        self.ready[c.index] = False
        sums = np.bincount(c.block, self.value[c.index])[c.block]
        counts = np.bincount(c.block)[c.block]
        return {"popc": sums, "and": sums == counts, "or": sums > 0}[mode]


@opcode("bar.warp.sync", ends=True)
def warp_sync(ins, bind):
    """bar.warp.sync membermask: the members of a warp wait for each other."""
    bind.needs(WarpBarriers)
    mask = bind.src(ins.operands[0], "u32")

    def run(c):
        if c.whole and (c.v["u32"][mask] == 0xFFFFFFFF).all():
            if c.run.races is not None:
                c.run.races.warp_sync(c)
            move(c, ins.block + 1)
        else:
            c.run.part(WarpBarriers).arrive(ins, c, c.v["u32"][mask].reshape(-1))

    return run


class WarpBarriers:
    """Lanes that wait for the rest of a member mask."""

    def __init__(self, run):
        self.run = run
        self.mask = np.zeros(run.lanes, np.uint32)  # 0: not waiting
        self.resume = np.zeros(run.lanes, np.int32)
        run.on_exit.append(lambda lanes: self._complete(lanes.warps))

    def arrive(self, ins, c, mask):
        """Lanes of `c` wait with their masks."""
        self.mask[c.index] = mask
        self.resume[c.index] = ins.block + 1
        self.run.scheduler.park(c.index, ins)
        self._complete(c.warps)

    def _complete(self, warps):
        alive = self.run.scheduler.alive.reshape(-1, 32)
        for warp in warps:
            lanes = self.mask[warp * 32 : warp * 32 + 32]
            waiting = lanes != 0
            for mask in np.unique(lanes[waiting]):
                members = (int(mask) >> np.arange(32) & 1).astype(bool) & alive[warp]
                if (waiting[members] & (lanes[members] == mask)).all():
                    self._release(warp, np.flatnonzero(waiting & (lanes == mask)))

    def _release(self, warp, lanes):
        index = warp * 32 + lanes
        self.mask[index] = 0
        if self.run.races is not None:
            self.run.races.lanes_sync(index)
        for target in np.unique(self.resume[index]):
            self.run.scheduler.wake(index[self.resume[index] == target], int(target))


@opcode("barrier.cluster.arrive")
def cluster_arrive(ins, bind):
    """barrier.cluster.arrive: the wait below does the work in a cluster of one block."""
    return lambda c: None


@opcode("barrier.cluster.wait", ends=True)
def cluster_wait(ins, bind):
    """barrier.cluster.wait of a cluster of one block: a barrier of all its threads."""
    bind.needs(Barriers)
    following = ins.block + 1
    return lambda c: c.run.part(Barriers).arrive(ins, c, CLUSTER, 0, True, following)
