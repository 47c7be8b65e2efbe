"""``tvm-flash bench``: our kernels beside torch's SDPA, timed in turns, judged by their targets."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import TvmFlashError, UnsupportedSpec
from .console import PLAIN, console, notes, progress, refuse_unwritable
from .error_text import one_line
from .json_output import AsJson, print_json
from .show_table import show
from .streams import INTERRUPTED

if TYPE_CHECKING:
    from ..bench import Cell, Document, Suite
    from ..bench.table import Table
    from ..runtime.loader import Library


class SuiteName(str, Enum):
    """What is measured: bench/suite.py."""

    cpu = "cpu"
    short = "short"
    quick = "quick"
    sequences = "sequences"
    gpu = "gpu"
    gpu_quick = "gpu-quick"


def bench(
    suite: Annotated[
        SuiteName,
        typer.Option(
            metavar="SUITE",
            help="cpu: everything, an hour or two. short: minutes. quick: a few cells. sequences: "
            "packed, paged and cached ones, minutes. gpu: the error rule and times on a CUDA "
            "device. gpu-quick: a part of that.",
        ),
    ] = SuiteName.short,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="Keep all cells here, as JSON; a file of the same suite is continued.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the ratios into this file.")
    ] = None,
    artifact: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A built library to measure: neither TVM nor a compiler is needed then.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The suite quick, or gpu-quick of --suite gpu.")
    ] = False,
    match: Annotated[
        str, typer.Option(metavar="TEXT", help="Only cells whose key contains this.")
    ] = "",
    threads: Annotated[
        str, typer.Option(metavar="N,...", help="Numbers of threads. Default: 1,2.")
    ] = "",
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Measure again the cells that the file has.")
    ] = False,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Measure again the cells of kernels that have changed since."),
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long to go on with a noisy cell. Default: 12 in the suite cpu.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time attention beside torch's SDPA, with this machine's floors and our targets.

    Cells that --out FILE holds are kept, so that an interrupted run goes on.

    Exit status 1: a result breaks the error rule, which GPU suites check first.
    """
    from .. import bench as library

    chosen = library.SUITES[_suite_name(suite.value, quick)]
    _refuse_device(chosen.device)
    numbers = _threads(threads) if chosen.device == "cpu" else [1]
    cells = [cell for cell in chosen.cells(numbers) if match in cell.key]
    if not cells:
        key = chosen.cells(numbers)[0].key
        raise UnsupportedSpec(
            [f"no cell of the suite {chosen.name} matches {match!r}; a key looks like {key!r}"]
        )
    _refuse_plot(plot)
    loaded = _loaded(artifact)
    document, pending = _opened(out, chosen, cells, loaded, rerun, stale)
    notes.print(library.sentence(document.host), **PLAIN)
    came_to_end = _measure(document, chosen, pending, loaded, budget, rerun)
    if as_json:
        print_json(document.to_json())
    else:
        _print(document, cells)
    if out is not None and out.is_file():  # not one that was stopped in its first cell
        notes.print(f"kept in {out}", **PLAIN)
    if plot is not None:
        from ..bench.plot import draw

        draw(document.to_json(), plot)
        notes.print(f"drawn in {plot}", **PLAIN)
    if not came_to_end:
        raise typer.Exit(INTERRUPTED)
    if _any_wrong(document, cells):
        raise typer.Exit(1)


def _suite_name(name: str, quick: bool) -> str:
    if not quick:
        return name
    if name == "sequences":
        raise ValueError("--quick is of other suites: take a part of sequences by --match")
    return "gpu-quick" if name.startswith("gpu") else "quick"


def _refuse_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise TvmFlashError("no CUDA device: torch.cuda.is_available() is False")


def _loaded(artifact: Path | None) -> Library | None:
    from ..runtime.loader import load

    return None if artifact is None else load(artifact)


def _any_wrong(document: Document, cells: list[Cell]) -> bool:
    from ..bench.verdicts import state

    found = (document.cells.get(cell.key) for cell in cells)
    return any(cell is not None and state(cell) == "wrong" for cell in found)


def _opened(
    path: Path | None,
    suite: Suite,
    cells: list[Cell],
    loaded: Library | None,
    rerun: bool,
    stale: bool,
) -> tuple[Document, list[Cell]]:
    """The document, and what is to be measured for it.

    Raises TvmFlashError for a file that could not be shown at the end: before an hour, not after.
    """
    from .. import bench as library

    host, kernels = library.described_host(suite.device), library.kernels_digest(loaded)
    try:
        document = library.Document.opened(path, suite, host)
        library.sentence(document.host)
        _shown(document, cells)
        return document, library.pending(document, cells, rerun, stale, kernels)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise TvmFlashError(
            f"{path} is not a whole document of `tvm-flash bench` ({one_line(error)}): "
            "name another file, or remove this one to measure everything again"
        ) from error


def _measure(
    document: Document,
    suite: Suite,
    cells: list[Cell],
    loaded: Library | None,
    budget: float | None,
    rerun: bool,
) -> bool:
    """Measure ``cells`` into ``document``, and whether it came to the end: an interruption keeps
    what there is."""
    from dataclasses import replace

    from ..bench import Runner

    patience = suite.patience if budget is None else replace(suite.patience, budget=budget)
    short = suite.name.endswith("quick")
    runner = Runner(document, patience, quick=short, again=rerun, library=loaded)
    try:
        with progress("measure", len(cells)) as advance:
            for cell in runner.run(cells):
                advance(cell["key"])
    except KeyboardInterrupt:
        notes.print("stopped; with --out, the same command goes on from here", **PLAIN)
        return False
    return True


def _print(document: Document, cells: list[Cell]) -> None:
    tables, lines = _shown(document, cells)
    for table in tables:
        show(table)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _shown(document: Document, cells: list[Cell]) -> tuple[list[Table], list[str]]:
    """Tables and lines that say what ``document`` holds of ``cells``."""
    from ..bench.tables import floor_table, section_tables
    from ..bench.verdicts import summary_lines

    data = document.to_json()
    keys = {cell.key for cell in cells}
    data["cells"] = [cell for cell in data["cells"] if cell["key"] in keys]
    sections = section_tables(data["cells"], data["sections"])
    floors = [floor_table(data["floors"])] if data["floors"] else []
    return [*floors, *sections], list(summary_lines(data))


def _threads(text: str) -> list[int]:
    from ..bench.host import usable_cores

    cores = usable_cores()
    if not text:
        return [1, 2][:cores]
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise UnsupportedSpec([f"--threads {text!r} must be positive numbers, as in 1,2"])
    if numbers[-1] > cores:
        raise UnsupportedSpec([f"--threads {numbers[-1]}: this process may use {cores} cores"])
    return numbers


def _refuse_plot(plot: Path | None) -> None:
    """Raise TvmFlashError where no plot can be drawn: before an hour of measuring, not after."""
    if plot is None:
        return
    from ..bench.plot import require_matplotlib

    require_matplotlib()
    refuse_unwritable(plot)
