"""What a CPU core can do in a clock, from vendors' documents: the rates of the analytical model."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UnsupportedSpec
from ...schedules.target import CpuTarget


@dataclass(frozen=True)
class Core:
    """One core that stands for a CPU target.

    hertz: under vector load. Per clock: fma, vectors of fused multiply-adds; loads, stores, vectors
    from and to the first cache; arithmetic, other vector operations; issue, micro-operations.
    fma_latency: clocks. window: micro-operations in flight. registers: vectors. l1, l2: bytes of
    the core's caches. l2_rate, l3_rate, memory_rate: bytes a clock from the second and third cache
    and from memory. dot, dot_latency: of VDPBF16PS.
    """

    hertz: float
    fma: float
    fma_latency: int
    loads: float
    stores: float
    arithmetic: float
    issue: int
    window: int
    registers: int
    l1: int
    l2: int
    l2_rate: float
    l3_rate: float
    memory_rate: float
    dot: float = 1.0
    dot_latency: int = 6


_KIB = 1024
# Intel 64 and IA-32 Optimization Reference Manual, Golden Cove: two 512-bit FMA of 4 clocks, two
# 512-bit loads and one store a clock, 6 micro-operations, 512 of them in flight; 48 KiB L1D and 2
# MiB L2, which gives 64 bytes a clock at best and 48 sustained. uops.info: VDPBF16PS one a clock, 6
# clocks. Clock, third cache and memory differ by model and by what the other cores do: round
# numbers.
_SERVER = Core(2.8e9, 2, 4, 2, 1, 2, 6, 512, 32, 48 * _KIB, 2048 * _KIB, 48, 10, 4)
# The same manual, Haswell to Skylake client: two 256-bit FMA of 5 and 4 clocks, two loads, one
# store, 4 micro-operations, 32 KiB and 256 KiB, 64 bytes a clock at best.
_AVX2 = Core(3.0e9, 2, 4, 2, 1, 2, 4, 224, 16, 32 * _KIB, 256 * _KIB, 32, 10, 4)
# Without FMA a multiply and an add: half the rate, both latencies.
_SSE = Core(3.0e9, 1, 8, 2, 1, 2, 4, 224, 16, 32 * _KIB, 256 * _KIB, 32, 10, 4)
# Arm Neoverse N1 Software Optimization Guide: two 128-bit FMA of 4 clocks, two loads, two stores;
# 64 KiB L1D and 1 MiB L2.
_NEOVERSE = Core(2.6e9, 2, 4, 2, 2, 2, 4, 128, 32, 64 * _KIB, 1024 * _KIB, 32, 10, 4)

_CORES = {"x86-64-v4": _SERVER, "x86-64-v3": _AVX2, "x86-64-v2": _SSE, "aarch64": _NEOVERSE}

# Clocks of Intel's AMX (Optimization Manual, chapter "Intel AMX"): a 16 x 16 product of 16 words of
# bf16 pairs every 16 clocks; a tile is loaded in 8 and stored in 16.
AMX_PRODUCT, AMX_LOAD, AMX_STORE = 16, 8, 16


def core_of(target: CpuTarget) -> Core:
    """The core that stands for ``target``. Raises UnsupportedSpec for one without numbers."""
    name = target.name.partition("+")[0]
    if name not in _CORES:
        raise UnsupportedSpec(
            f"no analytical model of {target.name}; known are {', '.join(_CORES)}"
        )
    return _CORES[name]
