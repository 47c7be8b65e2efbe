"""An SM in clocks: four in-order schedulers whose warps run one round of a loop again and again.

A scheduler issues one instruction a clock: the control word says when the next of the same warp may
follow, and which counters must be clear before. Shared, and busy for a while with each instruction,
are a quarter's tensor core, float32, integer and special units, the SM's 128 bytes a clock of
shared memory, and its part of L2. Warps of a block meet at bar.sync.

What holds an instruction back changes only when its scheduler issues, or a block has met. So time
goes from one issue to the next, to the same end as clock by clock.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence

from ...schedules.cuda.arch import SCHEDULERS
from .rates import (
    COPY_SPREAD,
    LINE_READ,
    MEMORY_QUEUE,
    OPERANDS_READ,
    SPECIAL_QUEUE,
    TO_MEMORY,
    TO_SPECIAL,
    Rates,
)
from .steps import MEMORY, NONE, SPECIAL, TENSOR, Step

# Which warp a scheduler prefers of those that may issue: the last one, or the next one in turn.
POLICIES = ("greedy", "in turn")
# Clocks between the warps of a block at the start.
_APART = 3
_NEVER = math.inf


def simulate(
    steps: Sequence[Step],
    warps: int,
    blocks: int,
    rates: Rates,
    policy: str = POLICIES[0],
    seed: int = 0,
    rounds: int = 12,
    settling: int = 4,
) -> float:
    """Clocks of a round of ``steps`` on an SM with ``blocks`` blocks of ``warps`` warps.

    In that time every block does one round. The mean of ``rounds`` less the first ``settling``.
    seed: of the clocks that blocks start apart, and of what copies take beyond their latency.
    """
    ends = _Sm(steps, warps, blocks, rates, policy, seed, rounds).run()
    each = [(end[-1] - end[settling - 1]) / (rounds - settling) for end in ends]
    return sum(each) / len(each)


class _Warp:
    """A warp on its way: where it is, from when on it may issue, what it waits for.

    ready: by the last stall. clear: by counter, when what was announced under it is done. groups:
    when each group of copies is there; copied: the last copy. ends: of its rounds.
    """

    __slots__ = (
        "at",
        "block",
        "clear",
        "copied",
        "ends",
        "groups",
        "index",
        "part",
        "quarter",
        "ready",
    )

    def __init__(self, block: int, quarter: _Quarter, at: int, part: int):
        self.block, self.quarter, self.at, self.part = block, quarter, at, part
        self.index, self.ready = 0, at
        self.clear = [0] * 6
        self.copied = 0
        self.groups: deque[int] = deque(maxlen=8)
        self.ends: list[int] = []


class _Quarter:
    """A scheduler, its warps and its units.

    free: by part, when it takes another instruction. queue: when the last accesses to memory begin.
    slot: the first clock after the last issue. then, chosen: the next issue.
    """

    __slots__ = ("chosen", "free", "last", "queue", "slot", "then", "turns", "warps")

    def __init__(self, turns: bool):
        self.turns = turns
        self.warps: list[_Warp] = []
        self.free = [0.0] * (NONE + 1)
        self.queue = deque([0] * MEMORY_QUEUE, maxlen=MEMORY_QUEUE)
        self.last = self.chosen = self.slot = 0
        self.then: float = _NEVER

    def choose(self) -> None:
        """Find which warp issues next, and when."""
        free, warps = self.free, self.warps
        times = [w.at if w.at > free[w.part] else free[w.part] for w in warps]
        soonest = min(times, default=_NEVER)
        if soonest == _NEVER:
            self.then = _NEVER
            return
        self.then = then = max(math.ceil(soonest), self.slot)
        if not self.turns and times[self.last] <= then:
            self.chosen = self.last
            return
        count = len(warps)
        order = range(self.last + 1, self.last + 1 + count) if self.turns else range(count)
        self.chosen = next(n % count for n in order if times[n % count] <= then)


class _Sm:
    """An SM with its blocks, which ``run`` takes through all rounds."""

    def __init__(
        self,
        steps: Sequence[Step],
        warps: int,
        blocks: int,
        rates: Rates,
        policy: str,
        seed: int,
        rounds: int,
    ):
        self.steps, self.warps, self.rates, self.rounds = steps, warps, rates, rounds
        self.random = random.Random(seed)
        self.quarters = [_Quarter(policy == POLICIES[1]) for _ in range(SCHEDULERS)]
        self.shared = self.l2 = 0.0
        self.meeting: dict[int, list[_Warp]] = {}
        self.all = self._placed(blocks)

    def _placed(self, blocks: int) -> list[_Warp]:
        """Warps on their schedulers, as the hardware deals them out: one by one."""
        span = blocks * sum(8 if step.part == TENSOR else 1 for step in self.steps)
        starts = [self.random.randrange(span) for _ in range(blocks)]
        placed = []
        for number in range(blocks * self.warps):
            block, own = divmod(number, self.warps)
            quarter = self.quarters[number % SCHEDULERS]
            placed.append(_Warp(block, quarter, starts[block] + _APART * own, self.steps[0].part))
            quarter.warps.append(placed[-1])
        return placed

    def run(self) -> list[list[int]]:
        """Clocks at which each warp ended each of its rounds."""
        quarters = self.quarters
        for quarter in quarters:
            quarter.choose()
        while True:
            quarter = quarters[0]
            for other in quarters:
                if other.then < quarter.then:
                    quarter = other
            if quarter.then == _NEVER:
                return [warp.ends for warp in self.all]
            quarter.last, quarter.slot = quarter.chosen, quarter.then + 1
            self._issue(quarter, quarter.warps[quarter.chosen], quarter.then)
            quarter.choose()

    def _issue(self, quarter: _Quarter, warp: _Warp, now: int) -> None:
        step = self.steps[warp.index]
        part, free = step.part, quarter.free
        done = read = now + step.latency
        if part < SPECIAL:
            # Where the unit was waited for, a fraction of a clock is not lost.
            free[part] = (free[part] if now - free[part] < 1 else now) + step.busy
        elif part == SPECIAL:
            queued = SPECIAL_QUEUE * step.busy
            begun = max(now + TO_SPECIAL, free[part] + queued)
            free[part] = begun + step.busy - queued
            done, read = begun + step.latency, begun + step.busy
        elif part == MEMORY:
            done, read = self._access(quarter, warp, step, now)
        elif step.effect == "commit":
            done = max(warp.copied, now + 2)
            warp.groups.append(done)
        clear = warp.clear
        if (number := step.write_barrier) is not None and clear[number] < done:
            clear[number] = done
        if (number := step.read_barrier) is not None and clear[number] < read:
            clear[number] = read
        self._go_on(warp, step, now)

    def _access(self, quarter: _Quarter, warp: _Warp, step: Step, now: int) -> tuple[float, float]:
        """(when the result is there, when the operands have been read)."""
        begun = max(now + TO_MEMORY, self.shared)
        self.shared = through = begun + step.busy
        quarter.queue.append(begun)
        quarter.free[MEMORY] = quarter.queue[0]
        if not step.l2_bytes:
            return begun + step.latency - TO_MEMORY, through + OPERANDS_READ
        self.l2 = max(self.l2, now) + step.l2_bytes / self.rates.l2_bytes
        arrived = math.ceil(self.l2 + step.latency)
        if step.effect == "copy":
            arrived += self.random.randrange(COPY_SPREAD)
            warp.copied = max(warp.copied, arrived)
        return arrived, through + LINE_READ

    def _go_on(self, warp: _Warp, step: Step, now: int) -> None:
        """Move ``warp`` to its next instruction, and find when that may issue."""
        warp.index += 1
        if warp.index == len(self.steps):
            warp.index = 0
            warp.ends.append(now)
        warp.ready = now + step.stall
        if step.effect == "meet":
            self._meet(warp, now)
        else:
            self._resume(warp)

    def _meet(self, warp: _Warp, now: int) -> None:
        """Wait for the other warps of the block; the last one lets all go on."""
        here = self.meeting.setdefault(warp.block, [])
        here.append(warp)
        warp.at = _NEVER
        if len(here) < self.warps:
            return
        del self.meeting[warp.block]
        for other in here:
            other.ready = max(other.ready, now + self.rates.barrier)
            self._resume(other)
            other.quarter.choose()

    def _resume(self, warp: _Warp) -> None:
        step = self.steps[warp.index]
        warp.part, at = step.part, warp.ready
        for number in step.waits:
            if warp.clear[number] > at:
                at = warp.clear[number]
        if step.left is not None and len(warp.groups) > step.left:
            at = max(at, sorted(warp.groups)[-1 - step.left])
        warp.at = at if len(warp.ends) < self.rounds else _NEVER
