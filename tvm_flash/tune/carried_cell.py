"""A search of carried candidates as a cell of a benchmark, and what models had said of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact.library import symbol_name
from ..bench.cells import Cell
from ..bench.timing import four_digits
from ..errors import HardwareFailure
from .agreement import rank_correlation
from .carried import CarriedHardware, carried_request, carried_tasks
from .predictions import Predictions, read_predictions
from .session import Event, Session, State


@dataclass(frozen=True)
class CarriedSearches:
    """The searches of the candidates at ``path``, recorded in ``logs``.

    seconds: of timing one. timeout: of checking one, in seconds.
    """

    path: Path
    logs: Path
    seconds: float = 0.3
    timeout: float = 60.0

    def measured(self, cell: Cell) -> dict:
        """What a cell of kind "search" says: what was gained, each candidate, and the agreement."""
        arch, tasks = carried_tasks(self.path)
        named = {symbol_name(task.spec, task.direction): task for task in tasks}
        request = carried_request([named[cell.case]], arch, self.seconds, self.logs)
        request.prepare()
        told = Told()
        with CarriedHardware(self.path, self.timeout) as hardware:
            (session,) = request.sessions(hardware, told.tell)
            try:
                final = session.run()
            except HardwareFailure as error:
                return {"error": str(error)}
        candidates = told.candidates(cell.case, read_predictions(self.path))
        search = {
            "trials": session.state.done,
            "failures": dict(session.state.failures),
            "config": session.state.best.to_json(),
            "ratio": four_digits(final.ratio),
            "spread": four_digits(final.spread),
            "default_seconds": statistics.median(final.incumbent_seconds),
            "best_seconds": statistics.median(final.seconds),
            "candidates": candidates,
            "agreement": agreement(candidates),
        }
        return {**_sizes(session), "search": search}


class Told:
    """What a session tells: an outcome of each candidate and, of those that ran, its seconds.

    Times are ratios to the config to beat, whose own is a ratio to the default's: clocks may drift.
    """

    def __init__(self) -> None:
        self.outcomes: dict[int, str] = {}
        self.seconds: dict[int, float] = {}

    def tell(self, state: State, event: Event | None) -> None:
        """As ``Session`` takes it."""
        if event is None or event.step.stage not in ("start", "trial"):
            return
        step, trial = event.step, event.trial
        own, beside = step.config.candidate, step.incumbent.candidate
        self.outcomes[own] = trial.outcome
        if trial.outcome != "ok":
            return
        if step.stage == "start":
            self.seconds[own] = statistics.median(trial.seconds)
        else:
            self.seconds[own] = trial.ratio * self.seconds[beside]

    def candidates(self, symbol: str, predictions: Predictions) -> list[dict[str, Any]]:
        """Each candidate: its place in the library, outcome, seconds and predicted seconds."""
        return [
            {
                "candidate": number,
                "outcome": outcome,
                "seconds": self.seconds.get(number),
                "predicted": {
                    model: found[name]
                    for model, found in predictions.items()
                    if (name := f"{symbol}_{number:03}") in found
                },
            }
            for number, outcome in sorted(self.outcomes.items())
        ]


def agreement(candidates: list[dict[str, Any]]) -> dict[str, float]:
    """Rank correlation of each model's seconds and the measured ones, where it can be told."""
    ran = [one for one in candidates if one["seconds"] is not None]
    found = {}
    for model in dict.fromkeys(model for one in ran for model in one["predicted"]):
        known = [one for one in ran if model in one["predicted"]]
        times = [one["seconds"] for one in known]
        number = rank_correlation([one["predicted"][model] for one in known], times)
        if number is not None:
            found[model] = round(number, 3)
    return found


def _sizes(session: Session) -> Mapping[str, int]:
    """The problem that was timed, as other cells name it."""
    sizes = session.task.sizes
    return {
        "batch": sizes.batch, "heads": sizes.num_heads, "kv_heads": sizes.num_kv_heads,
        "seqlen_q": sizes.seqlen_q, "seqlen_k": sizes.seqlen_k,
        "causal": session.task.spec.causal,
    }  # fmt: skip
