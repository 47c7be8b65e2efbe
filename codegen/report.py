"""What each kernel of a CUDA artifact costs: registers, memory, occupancy, instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifact.library import read_ptx, verify
from ..schedules.cuda.arch import ARCHS, WARP, CudaArch
from .nvcc import Resources

# CUDA C++ Programming Guide, "compute capabilities", and cuda_occupancy.h: an SM has four parts of
# 16 K registers each, which a warp takes by 256; a block takes shared memory by 128 bytes, and
# 1 KiB for the system (from 8.0 on).
_PARTS, _REGISTERS_PER_PART, _REGISTER_UNIT = 4, 16 * 1024, 256
_SHARED_UNIT, _SHARED_RESERVED = 128, 1024

_INTEGER = "add|sub|mul|mad|shl|shr|and|or|xor|not|lop3|bfe|div|rem|min|max"

# What PTX opcodes count as; the first that matches.
_KINDS = (
    ("mma", r"mma\.|wgmma\.mma"),
    ("ldmatrix", r"ldmatrix|stmatrix"),
    ("cp.async", r"cp\.async\.(?:ca|cg|bulk)"),
    ("ld.global", r"ld\.global"),
    ("st.global", r"st\.global"),
    ("atomic", r"(?:red|atom)\."),
    ("ld.shared", r"ld\.(?:volatile\.)?shared"),
    ("st.shared", r"st\.(?:volatile\.)?shared"),
    ("shuffle", r"shfl\."),
    ("barrier", r"bar(?:rier)?\."),
    ("ex2", r"ex2\."),
    ("fma", r"(?:fma|mad)\.rn"),
    ("mul", r"mul\.(?:rn\.)?(?:ftz\.)?f"),
    ("add", r"(?:add|sub)\.(?:rn\.)?(?:ftz\.)?f"),
    ("integer", rf"(?:{_INTEGER})\.[\w.]*[usb]\d"),
    ("branch", r"bra\b|brx"),
)  # fmt: skip
_OPCODE = re.compile(r"^\s*(?:\{\s*)?(?:@!?%\w+\s+)?([a-z][\w.:]*)\s[^;]*;", re.MULTILINE)


@dataclass(frozen=True)
class KernelReport:
    """One kernel on one architecture. Bytes are of a thread (spills, stack) or a block (shared).

    blocks_per_sm: how many fit by registers, shared memory and threads; limit: which of them it is.
    instructions: of the PTX, by kind.
    """

    name: str
    arch: str
    threads: int
    resources: Resources
    shared_bytes: int
    blocks_per_sm: int
    limit: str
    instructions: dict[str, int]

    @property
    def occupancy(self) -> float:
        """Resident threads over the most that an SM holds."""
        return self.blocks_per_sm * self.threads / ARCHS[self.arch].threads_per_sm

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "occupancy": round(self.occupancy, 3)}


def reports(path: str | Path) -> list[KernelReport]:
    """One report for every kernel and architecture of the artifact at ``path``."""
    _, manifest = verify(path)
    mixes = {name: instruction_mix(ptx) for name, ptx in read_ptx(path).items()}
    launches = {launch["name"]: launch for record in manifest.kernels for launch in record.launches}
    return [
        _report(launch, arch, mixes[f"{launch['name']}_kernel"])
        for launch in launches.values()
        for arch in launch["resources"]
    ]


def _report(launch: Mapping[str, Any], arch: str, mix: dict[str, int]) -> KernelReport:
    resources = Resources.from_json(launch["resources"][arch])
    shared = launch["shared_bytes"] + resources.shared
    blocks, limit = blocks_per_sm(ARCHS[arch], resources.registers, launch["threads"], shared)
    fields = (launch["name"], arch, launch["threads"], resources, shared)
    return KernelReport(*fields, blocks, limit, mix)


def blocks_per_sm(arch: CudaArch, registers: int, threads: int, shared: int) -> tuple[int, str]:
    """Blocks that fit on an SM at once, and what there is not enough of for one more."""
    warps = -(-threads // WARP)
    per_warp = _round_up(registers * WARP, _REGISTER_UNIT)
    reserved = _SHARED_RESERVED if arch.number >= 80 else 0
    per_block = _round_up(shared, _SHARED_UNIT) + reserved
    fits = {
        "registers": _REGISTERS_PER_PART // per_warp * _PARTS // warps,
        "shared memory": arch.shared_bytes_per_sm // max(per_block, 1),
        "threads": arch.threads_per_sm // (warps * WARP),
        "blocks": arch.blocks_per_sm,
    }
    limit = min(fits, key=lambda name: fits[name])
    return fits[limit], limit


def instruction_mix(ptx: str) -> dict[str, int]:
    """How many instructions of each kind a PTX text has, and of all kinds together."""
    mix = dict.fromkeys([kind for kind, _ in _KINDS], 0)
    total = 0
    for opcode in _OPCODE.findall(ptx):
        total += 1
        for kind, pattern in _KINDS:
            if re.match(pattern, opcode):
                mix[kind] += 1
                break
    return {**{kind: count for kind, count in mix.items() if count}, "all": total}


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
