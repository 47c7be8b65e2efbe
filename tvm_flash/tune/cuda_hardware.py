"""This machine's GPU as hardware of a search: builders in parallel, one process that measures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..artifact import symbol_name, verify
from ..bench.host import describe
from ..codegen import cache
from ..codegen.toolkit import find_toolkit
from ..codegen.versions import build_versions, source_digest
from ..errors import BuildError, TvmFlashError, UnsupportedSpec
from ..schedules.cuda.arch import ARCHS
from ..spec import AttentionSpec
from .cuda_device import judged_and_timed_on_gpu
from .hardware import HardwareFailure
from .trial import SearchTask, Trial
from .workers import Failure, Workers

# Not a candidate's fault but this machine's: a full disk, no CUDA compiler.
_OURS = "machine"
_MEMORY = ("spill_stores", "spill_loads", "stack")
_RESOURCES = ("registers", *_MEMORY, "shared")


@dataclass(frozen=True)
class Built:
    """An artifact with one function; resources: what ptxas gave the kernel with most registers."""

    path: Path
    resources: dict[str, int]


class CudaHardware:
    """``Hardware`` of this machine's GPU, which ``task.target`` must be the architecture of.

    jobs: builder processes. timeout: seconds that compiling one config may take, and checking and
    warming one up. A config that keeps registers in memory is a "spill", and is not run, unless its
    schedule lets it. A crashed process takes its CUDA context with it; the next config gets a fresh
    one.
    """

    def __init__(self, jobs: int, timeout: float):
        self.jobs, self.timeout = jobs, timeout
        self._builders = Workers(built, jobs, prepare=import_compiler)
        self._measurer = Workers(judged_and_timed_on_gpu, 1)
        self._known: dict[str, Built | Failure] = {}

    def evaluate(
        self, task: SearchTask, configs: Sequence[Any], incumbent: Any, seconds: float
    ) -> Iterator[tuple[int, Trial]]:
        """As ``Hardware.evaluate``."""
        self._build(task, [*configs, incumbent])
        best = self._known[_key(task, incumbent)]
        if isinstance(best, Failure):
            raise HardwareFailure(f"what is to be compared with does not build: {best.note}")
        for index, config in enumerate(configs):
            found = self._known[_key(task, config)]
            if isinstance(found, Failure):
                yield index, Trial(found.outcome, note=found.note)
            else:
                yield index, self._measured(task, found, best, seconds)

    def origin(self, task: SearchTask) -> Mapping[str, Any]:
        """As ``Hardware.origin``; "cpu" holds the GPU's name, the machine the host beside it."""
        import torch

        versions = {**build_versions(), "torch": str(torch.__version__)}
        versions |= {"nvcc": find_toolkit().version, "cuda": str(torch.version.cuda)}
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        machine = {**describe().to_json(), "gpu": gpu, "arch": task.target}
        return {"cpu": gpu, "machine": machine, "versions": versions}

    def close(self) -> None:
        """End the builders and the measuring process."""
        self._builders.close()
        self._measurer.close()

    def __enter__(self) -> CudaHardware:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _build(self, task: SearchTask, configs: Sequence[Any]) -> None:
        new = {_key(task, config): config for config in configs}
        new = {key: config for key, config in new.items() if key not in self._known}
        items = [(task.spec, task.direction, task.target, c.to_json()) for c in new.values()]
        keys = list(new)
        for index, answer in self._builders.map(items, self.timeout):
            if isinstance(answer, Failure) and answer.outcome == _OURS:
                raise HardwareFailure(answer.note)
            self._known[keys[index]] = answer

    def _measured(self, task: SearchTask, ours: Built, best: Built, seconds: float) -> Trial:
        item = (ours.path, best.path, task.sizes, seconds)
        ((_, answer),) = self._measurer.map([item], self.timeout + 4 * seconds)
        if isinstance(answer, Failure):
            return Trial(answer.outcome, resources=ours.resources, note=answer.note)
        if answer.outcome != "ok":
            self._measurer.renew()  # it may have written anywhere, or broken the CUDA context
        return replace(answer, resources=ours.resources)


def built(
    spec: AttentionSpec, direction: str, arch: str, config: Mapping[str, Any]
) -> Built | Failure:
    """The artifact of ``config`` for ``arch`` from the cache, or compiled into it."""
    parts = {
        "spec": spec.to_json(), "direction": direction, "arch": arch, "config": dict(config),
        "sources": source_digest(), **build_versions(),
    }  # fmt: skip
    try:
        parts["nvcc"] = find_toolkit().version
        name = f"{symbol_name(spec, direction)}-{arch}-{cache.digest(parts)[:32]}"
        path = cache.entry(name, lambda to: _compile(spec, direction, arch, config, to))
    except (TvmFlashError, ValueError) as error:
        ours = isinstance(error, BuildError) and isinstance(error.__cause__, OSError)
        return Failure(_OURS if ours else "invalid", str(error)[:300])
    launches = _resources(path, arch)
    in_memory = {name: max(found[kind] for kind in _MEMORY) for name, found in launches.items()}
    spilled = {name for name, size in in_memory.items() if size}
    # The same that a build lets through: float32 of the widest heads has no config without.
    if spilled and (refused := spilled - _may_spill(spec, direction, arch, config)):
        name = max(refused, key=lambda name: in_memory[name])
        return Failure("spill", f"{in_memory[name]} bytes of a thread in memory, {launches[name]}")
    return Built(path, max(launches.values(), key=lambda found: found["registers"]))


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
    """What ptxas gave each launch, by its name."""
    (record,) = verify(path)[1].kernels
    return {
        launch["name"]: {name: int(launch["resources"][arch][name]) for name in _RESOURCES}
        for launch in record.launches
    }


def _key(task: SearchTask, config: Any) -> str:
    return json.dumps([task.spec.name, task.direction, task.target, config.to_json()])
