"""What the searches recorded in tuning logs gained over the default config."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench.table import Table, numbers, words
from ..problem.spec import AttentionSpec
from ..schedules import record_format
from ..schedules.record_headers import search_of
from .trial import Trial


@dataclass(frozen=True)
class Gain:
    """A finished search: its last measurement, best beside default, and how it was found.

    default_seconds: median of one call, when the search began. last_win: the latest trial that
    became the best one (0: none did); since then the curve was flat.
    """

    target: str
    spec: AttentionSpec
    direction: str
    bucket: str
    strategy: str
    final: Trial
    default_seconds: float
    trials: int
    failures: int
    last_win: int

    @property
    def text(self) -> str:
        """How many times faster than the default; "none" within the spread."""
        ratio, spread = self.final.ratio, self.final.spread
        return f"{1 / ratio:.3f} ± {spread / ratio**2:.3f}" if ratio + spread < 1 else "none"


def gains(folder: Path) -> list[Gain]:
    """The finished searches in the logs under ``folder``, the latest of each kernel, by name."""
    latest: dict[tuple, tuple[Any, Gain]] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        for lines in _searches(record_format.read(path)):
            gain = _gain(lines)
            if gain is None:
                continue
            key = (gain.target, gain.spec.name, gain.direction, gain.bucket)
            when = max(record_format.moment(line["date"]) for line in lines)
            if key not in latest or latest[key][0] <= when:
                latest[key] = (when, gain)
    order = {name: n for n, name in enumerate(record_format.FORWARD_BUCKETS)}
    found = [gain for _, gain in latest.values()]
    return sorted(found, key=lambda g: (g.target, g.direction, _name(g.spec), order[g.bucket]))


def table(found: Iterable[Gain]) -> Table:
    """A line for each gain."""
    columns = (
        *words("kernel", "direction", "bucket"), *numbers("default", unit="ms"),
        *numbers("times faster", "trials", "failed", "last win"),
    )  # fmt: skip
    rows = [
        (
            gain.spec.name.removeprefix("attn_"), gain.direction, gain.bucket,
            f"{gain.default_seconds * 1e3:.4g}", gain.text, str(gain.trials), str(gain.failures),
            f"trial {gain.last_win}" if gain.last_win else "-",
        )
        for gain in found
    ]  # fmt: skip
    return Table("", columns, rows)


def _searches(lines: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "stage" in line:  # older lines do not say what they were measured for
            grouped.setdefault(search_of(line), []).append(line)
    return list(grouped.values())


def _gain(lines: list[Mapping[str, Any]]) -> Gain | None:
    # Logs merge by concatenation: the order of lines means nothing.
    lines = sorted(lines, key=lambda line: record_format.moment(line["date"]))
    finals = [line for line in lines if line["stage"] == "final" and line["outcome"] == "ok"]
    if not finals:
        return None
    last = finals[-1]
    final = Trial("ok", None, None, tuple(last["seconds"]), tuple(last["incumbent_seconds"]))
    outcomes = {line["trial"]: line["outcome"] for line in lines if line["stage"] == "trial"}
    failures = sum(n for outcome, n in Counter(outcomes.values()).items() if outcome != "ok")
    first = next((line for line in lines if line["stage"] == "start"), last)
    wins = [
        line["trial"] for line in lines if line["stage"] == "confirm" and line.get("best") is True
    ]
    return Gain(
        last["target"], AttentionSpec.from_json(last["spec"]), last["direction"], last["bucket"],
        last["strategy"], final, statistics.median(first["incumbent_seconds"]),
        len(outcomes), failures, max(wins, default=0),
    )  # fmt: skip


def _name(spec: AttentionSpec) -> tuple:
    return spec.causal, spec.dtype, spec.head_dim, spec.name
