"""Logic, shifts and bit fields (PTX ISA 9.7.1.13-, 9.7.8)."""

import numpy as np

from .decode import VIEW_OF
from .integer import binary, operands, unary
from .opcodes import opcode

LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@opcode("and", "or", "xor")
def logic(ins, bind):
    """and, or, xor of bits or predicates."""
    view = VIEW_OF[ins.type]
    a, b = operands(ins, bind, view, 2)
    return binary(LOGIC[ins.opcode.split(".")[0]], view, bind.out(ins.operands[0]), a, b)


@opcode("not", "cnot")
def complement(ins, bind):
    """not, cnot (1 where a is 0)."""
    view = VIEW_OF[ins.type]
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)
    if ins.opcode.startswith("cnot"):
        return unary(lambda x, out: np.equal(x, 0, out=out, casting="unsafe"), view, d, a)
    return unary(np.logical_not if view == "pred" else np.invert, view, d, a)


@opcode("shl", "shr")
def shift(ins, bind):
    """shl, shr: amounts beyond the width give 0, or the sign."""
    view = VIEW_OF[ins.type]
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)
    b = bind.src(ins.operands[2], "u32")
    ufunc = np.left_shift if ins.opcode.startswith("shl") else np.right_shift
    if view == "u32":
        return binary(ufunc, view, d, a, b)
    limit = int(view[1:]) - 1 if view[0] == "s" else int(view[1:])

    def run(c):
        v = c.v[view]
        amount = np.minimum(c.v["u32"][b], limit).astype(v[a].dtype)
        ufunc(v[a], amount, v[d])

    return run


@opcode("shf")
def funnel(ins, bind):
    """shf.l/.r.clamp/.wrap.b32: 32 bits of a shifted 64-bit pair."""
    a, b, n = operands(ins, bind, "u32", 3)
    d = bind.out(ins.operands[0])
    left, wrap = "l" in ins.mods, "wrap" in ins.mods

    def run(c):
        v = c.v["u32"]
        amount = (v[n] & 31 if wrap else np.minimum(v[n], 32)).astype(np.uint64)
        pair = (v[b].astype(np.uint64) << np.uint64(32)) | v[a]
        if left:
            v[d][...] = (pair << amount) >> np.uint64(32)
        else:
            v[d][...] = pair >> amount

    return run


@opcode("bfe")
def extract(ins, bind):
    """bfe: a field of `len` bits from `pos`, sign extended for s32, s64."""
    view = VIEW_OF[ins.type]
    bits = int(view[1:])
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)
    pos, length = (bind.src(ins.operands[i], "u32") for i in (2, 3))
    signed = view[0] == "s"

    def run(c):
        v, u = c.v[view], c.v["u32"]
        p = (u[pos] & 0xFF).astype(np.int64)
        n = (u[length] & 0xFF).astype(np.int64)
        value = v[a].astype(np.int64 if signed else np.uint64)
        low = value >> np.minimum(p, 63).astype(value.dtype)
        keep = np.minimum(n, np.maximum(bits - p, 0))
        spare = (64 - np.clip(keep, 1, 64)).astype(value.dtype)
        if signed:
            sign_at = np.minimum(p + n - 1, bits - 1)
            sign = (value >> np.maximum(sign_at, 0)) & 1
            filled = np.where(keep > 0, (low << spare) >> spare, -sign)
            v[d][...] = np.where(n == 0, 0, np.where(p + n > bits, np.where(p < bits, low, -sign),
                                                     filled))  # fmt: skip
        else:
            v[d][...] = np.where(keep == 0, 0, (low << spare) >> spare)

    return run


@opcode("bfi")
def insert(ins, bind):
    """bfi: the low `len` bits of a put into b at `pos`."""
    view = VIEW_OF[ins.type]
    bits = int(view[1:])
    a, b = operands(ins, bind, view, 2)
    pos, length = (bind.src(ins.operands[i], "u32") for i in (3, 4))
    d = bind.out(ins.operands[0])

    def run(c):
        v, u = c.v[view], c.v["u32"]
        p = (u[pos] & 0xFF).astype(np.uint64)
        n = np.minimum(u[length] & 0xFF, bits).astype(np.uint64)
        one = np.uint64(1)
        field = np.where(n >= 64, ~np.uint64(0), (one << np.minimum(n, 63)) - one)
        field = np.where(p >= bits, np.uint64(0), field << np.minimum(p, np.uint64(63)))
        moved = v[a].astype(np.uint64) << np.minimum(p, np.uint64(63))
        v[d][...] = (v[b].astype(np.uint64) & ~field) | (moved & field)

    return run


