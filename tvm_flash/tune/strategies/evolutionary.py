"""MetaSchedule's own searches as strategies: evolutionary, with or without a model, and replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...schedules.space import Point
from ..cost_models import cost_model
from ..metaschedule.context import tune_context
from ..metaschedule.knobs import KnobFunction
from ..metaschedule.models import Learner, metaschedule_cost_model
from ..metaschedule.rules import categorical_mutator, only_valid
from ..trial import Observation, SearchTask
from .remaining import Remaining

# What MetaSchedule writes for a candidate that failed; it takes no parents from those.
FAILED_SECONDS = 1e10
_NO_END = 10**9
# Generations for one batch. Where they bring too few new points, the batch is filled at random.
_GENERATIONS = 3


class Driven:
    """A MetaSchedule search driven by hand, as its task scheduler would: base of those below.

    Where it has too few new points to offer, valid ones that are left follow at random, so that a
    budget is used: these searches end early in small spaces, where most draws are repeats.
    """

    model_name = "random"

    def __init__(self, task: SearchTask, seed: int):
        self._remaining = Remaining.shuffled(task.space, seed)
        self._learner = Learner(task.space, cost_model(self.model_name, seed))
        self._search = Search(self._engine(), KnobFunction(task.space), self._learner, seed)
        self._waiting: list[Point] = []

    def propose(self, count: int) -> Sequence[Point]:
        for _ in range(_GENERATIONS):
            if len(self._waiting) < count:
                found = self._search.generate(count)
                self._waiting += filter(self._remaining.claim, found)
        self._waiting += self._remaining.take(count - len(self._waiting))
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def observe(self, observations: Sequence[Observation]) -> None:
        seen = {observation.point for observation in observations}
        self._remaining.drop(seen)
        self._waiting = [point for point in self._waiting if point not in seen]
        self._learner.add(observations)
        self._search.record(observations)

    def _engine(self) -> Any:
        """The MetaSchedule search strategy."""
        raise NotImplementedError


class Evolutionary(Driven):
    """Parents drawn by rank, changed one knob at a time, the best by the model measured next.

    MetaSchedule's EvolutionarySearch (Shao et al., NeurIPS 2022) with our mutator. ``model_name``
    says which cost model ranks; at random it is plain mutation of the best.
    """

    def _engine(self) -> Any:
        from tvm.s_tir.meta_schedule.search_strategy import EvolutionarySearch

        # Sized for spaces of some thousand points and batches of eight: MetaSchedule's own numbers
        # (512 and 4) are for programs, and take many times as long.
        return EvolutionarySearch(
            population_size=64,
            init_measured_ratio=0.2,
            init_min_unmeasured=1,
            max_fail_count=32,
            genetic_num_iters=3,
            genetic_mutate_prob=0.85,
            genetic_max_fail_count=10,
            eps_greedy=0.125,
        )


class EvolutionaryXgb(Evolutionary):
    """Evolutionary search guided by boosted trees."""

    model_name = "xgb"


class EvolutionaryMlp(Evolutionary):
    """Evolutionary search guided by a neural network."""

    model_name = "mlp"


class Replay(Driven):
    """Random traces by MetaSchedule's ReplayTrace, less repeats: it draws with replacement."""

    def _engine(self) -> Any:
        from tvm.s_tir.meta_schedule.search_strategy import ReplayTrace

        return ReplayTrace(max_fail_count=100)


class Search:
    """``engine``, a MetaSchedule search strategy, in terms of points and seconds."""

    def __init__(self, engine: Any, knobs: KnobFunction, learner: Learner, seed: int):
        from tvm.s_tir.meta_schedule.database import MemoryDatabase
        from tvm.s_tir.meta_schedule.space_generator import ScheduleFn

        rules = {
            "sch_rules": [],
            "postprocs": [only_valid(knobs)],
            "mutator_probs": {categorical_mutator(knobs, seed): 1.0},
        }
        self._knobs, self._database = knobs, MemoryDatabase()
        self._model = metaschedule_cost_model(knobs, learner)
        # Its functions are called from the context: both must live as long.
        self._generator = ScheduleFn(knobs.sample, **rules)
        self._context = tune_context(knobs.mod, "llvm", self._generator, engine, seed)
        self._workload = self._database.commit_workload(knobs.mod)
        self._candidates: dict[Point, Any] = {}
        self._ended = False
        self._started = False

    def generate(self, count: int) -> list[Point]:
        """A batch, perhaps with points of batches before; none when the search has ended.

        The first call's ``count`` is the size of all batches.
        """
        if not self._started:
            self._context.search_strategy.pre_tuning(
                _NO_END,
                count,
                self._context.generate_design_space(),
                self._database,
                self._model,
            )
            self._started = True
        candidates = None if self._ended else self._context.generate_measure_candidates()
        self._ended = candidates is None
        batch = {self._knobs.point(c.sch.trace): c for c in candidates or ()}
        self._candidates.update(batch)
        return list(batch)

    def record(self, observations: Sequence[Observation]) -> None:
        """Tell the search and its database."""
        from tvm.s_tir.meta_schedule.database import TuningRecord
        from tvm.s_tir.meta_schedule.runner import RunnerResult

        for point, seconds in observations:
            times = [FAILED_SECONDS if seconds is None else seconds]
            if candidate := self._candidates.pop(point, None):
                results = [RunnerResult(times, None)]
                self._context.notify_runner_results([candidate], results)
            if (trace := self._knobs.trace(point)) is not None:
                self._database.commit_tuning_record(TuningRecord(trace, self._workload, times))
