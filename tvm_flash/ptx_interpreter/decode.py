"""Instructions to closures: operands become rows of the register files, once per kernel."""

import re
import struct

import numpy as np

from . import kernel as k
from .errors import UnsupportedInstruction
from .lanes import VIEWS
from .opcodes import ENDS, builder_of, key_of
from .spaces import SHARED_ORIGIN
from .special import NAMES

WIDTHS = {"pred": "pred", "8": 16, "16": 16, "32": 32, "64": 64}
VIEW_OF = {
    "b8": "u16", "u8": "u16", "s8": "s16", "b16": "u16", "u16": "u16", "s16": "s16", "f16": "f16",
    "bf16": "u16", "e4m3x2": "u16", "e5m2x2": "u16", "b32": "u32", "u32": "u32", "s32": "s32",
    "f32": "f32", "tf32": "u32", "f16x2": "u32", "bf16x2": "u32", "u16x2": "u32", "s16x2": "u32",
    "b64": "u64", "u64": "u64", "s64": "s64", "f64": "f64", "pred": "pred", "f32x2": "u64",
}  # fmt: skip
WIDTH_OF_VIEW = {name: width for width, views in VIEWS.items() for name, _ in views}


def register_width(kind):
    """The register file, "pred" or a number of bits, of a declared type."""
    return "pred" if kind == "pred" else WIDTHS[re.sub(r"\D", "", kind.split("x")[0])]


class Binder:
    """Gives operands their rows; remembers what the current instruction touches."""

    def __init__(self, kernel, checks):
        self.kernel, self.checks = kernel, checks
        self.rows = {width: 0 for width in VIEWS}
        self.named, self.constants, self.specials = {}, {}, {}
        self.shared_offsets, self.shared_bytes = k.layout(kernel.variables, "shared")
        self.local_offsets, self.local_bytes = k.layout(kernel.variables, "local")
        self.params = {p.name: p for p in kernel.params}
        self.module_symbols = {}  # rows of .global and .const symbols, filled at launch
        self.touched = []
        self.parts = {}  # what a run of this kernel needs, in order of first mention
        self.wgmma_rows = set()
        self.proxies = any(uses_proxy(ins) for ins in kernel.instructions)

    def needs(self, *kinds):
        """Promise that runs of this kernel have parts of these classes."""
        self.parts.update(dict.fromkeys(kinds))

    def new_row(self, width):
        """A fresh row of the register file of `width`."""
        self.rows[width] += 1
        return self.rows[width] - 1

    def width(self, operand):
        """The width of a register operand in bits, or "pred"; None for immediates."""
        if isinstance(operand, k.Not):
            return "pred"
        return register_width(operand.type) if isinstance(operand, k.Register) else None

    def _row(self, key, width, written):
        table = self.named
        if (key, width) not in table:
            table[key, width] = self.new_row(width)
        row = table[key, width]
        self.touched.append((width, row, written))
        return row

    def out(self, operand, width=None):
        """The row of a destination register; a scratch row for the sink _."""
        if isinstance(operand, k.Sink):
            return self._row("_", width or 32, True)
        return self._row(operand.name, width or register_width(operand.type), True)

    def state(self, name, width):
        """The row of a register that no operand names, read and written."""
        self._row(name, width, False)
        return self._row(name, width, True)

    def src(self, operand, view):
        """The row of a source operand read as `view` (u32, f32, pred ...)."""
        width = WIDTH_OF_VIEW[view]
        if isinstance(operand, k.Register):
            actual = register_width(operand.type)
            if actual != width:
                raise KeyError(f"{operand.name} is {operand.type}, not {width} bits wide")
            return self._row(operand.name, width, False)
        if isinstance(operand, k.Immediate):
            return self.constant(width, immediate_bits(operand, view))
        if isinstance(operand, k.Special):
            return self._special(operand.name, width)
        return self._address_constant(operand, width)

    def constant(self, width, bits):
        """The row that holds a constant."""
        key = width, bits
        if key not in self.constants:
            self.constants[key] = self.new_row(width)
        row = self.constants[key]
        self.touched.append((width, row, False))
        return row

    def _special(self, name, width):
        if name.lstrip("%").split(".")[0] not in NAMES:
            raise KeyError(f"special register {name}")
        key = name, width
        if key not in self.specials:
            self.specials[key] = self.new_row(width)
        self.touched.append((width, self.specials[key], False))
        return self.specials[key]

    def _address_constant(self, operand, width):
        offset = 0
        if isinstance(operand, k.Address):
            operand, offset = operand.base, operand.offset
        name = operand.name
        if name in self.shared_offsets:
            return self.constant(width, SHARED_ORIGIN + self.shared_offsets[name] + offset)
        if name in self.local_offsets:
            return self.constant(width, self.local_offsets[name] + offset)
        if name in self.params:
            return self.constant(width, self.params[name].offset + offset)
        key = name, offset, width
        if key not in self.module_symbols:
            self.module_symbols[key] = self.new_row(width)
        self.touched.append((width, self.module_symbols[key], False))
        return self.module_symbols[key]

    def address(self, operand, narrow=False):
        """(view, row, offset) of an address operand."""
        base = operand.base
        if isinstance(base, k.Register):
            width = register_width(base.type)
            return f"u{width}", self._row(base.name, width, False), operand.offset
        width = 32 if narrow else 64
        if isinstance(base, k.Immediate):
            return f"u{width}", self.constant(width, base.value + operand.offset), 0
        flat = k.Address(base, operand.offset)
        return f"u{width}", self._address_constant(flat, width), 0


