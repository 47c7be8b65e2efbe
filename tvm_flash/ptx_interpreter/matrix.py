"""ldmatrix, stmatrix and mma.sync (PTX ISA 9.7.14.5) as reshapes and one batched product."""

import re

import numpy as np

from . import formats
from .access import SharedAccess
from .async_copy import Address
from .lanes import Context
from .load_store import registers_of
from .opcodes import opcode
from .warp import require_whole


def _count(ins):
    return int(next(m for m in ins.mods if m in ("x1", "x2", "x4"))[1])


def _rows(c, count):
    """A context of the lanes whose addresses count, and their flat mask."""
    if count == 4:
        return c, slice(None)
    chosen = (c.index & 31) < 8 * count
    v = {name: {} for name in c.v}
    index = c.index[chosen]
    return Context(c.run, index, c.block[chosen], c.warps, False, index.shape, v), chosen


@opcode("ldmatrix")
def load_matrix(ins, bind):
    """ldmatrix.sync.aligned.m8n8.x1/.x2/.x4{.trans}.shared.b16: rows of 16 bytes."""
    count, trans = _count(ins), "trans" in ins.mods
    access = SharedAccess(ins, 16, bind.checks)
    where = Address(bind, ins.operands[1], True)
    rows = [bind.out(r) for r in registers_of(ins.operands[0])]

    def run(c):
        require_whole(ins, c)
        readers, chosen = _rows(c, count)
        items = access.read(readers, where(c).astype(np.uint32)[chosen], "collective")
        if trans:
            tiles = items.view(np.uint16).reshape(-1, count, 8, 8).swapaxes(2, 3)
            words = np.ascontiguousarray(tiles.swapaxes(0, 1)).view(np.uint32)
        else:
            words = items.view(np.uint32).reshape(-1, count, 8, 4).swapaxes(0, 1)
        v = c.v["u32"]
        for row, word in zip(rows, words, strict=True):
            v[row][...] = word.reshape(c.shape)

    return run


@opcode("stmatrix")
def store_matrix(ins, bind):
    """stmatrix.sync.aligned.m8n8.x1/.x2/.x4{.trans}.shared.b16."""
    count, trans = _count(ins), "trans" in ins.mods
    access = SharedAccess(ins, 16, bind.checks)
    where = Address(bind, ins.operands[0], True)
    rows = [bind.src(r, "u32") for r in registers_of(ins.operands[1])]

    def run(c):
        require_whole(ins, c)
        writers, chosen = _rows(c, count)
        words = np.stack([c.v["u32"][row].reshape(-1, 8, 4) for row in rows], axis=1)
        if trans:
            halves = np.ascontiguousarray(words).view(np.uint16).swapaxes(2, 3)
            words = np.ascontiguousarray(halves).view(np.uint32)
        items = np.ascontiguousarray(words).reshape(-1).view(np.complex128)
        access.write(writers, where(c).astype(np.uint32)[chosen], items)

    return run


@opcode("movmatrix")
def transpose_matrix(ins, bind):
    """movmatrix.sync.aligned.m8n8.trans.b16."""
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], "u32")

    def run(c):
        require_whole(ins, c)
        tile = np.ascontiguousarray(c.v["u32"][a]).view(np.uint16).reshape(-1, 8, 8)
        turned = np.ascontiguousarray(tile.swapaxes(1, 2)).view(np.uint32)
        c.v["u32"][d][...] = turned.reshape(c.shape)

    return run


# Elements of A and B in a 32-bit register.
PACKED = {"f16": 2, "bf16": 2, "tf32": 1, "e4m3": 4, "e5m2": 4, "s8": 4, "u8": 4}


def unpack(words, kind):
    """Words [...] as values [..., elements]: float32, or float64 for integers."""
    if kind == "bf16":
        values = np.empty((*words.shape, 2), np.float32)
        bits = values.view(np.uint32)
        np.left_shift(words, np.uint32(16), bits[..., 0])
        np.bitwise_and(words, np.uint32(0xFFFF0000), bits[..., 1])
        return values
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
    element = {"f16": np.float16, "s8": np.int8}.get(kind, np.uint8)
    values = words.view(element).reshape(*words.shape, PACKED[kind])
    if kind in formats.TABLES:
        return formats.TABLES[kind][values]
    return values


