"""Bulk copies of tensors and of lines (PTX ISA 9.7.9.25.5), landing as late as allowed."""

import numpy as np

from . import kernel as k
from .access import SharedAccess
from .async_copy import Address
from .bulk import Groups, Loads, global_bytes, lane_context, shared_items, tile_bytes
from .errors import LaunchError, Misaligned, fault
from .load_store import Space
from .mbarrier import MBarriers, where
from .opcodes import opcode
from .spaces import PARAM_BASE, SHARED_ORIGIN
from .tensor_map import TensorMap


class MapOperand:
    """[map, {coordinates}]: the map's bytes come from parameters or global memory."""

    def __init__(self, ins, bind, operand):
        self.ins = ins
        self.bytes = Space(ins, bind, k.Address(operand.base, operand.offset), 16)
        self.bytes.name = "generic"
        self.coordinates = [bind.src(x, "s32") for x in operand.coordinates]
        self.memo = {}

    def __call__(self, c):
        """[(TensorMap, coordinates)] of the lanes."""
        where_ = self.bytes.address(c)
        found = []
        for lane in range(c.n):
            tensor_map = self._map(c, lane, int(where_[lane]))
            at = [int(c.v["s32"][row].reshape(-1)[lane]) for row in self.coordinates]
            if len(at) != len(tensor_map.shape):
                raise fault(LaunchError, self.ins, c, lane, "the tensor map has another rank")
            found.append((tensor_map, at))
        return found

    def _map(self, c, lane, address):
        data = self._data(c, lane, address)
        if data not in self.memo:
            try:
                self.memo[data] = TensorMap.from_bytes(data)
            except LaunchError as error:
                raise fault(LaunchError, self.ins, c, lane, str(error)) from None
        return self.memo[data]

    def _data(self, c, lane, address):
        """The 128 bytes of the map, from the parameters or from memory."""
        params = c.run.params
        if PARAM_BASE <= address <= PARAM_BASE + len(params) - 128:
            return params[address - PARAM_BASE :][:128].tobytes()
        child = lane_context(c, lane)
        pieces = [
            self.bytes.route(child, np.array([address + i], np.uint64), None)
            for i in range(0, 128, 16)
        ]
        return b"".join(np.ascontiguousarray(p).tobytes() for p in pieces)


def aligned_target(ins, c, lane, offset, multiple):
    """Raise unless a shared offset is a multiple."""
    if offset % multiple:
        raise fault(
            Misaligned, ins, c, lane,
            f"bulk copy at shared offset {offset}, not a multiple of {multiple}",
            "Align the tile in shared memory.",
        )  # fmt: skip


@opcode("cp.async.bulk.tensor")
def tensor_copy(ins, bind):
    """cp.async.bulk.tensor.Nd: global to shared (mbarrier) or shared to global (bulk group)."""
    if any(m.startswith("im2col") or m.startswith("tile::") for m in ins.mods):
        raise ValueError("only tile mode is interpreted")
    if ins.mods[4].startswith("shared"):
        return _tensor_load(ins, bind)
    return tensor_store(ins, bind, None)


def _tensor_load(ins, bind):
    bind.needs(MBarriers, Loads)
    to = Address(bind, ins.operands[0], True)
    source = MapOperand(ins, bind, ins.operands[1])
    at = where(ins, bind, ins.operands[2])
    access = SharedAccess(ins, 16, bind.checks)

    def run(c):
        addresses = to(c).astype(np.int64) & 0xFFFFFFFF
        barriers = at(c)
        for lane, (tensor_map, coordinates) in enumerate(source(c)):
            child = lane_context(c, lane)
            start = int(addresses[lane]) - SHARED_ORIGIN
            aligned_target(ins, child, 0, start, 128)
            item = shared_items(access, child, start, tensor_map.box_bytes, tensor_map.swizzle)
            data = tile_bytes(ins, child, tensor_map, coordinates)
            c.run.part(MBarriers).find_for_copy(ins, c, lane, barriers[lane])
            c.run.part(Loads).issue(ins, child, access, item, data, barriers[lane])

    return run


def tensor_store(ins, bind, operation):
    """Shared to global through a tensor map; `operation` reduces instead of storing."""
    bind.needs(Groups)
    target = MapOperand(ins, bind, ins.operands[0])
    source = Address(bind, ins.operands[1], True)
    access = SharedAccess(ins, 16, bind.checks)

    def run(c):
        addresses = source(c).astype(np.int64) & 0xFFFFFFFF
        for lane, (tensor_map, coordinates) in enumerate(target(c)):
            child = lane_context(c, lane)
            start = int(addresses[lane]) - SHARED_ORIGIN
            aligned_target(ins, child, 0, start, 128)
            item = shared_items(access, child, start, tensor_map.box_bytes, tensor_map.swizzle)
            offsets, inside, low, high = tensor_map.rows(coordinates)
            groups = c.run.part(Groups)
            data = groups.read(ins, child, access, item).reshape(len(offsets), -1)
            columns = np.arange(low, high)
            address = tensor_map.address + offsets[inside][:, None] + columns
            kind = tensor_map.dtype if operation else None
            groups.issue(ins, child, access, item, address, data[inside][:, low:high], operation,
                         kind)  # fmt: skip

    return run


