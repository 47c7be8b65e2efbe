"""Machine code as the simulation sees it: which part of an SM an instruction takes, how long."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...codegen.sass.flow import PRODUCTS
from ...codegen.sass.listing import Instruction
from ...errors import UnsupportedSpec
from ...schedules.cuda.arch import WARP
from ..gpu import SHARED_BYTES
from .rates import OTHER, REDUCTION, Rates

# Parts of an SM's quarter that are busy for some clocks with an instruction; "memory" is the way to
# shared memory and L2, "none" takes an issue slot alone.
TENSOR, FLOAT32, INTEGER, SPECIAL, MEMORY, NONE = range(6)

_FLOATS = ("FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2")
_PACKED = ("FFMA2", "FMUL2", "FADD2")
_MEMORY = (
    "LDSM", "STSM", "LDS", "STS", "SHFL", "LDGSTS", "RED", "REDG", "ATOM", "ATOMG", "ATOMS", "LDL",
    "STL", "LDG", "STG",
)  # fmt: skip
# Those of the uniform datapath (U...) too.
_NEITHER = (
    "BRA", "BAR", "DEPBAR", "LDGDEPBAR", "BSSY", "BSYNC", "NOP", "R2UR", "S2R", "S2UR", "CALL",
    "WARPSYNC", "RET", "EXIT", "CS2R", "VOTE", "ERRBAR", "MEMBAR", "LDC", "B2R", "YIELD",
)  # fmt: skip
_PARTS = {
    TENSOR: ("HMMA",), FLOAT32: (*_FLOATS, *_PACKED, "IMAD"), SPECIAL: ("MUFU",), MEMORY: _MEMORY,
    NONE: _NEITHER,
}  # fmt: skip
_PART = {opcode: part for part, opcodes in _PARTS.items() for opcode in opcodes}
# Results of memory that do not come as those of LDS do.
_LATENCIES = {
    "LDSM": "ldmatrix", "SHFL": "shuffle", "LDL": "local", "LDGSTS": "l2", "LDG": "l2",
}  # fmt: skip
# Words of a lane, by the suffix: of accesses in bits, of LDSM.16.M88.4 in matrices of 128 bytes.
_WORDS = {"128": 4, "64": 2, "4": 4, "2": 2}
_LINES = {"copy": 1, "reduce": REDUCTION}
_SHAPE = re.compile(r"HMMA\.16(8)(\d+)\b")
_COUNTED = re.compile(r"SB(\d), 0x([0-9a-f]+)")
_EFFECTS = {
    "LDGSTS": "copy",
    "RED": "reduce",
    "REDG": "reduce",
    "LDGDEPBAR": "commit",
    "BAR": "meet",
}

_CLASSES = {
    "products": ("HMMA",), "special": ("MUFU",), "float32": (*_FLOATS, *_PACKED),
    "max": ("FMNMX", "FMNMX3"),
    "shuffle": ("SHFL",), "ldmatrix": ("LDSM",), "shared": ("LDS", "STS", "STSM", "ATOMS"),
    "copy": ("LDGSTS",), "reduction": ("RED", "REDG", "ATOM", "ATOMG"), "global": ("LDG", "STG"),
    "spill load": ("LDL",), "spill store": ("STL",), "convert": ("F2FP", "F2F", "I2F", "F2I"),
    "predicate": ("ISETP", "FSETP", "SEL", "FSEL", "PLOP3", "VOTE", "UISETP", "USEL"),
    "move": ("MOV", "UMOV", "CS2R", "R2UR", "S2R", "S2UR"),
    "barrier": ("BAR",), "wait": ("DEPBAR", "LDGDEPBAR"),
    "branch": ("BRA", "BSSY", "BSYNC", "WARPSYNC", "CALL"),
}  # fmt: skip
_CLASS = {opcode: name for name, opcodes in _CLASSES.items() for opcode in opcodes}


@dataclass(frozen=True)
class Step:
    """One instruction of a round, in the numbers of an architecture.

    part, busy: what it takes, for how many clocks (of memory: of the whole SM's). latency: until
    the result is there. stall, barriers and waits: of its control word. effect: what it does
    beside: "copy" from L2 to shared memory, "reduce" in L2, "commit" a group of copies, "meet" the
    other warps. l2_bytes: that it moves. left: how many groups of copies may be on their way when
    it issues (None: any).
    """

    part: int
    busy: float
    latency: int
    stall: int
    write_barrier: int | None
    read_barrier: int | None
    waits: tuple[int, ...]
    effect: str = ""
    l2_bytes: int = 0
    left: int | None = None


def steps_of(code: Sequence[Instruction], rates: Rates) -> tuple[Step, ...]:
    """A round of instructions for ``rates``.

    Raises UnsupportedSpec for products that are not those of mma.sync.
    """
    unknown = {at.opcode for at in code if at.starts(*PRODUCTS) and not multiply_adds(at)}
    if other := sorted(unknown):
        raise UnsupportedSpec(
            f"{', '.join(other)} is not modelled: only products of mma.sync (HMMA) are"
        )
    return tuple(_step(at, rates) for at in code)


def multiply_adds(at: Instruction) -> int:
    """How many 16-bit multiply-adds a product of a warp is worth: TF32's count twice."""
    if not (shape := _SHAPE.match(at.opcode)):
        return 0
    return 16 * int(shape[1]) * int(shape[2]) * (2 if ".TF32" in at.opcode else 1)


def classes(code: Iterable[Instruction]) -> dict[str, int]:
    """How many instructions of each class; what is none of them is "integer": mostly addresses."""
    return dict(Counter(_CLASS.get(at.opcode.partition(".")[0], "integer") for at in code))


def _step(at: Instruction, rates: Rates) -> Step:
    base, *suffixes = at.opcode.split(".")
    part = NONE if at.never or base.startswith("U") else _PART.get(base, INTEGER)
    words = max(_WORDS.get(s, 1) for s in (*suffixes, ""))
    control, waits, left = at.control, at.control.waits, None
    if base == "DEPBAR" and (counted := _COUNTED.search(at.operands)):
        # A counter that must be zero is waited for as in a control word.
        counter, left = int(counted[1]), int(counted[2], 16)
        waits, left = (waits, left) if left else ((*waits, counter), None)
    effect = "" if at.never else _EFFECTS.get(base, "")
    return Step(
        part=part,
        busy=_busy(at, base, part, words, rates),
        latency=_latency(base, part, rates),
        stall=max(control.stall, 1),
        write_barrier=control.write_barrier,
        read_barrier=control.read_barrier,
        waits=waits,
        effect=effect,
        l2_bytes=4 * WARP * words * _LINES.get(effect, 0),
        left=left,
    )


def _busy(at: Instruction, base: str, part: int, words: int, rates: Rates) -> float:
    if part == TENSOR:
        return multiply_adds(at) * rates.product
    if part == MEMORY:
        reduces = base in ("RED", "REDG")
        return (1 if reduces else words) * 4 * WARP / SHARED_BYTES
    if part == FLOAT32 and base != "IMAD":
        return rates.float32 * (2 if base in _PACKED else 1)
    return {SPECIAL: rates.special, NONE: 0}.get(part, rates.integer)


def _latency(base: str, part: int, rates: Rates) -> int:
    if part == MEMORY:
        return rates.latencies[_LATENCIES.get(base, "shared")]
    return rates.latencies["special"] if part == SPECIAL else OTHER
