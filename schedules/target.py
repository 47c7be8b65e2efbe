"""CPU targets by name: what LLVM is asked for and what the machine must have to run the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnsupportedSpec
from ..machine import architecture, cpu_features

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True)
class CpuTarget:
    """An instruction set level, not a CPU model: an artifact runs on every CPU that has it.

    vector: float32 lanes of a register; registers: how many of them; features: names as in
    Linux's /proc/cpuinfo that the running machine must have.
    """

    name: str
    mcpu: str
    features: frozenset[str]
    vector: int
    registers: int
    mattr: tuple[str, ...] = ()
    triple: str = ""

    @property
    def recorded(self) -> tuple[str, ...]:
        """Whose records serve it: its own."""
        return (self.name,)

    def tvm_target(self) -> tvm.target.Target:
        """The same target for TVM's LLVM backend."""
        import tvm

        fields = {"kind": "llvm", "mcpu": self.mcpu, "mattr": list(self.mattr)}
        return tvm.target.Target({**fields, "mtriple": self.triple} if self.triple else fields)


_V2 = frozenset({"sse4_2", "ssse3", "popcnt"})
_V3 = _V2 | {"avx2", "fma", "bmi2", "f16c", "movbe"}
_V4 = _V3 | {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}
_BF16 = _V4 | {"avx512_bf16"}
_AMX = _BF16 | {"amx_tile", "amx_bf16"}

# x86-64-v4 tells LLVM to prefer half-width vectors, which would halve the micro-kernels.
_WIDE = "-prefer-256-bit"
_AMX_FLAGS = ("+avx512bf16", "+amx-tile", "+amx-bf16")
_ARM_LINUX = "aarch64-unknown-linux-gnu"

# From the most capable down: the host's target is the first whose features it has.
TARGETS = (
    CpuTarget("x86-64-v4+amx", "x86-64-v4", _AMX, 16, 32, (_WIDE, *_AMX_FLAGS)),
    CpuTarget("x86-64-v4+bf16", "x86-64-v4", _BF16, 16, 32, (_WIDE, "+avx512bf16")),
    CpuTarget("x86-64-v4", "x86-64-v4", _V4, 16, 32, (_WIDE,)),
    CpuTarget("x86-64-v3", "x86-64-v3", _V3, 8, 16),
    CpuTarget("x86-64-v2", "x86-64-v2", _V2, 4, 16),
    CpuTarget("aarch64", "generic", frozenset({"neon"}), 4, 32, ("+neon",), _ARM_LINUX),
)  # fmt: skip


def cpu_target(name: str) -> CpuTarget:
    """The target called ``name``; UnsupportedSpec lists the known ones."""
    for target in TARGETS:
        if target.name == name:
            return target
    known = ", ".join(target.name for target in TARGETS)
    raise UnsupportedSpec([f"target {name!r} is unknown; known: llvm (this machine), {known}"])


def host_target() -> CpuTarget:
    """The most capable target that this machine runs."""
    x86 = architecture() == "x86_64"
    for target in TARGETS:
        if target.name.startswith("x86") == x86 and target.features <= cpu_features():
            return target
    raise UnsupportedSpec(
        [f"no CPU target serves {architecture()} with features {sorted(cpu_features())}"]
    )
