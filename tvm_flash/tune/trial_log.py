"""The records of one search: written line by line, and read back to go on where it stopped."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..codegen.file_lock import locked
from ..codegen.versions import source_digest
from ..errors import TvmFlashError
from ..schedules import record_format, record_headers
from .trial import SearchTask, Trial

logger = logging.getLogger("tvm_flash")

UNWRITTEN = "unwritten.jsonl"


class NotRecorded(TvmFlashError):
    """A trial could not be written; what was recorded before is intact."""


@dataclass(frozen=True)
class Step:
    """One measurement of a search: what is measured beside what, why, and as which trial.

    stage: one of record_format.STAGES.
    """

    stage: str
    number: int
    config: Any
    incumbent: Any


class TrialLog:
    """Appends the steps of one search to its log under ``folder``, and knows those there already.

    origin: ``Hardware.origin``. rescue: folder for lines that the log does not take; None: nowhere.
    """

    def __init__(
        self,
        folder: Path,
        task: SearchTask,
        origin: Mapping[str, Any],
        strategy: str,
        seed: int,
        *,
        cost_model: str | None = None,
        rescue: Path | None = None,
    ):
        self._folder, self._rescue = folder, rescue
        self._constant = {
            "format": record_headers.WHOLE,
            "target": task.target,
            **{name: origin[name] for name in ("cpu", "machine", "versions")},
            "spec": task.spec.to_json(),
            "direction": task.direction,
            "bucket": task.bucket,
            "problem": {**task.sizes._asdict(), "threads": task.threads},
            "strategy": strategy,
            "seed": seed,
            "sources": source_digest()[:16],
            **({"cost_model": cost_model} if cost_model else {}),
        }
        # As it is read back.
        self._constant = json.loads(json.dumps(self._constant))
        self.path = folder / task.target / record_format.log_name(task.spec)
        # By stage, config and what it was measured beside.
        self._lines: dict[tuple[str, str, str], dict[str, Any]] = {}
        for line in self._same_search():
            step = (line["stage"], _text(line["config"]), _text(line.get("incumbent", {})))
            self._lines.setdefault(step, line)
        began = max((line.get("wall", 0.0) for line in self._lines.values()), default=0.0)
        self._began = time.monotonic() - began

    def find(self, step: Step) -> Trial | None:
        """What the log says of ``step``, if it was made before; of several lines, the first."""
        configs = (_text(step.config.to_json()), _text(step.incumbent.to_json()))
        line = self._lines.get((step.stage, *configs))
        return None if line is None else _trial(line)

    def rival(self) -> tuple[bool, dict[str, Any] | None]:
        """Whether the search had gone past its start, and what the best record was then."""
        lines = self._lines.values()
        gone_on = any(x["stage"] == "trial" for x in lines)
        rivals = [x["config"] for x in lines if x["stage"] == "recorded" and x["trial"] == 0]
        return gone_on or bool(rivals), rivals[0] if rivals else None

    def write(self, step: Step, trial: Trial, best: bool) -> None:
        """Append one line; NotRecorded where neither the log nor ``rescue`` takes it."""
        line = self._line(step, trial, best)
        try:
            record_format.append(self._folder, line)
        except OSError as error:
            self._keep(line, error)

    @property
    def wall(self) -> float:
        """Seconds of searching so far, those before an interruption too."""
        return time.monotonic() - self._began

    def _line(self, step: Step, trial: Trial, best: bool) -> dict[str, Any]:
        optional = {"resources": trial.resources, "note": trial.note}
        return {
            **self._constant,
            "config": step.config.to_json(),
            "incumbent": step.incumbent.to_json(),
            "stage": step.stage,
            "trial": step.number,
            "outcome": trial.outcome,
            "seconds": list(trial.seconds),
            "incumbent_seconds": list(trial.incumbent_seconds),
            "error": trial.error,
            "allowed": trial.allowed,
            "wall": round(self.wall, 2),
            "date": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "best": best,
            **{name: value for name, value in optional.items() if value},
        }

    def _same_search(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        own = record_headers.search_of(self._constant)
        for line in record_format.read(self.path, lambda text: '"stage"' in text):
            if "stage" in line and record_headers.search_of(line) == own:
                yield line

    def _keep(self, line: dict[str, Any], why: OSError) -> None:
        message = f"{self.path} cannot be written ({why.strerror or why})"
        if self._rescue is None:
            raise NotRecorded(
                f"{message}: trial {line['trial']} is lost, all before it are there. "
                "Make room, then the same command goes on; --work-dir D keeps such lines in D"
            ) from why
        try:
            self._rescue.mkdir(parents=True, exist_ok=True)
            path = self._rescue / UNWRITTEN
            with _alone(path), path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line, sort_keys=True) + "\n")
        except OSError as error:
            raise NotRecorded(
                f"{message}, and neither can {self._rescue} ({error.strerror}): trial "
                f"{line['trial']} is lost, all before it are there. Make room, then the same "
                "command goes on"
            ) from why


def restore(rescue: Path, folder: Path) -> int:
    """Append what an earlier run left in ``rescue`` to the logs, remove it there, say how many.

    Raises NotRecorded where they still cannot be written; then all stays in ``rescue``.
    """
    path = rescue / UNWRITTEN
    if not path.is_file():
        return 0
    with _alone(path):
        found = list(record_format.checked(path, in_place=False))
        lines = [line for _, line, problems in found if not problems]
        try:
            for line in lines:
                record_format.append(folder, line)
        except OSError as error:
            raise NotRecorded(
                f"{folder} cannot be written ({error.strerror}): {len(lines)} records wait in "
                f"{path}"
            ) from error
        _set_aside(path, len(found) - len(lines))
    return len(lines)


def _set_aside(path: Path, unreadable: int) -> None:
    """Remove ``path``, unless lines of it are cut off or of another version: these are kept."""
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    kept = path.with_name(f"unreadable-{time.time_ns()}.jsonl")
    path.rename(kept)
    logger.warning("%d lines that are no records of this version remain in %s", unreadable, kept)


def _alone(path: Path) -> AbstractContextManager[None]:
    """While it is held no other search reads or writes ``path``."""
    return locked(path.with_suffix(".lock"))


def check_writable(folder: Path, option: str = "--logs") -> None:
    """Raise NotRecorded unless ``folder``, given as ``option``, can be written; it is made."""
    probe = folder / f".{time.time_ns()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise NotRecorded(
            f"{folder} cannot be written ({error.strerror}): give {option} DIR another one"
        ) from error


def _trial(line: Mapping[str, Any]) -> Trial:
    times = (tuple(line["seconds"]), tuple(line["incumbent_seconds"]))
    more = (line.get("resources", {}), line.get("note", ""))
    return Trial(line["outcome"], line["error"], line["allowed"], *times, *more)


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)
