"""cvt: conversions among all number formats (PTX ISA 9.7.9.21)."""

import numpy as np

from . import formats
from .decode import VIEW_OF
from .floating import loader, relu_of, saturate, storer
from .formats import flush
from .opcodes import opcode

INTEGER = {f"{s}{n}": np.dtype(f"{'i' if s == 's' else 'u'}{n // 8}")
           for s in "su" for n in (8, 16, 32, 64)}  # fmt: skip
FLOAT = ("f16", "bf16", "f32", "f64", "tf32")
PACKED = ("f16x2", "bf16x2", "e4m3x2", "e5m2x2")
TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
MODES = ("rn", "rz", "rm", "rp", "rna")


@opcode("cvt")
def convert(ins, bind):
    """cvt{.mode}{.ftz}{.sat}.dtype.stype d, a{, b}."""
    to, kind = ins.mods[-2:]
    if to in PACKED:
        return convert_packed(ins, bind, to, kind)
    read = reader(ins, bind, kind)
    if to in INTEGER:
        write = integer_writer(ins, bind, to, kind)
    else:
        write = float_writer(ins, bind, to, kind)
    return lambda c: write(c, read(c))


def reader(ins, bind, kind):
    """A closure giving the source values: integers, or float32/float64."""
    source = ins.operands[1]
    if kind in INTEGER:
        width = bind.width(source) or max(INTEGER[kind].itemsize * 8, 16)
        row = bind.src(source, f"u{width}")
        unsigned, dtype = np.dtype(f"u{INTEGER[kind].itemsize}"), INTEGER[kind]
        return lambda c: c.v[f"u{width}"][row].astype(unsigned).view(dtype)
    if kind in ("f16", "bf16"):
        load = loader(kind)
        row = bind.src(source, "u16")
        return lambda c: load(c.v["u16"][row])
    view = VIEW_OF[kind].replace("u32", "f32")
    row = bind.src(source, view)
    if "ftz" in ins.mods and view == "f32":
        return lambda c: flush(c.v[view][row])
    return lambda c: c.v[view][row]


def integer_writer(ins, bind, to, kind):
    """A closure storing values as an integer type, extended to the register's width."""
    dtype = INTEGER[to]
    width = bind.width(ins.operands[0])
    d = bind.out(ins.operands[0])
    view = f"{'s' if to[0] == 's' else 'u'}{width}"
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if kind in INTEGER:
        sat = "sat" in ins.mods
        unsigned = np.dtype(f"u{dtype.itemsize}")

        def store(c, x):
            if sat:
                x = _clip(x, low, high)
            c.v[view][d][...] = x.astype(unsigned).view(dtype)

        return store
    to_whole = TO_INTEGER[next((m for m in ins.mods if m in TO_INTEGER), "rzi")]
    missing = low if dtype.itemsize == 8 and to[0] == "s" else (1 << 63 if to == "u64" else 0)

    def store_float(c, x):
        whole = to_whole(x.astype(np.float64))
        inside = np.where(np.isnan(whole) | (whole <= low) | (whole >= high), 0, whole)
        result = inside.astype(dtype)
        result = np.where(whole <= low, low, np.where(whole >= high, high, result))
        c.v[view][d][...] = np.where(np.isnan(whole), dtype.type(missing), result.astype(dtype))

    return store_float


def _clip(x, low, high):
    info = np.iinfo(x.dtype)
    return np.clip(x, max(low, info.min), min(high, info.max))


def float_writer(ins, bind, to, kind):
    """A closure storing values as a float type."""
    d = bind.out(ins.operands[0])
    mode = next((m for m in ins.mods if m in MODES), "rn")
    whole = next((TO_INTEGER[m] for m in ins.mods if m in TO_INTEGER), None)
    ftz, sat, relu = ("ftz" in ins.mods), ("sat" in ins.mods), ("relu" in ins.mods)
    put = _putter(to, mode, d, kind)

    def store(c, x):
        if whole is not None:
            x = whole(x)
        if sat:
            x = saturate(x)
        if relu:
            x = relu_of(x)
        put(c, x, ftz)

    return store


def _putter(to, mode, d, kind):
    if to == "tf32":

        def put_tf32(c, x, ftz):
            c.v["u32"][d][...] = formats.f32_to_tf32(np.ascontiguousarray(x), mode)

        return put_tf32
    if to in ("f16", "bf16"):
        store = storer(to)

        def put_half(c, x, ftz):
            if to == "bf16" or kind in INTEGER:
                x = _narrow(x, mode)
            store(c.v["u16"][d], x, mode)

        return put_half
    if to == "f64":

        def put_double(c, x, ftz):
            c.v["f64"][d][...] = x

        return put_double

    def put_single(c, x, ftz):
        value = _narrow(x, mode)
        c.v["f32"][d][...] = flush(np.ascontiguousarray(value)) if ftz else value

    return put_single


def _narrow(x, mode):
    """float32 of integers or floats in a rounding mode."""
    if mode == "rn" or x.dtype == np.float32:
        return x.astype(np.float32)
    if x.dtype.itemsize == 8 and x.dtype.kind in "iu":
        return formats.round_f32(x.astype(np.longdouble), mode)
    return formats.round_f32(x.astype(np.float64), mode)


def convert_packed(ins, bind, to, kind):
    """Two results in one register; of two sources the first gives the upper half."""
    d = bind.out(ins.operands[0])
    mode = next((m for m in ins.mods if m in MODES), "rn")
    relu = "relu" in ins.mods
    read = _pair_reader(ins, bind, kind)
    element = to[:-2]
    out = "u32" if element in ("f16", "bf16") else "u16"
    satfinite = "satfinite" in ins.mods

    def run(c):
        pair = read(c)
        if relu:
            pair = relu_of(pair)
        if element == "f16":
            if satfinite:
                pair = np.clip(pair, -65504, 65504)
            bits = formats.f32_to_f16(pair, mode).view(np.uint32)
        elif element == "bf16":
            bits = formats.f32_to_bf16(pair, mode).view(np.uint32)
        else:
            bits = formats.to_fp8(pair, element).view(np.uint16)
        c.v[out][d][...] = bits.reshape(c.shape)

    return run


def _pair_reader(ins, bind, kind):
    """A closure giving float32 [..., 2], the lower half first."""
    if kind == "f32":
        upper, lower = (bind.src(ins.operands[i], "f32") for i in (1, 2))
        ftz = "ftz" in ins.mods

        def read(c):
            v = c.v["f32"]
            pair = np.empty((*c.shape, 2), np.float32)
            pair[..., 0], pair[..., 1] = v[lower], v[upper]
            return flush(pair) if ftz else pair

        return read
    if kind in ("f16x2", "bf16x2"):
        load = loader(kind)
        row = bind.src(ins.operands[1], "u32")
        return lambda c: load(c.v["u32"][row])
    row = bind.src(ins.operands[1], "u16")
    table = formats.TABLES[kind[:-2]]

    def read_fp8(c):
        codes = np.ascontiguousarray(c.v["u16"][row]).view(np.uint8).reshape(*c.shape, 2)
        return table[codes]

    return read_fp8
