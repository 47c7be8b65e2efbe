"""What a replay table must hold: the schema of its head and of its lines, as code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...artifact.library import DIRECTIONS
from ...errors import TvmFlashError
from ...json_fields import Fields, field_problems, is_object
from ...problem.spec import AttentionSpec
from ...schedules.line_fields import (
    SIZES,
    are_sizes,
    are_times,
    is_number,
    is_number_or_null,
    is_text,
    is_value,
)
from ...schedules.record_format import OUTCOMES

FORMAT = 1
KIND = "replay table"
# Points of a table's grid of values, measured or not.
_MOST_POINTS = 10**7


class TableError(TvmFlashError, ValueError):
    """A table that is corrupt, foreign or of another version; the message says where and why."""


def head_problems(head: Any) -> list[str]:
    """What is wrong with the first line of a table (empty: nothing)."""
    if not isinstance(head, dict) or head.get("kind") != KIND:
        return [f"it is no {KIND}: its first line must hold kind={KIND!r}"]
    if head.get("format") != FORMAT:
        return [f"format={head.get('format')!r}, this version reads {FORMAT}"]
    return field_problems(head, _HEAD)


def line_problems(line: Any, head: Mapping[str, Any]) -> list[str]:
    """What is wrong with the line of a point, under a ``head`` without problems."""
    if not isinstance(line, dict):
        return [f"it is a {type(line).__name__}, not an object"]
    return field_problems(line, _LINE) or [*_misplaced(line, head), *_contradictions(line)]


def table_problems(head: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with good lines taken together."""
    if len(lines) != head["points"]:
        return [f"{len(lines)} points, its head says {head['points']}: it is cut off or mixed"]
    points = [tuple(line["point"]) for line in lines]
    if len(set(points)) < len(points):
        twice = next(point for n, point in enumerate(points) if point in points[:n])
        return [f"point {list(twice)} is there twice"]
    start = tuple(head["start"].get(name) for name in head["knobs"])
    good = [point for point, line in zip(points, lines, strict=True) if line["outcome"] == "ok"]
    return [] if start in good else [f"its start {list(start)} was not measured"]


def _misplaced(line: Mapping[str, Any], head: Mapping[str, Any]) -> list[str]:
    values, knobs = line["point"], head["knobs"]
    if len(values) != len(knobs):
        return [f"point {values} has {len(values)} values, the table {len(knobs)} knobs"]
    return [
        f"{name}={value!r} is none of {knob['values']}"
        for value, (name, knob) in zip(values, knobs.items(), strict=True)
        if value not in knob["values"]
    ]


def _contradictions(line: Mapping[str, Any]) -> list[str]:
    ok, error, allowed = line["outcome"] == "ok", line["error"], line["allowed"]
    repeats = len(line["seconds"])
    checks = [
        (
            repeats != len(line["reference_seconds"]),
            "seconds and reference_seconds differ in number",
        ),
        (ok and repeats < 2, "outcome='ok' with less than two repeats"),
        (not ok and repeats, f"outcome={line['outcome']!r} with seconds"),
        (ok and (error is None or allowed is None), "outcome='ok' without error and allowed"),
        (ok and None not in (error, allowed) and error > allowed, f"{error=} above {allowed=}"),
    ]
    return [text for wrong, text in checks if wrong]


def _are_knobs(value: Any) -> bool:
    return (
        value != {}
        and all(is_text(knob["meaning"]) and _are_values(knob["values"]) for knob in value.values())
        and math.prod(len(knob["values"]) for knob in value.values()) <= _MOST_POINTS
    )


def _are_values(values: Any) -> bool:
    return type(values) is list and values != [] and all(map(is_value, values))


_HEAD: Fields = {
    "target": ("the name of a target", is_text),
    "cpu": ("the name of a CPU", is_text),
    "spec": ("a spec", AttentionSpec.from_json),
    "direction": (f"one of {', '.join(DIRECTIONS)}", DIRECTIONS.__contains__),
    "problem": (f"positive {', '.join(SIZES)}", are_sizes),
    "start": ("a config with its schedule", lambda config: is_text(config["schedule"])),
    "knobs": ("knobs with their values and meaning", _are_knobs),
    "points": ("a positive number", lambda value: type(value) is int and value > 0),
    "clock": ("the name of a clock", is_text),
    "date": ("a date", is_text),
    "versions": ("an object", is_object),
    "machine": ("an object", is_object),
}

_LINE: Fields = {
    "point": ("a list of values", _are_values),
    "outcome": (f"one of {', '.join(OUTCOMES)}", OUTCOMES.__contains__),
    "seconds": ("a list of times", are_times),
    "reference_seconds": ("a list of times", are_times),
    "compile_seconds": ("a time", is_number),
    "check_seconds": ("a time", is_number),
    "measure_seconds": ("a time", is_number),
    "error": ("a number or null", is_number_or_null),
    "allowed": ("a number or null", is_number_or_null),
}
