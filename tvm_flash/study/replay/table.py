"""Replay tables: every point of a space, measured once and for all, to stand in for hardware."""

from __future__ import annotations

import gzip
import json
import statistics
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...artifact.folder import replacing
from ...problem.spec import AttentionSpec
from ...schedules.space import Knob, Point, Space
from ...tune.trial import SearchTask, Sizes
from .format import TableError, head_problems, line_problems, table_problems

# The tables that come with the package.
TABLES = Path(__file__).with_name("tables")


@dataclass(frozen=True)
class Measured:
    """One point: what became of it, and what trying it cost.

    seconds, reference_seconds: per call, this point's and the start's, in turns, in whole passes
    over the table. compile_seconds, check_seconds, measure_seconds: spent on this point.
    """

    point: Point
    outcome: str
    seconds: tuple[float, ...]
    reference_seconds: tuple[float, ...]
    compile_seconds: float
    check_seconds: float
    measure_seconds: float
    error: float | None
    allowed: float | None

    @cached_property
    def ratio(self) -> float | None:
        """Median time over the start's, of repeats that were neighbours; None where it failed."""
        return statistics.median(self._ratios) if self.outcome == "ok" else None

    @cached_property
    def spread(self) -> float:
        """Uncertainty of that median: 1.57 interquartile ranges over the root of the count."""
        low, _, high = statistics.quantiles(self._ratios, n=4)
        return 1.57 * (high - low) / len(self._ratios) ** 0.5

    @property
    def cost(self) -> float:
        """Seconds that a search spends on this trial: compiling, checking, measuring."""
        return self.compile_seconds + self.check_seconds + self.measure_seconds

    @property
    def _ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.seconds, self.reference_seconds, strict=True)]


@dataclass(frozen=True)
class ReplayTable:
    """A space with all its valid points measured on one problem. name: of its file.

    head: the first line of the file (docs/search-study.md).
    """

    name: str
    head: Mapping[str, Any]
    measured: Mapping[Point, Measured]

    @cached_property
    def reference(self) -> float:
        """Seconds per call of the start: the median over the whole table."""
        return statistics.median(
            second for one in self.measured.values() for second in one.reference_seconds
        )

    @cached_property
    def seconds(self) -> dict[Point, float | None]:
        """The label of each point: its ratio to the start, times ``reference``; None: failed."""
        return {
            point: None if one.ratio is None else one.ratio * self.reference
            for point, one in self.measured.items()
        }

    @cached_property
    def best(self) -> Point:
        """The exhaustive optimum."""
        good = {point: second for point, second in self.seconds.items() if second is not None}
        return min(good, key=good.__getitem__)

    @property
    def start(self) -> Point:
        """The point of a build without records, where every search starts."""
        return tuple(self.head["start"][name] for name in self.head["knobs"])

    @cached_property
    def task(self) -> SearchTask:
        """The search whose candidates this table knows: its space holds the measured points."""
        head, measured = self.head, self.measured
        knobs = tuple(
            Knob(name, tuple(knob["values"]), knob["meaning"])
            for name, knob in head["knobs"].items()
        )
        names = [knob.name for knob in knobs]

        def refuse(config: Any) -> list[str]:
            known = tuple(getattr(config, name) for name in names) in measured
            return [] if known else ["it is not in the table"]

        space = Space(head["start"]["schedule"], knobs, self._start_config(), refuse)
        problem = head["problem"]
        sizes = Sizes(*(problem[name] for name in Sizes._fields))
        spec = AttentionSpec.from_json(head["spec"])
        threads = problem["threads"]
        return SearchTask(space, spec, head["direction"], head["target"], sizes, threads)

    def _start_config(self) -> Any:
        # Not at the top: it imports tvm.
        from ...schedules.select import as_config

        try:
            return as_config(self.head["start"], self.head["direction"])
        except (TypeError, ValueError) as error:
            raise TableError(
                f"{self.name}: this release has no such schedule ({error}); measure it again"
            ) from error


def read(path: str | Path) -> ReplayTable:
    """The table at ``path`` (.jsonl or .jsonl.gz), or one of the package's by its name.

    Raises TableError, with line and reason, for one that is not whole and right.
    """
    path = find(path)
    texts = _text(path).splitlines()
    if not texts:
        raise TableError(f"{path} is empty")
    head = _decoded(path, 1, texts[0])
    _refuse(path, 1, head_problems(head))
    lines = []
    for number, text in enumerate(texts[1:], 2):
        line = _decoded(path, number, text)
        _refuse(path, number, line_problems(line, head))
        lines.append(line)
    _refuse(path, None, table_problems(head, lines))
    return ReplayTable(_stem(path), head, {one.point: one for one in map(_measured, lines)})


def find(path: str | Path) -> Path:
    """The file meant by ``path``: itself, or the package's table of that name."""
    path = Path(path)
    if path.is_file():
        return path
    known = {_stem(file): file for file in sorted(TABLES.glob("*.jsonl.gz"))}
    if str(path) not in known:
        names = ", ".join(known) or "none"
        raise TableError(f"{path} is not a file, nor one of the package's tables: {names}")
    return known[str(path)]


def write(path: Path, head: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a table at once: all of it is there or nothing; the same content, the same bytes."""
    text = "".join(json.dumps(line) + "\n" for line in (head, *lines))
    packed = path.suffix == ".gz"
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())


def _measured(line: Mapping[str, Any]) -> Measured:
    names = Measured.__dataclass_fields__
    return Measured(
        **{n: tuple(v) if type(v) is list else v for n, v in line.items() if n in names}
    )


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise TableError(f"{path} cannot be read: {error}") from error


def _decoded(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}, line {number}: it is not JSON ({error})") from error


def _refuse(path: Path, number: int | None, problems: list[str]) -> None:
    if problems:
        place = f"{path}, line {number}" if number else str(path)
        raise TableError(f"{place}: {problems[0]}")
