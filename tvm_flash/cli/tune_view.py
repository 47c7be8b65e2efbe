"""A search as it goes: live on a terminal, one line for each trial elsewhere."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..tune.session import Event, State
    from ..tune.trial import SearchTask, Trial


def title(task: SearchTask) -> str:
    """One search in words."""
    return f"{task.spec.name} {task.direction} {task.bucket} on {task.target}"


def differences(config: Any, start: Any) -> str:
    """What of ``config`` is not as in ``start``: "block_q 64→128, rows_s 4→8"."""
    return changes(config.to_json(), start.to_json())


def changes(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """``differences`` of configs as records have them."""
    changed = [f"{name} {old.get(name)}→{new[name]}" for name in new if new[name] != old.get(name)]
    return ", ".join(changed) or "the default"


def ratio_text(ratio: float, spread: float) -> str:
    """The ratio of two times and its uncertainty: "0.873 ± 0.012"."""
    return f"{ratio:.3f} ± {spread:.3f}"


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds; dashes where they are not known."""
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class View:
    """What is shown of the searches of one command, ``total`` of them."""

    def __init__(self, total: int):
        self._total, self._number = total, 0
        self.state: State | None = None
        self._since, self._skipped = time.monotonic(), 0

    def begin(self, task: SearchTask) -> None:
        """The next search begins."""
        self._number += 1
        self._since, self._skipped, self.state = time.monotonic(), 0, None
        self.line(f"[{self._number}/{self._total}] {title(task)}")

    def tell(self, state: State, event: Event | None) -> None:
        """``Session``'s tell."""
        self.state = state
        if event is not None and not event.replayed:
            self.line(_event_text(event))
        if event is not None and event.replayed and event.step.stage == "trial":
            self._skipped += 1

    def line(self, text: str) -> None:
        """Something to keep on the screen, or in the log that is not one."""
        raise NotImplementedError

    def left(self) -> float:
        """Seconds until the search's last trial, as fast as those so far."""
        assert self.state is not None
        new = self.state.done - self._skipped
        elapsed = time.monotonic() - self._since
        return (self.state.total - self.state.done) * elapsed / new if new else math.inf

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class PlainView(View):
    """Lines, for files and pipes."""

    def __init__(self, console: Console, total: int):
        super().__init__(total)
        self._console = console

    def line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class LiveView(View):
    """A panel that stays at the bottom of the terminal; promotions scroll above it."""

    def __init__(self, console: Console, total: int):
        super().__init__(total)
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=4)

    def __enter__(self) -> View:
        self._live.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        self.state = None
        self._live.__exit__(*reason)

    def tell(self, state: State, event: Event | None) -> None:
        super().tell(state, event)
        self._live.refresh()

    def line(self, text: str) -> None:
        if not text.startswith(("trial", "start")):
            self._live.console.print(Text(text), soft_wrap=True)

    def _panel(self) -> ConsoleRenderable:
        if self.state is None:
            return Text("")
        bar = Table.grid(padding=(0, 1))
        elapsed = time.monotonic() - self._since
        state = self.state
        bar.add_row(
            ProgressBar(total=state.total, completed=state.done, width=40),
            f"{state.done}/{state.total} trials",
            f"{clock_text(elapsed)} elapsed, {clock_text(self.left())} left",
        )
        return Group(bar, *map(Text, state_lines(state)))


def state_lines(state: State) -> list[str]:
    """The best so far, failures by reason, what is being done."""
    best = "best so far: the default"
    if state.ratio is not None:
        ratio = ratio_text(state.ratio, state.spread)
        found = f"trial {state.number}" if state.number else "from the records"
        best = f"best so far: {ratio} of the default's time, {found}: "
        best += differences(state.best, state.task.space.start)
    return [best, f"failures: {failures_text(state.failures)}", f"now: {state.doing}"]


def failures_text(failures: Mapping[str, int]) -> str:
    """How many of each kind, those that there are."""
    return ", ".join(f"{kind} {count}" for kind, count in failures.items() if count) or "none"


def _event_text(event: Event) -> str:
    step, trial = event.step, event.trial
    head = f"{step.stage:8} {step.number:4}"
    tail = differences(step.config, step.incumbent) if step.config != step.incumbent else "itself"
    return f"{head}  {_trial_text(trial):62} {'BEST' * event.best:4} {tail}"


def _trial_text(trial: Trial) -> str:
    if trial.outcome != "ok":
        return f"{trial.outcome}: {trial.note}"[:80]
    time_ms = statistics.median(trial.seconds) * 1e3
    ratio = ratio_text(trial.ratio, trial.spread)
    return f"error {share_text(trial)} of allowed, {time_ms:.4g} ms, {ratio} of the best's"


def share_text(trial: Trial) -> str:
    """The error of the result nearest to the error rule's limit, over that limit."""
    if trial.error is None or not trial.allowed:
        return "-"
    return f"{trial.error / trial.allowed:.2f}"
