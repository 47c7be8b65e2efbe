"""At first use: one kernel for this machine, from the disk cache or built into it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ..artifact import symbol_name
from ..errors import UnsupportedSpec
from ..schedules.cuda.arch import ARCHS, CudaArch, serving_arch
from ..schedules.target import CpuTarget, host_target
from ..spec import AttentionSpec
from . import cache
from .toolkit import find_toolkit
from .versions import build_versions, source_digest

logger = logging.getLogger("tvm_flash")


def artifact_for(spec: AttentionSpec, direction: str, config: Any = None) -> Path:
    """Directory of the artifact with this kernel alone; ``config`` None: the schedule chooses."""
    target = host_target()
    name = f"{symbol_name(spec, direction)}-{_key(spec, direction, target, config)[:32]}"
    return cache.entry(name, lambda path: _build(spec, direction, target, config, path))


def cuda_artifact_for(
    spec: AttentionSpec, direction: str, capability: tuple[int, int] | None
) -> Path:
    """Directory of the artifact with this kernel for a GPU of ``capability``."""
    arch = arch_for(capability)
    target = {"cuda": arch.name, "nvcc": find_toolkit().version}
    key = _digest(spec, direction, target, None)
    name = f"{symbol_name(spec, direction)}-{arch.name}-{key[:32]}"
    return cache.entry(name, lambda path: _build_cuda(spec, direction, arch, path))


def arch_for(capability: tuple[int, int] | None) -> CudaArch:
    """The architecture to build for: the device's own, else the nearest that it can run."""
    if capability is None:
        raise ValueError("device_type='cuda' needs capability=(major, minor) to compile for")
    below = [arch for arch in ARCHS.values() if arch.capability <= capability]
    if not below:
        least = min(arch.number for arch in ARCHS.values()) / 10
        raise UnsupportedSpec(
            [f"compute capability {capability[0]}.{capability[1]}: kernels need {least} or higher"]
        )
    return serving_arch(capability, below) or max(below, key=lambda arch: arch.number)


def _key(spec: AttentionSpec, direction: str, target: CpuTarget, config: Any) -> str:
    described = [target.name, target.mcpu, *target.mattr, *sorted(target.features)]
    chosen = config if config is None or isinstance(config, dict) else config.to_json()
    return _digest(spec, direction, described, chosen)


def _digest(spec: AttentionSpec, direction: str, target: Any, config: Any) -> str:
    """Everything that decides the code; sources and target decide the default config too."""
    return cache.digest(
        {
            "spec": spec.to_json(),
            "direction": direction,
            "target": target,
            "config": config,
            "sources": source_digest(),
            "versions": build_versions(),
        }
    )


def _build(spec: AttentionSpec, direction: str, target: CpuTarget, config: Any, path: Path) -> None:
    # Not at the top: importing tvm takes seconds, and a kernel from the cache needs none of it.
    from .build import build_jobs, scheduling

    start = time.perf_counter()
    build_jobs([scheduling(spec, direction, target, config)], target, path)
    logger.info("compiled %s in %.1f s", path.name, time.perf_counter() - start)


def _build_cuda(spec: AttentionSpec, direction: str, arch: CudaArch, path: Path) -> None:
    from .cuda_build import build_cuda, cuda_job

    start = time.perf_counter()
    build_cuda([cuda_job(spec, direction, (arch,))], (arch,), path)
    logger.info("compiled %s in %.1f s", path.name, time.perf_counter() - start)
