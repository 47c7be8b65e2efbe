"""wgmma.mma_async: products of a warpgroup, operands in shared memory (PTX ISA 9.7.15)."""

import re

import numpy as np

from . import kernel as k
from .errors import AsyncHazard, Deadlock, OutOfBounds, Uninitialised, fault
from .load_store import registers_of
from .matrix import TYPES, gather, left_operand, unpack
from .opcodes import opcode
from .spaces import IN_FLIGHT, SHARED_ORIGIN, VALID, all_state, state_bytes
from .tensor_map import swizzled
from .warpgroup import Warpgroups

DEPTH_BYTES = 32
SWIZZLE_OF_CODE = {0: 0, 1: 128, 2: 64, 3: 32}


class Matrix:
    """An operand in shared memory: where its 16-byte items are, for a 64-bit descriptor."""

    def __init__(self, ins, row, extent, kind, transposed):
        self.ins, self.row, self.extent, self.kind = ins, row, extent, kind
        self.transposed = transposed
        self.bytes = {"tf32": 4, "f16": 2, "bf16": 2}.get(kind, 1)
        self.memo = {}

    def read(self, c, groups):
        """(values [groups, extent, K], items [groups, ...])."""
        descriptor = c.v["u64"][self.row].reshape(groups, -1)
        if (descriptor != descriptor[:, :1]).any():
            raise fault(Deadlock, self.ins, c, 0, "the descriptor differs inside a warpgroup")
        block = c.block.reshape(groups, -1)[:, 0]
        items = np.stack([self._items(c, int(d)) for d in descriptor[:, 0]])
        items = items + (block * c.run.shared.stride // 16).reshape(-1, *[1] * (items.ndim - 1))
        self._check(c, items, groups)
        raw = c.run.shared.raw[16].take(items)
        words = raw.view(np.uint32).reshape(groups, items.shape[1], -1)
        values = unpack(words, self.kind).reshape(groups, items.shape[1], -1)
        return (values.swapaxes(1, 2) if self.transposed else values), items

    def _items(self, c, descriptor):
        if descriptor not in self.memo:
            swizzle = SWIZZLE_OF_CODE[descriptor >> 62]
            if descriptor >> 49 & 7:
                raise fault(
                    Deadlock, self.ins, c, 0, "descriptors with a base offset are not known"
                )
            start = (descriptor & 0x3FFF) << 4
            leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (16, 32))
            offset = self._offsets(leading, stride, swizzle)
            address = swizzled(start + offset, swizzle) - SHARED_ORIGIN
            if address.min() < 0 or address.max() > c.run.shared.size - 16:
                raise fault(
                    OutOfBounds, self.ins, c, 0,
                    f"the matrix reaches shared offsets {address.min()}..{address.max() + 15} of "
                    f"{c.run.shared.size} bytes",
                    "Look at the descriptor's start address and strides.",
                )  # fmt: skip
            self.memo[descriptor] = address >> 4
        return self.memo[descriptor]

    def _offsets(self, leading, stride, swizzle):
        """Byte offsets of the 16-byte items: [extent, K items], or [K, extent items]."""
        width = swizzle or 16
        if not self.transposed:
            row, chunk = np.arange(self.extent)[:, None], np.arange(DEPTH_BYTES // 16)
            step = 16 if swizzle else leading
            return row // 8 * stride + row % 8 * width + chunk * step
        row = np.arange(DEPTH_BYTES // self.bytes)[:, None]
        chunk = np.arange(self.extent * self.bytes // 16)
        if not swizzle:
            return chunk * stride + row % 8 * 16 + row // 8 * leading
        per_atom = width // 16
        across = chunk // per_atom * leading + chunk % per_atom * 16
        return across + row % 8 * width + row // 8 * stride

    def _check(self, c, items, groups):
        checks, shared = c.run.checks, c.run.shared
        state = shared.raw_state[16].take(items)
        if all_state(state, VALID):
            return
        flags = state_bytes(state.reshape(-1)).reshape(*items.shape, 16)
        for value, kind, on, what in (
            (IN_FLIGHT, AsyncHazard, checks.async_, "a copy in flight still writes"),
            (0, Uninitialised, checks.uninitialised, "nobody wrote"),
        ):
            bad = (flags == value).any(axis=-1)
            if on and bad.any():
                group = int(np.argwhere(bad)[0][0])
                offset = int(items[bad][0]) * 16 % shared.stride
                raise fault(
                    kind, self.ins, c, group * 128,
                    f"wgmma reads shared offset {offset}, which {what}",
                    "Wait for the mbarrier of this tile, and look at the descriptor.",
                )  # fmt: skip


class Plan:
    """The decoded operands of one wgmma.mma_async."""

    def __init__(self, ins, bind):
        self.ins = ins
        columns, depth = re.search(r"\.m64n(\d+)k(\d+)", ins.opcode).groups()
        self.columns = int(columns)
        self.d_type, self.a_type, self.b_type = [m for m in ins.mods if m in TYPES][-3:]
        registers, a, b, scale_d, *rest = ins.operands
        self.in_registers = isinstance(a, k.Vector)
        flags = [x.value for x in rest]
        if "satfinite" in ins.mods and self.d_type == "s32":
            raise ValueError("satfinite is not implemented")
        self.signs = flags[:2] or [1, 1]
        turns = ([0, *flags[2:]] if self.in_registers else flags[2:]) or [0, 0]
        self.a_rows = [bind.src(r, "u32") for r in registers_of(a)] if self.in_registers else []
        if not self.in_registers:
            self.a = Matrix(ins, bind.src(a, "u64"), 64, self.a_type, turns[0])
        self.b = Matrix(ins, bind.src(b, "u64"), self.columns, self.b_type, turns[1])
        if depth != str(DEPTH_BYTES // self.b.bytes):
            raise ValueError(f"depth {depth} of {self.b_type}")
        view = {"f32": "f32", "f16": "u32", "s32": "s32"}[self.d_type]
        self.d_rows = [bind.src(r, view) for r in registers_of(registers)]
        for register in registers_of(registers):
            bind.out(register)
        self.scale = None if isinstance(scale_d, k.Immediate) else bind.src(scale_d, "pred")
        self.scale_value = bool(scale_d.value) if self.scale is None else None
        bind.wgmma_rows.update(self.d_rows, self.a_rows)

    def accumulate(self, c, groups):
        """Whether D is added; one answer, or one per lane."""
        if self.scale is None:
            return self.scale_value
        p = c.v["pred"][self.scale]
        return bool(p.all()) if p.all() or not p.any() else p


def complete_groups(ins, c):
    """The number of whole warpgroups in a context; raises if one is incomplete."""
    place = c.warps % (c.run.threads // 32) % 4
    if not c.whole or len(place) % 4 or (place.reshape(-1, 4) != np.arange(4)).any():
        raise fault(
            Deadlock, ins, c, 0, "executed by part of a warpgroup",
            "All four warps must execute wgmma instructions together.",
        )  # fmt: skip
    return len(place) // 4


@opcode("wgmma.mma_async")
def multiply(ins, bind):
    """wgmma.mma_async.sync.aligned.m64nNkK.dtype.atype.btype d, a, b, scale-d, ..."""
    plan = Plan(ins, bind)
    bind.needs(Warpgroups)
    dtype = np.float64 if plan.a_type in ("s8", "u8") else np.float32
    steps = len(plan.a_rows) // 2
    finish = {"f32": _add_f32, "f16": _add_f16, "s32": _add_s32}[plan.d_type]

    def run(c):
        groups = complete_groups(ins, c)
        state = c.run.part(Warpgroups)
        state.before(plan, c)
        held = []
        if plan.in_registers:
            fragments = unpack(gather(c.v["u32"], plan.a_rows, c.n), plan.a_type)
            left = left_operand(fragments, steps, 4 * groups, dtype).reshape(groups, 64, -1)
        else:
            left, items = plan.a.read(c, groups)
            held.append((items, True))
        right, items = plan.b.read(c, groups)
        held.append((items, False))
        state.issue(plan, c, groups, held)
        product = np.matmul(left.astype(dtype), right.astype(dtype).swapaxes(1, 2))
        if plan.signs[0] * plan.signs[1] < 0:
            product = -product
        parts = product.reshape(groups, 4, 2, 8, plan.columns // 8, 4, 2)
        finish(c, plan, parts.transpose(4, 2, 6, 0, 1, 3, 5), plan.accumulate(c, groups))

    run.wgmma = True
    return run


def _kept(old, accumulate):
    if isinstance(accumulate, bool):
        return old if accumulate else old.dtype.type(0)
    return np.where(accumulate, old, old.dtype.type(0))


def _add_f32(c, plan, parts, accumulate):
    v = c.v["f32"]
    values = parts.reshape(len(plan.d_rows), c.n)
    for row, value in zip(plan.d_rows, values, strict=True):
        d = v[row]
        d[...] = value.reshape(c.shape) + _kept(d, accumulate)


def _add_s32(c, plan, parts, accumulate):
    v = c.v["s32"]
    values = parts.reshape(len(plan.d_rows), c.n).astype(np.int64)
    for row, value in zip(plan.d_rows, values, strict=True):
        d = v[row]
        d[...] = value.reshape(c.shape) + _kept(d, accumulate)


def _add_f16(c, plan, parts, accumulate):
    values = parts.reshape(len(plan.d_rows), 2, c.n)
    for row, value in zip(plan.d_rows, values, strict=True):
        d = c.v["u32"][row]
        old = np.ascontiguousarray(d).view(np.float16).reshape(-1, 2).astype(np.float32)
        if not isinstance(accumulate, bool):
            old = old * accumulate.reshape(-1, 1)
        elif not accumulate:
            old = np.float32(0)
        new = (value.T + old).astype(np.float16)
        d[...] = np.ascontiguousarray(new).view(np.uint32).reshape(c.shape)


@opcode("wgmma.fence", ends=True, starts=True)
def fence(ins, bind):
    """wgmma.fence: the warpgroup meets; registers touched before it may be used after it."""
    bind.needs(Warpgroups)
    return lambda c: c.run.part(Warpgroups).fence(ins, c)


@opcode("wgmma.commit_group")
def commit(ins, bind):
    """wgmma.commit_group."""
    bind.needs(Warpgroups)

    def run(c):
        c.run.part(Warpgroups).commit(c)

    run.wgmma = True
    return run


@opcode("wgmma.wait_group")
def wait(ins, bind):
    """wgmma.wait_group n."""
    bind.needs(Warpgroups)
    allowed = ins.operands[0].value

    def run(c):
        c.run.part(Warpgroups).wait(c, allowed)

    run.wgmma = True
    return run
