"""What the compiler made of a CPU kernel, counted in its disassembly."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Lines of `objdump -d`: "0000000000004520 <symbol>:" and "    4521:<TAB>mnemonic operands".
_FUNCTION = re.compile(r"[0-9a-f]+ <(\S+)>:")
_INSTRUCTION = re.compile(r"\s+([0-9a-f]+):\t(\S+)\s*(.*)")

_PRODUCT = re.compile(r"vfn?m(add|sub)|vdpbf16|tdpbf16|v?mulp|fml[as]|fmmla|bfmmla|bfdot")
# AT&T syntax names the destination last; ARM has instructions of its own for memory.
_X86_MEMORY = re.compile(r"\([^)]*\)")
_MASK = re.compile(r"\{[^}]*\}")
_ARM_LOAD, _ARM_STORE = re.compile(r"ld[rpu1-4]"), re.compile(r"st[rpu1-4]")
_X86_FRAME = re.compile(r"\$0x([0-9a-f]+),%rsp")
_ARM_FRAME = re.compile(r"sp, sp, #0x([0-9a-f]+)")
_VECTOR = re.compile(r"%[xyz]mm|%tmm|\b[qv]\d")


def counts(library: Path, symbol: str) -> dict[str, int]:
    """What stands in the functions of ``symbol`` in ``library``, however often each runs.

    code_bytes; stack_bytes: the largest frame; instructions; of vectors: products (also fused),
    loads, stores, and stack_stores, which spilled registers and arrays on the stack share. Empty
    where binutils' objdump is missing or fails.
    """
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return counted(done.stdout, symbol) if done.returncode == 0 else {}


def counted(listing: str, symbol: str) -> dict[str, int]:
    """``counts`` of what objdump printed; empty where no function of ``symbol`` is in it."""
    total: Counter[str] = Counter()
    frame = 0
    for mnemonic, operands in _instructions(listing, symbol, total):
        total["instructions"] += 1
        total["products"] += bool(_PRODUCT.match(mnemonic))
        if _VECTOR.search(operands):
            for kind in _accesses(mnemonic, operands):
                total[kind] += 1
        found = _X86_FRAME.match(operands) or _ARM_FRAME.match(operands)
        if found and mnemonic.startswith("sub"):
            frame = max(frame, int(found[1], 16))
    if not total:
        return {}
    names = ("code_bytes", "instructions", "products", "loads", "stores", "stack_stores")
    return {**{name: total[name] for name in names}, "stack_bytes": frame}


def _instructions(listing: str, symbol: str, total: Counter[str]) -> Iterator[tuple[str, str]]:
    """Mnemonics and operands; ``total`` gets the bytes, by addresses."""
    inside, before = False, 0
    for line in listing.splitlines():
        if function := _FUNCTION.match(line):
            inside, before = symbol in function[1] and "@" not in function[1], 0
        elif inside and (found := _INSTRUCTION.match(line)):
            address = int(found[1], 16)
            total["code_bytes"] += address - before if before else 0
            before = address
            yield found[2], found[3]


def _accesses(mnemonic: str, operands: str) -> Iterator[str]:
    if _ARM_LOAD.match(mnemonic):
        yield "loads"
    elif _ARM_STORE.match(mnemonic):
        yield from ("stores", "stack_stores") if "[sp" in operands else ("stores",)
    elif memory := _X86_MEMORY.search(operands):
        if "%" in _MASK.sub("", operands[memory.end() :]):
            yield "loads"
        else:
            yield from ("stores", "stack_stores") if "%rsp" in memory[0] else ("stores",)
