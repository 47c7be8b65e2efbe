"""How strategies and searches talk, and the strategies by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Protocol

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
        """What became of proposed points, in any order and any batches."""


# Name -> "module:Class", imported when it is asked for: some need TVM.
STRATEGIES = {
    "random": "tvm_flash.tune.strategies.sampling:Random",
    "grid": "tvm_flash.tune.strategies.sampling:Grid",
}


def strategy_class(name: str) -> Callable[[SearchTask, int], Strategy]:
    """The strategy called ``name``, or one of the user's own as "module:Class".

    Raises ValueError with the known names, or with what is wrong with the module.
    """
    place = STRATEGIES.get(name, name)
    module, _, attribute = place.partition(":")
    if not attribute:
        raise ValueError(
            f"strategy {name!r} must be one of {', '.join(STRATEGIES)}, or module:Class"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"strategy {name!r}: {error}") from error
