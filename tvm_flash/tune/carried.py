"""Candidates compiled on one machine and timed on another, which has neither TVM nor nvcc."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm_flash

from ..artifact.library import KernelRecord, Manifest, symbol_name, verify
from ..errors import UnsupportedSpec
from ..schedules.cuda.arch import ARCHS, CudaArch
from ..schedules.space import Knob, Point, Space
from ..workers import Failure
from .building import Built
from .cuda_hardware import CudaHardware, most_registers
from .predictions import predicted, write_predictions
from .request import Request
from .sizes import problem_of
from .strategy import default_strategy, make_strategy
from .trial import Observation, SearchTask

_NUMBERED = re.compile(r"_\d{3,}$")
_MAKE = "make one with `tvm-flash tune SPECS --target cuda:ARCH --carry DIR`"


@dataclass(frozen=True)
class CarriedConfig:
    """A config among those of a carried library, to stand for the schedule's own class.

    candidate: its place in ``records``, the library's kernels for one spec and direction; 0 is the
    default config.
    """

    candidate: int
    records: tuple[KernelRecord, ...] = field(compare=False, repr=False)

    @property
    def record(self) -> KernelRecord:
        """Its kernel in the manifest."""
        return self.records[self.candidate]

    @property
    def schedule(self) -> str:
        """The name of its schedule."""
        return self.to_json()["schedule"]

    def to_json(self) -> dict[str, Any]:
        """Its numbers, as a record of a search holds them."""
        (variant,) = self.record.config["variants"]
        return {name: value for name, value in variant.items() if name not in ("archs", "meta")}


class InOrder:
    """The strategy of carried candidates: as they lie in the library, the best predicted first."""

    def __init__(self, task: SearchTask, seed: int):
        self._left = list(task.space.points)

    def propose(self, count: int) -> Sequence[Point]:
        return self._left[:count]

    def observe(self, observations: Sequence[Observation]) -> None:
        """What was measured is not proposed again."""
        seen = {observation.point for observation in observations}
        self._left = [point for point in self._left if point not in seen]


class CarriedRequest(Request):
    """A request of carried tasks: without TVM nobody knows which record a build would take."""

    def _recorded(self, task: SearchTask) -> Callable[[], Any]:
        return lambda: None


def carried_request(
    tasks: Sequence[SearchTask], arch: CudaArch, seconds: float, logs: Path
) -> CarriedRequest:
    """The searches of ``tasks`` through all of their candidates, recorded in ``logs``."""
    trials = max(task.space.size for task in tasks) - 1
    strategy = f"{InOrder.__module__}:{InOrder.__qualname__}"
    return CarriedRequest(tuple(tasks), arch, strategy, None, 0, trials, seconds, logs)


class CarriedHardware(CudaHardware):
    """``Hardware`` that runs the candidates in the library at ``path`` on this machine's GPU."""

    def __init__(self, path: Path, timeout: float):
        super().__init__(1, timeout)
        self._path, self._versions = path, verify(path)[1].versions

    def _compilers(self) -> Mapping[str, str]:
        return self._versions

    def _found(self, task: SearchTask, configs: Mapping[str, CarriedConfig]) -> dict[str, Any]:
        return {key: self._carried(c.record, task.target) for key, c in configs.items()}

    def _carried(self, record: KernelRecord, arch: str) -> Built | Failure:
        refused = [text for launch in record.launches for text in launch.get("refused", ())]
        if refused:
            return Failure("spill", "; ".join(refused))
        return Built((self._path, record.symbol), most_registers(record, arch))


def carry(
    tasks: Sequence[SearchTask],
    arch: CudaArch,
    path: Path,
    trials: int,
    seed: int,
    strategy: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Compile the default and ``trials`` other configs of each task into the library at ``path``.

    What the models predict of them is kept beside it, to be judged by what is measured.
    strategy: what proposes them, as ``make_strategy`` takes it; None: the analytical model's best,
    without a model ``random``. Raises BuildError, UnsupportedSpec.
    """
    from ..codegen.cuda_build import CudaJob, build_cuda
    from ..schedules.cuda.select import cuda_programs

    jobs, names, configs = [], set(), {}
    for task in tasks:
        for number, config in enumerate(_configs(task, trials, seed, strategy)):
            found = cuda_programs(task.spec, task.direction, (arch,), config.to_json())
            names |= {launch.name for _, program in found for launch in program.launches}
            symbol = f"{symbol_name(task.spec, task.direction)}_{number:03}"
            configs[symbol], programs = config, _always(found)
            jobs.append(CudaJob(symbol, task.spec, task.direction, (arch,), programs))
    build_cuda(jobs, (arch,), path, progress, allow_spills=names)
    write_predictions(path, predicted(path, tasks, configs))
    return path


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_: value


def _configs(task: SearchTask, trials: int, seed: int, name: str | None) -> list[Any]:
    modelled = name is None and default_strategy(task) == "analytical-measured"
    strategy = make_strategy(name or ("analytical" if modelled else "random"), task, seed)
    start = task.space.start
    strategy.observe([Observation(task.space.point(start), None)])
    return [start, *map(task.space.config, strategy.propose(trials))]


def carried_tasks(path: Path) -> tuple[CudaArch, list[SearchTask]]:
    """The architecture and the searches of the library that ``carry`` made at ``path``.

    Raises ArtifactError, and UnsupportedSpec for any other library.
    """
    manifest = verify(path)[1]
    arch = _arch_of(path, manifest)
    found: dict[tuple, list[KernelRecord]] = {}
    for record in manifest.kernels:
        found.setdefault((record.spec, record.direction), []).append(record)
    return arch, [
        SearchTask(_space(tuple(records)), spec, direction, arch.name, problem_of(spec))
        for (spec, direction), records in found.items()
    ]


def _arch_of(path: Path, manifest: Manifest) -> CudaArch:
    archs = manifest.target.get("archs", [])
    if len(archs) != 1 or not all(_NUMBERED.search(r.symbol) for r in manifest.kernels):
        raise UnsupportedSpec(f"{path} holds no candidates for one GPU: {_MAKE}")
    if (version := manifest.versions.get("tvm_flash")) != tvm_flash.__version__:
        raise UnsupportedSpec(
            f"{path} was built by tvm_flash {version}, this is {tvm_flash.__version__}: {_MAKE}"
        )
    return ARCHS[archs[0]]


def _space(records: tuple[KernelRecord, ...]) -> Space:
    knob = Knob("candidate", tuple(range(len(records))), "place in the library")
    return Space("carried", (knob,), CarriedConfig(0, records), lambda config: [])
