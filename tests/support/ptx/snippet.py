"""Tiny kernels around a few PTX instructions, and the two kinds of table rows made of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tvm_flash import ptx_interpreter as ptx

LANES = 256
HEADER = ".version 9.0\n.target sm_90a\n.address_size 64\n"
DTYPES = {
    "u16": "u2", "s16": "i2", "b16": "u2", "f16": "f2", "bf16": "u2", "e4m3x2": "u2",
    "u32": "u4", "s32": "i4", "b32": "u4", "f32": "f4", "f16x2": "u4", "bf16x2": "u4",
    "u64": "u8", "s64": "i8", "b64": "u8", "f64": "f8", "pred": "u4",
}  # fmt: skip
REGISTER = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}
SOURCES = "abce"
EXECUTED = set()  # opcodes that run() has seen executed


@dataclass(frozen=True)
class Row:
    """`text` computes d from a, b, c, e; `types` is "s32 s32 -> s32"; `oracle` serves one lane."""

    text: str
    types: str
    oracle: Callable
    tolerance: float = 0.0
    values: dict | None = None

    @property
    def opcode(self):
        return self.text.split()[0]

    @property
    def sources(self):
        return self.types.split("->")[0].split()

    @property
    def result(self):
        return self.types.split("->")[1].strip()

    def ptx(self):
        """The kernel: a load per source, the text, one store."""
        lines, kinds = [], dict(zip(SOURCES, self.sources, strict=False)) | {"d": self.result}
        for name, kind in kinds.items():
            register = "pred" if kind == "pred" else _register(kind)
            lines.append(f".reg .{register} {name};")
        for name, kind in kinds.items():
            lines.append(load(name, kind) if name != "d" else "")
        body = "\n".join([*lines, self.text, store(self.result)])
        return kernel(body, params=("out", *SOURCES[: len(self.sources)]))


def _register(kind):
    if kind in ("f32", "f64"):
        return kind
    return REGISTER[np.dtype(DTYPES[kind]).itemsize]


def address(name, size):
    """%rd1 = the pointer parameter `name` + thread * size."""
    return f"ld.param.u64 %rd1, [{name}];\nmad.wide.u32 %rd1, %r1, {size}, %rd1;\n"


def load(name, kind):
    """Load register `name` from the buffer of the same name."""
    size = np.dtype(DTYPES[kind]).itemsize
    where = address(f"p_{name}", size)
    if kind == "pred":
        return where + f"ld.global.b32 %r2, [%rd1];\nsetp.ne.u32 {name}, %r2, 0;"
    return where + f"ld.global.b{size * 8} {name}, [%rd1];"


def store(kind):
    """Store register d."""
    size = np.dtype(DTYPES[kind]).itemsize
    where = address("p_out", size)
    if kind == "pred":
        return where + "selp.u32 %r2, 1, 0, d;\nst.global.b32 [%rd1], %r2;"
    return where + f"st.global.b{size * 8} [%rd1], d;"


def declaration(name):
    """A pointer parameter, or "name:map": a tensor map by value."""
    if name.endswith(":map"):
        return f".param .align 64 .b8 p_{name[:-4]}[128]"
    return f".param .u64 p_{name}"


def kernel(body, params=("out", "in"), prelude=""):
    """A whole module around a body; %r1 is tid.x."""
    declared = ", ".join(map(declaration, params))
    return f"""{HEADER}{prelude}
.visible .entry k({declared})
{{
.reg .pred %p<16>; .reg .b16 %h<32>; .reg .b32 %r<128>; .reg .f32 %f<128>; .reg .b64 %rd<32>;
.reg .f64 %fd<8>;
mov.u32 %r1, %tid.x;
{body}
ret;
}}
"""


def run(text, inputs, shape, dtype, *, threads=32, grid=1, checks=None, seed=0, shared=0, out=None):
    """(output, report) of a launch; inputs: arrays, values, or functions of the memory."""
    (entry,) = ptx.parse(text).kernels.values()
    memory = ptx.DeviceMemory()
    buffer = memory.empty("out", shape, dtype) if out is None else out(memory)
    arguments = [buffer]
    for i, value in enumerate(inputs):
        if callable(value):
            value = value(memory)
        elif isinstance(value, np.ndarray):
            value = memory.array(f"in{i}", value)
        arguments.append(value)
    report = ptx.launch(
        entry, grid, threads, arguments, memory, shared_bytes=shared,
        checks=checks or ptx.Checks(), seed=seed,
    )  # fmt: skip
    EXECUTED.update(report.coverage[0])
    return buffer.numpy(), report


CASES = []


@dataclass(frozen=True)
class Case:
    """A kernel whose effect a function checks; the function calls `run` with the text."""

    name: str
    text: str
    check: Callable


def case(body, **options):
    """Make the decorated check(text) a Case of the table."""

    def register(check):
        CASES.append(Case(check.__name__, kernel(body, **options), check))
        return check

    return register
