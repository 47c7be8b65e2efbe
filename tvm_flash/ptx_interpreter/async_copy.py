"""cp.async: copies that land as late as wait_group allows (PTX ISA 9.7.9.25.3)."""

import numpy as np

from . import kernel as k
from .access import GlobalAccess, SharedAccess
from .memory import RAW
from .opcodes import opcode
from .spaces import IN_FLIGHT, STATE, VALID


class Copies:
    """Copies in flight, and how many groups every lane has committed."""

    def __init__(self, run):
        self.run = run
        self.committed = np.zeros(run.lanes, np.int64)
        self.pending, self.issued = [], 0
        run.has_async = True

    def issue(self, c, access, item, data):
        """Start copies of `data` to shared items."""
        run = self.run
        run.shared.raw_state[access.size][item] = STATE[IN_FLIGHT, access.size]
        group = self.committed[c.index]
        self.issued += 1
        order = np.full(c.n, self.issued)
        self.pending.append((access, c.index, order, c.shared_base, group, item, data))

    def commit(self, c):
        """Everything a lane issued since its last commit becomes one group."""
        self.committed[c.index] += 1

    def wait(self, c, allowed, uncommitted=False):
        """Land what belongs to all but the `allowed` latest groups of each lane."""
        limit = np.full(self.run.lanes, -1, np.int64)
        limit[c.index] = self.committed[c.index] - allowed + uncommitted
        kept = []
        for entry in self.pending:
            index, group = entry[1], entry[4]
            ready = group < limit[index]
            count = np.count_nonzero(ready)
            if count:
                self._land(entry, ready if count < len(index) else slice(None))
            if count < len(index):
                kept.append(self._select(entry, ~ready) if count else entry)
        self.pending = kept

    def land_before(self, c, issued):
        """Land what the lanes of `c` had issued at a point of time."""
        kept = []
        for entry in self.pending:
            ready = np.isin(entry[1], c.index) & (entry[2] <= issued)
            if ready.any():
                self._land(entry, ready)
                entry = self._select(entry, ~ready)
            if len(entry[1]):
                kept.append(entry)
        self.pending = kept

    def _select(self, entry, chosen):
        return entry[0], *(part[chosen] for part in entry[1:])

    def _land(self, entry, chosen):
        access, *parts = entry
        index, _, _, _, item, data = (part[chosen] for part in parts)
        shared = self.run.shared
        shared.raw[access.size][item] = data
        shared.raw_state[access.size][item] = STATE[VALID, access.size]
        if self.run.races is not None:
            self.run.races.landed(access, index, item)


@opcode("cp.async.ca", "cp.async.cg")
def copy(ins, bind):
    """cp.async.ca/.cg.shared.global [dst], [src], size{, src-size | ignore-src}."""
    bind.needs(Copies)
    size = ins.operands[2].value
    target, source, checks = ins.operands[0], ins.operands[1], bind.checks
    shared, from_global = SharedAccess(ins, size, checks), GlobalAccess(ins, size, checks)
    partial = Partial(ins, checks)
    to = Address(bind, target, True)
    where = Address(bind, source, False)
    limit = _source_size(ins, bind, size)

    def run(c):
        item = shared.index(c, to(c))
        shared.check_idle(c, item, "copy to")
        address = where(c)
        wanted = limit(c)
        if wanted is None or (wanted == size).all():
            data = from_global.read(c, address, "copy")
        else:
            data = partial.read(c, address, wanted, size)
        c.run.observe_shared(shared, c, item, "write")
        if checks.async_:
            c.run.part(Copies).issue(c, shared, item, data)
        else:
            c.run.shared.raw[size][item] = data
            c.run.shared.raw_state[size][item] = STATE[VALID, size]

    return run


class Address:
    """Flat addresses of an operand, 32-bit shared or 64-bit global."""

    def __init__(self, bind, operand, narrow):
        self.view, self.row, offset = bind.address(operand, narrow)
        self.offset = np.array(offset % (1 << int(self.view[1:])), f"u{int(self.view[1:]) // 8}")

    def __call__(self, c):
        return (c.v[self.view][self.row] + self.offset).reshape(-1)


def _source_size(ins, bind, size):
    """A closure giving the bytes to read per lane (the rest is zero), or None for all."""
    if len(ins.operands) < (5 if "cache_hint" in ins.opcode else 4):
        return lambda c: None
    operand = ins.operands[3]
    if bind.width(operand) == "pred" or isinstance(operand, k.Not):
        negated = isinstance(operand, k.Not)
        row = bind.src(operand.operand if negated else operand, "pred")
        keep = size if negated else 0
        return lambda c: np.where(c.v["pred"][row].reshape(-1), keep, size - keep)
    row = bind.src(operand, "u32")
    return lambda c: c.v["u32"][row].reshape(-1)


class Partial:
    """Reads shorter than the copy; bytes past the source size are zero."""

    def __init__(self, ins, checks):
        self.reads = {n: GlobalAccess(ins, n, checks) for n in RAW}

    def read(self, c, address, wanted, size):
        """Raw items of `size` bytes; lanes that want none do not touch memory."""
        result = np.zeros((c.n, size), np.uint8)
        for count in np.unique(wanted):
            if count == 0:
                continue
            chosen = wanted == count
            step = int(count & -count) if count & (count - 1) else int(count)
            for offset in range(0, int(count), step):

                def body(child, chosen=chosen, offset=offset, step=step):
                    data = self.reads[step].read(child, address[chosen] + np.uint64(offset), "copy")
                    piece = np.ascontiguousarray(data).view(np.uint8).reshape(-1, step)
                    result[chosen, offset : offset + step] = piece

                c.part(chosen, (), body)
        return result.reshape(-1).view(RAW[size])


@opcode("cp.async.commit_group")
def commit(ins, bind):
    """cp.async.commit_group."""
    bind.needs(Copies)
    return lambda c: c.run.part(Copies).commit(c)


@opcode("cp.async.wait_group")
def wait(ins, bind):
    """cp.async.wait_group n: all but the latest n groups of this lane are done."""
    bind.needs(Copies)
    allowed = ins.operands[0].value
    return lambda c: c.run.part(Copies).wait(c, allowed)


@opcode("cp.async.wait_all")
def wait_all(ins, bind):
    """cp.async.wait_all: everything this lane issued is done, committed or not."""
    bind.needs(Copies)
    return lambda c: c.run.part(Copies).wait(c, 0, uncommitted=True)
