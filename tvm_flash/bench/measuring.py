"""The measuring of one cell, or of floors: in this process, or in one that may crash or hang."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import TvmFlashError
from ..runtime.loader import Library, load
from ..workers import Failure, Workers
from . import restricted
from .cells import Cell
from .correctness import case_row, directions_of, kernel_row
from .device import DEVICES
from .floors import measure_floors
from .memory import memory_row
from .rows import timed
from .timing import Patience

# Seconds that a cell may take in a process of its own, by its kind: kernels are run on small
# problems, whoever is timed may have to be compiled first.
LIMITS = {"kernel": 30.0, "case": 60.0, "time": 180.0, "floors": 120.0}
# What a GPU that is lost to its process answers, and answers from then on.
_LOST = "CUDA error"


class Libraries:
    """``loaded``, and the library of the restricted cells, built when the first of them comes."""

    def __init__(self, cells: Sequence[Cell], folder: Path, loaded: Library | None = None):
        self.problems = [cell.problem for cell in cells if cell.kind == "avx2"]
        self.folder, self.path, self.loaded = folder, None, loaded

    def restricted(self) -> Path:
        """Its path."""
        if self.path is None:
            self.path = restricted.library_for(self.problems, self.folder)
        return self.path


def measured_cell(cell: Cell, patience: Patience, libraries: Libraries) -> dict:
    """Times, bytes or errors of ``cell``, on the present threads and cores."""
    if cell.kind == "kernel":
        return kernel_row(cell.case, libraries.loaded, cell.device)
    if cell.kind == "case":
        return case_row(cell.listed_case(), libraries.loaded, DEVICES[cell.device].tensors)
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


def floors_of(cell: Cell, quick: bool) -> dict:
    """The floors that ``cell`` is compared with, on the present threads and cores."""
    if cell.kind == "avx2":
        return restricted.restricted_floors(cell.threads, quick)
    known = {} if cell.device == "cpu" else {"device": cell.device}
    return measure_floors(cell.threads, quick=quick, **known).to_json()


class Measurer(AbstractContextManager):
    """Measures ``cells`` with the kernels of the library at ``artifact`` (None: built if needed).

    quick: whether floors are taken in a moment.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        patience: Patience,
        quick: bool = False,
        artifact: Path | None = None,
    ):
        self.cells, self.patience, self.quick, self.artifact = cells, patience, quick, artifact

    @abstractmethod
    def cell(self, cell: Cell) -> dict:
        """What a document says of ``cell``; raises what goes wrong."""

    @abstractmethod
    def floors(self, cell: Cell) -> dict:
        """The floors that ``cell`` is compared with; raises what goes wrong."""


class Here(Measurer):
    """In this process."""

    def __enter__(self) -> Here:
        self._folder = tempfile.TemporaryDirectory(prefix="tvm-flash-bench-")
        loaded = None if self.artifact is None else load(self.artifact)
        self._libraries = Libraries(self.cells, Path(self._folder.name), loaded)
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def cell(self, cell: Cell) -> dict:
        """As ``Measurer.cell``."""
        return measured_cell(cell, self.patience, self._libraries)

    def floors(self, cell: Cell) -> dict:
        """As ``Measurer.floors``."""
        return floors_of(cell, self.quick)


class Apart(Measurer):
    """In a process of its own, which takes the device with it when that is lost.

    A kernel that faults, or never ends, costs its own cell, and a few seconds for the next process.
    Raises HardwareFailure where none starts.
    """

    def __enter__(self) -> Apart:
        device = self.cells[0].device
        self._workers = Workers(_call, 1, prepare=partial(_open, self.artifact, device))
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.close()

    def cell(self, cell: Cell) -> dict:
        """As ``Measurer.cell``; raises TvmFlashError for a process that failed."""
        found = self._answer(LIMITS[cell.kind], _measured_there, cell, self.patience)
        broken = any(_LOST in reason for reason in found.get("missing", {}).values())
        # What a wrong kernel wrote, and where, nobody knows.
        if broken or found.get("right") is False:
            self._workers.renew()
        return found

    def floors(self, cell: Cell) -> dict:
        """As ``Measurer.floors``."""
        return self._answer(LIMITS["floors"], floors_of, cell, self.quick)

    def _answer(self, seconds: float, function: Callable, *arguments: Any) -> dict:
        ((_, answer),) = self._workers.map([(function, *arguments)], seconds)
        if isinstance(answer, Failure):
            raise CellFailed(f"{answer.outcome}: {answer.note}")
        return answer


class CellFailed(TvmFlashError):
    """The process that measured a cell crashed, or was stopped because it took too long."""


# The library that a process which measures was started with.
_opened: list[Library] = []


def _open(artifact: Path | None, device: str) -> None:
    DEVICES[device].wait()  # which raises where the device is lost
    if artifact is not None:
        _opened.append(load(artifact))


def _call(function: Callable, *arguments: Any) -> Any:
    return function(*arguments)


def _measured_there(cell: Cell, patience: Patience) -> dict:
    loaded = _opened[-1] if _opened else None
    return measured_cell(cell, patience, Libraries([cell], Path(), loaded))