def uses_proxy(ins):
    """Whether an instruction reads or writes shared memory through the asynchronous proxy."""
    return ins.opcode.startswith(("cp.async.bulk", "cp.reduce.async.bulk", "wgmma.mma_async"))


def immediate_bits(operand, view):
    """The bits of a literal used as `view`."""
    width = WIDTH_OF_VIEW[view]
    if width == "pred":
        return bool(operand.value)
    if operand.kind == "int":
        if view in ("f32", "f64"):
            packed = struct.pack("<d" if view == "f64" else "<f", operand.value)
            return int.from_bytes(packed, "little")
        return operand.value % (1 << width)
    return float_bits(operand, view)


def float_bits(operand, view):
    """The bits of a floating literal used as `view`."""
    if operand.kind == "f32" or view in ("f64", "u64", "s64"):
        return operand.value
    value = struct.unpack("<d", struct.pack("<Q", operand.value))[0]
    if view in ("f32", "u32", "s32"):
        return int(np.float32(value).view(np.uint32))
    return int(np.float16(value).view(np.uint16))


def decode(ins, bind):
    """(closure, touched rows) of one instruction; the predicate is dealt with here."""
    bind.touched = []
    try:
        body = builder_of(ins)(ins, bind)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, UnsupportedInstruction):
            raise
        raise UnsupportedInstruction(
            f"{ins.where()}: not understood ({type(error).__name__}: {error})"
        ) from error
    if ins.predicate is None or getattr(body, "takes_predicate", False):
        return body, bind.touched
    touched = list(bind.touched)
    negated = isinstance(ins.predicate, k.Not)
    row = bind.src(ins.predicate.operand if negated else ins.predicate, "pred")
    following = ins.block + 1 if key_of(ins) in ENDS else None
    return predicated(body, row, negated, touched, ins, following), bind.touched


def predicated(body, row, negated, touched, ins, following):
    """Run `body` for the lanes whose predicate holds; the others go to block `following`."""

    def run(c):
        chosen = c.v["pred"][row].reshape(-1)
        if negated:
            chosen = ~chosen
        count = np.count_nonzero(chosen)
        if count:
            c.run.predicated.add(ins.index)
        if count == c.n:
            body(c)
        elif count:
            c.part(chosen, touched, body)
        if following is not None and count < c.n:
            c.run.scheduler.goto_index(c.index[~chosen], following)

    return run
