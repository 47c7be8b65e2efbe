"""This machine's GPU as hardware of a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact.library import KernelRecord, symbol_name, verify
from ..bench.host import describe
from ..codegen import cache
from ..codegen.toolkit import find_toolkit
from ..codegen.versions import build_versions, source_digest
from ..errors import TvmFlashError, UnsupportedSpec
from ..problem.spec import AttentionSpec
from ..schedules.cuda.arch import ARCHS
from ..workers import Failure
from .building import BuildingHardware, Built, build_failure
from .cuda_device import judged_and_timed_on_gpu, open_device
from .trial import SearchTask

_RESOURCES = ("registers", "spill_stores", "spill_loads", "stack", "shared")


class CudaHardware(BuildingHardware):
    """``Hardware`` of this machine's GPU, which ``task.target`` must be the architecture of.

    jobs, timeout: as of ``BuildingHardware``. A config that a build would refuse for what it keeps
    in memory (``codegen/sass/spills.py``) is a "spill", and is not run. A crashed process takes its
    CUDA context with it; the next config gets a fresh one.
    """

    def __init__(self, jobs: int, timeout: float):
        functions = {"build": built, "prepare": import_compiler, "measure": judged_and_timed_on_gpu}
        super().__init__(jobs, timeout, open_device=open_device, **functions)

    def origin(self, task: SearchTask) -> Mapping[str, Any]:
        """As ``Hardware.origin``; "cpu" holds the GPU's name, the machine the host beside it."""
        import torch

        versions = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda)}
        versions |= self._compilers()
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        machine = {**describe().to_json(), "gpu": gpu, "arch": task.target}
        return {"cpu": gpu, "machine": machine, "versions": versions}

    def _compilers(self) -> Mapping[str, str]:
        """Versions of what compiles the kernels."""
        return {**build_versions(), "nvcc": find_toolkit().version}

    def _to_build(self, task: SearchTask, config: Any) -> tuple:
        return task.spec, task.direction, task.target, config.to_json()

    def _to_measure(self, task: SearchTask, ours: Built, best: Built, seconds: float) -> tuple:
        return ours.path, best.path, task.sizes, seconds


def built(
    spec: AttentionSpec, direction: str, arch: str, config: Mapping[str, Any]
) -> Built | Failure:
    """The artifact of ``config`` for ``arch`` from the cache, or compiled into it.

    resources: what ptxas gave the kernel with most registers.
    """
    parts = {
        "spec": spec.to_json(), "direction": direction, "arch": arch, "config": dict(config),
        "sources": source_digest(), **build_versions(),
    }  # fmt: skip
    try:
        parts["nvcc"] = find_toolkit().version
        name = f"{symbol_name(spec, direction)}-{arch}-{cache.digest(parts)[:32]}"
        path = cache.entry(name, lambda to: _compile(spec, direction, arch, config, to))
    except (TvmFlashError, ValueError) as error:
        return build_failure(error)
    return Built(path, most_registers(verify(path)[1].kernels[0], arch))


def most_registers(record: KernelRecord, arch: str) -> dict[str, int]:
    """What ptxas gave the launch of a kernel that takes most registers on ``arch``."""
    launches = (launch["resources"][arch] for launch in record.launches)
    largest = max(launches, key=lambda found: found["registers"])
    return {name: int(largest[name]) for name in _RESOURCES}


def import_compiler() -> None:
    """What a builder process needs: TVM, which takes seconds, once."""
    from ..codegen import cuda_build  # noqa: F401
    from ..schedules.cuda import select  # noqa: F401


def _compile(
    spec: AttentionSpec, direction: str, arch: str, config: Mapping[str, Any], path: Path
) -> None:
    """One function with this config alone; a spill is judged as in any build."""
    from ..codegen.cuda_build import CudaJob, build_cuda
    from ..schedules.cuda.select import as_config, cuda_programs

    archs = (ARCHS[arch],)
    if reasons := as_config(config, direction).reasons(spec, *archs):
        raise UnsupportedSpec(reasons)
    programs = cuda_programs(spec, direction, archs, config)
    job = CudaJob(symbol_name(spec, direction), spec, direction, archs, lambda *_: programs)
    build_cuda([job], archs, path)
