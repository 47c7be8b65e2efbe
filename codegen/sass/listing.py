"""A cubin as a list of instructions, each with its decoded control word.

Since Volta an instruction has 128 bits, of which the compiler gives 21 to the scheduler. Their
meaning is NVIDIA's secret; it was found by measuring: Jia et al., "Dissecting the NVIDIA Volta GPU
architecture via microbenchmarking" (2018), section 2.1, and, for Maxwell, whose fields are the
same, S. Gray's assembler maxas, wiki page "Control Codes".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import BuildError
from ..process import run
from ..room import scratch_folder
from ..toolkit import find_nvdisasm

# Bits 105 to 125 of the instruction, counted here from bit 64 on.
_CONTROL = 41
# A barrier's number where there is none.
_NONE = 7

_LABEL = re.compile(r"\s*(\.L_\w+):")
_FIRST = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(\S.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/")
_SECOND = re.compile(r"\s*/\* (0x[0-9a-f]{16}) \*/")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_PREDICATE = re.compile(r"@(!?U?P(?:\d|T)) (.*)")


@dataclass(frozen=True)
class Control:
    """What the compiler tells the scheduler about one instruction.

    stall: clocks until the warp's next instruction may issue. prefers_other: whether another warp
    is better served next. write_barrier: which of the warp's six counters falls when the result is
    there; read_barrier: when the operands have been read (None: neither, the stalls see to it).
    waits: counters that must be zero before this one issues. reuse: operands, as bits, that stay in
    the register cache.
    """

    stall: int
    prefers_other: bool = False
    write_barrier: int | None = None
    read_barrier: int | None = None
    waits: tuple[int, ...] = ()
    reuse: int = 0

    @classmethod
    def decode(cls, word: int) -> Control:
        """From the instruction's upper 64 bits."""
        bits = word >> _CONTROL
        write, read, mask = bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63
        return cls(
            stall=bits & 15,
            prefers_other=not bits >> 4 & 1,
            write_barrier=None if write == _NONE else write,
            read_barrier=None if read == _NONE else read,
            waits=tuple(n for n in range(6) if mask >> n & 1),
            reuse=bits >> 17 & 15,
        )

    def __str__(self) -> str:
        """As maxas writes it: waits, read barrier, write barrier, yield, stall."""
        waits = "".join(str(n) if n in self.waits else "-" for n in range(6))
        barriers = ["-" if n is None else str(n) for n in (self.read_barrier, self.write_barrier)]
        return ":".join([f"B{waits}", *barriers, "Y" if self.prefers_other else "-"]) + (
            f":S{self.stall:02}"
        )


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel.

    address: bytes from the kernel's first. opcode: with its suffixes, "LDSM.16.M88.4". operands: as
    text. predicate: under which it runs ("!P0"; empty: always). target: the index of the
    instruction that it may jump to.
    """

    address: int
    opcode: str
    operands: str
    predicate: str
    control: Control
    target: int | None = None

    @property
    def text(self) -> str:
        """As nvdisasm writes it."""
        guard = f"@{self.predicate} " if self.predicate else ""
        return f"{guard}{self.opcode} {self.operands}".rstrip()

    @property
    def never(self) -> bool:
        """Whether its predicate is never true: ptxas leaves such instructions as padding."""
        return self.predicate in ("!PT", "!UPT")

    def starts(self, *opcodes: str) -> bool:
        """Whether the opcode is one of these, whatever their suffixes: "LDS" is not "LDSM"."""
        return self.opcode.partition(".")[0] in opcodes


def disassemble(cubin: bytes, name: str) -> list[Instruction]:
    """The instructions of the one kernel in ``cubin``; name: for errors.

    Raises BuildError where nvdisasm is missing or does not read the bytes, and for several kernels.
    """
    with scratch_folder(f"reading the machine code of {name}") as folder:
        (folder / "kernel.cubin").write_bytes(cubin)
        command = [find_nvdisasm(), "-c", "-hex", "kernel.cubin"]
        what = f"reading the machine code of {name}"
        text = run(command, what=what, choose="CUDA_HOME", folder=folder)
    try:
        return parse(text)
    except ValueError as error:
        raise BuildError(f"{name}: what nvdisasm printed is not understood: {error}") from error


def parse(text: str) -> list[Instruction]:
    """The instructions in what `nvdisasm -c -hex` printed of one kernel, from 7.0 on.

    Raises ValueError for text without any, for several kernels and for unknown labels.
    """
    sections = re.findall(r"^\s*\.section\s+(\.text\.\S+?),", text, re.MULTILINE)
    if len(sections) > 1:
        raise ValueError(f"{len(sections)} kernels, {', '.join(sections)}: pass one at a time")
    rows, labels = _rows(text)
    if not rows:
        raise ValueError(f"no instructions in {text.strip()[:80]!r}")
    return [_instruction(*row, labels) for row in rows]


def _rows(text: str) -> tuple[list[tuple[int, str, int]], dict[str, int]]:
    """(address, text, upper word) of every instruction, and the instruction after each label."""
    rows: list[tuple[int, str, int]] = []
    labels: dict[str, int] = {}
    lines: Iterator[str] = iter(text.splitlines())
    for line in lines:
        if label := _LABEL.match(line):
            labels[label[1]] = len(rows)
        elif first := _FIRST.match(line):
            second = _SECOND.match(next(lines, ""))
            if not second:
                raise ValueError(f"{line.strip()[:60]!r} lacks its upper word")
            rows.append((int(first[1], 16), " ".join(first[2].split()), int(second[1], 16)))
    return rows, labels


def _instruction(address: int, text: str, word: int, labels: dict[str, int]) -> Instruction:
    predicate = ""
    if guarded := _PREDICATE.match(text):
        predicate, text = guarded.groups()
    opcode, _, operands = text.partition(" ")
    target = None
    if named := _TARGET.search(operands):
        if named[1] not in labels:
            raise ValueError(f"{text!r} jumps to an unknown label")
        target = labels[named[1]]
    return Instruction(address, opcode, operands, predicate, Control.decode(word), target)
