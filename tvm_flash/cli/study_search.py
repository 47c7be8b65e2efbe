"""``tvm-flash study search``: strategies compared on a measured table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bench.table import Table, numbers, words
from .console import PLAIN, notes, progress, refuse_unwritable
from .json_output import AsJson
from .show import require_tvm
from .show_table import show

if TYPE_CHECKING:
    from ..study.replay.table import ReplayTable
    from ..study.search.curves import Curves, Summary
    from ..study.search.run import Budget, Run

DEFAULT_TABLE = "forward_d64_s512"


def search(
    table: Annotated[
        list[str],
        typer.Option(
            metavar="TABLE", help="A file, or one of the package's tables; may be repeated."
        ),
    ] = [DEFAULT_TABLE],  # noqa: B006
    strategies: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Names as in `tvm-flash tune`, or module:Class."),
    ] = "random,grid,coordinate,evolutionary,xgb",
    trials: Annotated[int, typer.Option(metavar="N", help="Points to try, after the start.")] = 100,
    seeds: Annotated[int, typer.Option(metavar="N", help="Searches of each strategy.")] = 20,
    batch: Annotated[int, typer.Option(metavar="N", help="Points proposed at a time.")] = 8,
    start: Annotated[
        str,
        typer.Option(
            metavar="POINT", help="Where searches start: random, or default, that of a build."
        ),
    ] = "random",
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes.")] = 1,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write every trial to this file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a picture into this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Best-so-far curves, regret and area of search strategies, on measured tables: no hardware."""
    require_tvm()
    from ..study.replay import table as replay_table
    from ..study.search import document as search_document
    from ..study.search import plot as search_plot
    from ..study.search.run import Budget
    from ..tune.strategy import strategy_class

    names = [name for name in dict.fromkeys(strategies.split(",")) if name]
    if seeds < 1 or not names:
        raise ValueError(f"--seeds {seeds} and the number of strategies must be 1 or more")
    for file in (csv_file, plot):
        refuse_unwritable(file)
    if plot is not None:
        search_plot.refuse(plot)
    if csv_file is not None and len(table) > 1:
        raise ValueError("--csv takes one --table")
    budget = Budget(trials, batch, start)
    places = [replay_table.find(one) for one in table]
    plans = [_plan(place, budget) for place in places]
    for name in names:
        strategy_class(name)
    studies = [
        _study(place, *plan, names, seeds, jobs) for place, plan in zip(places, plans, strict=True)
    ]
    if as_json:
        print(
            search_document.json_text([search_document.document(*one) for one in studies]), end=""
        )
    for table_, _, spent, found, summed in () if as_json else studies:
        show(regret_table(table_, spent, summed))
        show(detail_table(found, summed))
    if csv_file is not None:
        search_document.write(csv_file, search_document.csv_text(*studies[0][:2]))
        notes.print(f"written to {csv_file}", **PLAIN)
    if plot is not None:
        search_plot.draw([(one[0], *one[3:]) for one in studies], plot)
        notes.print(f"drawn in {plot}", **PLAIN)


def regret_table(table: ReplayTable, budget: Budget, summed: Sequence[Summary]) -> Table:
    """How good and how soon: one line for each strategy, the least area first."""
    title = (
        f"{table.name}: {len(table.measured)} points, {budget.start} start,\n"
        f"{budget.trials} trials in batches of {budget.batch}\n"
        "regret: percent over the best time of the table;\n"
        "median (quartiles); own s: processor time of the strategy"
    )
    rows = []
    for one in summed:
        regrets = map(_regret, (one.final, one.area, one.area_seconds))
        rows.append((one.strategy, *regrets, f"{one.thinking:.2f}"))
    headings = ("final regret", "over trials", "over seconds", "own s")
    return Table(title, (*words("strategy"), *numbers(*headings)), rows)


def detail_table(found: Mapping[str, Curves], summed: Sequence[Summary]) -> Table:
    """Trials until within limits, confidence, wins against random search."""
    from ..study.search.curves import wins

    seeds = len(next(iter(found.values())).best)
    title = f"{seeds} seeds: trials to come within 5% and 1% (seeds that did),\n"
    title += "95% interval of the median final regret,\n"
    title += "seeds better:worse than random (sign test)"
    rows = []
    for one in summed:
        versus = ""
        if "random" in found and one.strategy != "random":
            versus = "{}:{} p={:.1g}".format(*wins(found[one.strategy], found["random"]))
        reached = (_reached(one, limit, seeds) for limit in ("5%", "1%"))
        interval = "{:.1f} to {:.1f}".format(*(100 * value for value in one.confidence))
        rows.append((one.strategy, *reached, interval, versus))
    columns = (*words("strategy"), *numbers("to 5%", "to 1%", "final", "vs random"))
    return Table(title, columns, rows)


def _plan(path: Path, budget: Budget) -> tuple[ReplayTable, Budget]:
    """The table, and how much of the budget it can use."""
    from ..study.replay import table as replay_table

    table = replay_table.read(path)
    known = budget.within(table)
    if known != budget:
        notes.print(
            f"{table.name} has {len(table.measured)} points: {known.trials} trials", **PLAIN
        )
    return table, known


def _study(
    path: Path, table: ReplayTable, budget: Budget, names: Sequence[str], seeds: int, jobs: int
) -> tuple[ReplayTable, list[Run], Budget, dict[str, Curves], list[Summary]]:
    from ..study.search.curves import curves, summaries
    from ..study.search.run import study

    runs = []
    with progress(table.name, len(names) * seeds) as advance:
        for run in study(table if jobs == 1 else path, names, range(seeds), budget, jobs):
            runs.append(run)
            advance(f"{run.strategy}, seed {run.seed}")
    found = curves(table, runs, budget.trials)
    return table, runs, budget, found, summaries(found)


def _regret(values: tuple[float, float, float]) -> str:
    return "{:.1f} ({:.1f} {:.1f})".format(*(100 * value for value in values))


def _reached(summary: Summary, limit: str, seeds: int) -> str:
    """Median trials until within ``limit``; and how many seeds, where not all got there."""
    trials, share = summary.trials_to[limit], summary.reached[limit]
    text = "never" if trials == float("inf") else f"{trials:.0f}"
    return text if share == 1 else f"{text} ({share * seeds:.0f})"
