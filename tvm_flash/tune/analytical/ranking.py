"""Static rankings on disk: configs in the order of predicted time, labelled as not measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...artifact.folder import replacing
from ...artifact.library import DIRECTIONS, symbol_name
from ...problem.spec import AttentionSpec

FORMAT = 1
KIND = "static ranking, not measured"
SUFFIX = ".static.json"
# A config without a rank: it keeps registers in memory, its numbers are wrong, or it does not
# compile.
UNRANKED = ("spill", "wrong", "invalid")

_FIELDS = {
    "target": str, "gpu": dict, "spec": dict, "direction": str, "problem": dict, "space": dict,
    "default": dict, "seed": int, "date": str, "versions": dict, "ranking": list, "unranked": list,
}  # fmt: skip
_RANKED = {
    "config": dict, "predicted_seconds": float, "registers": int, "shared_bytes": int,
    "resident_blocks": int, "limit": str, "bound": str, "clocks": dict,
}  # fmt: skip


def ranking_path(logs: Path, target: str, spec: AttentionSpec, direction: str) -> Path:
    """Where the ranking for (target, spec, direction) lies under ``logs`` (tuning_logs/)."""
    return logs / target / f"{symbol_name(spec, direction)}{SUFFIX}"


def write_ranking(path: Path, document: Mapping[str, Any]) -> Path:
    """Write ``document``, a line for each config. Raises ValueError for what is none."""
    if problems := ranking_problems(document):
        raise ValueError(f"{path}: {'; '.join(problems)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(_text(document), encoding="utf-8")
    return path


def read_ranking(path: Path) -> dict[str, Any]:
    """The ranking at ``path``. Raises ValueError, with the reason, for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); rank the space again") from error
    if problems := ranking_problems(document):
        raise ValueError(f"{path}: {problems[0]}; rank the space again")
    return document


def ranking_problems(document: Any) -> list[str]:
    """What is wrong with a decoded document (empty: nothing)."""
    if not isinstance(document, Mapping):
        return [f"it is a {type(document).__name__}, not an object"]
    if document.get("format") != FORMAT or document.get("kind") != KIND:
        return [f"it is not format={FORMAT}, kind={KIND!r}"]
    if wrong := _mistyped(document, _FIELDS):
        return wrong
    return [*_spec_problems(document), *_entry_problems(document)]


def _spec_problems(document: Mapping[str, Any]) -> list[str]:
    try:
        AttentionSpec.from_json(document["spec"])
    except Exception as error:  # a foreign spec fails in any way
        return [f"spec is none ({error})"]
    known = document["direction"] in DIRECTIONS
    return [] if known else [f"direction={document['direction']!r} must be in {list(DIRECTIONS)}"]


def _entry_problems(document: Mapping[str, Any]) -> list[str]:
    ranking, unranked = document["ranking"], document["unranked"]
    problems = [text for entry in ranking for text in _mistyped(entry, _RANKED)]
    problems += [
        f"outcome={entry.get('outcome')!r} must be one of {', '.join(UNRANKED)}"
        for entry in unranked
        if entry.get("outcome") not in UNRANKED or not isinstance(entry.get("config"), dict)
    ]
    if problems:
        return problems
    times = [entry["predicted_seconds"] for entry in ranking]
    if not all(math.isfinite(time) and time > 0 for time in times):
        problems.append("a predicted time is not positive")
    if times != sorted(times):
        problems.append("the ranking is not in the order of predicted time")
    if any("seconds" in entry for entry in (*ranking, *unranked)):
        problems.append("a ranking has no measured seconds")
    return problems


def _mistyped(entry: Any, expected: Mapping[str, type]) -> list[str]:
    if not isinstance(entry, Mapping):
        return [f"an entry is a {type(entry).__name__}, not an object"]
    return [
        f"{name}={entry.get(name)!r:.60} is no {kind.__name__}"
        for name, kind in expected.items()
        if not isinstance(entry.get(name), kind) or isinstance(entry[name], bool)
    ]


def _text(document: Mapping[str, Any]) -> str:
    """JSON with one line for each field and for each config."""
    fields = [f" {json.dumps(name)}: {_value(value)}" for name, value in document.items()]
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _value(value: Any) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return json.dumps(value)
    return "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in value) + "\n ]"
