"""``tvm-flash study models``: how well cost models order configs they have not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import permutations
from typing import TYPE_CHECKING, Annotated

import typer

from ..bench.table import Table, numbers, words
from .console import progress
from .json_output import AsJson, print_json
from .show import require_tvm
from .show_table import show
from .study_search import DEFAULT_TABLE

if TYPE_CHECKING:
    from ..study.models.scores import Features, Score

_MEANINGS = (
    "rho, tau: rank correlations; top 10: the 10 fastest among\n"
    "its first 10; best of 10: regret of the best of these"
)


def models(
    table: Annotated[
        list[str],
        typer.Option(
            metavar="TABLE",
            help="Replay table, a file or one of the package's; of several, every pair is a "
            "transfer.",
        ),
    ] = [DEFAULT_TABLE],  # noqa: B006
    names: Annotated[
        str | None,
        typer.Option("--models", metavar="NAMES", help="Some of all models, as xgb,mlp."),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Points to learn from, within a table.")
    ] = 64,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Draws of the points and of the models.")
    ] = 10,
    stores: Annotated[
        bool,
        typer.Option(
            "--stores", help="TVM's features of stores instead of the knobs: slow at first."
        ),
    ] = False,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes, for --stores.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Rank correlation, recall of the fastest and transfer to other shapes of cost models."""
    require_tvm()
    from ..study.models.scores import MODELS, transfer, within
    from ..study.replay import table as replay_table

    chosen = names.split(",") if names else list(MODELS)
    if unknown := [name for name in chosen if name not in MODELS]:
        raise ValueError(f"--models {unknown[0]!r} must be some of {', '.join(MODELS)}")
    tables = [replay_table.read(place) for place in table]
    features = _stores(jobs) if stores else None
    pairs = [
        (one, other)
        for one, other in permutations(tables, 2)
        if one.task.space.name == other.task.space.name
    ]
    inside = [within(t, name, samples, seeds, features) for t in tables for name in chosen]
    across = [transfer(*pair, name, seeds, features) for pair in pairs for name in chosen]
    if as_json:
        print_json([_plain(score) for score in (*inside, *across)])
        return
    show(score_table(inside, f"{samples} points learned, the others ordered\n{_MEANINGS}"))
    for train in dict.fromkeys(score.train for score in across):
        own = [score for score in across if score.train == train]
        show(score_table(own, f"all {own[0].samples} points of {train} learned"))


def score_table(scores: Sequence[Score], title: str) -> Table:
    """One line for each score, in their order: the table that was ordered, and how well."""
    rows = [
        (
            one.test, one.model, f"{one.spearman:.2f}", f"{one.kendall:.2f}",
            f"{one.recall:.0%}", f"{one.regret:.1%}",
        )
        for one in scores
    ]  # fmt: skip
    columns = (*words("ordered", "model"), *numbers("rho", "tau", "top 10", "best of 10"))
    return Table(title, columns, rows)


def _plain(score: Score) -> dict[str, object]:
    """JSON has no infinity: null where all that a model put first had failed."""
    return {name: None if value == math.inf else value for name, value in asdict(score).items()}


def _stores(jobs: int) -> Features:
    """Features of stores, pooled to one row for each point."""
    from ..study.models.samples import of_table
    from ..study.models.stores import pooled, store_features

    kept: dict[int, object] = {}

    def features(tables):
        for table in tables:
            if id(table) not in kept:  # two files may have one name
                samples = of_table(table)
                with progress(f"stores of {table.name}", len(samples)) as advance:
                    kept[id(table)] = pooled(store_features(samples, jobs, advance))
        return [kept[id(table)] for table in tables]

    return features
