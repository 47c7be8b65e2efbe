"""Lines of a tuning log: what they must hold, and a reader that skips what they must not."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..artifact.library import DIRECTIONS
from ..json_fields import Fields, field_problems, is_object
from ..problem.lengths import FORWARD_BUCKETS, buckets_of
from ..problem.spec import AttentionSpec
from .config_fields import config_problems
from .line_fields import (
    SIZES,
    are_sizes,
    are_times,
    is_count,
    is_name,
    is_number,
    is_number_or_null,
    is_text,
)
from .record_headers import SPLIT, WHOLE, Headers, is_header, split

logger = logging.getLogger("tvm_flash")

OUTCOMES = ("ok", "wrong", "spill", "invalid", "crash", "timeout")
# Why something was measured; tuning_logs/README.md says what each means.
STAGES = ("start", "recorded", "trial", "confirm", "final")


def log_name(spec: AttentionSpec) -> str:
    """Name of the file that holds the records for ``spec``: its other features share them."""
    width = f"v{spec.head_dim_v}" * (spec.head_dim_v != spec.head_dim)
    return f"{spec.dtype}_d{spec.head_dim}{width}{'_causal' * spec.causal}.jsonl"


def read(path: Path, wanted: Callable[[str], Any] = bool) -> Iterator[dict[str, Any]]:
    """The valid records of the log ``path``, of the lines whose text is ``wanted``.

    A record is whole, whether its line is or the header of its search stands by itself. Corrupt
    and foreign lines, and a file that cannot be read, are skipped with one warning.
    """
    skipped = []
    for number, line, problems in checked(path, wanted):
        if problems:
            skipped.append(f"line {number}: {problems[0]}")
        else:
            yield line
    if skipped:
        warn_once(path, f"{len(skipped)} lines are skipped ({skipped[0]})")


def checked(
    path: Path, wanted: Callable[[str], Any] = bool, *, in_place: bool = True
) -> Iterator[tuple[int, Any, list[str]]]:
    """Number, record and problems (none: valid) of the lines of ``path`` that are ``wanted``.

    in_place: whether a line of another file is a problem. Headers are not told, but for bad ones.
    """
    headers, lines = Headers(), []
    for number, text in enumerate(_lines(path), 1):
        if not is_header(text):
            lines.append((number, text))
        elif problems := headers.add(header := _decoded(text)):
            yield number, header, problems
    for number, text in lines:
        if text.strip() and wanted(text):
            record = headers.join(_decoded(text))
            yield number, record, line_problems(record, path if in_place else None)


def append(folder: Path, record: Mapping[str, Any]) -> Path:
    """Add ``record``, a whole one, to its log under ``folder`` (tuning_logs/); return that file.

    The header of its search is written where the file lacks it. Raises ValueError for a record that
    ``read`` would skip, OSError when it cannot be written in full. Several processes may append at
    once; a line that a crash or a full disk cut off is closed first, so that it costs nothing but
    itself.
    """
    spec = AttentionSpec.from_json(record["spec"])
    path = folder / record["target"] / log_name(spec)
    if problems := line_problems(dict(record), path):
        raise ValueError(f"{path}: {'; '.join(problems)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    header, line = (json.dumps(part, sort_keys=True).encode() + b"\n" for part in split(record))
    with path.open("ab+", buffering=0) as log:
        log.seek(0)
        there = b"\n" + log.read()
        text = (b"" if there.endswith(b"\n") else b"\n") + header * (b"\n" + header not in there)
        written = log.write(text + line)
    if written < len(text + line):  # what room there was is taken, without an error
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return path


def line_problems(line: Any, path: Path | None = None) -> list[str]:
    """What is wrong with ``line``, a record decoded from the log ``path`` (empty: nothing)."""
    if isinstance(line, Exception):
        return [f"it is not JSON ({line})"]
    if not isinstance(line, dict):
        return [f"it is a {type(line).__name__}, not an object"]
    if line.get("format") == SPLIT:
        return [f"the header of its search, {line.get('search')!r:.60}, is not in the file"]
    if line.get("format") != WHOLE:
        return [f"format={line.get('format')!r:.60}, this version reads {WHOLE} and {SPLIT}"]
    wrong = field_problems(line, _FIELDS, _OPTIONAL)
    wrong = wrong or [p for n in _CONFIGS if n in line for p in config_problems(line[n])]
    return wrong or [*_contradictions(line), *_misplaced(line, path)]


def moment(text: str) -> datetime:
    """An ISO 8601 date and time with its offset from UTC."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC")
    return found


