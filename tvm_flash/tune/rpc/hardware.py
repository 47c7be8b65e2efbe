"""Hardware of a search on other machines: those that a TVM RPC tracker has under one key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...bench.host import usable_cores
from ...codegen.versions import build_versions
from ...errors import HardwareFailure
from ...schedules.target import CpuTarget, cpu_target
from ...workers import Failure, Workers
from ..trial import SearchTask, Trial
from . import trial as remote_trial
from .build import RemoteTask
from .servers import Describe, Servers, Stopped
from .session import RemoteCpu
from .tracker import Tracker
from .trial import LONGER, Attempt, Lost

# Seconds that compiling and linking may take: of one candidate, or two for the first.
_COMPILE_SECONDS = 120.0


class RpcHardware:
    """The servers of ``key`` at the tracker ``host``:``port``, CPUs that run ``target``.

    Candidates are compiled here, each is measured in a session of its own with whichever server is
    free, beside the incumbent. A candidate whose session ends too soon is tried once more, on
    another server where there is one, and then is a crash or a timeout. wait: seconds until
    no free server means that none is left. limit: seconds that a session may last. jobs: candidates
    at once; more than servers, so that some compile while others are measured.

    Raises ValueError for what is no tracker, a key without servers, or a target that the servers
    cannot run, UnsupportedSpec for an unknown one, HardwareFailure where no server answers.
    """

    def __init__(
        self,
        host: str,
        port: int,
        key: str,
        target: str,
        *,
        wait: float = 120.0,
        limit: float = 120.0,
        jobs: int | None = None,
    ):
        tracker = Tracker(host.strip("[]"), port)  # as in [::1]:9190
        self._target = cpu_target(target)
        tracker.check(key)
        self._servers = Servers(tracker, key, wait, limit)
        servers, cores = tracker.servers(key), usable_cores()
        # At least one: the last server may have gone since the check.
        self.jobs = jobs or max(1, servers, min(2 * servers, cores))
        prepare = partial(remote_trial.prepare, max(1, cores // self.jobs))
        self._workers = Workers(remote_trial.run, self.jobs, prepare)
        try:
            self._cpu = self._described()
            check_features(self._target, self._cpu)
        except BaseException:
            self.close()
            raise

    def evaluate(
        self, task: SearchTask, configs: Sequence[Any], incumbent: Any, seconds: float
    ) -> Iterator[tuple[int, Trial]]:
        """As Hardware.evaluate; a trial's resources name the server it was measured on."""
        jobs = {
            index: Attempt(
                self._servers, RemoteTask.of(task), config, incumbent, seconds, self._cpu.name
            )
            for index, config in enumerate(configs)
        }
        again: dict[int, Attempt] = {}
        for index, answer in self._answers(jobs):
            if isinstance(answer, Trial):
                yield index, answer
            else:
                avoid = answer.address if isinstance(answer, Lost) else ""
                again[index] = replace(jobs[index], avoid=avoid)
        for index, answer in self._answers(again):
            if isinstance(answer, Trial):
                yield index, answer
            else:
                yield index, Trial(answer.outcome, note=f"twice, {answer.note}")

    def origin(self, task: SearchTask) -> Mapping[str, Any]:
        """cpu, machine and versions of a record."""
        cpu, servers = self._cpu, self._servers
        machine = {
            "cpu": cpu.name,
            "cores": cpu.cores,
            "threads": task.threads,
            "features": sorted(cpu.features & self._target.features),
            "rpc_key": servers.key,
        }
        return {
            "cpu": cpu.name,
            "machine": machine,
            "versions": {**build_versions(), "torch": str(torch.__version__)},
        }

    def close(self) -> None:
        """End the processes that talk to servers; a server ends a session that its client left."""
        self._workers.close()

    def __enter__(self) -> RpcHardware:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _answers(self, jobs: Mapping[int, Attempt]) -> Iterator[tuple[int, Trial | Lost | Failure]]:
        """What became of ``jobs``. Raises HardwareFailure when one says that all is over."""
        indices, items = list(jobs), [(job,) for job in jobs.values()]
        longest = max((job.seconds for job in jobs.values()), default=0.0)
        servers = self._servers
        timeout = _COMPILE_SECONDS + servers.patience + servers.limit + LONGER * longest
        for number, answer in self._workers.map(items, timeout):
            if isinstance(answer, Stopped):
                raise HardwareFailure(answer.reason)
            yield indices[number], answer

    def _described(self) -> RemoteCpu:
        servers = self._servers
        item = (Describe(servers),)
        ((_, answer),) = self._workers.map([item], servers.patience + servers.limit)
        if isinstance(answer, RemoteCpu):
            return answer
        raise HardwareFailure(answer.reason if isinstance(answer, Stopped) else answer.note)


def check_features(target: CpuTarget, cpu: RemoteCpu) -> None:
    """ValueError where ``cpu`` cannot run what is compiled for ``target``."""
    if missing := sorted(target.features - cpu.features):
        raise ValueError(
            f"target={target.name!r} needs {' '.join(missing)}, which the servers' {cpu.name} "
            "lacks: give the target of the servers"
        )
