"""mov, selp, slct, setp, set: values moved, chosen and compared (PTX ISA 9.7.6, 9.7.9)."""

import numpy as np

from . import kernel as k
from .decode import VIEW_OF
from .floating import flush, loader
from .integer import operands
from .opcodes import opcode

UNPACK = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}


@opcode("mov")
def move(ins, bind):
    """mov: registers, special registers, addresses, and vectors packed into one register."""
    to, source = ins.operands
    if isinstance(to, k.Vector):
        return unpack(ins, bind)
    if isinstance(source, k.Vector):
        return pack(ins, bind)
    width = bind.width(to)
    view = "pred" if width == "pred" else f"u{width}"
    typed = VIEW_OF[ins.type] if VIEW_OF[ins.type] in ("f32", "f64") else view
    d, a = bind.out(to), bind.src(source, typed)
    return lambda c: np.copyto(c.v[view][d], c.v[view][a])


def unpack(ins, bind):
    """mov {a, b}, d: the first gets the lowest bits."""
    items = ins.operands[0].items
    source = ins.operands[1]
    width = bind.width(source) or int(ins.type[1:])
    a = bind.src(source, f"u{width}")
    part = width // len(items)
    rows = [None if isinstance(x, k.Sink) else (bind.width(x), bind.out(x)) for x in items]

    def run(c):
        value = c.v[f"u{width}"][a].reshape(-1, 1)
        pieces = np.ascontiguousarray(value).view(UNPACK[part // 8])
        for i, target in enumerate(rows):
            if target:
                d = c.v[f"u{target[0]}"][target[1]]
                d[...] = pieces[:, i].reshape(d.shape)

    return run


def pack(ins, bind):
    """mov d, {a, b}: the first gives the lowest bits."""
    items = ins.operands[1].items
    width = bind.width(ins.operands[0])
    part = width // len(items)
    view = f"u{max(part, 16)}"
    rows = [bind.src(x, f"u{bind.width(x) or max(part, 16)}") for x in items]
    views = [f"u{bind.width(x)}" if bind.width(x) else view for x in items]
    d = bind.out(ins.operands[0])

    def run(c):
        pieces = np.empty((c.n, len(rows)), UNPACK[part // 8])
        for i, row in enumerate(rows):
            pieces[:, i] = c.v[views[i]][row].reshape(-1)
        target = c.v[f"u{width}"][d]
        target[...] = pieces.view(UNPACK[width // 8]).reshape(target.shape)

    return run


@opcode("selp")
def select(ins, bind):
    """selp d, a, b, p."""
    view = VIEW_OF[ins.type]
    a, b = operands(ins, bind, view, 2)
    negated = isinstance(ins.operands[3], k.Not)
    p = bind.src(ins.operands[3].operand if negated else ins.operands[3], "pred")
    if negated:
        a, b = b, a
    d = bind.out(ins.operands[0])

    def run(c):
        v = c.v[view]
        v[d][...] = np.where(c.v["pred"][p], v[a], v[b])

    return run


@opcode("slct")
def select_by_sign(ins, bind):
    """slct d, a, b, c: a where c >= 0."""
    view, sign = VIEW_OF[ins.mods[-2]], VIEW_OF[ins.type]
    a, b = operands(ins, bind, view, 2)
    e = bind.src(ins.operands[3], sign)
    d = bind.out(ins.operands[0])

    def run(c):
        v = c.v[view]
        v[d][...] = np.where(c.v[sign][e] >= 0, v[a], v[b])

    return run


def _unordered(test):
    return lambda x, y: ~test(x, y)


COMPARE = {
    "eq": np.equal, "ne": lambda x, y: (x < y) | (x > y), "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal,
    "hi": np.greater, "hs": np.greater_equal, "neu": np.not_equal,
    "equ": lambda x, y: ~((x < y) | (x > y)), "ltu": _unordered(np.greater_equal),
    "leu": _unordered(np.greater), "gtu": _unordered(np.less_equal), "geu": _unordered(np.less),
    "num": lambda x, y: (x == x) & (y == y), "nan": lambda x, y: (x != x) | (y != y),
}  # fmt: skip
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(ins, bind, kind, at):
    """(closure giving a boolean array, combining closure or None)."""
    name = next(m for m in ins.mods if m in COMPARE)
    test = COMPARE[name]
    ftz = "ftz" in ins.mods
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        load = loader(kind)
        view = VIEW_OF[kind].replace("f16", "u16")
        a, b = (bind.src(ins.operands[at + i], view) for i in (0, 1))
        return lambda c: test(load(c.v[view][a]), load(c.v[view][b]))
    view = VIEW_OF[kind]
    a, b = (bind.src(ins.operands[at + i], view) for i in (0, 1))
    if view[0] != "f":
        test = np.not_equal if name == "ne" else test
        return lambda c: test(c.v[view][a], c.v[view][b])
    if ftz:
        return lambda c: test(flush(c.v[view][a]), flush(c.v[view][b]))
    return lambda c: test(c.v[view][a], c.v[view][b])


def combiner(ins, bind, at):
    """A closure that combines a comparison with the predicate operand at `at`, if there is one."""
    word = next((m for m in ins.mods if m in COMBINE), None)
    if word is None or len(ins.operands) <= at:
        return lambda c, value: value
    source = ins.operands[at]
    negated = isinstance(source, k.Not)
    row = bind.src(source.operand if negated else source, "pred")
    ufunc = COMBINE[word]

    def run(c, value):
        other = c.v["pred"][row]
        return ufunc(value, ~other if negated else other)

    return run


@opcode("setp")
def set_predicate(ins, bind):
    """setp.cmp{.bool}.type p{|q}, a, b{, c}: q gets the negated comparison, combined too."""
    test = comparison(ins, bind, ins.type, 1)
    combine = combiner(ins, bind, 3)
    target = ins.operands[0]
    if "x2" in ins.type:
        return _set_pair(bind, target, test, combine)
    first, second = target if isinstance(target, k.Pair) else (target, None)
    p = bind.out(first, "pred")
    q = bind.out(second, "pred") if second else None

    def run(c):
        value = test(c)
        inverse = combine(c, ~value) if q is not None else None
        c.v["pred"][p][...] = combine(c, value)
        if q is not None:
            c.v["pred"][q][...] = inverse

    return run


def _set_pair(bind, target, test, combine):
    p, q = bind.out(target.first, "pred"), bind.out(target.second, "pred")

    def run(c):
        value = test(c)
        low, high = combine(c, value[..., 0]), combine(c, value[..., 1])
        c.v["pred"][p][...] = low
        c.v["pred"][q][...] = high

    return run


@opcode("set")
def set_value(ins, bind):
    """set.cmp.dtype.stype: all ones (or 1.0) where the comparison holds."""
    to, kind = ins.mods[-2:]
    test = comparison(ins, bind, kind, 1)
    combine = combiner(ins, bind, 3)
    d = bind.out(ins.operands[0])
    view = VIEW_OF[to]
    if "x2" in kind:
        one = {"f16x2": 0x3C00, "bf16x2": 0x3F80}[to] if to in ("f16x2", "bf16x2") else 0xFFFF

        def packed(c):
            value = combine(c, test(c))
            c.v["u32"][d][...] = value[..., 0] * np.uint32(one) + value[..., 1] * np.uint32(
                one << 16
            )

        return packed
    yes = {"f32": 1.0, "f16": 1.0, "bf16": 0x3F80}.get(to, -1)

    def run(c):
        value = combine(c, test(c))
        c.v[view][d][...] = np.where(value, yes, 0).astype(c.v[view][d].dtype)

    return run
