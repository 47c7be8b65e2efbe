"""Measured configs from replay tables and tuning logs, in one form, and which split each is in."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...problem.spec import AttentionSpec
from ...schedules import record_format
from ..replay.table import ReplayTable

# The share of validation, and that of test. Specs are split and not their samples: a model is of
# use for specs that it has not seen.
_SHARE = 0.15


@dataclass(frozen=True)
class Sample:
    """One measured config: on what, what became of it, and where that stands.

    problem: batch, num_heads, num_kv_heads, seqlen_q, seqlen_k, threads. seconds: per call, None
    where it failed. repeats: how many were measured. cost: seconds that the trial took, None where
    nobody wrote it down. source: name of the table, or of the log's folder and file.
    """

    spec: AttentionSpec
    direction: str
    target: str
    cpu: str
    problem: Mapping[str, int]
    config: Mapping[str, Any]
    outcome: str
    seconds: float | None
    repeats: int
    cost: float | None
    source: str

    @property
    def group(self) -> str:
        """What is timed and on what: only within a group do times compare."""
        sizes = "x".join(str(self.problem[name]) for name in record_format.SIZES)
        return f"{self.spec.name} {self.direction} {self.target} {sizes} on {self.cpu}"


def of_table(table: ReplayTable) -> list[Sample]:
    """A sample for each point, in the order of the table; seconds as ``table.seconds`` has them."""
    head = table.head
    known = (AttentionSpec.from_json(head["spec"]), head["direction"], head["target"], head["cpu"])
    return [
        Sample(
            *known,
            head["problem"],
            {**head["start"], **dict(zip(head["knobs"], point, strict=True))},
            one.outcome,
            table.seconds[point],
            len(one.seconds),
            one.cost,
            table.name,
        )
        for point, one in table.measured.items()
    ]


def of_logs(folder: Path) -> list[Sample]:
    """A sample for each line of the tuning logs below ``folder``; seconds are medians of repeats.

    A config that was measured twice is there twice. Lines that cannot be read are skipped with a
    warning. Raises ValueError where there is none.
    """
    found = [
        _of_line(line, f"{path.parent.name}/{path.name}")
        for path in sorted(folder.rglob("*.jsonl"))
        for line in record_format.read(path)
    ]
    if not found:
        raise ValueError(f"{folder} holds no tuning logs (TARGET/DTYPE_dHEAD_DIM.jsonl)")
    return found


def splits(samples: Iterable[Sample]) -> dict[str, str]:
    """Spec name -> "train", "valid" or "test": always the same for the same specs.

    Specs are in the order of their hashes. Of three or more, each split has at least one; of two,
    one is for testing; a single one is for training.
    """
    names = sorted({sample.spec.name for sample in samples}, key=_hash)
    share = max(1, round(_SHARE * len(names)))
    tests = share if len(names) > 1 else 0
    valid = share if len(names) > 2 else 0
    kinds = ["test"] * tests + ["valid"] * valid
    return {n: kinds[place] if place < len(kinds) else "train" for place, n in enumerate(names)}


def _of_line(line: Mapping[str, Any], source: str) -> Sample:
    seconds = line["seconds"]
    ok = line["outcome"] == "ok" and bool(seconds)
    return Sample(
        AttentionSpec.from_json(line["spec"]),
        line["direction"],
        line["target"],
        line["cpu"],
        line["problem"],
        line["config"],
        line["outcome"],
        statistics.median(seconds) if ok else None,
        len(seconds),
        None,
        source,
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
