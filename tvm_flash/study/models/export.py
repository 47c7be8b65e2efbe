"""The data set of cost models: features, labels, groups and splits of measured configs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import tvm_flash

from ...artifact.folder import replacing
from ...errors import TvmFlashError
from ...schedules.record_format import SIZES
from ...schedules.space import Knob, Space
from ...tune.features import feature_names, knob_features
from .samples import Sample, splits

FORMAT = 1
FORMATS = ("npz", "parquet")
PROBLEM = (*(f"log2 {name}" for name in SIZES), "head_dim", "head_dim_v", "bytes", "causal")


@dataclass(frozen=True)
class DataSet:
    """n samples as columns; docs/search-study.md says what each holds.

    arrays: by name, the first axis of most is n. provenance: what they are made from.
    """

    arrays: dict[str, np.ndarray]
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.arrays["seconds"])


def data_set(samples: Sequence[Sample], stores: Sequence[np.ndarray] | None = None) -> DataSet:
    """The arrays of ``samples``; stores: of each sample (n_stores, 164), where they are wanted."""
    knobs, knob_names = knob_columns(samples)
    groups = sorted({sample.group for sample in samples})
    split_of = splits(samples)
    arrays = {
        "knobs": knobs,
        "knob_names": np.array(knob_names),
        "problem": np.array([_problem(sample) for sample in samples], dtype=np.float32),
        "problem_names": np.array(PROBLEM),
        "seconds": _numbers(sample.seconds for sample in samples),
        "cost_seconds": _numbers(sample.cost for sample in samples),
        "repeats": np.array([sample.repeats for sample in samples], dtype=np.int32),
        "group": np.array([groups.index(sample.group) for sample in samples], dtype=np.int32),
        "group_names": np.array(groups),
        "split": np.array([split_of[sample.spec.name] for sample in samples]),
        **{name: np.array([getattr(s, name) for s in samples]) for name in _TEXTS},
        "spec": np.array([sample.spec.name for sample in samples]),
        "config": np.array([json.dumps(dict(s.config), sort_keys=True) for s in samples]),
    }
    if stores is not None:
        arrays["stores"] = np.concatenate(stores).astype(np.float32)
        arrays["store_offsets"] = np.cumsum([0, *map(len, stores)]).astype(np.int64)
    return DataSet(arrays, _provenance(samples))


def knob_columns(samples: Sequence[Sample]) -> tuple[np.ndarray, list[str]]:
    """Every field of the configs as ``knob_features`` has it, (n, k) float32, and their names.

    NaN where a schedule has no such field: samples of several schedules share what they share.
    """
    blocks = {name: _columns_of(samples, name) for name in _schedules(samples)}
    names = list(dict.fromkeys(name for names, _ in blocks.values() for name in names))
    found = np.full((len(samples), len(names)), np.nan, dtype=np.float32)
    for schedule, (own, values) in blocks.items():
        rows = [n for n, sample in enumerate(samples) if sample.config["schedule"] == schedule]
        found[np.ix_(rows, [names.index(name) for name in own])] = values
    return found, names


def write(data: DataSet, path: Path, form: str) -> None:
    """Write ``data`` as ``form``, all of it or nothing.

    Raises ValueError for an unknown form, TvmFlashError where parquet lacks pyarrow, OSError.
    """
    refuse(form)
    with replacing(path) as temporary:
        (_write_npz if form == "npz" else _write_parquet)(data, temporary)


def refuse(form: str) -> None:
    """Raise ValueError for an unknown form, TvmFlashError where parquet lacks pyarrow."""
    if form not in FORMATS:
        raise ValueError(f"format {form!r} must be one of {', '.join(FORMATS)}")
    if form == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ModuleNotFoundError as error:
            raise TvmFlashError(
                "parquet needs pyarrow, which is missing: pip install 'tvm-flash[study]', or "
                "--format npz"
            ) from error


_TEXTS = ("direction", "target", "cpu", "outcome", "source")


def _schedules(samples: Sequence[Sample]) -> list[str]:
    return sorted({sample.config["schedule"] for sample in samples})


def _columns_of(samples: Sequence[Sample], schedule: str) -> tuple[list[str], np.ndarray]:
    """Names and values of one schedule's fields; what a knob is like follows from its values."""
    configs = [sample.config for sample in samples if sample.config["schedule"] == schedule]
    fields = [name for name in configs[0] if name != "schedule"]
    knobs = tuple(
        Knob(name, tuple(sorted({config[name] for config in configs})), "") for name in fields
    )
    space = Space(schedule, knobs, None, lambda _: ())
    points = [tuple(config[name] for name in fields) for config in configs]
    return feature_names(space), knob_features(space, points)


def _problem(sample: Sample) -> list[float]:
    sizes = [math.log2(sample.problem[name]) for name in SIZES]
    spec = sample.spec
    return [*sizes, spec.head_dim, spec.head_dim_v, spec.element.bytes, float(spec.causal)]


def _numbers(values) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _provenance(samples: Sequence[Sample]) -> dict[str, Any]:
    count = {name: 0 for name in sorted({sample.source for sample in samples})}
    for sample in samples:
        count[sample.source] += 1
    return {
        "format": FORMAT,
        "made_by": f"tvm_flash {tvm_flash.__version__}",
        "samples_by_source": count,
        "label": "seconds: per call, NaN where the config failed; comparable within a group",
    }


def _write_npz(data: DataSet, path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **data.arrays, provenance=np.array(json.dumps(data.provenance)))


def _write_parquet(data: DataSet, path: Path) -> None:
    from pyarrow import parquet, table

    made = table(_rows(data.arrays))
    parquet.write_table(
        made.replace_schema_metadata({"provenance": json.dumps(data.provenance)}), path
    )


def _rows(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A column for each knob and each size; the stores of a sample as one flat list."""
    columns: dict[str, Any] = {}
    for kind in ("knob", "problem"):
        values = arrays["knobs" if kind == "knob" else "problem"]
        for name, column in zip(arrays[f"{kind}_names"], values.T, strict=True):
            columns[f"{kind}: {name}"] = column
    for name in ("seconds", "cost_seconds", "repeats", "split", "spec", "config", *_TEXTS):
        columns[name] = arrays[name]
    columns["group"] = arrays["group_names"][arrays["group"]]
    if "stores" in arrays:
        offsets = arrays["store_offsets"]
        columns["stores"] = [arrays["stores"][low:high].ravel() for low, high in pairwise(offsets)]
    return columns
