"""What a measurement ran on: no number is printed without it."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..machine import cpu_features

# The few of a CPU's flags that choose a kernel or explain its speed.
NOTABLE_FEATURES = (
    "neon",
    "sve",
    "bf16",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
)


@dataclass(frozen=True)
class Host:
    """One machine and the software that was measured on it."""

    cpu: str
    cores: int  # that this process may use
    threads: int  # that torch was told to use
    features: tuple[str, ...]  # of NOTABLE_FEATURES
    memory_gib: float
    system: str
    python: str
    torch: str
    date: str  # ISO 8601, UTC

    def to_json(self) -> dict:
        """A plain dictionary."""
        return {**asdict(self), "features": list(self.features)}


def describe() -> Host:
    """The machine and the torch build of this process."""
    return Host(
        cpu=cpu_name(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        features=tuple(name for name in NOTABLE_FEATURES if name in cpu_features()),
        memory_gib=round(total_memory() / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )


def sentence(host: dict) -> str:
    """One line for the head of a table, from ``Host.to_json()``."""
    features = ", ".join(host["features"]) or "no vector extensions known"
    threads = f", {host['threads']} threads" if "threads" in host else ""
    gpu = f"{host['gpu']} (compute capability {host['capability']}); " if "gpu" in host else ""
    return (
        f"{gpu}{host['cpu']}, {host['cores']} cores{threads} ({features}); "
        f"torch {host['torch']}, {host['date']}"
    )


def usable_cores() -> int:
    """Cores this process may run on, which a container may have reduced."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of physical memory, 0 when unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name, or its architecture."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
