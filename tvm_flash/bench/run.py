"""A whole run: which cells are still to be measured, and the measuring, cell by cell."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..codegen.versions import build_versions, source_digest
from ..machine import cpu_features
from . import restricted
from .cores import Usage, load_average, pinned
from .document import Document
from .floors import measure_floors
from .host import describe, usable_cores
from .memory import memory_row
from .rows import timed
from .suite import Cell
from .timing import Patience
from .verdicts import BUSY


def described_host() -> dict:
    """``describe()`` and the versions that a document must agree in."""
    host = describe().to_json()
    del host["threads"]  # each cell has its own
    return {**host, **build_versions()}


def kernels_digest() -> str:
    """Names the state of the sources that kernels are made of."""
    return source_digest()[:12]


def pending(
    document: Document, cells: Iterable[Cell], rerun: bool = False, stale: bool = False
) -> list[Cell]:
    """Those of ``cells`` to measure: the missing and the failed; with ``rerun`` all, with ``stale``
    also those that were measured with other kernels than today's."""
    return [
        cell
        for cell in cells
        if rerun
        or not document.has(cell.key)
        or (stale and document.cells[cell.key]["kernels"] != kernels_digest())
    ]


@dataclass
class Runner:
    """Measures cells into ``document``; what several cells share is made once."""

    document: Document
    patience: Patience
    quick: bool = False
    again: bool = False  # whether floors that the document holds are measured again
    _fresh: set = field(default_factory=set)

    def run(self, cells: list[Cell]) -> Iterator[dict]:
        """Each cell as the document keeps it. One that fails carries "error", the rest go on."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        load = {"started": now, "load_average": load_average(), "cores": usable_cores()}
        self.document.runs.append(load)
        with tempfile.TemporaryDirectory(prefix="tvm-flash-bench-") as folder:
            libraries = Libraries(cells, Path(folder))
            for cell in cells:
                self._ensure_floors(cell)
                measured = self._measured(cell, libraries)
                self.document.add(measured)
                yield self.document.judged(measured)

    def _ensure_floors(self, cell: Cell) -> None:
        """Measured once a run, unless the document has some from a quiet machine."""
        key = (cell.threads, restricted.ISA if cell.kind == "avx2" else "host")
        known = key in self._fresh or (self._quiet(key) and not self.again)
        if known or cell.kind == "memory" or (cell.kind == "avx2" and restricted.refusal()):
            return
        with pinned(cell.threads) as cores:
            start = Usage.now(cores)
            if cell.kind == "avx2":
                floors = restricted.restricted_floors(cell.threads, self.quick)
            else:
                floors = measure_floors(cell.threads, quick=self.quick).to_json()
            floors["others"] = Usage.now(cores).others_since(start, cores)
        self.document.floors[key] = floors
        self._fresh.add(key)

    def _quiet(self, key: tuple[int, str]) -> bool:
        floors = self.document.floors.get(key)
        return floors is not None and (floors["others"] or 0.0) <= BUSY

    def _measured(self, cell: Cell, libraries: Libraries) -> dict:
        described = cell_head(cell)
        with pinned(cell.threads) as cores:
            start = Usage.now(cores)
            try:
                found = measured_cell(cell, self.patience, libraries)
            except Exception as error:  # hours of other cells must not be lost
                return {**described, "error": f"{type(error).__name__}: {error}"}
            others = Usage.now(cores).others_since(start, cores)
        return {**described, **found, "others": others, **verdict(cell, found, self.patience)}


class Libraries:
    """The library of the restricted cells, built when the first of them comes."""

    def __init__(self, cells: list[Cell], folder: Path):
        self.problems = [cell.problem for cell in cells if cell.kind == "avx2"]
        self.folder, self.path = folder, None

    def restricted(self) -> Path:
        """Its path."""
        if self.path is None:
            self.path = restricted.library_for(self.problems, self.folder)
        return self.path


def measured_cell(cell: Cell, patience: Patience, libraries: Libraries) -> dict:
    """Times or bytes of ``cell``, on the present threads and cores."""
    if cell.kind == "memory":
        return memory_row(cell.problem, cell.threads, cell.names)
    if cell.kind == "avx2":
        if refusal := restricted.refusal():
            return {"skipped": refusal}
        library = libraries.restricted()
        return restricted.restricted_row(cell.problem, library, cell.threads, patience, cell.names)
    return timed(cell.problem, cell.direction, patience, cell.names).to_json()


def cell_head(cell: Cell) -> dict:
    """What is known of a cell before it is measured."""
    problem, target = cell.problem, cell.target
    return {
        "key": cell.key,
        "section": cell.section,
        "kind": cell.kind,
        **problem.to_json(),
        "direction": cell.direction,
        "threads": cell.threads,
        "flops": problem.flops(cell.direction),
        "least_bytes": problem.least_bytes(cell.direction),
        "target": target.ratio if target else None,
        "target_needs": target.feature or None if target else None,
        "kernels": kernels_digest(),
    }


def verdict(cell: Cell, found: dict, patience: Patience) -> dict:
    """Whether the target was met, whether it counts here, and whether the times are noisy."""
    if "ratio" not in found:
        return {}
    target = cell.target
    return {
        "met": found["ratio"]["sdpa"] >= target.ratio if target else None,
        "counts": bool(target) and (not target.feature or target.feature in cpu_features()),
        "noisy": max(found["spread"][name] for name in ("tvm_flash", "sdpa")) > patience.steady,
    }
