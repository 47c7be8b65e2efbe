"""A whole run: which cells are still to be measured, and the measuring, cell by cell."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ..artifact.library import Manifest
from ..codegen.versions import build_versions, source_digest
from ..errors import HardwareFailure
from ..machine import cpu_features
from . import restricted
from .cells import NOTHING_BUILT, Built, Cell
from .contender import OURS
from .cores import Usage, load_average, pinned
from .device import DEVICES
from .document import Document, floor_key
from .host import describe, usable_cores
from .measuring import Apart, CellFailed, Here, Measurer
from .timing import Patience
from .verdicts import BUSY, rival, state

# Kinds of cells that are compared with no floor.
_UNTIMED = ("memory", "case", "kernel", "search")


def described_host(device: str = "cpu") -> dict:
    """``describe()``, what ``device`` is, and the versions that a document must agree in."""
    host = describe().to_json()
    del host["threads"]  # each cell has its own
    return {**host, **build_versions(), **DEVICES[device].fields()}


def kernels_digest(library: Manifest | None = None) -> str:
    """Names the state of what is measured: of kernels' sources, or of a built library."""
    return (source_digest() if library is None else library.sha256)[:12]


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
    """Measures cells into ``document``; what several cells share is made once.

    again: whether floors that the document holds are measured again. artifact: a library whose
    kernels are measured (None: they are built when needed), of which ``built`` has the manifest.
    seconds: after which no cell begins. elsewhere: who measures cells of other kinds.
    """

    document: Document
    patience: Patience
    quick: bool = False
    again: bool = False
    artifact: Path | None = None
    built: Built = NOTHING_BUILT
    seconds: float | None = None
    elsewhere: Mapping[str, Callable[[Cell], dict]] = field(default_factory=dict)
    _fresh: set = field(default_factory=set)

    def run(self, cells: list[Cell]) -> Iterator[dict]:
        """Each cell as the document keeps it. One that fails carries "error", the rest go on.

        Raises HardwareFailure where nothing can be measured any more.
        """
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        load = {"started": now, "load_average": load_average(), "cores": usable_cores()}
        device = self.document.suite.device
        self.document.runs.append({**load, **DEVICES[device].state()})
        kind = Here if device == "cpu" else Apart
        began = time.monotonic()
        with kind(cells, self.patience, self.quick, self.artifact) as measurer:
            for cell in cells:
                if self.seconds is not None and time.monotonic() - began > self.seconds:
                    return
                self._ensure_floors(cell, measurer)
                measured = self._measured(cell, measurer)
                self.document.add(measured)
                yield self.document.judged(measured)

    def _ensure_floors(self, cell: Cell, measurer: Measurer) -> None:
        """Measured once a run, unless the document has some from a quiet machine."""
        key = floor_key(cell.kind, cell.threads, cell.device)
        known = key in self._fresh or (self._quiet(key) and not self.again)
        refused = cell.kind == "avx2" and restricted.refusal()
        if known or cell.kind in _UNTIMED or refused:
            return
        self._fresh.add(key)
        with cores_for(cell) as cores:
            start = Usage.now(cores)
            try:
                floors = measurer.floors(cell)
            except CellFailed as error:  # cells are worth something without them
                self.document.runs[-1]["no_floors"] = str(error)
                return
            floors["others"] = _others(cell, start, cores)
        self.document.floors[key] = floors

    def _quiet(self, key: tuple[int, str]) -> bool:
        floors = self.document.floors.get(key)
        return floors is not None and (floors["others"] or 0.0) <= BUSY

    def _measured(self, cell: Cell, measurer: Measurer) -> dict:
        described = cell_head(cell, kernels_digest(self.built.library))
        if wrong := self._wrong_kernel(cell):
            return {**described, "skipped": f"{wrong} breaks the error rule, or could not be run"}
        measure = self.elsewhere.get(cell.kind, measurer.cell)
        with cores_for(cell) as cores:
            start = Usage.now(cores)
            try:
                found = measure(cell)
            except HardwareFailure:
                raise
            except Exception as error:  # hours of other cells must not be lost
                return {**described, "error": f"{type(error).__name__}: {error}"}
            others = _others(cell, start, cores)
        return {**described, **found, "others": others, **verdict(cell, found, self.patience)}

    def _wrong_kernel(self, cell: Cell) -> str:
        """Kernels that ``cell`` would time, and that are known to be wrong; "": none is."""
        if cell.kind != "time" or self.built.library is None:
            return ""
        directions = {"forward", cell.direction}
        if cell.problem.queries < cell.problem.seqlen:
            directions.add("forward_split")
        wrong = {
            one["case"]
            for one in self.document.cells.values()
            if one["kind"] == "kernel" and state(one) in ("wrong", "failed")
        }
        used = (k for k in self.built.library.kernels if k.spec == cell.problem.spec)
        found = [k.symbol for k in used if k.direction in directions and k.symbol in wrong]
        return ", ".join(found)


def cores_for(cell: Cell) -> AbstractContextManager[list[int] | None]:
    """A context with as many cores as ``cell`` has threads; on GPUs all cores of the host."""
    return pinned(cell.threads) if cell.device == "cpu" else nullcontext()


def _others(cell: Cell, start: Usage, cores: list[int] | None) -> float | None:
    """The share of the cores that others took; unknown where another process measures."""
    return Usage.now(cores).others_since(start, cores) if cell.device == "cpu" else None


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
