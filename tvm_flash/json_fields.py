"""Fields of decoded JSON: what each must hold, and which ones of a foreign object do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

# Name -> what it must hold, in words and as a predicate, which may raise.
Fields = Mapping[str, tuple[str, Callable[[Any], Any]]]


def field_problems(
    data: Mapping[str, Any], fields: Fields, optional: Fields = MappingProxyType({})
) -> list[str]:
    """Which ``fields`` are missing from ``data``, else which it and ``optional`` hold wrongly."""
    if absent := [name for name in fields if name not in data]:
        return [f"{', '.join(absent)} missing"]
    return [
        f"{name}={shown(data[name])} is not {text}"
        for name, (text, is_right) in {**fields, **optional}.items()
        if name in data and not _holds(is_right, data[name])
    ]


def shown(value: Any, length: int = 60) -> str:
    """``value`` as a message names it: at most ``length`` characters."""
    try:
        return f"{value!r:.{length}}"
    except ValueError:  # Python refuses to write thousands of digits
        is_int = isinstance(value, int)
        return f"an int of {value.bit_length()} bits" if is_int else f"a {type(value).__name__}"


def is_object(value: Any) -> bool:
    return type(value) is dict


def _holds(is_right: Callable[[Any], Any], value: Any) -> bool:
    # A foreign value may fail in any way, a spec of another version for one.
    try:
        return bool(is_right(value))
    except Exception:
        return False
