"""The document of a run (format 2, benchmarks/README.md): continued, judged, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..artifact.folder import read_file, replacing
from ..errors import TvmFlashError
from ..json_fields import Fields, field_problems, is_object
from ..schedules.line_fields import is_text
from .cells import Suite

FORMAT = 2
# Bytes that are read of one.
_LIMIT = 2**28

# A run continues a file only where all of these are the same.
MACHINE = ("cpu", "features", "system", "gpu")
SOFTWARE = ("python", "torch", "tvm", "tvm_ffi", "tvm_flash", "driver", "versions")


class Document:
    """Everything measured so far, and the file that keeps it (None: nothing is kept)."""

    def __init__(self, suite: Suite, host: dict, path: Path | None = None):
        self.suite, self.host, self.path = suite, host, path
        self.runs: list[dict] = []
        self.floors: dict[tuple[int, str], dict] = {}
        self.cells: dict[str, dict] = {}

    @classmethod
    def opened(cls, path: Path | None, suite: Suite, host: dict) -> Document:
        """A new document, or the one at ``path``, which must be of this suite and machine.

        Raises TvmFlashError with what is different.
        """
        document = cls(suite, host, path)
        if path is None or not path.exists():
            return document
        data = read(path)
        reasons = differences(data, suite.name, host)
        if reasons:
            raise TvmFlashError(
                f"{path} cannot be continued: {'; '.join(reasons)}. "
                "Name another file, or remove this one to measure everything again"
            )
        document.host = data["host"]
        document.runs = data["runs"]
        document.floors = {(floor["threads"], floor["isa"]): floor for floor in data["floors"]}
        document.cells = {cell["key"]: cell for cell in data["cells"]}
        return document

    def has(self, key: str) -> bool:
        """Whether a cell was measured, without an error."""
        return key in self.cells and "error" not in self.cells[key]

    def add(self, cell: dict) -> None:
        """Put ``cell`` in the place of an older one of its key, and write the file."""
        self.cells[cell["key"]] = cell
        self.write()

    def to_json(self) -> dict:
        """The whole; cells carry what follows from the floors."""
        return {
            "format": FORMAT,
            "suite": self.suite.name,
            "sections": {section.name: section.title for section in self.suite.sections},
            "host": self.host,
            "runs": self.runs,
            "floors": list(self.floors.values()),
            "cells": [self.judged(cell) for cell in self.cells.values()],
        }

    def judged(self, cell: dict) -> dict:
        """``cell`` with its share of the floors, ``floor_seconds``, ``of_floor`` and "bound"."""
        floor = self.floors.get(floor_key(cell["kind"], cell["threads"], cell.get("device", "cpu")))
        if floor is None or "tvm_flash" not in cell.get("seconds", ()):
            return cell
        rates = floor["matmul_gflops"]
        # Where a dtype has no products of its own, float32's are the better way: the faster is what
        # no kernel beats.
        rate = max(rates[name] for name in {cell["dtype"], "float32"} & set(rates))
        seconds = {
            "matmul": cell["flops"] / rate / 1e9,
            "copy": cell["least_bytes"] / floor["copy_gbytes"] / 1e9,
        }
        bound = max(seconds, key=seconds.__getitem__)
        of_floor = seconds[bound] / cell["seconds"]["tvm_flash"]
        return {**cell, "floor_seconds": seconds, "bound": bound, "of_floor": of_floor}

    def write(self) -> None:
        """The file, at once or not at all."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        with replacing(self.path) as draft:
            draft.write_text(text + "\n", encoding="utf-8")


def floor_key(kind: str, threads: int, device: str = "cpu") -> tuple[int, str]:
    """The floors that a cell is compared with: a document's "threads" and "isa"."""
    if device != "cpu":
        return threads, device
    return threads, "avx2" if kind == "avx2" else "host"


def read(path: Path) -> dict:
    """A document of this format. Raises TvmFlashError with the reason it is none."""
    try:
        data = json.loads(read_file(path, _LIMIT).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise TvmFlashError(f"{path} is not a document of `tvm-flash bench`: {error}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise TvmFlashError(
            f"{path} has format {found!r:.60}, this release reads and writes {FORMAT}"
        )
    if missing := _FIELDS.keys() - data.keys():
        raise TvmFlashError(f"{path} lacks {', '.join(sorted(missing))}")
    if problems := field_problems(data, _FIELDS):
        raise TvmFlashError(f"{path} is not a document of `tvm-flash bench`: {problems[0]}")
    return data


def _are_objects(value: Any) -> bool:
    return type(value) is list and all(map(is_object, value))


_FIELDS: Fields = {
    "suite": ("the name of a suite", is_text),
    "sections": ("an object", is_object),
    "host": ("an object", is_object),
    "runs": ("a list of objects", _are_objects),
    "floors": ("a list of objects", _are_objects),
    "cells": ("a list of objects", _are_objects),
}


def differences(data: dict, suite: str, host: dict) -> list[str]:
    """Why a run of ``suite`` on ``host`` does not belong into the document ``data``."""
    theirs = data["host"]
    reasons = [
        f"it was measured with {name} {theirs.get(name)}, here is {host.get(name)}"
        for name in (*MACHINE, *SOFTWARE)
        if theirs.get(name) != host.get(name)
    ]
    if data["suite"] != suite:
        reasons.insert(0, f"it holds the suite {data['suite']}, not {suite}")
    return reasons


def holds(path: Path) -> dict | None:
    """The document at ``path``, or None when it is something else or of another format."""
    try:
        return read(path)
    except TvmFlashError:
        return None
