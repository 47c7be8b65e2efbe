"""What suites are made of: cells, each a problem, a direction, threads and a ratio to reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..artifact.library import Manifest, symbol_name
from ..cases import CORRECTNESS, Case
from .problems import Problem
from .timing import Patience

PAIR = ("tvm_flash", "sdpa")
MASKS = (False, True)


@dataclass(frozen=True)
class Target:
    """The time of SDPA, or of the fastest other, over ours is to be at least ``ratio``.

    feature: on CPUs that have it.
    """

    ratio: float
    feature: str = ""


@dataclass(frozen=True)
class Cell:
    """One measurement. kind: "time"; "avx2", the same under AVX2 alone; "memory"; "case"; "kernel"
    and "search", of what was built before.

    case: of kind "case", the name of a case of ``cases.CORRECTNESS`` whose results are checked; of
    "kernel" the symbol of one that is; of "search" that of the kernels that are compared.
    required: without whom, where they are among ``names``, there is no measurement.
    """

    section: str
    problem: Problem
    direction: str  # one of DIRECTIONS; of memory and cases "forward_backward"
    threads: int
    target: Target | None = None
    names: tuple[str, ...] = PAIR
    kind: str = "time"
    device: str = "cpu"
    case: str = ""
    required: tuple[str, ...] = PAIR

    def listed_case(self) -> Case:
        """The case that ``case`` names."""
        return next(case for case in CORRECTNESS if case.name == self.case)

    @property
    def key(self) -> str:
        """Readable, and unique in a suite."""
        what = self.case or f"{self.problem.name} {self.direction}"
        return f"{self.section}: {what} {place(self.threads, self.device)}"


def place(threads: int, device: str = "cpu") -> str:
    """Where a cell runs, in words: the device, or a CPU's threads."""
    return f"{threads} thread" + "s" * (threads > 1) if device == "cpu" else device


@dataclass(frozen=True)
class Built:
    """What was built before: the manifests of a library, and of candidates of searches."""

    library: Manifest | None = None
    candidates: Manifest | None = None

    @property
    def searches(self) -> dict[str, int]:
        """How many candidates there are for each kernel, by its symbol."""
        kernels = self.candidates.kernels if self.candidates else ()
        return dict(Counter(symbol_name(kernel.spec, kernel.direction) for kernel in kernels))


NOTHING_BUILT = Built()


@dataclass(frozen=True)
class Section:
    """A titled list of cells; ``cells(threads)`` makes those of one number of threads.

    only_most: whether it is measured on the largest number of threads alone.
    """

    name: str
    title: str
    cells: Callable[[int], Iterator[Cell]]
    only_most: bool = False

    def listed(self, threads: Sequence[int], built: Built) -> Iterator[Cell]:
        """Its cells, for each number in ``threads``."""
        for number in [max(threads)] if self.only_most else sorted(threads):
            yield from self.cells(number)


@dataclass(frozen=True)
class BuiltSection:
    """A titled list of cells that ``cells`` makes of what was built."""

    name: str
    title: str
    cells: Callable[[Built], Iterator[Cell]]

    def listed(self, threads: Sequence[int], built: Built) -> Iterator[Cell]:
        """Its cells."""
        return self.cells(built)


@dataclass(frozen=True)
class Suite:
    """Sections, how patiently their cells are measured, and the device of all of them."""

    name: str
    sections: tuple[Section | BuiltSection, ...]
    patience: Patience
    device: str = "cpu"

    def cells(self, threads: Sequence[int], built: Built = NOTHING_BUILT) -> list[Cell]:
        """All of them, section by section."""
        return [
            replace(cell, device=self.device)
            for section in self.sections
            for cell in section.listed(threads, built)
        ]