def _lines(path: Path) -> list[str]:
    try:
        if stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, for ever
            return path.read_text(encoding="utf-8", errors="replace").split("\n")
        warn_once(path, "is no file")
    except OSError as error:
        warn_once(path, f"cannot be read ({error.strerror})")
    return []


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return error


@lru_cache(maxsize=256)
def warn_once(path: Path, message: str) -> None:
    """Log ``message`` about ``path``, the first time."""
    logger.warning("tuning log %s: %s", path, message)


# Every record has all of these; others may follow them.
_FIELDS: Fields = {
    "target": ("the name of a target", is_name),
    "cpu": ("the name of a CPU", is_text),
    "spec": ("a spec", AttentionSpec.from_json),
    "direction": (f"one of {', '.join(DIRECTIONS)}", DIRECTIONS.__contains__),
    "bucket": (f"one of {', '.join(FORWARD_BUCKETS)}", FORWARD_BUCKETS.__contains__),
    "problem": (f"positive {', '.join(SIZES)}", are_sizes),
    "config": ("a config with its schedule", lambda config: is_text(config["schedule"])),
    "outcome": (f"one of {', '.join(OUTCOMES)}", OUTCOMES.__contains__),
    "seconds": ("a list of times", are_times),
    "incumbent_seconds": ("a list of times", are_times),
    "error": ("a number or null", is_number_or_null),
    "allowed": ("a number or null", is_number_or_null),
    "strategy": ("the name of a strategy", is_text),
    "seed": ("a count", is_count),
    "trial": ("a count", is_count),
    "date": ("a date and time with its offset from UTC", moment),
    "versions": ("an object", is_object),
    "machine": ("an object", is_object),
}
_CONFIGS = ("config", "incumbent")
# Absent from records of earlier releases.
_OPTIONAL: Fields = {
    "stage": (f"one of {', '.join(STAGES)}", STAGES.__contains__),
    "incumbent": ("a config with its schedule", lambda config: is_text(config["schedule"])),
    "cost_model": ("the name of a cost model", is_text),
    "sources": ("a digest", is_text),
    "wall": ("a number of seconds", is_number),
    "resources": ("an object", is_object),
    "note": ("text", is_text),
}


def _contradictions(line: Mapping[str, Any]) -> list[str]:
    """Values that are right alone and wrong together."""
    outcome, best, bucket = line["outcome"], line.get("best", False), line["bucket"]
    error, allowed = line["error"], line["allowed"]
    ok, judged = outcome == "ok", error is not None and allowed is not None
    checks = [
        (type(best) is not bool, f"best={best!r} is not true or false"),
        (best is True and not ok, f"best with {outcome=}"),
        (ok and not line["seconds"], "outcome='ok' without seconds"),
        (ok and not judged, "outcome='ok' without error and allowed"),
        (ok and judged and error > allowed, f"outcome='ok' with {error=} above {allowed=}"),
        (
            bucket not in buckets_of(line["direction"]),
            f"{bucket=} is none of direction={line['direction']!r}",
        ),
    ]
    return [text for wrong, text in checks if wrong]


def _misplaced(line: Mapping[str, Any], path: Path | None) -> list[str]:
    """A line's file is where its config would be looked for."""
    place = f"{line['target']}/{log_name(AttentionSpec.from_json(line['spec']))}"
    if path is None or Path(place).parts == path.parts[-2:]:
        return []
    return [f"it belongs in {place}"]
