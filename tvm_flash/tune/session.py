"""One search: a strategy proposes, hardware evaluates, records remain, what wins twice is best."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import HardwareFailure
from ..schedules.space import Point
from .hardware import Hardware
from .strategy import Strategy, inside, proposals
from .trial import Observation, SearchTask, Trial
from .trial_log import Step, TrialLog

# Proposals at once. Of the search, not of the machine: it decides what is proposed.
BATCH = 8
# A second measurement takes so many times as long, and so many of a batch are given one.
LONGER, RETRIES = 4, 3

# What a stage of the records is, for who watches.
DOING = {
    "start": "timing the default beside itself",
    "recorded": "timing the best of the records",
    "trial": "compiling configs, then timing each beside the best",
    "confirm": "timing what was faster a second time, longer",
    "final": "timing the best beside the default",
}

Keeper = Callable[[Point, Trial], object]


@dataclass
class State:
    """How far a search is, for who watches it.

    done: trials that ended, of ``total``; replayed: those of them that the log had. best: the
    config to beat, found as trial ``number`` (0: the default, or one of the records). ratio,
    spread: of its time over the default's, None for that itself; of several promotions a product.
    """

    task: SearchTask
    total: int
    best: Any
    done: int = 0
    replayed: int = 0
    number: int = 0
    ratio: float | None = None
    spread: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    doing: str = "nothing yet"
    exhausted: bool = False

    @property
    def keeps_default(self) -> bool:
        """Whether nothing has taken the place of the default."""
        return self.best == self.task.space.start

    @property
    def gained(self) -> bool:
        """Whether something is known to be faster than the start."""
        return self.ratio is not None and self.ratio + self.spread < 1


@dataclass(frozen=True)
class Event:
    """One measurement as it is told: new, or replayed from the log."""

    step: Step
    trial: Trial
    best: bool
    replayed: bool


def wins(trial: Trial) -> bool:
    """Whether a second measurement makes a config the one to beat."""
    return trial.outcome == "ok" and trial.ratio + trial.spread < 1


class Session:
    """Searches ``task`` with up to ``trials`` configs of ``strategy``, each timed for ``seconds``.

    What ``log`` has of this search is told to the strategy instead of being measured again.
    recorded() is the config that a build would take now, or None: what is promoted must beat it
    too. tell(state, event) is called after each measurement; keepers get the new ones of the space.
    """

    def __init__(
        self,
        task: SearchTask,
        strategy: Strategy,
        hardware: Hardware,
        log: TrialLog,
        *,
        trials: int,
        seconds: float,
        recorded: Callable[[], Any] = lambda: None,
        tell: Callable[[State, Event | None], object] = lambda state, event: None,
        keepers: Sequence[Keeper] = (),
    ):
        self._task, self._strategy, self._hardware, self._log = task, strategy, hardware, log
        self._name = type(strategy).__name__
        self._seconds, self._recorded = seconds, recorded
        self._tell, self._keepers = tell, keepers
        self.state = State(task, trials, task.space.start)
        # Seconds per call as strategies are told: ratios times those of the start, so that a
        # machine that slows down meanwhile does not make later proposals look worse.
        self._told: dict[Any, float] = {}
        # Configs that were compared with the best: a record that is not among them must be yet.
        self._met = {task.space.start}

    @property
    def task(self) -> SearchTask:
        """What is searched."""
        return self._task

    def run(self) -> Trial:
        """Search; the trial of the best config beside the start, which says what was gained.

        Raises HardwareFailure, NotRecorded or ProposalRefused, and lets KeyboardInterrupt
        through: all that was measured is in the log, and another session goes on there.
        """
        self._begin()
        while self.state.done < self.state.total:
            count = min(BATCH, self.state.total - self.state.done)
            points = proposals(self._strategy, self._name, count, self._task.space)
            if not points:
                self.state.exhausted = True
                break
            self._batch(points)
        return self._end()

    def _begin(self) -> None:
        start = self._task.space.start
        first = self._measured(Step("start", 0, start, start))
        if first.outcome != "ok":
            why = f"{first.outcome} {first.note}".strip()
            raise HardwareFailure(f"the default config, {start}, cannot be timed: {why}")
        self._told[start] = statistics.median(first.seconds)
        self._observe([(self._task.space.point(start), first)], [self._told[start]])
        gone_on, known = self._log.rival()
        self._challenge(self._as_config(known) if gone_on else self._recorded(), 0)

    def _batch(self, points: Sequence[Point]) -> None:
        best, first = self.state.best, self.state.done + 1
        configs = [self._task.space.config(point) for point in points]
        steps = [Step("trial", first + n, c, best) for n, c in enumerate(configs)]
        trials = self._all_measured(steps)
        self._observe(zip(points, trials, strict=True), [self._scaled(t) for t in trials])
        faster = [
            (trial.ratio, step.number, step)
            for step, trial in zip(steps, trials, strict=True)
            if trial.outcome == "ok" and trial.ratio < 1
        ]
        for *_, step in sorted(faster, key=lambda entry: entry[:2])[:RETRIES]:
            if self._promote(Step("confirm", step.number, step.config, best)):
                return

    def _end(self) -> Trial:
        """Measure the best beside the start; mark the one that a build is to take."""
        self._challenge(self._recorded(), self.state.done)
        last = self._last(self.state.best, self.state.number)
        if not self._stands(self.state.best, last):
            # Promotions add up noise: the start itself is the honest answer then.
            self.state.best, self.state.number = self._task.space.start, 0
            last = self._last(self.state.best, 0)
        self.state.ratio, self.state.spread = last.ratio, last.spread
        return last

    def _last(self, config: Any, number: int) -> Trial:
        """``config`` beside the start; anew where builds would take another one meanwhile."""
        step = Step("final", number, config, self._task.space.start)
        return self._measured(step, replay=self._recorded() in (None, config))

    def _challenge(self, config: Any, number: int) -> None:
        """Let the record that a build takes be the config to beat, unless it is clearly slower.

        It has won before: within the noise it stays.
        """
        if self._has_met(config):
            return
        self._met.add(config)
        step = Step("recorded", number, config, self.state.best)
        trial = self._measured(step)
        if trial.outcome == "ok" and trial.ratio - trial.spread <= 1:
            self._take(step, trial)

    def _promote(self, step: Step) -> bool:
        trial = self._measured(step)
        if wins(trial):
            self._take(step, trial)
        return wins(trial)

    def _take(self, step: Step, trial: Trial) -> None:
        """Let the config of ``step`` be the one to beat."""
        state = self.state
        self._met.add(step.config)
        self._told[step.config] = self._scaled(trial)
        state.best = step.config
        state.number = 0 if step.stage == "recorded" else step.number
        state.spread = (state.spread**2 + trial.spread**2) ** 0.5
        state.ratio = trial.ratio * (1.0 if state.ratio is None else state.ratio)
        self._tell(state, None)

    def _measured(self, step: Step, replay: bool = True) -> Trial:
        (trial,) = self._all_measured([step], replay)
        return trial

    def _all_measured(self, steps: Sequence[Step], replay: bool = True) -> list[Trial]:
        """Trials of ``steps``, which are of one stage and beside one config, in their order.

        replay: whether what the log has of them counts.
        """
        found = {n: self._log.find(s) if replay else None for n, s in enumerate(steps)}
        trials = {n: trial for n, trial in found.items() if trial is not None}
        for n, trial in trials.items():
            self._note(steps[n], trial, replayed=True)
        left = [n for n in found if n not in trials]
        if left:
            stage, beside = steps[0].stage, steps[0].incumbent
            self.state.doing = f"{DOING[stage]} ({len(left)})"
            self._tell(self.state, None)
            seconds = self._seconds * (LONGER if stage != "trial" else 1)
            configs = [steps[n].config for n in left]
            for n, trial in self._hardware.evaluate(self._task, configs, beside, seconds):
                trials[left[n]] = trial
                self._note(steps[left[n]], trial, replayed=False)
        return [trials[n] for n in range(len(steps))]

    def _note(self, step: Step, trial: Trial, replayed: bool) -> None:
        """Record one measurement and tell of it."""
        final = step.stage == "final" and self._stands(step.config, trial)
        best = final or (step.stage == "confirm" and wins(trial))
        if not replayed:
            best = best and self._has_met(self._recorded())
            self._log.write(step, trial, best)
        if step.stage == "trial":
            self.state.done += 1
            self.state.replayed += replayed
            self.state.failures.update([trial.outcome] if trial.outcome != "ok" else [])
        if not replayed and step.stage in ("start", "trial"):
            for keep in self._keepers:
                keep(self._task.space.point(step.config), trial)
        self._tell(self.state, Event(step, trial, best, replayed))

    def _has_met(self, config: Any) -> bool:
        """Whether ``config``, of a record, may be replaced: if not, the search's end compares."""
        return config is None or config in self._met

    def _stands(self, config: Any, trial: Trial) -> bool:
        """Whether a last measurement beside the start leaves ``config`` the best."""
        if trial.outcome != "ok":
            return False
        return config == self._task.space.start or trial.ratio - trial.spread <= 1

    def _observe(self, found: Iterable[tuple[Point, Trial]], seconds: list[float | None]) -> None:
        observations = [Observation(p, s) for (p, _), s in zip(found, seconds, strict=True)]
        with inside(self._name):
            self._strategy.observe(observations)

    def _scaled(self, trial: Trial) -> float | None:
        return trial.ratio * self._told[self.state.best] if trial.outcome == "ok" else None

    def _as_config(self, config: dict[str, Any] | None) -> Any:
        if config is None:
            return None
        start = self._task.space.start
        fields = {name: value for name, value in config.items() if name != "schedule"}
        if config["schedule"] == start.schedule:
            return type(start)(**fields)
        # A config may be of another schedule than the default's: CPUs have several for a direction.
        from ..schedules.select import as_config

        return as_config(config, self._task.direction)
