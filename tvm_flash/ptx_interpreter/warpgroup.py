"""What wgmma operations in flight forbid: registers, fences, shared memory they still read."""

import numpy as np

from .control import move
from .errors import AsyncHazard, fault
from .races import GROUP
from .setmaxnreg import Pool

FENCE_HINT = "wgmma.fence must stand between other accesses to these registers and the wgmma."
WAIT_HINT = "wgmma.wait_group must come first."


class Operation:
    """One wgmma of one warp in flight."""

    def __init__(self, plan, number, items):
        self.line, self.number = plan.ins.line, number
        self.d, self.a = set(plan.d_rows), set(plan.a_rows)
        self.plan = plan  # d and a grow by the names that a mov gives them
        self.items = items


class Warpgroups:
    """Per warp: operations in flight in groups; registers touched since the last fence."""

    def __init__(self, run):
        self.run = run
        rows = sorted(run.bind.wgmma_rows)
        self.column = {row: i for i, row in enumerate(rows)}
        self.dirty = np.ones((run.lanes // 32, len(rows)), bool)
        self.groups = {}  # warp -> committed groups, each a list of operations
        self.open = {}  # warp -> operations not committed
        self.gathering = {}  # (instruction, block, warpgroup) -> lanes that wait at the fence
        self.issued = 0
        self.parts = {}  # operation number -> [(warp, operation)]
        self.spoken = set()  # numbers whose reads the first warp to wait has ended
        run.on_finish.append(self.check_finished)

    def fence(self, ins, c):
        """Warps meet by warpgroups; their registers are clean afterwards."""
        self.dirty[c.warps] = False
        place = c.warps % (self.run.threads // 32)
        if c.whole and len(place) % 4 == 0 and (place.reshape(-1, 4) % 4 == np.arange(4)).all():
            move(c, ins.block + 1)
            return
        self.run.scheduler.park(c.index, ins)
        for warp in c.warps:
            in_block = warp % (self.run.threads // 32)
            key = ins.index, warp - in_block % 4
            mine = c.index[(c.index >> 5) == warp]
            self.gathering.setdefault(key, []).append(mine)
            waiting = np.concatenate(self.gathering[key])
            if len(waiting) == 128:
                del self.gathering[key]
                self.run.scheduler.wake(waiting, ins.block + 1)

    def before(self, plan, c):
        """Check the registers of a wgmma about to start."""
        if not self.run.checks.async_:
            return
        columns = [self.column[row] for row in (*plan.d_rows, *plan.a_rows)]
        dirty = self.dirty[c.warps][:, columns].any(axis=1)
        if dirty.any():
            lane = int(np.flatnonzero(dirty)[0]) * 32
            raise fault(
                AsyncHazard, plan.ins, c, lane,
                "wgmma uses registers touched since the last wgmma.fence", FENCE_HINT,
            )  # fmt: skip
        d, a = set(plan.d_rows), set(plan.a_rows)
        for warp in c.warps:
            for operation in self.in_flight(warp):
                same = operation.d == d
                if (operation.d & a) or (operation.a & d) or (not same and operation.d & d):
                    raise fault(
                        AsyncHazard, plan.ins, c, 0,
                        f"wgmma uses registers of the one at line {operation.line} still in flight",
                        WAIT_HINT,
                    )  # fmt: skip

    def issue(self, plan, c, groups, held):
        """Note one operation per warp; `held`: (items [groups, ...], split by warps of A)."""
        for at, warp in enumerate(c.warps):
            items = []
            for array, by_rows in held:
                mine = array[at // 4]
                if by_rows and len(mine) == 64:
                    mine = mine[at % 4 * 16 : at % 4 * 16 + 16]
                items.append(mine.reshape(-1))
            operation = Operation(plan, self.issued + at // 4, np.concatenate(items))
            self.open.setdefault(int(warp), []).append(operation)
            if not self.run.checks.warp_wait:
                self.parts.setdefault(operation.number, []).append((int(warp), operation))
        self.issued += groups
        self._check_room(plan, c)
        races = self.run.races
        if races:
            for at in range(groups):
                block = int(c.block[at * 128])
                items = np.concatenate([array[at].reshape(-1) for array, _ in held])
                races.warpgroup_read(plan.ins, c, at * 128, block, np.unique(items))
            self._hold(c.warps, [self.open[int(w)][-1] for w in c.warps])

    def _check_room(self, plan, c):
        """Operands of wgmma in flight are in registers: a warp must hold as many (setmaxnreg).

        What else is live is ptxas's to count, which would spill it."""
        held = c.run.parts.get(Pool)
        if held is None or not held.known:
            return
        for warp in c.warps.tolist():
            count, room = self._operands(warp), held.of_warp(warp)
            if count > room:
                raise fault(
                    AsyncHazard, plan.ins, c, 0,
                    f"wgmma in flight have operands in {count} registers of a warp that holds "
                    f"{room}", "setmaxnreg.inc must come first, or a wgmma.wait_group.",
                )  # fmt: skip

    def _operands(self, warp):
        """Registers of all operands in flight; what a mov has renamed counts once."""
        named, own = set(), set()
        for operation in reversed(list(self.in_flight(warp))):
            own.update(operation.plan.a_rows)
            if not operation.d & named:
                own.update(operation.plan.d_rows)
            named |= operation.d
        return len(own)

    def _hold(self, warps, operations):
        races = self.run.races
        if races and self.run.checks.async_:
            for warp, operation in zip(warps, operations, strict=True):
                races.hold(int(warp), operation.items)

    def in_flight(self, warp):
        """All operations of a warp that no wait has ended."""
        for group in self.groups.get(int(warp), ()):
            yield from group
        yield from self.open.get(int(warp), ())

    def commit(self, c):
        """Close the group of each warp."""
        for warp in c.warps.tolist():
            self.groups.setdefault(warp, []).append(self.open.pop(warp, []))

    def wait(self, c, allowed):
        """All but the `allowed` latest groups of each warp are done."""
        races = self.run.races
        for warp in c.warps.tolist():
            groups = self.groups.get(warp, [])
            keep = len(groups) - min(allowed, len(groups))
            done, self.groups[warp] = groups[:keep], groups[keep:]
            finished = [operation for group in done for operation in group]
            if not (races and finished):
                continue
            self._end_reads(warp, finished)
            left = [o for o in self.in_flight(warp) if o.number not in self.spoken]
            self._hold([warp] * len(left), left)
        self.groups = {warp: g for warp, g in self.groups.items() if g}

    def _end_reads(self, warp, finished):
        """The reads of operations are over: for this warp, or for its warpgroup at once."""
        races = self.run.races
        if self.run.checks.warp_wait:
            races.unhold(warp, np.concatenate([o.items for o in finished]))
            return
        for operation in finished:
            for other, twin in self.parts.pop(operation.number, ()):
                races.unhold(other, twin.items, GROUP)
            self.spoken.add(operation.number)

    def segment_check(self, c, rows, instructions):
        """The check before instructions that touch registers of wgmma: none may be in flight."""
        if not (self.groups or self.open) or not self.run.checks.async_:
            return
        for warp in c.warps.tolist():
            if any(rows & (o.d | o.a) for o in self.in_flight(warp)):
                self._walk(c, warp, instructions)

    def _walk(self, c, warp, instructions):
        """Find the instruction; a mov of an operand renames it, as ptxas does."""
        operations = list(self.in_flight(warp))
        for ins, touched in instructions:
            read = {row for width, row, out in touched if width == 32 and not out}
            written = {row for width, row, out in touched if width == 32 and out}
            for operation in operations:
                if ins.opcode.startswith("mov.") and read & operation.d:
                    operation.d |= written
                elif ins.opcode.startswith("mov.") and read & operation.a:
                    operation.a |= written
                elif (read | written) & (operation.d | operation.a):
                    lane = int(np.flatnonzero((c.index >> 5) == warp)[0])
                    raise fault(
                        AsyncHazard, ins, c, lane,
                        f"touches a register of the wgmma at line {operation.line} in flight",
                        WAIT_HINT,
                    )  # fmt: skip

    def touched(self, c, rows):
        """Instructions other than wgmma touched these registers."""
        self.dirty[np.ix_(c.warps, [self.column[row] for row in rows])] = True

    def check_finished(self):
        """Nothing may be in flight at the end."""
        for warp in [*self.groups, *self.open]:
            for operation in self.in_flight(warp):
                block, thread = self.run.place(warp * 32)
                raise AsyncHazard(
                    f"{self.run.kernel.name}: block {block}, thread {thread} exits while the wgmma "
                    f"of line {operation.line} is in flight"
                )


def guard(instructions, rows):
    """(closure before, closure after) a run of instructions that touch wgmma registers."""
    touched = {r for _, t in instructions for width, r, _ in t if width == 32} & rows
    if not touched:
        return None, None
    ordered = sorted(touched)
    return (
        lambda c: c.run.part(Warpgroups).segment_check(c, touched, instructions),
        lambda c: c.run.part(Warpgroups).touched(c, ordered),
    )
