"""atom and red on global and shared memory (PTX ISA 9.7.13.5-7)."""

import numpy as np

from .floating import loader, storer
from .lanes import VIEWS
from .load_store import Space, registers_of, vector_length
from .opcodes import opcode
from .spaces import STATE, VALID

OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
DTYPES = {
    "u32": "u4", "s32": "i4", "b32": "u4", "f32": "f4", "u64": "u8", "s64": "i8", "b64": "u8",
    "f64": "f8", "f16": "u2", "bf16": "u2", "f16x2": "u4", "bf16x2": "u4", "b16": "u2",
}  # fmt: skip


def _increment(old, limit):
    return np.where(old >= limit, 0, old + 1).astype(old.dtype)


def _decrement(old, limit):
    return np.where((old == 0) | (old > limit), limit, old - 1).astype(old.dtype)


UPDATE = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "exch": lambda old, new: new,
    "inc": _increment, "dec": _decrement,
}  # fmt: skip


def updater(name, kind):
    """A function (old, operand) -> new on arrays of the element type."""
    if kind not in ("f16", "bf16", "f16x2", "bf16x2"):
        return UPDATE[name]
    load, store = loader(kind), storer(kind)

    def half(old, new):
        result = np.empty_like(old)
        store(result, UPDATE[name](load(old), load(new)))
        return result

    return half


class Target:
    """Where an atomic goes: raw memory items of `size` bytes, found through a Space."""

    def __init__(self, ins, bind, operand, size):
        self.space = Space(ins, bind, operand, size)
        self.size = size

    def each(self, c, body):
        """body(items array, item indices, lanes) for every piece of memory the lanes reach."""
        address = self.space.address(c)
        name = self.space.name
        if name == "generic":
            name, address = self.space.classify(c, address)
        if name == "shared":
            access = self.space.shared
            item = access.index(c, address)
            access.check_readable(c, item)
            c.run.observe_shared(access, c, item, "atomic")
            body(c.run.shared.raw[self.size], item, slice(None))
            return
        access = self.space.globals
        for buffer, chosen, item in access.locate(c, address, writing=True):
            access.check_initialised(c, buffer, chosen, item)
            c.run.observe_global(access, c, buffer, chosen, item, "atomic")
            body(buffer.raw(self.size), item, slice(None) if chosen is None else chosen)
            buffer.raw_written(self.size)[item] = STATE[VALID, self.size]


def rounds(item):
    """Masks of lanes with distinct items, in an order that serves every lane once."""
    left = np.ones(len(item), bool)
    while left.any():
        lanes = np.flatnonzero(left)
        _, first = np.unique(item[lanes], return_index=True)
        chosen = lanes[first]
        yield chosen
        left[chosen] = False


@opcode("atom", "red")
def atomic(ins, bind):
    """atom{.sem}{.scope}{.space}.op{.vec}.type d, [a], b{, c}; red without d."""
    name = next(m for m in ins.mods if m in OPERATIONS)
    kind, count = ins.type, vector_length(ins)
    dtype = np.dtype(DTYPES[kind])
    first = 1 if ins.opcode.startswith("atom") else 0
    target = Target(ins, bind, ins.operands[first], dtype.itemsize * count)
    sources = [_sources(bind, operand, kind) for operand in ins.operands[first + 1 :]]
    outs = _outs(bind, ins.operands[0]) if first else []
    update = updater(name, kind) if name != "cas" else None

    def run(c):
        values = [_stack(c, rows, dtype) for rows in sources]
        old = np.zeros((c.n, count), dtype)

        def body(memory, item, lanes):
            typed = memory.view(dtype).reshape(-1, count) if count > 1 else memory.view(dtype)
            _apply(typed, item, [v[lanes] for v in values], old, lanes, update, count)

        target.each(c, body)
        for i, (view, row) in enumerate(outs):
            d = c.v[view][row]
            d[...] = old[:, i].view(f"u{dtype.itemsize}").reshape(d.shape)

    return run


def _apply(memory, item, values, old, lanes, update, count):
    before = np.empty((len(item), count), memory.dtype)
    flat = memory.reshape(-1, count)
    for chosen in rounds(item):
        at = item[chosen]
        before[chosen] = flat[at]
        if update is None:
            compare, new = values[0][chosen], values[1][chosen]
            flat[at] = np.where(flat[at] == compare, new, flat[at])
        else:
            flat[at] = update(flat[at], values[0][chosen])
    old[lanes] = before


def _sources(bind, operand, kind):
    view = {"f32": "f32", "f64": "f64"}.get(kind, f"u{np.dtype(DTYPES[kind]).itemsize * 8}")
    return [(view, bind.src(r, view)) for r in registers_of(operand)]


def _outs(bind, operand):
    rows = []
    for register in registers_of(operand):
        width = bind.width(register) or 32
        rows.append((VIEWS[width][0][0], bind.out(register)))
    return rows


def _stack(c, rows, dtype):
    columns = [np.ascontiguousarray(c.v[view][row]).reshape(-1).view(dtype) for view, row in rows]
    return np.stack(columns, axis=1)
