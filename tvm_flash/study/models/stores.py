"""TVM's features of the stores of scheduled functions, for many configs, kept once computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from ...errors import TvmFlashError
from ...problem.spec import AttentionSpec
from ...schedules.target import cpu_target
from ...workers import Failure, Workers
from .samples import Sample

# Scheduling one takes about a second.
_TIMEOUT = 300.0
WIDTH = 164

_Key = tuple[str, str, str, str]


def store_features(
    samples: Sequence[Sample], jobs: int, progress: Callable[[str], None]
) -> list[np.ndarray]:
    """Features of each sample's stores (n_stores, 164) float32; no rows where it has no function.

    That is so for GPU schedules, which are no schedulable TensorIR, and for configs that this
    release refuses. The problem's sizes are symbols in the function and change nothing.
    """
    keys = [_key(sample) for sample in samples]
    wanted = list(dict.fromkeys(key for key in keys if key[2].startswith(("x86", "aarch"))))
    found: dict[_Key, np.ndarray] = {}
    workers = Workers(_kept, jobs)
    try:
        for index, rows in workers.map(wanted, _TIMEOUT):
            if not isinstance(rows, Failure):
                found[wanted[index]] = rows
            progress(wanted[index][0])
    finally:
        workers.close()
    empty = np.empty((0, WIDTH), dtype=np.float32)
    return [found.get(key, empty) for key in keys]


def pooled(stores: Sequence[np.ndarray]) -> np.ndarray:
    """(n, 2 * 164): the sum and the largest over the stores of each sample, for models of rows."""
    empty = np.zeros((1, WIDTH), dtype=np.float32)
    filled = [rows if len(rows) else empty for rows in stores]
    return np.array([np.concatenate([rows.sum(axis=0), rows.max(axis=0)]) for rows in filled])


def _key(sample: Sample) -> _Key:
    spec, config = json.dumps(sample.spec.to_json()), json.dumps(dict(sample.config))
    return spec, sample.direction, sample.target, config


def _kept(spec: str, direction: str, target: str, config: str) -> np.ndarray:
    """Features of a function's stores, of the disk cache or computed; runs in a worker process."""
    from ...codegen import cache
    from ...codegen.versions import build_versions, source_digest

    parts = {"spec": spec, "direction": direction, "target": target, "config": config}
    name = cache.digest({**parts, "sources": source_digest(), "versions": build_versions()})
    return cache.content(
        name,
        lambda: _computed(spec, direction, target, config),
        "stores",
        lambda kept: np.frombuffer(kept, dtype=np.float32).reshape(-1, WIDTH),
    )


def _computed(spec: str, direction: str, target: str, config: str) -> bytes:
    from ...tune.features import per_store_features

    known = AttentionSpec.from_json(json.loads(spec)), direction, cpu_target(target)
    try:
        rows = per_store_features(*known, json.loads(config))
    except (TvmFlashError, TypeError, ValueError):
        return b""
    return rows.astype(np.float32).tobytes()
