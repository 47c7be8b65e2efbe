"""Our rules for MetaSchedule's search: what is refused unbuilt, and how a point is changed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from .knobs import KnobFunction

# How often a number moves to a value beside its own: times change little there, and good points
# lie together. The rest keeps every point in reach.
NEIGHBOUR = 0.7


def only_valid(knobs: KnobFunction) -> Any:
    """A postprocessor that refuses points which ``space.reasons`` rule out, before any build."""
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.postproc import PyPostproc

    @derived_object
    class OnlyValid(PyPostproc):
        def _initialize_with_tune_context(self, context):
            """Nothing of it is needed."""

        def apply(self, schedule) -> bool:
            return not knobs.space.reasons(knobs.point(schedule.trace))

        def clone(self):
            return only_valid(knobs)

    return OnlyValid()


def categorical_mutator(knobs: KnobFunction, seed: int) -> Any:
    """A mutator that gives one knob another value; applied twice it may change two.

    TVM's own mutators know tile sizes, unrolling and thread bindings, not categories.
    """
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.mutator import PyMutator

    generator = random.Random(seed)
    free = [n for n, knob in enumerate(knobs.space.knobs) if len(knob.values) > 1]
    ordered = [all(type(v) is int for v in knob.values) for knob in knobs.space.knobs]

    @derived_object
    class CategoricalMutator(PyMutator):
        def _initialize_with_tune_context(self, context):
            """Its random numbers come from ``seed`` alone."""

        def apply(self, trace, _):
            if not free:
                return None
            chosen = generator.choice(free)
            instruction, index = knobs.decision(trace, chosen)
            others = other_indices(index, len(knobs.space.knobs[chosen].values))
            near = [n for n in others if abs(n - index) == 1]
            keep_near = ordered[chosen] and generator.random() < NEIGHBOUR
            index = generator.choice(near if keep_near else others)
            return trace.with_decision(instruction, index, True)

        def clone(self):
            return categorical_mutator(knobs, seed)

    return CategoricalMutator()


def other_indices(index: int, count: int) -> Sequence[int]:
    """All of ``range(count)`` but ``index``."""
    return [n for n in range(count) if n != index]
