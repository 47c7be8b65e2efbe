"""Exchanges inside a warp: shfl, vote, match, redux, elect, activemask (PTX ISA 9.7.9, 9.7.13)."""

import numpy as np

from . import kernel as k
from .errors import Deadlock, fault
from .opcodes import opcode

KEPT = 16  # patterns of a shuffle worth remembering
BITS = np.uint64(1) << np.arange(32, dtype=np.uint64)


class Grid:
    """The lanes of a context laid out as [warps, 32], with a mask of those present."""

    def __init__(self, c):
        self.lane = c.index & 31
        self.slot = np.searchsorted(c.warps, c.index >> 5)
        self.present = np.zeros((len(c.warps), 32), bool)
        self.present[self.slot, self.lane] = True

    def spread(self, values, fill=0):
        """Flat values as [warps, 32]."""
        grid = np.full(self.present.shape, fill, values.dtype)
        grid[self.slot, self.lane] = values.reshape(-1)
        return grid

    def back(self, grid):
        """Flat values of a [warps, 32] array."""
        return grid[self.slot, self.lane]


def member_masks(ins, c, grid, mask):
    """[warps, 32] booleans of the member mask; every member must be here."""
    member = grid.spread(mask.reshape(-1))
    first = member[np.arange(len(member)), grid.present.argmax(axis=1)]
    bits = ((first[:, None].astype(np.uint64) & BITS) != 0) & alive(c)
    if (bits & ~grid.present).any():
        missing = np.flatnonzero((bits & ~grid.present).any(axis=0))
        raise fault(
            Deadlock, ins, c, 0,
            f"lanes {missing[:8].tolist()} of the member mask do not execute this instruction",
            "A branch that only part of the warp takes must not hold warp-wide instructions.",
        )  # fmt: skip
    return bits


def alive(c):
    """[warps, 32] booleans: lanes that have not exited."""
    return c.run.scheduler.alive.reshape(-1, 32)[c.warps]


def require_whole(ins, c):
    """Raise unless all lanes of each warp execute this .aligned instruction together."""
    if not c.whole:
        raise fault(
            Deadlock, ins, c, 0, "executed by part of a warp; all 32 lanes must come together",
            "Look for a branch that depends on the lane.",
        )  # fmt: skip


@opcode("shfl.sync", "shfl")
def shuffle(ins, bind):
    """shfl.sync.up/down/bfly/idx d|p, a, b, c, membermask."""
    target = ins.operands[0]
    first, second = target if isinstance(target, k.Pair) else (target, None)
    a, b, clamp = (bind.src(ins.operands[i], "u32") for i in (1, 2, 3))
    mask = bind.src(ins.operands[4], "u32") if len(ins.operands) > 4 else None
    d = bind.out(first)
    p = bind.out(second, "pred") if second and not isinstance(second, k.Sink) else None
    mode = next(m for m in ins.mods if m in ("up", "down", "bfly", "idx"))
    memo = {}

    def run(c):
        v = c.v["u32"]
        key = c.index.tobytes() + v[b].tobytes() + v[clamp].tobytes()
        if mask is not None:
            key += v[mask].tobytes()
        if key not in memo:
            if len(memo) > KEPT:
                memo.clear()
            members = v[mask] if mask is not None else None
            memo[key] = _sources(ins, c, mode, v[b], v[clamp], members)
        source, valid = memo[key]
        v[d][...] = v[a].reshape(-1)[source].reshape(c.shape)
        if p is not None:
            c.v["pred"][p][...] = valid.reshape(c.shape)

    return run


def _sources(ins, c, mode, b, clamp, mask):
    lane = c.index & 31
    b, clamp = b.reshape(-1).astype(np.int64) & 31, clamp.reshape(-1).astype(np.int64)
    segment = (clamp >> 8) & 31
    limit = (lane & segment) | (clamp & 31 & ~segment)
    wanted = {
        "up": lane - b,
        "down": lane + b,
        "bfly": lane ^ b,
        "idx": (lane & segment) | (b & ~segment),
    }[mode]
    valid = wanted >= limit if mode == "up" else wanted <= limit
    wanted = np.where(valid, wanted, lane)
    if mask is not None:
        member_masks(ins, c, Grid(c), mask)
    position = np.full(c.run.lanes, -1)
    position[c.index] = np.arange(c.n)
    source = position[c.index - lane + wanted]
    if (source < 0).any():
        lane = int(np.flatnonzero(source < 0)[0])
        raise fault(
            Deadlock, ins, c, lane, "reads a lane that does not execute this shuffle",
            "All lanes of the member mask must reach it.",
        )  # fmt: skip
    return source, valid


