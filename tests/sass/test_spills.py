"""What a spill costs is what a steady round of the main loop executes of it."""

from __future__ import annotations

import pytest
from listings import code

from tvm_flash.codegen.nvcc import Cubin, Resources
from tvm_flash.codegen.sass import spills
from tvm_flash.codegen.sass.spills import MOST_LOADS, spill_reasons, spill_traffic

LOOP = """
    STL [R1], R7
    head:
    {loads}
    @P0 BRA `(multiply)
    STL [R1+0x4], R6
    multiply:
    HMMA.16816.F32 R8, R4, R2, R8
    {stores}
    @P1 BRA `(head)
    LDL R7, [R1]
    EXIT
"""


def kernel(loads, stores):
    return code(
        LOOP.format(
            loads="\n".join(["LDL R4, [R1]"] * loads), stores="\n".join(["STL [R1], R4"] * stores)
        )
    )


@pytest.fixture
def reasons(monkeypatch):
    """Those of a kernel that ptxas says spills; no disassembler is asked."""

    def of(instructions, spilled=8):
        spills._reasons.cache_clear()
        monkeypatch.setattr(spills, "disassemble", lambda *_: instructions)
        return spill_reasons(Cubin("sm_80", b"", Resources(255, spilled, spilled)), "kernel")

    yield of
    spills._reasons.cache_clear()


def test_only_the_steady_round_counts(reasons):
    assert spill_traffic(kernel(3, 0)) == (0, 3), "neither before the loop nor in a rare branch"
    assert reasons(kernel(0, 0)) == reasons(kernel(MOST_LOADS, 0)) == []


@pytest.mark.parametrize(("loads", "stores"), [(MOST_LOADS + 1, 0), (0, 1), (9, 9)])
def test_too_much_in_memory(reasons, loads, stores):
    (text,) = reasons(kernel(loads, stores))
    assert text.startswith(f"sm_80: {stores} stores and {loads} loads") and "255 registers" in text


def test_without_a_main_loop_everything_counts(reasons):
    (text,) = reasons(code("STL [R1], R4\n LDL R4, [R1]\n EXIT"))
    assert "1 stores and 1 loads" in text
    assert reasons(code("LDL R4, [R1]\n EXIT")) == []


def test_a_loop_that_cannot_be_followed_is_refused(reasons):
    (text,) = reasons(code("head:\n HMMA R8, R4, R2, R8\n EXIT\n @P0 BRA `(head)"))
    assert "unknown" in text


def test_what_does_not_spill_is_not_read(reasons, monkeypatch):
    assert reasons(None, spilled=0) == []
