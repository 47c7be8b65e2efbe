"""Bulk copies in flight: loads that complete an mbarrier, stores in bulk groups."""

import random

import numpy as np

from .atomics import DTYPES, updater
from .errors import AsyncHazard, OutOfBounds, Uninitialised, fault
from .lanes import Context
from .mbarrier import MBarriers
from .spaces import IN_FLIGHT, SHARED_ORIGIN, STATE, VALID
from .tensor_map import swizzled

TENSOR_TYPES = {
    "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "s32", "uint32": "u32",
    "int64": "s64", "uint64": "u64", "float64": "f64",
}  # fmt: skip


def lane_context(c, lane):
    """A context of one lane without registers."""
    one = slice(lane, lane + 1)
    return Context(c.run, c.index[one], c.block[one], c.index[one] >> 5, False, (1,), {})


def shared_items(access, c, start, count, swizzle):
    """The 16-byte items of `count` bytes at a shared offset, in the order of the tile."""
    address = start + SHARED_ORIGIN + np.arange(0, count, 16)
    many = Context(
        c.run, np.repeat(c.index, len(address)), np.repeat(c.block, len(address)), c.warps, False,
        address.shape, {},
    )  # fmt: skip
    return access.index(many, swizzled(address, swizzle))


def global_bytes(ins, c, address):
    """The bytes at [rows, n] global addresses, each row in one buffer."""
    buffer, offset = _buffer(ins, c, address)
    state = buffer.initialised
    if state is not None and c.run.checks.uninitialised and not (state[offset] != 0).all():
        first = int(offset[state[offset] == 0][0])
        raise fault(
            Uninitialised, ins, c, 0,
            f"bulk read of buffer {buffer.name!r} at offset {first} that nobody wrote",
        )  # fmt: skip
    _count(ins, c, buffer, offset, "read")
    _observe(ins, c, buffer, offset, "read")
    return buffer.bytes[offset]


def _observe(ins, c, buffer, offset, kind):
    """Check a bulk access for races between blocks, in granules of at most 4 bytes."""
    races = c.run.global_races
    if races is not None and buffer.writable:
        size = min(races.size, 4)
        item = offset.reshape(-1)[::size] // size
        races.access(_Bulk(ins, size), _spread(c, len(item)), buffer, None, item, kind)


def _buffer(ins, c, address):
    buffer = c.run.memory.find(int(address.min()))
    end = int(address.max())
    if buffer is None or end >= buffer.address + buffer.nbytes:
        raise fault(
            OutOfBounds, ins, c, 0,
            f"bulk copy outside all buffers; nearest: {c.run.memory.nearest(end)}",
            "Look at the shape and strides of the tensor map.",
        )  # fmt: skip
    return buffer, address - buffer.address