@opcode("bmsk")
def mask(ins, bind):
    """bmsk: `b` ones from bit `a`."""
    a, b = operands(ins, bind, "u32", 2)
    d = bind.out(ins.operands[0])
    wrap = "wrap" in ins.mods

    def run(c):
        v = c.v["u32"]
        p, n = v[a].astype(np.uint64), v[b].astype(np.uint64)
        p, n = (p & 31, n & 31) if wrap else (np.minimum(p, 32), np.minimum(n, 32))
        one = np.uint64(1)
        v[d][...] = (((one << n) - one) << p) & np.uint64(0xFFFFFFFF)

    return run


@opcode("prmt")
def permute(ins, bind):
    """prmt: four bytes picked from eight, by selector or mode."""
    a, b, s = operands(ins, bind, "u32", 3)
    d = bind.out(ins.operands[0])
    mode = next((m for m in ins.mods if m in MODES), None)

    def run(c):
        v = c.v["u32"]
        pair = (v[b].astype(np.uint64) << np.uint64(32)) | v[a]
        source = pair.reshape(-1, 1).view(np.uint8)
        selector = v[s].reshape(-1)
        picks = MODES[mode](selector & 3) if mode else _nibbles(selector)
        chosen = np.take_along_axis(source, picks & 7, axis=1)
        sign = (picks & 8) != 0
        chosen = np.where(sign, np.where(chosen & 0x80, 0xFF, 0), chosen).astype(np.uint8)
        v[d][...] = np.ascontiguousarray(chosen).view(np.uint32).reshape(v[d].shape)

    return run


def _nibbles(selector):
    shifts = np.array([0, 4, 8, 12], np.uint32)
    return ((selector[:, None] >> shifts) & 15).astype(np.int64)


def _table(rows):
    table = np.array(rows)
    return lambda selector: table[selector]


MODES = {
    "f4e": _table([[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]),
    "b4e": _table([[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]]),
    "rc8": _table([[0] * 4, [1] * 4, [2] * 4, [3] * 4]),
    "ecl": _table([[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]]),
    "ecr": _table([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]),
    "rc16": _table([[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]),
}


@opcode("lop3")
def lookup(ins, bind):
    """lop3.b32: any function of three bits, as a table of eight."""
    a, b, e = operands(ins, bind, "u32", 3)
    table = ins.operands[4].value
    d = bind.out(ins.operands[0])

    def run(c):
        v = c.v["u32"]
        x, y, z = v[a], v[b], v[e]
        total = np.zeros(c.shape, np.uint32)
        for i in range(8):
            if table >> i & 1:
                total |= (x if i & 4 else ~x) & (y if i & 2 else ~y) & (z if i & 1 else ~z)
        v[d][...] = total

    return run


@opcode("popc")
def population(ins, bind):
    """popc: the number of ones."""
    view = VIEW_OF[ins.type]
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)

    def run(c):
        value = c.v[view][a]
        bits = np.unpackbits(np.ascontiguousarray(value).reshape(-1, 1).view(np.uint8), axis=1)
        c.v["u32"][d][...] = bits.sum(axis=1).reshape(c.shape)

    return run


def top_bit(value):
    """The position of the highest one of unsigned values, -1 for 0."""
    result = np.full(value.shape, -1, np.int64)
    rest = value.astype(np.uint64)
    for step in (32, 16, 8, 4, 2, 1):
        high = rest >= np.uint64(1) << np.uint64(step)
        result = np.where(high, np.maximum(result, 0) + step, result)
        rest = np.where(high, rest >> np.uint64(step), rest)
    return np.where(rest > 0, np.maximum(result, 0), result)


@opcode("clz")
def leading_zeros(ins, bind):
    """clz: zeros above the highest one."""
    view = VIEW_OF[ins.type]
    bits = int(view[1:])
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)
    return lambda c: np.copyto(c.v["u32"][d], bits - 1 - top_bit(c.v[view][a]), casting="unsafe")


@opcode("bfind")
def find_bit(ins, bind):
    """bfind: the highest bit that differs from the sign; all ones where there is none."""
    view = VIEW_OF[ins.type]
    bits = int(view[1:])
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)
    amount = "shiftamt" in ins.mods

    def run(c):
        value = c.v[view][a]
        if view[0] == "s":
            value = np.where(value < 0, ~value, value)
        top = top_bit(value)
        found = np.where(top < 0, -1, bits - 1 - top) if amount else top
        c.v["s32"][d][...] = found

    return run


@opcode("brev")
def reverse(ins, bind):
    """brev: the bits in reverse order."""
    view = VIEW_OF[ins.type]
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)

    def run(c):
        value = np.ascontiguousarray(c.v[view][a]).reshape(-1, 1)
        bits = np.unpackbits(value.view(np.uint8), axis=1, bitorder="little")
        packed = np.packbits(bits[:, ::-1], axis=1, bitorder="little")
        c.v[view][d][...] = np.ascontiguousarray(packed).view(value.dtype).reshape(c.shape)

    return run
