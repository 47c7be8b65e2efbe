"""ld, st, prefetch and address conversion (PTX ISA 9.7.9)."""

import numpy as np

from . import kernel as k
from .access import GlobalAccess, LocalAccess, SharedAccess
from .errors import OutOfBounds, fault
from .lanes import VIEWS
from .opcodes import opcode
from .spaces import CONST_BASE, LOCAL_BASE, PARAM_BASE, SHARED_BASE, WINDOW

SPACES = ("global", "shared", "local", "param", "const")
ELEMENT = {
    "u8": "u1", "s8": "i1", "b8": "u1", "u16": "u2", "s16": "i2", "b16": "u2", "f16": "u2",
    "u32": "u4", "s32": "i4", "b32": "u4", "f32": "u4", "u64": "u8", "s64": "i8", "b64": "u8",
    "f64": "u8", "bf16": "u2", "f16x2": "u4", "bf16x2": "u4",
}  # fmt: skip


def space_of(ins):
    """global, shared, local, param, const or generic."""
    for mod in ins.mods:
        if mod.split("::")[0] in SPACES:
            return mod.split("::")[0]
    return "generic"


def vector_length(ins):
    """2, 4 or 8 for vector accesses, else 1."""
    return next((int(m[1:]) for m in ins.mods if m in ("v2", "v4", "v8")), 1)