def _count(ins, c, buffer, offset, kind):
    sectors = int((offset[:, -1] // 32 - offset[:, 0] // 32 + 1).sum())
    c.run.counts.bulk(ins.line, buffer, sectors, offset.size, kind)
    c.run.counts.touch(buffer, offset, 1, kind)


def tile_bytes(ins, c, tensor_map, coordinates):
    """The bytes of a tile, flat, elements outside the tensor filled."""
    offsets, inside, low, high = tensor_map.rows(coordinates)
    width = tensor_map.box[0] * tensor_map.itemsize
    data = np.zeros((len(offsets), width), np.uint8)
    if tensor_map.oob:
        data[:] = 0xFF
    if inside.any() and high > low:
        address = tensor_map.address + offsets[inside][:, None] + np.arange(low, high)
        data[inside, low:high] = global_bytes(ins, c, address)
    return data.reshape(-1)


class Loads:
    """Bulk loads in flight; one lands whenever no lane can run."""

    def __init__(self, run):
        self.run, self.pending = run, []
        self.barriers = run.part(MBarriers)
        self.random = random.Random(run.seed) if run.seed else None
        run.has_async = True
        run.idle.append(self.land_one)
        run.on_finish.append(self.check_finished)

    def issue(self, ins, c, access, item, data, place):
        """Start a copy of flat bytes to 16-byte shared items; it completes the mbarrier `place`."""
        many = _spread(c, len(item))
        access.check_idle(many, item, "bulk copy to")
        if self.run.races:
            self.run.races.access(access, many, item, "write")
        self.run.shared.raw_state[16][item] = STATE[IN_FLIGHT, 16]
        self.barriers.table[place].copies += 1
        self.pending.append((ins, c, access, item, data, place))
        if not self.run.checks.async_:
            self.land_one()

    def land_one(self):
        """Land one copy: one that lanes wait for, the oldest or a random one."""
        if not self.pending:
            return False
        barriers = self.barriers
        wanted = [i for i, entry in enumerate(self.pending) if entry[5] in barriers.parked]
        choice = wanted or range(len(self.pending))
        at = self.random.choice(list(choice)) if self.random else choice[0]
        _, _, _, item, data, place = self.pending.pop(at)
        barriers.table[place].copies -= 1
        self.run.shared.raw[16][item] = np.ascontiguousarray(data).view(np.complex128)
        self.run.shared.raw_state[16][item] = STATE[VALID, 16]
        if self.run.races:
            engine = barriers.table[place].engine
            self.run.races.engine_wrote(item, engine)
        barriers.complete_bytes(place, len(data))
        return True

    def check_finished(self):
        """A block must not exit while copies to it are in flight."""
        if self.pending:
            ins, c, *_ = self.pending[0]
            raise fault(
                AsyncHazard, ins, c, 0, "the block exits while this bulk copy is in flight",
                "Wait for the mbarrier before leaving.",
            )  # fmt: skip


class Groups:
    """Bulk stores in flight, per lane in groups; they take effect at the wait."""

    def __init__(self, run):
        self.run, self.pending = run, []
        self.committed = np.zeros(run.lanes, np.int64)
        run.has_async = True
        run.on_finish.append(self.check_finished)

    def read(self, ins, c, access, item):
        """The source bytes, checked: written, ordered before, and fenced for the proxy."""
        many = _spread(c, len(item))
        access.check_readable(many, item)
        if self.run.races:
            self.run.races.proxy_read(access, many, item)
        return self.run.shared.raw[16].take(item).view(np.uint8)

    def issue(self, ins, c, access, item, address, data, operation, kind):
        """Start a store (or reduction) of `data` to global addresses of the same shape."""
        lane = int(c.index[0])
        if self.run.races:
            self.run.races.hold(int(c.index[0]) >> 5, item)
        entry = (ins, c, item, address, data.copy(), operation, kind, int(self.committed[lane]))
        self.pending.append(entry)

    def commit(self, c):
        """Close the current group of each lane."""
        self.committed[c.index] += 1

    def wait(self, c, allowed):
        """Complete all but the latest groups of the lanes."""
        lanes = set(c.index.tolist())
        kept = []
        for entry in self.pending:
            lane = int(entry[1].index[0])
            if lane in lanes and entry[7] < self.committed[lane] - allowed:
                self._finish(entry)
            else:
                kept.append(entry)
        self.pending = kept
        for entry in kept:
            if self.run.races:
                self.run.races.hold(int(entry[1].index[0]) >> 5, entry[2])

    def _finish(self, entry):
        ins, c, item, address, data, operation, kind, _ = entry
        if self.run.races:
            lane = int(c.index[0])
            self.run.races.unhold(lane >> 5, item, lane & 31)
        if not address.size:
            return
        buffer, offset = _buffer(ins, c, address)
        if not buffer.writable:
            raise fault(OutOfBounds, ins, c, 0, f"write to the read-only buffer {buffer.name!r}")
        if operation:
            self._reduce(buffer, offset, data, operation, kind)
            self.run.counts.atomics[buffer.name] += data.size // 4
        else:
            buffer.bytes[offset] = data
            _count(ins, c, buffer, offset, "write")
        buffer.raw_written(1)[offset] = 1
        _observe(ins, c, buffer, offset, "atomic" if operation else "write")

    def _reduce(self, buffer, offset, data, operation, kind):
        kind = TENSOR_TYPES.get(kind, kind)
        dtype = np.dtype(DTYPES[kind])
        first = offset.reshape(-1, dtype.itemsize)[:, 0] // dtype.itemsize
        memory = buffer.bytes[: buffer.nbytes // dtype.itemsize * dtype.itemsize].view(dtype)
        update = updater(operation, kind)
        memory[first] = update(memory[first], np.ascontiguousarray(data).view(dtype).reshape(-1))

    def check_finished(self):
        """A block must not exit before its bulk stores have read their source."""
        if self.pending:
            ins, c, *_ = self.pending[0]
            raise fault(
                AsyncHazard, ins, c, 0, "the block exits before this bulk store read its source",
                "cp.async.bulk.wait_group.read 0 is missing.",
            )  # fmt: skip


class _Bulk:
    """What GlobalRaces needs to know of an instruction."""

    def __init__(self, ins, size):
        self.ins, self.size = ins, size


def _spread(c, count):
    """The one lane of `c`, `count` times."""
    return Context(
        c.run, np.repeat(c.index, count), np.repeat(c.block, count), c.warps, False, (count,), {}
    )
