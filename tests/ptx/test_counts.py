"""What a report counts, on kernels whose counts are known by hand."""

import numpy as np
import pytest
from ptx.snippet import kernel, run
from ptx.table_memory import LOAD, words

BUFFER = ".shared .align 128 .b8 tile[16384];"


def conflicts(stride, width=4):
    """Extra wavefronts of one warp storing `width` bytes every `stride` bytes."""
    vector = {4: "u32 [%r2], %r1", 8: "v2.u32 [%r2], {%r1, %r1}",
              16: "v4.u32 [%r2], {%r1, %r1, %r1, %r1}"}[width]  # fmt: skip
    body = f"mov.u32 %r3, tile;\nmad.lo.u32 %r2, %r1, {stride}, %r3;\nst.shared.{vector};\n"
    _, report = run(kernel(body, params=("out",), prelude=BUFFER), [], 1, np.uint32)
    return report.total_bank_conflicts


@pytest.mark.parametrize(
    ("stride", "width", "extra"),
    [(4, 4, 0), (8, 4, 1), (128, 4, 31), (132, 4, 0), (64, 4, 15),
     (8, 8, 0), (16, 8, 2), (16, 16, 0), (144, 16, 0), (128, 16, 28)],
)  # fmt: skip
def test_bank_conflicts(stride, width, extra):
    assert conflicts(stride, width) == extra


def test_lanes_that_read_one_word_share_it():
    body = "st.shared.u32 [tile], 5;\nbar.warp.sync -1;\nld.shared.u32 %r2, [tile];\n"
    _, report = run(kernel(body, params=("out",), prelude=BUFFER), [], 1, np.uint32)
    assert report.total_bank_conflicts == 0 and report.max_shared == 16384


@pytest.mark.parametrize(("stride", "sectors"), [(4, 4), (8, 8), (32, 32), (64, 32), (0, 1)])
def test_sectors(stride, sectors):
    body = f"ld.param.u64 %rd1, [p_in];\nmad.wide.u32 %rd1, %r1, {stride}, %rd1;\n"
    text = kernel(body + "ld.global.u32 %r2, [%rd1];\n")
    _, report = run(text, [words(1024)], 1, np.uint32)
    assert report.sectors["read"]["in0"] == sectors
    assert list(report.sectors_by_line.values()) == [sectors]
    distinct = 4 if stride == 0 else 128
    assert report.bytes_read["in0"] == report.unique["read"]["in0"] == distinct


def test_bytes_asked_twice_are_unique_once():
    _, report = run(
        kernel(LOAD + LOAD, params=("out", "in")), [words(64)], 1, np.uint32, threads=64
    )
    assert report.bytes_read["in0"] == 512 and report.unique["read"]["in0"] == 256


def test_coverage_leaves_out_what_did_not_run():
    body = """setp.gt.u32 %p1, %r1, 99;
@%p1 mov.u32 %r2, 3;
@!%p1 mov.u32 %r2, 4;
@%p1 bra never;
ret;
never: add.u32 %r2, %r2, 1;
"""
    text = kernel(body, params=("out",))
    _, report = run(text, [], 1, np.uint32)
    opcodes, lines = report.coverage
    executed = {text.splitlines()[line - 1] for line in lines}
    assert "@!%p1 mov.u32 %r2, 4;" in executed and "@%p1 mov.u32 %r2, 3;" not in executed
    assert "add.u32" not in opcodes
