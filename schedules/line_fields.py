"""Fields of decoded lines of JSON: what each must hold, and the predicates that say so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_NAME = re.compile(r"\w[\w.+-]*")
_MOST = 2**31 - 1
SIZES = ("batch", "num_heads", "num_kv_heads", "seqlen_q", "seqlen_k", "threads")

# Name -> what it must hold, in words and as a predicate, which may raise.
Fields = Mapping[str, tuple[str, Callable[[Any], Any]]]


def field_problems(
    line: Mapping[str, Any], fields: Fields, optional: Fields = MappingProxyType({})
) -> list[str]:
    """Which ``fields`` are missing from ``line``, else which it and ``optional`` hold wrongly."""
    if absent := [name for name in fields if name not in line]:
        return [f"{', '.join(absent)} missing"]
    return [
        f"{name}={line[name]!r:.60} is not {text}"
        for name, (text, is_right) in {**fields, **optional}.items()
        if name in line and not _holds(is_right, line[name])
    ]


def _holds(is_right: Callable[[Any], Any], value: Any) -> bool:
    # A foreign value may fail in any way, a spec of another version for one.
    try:
        return bool(is_right(value))
    except Exception:
        return False


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def is_number_or_null(value: Any) -> bool:
    return value is None or is_number(value)


def are_times(value: Any) -> bool:
    # Quotients and sums of times stay finite.
    return type(value) is list and all(is_number(x) and 1e-15 < x < 1e15 for x in value)


def are_sizes(value: Any) -> bool:
    return all(type(value[name]) is int and 0 < value[name] <= _MOST for name in SIZES)


def is_text(value: Any) -> bool:
    return type(value) is str and value != ""


def is_name(value: Any) -> bool:
    """Whether it can name a folder, and leads nowhere else."""
    return is_text(value) and _NAME.fullmatch(value) is not None


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_value(value: Any) -> bool:
    """Whether a knob can hold it."""
    return type(value) in (int, str, bool)


def is_object(value: Any) -> bool:
    return type(value) is dict
