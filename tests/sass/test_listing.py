"""Machine code as instructions: control words, labels, and what cannot be read."""

from __future__ import annotations

import pytest
from listings import code, listing
from tools import needs
from typer.testing import CliRunner

from tvm_flash.cli.app import app
from tvm_flash.codegen.process import run
from tvm_flash.codegen.sass import listing as listing_module
from tvm_flash.codegen.sass.listing import Control, disassemble, parse
from tvm_flash.codegen.toolkit import find_nvdisasm, find_toolkit
from tvm_flash.errors import BuildError

needs_nvdisasm = needs(find_nvdisasm, find_toolkit)

# Upper words of a kernel for sm_80 as nvdisasm prints them, and what they say.
KNOWN = {
    0x000FE40000000F00: "B------:-:-:-:S02",  # MOV R1, c[0x0][0x28]
    0x000FC800078EC0FF: "B------:-:-:Y:S04",  # LOP3.LUT R2, R2, 0x6, RZ, 0xc0, !PT
    0x000E620000002500: "B------:-:1:-:S01",  # S2R R11, SR_CTAID.X
    0x000FE20000000000: "B------:-:-:-:S01",  # IABS R21, c[0x0][0x198]
    0x000EA20000209400: "B------:-:2:-:S01",  # I2F.RP R8, R21
    0x000FE200078F38FF: "B------:-:-:-:S01",  # LEA.HI R3, R3, R0, RZ, 0x7
}
PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry one(.param .u64 p) { .reg .b64 %rd; ld.param.u64 %rd, [p];
    st.global.u32 [%rd], 7; ret; }
"""


@pytest.mark.parametrize(("word", "shown"), KNOWN.items())
def test_known_control_words(word, shown):
    assert str(Control.decode(word)) == shown


def test_every_field_of_a_control_word():
    fields = 13 | 0 << 4 | 2 << 5 | 5 << 8 | 0b100011 << 11 | 0b0101 << 17
    assert Control.decode(fields << 41 | 0x1FFFFFFFFFF) == Control(13, True, 2, 5, (0, 1, 5), 5)
    assert str(Control.decode(fields << 41)) == "B01---5:5:2:Y:S13"


def test_instructions_labels_and_predicates():
    load, test, jump, never, end = code("""
        B-1----:0:3:Y:S04 LDSM.16.M88.4 R4, [R2]
        ISETP.NE.AND P0, PT, R1, RZ, PT
        B------:-:-:-:S05 @!P0 BRA `(done)
        @!PT LDS RZ, [RZ]
        done:
        EXIT
    """)
    assert (load.address, load.opcode, load.operands) == (0, "LDSM.16.M88.4", "R4, [R2]")
    assert load.control == Control(4, True, 3, 0, (1,))
    assert load.starts("LDSM") and not load.starts("LDS") and test.target is None
    assert (jump.predicate, jump.target, jump.text) == ("!P0", 4, "@!P0 BRA `(.L_done)")
    assert never.never and not jump.never and end.text == "EXIT"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no instructions"),
        (listing("NOP") + "\n.section .text.other,\n", "2 kernels, .text.kernel, .text.other"),
        (listing("BRA `(nowhere)"), "unknown label"),
        (listing("NOP").rpartition("\n")[0], "lacks its upper word"),
    ],
)
def test_text_that_is_not_understood(text, part):
    with pytest.raises(ValueError, match=part):
        parse(text)


@needs_nvdisasm
def test_a_kernel_of_ptxas(tmp_path):
    (tmp_path / "one.ptx").write_text(PTX)
    ptxas = [find_toolkit().tool("ptxas"), "-arch=sm_80", "one.ptx", "-o", "one.cubin"]
    run(ptxas, what="assembling one", choose="CUDA_HOME", folder=tmp_path)
    found = disassemble((tmp_path / "one.cubin").read_bytes(), "one")
    assert [one.opcode for one in found if one.starts("STG", "EXIT")] == ["STG.E", "EXIT"]
    assert [one.address for one in found] == list(range(0, 16 * len(found), 16))


@needs_nvdisasm
@pytest.mark.parametrize("cubin", [b"", b"no machine code", b"\x7fELF" + bytes(60)])
def test_bytes_that_are_no_cubin(cubin):
    with pytest.raises(BuildError, match="reading the machine code of broken failed"):
        disassemble(cubin, "broken")


@needs_nvdisasm
def test_show():
    spec = ["bf16,d=32", "--target", "cuda:sm_80", "--stage", "sass"]
    text = CliRunner().invoke(app, ["show", *spec]).stdout
    first, *key = (line for line in text.splitlines() if line.startswith("//"))
    about, lines = key.pop(), [line for line in text.splitlines() if not line.startswith("//")]
    assert first.startswith("// attn_bf16_d32_fwd") and first.endswith("for sm_80")
    assert any("S04" in line and "clocks" in line for line in key)
    assert "in a steady round" in about
    steady = [line for line in lines if line.startswith(">")]
    assert sum("HMMA" in line for line in steady) == int(about.rpartition(", ")[2].split()[0])
    assert any(line.startswith("|") for line in lines) and any("BRA 0x" in line for line in lines)


def test_without_the_disassembler(monkeypatch):
    def missing():
        raise BuildError("no nvdisasm; pip install nvidia-cuda-nvdisasm")

    monkeypatch.setattr(listing_module, "find_nvdisasm", missing)
    with pytest.raises(BuildError, match="pip install"):
        disassemble(b"", "kernel")
