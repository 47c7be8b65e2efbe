"""What a run of `tvm-flash tune` searches, and with what: one session for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..schedules.cuda.arch import CudaArch
from ..schedules.target import CpuTarget
from .hardware import Hardware
from .plan import recorded
from .session import Event, Keeper, Session, State
from .strategy import default_strategy, make_strategy, strategy_class, strategy_name
from .trial import SearchTask
from .trial_log import UNWRITTEN, TrialLog, check_writable, restore

Tell = Callable[[State, Event | None], object]


@dataclass(frozen=True)
class Method:
    """How tasks are searched, and where what is found goes.

    strategy, cost_model: as ``make_strategy`` takes them; strategy None: ``default_strategy`` of
    each task. seconds: of timing a trial. logs: folder of the records. work_dir: of MetaSchedule's
    databases and of records that do not fit.
    """

    strategy: str | None
    cost_model: str | None
    seed: int
    trials: int
    seconds: float
    logs: Path
    work_dir: Path | None = None

    def strategy_of(self, task: SearchTask) -> str:
        """The name of the strategy that searches ``task``."""
        if self.strategy is None:
            return default_strategy(task)
        return strategy_name(self.strategy, self.cost_model)


@dataclass(frozen=True)
class Request:
    """Tasks for one target and how each is searched."""

    tasks: tuple[SearchTask, ...]
    target: CpuTarget | CudaArch
    method: Method

    def prepare(self) -> int:
        """Check the strategy and the folders, and write what an earlier run could not; how many.

        Raises ValueError for a strategy that there is not, NotRecorded for folders.
        """
        for name in self.strategies:
            strategy_class(name)
        logs, work_dir = self.method.logs, self.method.work_dir
        check_writable(logs)
        if work_dir is None:
            return 0
        check_writable(work_dir, "--work-dir")
        return restore(work_dir, logs)

    @property
    def strategies(self) -> list[str]:
        """The names of the strategies, each once."""
        return list(dict.fromkeys(map(self.method.strategy_of, self.tasks)))

    def waiting(self) -> Path | None:
        """The file of records that the logs did not take; None: there are none."""
        folder = self.method.work_dir
        path = None if folder is None else folder / UNWRITTEN
        return path if path is not None and path.is_file() else None

    def sessions(self, hardware: Hardware, tell: Tell) -> Iterator[Session]:
        """The sessions, each made when its turn comes; ``tell`` as of ``Session``."""
        for task in self.tasks:
            yield self._session(task, hardware, tell)

    def _session(self, task: SearchTask, hardware: Hardware, tell: Tell) -> Session:
        method, strategy = self.method, self.method.strategy_of(task)
        log = TrialLog(
            method.logs,
            task,
            hardware.origin(task),
            strategy,
            method.seed,
            cost_model=method.cost_model,
            rescue=method.work_dir,
        )
        return Session(
            task,
            make_strategy(strategy, task, method.seed),
            hardware,
            log,
            trials=method.trials,
            seconds=method.seconds,
            recorded=self._recorded(task),
            tell=tell,
            keepers=self._keepers(task),
        )

    def _recorded(self, task: SearchTask) -> Callable[[], Any]:
        return recorded(self.method.logs, self.target, task)

    def _keepers(self, task: SearchTask) -> tuple[Keeper, ...]:
        """Who else is given the trials: MetaSchedule's own database, in the task's folder."""
        if self.method.work_dir is None:
            return ()
        database: Any = _database()
        return (database(self.method.work_dir / folder_name(task), task).record,)


def folder_name(task: SearchTask) -> str:
    """The folder of ``task`` under a work_dir."""
    return f"{task.target}-{task.spec.name}-{task.direction}-{task.bucket}"


def _database() -> Any:
    # Not at the top: it imports tvm.
    from .metaschedule.database import MetaScheduleDatabase

    return MetaScheduleDatabase
