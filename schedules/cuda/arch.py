"""CUDA architectures by name: the limits a schedule must fit into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import UnsupportedSpec
from ...problem.spec import AttentionSpec


@dataclass(frozen=True)
class CudaArch:
    """One compute capability (CUDA C++ Programming Guide, table "technical specifications").

    number: 10 * major + minor. shared_bytes: most dynamic shared memory of one block, and of an SM.
    threads, blocks: most resident per SM. asynchronous_copy: cp.async; bf16: bf16 and tf32
    tensor cores. warp_groups: instructions that this compute capability alone has, TMA beside
    products of warp groups (sm_90a).
    """

    number: int
    shared_bytes: int
    shared_bytes_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    asynchronous_copy: bool = True
    bf16: bool = True
    warp_groups: bool = False

    @property
    def name(self) -> str:
        """The name that nvcc gives it: sm_80."""
        return f"sm_{self.number}{'a' if self.warp_groups else ''}"

    @property
    def rank(self) -> int:
        """Its place among architectures, of a capability the one with more instructions last.

        sm_90: 900, sm_90a: 901; libraries know architectures by this number.
        """
        return 10 * self.number + self.warp_groups

    @property
    def recorded(self) -> tuple[str, ...]:
        """Whose records serve it: its own, and behind them those of its capability, of sm_90."""
        return (self.name, *[f"sm_{self.number}"] * self.warp_groups)

    @property
    def capability(self) -> tuple[int, int]:
        """(major, minor), as torch.cuda.get_device_capability gives it."""
        return divmod(self.number, 10)


# Threads of a warp.
WARP = 32
# The mask of all its lanes.
FULL_WARP = 0xFFFFFFFF
# Warp schedulers of an SM, each with a quarter of its registers and units, since sm_70.
SCHEDULERS = 4

# Largest head_dim whose accumulators the schedules hold.
WIDEST = 256

_KIB = 1024
ARCHS = {
    arch.name: arch
    for arch in (
        CudaArch(75, 64 * _KIB, 64 * _KIB, 1024, 16, asynchronous_copy=False, bf16=False),
        CudaArch(80, 163 * _KIB, 164 * _KIB, 2048, 32),
        CudaArch(86, 99 * _KIB, 100 * _KIB, 1536, 16),
        CudaArch(89, 99 * _KIB, 100 * _KIB, 1536, 24),
        CudaArch(90, 227 * _KIB, 228 * _KIB, 2048, 32),
        CudaArch(90, 227 * _KIB, 228 * _KIB, 2048, 32, warp_groups=True),
        CudaArch(100, 227 * _KIB, 228 * _KIB, 2048, 32),
        CudaArch(120, 99 * _KIB, 100 * _KIB, 1536, 24),
    )
}

DEFAULT_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


def cuda_archs(names: Iterable[str] | str) -> tuple[CudaArch, ...]:
    """The architectures called ``names`` ("sm_80,sm_90" or a sequence), lowest first.

    "cuda" alone, or nothing, is DEFAULT_ARCHS. Raises UnsupportedSpec for a name not in ARCHS.
    """
    if isinstance(names, str):
        names = names.removeprefix("cuda").removeprefix(":").split(",")
    wanted = [name.strip() for name in names if name.strip()] or list(DEFAULT_ARCHS)
    unknown = [name for name in wanted if name not in ARCHS]
    if unknown:
        raise UnsupportedSpec(
            [f"CUDA arch {name!r} is unknown; known: {', '.join(ARCHS)}" for name in unknown]
        )
    return tuple(sorted({ARCHS[name] for name in wanted}, key=lambda arch: arch.rank))


def limit_reasons(spec: AttentionSpec, arch: CudaArch, shared_bytes: int, widest: int) -> list[str]:
    """Why no config with ``shared_bytes`` a block serves ``spec``: width, dtype, shared memory."""
    width = max(spec.head_dim, spec.head_dim_v)
    checks = [
        (
            width > widest,
            f"head_dim={spec.head_dim}, head_dim_v={spec.head_dim_v} must be at most {widest}",
        ),
        (
            spec.dtype != "float16" and not arch.bf16,
            f"no {spec.dtype} products on its tensor cores: use float16, or sm_80 and later",
        ),
        (
            shared_bytes > arch.shared_bytes,
            f"it needs {shared_bytes} bytes of shared memory, a block has {arch.shared_bytes}",
        ),
    ]
    return [text for wrong, text in checks if wrong]


def crowded_reasons(arch: CudaArch, blocks: int, shared_bytes: int) -> list[str]:
    """Why an SM cannot hold ``blocks`` blocks with ``shared_bytes`` each (empty: it can)."""
    needed, held = blocks * shared_bytes, arch.shared_bytes_per_sm
    if needed <= held:
        return []
    need = f"{blocks} blocks need {needed} bytes of shared memory"
    return [f"{need}, an SM of {arch.name} has {held}"]


def serving_arch(capability: tuple[int, int], built: Iterable[CudaArch]) -> CudaArch | None:
    """The architecture of ``built`` whose code a device of ``capability`` runs, or None.

    Machine code runs on its own major version, on the same or a higher minor one.
    """
    major, minor = capability
    usable = [a for a in built if a.capability[0] == major and a.capability[1] <= minor]
    usable = [a for a in usable if not a.warp_groups or a.capability == capability]
    return max(usable, key=lambda arch: arch.rank, default=None)
