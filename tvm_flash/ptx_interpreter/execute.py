"""Launches: the grid in chunks, and the schedule of the lanes of a chunk."""

import random

import numpy as np

from . import arguments
from .checks import Checks
from .counts import Counts, Report
from .errors import Deadlock, LaunchError
from .global_races import GlobalRaces
from .lanes import Context, LaneSet
from .program import program_of
from .run import Run

LANES_PER_CHUNK = 4096
PATIENCE = 2000
KEPT_SETS = 300  # each may hold views of all registers
STEP_LIMIT = 20_000_000
POLL_LIMIT = 20_000  # basic blocks of lanes that only poll, with nothing else left to happen


class Scheduler:
    """Which lanes stand at which basic block, and which wait."""

    def __init__(self, run, seed):
        self.run, self.groups = run, {}
        self.blocks = run.program.blocks
        self.sets = {}
        self.random = random.Random(seed) if seed else None
        self.alive = np.zeros(run.lanes, bool)
        self.parked = np.full(run.lanes, -1, np.int32)  # instruction a lane waits at
        self.steps = self.polled = 0
        self.last_poll = {}  # basic block -> step at which lanes last polled there

    def lane_set(self, mask):
        """The (cached) LaneSet of a mask."""
        key = mask.tobytes()
        if len(self.sets) > KEPT_SETS:
            self.sets.clear()
        if key not in self.sets:
            self.sets[key] = LaneSet(mask, self.run.blocks, self.run.threads)
        return self.sets[key]

    def goto(self, lanes, target):
        """Make lanes runnable at a basic block; those past the last one exit."""
        if target >= len(self.blocks):
            self.alive[lanes.index] = False
            for leave in self.run.on_exit:
                leave(lanes)
        elif target in self.groups:
            self.groups[target] = self.lane_set(self.groups[target].mask | lanes.mask)
        else:
            self.groups[target] = lanes

    def goto_index(self, index, target):
        """goto for lane numbers."""
        if len(index):
            mask = np.zeros(self.run.lanes, bool)
            mask[index] = True
            self.goto(self.lane_set(mask), target)

    def park(self, index, ins):
        """Note that lanes wait at an instruction."""
        self.parked[index] = ins.index

    def wake(self, index, target):
        """Let parked lanes go on at a basic block."""
        self.parked[index] = -1
        self.goto_index(index, target)

    def execute(self, mask):
        """Run all lanes of `mask` from the first block to their exit."""
        self.alive |= mask
        self.goto(self.lane_set(mask), 0)
        while True:
            while self.groups:
                self._step()
            if not any(idle() for idle in self.run.idle):
                break
        if self.alive.any():
            self._deadlock()

    def _step(self):
        target = self._pick()
        lanes = self.groups.pop(target)
        if self.random and len(lanes.warps) > 1 and self.random.random() < 0.3:
            lanes = self._split(lanes, target)
        block = self.blocks[target]
        self.run.counts.block_counts[target] += len(lanes.warps)
        if lanes.rect:
            c = lanes.context or self._view(lanes)
            self._run(block, c, lanes)
        else:
            views = self.run.registers.gather(lanes.index, block.touched)
            c = Context.of(self.run, lanes, (lanes.size,), views)
            self._run(block, c, lanes)
            self.run.registers.scatter(lanes.index, block.touched, views)

    def _view(self, lanes):
        views, shape = self.run.registers.rectangle(lanes.rect)
        lanes.context = Context.of(self.run, lanes, shape, views)
        return lanes.context

    def _run(self, block, c, lanes):
        for closure in block.body:
            closure(c)
        if block.end is None:
            self.goto(lanes, block.number + 1)
        else:
            block.end(c)

    def _pick(self):
        self.steps += 1
        if self.steps > STEP_LIMIT:
            raise Deadlock(f"{self.run.kernel.name}: no end after {STEP_LIMIT} basic blocks")
        busy = self._busy()
        if not busy:
            return self._poller()
        self.polled = 0
        if self.random:
            return self._last_of_its_warps(self.random.choice(list(self.groups)))
        turn, left = divmod(self.steps, PATIENCE)
        if left:
            return min(busy)
        # A loop that waits, and is none of ``polls``, must let others write what it waits for.
        groups = sorted(self.groups)
        return self._last_of_its_warps(groups[turn % len(groups)])

    def _busy(self):
        """Basic blocks whose lanes do more than poll memory. Copies land where there are none."""
        polls = self.run.program.polls
        while True:
            busy = [target for target in self.groups if target not in polls]
            if busy or not any(idle() for idle in self.run.idle):
                return busy

    def _poller(self):
        """The lanes that have not polled for longest: they see what others wrote meanwhile."""
        self.polled += 1
        if self.polled > POLL_LIMIT:
            waits = [self.run.kernel.instructions[self.blocks[t].first] for t in self.groups]
            places = "; ".join(ins.where() for ins in waits)
            raise Deadlock(
                f"lanes poll memory that nobody is left to write: {places}. Look for a release "
                "that is missing, or for blocks that wait for later blocks of the grid."
            )
        target = min(self.groups, key=lambda at: self.last_poll.get(at, 0))
        self.last_poll[target] = self.steps
        return target

    def _last_of_its_warps(self, chosen):
        """`chosen`, or the group furthest back that shares a warp with it: warps reconverge."""
        for other in sorted(self.groups):
            if other >= chosen:
                return chosen
            if np.isin(self.groups[other].warps, self.groups[chosen].warps).any():
                return other
        return chosen

    def _split(self, lanes, target):
        warps = self.run.threads // 32
        size = 4 if self.run.bind.wgmma_rows else 1  # a warpgroup stays together
        team = lanes.warps // warps * warps + lanes.warps % warps // size
        keep = [t for t in np.unique(team) if self.random.random() < 0.5] or [team[0]]
        warp_mask = np.zeros(self.run.lanes // 32, bool)
        warp_mask[lanes.warps[np.isin(team, keep)]] = True
        mask = np.repeat(warp_mask, 32) & lanes.mask
        rest = lanes.mask & ~mask
        if rest.any():
            self.goto(self.lane_set(rest), target)
        return self.lane_set(mask)

    def _deadlock(self):
        lines = []
        for at in np.unique(self.parked[self.alive]):
            lanes = np.flatnonzero(self.alive & (self.parked == at))
            where = self.run.kernel.instructions[at].where() if at >= 0 else "unknown place"
            block, thread = self.run.place(int(lanes[0]))
            lines.append(
                f"{len(lanes)} lanes (block {block}, thread {thread}, ...) wait at {where}"
            )
        for describe in self.run.describe_wait:
            lines.extend(describe())
        raise Deadlock(
            "no lane can run: " + "; ".join(lines) + ". Look for an arrive that is missing, a "
            "barrier inside a branch, a wrong count or phase."
        )


def launch(kernel, grid, block, args, memory, *, shared_bytes=0, checks=None, seed=0,
           cluster=(1, 1, 1)):  # fmt: skip
    """Execute one launch and return its Report.

    grid, block: up to three integers. args: one per parameter: Buffer, int, float, bytes,
    TensorMap. shared_bytes: dynamic shared memory in bytes. seed: 0 runs lanes in the order of the
    text, other values shuffle the order of warps and of asynchronous copies.
    Raises a subclass of InterpreterError at the first thing wrong."""
    grid, block = _triple("grid", grid), _triple("block", block)
    _fits(kernel, block, cluster)
    program = program_of(kernel, checks or Checks())
    threads = -(-int(np.prod(block)) // 32) * 32
    total = int(np.prod(grid))
    params = arguments.pack(kernel, args)
    counts = Counts(program)
    global_races = GlobalRaces(kernel) if program.bind.checks.global_races and total > 1 else None
    step = max(LANES_PER_CHUNK // threads, 1)
    with np.errstate(all="ignore"):
        for first in range(0, total, step):
            numbers = np.arange(first, min(first + step, total))
            run = Run(program, numbers, grid, block, params, memory, shared_bytes, counts)
            scheduler = Scheduler(run, seed)
            run.global_races = global_races
            run.start(scheduler, seed)
            scheduler.execute(run.lane_mask)
            run.finish()
    return Report.of(counts)


def _triple(name, value):
    values = (value,) if np.ndim(value) == 0 else tuple(value)
    values += (1,) * (3 - len(values))
    if len(values) != 3 or any(v < 1 for v in values):
        raise LaunchError(f"{name}={value} must be one to three positive integers")
    return tuple(int(v) for v in values)


def _fits(kernel, block, cluster):
    threads = int(np.prod(block))
    if threads > 1024:
        raise LaunchError(f"{kernel.name}: {threads} threads a block, at most 1024")
    if kernel.maxntid and threads > int(np.prod(kernel.maxntid)):
        raise LaunchError(f"{kernel.name}: block {block} exceeds .maxntid {kernel.maxntid}")
    if kernel.reqntid and tuple(block) != tuple(kernel.reqntid):
        raise LaunchError(f"{kernel.name}: block {block} differs from .reqntid {kernel.reqntid}")
    if tuple(cluster) != (1, 1, 1):
        raise LaunchError("only clusters of one block are interpreted: pass cluster=(1, 1, 1)")
