"""Trials in MetaSchedule's own database files, so that its tools can read a search."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...codegen.file_lock import locked
from ...errors import TvmFlashError
from ...schedules.space import Point
from ..trial import SearchTask, Trial
from .knobs import KnobFunction

logger = logging.getLogger("tvm_flash")

WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"
# MetaSchedule's mark of a candidate that failed.
FAILED_SECONDS = 1e10


class MetaScheduleDatabase:
    """The ``JSONDatabase`` in ``folder``, which is made: one workload for ``task``.

    The workload is the task's knob function and the traces are points (``metaschedule.knobs``).
    Several processes may record at once, of several tasks. Lines that a crash cut off are set aside
    in files beside the database, with a warning. Raises TvmFlashError where it cannot be opened.
    """

    def __init__(self, folder: Path, task: SearchTask):
        from tvm.s_tir.meta_schedule.database import JSONDatabase

        self.knobs = KnobFunction(task.space, _about(task))
        self._folder, self._target = folder, _target(task.target)
        self._lock = folder / "database.lock"
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(self._lock):
                _repair(folder)
                self._database = JSONDatabase(work_dir=str(folder))
                self._workload = self._database.commit_workload(self.knobs.mod)

    def record(self, point: Point, trial: Trial) -> None:
        """Append ``trial``; a point off the knobs' values, which has no trace, is passed over.

        Where it cannot be written there is a warning: the search's own log has it.
        """
        from tvm.s_tir.meta_schedule.database import TuningRecord

        trace = self.knobs.trace(point)
        if trace is None:
            return
        times = list(trial.seconds) if trial.outcome == "ok" else [FAILED_SECONDS]
        record = TuningRecord(trace, self._workload, times, self._target, [])
        try:
            with _told(self._folder), locked(self._lock):
                self._database.commit_tuning_record(record)
        except TvmFlashError as error:
            logger.warning("%s", error)


def _about(task: SearchTask) -> dict[str, Any]:
    """What tells workloads apart, for a reader too."""
    return {
        "spec": task.spec.to_json(),
        "direction": task.direction,
        "target": task.target,
        "threads": task.threads,
        **task.sizes._asdict(),
    }


def _target(name: str) -> Any:
    import tvm

    from ...schedules.target import cpu_target

    if name.startswith("sm_"):
        return tvm.target.Target({"kind": "cuda", "arch": name})
    return cpu_target(name).tvm_target()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """TVM says RuntimeError, ValueError or TypeError for whatever goes wrong with a file."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise TvmFlashError(
            f"{folder}: MetaSchedule's database cannot be used: {reason}"
        ) from error


def _repair(folder: Path) -> None:
    """Set aside lines that TVM did not write: it reads all of a file or nothing, or crashes.

    Records name workloads by line, so that without one of those no record can be used.
    """
    if _set_aside(folder / WORKLOADS, _is_workload, keep_rest=False):
        _set_aside(folder / RECORDS, _is_record, keep_rest=False, always=True)
    else:
        _set_aside(folder / RECORDS, _is_record)


def _set_aside(
    path: Path, is_right: Callable[[Any], bool], keep_rest: bool = True, always: bool = False
) -> bool:
    """Whether ``path`` held broken lines; it is then kept under another name."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    whole = [line for line in lines[:-1] if _holds(line, is_right)]
    broken = len([line for line in lines if line]) - len(whole)
    if not broken and not (always and lines):
        return False
    aside = _unused(path)
    path.rename(aside)
    logger.warning("%s: %d lines are broken; the file is kept as %s", path, broken, aside.name)
    if keep_rest and whole:
        fresh = path.with_suffix(".part")
        fresh.write_bytes(b"\n".join(whole) + b"\n")
        os.replace(fresh, path)
    return True


def _holds(line: bytes, is_right: Callable[[Any], bool]) -> bool:
    try:
        return is_right(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _is_workload(line: Any) -> bool:
    """A hash and a module."""
    return type(line) is list and len(line) == 2 and all(type(part) is str for part in line)


def _is_record(line: Any) -> bool:
    """The number of a workload, a trace, and what was measured, where and of what."""
    match line:
        case [int(), [[list(steps), list(choices)], times, target, arguments]]:
            parts = ((times, list), (target, (dict, str)), (arguments, list))
            return (
                all(part is None or isinstance(part, kind) for part, kind in parts)
                and all(map(_is_step, steps))
                and all(type(choice) is list and len(choice) == 2 for choice in choices)
            )
    return False


def _is_step(step: Any) -> bool:
    match step:
        case [str(), list(), list(), list()]:
            return True
    return False


def _unused(path: Path) -> Path:
    """A name beside ``path`` that no file has."""
    number = 1
    while (name := path.with_name(f"{path.name}.broken{number}")).exists():
        number += 1
    return name
