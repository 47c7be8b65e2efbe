"""This machine as hardware: builders in parallel, then one process that measures alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..artifact import symbol_name
from ..bench.host import cpu_name, describe
from ..codegen import jit
from ..codegen.versions import build_versions
from ..errors import BuildError, TvmFlashError
from ..spec import AttentionSpec
from .hardware import HardwareFailure
from .instructions import counts
from .measure import judged_and_timed
from .trial import SearchTask, Trial
from .workers import Failure, Workers


@dataclass(frozen=True)
class Built:
    """An artifact with one kernel; resources: what ``instructions.counts`` says of its code."""

    path: Path
    resources: dict[str, int]


class LocalHardware:
    """``Hardware`` of this machine's CPU.

    jobs: builder processes. timeout: seconds that compiling one config may take, and checking and
    warming one up. All configs of a call are built before the first is timed: a compiler beside a
    measurement would be measured too.
    """

    def __init__(self, jobs: int, timeout: float):
        self.jobs, self.timeout = jobs, timeout
        self._builders = Workers(built, jobs, prepare=import_compiler)
        self._measurer = Workers(judged_and_timed, 1)
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
        """As ``Hardware.origin``."""
        import torch

        return {
            "cpu": cpu_name(),
            "machine": replace(describe(), threads=task.threads).to_json(),
            "versions": {**build_versions(), "torch": str(torch.__version__)},
        }

    def close(self) -> None:
        """End the builders and the measuring process."""
        self._builders.close()
        self._measurer.close()

    def __enter__(self) -> LocalHardware:
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
        items = [(task.spec, task.direction, config.to_json()) for config in new.values()]
        keys = list(new)
        for index, answer in self._builders.map(items, self.timeout):
            if isinstance(answer, Failure) and answer.outcome == _OURS:
                raise HardwareFailure(answer.note)
            self._known[keys[index]] = answer

    def _measured(self, task: SearchTask, ours: Built, best: Built, seconds: float) -> Trial:
        item = (ours.path, best.path, task.sizes, task.threads, seconds)
        ((_, answer),) = self._measurer.map([item], self.timeout + 4 * seconds)
        if isinstance(answer, Failure):
            return Trial(answer.outcome, resources=ours.resources, note=answer.note)
        if answer.outcome == "wrong":
            self._measurer.renew()  # it may have written anywhere
        return replace(answer, resources=ours.resources)


# Not a candidate's fault but this machine's: a full disk, no C compiler.
_OURS = "machine"


def built(spec: AttentionSpec, direction: str, config: Mapping[str, Any]) -> Built | Failure:
    """The artifact of ``config`` from the cache, or compiled into it; for a builder process."""
    try:
        path = jit.artifact_for(spec, direction, dict(config))
    except (TvmFlashError, ValueError) as error:
        ours = isinstance(error, BuildError) and isinstance(error.__cause__, OSError)
        return Failure(_OURS if ours else "invalid", str(error)[:300])
    (library,) = path.glob("*.so")
    return Built(path, counts(library, symbol_name(spec, direction)))


def import_compiler() -> None:
    """What a builder process needs: TVM, which takes seconds, once."""
    from ..codegen import build  # noqa: F401


def _key(task: SearchTask, config: Any) -> str:
    return json.dumps([task.spec.name, task.direction, config.to_json()], sort_keys=True)
