"""What a study of searches leaves behind: one JSON document, and one CSV line for each trial."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import TvmFlashError
from ..replay.table import ReplayTable
from .curves import Curves, Summary, expected_random, starts_of
from .run import Budget, Run

FORMAT = 1


def document(
    table: ReplayTable,
    runs: Sequence[Run],
    budget: Budget,
    found: Mapping[str, Curves],
    summed: Sequence[Summary],
) -> dict[str, Any]:
    """Everything of one study. Points are numbered as in the table, times are in seconds.

    All but ``thinking_seconds`` follows from the table, the names and the seeds, bit for bit.
    """
    return {
        "format": FORMAT,
        "table": table.name,
        "problem": {name: table.head[name] for name in ("spec", "direction", "target", "problem")},
        "cpu": table.head["cpu"],
        "points": len(table.measured),
        "failed": sum(seconds is None for seconds in table.seconds.values()),
        "optimum": _described(table, table.best),
        "default": _described(table, table.start),
        "trials": budget.trials,
        "batch": budget.batch,
        "starts": budget.start,
        "seeds": sorted({run.seed for run in runs}),
        "expected_random": _rounded(expected_random(table, starts_of(runs), budget.trials)),
        "summary": [_plain(asdict(summary)) for summary in summed],
        "curves": {name: _quartile_curves(each) for name, each in found.items()},
        "runs": [_run(table, run) for run in runs],
    }


def csv_text(table: ReplayTable, runs: Sequence[Run]) -> str:
    """A line for each trial of each run; trial 0 is the start."""
    knobs, optimum = list(table.head["knobs"]), table.seconds[table.best]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("seconds", "best_seconds", "regret", "spent_seconds")
    writer.writerow(["strategy", "seed", "trial", *knobs, *columns])
    for run in runs:
        best, spent = math.inf, 0.0
        for trial, point in enumerate((run.start, *run.points)):
            seconds = table.seconds[point]
            best = best if seconds is None else min(best, seconds)
            spent += table.measured[point].cost
            numbers = ("" if seconds is None else seconds, best, best / optimum - 1, spent)
            writer.writerow([run.strategy, run.seed, trial, *point, *numbers])
    return text.getvalue()


def markdown(study: Mapping[str, Any]) -> str:
    """The summary of one study of a document as a table for a text; percent."""
    head = "| strategy | final regret | over trials | over seconds | to 5 % | to 1 % | own s |"
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|"]
    seeds = len(study["seeds"])
    for one in study["summary"]:
        regrets = (_percent(one[name]) for name in ("final", "area", "area_seconds"))
        reached = (_reached(one, limit, seeds) for limit in ("5%", "1%"))
        cells = (one["strategy"], *regrets, *reached, f"{one['thinking_seconds']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Write ``text``, all of it or nothing. Raises TvmFlashError where that fails.

    A link stays one: what it leads to is written.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise TvmFlashError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def json_text(documents: Sequence[Mapping[str, Any]]) -> str:
    """The studies as JSON, the lists of numbers on one line each."""
    lines = []
    for each in documents:
        fields = [f"  {json.dumps(key)}: {_json(value)}" for key, value in each.items()]
        lines.append("{\n" + ",\n".join(fields) + "\n}")
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _json(value: Any) -> str:
    """Long lists and objects with an item a line."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n   " + ",\n   ".join(map(json.dumps, value)) + "]"
    if isinstance(value, dict) and any(isinstance(item, dict) for item in value.values()):
        items = (f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
        return "{\n   " + ",\n   ".join(items) + "}"
    return json.dumps(value)


def _described(table: ReplayTable, point: tuple) -> dict[str, Any]:
    values = dict(zip(table.head["knobs"], point, strict=True))
    return {"point": values, "seconds": table.seconds[point]}


def _run(table: ReplayTable, run: Run) -> dict[str, Any]:
    numbers = {point: number for number, point in enumerate(table.measured)}
    return {
        "strategy": run.strategy,
        "seed": run.seed,
        "start": numbers[run.start],
        "order": [numbers[point] for point in run.points],
        "thinking_seconds": round(run.thinking, 4),
    }


def _quartile_curves(each: Curves) -> dict[str, list[float]]:
    """Quartiles over seeds of the regret, and the median of the seconds spent, by trial."""
    low, middle, high = np.quantile(each.regret, (0.25, 0.5, 0.75), axis=0)
    spent = np.median(each.spent, axis=0)
    named = {"median": middle, "lower": low, "upper": high, "spent_seconds": spent}
    return {name: _rounded(values) for name, values in named.items()}


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _plain(summary: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null for never."""
    never = {k: None if v == math.inf else v for k, v in summary["trials_to"].items()}
    thinking = round(summary.pop("thinking"), 4)
    return {**summary, "trials_to": never, "thinking_seconds": thinking}


def _percent(triple: Sequence[float]) -> str:
    return "{:.1f} ({:.1f}, {:.1f})".format(*(100 * value for value in triple))


def _reached(summary: Mapping[str, Any], limit: str, seeds: int) -> str:
    trials, count = summary["trials_to"][limit], round(seeds * summary["reached"][limit])
    text = "never" if trials is None else f"{trials:.0f}"
    return text if count == seeds else f"{text} ({count} of {seeds})"
