"""Strategies on a replay table: the same space, budget and seeds for each, without hardware."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

from ...schedules.space import Point
from ...tune.strategy import (
    ProposalRefused,
    Strategy,
    inside,
    make_strategy,
    proposals,
    strategy_class,
)
from ...tune.trial import Observation, SearchTask
from ..replay.table import ReplayTable, read

Make = Callable[[SearchTask, int], Strategy]
STARTS = ("random", "default")


@dataclass(frozen=True)
class Budget:
    """How much a search may try, ``trials`` beside the start, proposed in batches; where it starts.

    start: "random", a point that ran, the same for all strategies of a seed; or "default", the
    config of a build without records.
    """

    trials: int
    batch: int = 8
    start: str = "random"

    def __post_init__(self) -> None:
        for name in ("trials", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r} must be one of {', '.join(STARTS)}")

    def within(self, table: ReplayTable) -> Budget:
        """The same with no more trials than ``table`` has points beside the start.

        Raises ValueError where it has none.
        """
        others = len(table.measured) - 1
        if not others:
            raise ValueError(f"{table.name} has one point, the start: there is nothing to search")
        return replace(self, trials=min(self.trials, others))

    def start_of(self, table: ReplayTable, seed: int) -> Point:
        """Where the search with ``seed`` starts."""
        if self.start == "default":
            return table.start
        good = [point for point, seconds in table.seconds.items() if seconds is not None]
        return random.Random(f"start {seed}").choice(good)


@dataclass(frozen=True)
class Run:
    """One search: the points it tried, in order, after ``start``, which it was told of first.

    thinking: processor seconds that the strategy itself took on this machine. It is no part of
    what reproduces: the table, the strategy and the seed decide all else, bit for bit.
    """

    strategy: str
    seed: int
    start: Point
    points: tuple[Point, ...]
    thinking: float = field(compare=False, default=0.0)


def replay(
    table: ReplayTable, name: str, seed: int, budget: Budget, make: Make | None = None
) -> Run:
    """One search by the strategy ``name`` (or the one that ``make`` gives) on ``table``.

    A strategy may give up before the budget is spent. Raises ProposalRefused for one that proposes
    what is not in the space, too much, or the same twice.
    """
    clock, start = _Clock(), budget.start_of(table, seed)
    with clock, inside(name):
        strategy = (make or make_strategy_of(name))(_task(table, start), seed)
        strategy.observe([Observation(start, table.seconds[start])])
    tried: dict[Point, None] = {}
    while len(tried) < budget.trials:
        count = min(budget.batch, budget.trials - len(tried))
        with clock:
            proposed = proposals(strategy, name, count, table.measured)
        if not proposed:
            break
        _refuse_twice(name, tried, proposed)
        tried.update(dict.fromkeys(proposed))
        with clock, inside(name):
            strategy.observe([Observation(point, table.seconds[point]) for point in proposed])
    return Run(name, seed, start, tuple(tried), clock.seconds)


def study(
    table: ReplayTable | Path,
    names: Sequence[str],
    seeds: Iterable[int],
    budget: Budget,
    jobs: int = 1,
) -> Iterator[Run]:
    """A run of every strategy with every seed, strategy by strategy.

    jobs: processes; for more than one, ``table`` must be the path of its file.
    Raises ValueError for a strategy that does not exist, ProposalRefused for one that breaks the
    protocol.
    """
    for name in names:
        strategy_class(name)
    searches = [(table, name, seed, budget) for name in names for seed in seeds]
    if jobs == 1:
        yield from map(_search, searches)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        runs = pool.map(_search, searches)
        for _, name, _, _ in searches:
            with inside(name):  # pickling may have lost the mark of a strategy's error
                run = next(runs)
            yield run


def make_strategy_of(name: str) -> Make:
    """What makes the strategy ``name``, one of the package's or "module:Class"."""
    return lambda task, seed: make_strategy(name, task, seed)


def _task(table: ReplayTable, start: Point) -> SearchTask:
    task = table.task
    return replace(task, space=replace(task.space, start=task.space.config(start)))


_tables: dict[Path, ReplayTable] = {}


def _search(search: tuple[ReplayTable | Path, str, int, Budget]) -> Run:
    table, name, seed, budget = search
    if not isinstance(table, ReplayTable):
        # Read once in each process.
        table = _tables.setdefault(table, _tables.get(table) or read(table))
    return replay(table, name, seed, budget)


def _refuse_twice(name: str, tried: dict[Point, None], proposed: list[Point]) -> None:
    for place, point in enumerate(proposed):
        if point in tried or point in proposed[:place]:
            raise ProposalRefused(f"{name} proposed {point} twice")


class _Clock:
    """Processor seconds of its ``with`` blocks: other programs on the machine do not count."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._since = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._since
