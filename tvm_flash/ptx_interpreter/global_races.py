"""Races on global memory between the blocks of one launch."""

import numpy as np

from .errors import GlobalRace, fault
from .granules import smallest_global
from .kernel import ACQUIRE, RELEASE

NOBODY, MANY = 0, -1
HINT = (
    "Blocks run in any order: let one block own these bytes, use atomics, or order the blocks by "
    "release and acquire."
)


class Shadow:
    """Who last wrote, read and updated every granule of a buffer: block number + 1."""

    def __init__(self, count):
        self.write, self.read, self.atomic = (np.zeros(count, np.int32) for _ in range(3))


class GlobalRaces:
    """The shadows of the writable buffers during one launch."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.size = smallest_global(kernel)
        self.shadows = {}
        self.published, self.known = {}, {}
        opcodes = {ins.opcode.split(".")[0] for ins in kernel.instructions}
        self.fences = bool(opcodes & {"membar", "fence"})

    def access(self, access, c, buffer, chosen, item, kind):
        """Check and record one access to a buffer."""
        if not buffer.writable:
            return
        owner = (c.run.numbers[c.block] + 1).astype(np.int32)
        owner = owner if chosen is None else owner[chosen]
        if self._orders(access.ins, kind):
            self._synchronise(buffer, item, owner)
        shadow = self._shadow(buffer)
        count = max(access.size // self.size, 1)
        places = item.astype(np.int64)[:, None] * count + np.arange(count)
        kind = "atomic" if access.ins.ordering else kind.replace("copy", "read")
        against = {
            "read": (shadow.write, shadow.atomic),
            "write": (shadow.write, shadow.read, shadow.atomic),
            "atomic": (shadow.write, shadow.read),
        }[kind]
        for array in against:
            self._check(access, c, buffer, chosen, places, owner, array, shadow, kind)
        if kind == "write":
            self._record_write(access, c, buffer, chosen, places, owner, shadow)
        else:
            self._record(getattr(shadow, kind), places, owner)

    def _shadow(self, buffer):
        if id(buffer) not in self.shadows:
            self.shadows[id(buffer)] = Shadow(-(-buffer.nbytes // self.size))
        return self.shadows[id(buffer)]

    def _check(self, access, c, buffer, chosen, places, owner, array, shadow, kind):
        other = array.take(places)
        wrong = (other != NOBODY) & (other != owner[:, None])
        if not wrong.any():
            return
        for i, j in zip(*np.nonzero(wrong), strict=True):
            if int(other[i, j]) in self.known.get(int(owner[i]), ()):
                continue
            lane = int(i) if chosen is None else int(np.flatnonzero(chosen)[i])
            did = "read" if array is shadow.read else "written"
            who = "several blocks" if other[i, j] == MANY else f"block number {other[i, j] - 1}"
            raise fault(
                GlobalRace, access.ins, c, lane,
                f"{kind} of buffer {buffer.name!r} at offset {int(places[i, j]) * self.size}, "
                f"{did} by {who} in the same launch",
                HINT,
            )  # fmt: skip

    def _record(self, array, places, owner):
        """Note reads or atomics; a reader that knows the last one takes its place."""
        old = array.take(places)
        mixed = (old != NOBODY) & (old != owner[:, None])
        if self.known and mixed.any():
            for i, j in zip(*np.nonzero(mixed), strict=True):
                mixed[i, j] = int(old[i, j]) not in self.known.get(int(owner[i]), ())
        new = np.where(mixed, MANY, owner[:, None])
        array[places] = new
        array[places[array.take(places) != new]] = MANY

    def _record_write(self, access, c, buffer, chosen, places, owner, shadow):
        shadow.write[places] = owner[:, None]
        self._check(access, c, buffer, chosen, places, owner, shadow.write, shadow, "write")

    def _orders(self, ins, kind):
        if ins.ordering & (ACQUIRE | RELEASE):
            return True
        return self.fences and (kind == "atomic" or bool(ins.ordering))

    def _synchronise(self, buffer, item, owner):
        """Release and acquire at an address: later blocks know what earlier ones knew."""
        for place, block in zip(item.tolist(), owner.tolist(), strict=True):
            known = self.known.setdefault(block, set())
            published = self.published.setdefault((id(buffer), place), set())
            known |= published
            published |= known | {block}