def gather(v, rows, n):
    """Registers stacked as [rows, lanes]."""
    words = np.empty((len(rows), n), np.uint32)
    for i, row in enumerate(rows):
        words[i] = v[row].reshape(-1)
    return words


@opcode("mma.sync")
def multiply_accumulate(ins, bind):
    """mma.sync.aligned.m16n8kK.row.col.dtype.atype.btype.ctype: D = A B + C in each warp."""
    depth = int(re.search(r"\.m16n8k(\d+)\.", ins.opcode).group(1))
    d_type, a_type, b_type, c_type = [m for m in ins.mods if m in TYPES][-4:]
    steps = depth // (4 * PACKED[a_type])
    outs = [bind.out(r) for r in registers_of(ins.operands[0])]
    a, b = ([bind.src(r, "u32") for r in registers_of(ins.operands[i])] for i in (1, 2))
    view = {"f32": "f32", "s32": "s32", "f16": "u32"}[c_type]
    sums = [bind.src(r, view) for r in registers_of(ins.operands[3])]
    if len(a) != 2 * steps or len(b) != steps:
        raise ValueError(f"m16n8k{depth} of {a_type} takes {2 * steps} + {steps} registers")
    dtype = np.float64 if a_type in ("s8", "u8") else np.float32
    saturated = "satfinite" in ins.mods
    finish = FINISH[d_type]
    if outs != sums and set(outs) & set(sums):
        raise ValueError("D and C share registers in another order")

    def run(c):
        require_whole(ins, c)
        v = c.v["u32"]
        warps = c.n // 32
        left = left_operand(unpack(gather(v, a, c.n), a_type), steps, warps, dtype)
        right = right_operand(unpack(gather(v, b, c.n), b_type), steps, warps, dtype)
        product = np.matmul(left, right).reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3)
        finish(c, outs, sums, product, saturated)

    return run


def left_operand(values, steps, warps, dtype):
    """A [warps, 16, K] of fragments [2 * steps, lanes, elements]."""
    packed = values.shape[-1]
    matrix = np.empty((warps, 2, 8, steps, 4, packed), dtype)
    matrix[...] = values.reshape(steps, 2, warps, 8, 4, packed).transpose(2, 1, 3, 0, 4, 5)
    return matrix.reshape(warps, 16, -1)


def right_operand(values, steps, warps, dtype):
    """B [warps, K, 8] of fragments [steps, lanes, elements]."""
    packed = values.shape[-1]
    matrix = np.empty((warps, 8, steps, 4, packed), dtype)
    matrix[...] = values.reshape(steps, warps, 8, 4, packed).transpose(1, 2, 0, 3, 4)
    return matrix.reshape(warps, 8, -1).swapaxes(1, 2)


def _finish_f32(c, outs, sums, product, saturated):
    v = c.v["f32"]
    for i, (d, s) in enumerate(zip(outs, sums, strict=True)):
        v[d][...] = product[i >> 1, i & 1].reshape(c.shape) + v[s]


def _finish_f16(c, outs, sums, product, saturated):
    v = c.v["u32"]
    for i, (d, s) in enumerate(zip(outs, sums, strict=True)):
        old = np.ascontiguousarray(v[s]).view(np.float16).reshape(-1, 2)
        new = product[i].reshape(2, -1).T + old.astype(np.float32)
        v[d][...] = np.ascontiguousarray(new.astype(np.float16)).view(np.uint32).reshape(c.shape)


def _finish_s32(c, outs, sums, product, saturated):
    v = c.v["s32"]
    for i, (d, s) in enumerate(zip(outs, sums, strict=True)):
        total = product[i >> 1, i & 1].reshape(c.shape).astype(np.int64) + v[s]
        v[d][...] = np.clip(total, -(1 << 31), (1 << 31) - 1) if saturated else total


TYPES = {*PACKED, "f32", "s32"}
FINISH = {"f32": _finish_f32, "f16": _finish_f16, "s32": _finish_s32}
