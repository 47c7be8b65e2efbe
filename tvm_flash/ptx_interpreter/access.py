"""Checked gathers and scatters of global, shared and local bytes (PTX ISA 5.1, 8.2)."""

import numpy as np

from .errors import AsyncHazard, Misaligned, OutOfBounds, Uninitialised, fault
from .memory import ALL_BYTES
from .spaces import IN_FLIGHT, SHARED_ORIGIN, STATE, VALID, all_state, state_bytes

FILL = {n: np.frombuffer(b"\xff" * n, f"u{n}")[0] for n in (1, 2, 4, 8)}


def ones(items):
    """Whether every flag byte of `items` is 1."""
    if items.dtype == np.complex128:
        items = items.view(np.uint64)
    return bool((items == ALL_BYTES[items.dtype.itemsize]).all())


class GlobalAccess:
    """The accesses to global memory of one instruction, `size` bytes a lane."""

    def __init__(self, ins, size, checks):
        self.ins, self.size, self.checks = ins, size, checks
        self.last = None
        self.shift = np.uint64(size.bit_length() - 1)
        self.low = size - 1

    def locate(self, c, address, writing=False):
        """[(buffer, lanes or None for all, item indices)] for flat uint64 addresses."""
        if self.checks.alignment and int(np.bitwise_or.reduce(address)) & self.low:
            self._misaligned(c, address)
        buffer = self.last
        if buffer is not None and buffer.nbytes >= self.size and buffer in c.run.memory.buffers:
            offset = address - buffer.base
            if offset.max() <= buffer.nbytes - self.size:
                if writing and not buffer.writable:
                    self._read_only(c, 0, buffer, int(offset[0]))
                return [(buffer, None, offset >> self.shift)]
        return self._search(c, address, writing)

    def _search(self, c, address, writing):
        parts = []
        left = np.ones(len(address), bool)
        while left.any():
            first = int(np.flatnonzero(left)[0])
            buffer = c.run.memory.find(int(address[first]))
            inside = np.zeros(len(address), bool)
            if buffer is not None and buffer.nbytes >= self.size:
                inside = left & (address - buffer.base <= np.uint64(buffer.nbytes - self.size))
            if not inside[first]:
                if self.checks.bounds:
                    self._outside(c, first, int(address[first]), writing)
                left[first] = False
                continue
            if writing and not buffer.writable:
                self._read_only(c, first, buffer, int(address[first]) - buffer.address)
            chosen = None if inside.all() else inside
            kept = address if chosen is None else address[chosen]
            parts.append((buffer, chosen, (kept - buffer.base) >> self.shift))
            self.last = buffer
            left &= ~inside
        return parts

    def read(self, c, address, kind="read"):
        """Raw items of `size` bytes at flat uint64 addresses."""
        parts = self.locate(c, address)
        for buffer, chosen, item in parts:
            self.check_initialised(c, buffer, chosen, item)
            c.run.observe_global(self, c, buffer, chosen, item, kind)
        if len(parts) == 1 and parts[0][1] is None:
            return parts[0][0].raw(self.size).take(parts[0][2])
        result = np.full((len(address), self.size), 0xFF, np.uint8)
        for buffer, chosen, item in parts:
            data = buffer.raw(self.size).take(item)
            result[chosen] = data.view(np.uint8).reshape(-1, self.size)
        return result.reshape(-1).view(f"u{self.size}" if self.size < 16 else np.complex128)

    def write(self, c, address, items):
        """Store raw items; of several lanes with one address the last wins."""
        for buffer, chosen, item in self.locate(c, address, writing=True):
            c.run.observe_global(self, c, buffer, chosen, item, "write")
            buffer.raw(self.size)[item] = items if chosen is None else items[chosen]
            self.mark_written(buffer, item)

    def mark_written(self, buffer, item):
        """Record that these items now hold data."""
        buffer.raw_written(self.size)[item] = STATE[VALID, self.size]

    def check_initialised(self, c, buffer, chosen, item):
        """Raise Uninitialised if a lane reads bytes that nobody wrote."""
        if buffer.initialised is None or not self.checks.uninitialised:
            return
        flags = buffer.raw_state(self.size).take(item)
        if not ones(flags):
            bad = int(np.flatnonzero((state_bytes(flags) != 1).any(axis=1))[0])
            lane = bad if chosen is None else int(np.flatnonzero(chosen)[bad])
            raise fault(
                Uninitialised, self.ins, c, lane,
                f"read of {self.size} bytes of buffer {buffer.name!r} at offset "
                f"{int(item[bad]) * self.size} that nobody wrote",
                "Look for a bound of an earlier store, or a kernel that should have run before.",
            )  # fmt: skip

    def _misaligned(self, c, address):
        lane = int(np.flatnonzero(address & np.uint64(self.low))[0])
        raise fault(
            Misaligned, self.ins, c, lane,
            f"{self.size}-byte access at {c.run.memory.nearest(int(address[lane]))}, "
            f"address {int(address[lane]):#x}",
            "Look at the strides and the vector width.",
        )  # fmt: skip

    def _outside(self, c, lane, address, writing):
        verb = "write" if writing else "read"
        raise fault(
            OutOfBounds, self.ins, c, lane,
            f"{verb} of {self.size} bytes outside all buffers; nearest: "
            f"{c.run.memory.nearest(address)}",
            "Look at the guard of the last tile and at the strides.",
        )  # fmt: skip

    def _read_only(self, c, lane, buffer, offset):
        raise fault(
            OutOfBounds, self.ins, c, lane,
            f"write to the read-only buffer {buffer.name!r} at offset {offset}",
            "Swapped arguments, or array(..., writable=True) is missing.",
        )  # fmt: skip


