"""A whole run: which cells are still to be measured, and the measuring, cell by cell."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ..codegen.versions import build_versions, source_digest
from ..machine import cpu_features
from ..runtime.loader import Library
from . import restricted
from .cells import Cell
from .contender import OURS
from .cores import Usage, load_average, pinned
from .correctness import case_row, directions_of
from .document import Document, floor_key
from .floors import measure_floors
from .gpu_host import clocks, gpu_fields
from .host import describe, usable_cores
from .memory import memory_row
from .rows import timed
from .timing import Patience
from .verdicts import BUSY, rival


def described_host(device: str = "cpu") -> dict:
    """``describe()``, what ``device`` is, and the versions that a document must agree in."""
    host = describe().to_json()
    del host["threads"]  # each cell has its own
    return {**host, **build_versions(), **(gpu_fields() if device == "cuda" else {})}


def kernels_digest(library: Library | None = None) -> str:
    """Names the state of what is measured: of kernels' sources, or of a built library."""
    return (source_digest() if library is None else library.manifest.sha256)[:12]


def pending(
    document: Document,
    cells: Iterable[Cell],
    rerun: bool = False,
    stale: bool = False,
    kernels: str | None = None,
) -> list[Cell]:
    """The cells that are to be measured: those missing in ``document`` and those that failed.

    rerun: all of them. stale: also those that were measured with other kernels than ``kernels``
    (None: than today's).
    """
    kernels = kernels or kernels_digest()
    return [
        cell
        for cell in cells
        if rerun
        or not document.has(cell.key)
        or (stale and document.cells[cell.key]["kernels"] != kernels)
    ]


@dataclass
class Runner:
    """Measures cells into ``document``; what several cells share is made once."""

    document: Document
    patience: Patience
    quick: bool = False
    again: bool = False  # whether floors that the document holds are measured again
    library: Library | None = None  # loaded: the kernels that are measured; None: built when needed
    _fresh: set = field(default_factory=set)

    def run(self, cells: list[Cell]) -> Iterator[dict]:
        """Each cell as the document keeps it. One that fails carries "error", the rest go on."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        load = {"started": now, "load_average": load_average(), "cores": usable_cores()}
        if self.document.suite.device == "cuda":
            load["clocks"] = clocks()
        self.document.runs.append(load)
        with tempfile.TemporaryDirectory(prefix="tvm-flash-bench-") as folder:
            libraries = Libraries(cells, Path(folder), self.library)
            for cell in cells:
                self._ensure_floors(cell)
                measured = self._measured(cell, libraries)
                self.document.add(measured)
                yield self.document.judged(measured)

    def _ensure_floors(self, cell: Cell) -> None:
        """Measured once a run, unless the document has some from a quiet machine."""
        key = floor_key(cell.kind, cell.threads, cell.device)
        known = key in self._fresh or (self._quiet(key) and not self.again)
        refused = cell.kind == "avx2" and restricted.refusal()
        if known or cell.kind in ("memory", "case") or refused:
            return
        with cores_for(cell) as cores:
            start = Usage.now(cores)
            if cell.kind == "avx2":
                floors = restricted.restricted_floors(cell.threads, self.quick)
            elif cell.device == "cpu":
                floors = measure_floors(cell.threads, quick=self.quick).to_json()
            else:
                floors = measure_floors(
                    cell.threads, quick=self.quick, device=cell.device
                ).to_json()
            floors["others"] = Usage.now(cores).others_since(start, cores)
        self.document.floors[key] = floors
        self._fresh.add(key)

    def _quiet(self, key: tuple[int, str]) -> bool:
        floors = self.document.floors.get(key)
        return floors is not None and (floors["others"] or 0.0) <= BUSY

    def _measured(self, cell: Cell, libraries: Libraries) -> dict:
        described = cell_head(cell, kernels_digest(self.library))
        with cores_for(cell) as cores:
            start = Usage.now(cores)
            try:
                found = measured_cell(cell, self.patience, libraries)
            except Exception as error:  # hours of other cells must not be lost
                return {**described, "error": f"{type(error).__name__}: {error}"}
            others = Usage.now(cores).others_since(start, cores)
        return {**described, **found, "others": others, **verdict(cell, found, self.patience)}


def cores_for(cell: Cell) -> AbstractContextManager[list[int] | None]:
    """A context with as many cores as ``cell`` has threads; on GPUs all cores of the host."""
    return pinned(cell.threads) if cell.device == "cpu" else nullcontext()


class Libraries:
    """``loaded``, and the library of the restricted cells, built when the first of them comes."""

    def __init__(self, cells: list[Cell], folder: Path, loaded: Library | None = None):
        self.problems = [cell.problem for cell in cells if cell.kind == "avx2"]
        self.folder, self.path, self.loaded = folder, None, loaded

    def restricted(self) -> Path:
        """Its path."""
        if self.path is None:
            self.path = restricted.library_for(self.problems, self.folder)
        return self.path


def measured_cell(cell: Cell, patience: Patience, libraries: Libraries) -> dict:
    """Times, bytes or errors of ``cell``, on the present threads and cores."""
    if cell.kind == "case":
        return case_row(cell.listed_case(), libraries.loaded, cell.device)
    if cell.kind == "memory":
        return memory_row(cell.problem, cell.threads, cell.names)
    if cell.kind == "avx2":
        if refusal := restricted.refusal():
            return {"skipped": refusal}
        library = libraries.restricted()
        return restricted.restricted_row(cell.problem, library, cell.threads, patience, cell.names)
    if not {"forward", cell.direction} <= set(directions_of(cell.problem.spec, libraries.loaded)):
        return {"skipped": "the library has no kernel of this problem"}
    where = (cell.names, cell.device, cell.required)
    return timed(cell.problem, cell.direction, patience, *where).to_json()


def cell_head(cell: Cell, kernels: str = "") -> dict:
    """What is known of a cell before it is measured."""
    problem, target = cell.problem, cell.target
    return {
        "key": cell.key,
        "section": cell.section,
        "kind": cell.kind,
        "device": cell.device,
        "case": cell.case,
        **problem.to_json(),
        "direction": cell.direction,
        "threads": cell.threads,
        "flops": problem.flops(cell.direction),
        "least_bytes": problem.least_bytes(cell.direction),
        "target": target.ratio if target else None,
        "target_needs": target.feature or None if target else None,
        "kernels": kernels or kernels_digest(),
    }


def verdict(cell: Cell, found: dict, patience: Patience) -> dict:
    """Whether the target was met, whether it counts here, and whether the times are noisy."""
    if "ratio" not in found:
        return {}
    target, other = cell.target, rival(found)
    spreads = [found["spread"][name] for name in (OURS, other) if name]
    return {
        "met": found["ratio"][other] >= target.ratio if target else None,
        "counts": bool(target) and (not target.feature or target.feature in cpu_features()),
        "noisy": max(spreads) > patience.steady,
    }