class Space:
    """Reads and writes of one instruction in the space its opcode names, or in any by address."""

    def __init__(self, ins, bind, operand, size):
        self.ins, self.size, self.name = ins, size, space_of(ins)
        self.operand = operand
        checks = bind.checks
        self.shared = SharedAccess(ins, size, checks)
        self.globals = GlobalAccess(ins, size, checks)
        self.local = LocalAccess(ins, size, checks)
        if self.name == "param" and self._device_parameter(bind, operand):
            self.name = "local"
        self.view, self.row, offset = bind.address(operand)
        width = 32 if self.view == "u32" else 64
        self.offset = np.array(offset % (1 << width), self.view.replace("u32", "u4")
                               if width == 32 else "u8") if offset else None  # fmt: skip

    def _device_parameter(self, bind, operand):
        return isinstance(operand.base, k.Symbol) and operand.base.name in bind.local_offsets

    def address(self, c):
        """Flat addresses of the lanes."""
        base = c.v[self.view][self.row]
        if self.offset is not None:
            base = base + self.offset
        return base.reshape(-1)

    def read(self, c):
        """Raw items of the lanes, flat."""
        return self.route(c, self.address(c), None)

    def write(self, c, items):
        """Store raw items of the lanes."""
        self.route(c, self.address(c), items)

    def route(self, c, address, items):
        """Read (items None) or write at addresses of this space."""
        name = self.name
        if name == "generic":
            name, address = self.classify(c, address)
            if name is None:
                return self._mixed(c, address, items)
        if name == "global":
            access = self.globals
        elif name == "shared":
            access = self.shared
        elif name == "local":
            access = self.local
        else:
            return self._constant(c, address, name)
        return access.read(c, address) if items is None else access.write(c, address, items)

    def classify(self, c, address):
        """(space, addresses in it) of generic addresses, or (None, address) if they differ."""
        window = address >> np.uint64(40)
        first = int(window[0])
        if (window != window[0]).any():
            return None, address
        if first == SHARED_BASE // WINDOW:
            return "shared", address - np.uint64(SHARED_BASE)
        if first == LOCAL_BASE // WINDOW:
            return "local", address - np.uint64(LOCAL_BASE)
        names = {PARAM_BASE // WINDOW: "param", CONST_BASE // WINDOW: "const"}
        return names.get(first, "global"), address

    def _mixed(self, c, address, items):
        result = np.zeros((c.n, self.size), np.uint8)
        window = address >> np.uint64(40)
        for value in np.unique(window):
            chosen = window == value
            piece = None if items is None else items[chosen]

            def body(child, chosen=chosen, piece=piece):
                data = self.route(child, address[chosen], piece)
                if data is not None:
                    result[chosen] = data.view(np.uint8).reshape(-1, self.size)

            c.part(chosen, (), body)
        return result.reshape(-1).view(f"u{self.size}" if self.size < 16 else np.complex128)

    def _constant(self, c, address, name):
        base, data = c.run.constant_bytes(name)
        offset = address.astype(np.int64)
        offset = np.where(offset >= base, offset - base, offset)  # generic or of the space
        if offset.min() < 0 or offset.max() > len(data) - self.size:
            lane = int(np.flatnonzero((offset < 0) | (offset > len(data) - self.size))[0])
            raise fault(
                OutOfBounds, self.ins, c, lane,
                f"{self.size}-byte read at .{name} offset {int(offset[lane])} of {len(data)} bytes",
            )  # fmt: skip
        columns = offset[:, None] + np.arange(self.size)
        return data[columns].reshape(-1).view(f"u{self.size}" if self.size < 16 else np.complex128)


def registers_of(operand):
    """The registers of a scalar or vector operand."""
    return operand.items if isinstance(operand, k.Vector) else (operand,)


@opcode("ld", "ldu")
def load(ins, bind):
    """ld{.space}{.vec}.type d, [a]: narrow types are extended into wider registers."""
    element = np.dtype(ELEMENT[ins.type])
    count = vector_length(ins)
    space = Space(ins, bind, ins.operands[1], element.itemsize * count)
    targets = []
    for register in registers_of(ins.operands[0]):
        width = bind.width(register) or 32
        names = [name for name, _ in VIEWS[width]]
        view = names[1] if element.kind == "i" else names[0]
        targets.append((view, bind.out(register)))
    if count == 1:
        view, row = targets[0]

        def scalar(c):
            d = c.v[view][row]
            d[...] = space.read(c).view(element).reshape(d.shape)

        return scalar

    def vector(c):
        items = space.read(c).view(element).reshape(-1, count)
        for i, (view, row) in enumerate(targets):
            d = c.v[view][row]
            d[...] = items[:, i].reshape(d.shape)

    return vector


@opcode("st")
def store(ins, bind):
    """st{.space}{.vec}.type [a], b: wide registers are truncated to narrow types."""
    element = np.dtype(ELEMENT[ins.type].replace("i", "u"))
    count = vector_length(ins)
    space = Space(ins, bind, ins.operands[0], element.itemsize * count)
    sources = []
    for operand in registers_of(ins.operands[1]):
        width = bind.width(operand) or max(element.itemsize * 8, 16)
        view = VIEWS[width][0][0]
        typed = "f32" if ins.type == "f32" and width == 32 else view
        sources.append((view, bind.src(operand, typed)))
    if count == 1:
        view, row = sources[0]
        return lambda c: space.write(c, c.v[view][row].reshape(-1).astype(element))
    raw = f"u{space.size}" if space.size < 16 else np.complex128

    def vector(c):
        items = np.empty((c.n, count), element)
        for i, (view, row) in enumerate(sources):
            items[:, i] = c.v[view][row].reshape(-1)
        space.write(c, items.reshape(-1).view(raw))

    return vector


@opcode("prefetch", "prefetchu", "applypriority", "discard", "createpolicy")
def hint(ins, bind):
    """Cache hints change no value."""
    if ins.opcode.startswith("createpolicy"):
        row = bind.out(ins.operands[0])
        return lambda c: c.v["u64"][row].fill(0)
    return lambda c: None


BASES = {
    "shared": SHARED_BASE,
    "local": LOCAL_BASE,
    "global": 0,
    "const": CONST_BASE,
    "param": PARAM_BASE,
}


@opcode("cvta")
def convert_address(ins, bind):
    """cvta{.to}.space: shared and local addresses live in a window of the generic space."""
    base = np.uint64(BASES[space_of(ins)])
    to = "to" in ins.mods
    source = ins.operands[1]
    view = "u32" if bind.width(source) == 32 else "u64"
    d, a = bind.out(ins.operands[0]), bind.src(source, view)
    out = "u32" if bind.width(ins.operands[0]) == 32 else "u64"

    def run(c):
        value = c.v[view][a].astype(np.uint64)
        c.v[out][d][...] = value - base if to else value + base

    return run


@opcode("isspacep")
def is_space(ins, bind):
    """isspacep.space p, a."""
    windows = {"shared": SHARED_BASE, "local": LOCAL_BASE, "param": PARAM_BASE, "const": CONST_BASE}
    wanted = windows.get(space_of(ins))
    others = [np.uint64(w >> 40) for w in windows.values()]
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], "u64")

    def run(c):
        window = c.v["u64"][a] >> np.uint64(40)
        if wanted is None:
            c.v["pred"][d][...] = ~np.isin(window, others)
        else:
            c.v["pred"][d][...] = window == np.uint64(wanted >> 40)

    return run


@opcode("mapa")
def map_address(ins, bind):
    """mapa of a cluster of one block: the address itself."""
    view = "u64" if ins.type == "u64" else "u32"
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)
    return lambda c: np.copyto(c.v[view][d], c.v[view][a])
