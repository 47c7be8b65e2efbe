"""A space as a function that MetaSchedule can schedule, and points as its traces."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from ...schedules.space import Knob, Point, Space

_BLOCK = "knobs"
_SOURCE = """
@T.prim_func(s_tir=True)
def main(unused: T.Buffer((1,), "int32")):
    with T.sblock("knobs"):
        T.reads()
        T.writes(unused[0])
        unused[0] = 0
"""


class KnobFunction:
    """The knob function of ``space``.

    task: anything that JSON can hold; it stands on the function, so that a database keeps the
    searches of two problems apart.
    """

    def __init__(self, space: Space, task: Any = None):
        self.space, self.task = space, task
        self._indices = [{value: n for n, value in enumerate(k.values)} for k in space.knobs]

    @cached_property
    def mod(self):
        """The IRModule: one function ``main`` of one empty block."""
        import tvm

        about = {
            "schedule": self.space.name,
            "knobs": {knob.name: list(knob.values) for knob in self.space.knobs},
            "task": self.task,
        }
        func = tvm.script.from_source(_SOURCE)
        func = func.with_attr("tvm_flash.knobs", json.dumps(about, sort_keys=True))
        return tvm.IRModule({"main": func.with_attr("tirx.noalias", True)})

    def sample(self, schedule) -> Any:
        """The schedule function: one ``sample_categorical`` per knob, written on the block."""
        block = schedule.get_sblock(_BLOCK)
        for knob in self.space.knobs:
            chances = [1 / len(knob.values)] * len(knob.values)
            chosen = schedule.sample_categorical(_candidates(knob), chances)
            schedule.annotate(block, knob.name, chosen)
        return schedule

    def point(self, trace) -> Point:
        """The point of ``trace``, a trace of ``sample``."""
        insts, taken = trace.insts, trace.decisions
        knobs = zip(self.space.knobs, self._places, strict=True)
        return tuple(knob.values[int(taken[insts[place]])] for knob, place in knobs)

    def trace(self, point: Point) -> Any:
        """The trace of ``point``; None where a value is none of its knob's."""
        from tvm.s_tir.schedule import Trace

        known = list(zip(self._indices, point, strict=True))
        if not all(value in indices for indices, value in known):
            return None
        insts = list(self._template.insts)
        taken = {
            insts[place]: indices[value]
            for place, (indices, value) in zip(self._places, known, strict=True)
        }
        return Trace(insts, taken)

    def decision(self, trace, knob: int) -> tuple[Any, int]:
        """The sampling instruction of the knob with that number in ``trace``, and its decision."""
        instruction = trace.insts[self._places[knob]]
        return instruction, int(trace.decisions[instruction])

    def schedule(self, point: Point) -> Any:
        """The scheduled knob function at ``point``, whose values are those of the knobs."""
        from tvm.s_tir import Schedule

        schedule = Schedule(self.mod)
        self.trace(point).apply_to_schedule(schedule, remove_postproc=False)
        return schedule

    @cached_property
    def _template(self):
        from tvm.s_tir import Schedule

        return self.sample(Schedule(self.mod, seed=1)).trace

    @cached_property
    def _places(self) -> list[int]:
        """Where in a trace the knobs are sampled: at the same places in all of them."""
        kinds = [instruction.kind.name for instruction in self._template.insts]
        return [n for n, kind in enumerate(kinds) if kind == "SampleCategorical"]


def _candidates(knob: Knob) -> list[int]:
    """Whole numbers for themselves, so that records can be read; text and truth by their place."""
    if all(type(value) is int for value in knob.values):
        return list(knob.values)
    return list(range(len(knob.values)))
