"""This machine's GPU as hardware of a search."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
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
from .building import BuildingHardware, Built, build_failure
from .cuda_device import judged_and_timed_on_gpu, open_device
from .trial import SearchTask
from .workers import Failure

_MEMORY = ("spill_stores", "spill_loads", "stack")
_RESOURCES = ("registers", *_MEMORY, "shared")


class CudaHardware(BuildingHardware):
    """``Hardware`` of this machine's GPU, which ``task.target`` must be the architecture of.

    jobs, timeout: as of ``BuildingHardware``. A config that keeps registers in memory is a "spill",
    and is not run, unless its schedule lets it. A crashed process takes its CUDA context with it;
    the next config gets a fresh one.
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
    # The same that a build lets through: float32 of the widest heads has no config without.
    may_spill = partial(_may_spill, spec, direction, arch, config)
    return built_or_spilled(path, _resources(path, arch), may_spill)


def built_or_spilled(
    place: Path | tuple[Path, str],
    launches: Mapping[str, Mapping[str, int]],
    may_spill: Callable[[], Collection[str]],
) -> Built | Failure:
    """What is at ``place``, unless a launch that is not among ``may_spill`` spills.

    launches: what ptxas gave each, by its name; may_spill is asked only where one spills.
    """
    in_memory = {name: max(found[kind] for kind in _MEMORY) for name, found in launches.items()}
    spilled = {name for name, size in in_memory.items() if size}
    if spilled and (refused := spilled.difference(may_spill())):
        name = max(refused, key=lambda name: in_memory[name])
        return Failure("spill", f"{in_memory[name]} bytes of a thread in memory, {launches[name]}")
    return Built(place, dict(max(launches.values(), key=lambda found: found["registers"])))


def import_compiler() -> None:
    """What a builder process needs: TVM, which takes seconds, once."""
    from ..codegen import cuda_build  # noqa: F401
    from ..schedules.cuda import select  # noqa: F401


def _compile(
    spec: AttentionSpec, direction: str, arch: str, config: Mapping[str, Any], path: Path
) -> None:
    """One function with this config alone; what spills is let through, its resources tell."""
    from ..codegen.cuda_build import CudaJob, build_cuda
    from ..schedules.cuda.select import as_config, cuda_programs

    archs = (ARCHS[arch],)
    if reasons := as_config(config, direction).reasons(spec, *archs):
        raise UnsupportedSpec(reasons)
    programs = cuda_programs(spec, direction, archs, config)
    names = {launch.name for _, program in programs for launch in program.launches}
    job = CudaJob(symbol_name(spec, direction), spec, direction, archs, lambda *_: programs)
    build_cuda([job], archs, path, allow_spills=names)


def _may_spill(
    spec: AttentionSpec, direction: str, arch: str, config: Mapping[str, Any]
) -> set[str]:
    """Names of the launches whose schedule lets them keep registers in memory."""
    from ..schedules.cuda.select import cuda_programs

    programs = cuda_programs(spec, direction, (ARCHS[arch],), config)
    return {launch.name for _, p in programs for launch in p.launches if launch.may_spill}


def _resources(path: Path, arch: str) -> dict[str, dict[str, int]]:
    (record,) = verify(path)[1].kernels
    return resources_of(record, arch)


def resources_of(record: KernelRecord, arch: str) -> dict[str, dict[str, int]]:
    """What ptxas gave each launch of a kernel on ``arch``, by its name."""
    return {
        launch["name"]: {name: int(launch["resources"][arch][name]) for name in _RESOURCES}
        for launch in record.launches
    }
