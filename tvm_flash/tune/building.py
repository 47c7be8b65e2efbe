"""Hardware of this machine: builders in parallel, then one process that measures alone."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ..errors import BuildError, HardwareFailure, SpillError
from ..workers import Failure, Workers
from .trial import SearchTask, Trial

Self = TypeVar("Self", bound="BuildingHardware")

# Not a candidate's fault but this machine's: a full disk, no compiler.
_OURS = "machine"
# Outcomes that a lost device has too: where no process opens it afterwards, none is recorded.
_MAY_BE_OURS = ("crash", "timeout")


# An artifact of one kernel; or of several, and the symbol of one.
Place = Path | tuple[Path, str]


@dataclass(frozen=True)
class Built:
    """A compiled kernel; resources: what the compiler made of it."""

    path: Place
    resources: dict[str, int]


def build_failure(error: Exception) -> Failure:
    """What a builder answers for a config that raised ``error``."""
    note = str(error)[:300]
    if isinstance(error, SpillError):
        return Failure("spill", note)
    ours = isinstance(error, BuildError) and isinstance(error.__cause__, OSError)
    return Failure(_OURS if ours else "invalid", note)


class BuildingHardware(ABC):
    """``Hardware`` whose configs ``build`` compiles and ``measure`` checks and times, in processes.

    jobs: builder processes, each made ready by ``prepare``. timeout: seconds that compiling one
    config may take, and checking and warming one up. All configs of a call are built before the
    first is timed: a compiler beside a measurement would be measured too. open_device: what the
    measuring process does first; where it fails, there is nothing to measure on.
    """

    def __init__(
        self,
        jobs: int,
        timeout: float,
        *,
        build: Callable[..., Built | Failure],
        prepare: Callable[[], None],
        measure: Callable[..., Trial],
        open_device: Callable[[], None] | None = None,
    ):
        self.jobs, self.timeout = jobs, timeout
        self._builders = Workers(build, jobs, prepare=prepare)
        self._measurer = Workers(measure, 1, prepare=open_device)
        self._known: dict[str, Built | Failure] = {}

    @abstractmethod
    def origin(self, task: SearchTask) -> Mapping[str, Any]:
        """As ``Hardware.origin``."""

    @abstractmethod
    def _to_build(self, task: SearchTask, config: Any) -> tuple:
        """Arguments of ``build``."""

    @abstractmethod
    def _to_measure(self, task: SearchTask, ours: Built, best: Built, seconds: float) -> tuple:
        """Arguments of ``measure``."""

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

    def close(self) -> None:
        """End the builders and the measuring process."""
        self._builders.close()
        self._measurer.close()

    def __enter__(self: Self) -> Self:
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
        self._known.update(self._found(task, new))

    def _found(self, task: SearchTask, new: Mapping[str, Any]) -> dict[str, Built | Failure]:
        """What ``build`` answers for each of the configs ``new``, by their keys."""
        found = {}
        items = [self._to_build(task, config) for config in new.values()]
        keys = list(new)
        for index, answer in self._builders.map(items, self.timeout):
            if isinstance(answer, Failure) and answer.outcome == _OURS:
                raise HardwareFailure(answer.note)
            found[keys[index]] = answer
        return found

    def _measured(self, task: SearchTask, ours: Built, best: Built, seconds: float) -> Trial:
        item = self._to_measure(task, ours, best, seconds)
        ((_, answer),) = self._measurer.map([item], self.timeout + 4 * seconds)
        if isinstance(answer, Failure):
            answer = Trial(answer.outcome, note=answer.note)
        elif answer.outcome != "ok":
            self._measurer.renew()  # it may have written anywhere, or broken a CUDA context
        if answer.outcome in _MAY_BE_OURS:
            self._measurer.start()
        return replace(answer, resources=ours.resources)


def _key(task: SearchTask, config: Any) -> str:
    parts = [task.spec.name, task.direction, task.target, config.to_json()]
    return json.dumps(parts, sort_keys=True)
