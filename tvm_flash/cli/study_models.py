"""``tvm-flash study models``: how well cost models order configs they have not seen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bench.table import Table, numbers, words
from ..errors import TvmFlashError
from .console import console, progress, refuse_unwritable, reporting_errors
from .show import require_tvm
from .show_table import show
from .study_search import DEFAULT_TABLE

if TYPE_CHECKING:
    from ..study.models.scores import Features, Score

_MEANINGS = (
    "rho, tau: rank correlations; top 10: the 10 fastest among\n"
    "its first 10; best of 10: regret of the best of these"
)


@reporting_errors
def models(
    table: Annotated[
        list[str], typer.Option(help="Replay tables; of several, every pair is a transfer.")
    ] = [DEFAULT_TABLE],  # noqa: B006
    names: Annotated[
        str | None, typer.Option("--models", help="Some of all models, e.g. xgb,mlp.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Points to learn from, within a table.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Of the points and of the models.")] = 10,
    stores: Annotated[
        bool, typer.Option(help="TVM's features of stores instead of the knobs: slow at first.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, for --stores.")] = 2,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to this file.")
    ] = None,
) -> None:
    """Rank correlation, recall of the fastest and transfer to other shapes of cost models."""
    require_tvm()
    from ..study.models.scores import MODELS, transfer, within
    from ..study.replay import table as replay_table
    from ..study.search import document as search_document

    refuse_unwritable(json_file)
    chosen = names.split(",") if names else list(MODELS)
    if unknown := [name for name in chosen if name not in MODELS]:
        raise typer.BadParameter(f"--models {unknown[0]!r} must be some of {', '.join(MODELS)}")
    tables = [replay_table.read(place) for place in table]
    features = _stores(jobs) if stores else None
    pairs = [
        (one, other)
        for one, other in permutations(tables, 2)
        if one.task.space.name == other.task.space.name
    ]
    try:
        inside = [within(t, name, samples, seeds, features) for t in tables for name in chosen]
        across = [transfer(*pair, name, seeds, features) for pair in pairs for name in chosen]
    except ValueError as error:
        if isinstance(error, TvmFlashError):
            raise
        raise typer.BadParameter(str(error)) from error
    show(score_table(inside, f"{samples} points learned, the others ordered\n{_MEANINGS}"))
    for train in dict.fromkeys(score.train for score in across):
        own = [score for score in across if score.train == train]
        show(score_table(own, f"all {own[0].samples} points of {train} learned"))
    if json_file is not None:
        text = json.dumps([_plain(score) for score in (*inside, *across)], indent=1)
        search_document.write(json_file, text + "\n")
        console.print(f"written to {json_file}")


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
