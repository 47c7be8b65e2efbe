"""What all lines of one search share stands once in its log: split into a header, and joined."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# A record that is one line, and one whose search's header is a line of its own.
WHOLE, SPLIT = 1, 2

# Which search a record is of. Where all are equal, it is a step of the same one; ``sources`` and
# ``versions`` too, since other code may be right where this was wrong.
IDENTITY = (
    "target", "cpu", "spec", "direction", "bucket", "problem", "strategy", "seed", "versions",
    "sources",
)  # fmt: skip
_SHARED = (*IDENTITY, "cost_model", "machine")


def search_of(record: Mapping[str, Any]) -> str:
    """Equal for records of the same search."""
    return _text({name: record.get(name) for name in IDENTITY})


def split(record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two lines of a whole ``record``: the header of its search, and what is its own."""
    shared = {name: record[name] for name in _SHARED if name in record}
    own = {name: record[name] for name in record if name not in shared}
    name = _name(shared)
    return {**shared, "format": SPLIT, "header": name}, {**own, "format": SPLIT, "search": name}


def is_header(text: str) -> bool:
    """Whether the line ``text`` of a log is a header, not decoded."""
    return '"header"' in text


class Headers:
    """The headers of one log."""

    def __init__(self) -> None:
        self._shared: dict[str, dict[str, Any]] = {}

    def add(self, line: Any) -> list[str]:
        """Take a decoded header; what is wrong with it (nothing: it is taken)."""
        if isinstance(line, Exception):
            return [f"it is not JSON ({line})"]
        if not isinstance(line, dict) or line.get("format") != SPLIT:
            return ["it is no header"]
        name = line.get("header")
        shared = {key: value for key, value in line.items() if key not in ("format", "header")}
        if name != _name(shared):
            return [f"header {name!r:.60} is not the name of what it holds"]
        self._shared[name] = shared
        return []

    def join(self, line: Any) -> Any:
        """The whole record of a decoded ``line``; ``line`` itself where it has no header here."""
        if not isinstance(line, dict) or line.get("format") != SPLIT:
            return line
        name = line.get("search")
        shared = self._shared.get(name) if isinstance(name, str) else None
        if shared is None:
            return line
        own = {key: value for key, value in line.items() if key != "search"}
        return {**own, **shared, "format": WHOLE}


def _name(shared: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(shared).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
