"""Numbers that describe a candidate to a cost model: of its knobs, and of its TensorIR."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..problem.spec import AttentionSpec
from ..schedules.space import Knob, Point, Space, Value

if TYPE_CHECKING:
    from ..schedules.target import CpuTarget


def feature_names(space: Space) -> list[str]:
    """What the columns of ``knob_features`` are: ``log2 block_q``, ``causal``, ``order=kq``."""
    return [name for knob in space.knobs for name in _names(knob)]


def knob_features(space: Space, points: Sequence[Point]) -> np.ndarray:
    """One row of float32 for each point, (len(points), len(feature_names(space))).

    Numbers as log2, because tiles matter by their ratio (as they are where a knob may be 0 or
    negative); truth as 0 or 1; text as one column for each value, all 0 for a value that the knob
    does not list.
    """
    taken = [set(values) for values in zip(*points, strict=True)]
    tables = [
        {value: _columns(knob, value) for value in values}
        for knob, values in zip(space.knobs, taken, strict=bool(points))
    ]
    rows = [[x for t, v in zip(tables, point, strict=True) for x in t[v]] for point in points]
    return np.asarray(rows, dtype=np.float32).reshape(len(points), len(feature_names(space)))


def _is_text(knob: Knob) -> bool:
    return any(isinstance(value, str) for value in knob.values)


def _is_logarithmic(knob: Knob) -> bool:
    return all(type(value) is int and value > 0 for value in knob.values)


def _names(knob: Knob) -> list[str]:
    if _is_text(knob):
        return [f"{knob.name}={value}" for value in knob.values]
    return [f"log2 {knob.name}" if _is_logarithmic(knob) else knob.name]


def _columns(knob: Knob, value: Value) -> list[float]:
    if _is_text(knob):
        return [float(value == known) for known in knob.values]
    return [math.log2(value) if _is_logarithmic(knob) else float(value)]


def per_store_features(
    spec: AttentionSpec,
    direction: str,
    target: CpuTarget,
    config: Mapping[str, Any],
) -> np.ndarray:
    """TVM's features of every store of the scheduled CPU function, (n_stores, 164) float64.

    Source: Ansor's features (Zheng et al., OSDI 2020) as ``PerStoreFeature`` of TVM extracts them.
    Lengths are symbols in our functions; TVM counts a loop over a symbol as one round, so the
    columns tell configs apart, not problems. Raises UnsupportedSpec for a config that cannot serve.
    """
    from ..schedules.select import scheduled_module
    from .metaschedule.context import per_store_extract

    return per_store_extract(scheduled_module(spec, direction, target, config).mod)
