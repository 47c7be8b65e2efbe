"""Makes a replay table: every valid point of a space compiled, checked and measured, resumably."""

from __future__ import annotations

import datetime
import json
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...bench import host
from ...codegen.file_lock import locked
from ...runtime.loader import opened
from ...schedules.config_fields import config_problems
from ...schedules.record_format import SIZES
from ...schedules.space import Point, Space, Value
from ...tune.measure import timed_call
from ...tune.trial import SearchTask
from . import table as replay_table
from .build import build_all
from .format import FORMAT, KIND, TableError
from .timing import clock_name, in_turns

# Told of each step that is done: a point built, or measured in one pass.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """passes over the whole table, in random order, each of ``pairs`` repeats beside the start.

    workers: processes that compile. timeout: seconds for compiling and checking one point.
    """

    passes: int = 5
    pairs: int = 5
    workers: int = 2
    timeout: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("passes", "pairs", "workers", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.passes * self.pairs < 2:
            raise ValueError("passes x pairs must be 2 or more: there is no spread of one repeat")


def restricted(space: Space, values: Mapping[str, Sequence[Value]]) -> Space:
    """``space`` with knobs in ``values`` varied and all others fixed where the start has them.

    A start outside ``values`` moves to the nearest of them. ValueError where it is then refused,
    and for values that no schedule takes.
    """
    given = ({name: value} for name, own in values.items() for value in own)
    if problems := [problem for one in given for problem in config_problems(one)]:
        raise ValueError("; ".join(problems))
    own = {knob.name: (getattr(space.start, knob.name),) for knob in space.knobs}
    nearest = {
        name: min(allowed, key=lambda value: abs(value - getattr(space.start, name)))
        for name, allowed in values.items()
        if name in own
    }
    small = space.restricted({**own, **values})
    start = replace(space.start, **nearest)
    small = replace(small, start=start, knobs=tuple(k for k in small.knobs if k.name in values))
    if reasons := space.refuse(start):
        raise ValueError(f"the start {nearest} of the table is refused: {'; '.join(reasons)}")
    return small


def make(task: SearchTask, path: Path, effort: Effort, progress: Progress) -> None:
    """Write the table of ``task`` to ``path``.

    What is done is kept in the folder ``path``.work until the table is whole: a second call goes on
    where the first was interrupted. Raises TableError where that folder belongs to another table,
    or to another run that is still going on.
    """
    torch.set_num_threads(task.threads)
    folder = path.with_name(f"{path.name}.work")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / "lock", wait=False))
        except BlockingIOError as error:
            raise TableError(
                f"another run is making {path}: wait, or write to another file"
            ) from error
        journal = Journal.opened(folder, _head(task, effort))
        for _ in range(journal.steps):
            progress("done before")
        _build(task, journal, effort, progress)
        _measure(task, journal, effort, progress)
        replay_table.write(path, journal.head, journal.lines(task.space.points))
        shutil.rmtree(folder)


class Journal:
    """What is known of the points so far: a line for each event, appended as it happens."""

    def __init__(self, folder: Path, head: Mapping[str, Any], events: Iterable[dict[str, Any]]):
        self.folder, self.head = folder, head
        self.built: dict[Point, dict[str, Any]] = {}
        self.passes: dict[Point, dict[int, dict[str, Any]]] = {}
        for event in events:
            self._take(event)

    @staticmethod
    def opened(folder: Path, head: Mapping[str, Any]) -> Journal:
        """The journal in ``folder``, which exists; begun where there is none."""
        file = folder / "events.jsonl"
        if not file.is_file():
            file.write_text(json.dumps(head) + "\n", encoding="utf-8")
        if not file.read_bytes().endswith(b"\n"):
            # A line that an interruption cut off is closed, so that it costs nothing but itself.
            file.write_bytes(file.read_bytes() + b"\n")
        first, *events = _complete_lines(file)
        lasting = [name for name in head if name not in ("date", "machine")]
        try:
            if all(first[name] == head[name] for name in lasting):
                return Journal(folder, first, events)
        except (LookupError, TypeError, AttributeError):  # lines that we did not write
            pass
        raise TableError(
            f"{folder} holds parts of another table: delete it, or write to another file"
        )

    @property
    def steps(self) -> int:
        """Points built and measured so far."""
        return len(self.built) + sum(map(len, self.passes.values()))

    @property
    def good(self) -> list[Point]:
        """Points that were compiled and gave right numbers."""
        return [point for point, built in self.built.items() if built["outcome"] == "ok"]

    def add(self, event: dict[str, Any]) -> None:
        """Keep one event, in one write."""
        with (self.folder / "events.jsonl").open("ab", buffering=0) as file:
            file.write((json.dumps(event) + "\n").encode())
        self._take(event)

    def lines(self, points: Iterable[Point]) -> list[dict[str, Any]]:
        """The lines of the table, in the order of ``points``."""
        return [self._line(point) for point in points]

    def _line(self, point: Point) -> dict[str, Any]:
        built = {k: v for k, v in self.built[point].items() if k != "path"}
        passes = [one for _, one in sorted(self.passes.get(point, {}).items())]
        return {
            "point": list(point),
            **built,
            "seconds": [x for one in passes for x in one["seconds"]],
            "reference_seconds": [x for one in passes for x in one["reference_seconds"]],
            "measure_seconds": round(sum(one["measure_seconds"] for one in passes), 4),
        }

    def _take(self, event: dict[str, Any]) -> None:
        point = tuple(event["point"])
        if "built" in event:
            self.built[point] = event["built"]
        else:
            self.passes.setdefault(point, {})[event["pass"]] = event["measured"]


def _build(task: SearchTask, journal: Journal, effort: Effort, progress: Progress) -> None:
    left = [point for point in task.space.points if point not in journal.built]
    kernels = journal.folder / "kernels"
    _forget(
        kernels, {Path(built["path"]).name for built in journal.built.values() if "path" in built}
    )
    for point, built in build_all(task, left, kernels, effort.workers, effort.timeout):
        journal.add({"point": list(point), "built": built})
        progress(f"compile: {built['outcome']}")


def _forget(kernels: Path, known: set[str]) -> None:
    """Delete kernels that an interrupted run made and did not write down.

    Found in the cache they would seem to compile in no time.
    """
    for folder in kernels.glob("*"):
        if folder.is_dir() and folder.name not in known:
            shutil.rmtree(folder)


def _measure(task: SearchTask, journal: Journal, effort: Effort, progress: Progress) -> None:
    clock = clock_name(task.threads)

    def call(point: Point):
        (kernel,) = opened(journal.built[point]["path"]).kernels
        return timed_call(kernel, task.sizes)

    start = task.space.point(task.space.start)
    if journal.built[start]["outcome"] != "ok":
        raise TableError(f"the start did not compile or is wrong: {journal.built[start]}")
    reference = call(start)
    for number in range(effort.passes):
        order = sorted(journal.good)
        random.Random(f"{effort.seed} {number}").shuffle(order)
        for point in order:
            if number not in journal.passes.get(point, {}):
                measured = in_turns(call(point), reference, effort.pairs, clock)._asdict()
                journal.add({"point": list(point), "pass": number, "measured": measured})
                progress(f"measure, pass {number + 1}")


def _head(task: SearchTask, effort: Effort) -> dict[str, Any]:
    from ...codegen.versions import build_versions

    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "kind": KIND,
        "format": FORMAT,
        "spec": task.spec.to_json(),
        "direction": task.direction,
        "target": task.target,
        "cpu": host.cpu_name(),
        "problem": dict(zip(SIZES, (*task.sizes, task.threads), strict=True)),
        "start": task.space.start.to_json(),
        "knobs": {
            knob.name: {"values": list(knob.values), "meaning": knob.meaning}
            for knob in task.space.knobs
        },
        "points": len(task.space.points),
        "passes": effort.passes,
        "pairs": effort.pairs,
        "seed": effort.seed,
        "clock": clock_name(task.threads),
        "date": now.isoformat(timespec="seconds"),
        "versions": {**build_versions(), "torch": str(torch.__version__)},
        "machine": host.describe().to_json(),
    }


def _complete_lines(file: Path) -> list[dict[str, Any]]:
    """All lines but one that an interruption cut off."""
    found = []
    for text in file.read_text(encoding="utf-8").split("\n"):
        try:
            found.append(json.loads(text))
        except (ValueError, RecursionError):
            continue
    if not found:
        raise TableError(f"{file} holds nothing: delete it")
    return found
