"""Machine code as text to read: addresses, control words, and the main loop marked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from .flow import main_loop, steady_path
from .listing import Instruction

_KEY = """\
// An address, then what the compiler tells the scheduler, as in B01----:2:3:Y:S04:
//   B01----  waits until barriers 0 and 1 of the warp's six are free (-: not for that one)
//   2        barrier that is free again when the operands are read (-: none)
//   3        barrier that is free again when the result is there (-: none)
//   Y        the scheduler had better take another warp next (-: this one may go on)
//   S04      4 clocks until the warp's next instruction may issue
// In front: > a steady round of the main loop, | the rest of the loop."""


def annotated(code: Sequence[Instruction]) -> str:
    """A line for each instruction of a kernel; jumps name the address that they lead to."""
    loop = main_loop(code)
    steady: set[int] = set()
    if loop:
        with suppress(ValueError):  # no way through it: there is nothing to mark
            steady.update(steady_path(code, loop))
    body = loop.body if loop else frozenset()
    lines = [_KEY]
    if loop:
        head, tail = code[loop.head].address, code[loop.tail].address
        lines.append(
            f"// main loop {head:#06x} to {tail:#06x}: {len(body)} instructions, "
            f"{len(steady)} in a steady round, {loop.products} products"
        )
    for index, at in enumerate(code):
        mark = ">" if index in steady else "|" if index in body else " "
        lines.append(f"{mark} {at.address:05x} {at.control} {_text(at, code)}")
    return "\n".join(lines)


def _text(at: Instruction, code: Sequence[Instruction]) -> str:
    if at.target is None:
        return at.text
    before, _, _ = at.text.partition("`(")
    end = code[-1].address + 16 if at.target == len(code) else code[at.target].address
    return f"{before}{end:#x}"
