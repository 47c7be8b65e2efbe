"""Parsing and launching: what the interpreter reads in a module, and what it refuses."""

import numpy as np
import pytest
from ptx.snippet import HEADER, kernel, run
from ptx.table_memory import LOAD, STORE, words

from tvm_flash import ptx_interpreter as ptx

SIGNATURE = """
.extern .shared .align 16 .b8 pool[];
.visible .entry scale(.param .u64 .ptr .global .align 16 scale_p, .param .f32 scale_f,
    .param .align 8 .b8 scale_s[12], .param .u16 scale_h)
.maxntid 128, 1, 1
.minnctapersm 2
{ .shared .align 8 .b8 kept[24]; /* two
lines */ .reg .b32 %r<3>; // a comment; with { braces }
mov.u32 %r1, pool;
{ .reg .b32 %r; mov.u32 %r, 7; inner: mov.u32 %r2, %r; }
inner: ret; }
"""


def test_module():
    module = ptx.parse(HEADER + SIGNATURE)
    assert (module.version, module.target) == ("9.0", "sm_90a")
    entry = module.kernels["scale"]
    assert [(p.type, p.size, p.offset) for p in entry.params] == [
        ("u64", 8, 0), ("f32", 4, 8), ("bytes", 12, 16), ("u16", 2, 28)
    ]  # fmt: skip
    assert entry.static_shared == 24
    assert (entry.maxntid, entry.minnctapersm, entry.reqntid) == ((128, 1, 1), 2, None)
    first = entry.instructions[0]
    assert first.opcode == "mov.u32" and first.text == "mov.u32 %r1, pool"
    assert (HEADER + SIGNATURE).splitlines()[first.line - 1].startswith("mov.u32 %r1")


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("add.u32 %r2, %r3;", "not understood"),
        ("add.u32 %r2, %r3, %nothing;", "special register %nothing"),
        ("mov.u32 %r2, nowhere;", "unknown name 'nowhere'"),
        ("call somewhere;", "only calls of functions"),
        ("add.u32 %r2, %f1, %rd1;", "%rd1 is b64"),
        ("mov.u32 %r2, %pm0;", "special register"),
    ],
)
def test_refused_with_the_line(statement, says):
    with pytest.raises(ptx.UnsupportedInstruction, match=says) as info:
        run(kernel(statement, params=("out",)), [], 1, np.uint32)
    assert "PTX line" in str(info.value)


COPY = kernel(LOAD + "mov.u32 %r3, %r2;\n" + STORE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threads": 2048}, "at most 1024"),
        ({"grid": (1, 0)}, "positive integers"),
        ({"cluster": (2, 1, 1)}, "clusters of one block"),
        ({"args": [1]}, "takes 2 arguments"),
        ({"args": [1, 0.5]}, "pass an integer"),
        ({"args": [1, b"123"]}, "takes 8 bytes, got 3"),
    ],
)
def test_launch_refuses(options, says):
    memory = ptx.DeviceMemory()
    (entry,) = ptx.parse(COPY).kernels.values()
    options = {"grid": 1, "threads": 32, "args": [0, 0]} | options
    rest = {k: v for k, v in options.items() if k not in ("grid", "threads", "args")}
    with pytest.raises(ptx.LaunchError, match=says):
        ptx.launch(entry, options["grid"], options["threads"], options["args"], memory, **rest)


def test_bounds_of_the_kernel_hold_at_launch():
    bounded = COPY.replace(")\n{", ")\n.maxntid 64, 1, 1\n{")
    with pytest.raises(ptx.LaunchError, match=r"exceeds \.maxntid"):
        run(bounded, [words()], 32, np.uint32, threads=128)
    exact = COPY.replace(")\n{", ")\n.reqntid 64\n{")
    with pytest.raises(ptx.LaunchError, match=r"differs from \.reqntid"):
        run(exact, [words()], 32, np.uint32, threads=32)


def test_mapped_host_memory_keeps_its_address():
    host = np.zeros(256, np.uint8)
    at = 0x7F12_3456_7000
    memory = ptx.DeviceMemory()
    source = memory.array("in", words())
    out = memory.map("out", at, host, initialised=False, writable=True)
    (entry,) = ptx.parse(COPY).kernels.values()
    ptx.launch(entry, 1, 32, [at, source.address], memory)
    np.testing.assert_array_equal(host[:128].view(np.uint32), words())
    assert out.unwritten() == (128, 128)
    with pytest.raises(ptx.LaunchError, match="overlaps"):
        memory.map("again", at + 16, host)
    with pytest.raises(ptx.LaunchError, match="multiple of 16"):
        memory.map("odd", at + 4096 + 8, host)


def test_memory_outlives_a_launch():
    memory = ptx.DeviceMemory()
    first, second = memory.array("a", words()), memory.empty("b", 32, np.uint32)
    third = memory.empty("c", 32, np.uint32)
    (entry,) = ptx.parse(COPY).kernels.values()
    ptx.launch(entry, 1, 32, [second, first], memory)
    ptx.launch(entry, 1, 32, [third, second], memory)
    np.testing.assert_array_equal(third.numpy(), words())


def test_a_large_grid_runs_in_chunks():
    body = "mov.u32 %r2, %ctaid.x;\nmad.lo.u32 %r1, %r2, 32, %r1;\n" + LOAD
    data = words(32 * 300)
    out, report = run(
        kernel(body + "mov.u32 %r3, %r2;\n" + STORE), [data], 9600, np.uint32, grid=300
    )
    np.testing.assert_array_equal(out, data)
    assert report.instructions["st.global.b32"] == 300