class SharedAccess:
    """The accesses to shared memory of one instruction, `size` bytes a lane."""

    def __init__(self, ins, size, checks):
        self.ins, self.size, self.checks = ins, size, checks
        self.shift = size.bit_length() - 1
        self.low = size - 1
        self.valid = STATE[VALID, size]

    def index(self, c, address):
        """Item indices of flat 32-bit shared addresses, checked for bounds and alignment."""
        offset = address.astype(np.int64) - SHARED_ORIGIN
        limit = c.run.shared.size - self.size
        if offset.max() > limit or offset.min() < 0:
            self._outside(c, offset, limit)
        if self.checks.alignment and int(np.bitwise_or.reduce(offset)) & self.low:
            lane = int(np.flatnonzero(offset & self.low)[0])
            raise fault(
                Misaligned, self.ins, c, lane,
                f"{self.size}-byte access at shared offset {int(offset[lane])}",
                "Look at the row pitch, the swizzle and the vector width.",
            )  # fmt: skip
        return (offset + c.shared_base) >> self.shift

    def read(self, c, address, kind="read"):
        """Raw items of `size` bytes at flat 32-bit shared addresses.

        kind: "collective" where the warp reads as one (ldmatrix)."""
        item = self.index(c, address)
        self.check_readable(c, item)
        c.run.observe_shared(self, c, item, kind)
        return c.run.shared.raw[self.size].take(item)

    def write(self, c, address, items):
        """Store raw items."""
        item = self.index(c, address)
        self.check_idle(c, item, "write to")
        c.run.shared.raw[self.size][item] = items
        c.run.shared.raw_state[self.size][item] = self.valid
        c.run.observe_shared(self, c, item, "write", items)

    def check_readable(self, c, item):
        """Every byte written, none in flight."""
        state = c.run.shared.raw_state[self.size].take(item)
        if all_state(state, VALID):
            return
        flags = state_bytes(state)
        if self.checks.async_ and (flags == IN_FLIGHT).any():
            self._in_flight(c, flags, item, "read of")
        if self.checks.uninitialised and (flags == 0).any():
            lane = int(np.flatnonzero((flags == 0).any(axis=1))[0])
            raise fault(
                Uninitialised, self.ins, c, lane,
                f"read of {self.size} bytes at shared offset {self.offset(c, item, lane)} that "
                "nobody wrote",
                "Look at the tile's ragged rows and at the order of stores and barriers.",
            )  # fmt: skip

    def check_idle(self, c, item, verb):
        """No byte is the destination of a copy in flight."""
        if not self.checks.async_ or not c.run.has_async:
            return
        flags = state_bytes(c.run.shared.raw_state[self.size].take(item))
        if (flags == IN_FLIGHT).any():
            self._in_flight(c, flags, item, verb)

    def offset(self, c, item, lane):
        """The shared offset, from the start of the block's memory, of one lane."""
        return int(item[lane]) * self.size - int(c.shared_base[lane])

    def _in_flight(self, c, flags, item, verb):
        lane = int(np.flatnonzero((flags == IN_FLIGHT).any(axis=1))[0])
        raise fault(
            AsyncHazard, self.ins, c, lane,
            f"{verb} {self.size} bytes at shared offset {self.offset(c, item, lane)} while an "
            "asynchronous copy to them is in flight",
            "A wait_group or mbarrier wait is missing or waits for the wrong group.",
        )  # fmt: skip

    def _outside(self, c, offset, limit):
        lane = int(np.flatnonzero((offset > limit) | (offset < 0))[0])
        raise fault(
            OutOfBounds, self.ins, c, lane,
            f"{self.size}-byte access at shared offset {int(offset[lane])} of "
            f"{c.run.shared.size} bytes",
            "Look at the tile index and at the shared_bytes of the launch.",
        )  # fmt: skip


class LocalAccess:
    """The accesses to per-thread local memory of one instruction."""

    def __init__(self, ins, size, checks):
        self.ins, self.size, self.checks = ins, size, checks
        self.shift = size.bit_length() - 1

    def index(self, c, address):
        """Item indices of flat local addresses."""
        offset = address.astype(np.int64)
        wrong = (offset < 0) | (offset > c.run.local.size - self.size) | (offset & (self.size - 1))
        if wrong.any():
            lane = int(np.flatnonzero(wrong)[0])
            raise fault(
                OutOfBounds, self.ins, c, lane,
                f"{self.size}-byte access at local offset {int(offset[lane])} of "
                f"{c.run.local.size} bytes, or misaligned",
            )  # fmt: skip
        return (offset + c.index * c.run.local.stride) >> self.shift

    def read(self, c, address):
        """Raw items at flat local addresses."""
        item = self.index(c, address)
        state = c.run.local.raw_state[self.size].take(item)
        if self.checks.uninitialised and not all_state(state, VALID):
            lane = int(np.flatnonzero((state_bytes(state) == 0).any(axis=1))[0])
            raise fault(Uninitialised, self.ins, c, lane, "read of local memory never written")
        return c.run.local.raw[self.size].take(item)

    def write(self, c, address, items):
        """Store raw items."""
        item = self.index(c, address)
        c.run.local.raw[self.size][item] = items
        c.run.local.raw_state[self.size][item] = STATE[VALID, self.size]