REDUCTIONS = ("add", "min", "max", "and", "or", "xor", "inc", "dec")


@opcode("cp.reduce.async.bulk.tensor")
def tensor_reduce(ins, bind):
    """cp.reduce.async.bulk.tensor: a tile added (min, max...) to global memory."""
    return tensor_store(ins, bind, next(m for m in ins.mods if m in REDUCTIONS))


@opcode("cp.async.bulk")
def line_copy(ins, bind):
    """cp.async.bulk: contiguous bytes, global to shared or shared to global."""
    spaces = [m for m in ins.mods if m.startswith(("shared", "global"))]
    if spaces[0].startswith("shared") and spaces[1] == "global":
        return _line_load(ins, bind)
    if spaces[0] == "global":
        return line_store(ins, bind, None)
    raise ValueError("copies between the shared memories of a cluster are not interpreted")


def _size(ins, c, lane, value):
    size = int(value[lane])
    if size % 16:
        raise fault(Misaligned, ins, c, lane, f"a bulk copy of {size} bytes, not a multiple of 16")
    return size


def _line_load(ins, bind):
    bind.needs(MBarriers, Loads)
    to, source = Address(bind, ins.operands[0], True), Address(bind, ins.operands[1], False)
    length = bind.src(ins.operands[2], "u32")
    at = where(ins, bind, ins.operands[3])
    access = SharedAccess(ins, 16, bind.checks)

    def run(c):
        starts = (to(c).astype(np.int64) & 0xFFFFFFFF) - SHARED_ORIGIN
        addresses, sizes, barriers = source(c), c.v["u32"][length].reshape(-1), at(c)
        for lane in range(c.n):
            child = lane_context(c, lane)
            size = _size(ins, c, lane, sizes)
            aligned_target(ins, child, 0, int(starts[lane]), 16)
            item = shared_items(access, child, int(starts[lane]), size, 0)
            address = int(addresses[lane]) + np.arange(size)
            data = global_bytes(ins, child, address[None, :])
            c.run.part(MBarriers).find_for_copy(ins, c, lane, barriers[lane])
            c.run.part(Loads).issue(ins, child, access, item, data.reshape(-1), barriers[lane])

    return run


def line_store(ins, bind, operation):
    """Contiguous bytes from shared to global memory, stored or reduced."""
    bind.needs(Groups)
    to, source = Address(bind, ins.operands[0], False), Address(bind, ins.operands[1], True)
    length = bind.src(ins.operands[2], "u32")
    access = SharedAccess(ins, 16, bind.checks)

    def run(c):
        starts = (source(c).astype(np.int64) & 0xFFFFFFFF) - SHARED_ORIGIN
        addresses, sizes = to(c), c.v["u32"][length].reshape(-1)
        for lane in range(c.n):
            child = lane_context(c, lane)
            size = _size(ins, c, lane, sizes)
            aligned_target(ins, child, 0, int(starts[lane]), 16)
            item = shared_items(access, child, int(starts[lane]), size, 0)
            groups = c.run.part(Groups)
            data = groups.read(ins, child, access, item).reshape(1, -1)
            address = (int(addresses[lane]) + np.arange(size))[None, :]
            groups.issue(ins, child, access, item, address, data, operation, ins.type)

    return run


@opcode("cp.reduce.async.bulk")
def line_reduce(ins, bind):
    """cp.reduce.async.bulk.global.shared::cta.bulk_group.add.type."""
    return line_store(ins, bind, next(m for m in ins.mods if m in REDUCTIONS))


@opcode("cp.async.bulk.prefetch", "cp.async.bulk.prefetch.tensor")
def prefetch(ins, bind):
    """Prefetches change no value."""
    return lambda c: None


@opcode("cp.async.bulk.commit_group")
def commit(ins, bind):
    """cp.async.bulk.commit_group."""
    bind.needs(Groups)
    return lambda c: c.run.part(Groups).commit(c)


@opcode("cp.async.bulk.wait_group")
def wait(ins, bind):
    """cp.async.bulk.wait_group{.read} n."""
    bind.needs(Groups)
    allowed = ins.operands[0].value
    return lambda c: c.run.part(Groups).wait(c, allowed)


@opcode("fence.proxy", "fence.mbarrier_init")
def fence_proxy(ins, bind):
    """fence.proxy.async, fence.mbarrier_init: earlier generic writes are visible to copies."""

    def run(c):
        races = c.run.races
        if races and races.clocks.proxy is not None:
            races.clocks.fence_proxy(c)

    return run
