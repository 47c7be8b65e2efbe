"""What searches found, and what is in logs, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.table import Table, numbers, words
from .tune_view import differences, failures_text, ratio_text, share_text, title

if TYPE_CHECKING:
    from ..tune.session import State
    from ..tune.trial import Trial


@dataclass(frozen=True)
class Found:
    """A search, ended or interrupted. final: the best beside the default; None: not measured."""

    state: State
    final: Trial | None


def found_table(found: Sequence[Found]) -> Table:
    """One line for each search: what was gained over the default, how surely, at what cost.

    The times, taken in turns, and the error are those of the last measurement.
    """
    columns = (
        *words("spec", "direction", "bucket"), *numbers("error / allowed", rank=3),
        *numbers("default", "best", unit="ms", rank=2), *numbers("best / default", "gain"),
        *numbers("trials", rank=1),
        *words("failures"),
    )  # fmt: skip
    title = "time of the best config over the default's"
    return Table(title, columns, [_cells(one) for one in found])


def found_document(found: Found) -> dict[str, Any]:
    """What JSON says of a search; ratio: of the best config's time over the default's."""
    state, final = found.state, found.final
    task = state.task
    measured = {} if final is None else {"error": final.error, "allowed": final.allowed}
    if final is not None and final.seconds:
        measured["seconds"] = statistics.median(final.seconds)
        measured["default_seconds"] = statistics.median(final.incumbent_seconds)
    return {
        "spec": task.spec.to_json(),
        "direction": task.direction,
        "bucket": task.bucket,
        "target": task.target,
        "trials": state.done,
        "of": state.total,
        "failures": dict(state.failures),
        "ratio": state.ratio,
        "spread": state.spread,
        "gained": state.gained,
        "default": task.space.start.to_json(),
        "best": state.best.to_json(),
        **measured,
    }


def found_lines(found: Sequence[Found]) -> list[str]:
    """What is not as in the default, for each search that found something."""
    return [
        f"{title(one.state.task)}: {differences(one.state.best, one.state.task.space.start)}"
        for one in found
        if not one.state.keeps_default
    ]


def _cells(found: Found) -> tuple[str, ...]:
    state, final = found.state, found.final
    task = state.task
    return (
        task.spec.name,
        task.direction,
        task.bucket,
        share_text(final) if final else "-",
        _milliseconds(final.incumbent_seconds) if final else "-",
        _milliseconds(final.seconds) if final else "-",
        _ratio(state, final),
        gain_text(state),
        f"{state.done}" + f" of {state.total}" * (state.done < state.total),
        failures_text(state.failures),
    )


def _milliseconds(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples) * 1e3:.4g}"


def _ratio(state: State, final: Trial | None) -> str:
    if state.ratio is None:
        return "-"
    if state.keeps_default and final:  # it was timed beside itself: that is the noise
        return f"default, ± {state.spread:.3f}"
    return ratio_text(state.ratio, state.spread) + ("" if final else " (product)")


def gain_text(state: State) -> str:
    """How many times faster than the default, with its uncertainty; "none" within the noise."""
    if state.ratio is None or not state.gained:
        return "none"
    return f"{1 / state.ratio:.2f}x ± {state.spread / state.ratio**2:.2f}"


def log_table(folder: Path) -> tuple[Table, list[str]]:
    """Lines, trials and best lines of every log under ``folder``; and all that is wrong in them."""
    from ..schedules.record_format import checked

    rows, problems = [], []
    for path in sorted(folder.rglob("*.jsonl")):
        lines = [line for _, line, wrong in checked(path) if not wrong]
        bad = [f"{path}:{number}: {wrong[0]}" for number, _, wrong in checked(path) if wrong]
        ok, best = (sum(map(test, lines)) for test in (_is_ok, _is_best))
        name = str(path.relative_to(folder))
        rows.append((name, *map(str, (len(lines) + len(bad), ok, best, len(bad)))))
        problems += bad
    columns = (*words("file"), *numbers("lines", "ok", "best", "skipped"))
    return Table(f"logs in {folder}", columns, rows), problems


def _is_ok(line: dict) -> bool:
    return line["outcome"] == "ok"


def _is_best(line: dict) -> bool:
    return line.get("best") is True
