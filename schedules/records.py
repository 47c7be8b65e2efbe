"""Which measured config of tuning_logs/ serves a problem: its own, or the nearest one's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tvm_flash

from ..problem.dtype import DTYPES
from ..problem.field_checks import HEAD_DIM_RANGE
from ..problem.spec import AttentionSpec
from .record_format import moment, read, warn_once

# Buckets whose numbers may serve another, nearest first. Tiny and decode are kernels of their own.
_KIN = {"short": ("medium", "long"), "medium": ("long", "short"), "long": ("medium", "short")}
# In doublings: a head dimension further off wants other tiles.
_FARTHEST = 1.0

_STEM = re.compile(rf"({'|'.join(DTYPES)})_d(\d+)(?:v(\d+))?(_causal)?")
# The other trials, which are many, need no decoding.
_BEST = re.compile(r'"best"\s*:\s*true')

# (config, whether it was measured for the very problem) -> why it cannot serve.
Reasons = Callable[[Mapping[str, Any], bool], Sequence[str]]


@dataclass(frozen=True)
class Choice:
    """A config for one (spec, direction, target, bucket), or None, and where it comes from.

    source: "tuning_logs/TARGET/FILE:exact", "nearest: tuning_logs/TARGET/FILE:BUCKET" or "default".
    """

    config: dict[str, Any] | None
    source: str


@dataclass(frozen=True)
class _Log:
    """A file of records and what its name says of them."""

    path: Path
    dtype: str
    head_dim: int
    head_dim_v: int
    causal: bool

    def distance(self, spec: AttentionSpec) -> float:
        """How far its head dimensions are from those of ``spec``, in doublings."""
        pairs = ((self.head_dim, spec.head_dim), (self.head_dim_v, spec.head_dim_v))
        return max(abs(math.log2(own / asked)) for own, asked in pairs)


def best_config(
    spec: AttentionSpec,
    direction: str,
    target: str,
    bucket: str,
    reasons: Reasons = lambda config, exact: (),
    folders: Sequence[Path] | None = None,
) -> Choice:
    """The config measured for the problem, else for the nearest one, else None.

    Exact: target, dtype, head_dim, head_dim_v, causal, direction and bucket are the same; of those
    the lines of the very ``spec`` come first, else its other features do not count. Nearest:
    target, dtype and direction are the same, the head dimensions at most a factor of two away; the
    nearest of these first, then the nearest bucket, last the other of causal and full. Of equals
    the latest line marked ``best`` counts.
    ``reasons`` says why a config cannot serve the spec (empty: it can); then the next one is taken,
    as where it raises ValueError: the config is none of this release, and a warning says why.
    folders: tuning_logs/ of the package unless given.
    """
    folders = log_folders() if folders is None else folders
    for log, kin in _nearest_first(spec, bucket, [folder / target for folder in folders]):
        best = _best_lines(log.path, _stamp(log.path))
        line = best.get((direction, kin, spec.name), best.get((direction, kin, "")))
        exact = kin == bucket and log.causal == spec.causal and not log.distance(spec)
        if line is None or not _serves(reasons, line["config"], exact, log.path):
            continue
        place = f"tuning_logs/{target}/{log.path.name}"
        return Choice(
            dict(line["config"]), f"{place}:exact" if exact else f"nearest: {place}:{kin}"
        )
    return Choice(None, "default")


def _serves(reasons: Reasons, config: Mapping[str, Any], exact: bool, path: Path) -> bool:
    try:
        return not reasons(config, exact)
    except ValueError as error:
        warn_once(path, f"a best line is skipped ({error})")
        return False


def log_folders() -> tuple[Path, ...]:
    """Where records are: tuning_logs/ inside the package, or beside it in a checkout."""
    folders = (Path(root, "tuning_logs") for root in tvm_flash.__path__)
    return tuple(folder for folder in folders if folder.is_dir())


def record_folders(logs: Path | None) -> tuple[Path, ...] | None:
    """``logs`` before the package's own folders, for what takes ``folders``; None without it.

    Raises ValueError where ``logs`` is no folder.
    """
    if logs is None:
        return None
    if not logs.is_dir():
        raise ValueError(f"logs={str(logs)!r} is no folder: name one that `tvm-flash tune` wrote")
    return (logs, *log_folders())


def _nearest_first(
    spec: AttentionSpec, bucket: str, folders: Sequence[Path]
) -> Iterator[tuple[_Log, str]]:
    """Files and buckets to look in."""
    buckets = (bucket, *_KIN.get(bucket, ()))
    near = [
        (log.distance(spec), rank, log.causal != spec.causal, log.path.name, log)
        for folder in folders
        for log in _logs(folder)
        if log.dtype == spec.dtype and log.distance(spec) <= _FARTHEST
        for rank in range(len(buckets))
    ]
    for _, rank, *_, log in sorted(near, key=lambda entry: entry[:4]):
        yield log, buckets[rank]


def _logs(folder: Path) -> list[_Log]:
    named = ((path, _STEM.fullmatch(path.stem)) for path in folder.glob("*.jsonl"))
    return [
        _Log(path, found[1], int(found[2]), int(found[3] or found[2]), bool(found[4]))
        for path, found in named
        if found and all(_is_head_dim(int(width)) for width in found.groups()[1:3] if width)
    ]


def _is_head_dim(width: int) -> bool:
    return HEAD_DIM_RANGE[0] <= width <= HEAD_DIM_RANGE[1]


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does: one process may tune and build."""
    try:
        status = path.stat()
    except OSError:  # gone meanwhile, or a dangling link: the reader says so
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=256)
def _best_lines(path: Path, stamp: tuple[int, int]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The latest best line by direction, bucket and name of the spec; "": of whichever spec."""
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in read(path, _BEST.search):
        for name in (AttentionSpec.from_json(line["spec"]).name, ""):
            key = (line["direction"], line["bucket"], name)
            if line.get("best") is True and (key not in best or _age(best[key]) <= _age(line)):
                best[key] = line
    return best


def _age(line: Mapping[str, Any]) -> tuple:
    return moment(line["date"]), line["trial"]
