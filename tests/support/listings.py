"""Small kernels written as machine code, with the control words as maxas writes them."""

from __future__ import annotations

import re

from tvm_flash.codegen.sass.listing import Instruction, parse

# Waits, read barrier, write barrier, yield and stall, then the instruction.
_LINE = re.compile(r"(?:B([-\d]{6}):([-\d]):([-\d]):([-Y]):S(\d+)\s+)?(\S.*)")


def code(text: str) -> list[Instruction]:
    """The instructions of ``text``, one a line; "L1:" is a label that "`(L1)" jumps to.

    A line without a control word stalls for one clock.
    """
    return parse(listing(text))


def listing(text: str) -> str:
    """``text`` as `nvdisasm -c -hex` prints it; all but the control words of an encoding is 0."""
    lines, address = ['\t.section\t.text.kernel,"ax",@progbits'], 0
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.endswith(":"):
            lines.append(f".L_{line}")
            continue
        waits, read, write, other, stall, instruction = _LINE.fullmatch(line).groups()
        word = encoded(waits or "------", read or "-", write or "-", other or "-", int(stall or 1))
        shown = instruction.replace("`(", "`(.L_")
        lines.append(f"        /*{address:04x}*/    {shown} ;    /* {0:#018x} */")
        lines.append(f"    /* {word:#018x} */")
        address += 16
    return "\n".join(lines)


def encoded(waits: str, read: str, write: str, other: str, stall: int) -> int:
    """An instruction's upper 64 bits, of which the control word has 41 to 61."""
    read_barrier, write_barrier = (7 if n == "-" else int(n) for n in (read, write))
    mask = sum(1 << n for n in range(6) if waits[n] != "-")
    fields = stall | (other != "Y") << 4 | write_barrier << 5 | read_barrier << 8 | mask << 11
    return fields << 41
