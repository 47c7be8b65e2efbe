"""How strategies and searches talk, and the strategies by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ..errors import TvmFlashError, UnsupportedSpec
from ..schedules.space import Point
from .trial import Observation, SearchTask


class Strategy(Protocol):
    """Proposes points of a space and learns from what became of them.

    A strategy is made as ``Class(task, seed)`` and is deterministic: the same task, seed and
    observations give the same proposals. Its proposals are valid points of ``task.space``, each
    once. The incumbent a search starts from, ``task.space.start``, is observed before the first
    call of ``propose``.
    """

    def propose(self, count: int) -> Sequence[Point]:
        """Up to ``count`` points to measure next; none: it has nothing more to try."""

    def observe(self, observations: Sequence[Observation]) -> None:
        """What became of points, proposed or not, in any order and any batches."""


class ProposalRefused(TvmFlashError):
    """A strategy proposed what it must not; the message names it and says what."""


@contextmanager
def inside(name: str) -> Iterator[None]:
    """While code of the strategy ``name`` runs: what it raises is marked as ``in_strategy``.

    Such an error is a fault of that code, not of the caller's input: whoever wrote it needs the
    traceback. The package's own errors say themselves what to do.
    """
    try:
        yield
    except TvmFlashError:
        raise
    except Exception as error:
        error.in_strategy = name  # type: ignore[attr-defined]
        raise


def proposals(strategy: Strategy, name: str, count: int, known: Container[Point]) -> list[Point]:
    """What ``strategy``, called ``name``, proposes: up to ``count`` points of ``known``.

    Raises ProposalRefused for anything else.
    """
    call = f"{name}.propose({count})"
    with inside(name):
        given = strategy.propose(count)
        points = list(given) if isinstance(given, Iterable) else None
    if points is None or not all(isinstance(point, Sequence) for point in points):
        raise ProposalRefused(f"{call} gave {given!r:.60}, which is no list of points")
    points = [tuple(point) for point in points]
    if len(points) > count:
        raise ProposalRefused(f"{call} gave {len(points)} points: it may give up to {count}")
    for point in points:
        if point not in known:
            raise ProposalRefused(
                f"{call} gave {point}, which is not in the space: take points from "
                "task.space.points, or test them with `point in task.space`"
            )
    return points


# Name -> "module:Class", imported when it is asked for: some need TVM. docs/search-strategies.md
# says what each does.
STRATEGIES = {
    "random": "tvm_flash.tune.strategies.sampling:Random",
    "grid": "tvm_flash.tune.strategies.sampling:Grid",
    "replay": "tvm_flash.tune.strategies.evolutionary:Replay",
    "coordinate": "tvm_flash.tune.strategies.coordinate:Coordinate",
    "evolutionary": "tvm_flash.tune.strategies.evolutionary:Evolutionary",
    "xgb": "tvm_flash.tune.strategies.evolutionary:EvolutionaryXgb",
    "mlp": "tvm_flash.tune.strategies.evolutionary:EvolutionaryMlp",
    "ranked-xgb": "tvm_flash.tune.strategies.ranked:RankedXgb",
    "ranked-mlp": "tvm_flash.tune.strategies.ranked:RankedMlp",
    "analytical": "tvm_flash.tune.strategies.analytical:Analytical",
    "analytical-measured": "tvm_flash.tune.strategies.analytical:AnalyticalMeasured",
}
# The cost models that a strategy may be given -> the name of that pair.
_WITH_COST_MODEL = {
    "evolutionary": {"random": "evolutionary", "xgb": "xgb", "mlp": "mlp"},
    "ranked": {"xgb": "ranked-xgb", "mlp": "ranked-mlp"},
    "xgb": {"xgb": "xgb"},
    "mlp": {"mlp": "mlp"},
}


def default_strategy(task: SearchTask) -> str:
    """What docs/search-study.md found best; where no analytical model serves, the best without."""
    from .analytical import predictor

    try:
        predictor(task)
    except UnsupportedSpec:
        return "mlp"
    return "analytical-measured"


def make_strategy(
    name: str, task: SearchTask, seed: int, cost_model: str | None = None
) -> Strategy:
    """The strategy ``name`` ready to propose; ``cost_model`` as in ``strategy_name``."""
    full = strategy_name(name, cost_model)
    made = strategy_class(full)
    with inside(full):
        return made(task, seed)


def strategy_name(name: str, cost_model: str | None = None) -> str:
    """The name that ``name`` with ``cost_model`` goes by: evolutionary with xgb is ``xgb``.

    Raises ValueError where the strategy takes no cost model, or not this one.
    """
    if cost_model is None:
        return name
    if (known := _WITH_COST_MODEL.get(name)) is None:
        raise ValueError(
            f"strategy {name!r} takes no cost model, {cost_model=} must be left out; "
            f"these take one: {', '.join(_WITH_COST_MODEL)}"
        )
    if cost_model not in known:
        raise ValueError(f"{cost_model=} of strategy {name!r} must be one of {', '.join(known)}")
    return known[cost_model]


def strategy_class(name: str) -> Callable[[SearchTask, int], Strategy]:
    """The strategy called ``name``, or one of the user's own as "module:Class".

    A module is also looked for in the working folder. Raises ValueError with the known names, or
    with what is wrong with the module.
    """
    place = STRATEGIES.get(name, name)
    module, _, attribute = place.partition(":")
    if not module or not attribute:
        raise ValueError(
            f"strategy {name!r} must be one of {', '.join(STRATEGIES)}, or module:Class"
        )
    try:
        found = getattr(_imported(module), attribute)
    except Exception as error:  # the user's module may fail in any way
        raise ValueError(f"strategy {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise ValueError(f"strategy {name!r} is {found!r:.60}, not a class")
    return found


def _imported(module: str):
    """The console script does not have the working folder on its path, as ``python -m`` has."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        here = str(Path.cwd())
        if error.name != module.partition(".")[0] or here in sys.path:
            raise
    sys.path.append(here)
    return importlib.import_module(module)