@opcode("vote.sync", "vote")
def vote(ins, bind):
    """vote.sync.all/any/uni/ballot d, {!}a, membermask."""
    source = ins.operands[1]
    negated = isinstance(source, k.Not)
    a = bind.src(source.operand if negated else source, "pred")
    mask = bind.src(ins.operands[2], "u32")
    ballot = "ballot" in ins.mods
    d = bind.out(ins.operands[0], 32 if ballot else "pred")
    mode = next(m for m in ins.mods if m in ("all", "any", "uni", "ballot"))

    def run(c):
        grid = Grid(c)
        members = member_masks(ins, c, grid, c.v["u32"][mask])
        value = c.v["pred"][a]
        value = grid.spread(~value if negated else value)
        if ballot:
            result = ((value & members) * BITS).sum(axis=1)
            c.v["u32"][d][...] = result[grid.slot].reshape(c.shape)
            return
        every, some = (value | ~members).all(axis=1), (value & members).any(axis=1)
        result = {"all": every, "any": some, "uni": every | ~some}[mode]
        c.v["pred"][d][...] = result[grid.slot].reshape(c.shape)

    return run


@opcode("activemask")
def active_mask(ins, bind):
    """activemask: the lanes that run together here."""
    d = bind.out(ins.operands[0])

    def run(c):
        grid = Grid(c)
        c.v["u32"][d][...] = (grid.present * BITS).sum(axis=1)[grid.slot].reshape(c.shape)

    return run


@opcode("match.any.sync", "match.all.sync")
def match(ins, bind):
    """match.any/all.sync d{|p}, a, membermask: the lanes with my value."""
    target = ins.operands[0]
    first, second = target if isinstance(target, k.Pair) else (target, None)
    view = "u64" if ins.type == "b64" else "u32"
    a, mask = bind.src(ins.operands[1], view), bind.src(ins.operands[2], "u32")
    d, p = bind.out(first), bind.out(second, "pred") if second else None
    every = "all" in ins.mods

    def run(c):
        grid = Grid(c)
        members = member_masks(ins, c, grid, c.v["u32"][mask])
        value = grid.spread(c.v[view][a])
        same = (value[:, :, None] == value[:, None, :]) & members[:, None, :]
        if every:
            whole = same.sum(axis=2) == members.sum(axis=1)[:, None]
            result = np.where(whole, (members * BITS).sum(axis=1)[:, None], np.uint64(0))
            if p is not None:
                c.v["pred"][p][...] = grid.back(whole).reshape(c.shape)
        else:
            result = (same * BITS).sum(axis=2)
        c.v["u32"][d][...] = grid.back(result).reshape(c.shape)

    return run


REDUCE = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


@opcode("redux.sync")
def reduce(ins, bind):
    """redux.sync.op d, a, membermask."""
    ufunc = REDUCE[next(m for m in ins.mods if m in REDUCE)]
    view = {"s32": "s32", "f32": "f32"}.get(ins.type, "u32")
    a, mask = bind.src(ins.operands[1], view), bind.src(ins.operands[2], "u32")
    d = bind.out(ins.operands[0])

    def run(c):
        grid = Grid(c)
        members = member_masks(ins, c, grid, c.v["u32"][mask])
        values = grid.spread(c.v[view][a])
        rows = np.array([ufunc.reduce(v[m]) for v, m in zip(values, members, strict=True)])
        c.v[view][d][...] = rows.astype(values.dtype)[grid.slot].reshape(c.shape)

    return run


@opcode("elect.sync")
def elect(ins, bind):
    """elect.sync d|p, membermask: one leader, here the lowest member."""
    target = ins.operands[0]
    first, second = target if isinstance(target, k.Pair) else (target, None)
    mask = bind.src(ins.operands[1], "u32")
    d, p = bind.out(first, 32), bind.out(second, "pred") if second else None

    def run(c):
        grid = Grid(c)
        members = member_masks(ins, c, grid, c.v["u32"][mask])
        leader = members.argmax(axis=1)[grid.slot]
        c.v["u32"][d][...] = leader.reshape(c.shape)
        if p is not None:
            c.v["pred"][p][...] = (leader == grid.lane).reshape(c.shape)

    return run
