"""``tvm-flash bench``: our kernels beside torch's SDPA, timed in turns, judged by their targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from ..errors import HardwareFailure, TvmFlashError, UnsupportedSpec
from .bench_built import built_before, refuse_device
from .bench_options import (
    Artifact,
    Budget,
    Candidates,
    Logs,
    Match,
    Out,
    Patience,
    Plot,
    Quick,
    Rerun,
    Stale,
    SuiteChoice,
    SuiteName,
    Threads,
)
from .console import PLAIN, console, notes, progress, refuse_unwritable
from .error_text import one_line
from .json_output import AsJson, print_json
from .show_table import show
from .streams import INTERRUPTED
from .termination import as_interrupt

if TYPE_CHECKING:
    from ..bench import Built, Cell, Document, Runner, Suite
    from ..bench.table import Table


def bench(
    suite: SuiteChoice = SuiteName.short,
    out: Out = None,
    plot: Plot = None,
    artifact: Artifact = None,
    candidates: Candidates = None,
    logs: Logs = Path("records"),
    quick: Quick = False,
    match: Match = "",
    threads: Threads = "",
    rerun: Rerun = False,
    stale: Stale = False,
    budget: Budget = None,
    patience: Patience = None,
    as_json: AsJson = False,
) -> None:
    """Time attention beside torch's SDPA, with this machine's floors and our targets.

    Cells that --out FILE holds are kept, so that an interrupted run goes on.

    Exit status 1: a result breaks the error rule, which GPU suites check first, or a GPU is lost.
    """
    from .. import bench as library

    chosen = library.SUITES[_suite_name(suite.value, quick)]
    refuse_device(chosen.device)
    built = built_before(artifact, candidates, chosen.device)
    numbers = _threads(threads) if chosen.device == "cpu" else [1]
    cells = [cell for cell in chosen.cells(numbers, built) if match in cell.key]
    if not cells:
        key = chosen.cells(numbers, built)[0].key
        raise UnsupportedSpec(
            [f"no cell of the suite {chosen.name} matches {match!r}; a key looks like {key!r}"]
        )
    _refuse_plot(plot)
    _refuse_out(out)
    document, pending = _opened(out, chosen, cells, built, rerun, stale)
    notes.print(library.sentence(document.host), **PLAIN)
    known = {"again": rerun, "artifact": artifact, "built": built, "seconds": budget}
    if candidates is not None:
        known["elsewhere"] = {"search": _searches(candidates, logs)}
    status = _measure(_runner(document, patience, known), pending)
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
    if status or _any_wrong(document, cells):
        raise typer.Exit(status or 1)


def _suite_name(name: str, quick: bool) -> str:
    if not quick:
        return name
    if name == "sequences":
        raise ValueError("--quick is of other suites: take a part of sequences by --match")
    return "gpu-quick" if name.startswith("gpu") else "quick"


def _searches(candidates: Path, logs: Path) -> Callable[[Cell], dict]:
    """What measures the cells of carried candidates; ``logs`` is made now, not after minutes."""
    from ..tune.carried_cell import CarriedSearches
    from ..tune.trial_log import check_writable

    check_writable(logs)
    return CarriedSearches(candidates, logs).measured


def _any_wrong(document: Document, cells: list[Cell]) -> bool:
    from ..bench.verdicts import state

    found = (document.cells.get(cell.key) for cell in cells)
    return any(cell is not None and state(cell) == "wrong" for cell in found)


def _opened(
    path: Path | None,
    suite: Suite,
    cells: list[Cell],
    built: Built,
    rerun: bool,
    stale: bool,
) -> tuple[Document, list[Cell]]:
    """The document, and what is to be measured for it.

    Raises TvmFlashError for a file that could not be shown at the end: before an hour, not after.
    """
    from .. import bench as library

    host, kernels = library.described_host(suite.device), library.kernels_digest(built.library)
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


def _runner(document: Document, patience: float | None, known: dict[str, Any]) -> Runner:
    """What measures into ``document``; patience: for a noisy cell, in seconds."""
    from dataclasses import replace

    from ..bench import Runner

    suite = document.suite
    waits = suite.patience if patience is None else replace(suite.patience, budget=patience)
    return Runner(document, waits, quick=suite.name.endswith("quick"), **known)


def _measure(runner: Runner, cells: list[Cell]) -> int:
    """Measure ``cells``, and the exit status that follows; what is measured stays.

    1: nothing can be measured any more; 130: interrupted.
    """
    if not cells:
        return 0
    done = 0
    try:
        with as_interrupt(), progress("measure", len(cells)) as advance:
            for cell in runner.run(cells):
                advance(cell["key"])
                done += 1
    except KeyboardInterrupt:
        notes.print("stopped; with --out, the same command goes on from here", **PLAIN)
        return INTERRUPTED
    except HardwareFailure as error:
        notes.print(f"[bold red]error:[/] {escape(str(error))}", **PLAIN)
        return 1
    if left := len(cells) - done:
        notes.print(f"{left} cells are left: with --out, the same command goes on", **PLAIN)
    return 0


def _print(document: Document, cells: list[Cell]) -> None:
    tables, lines = _shown(document, cells)
    for table in tables:
        show(table)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _shown(document: Document, cells: list[Cell]) -> tuple[list[Table], list[str]]:
    """Tables and lines that say what ``document`` holds of ``cells``."""
    from ..bench.overview import overview_tables
    from ..bench.tables import floor_table, section_tables
    from ..bench.verdicts import summary_lines

    data = document.to_json()
    keys = {cell.key for cell in cells}
    data["cells"] = [cell for cell in data["cells"] if cell["key"] in keys]
    told = section_tables if document.suite.device == "cpu" else overview_tables
    sections = told(data["cells"], data["sections"])
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


def _refuse_out(out: Path | None) -> None:
    """Raise ValueError or OSError where ``out`` cannot be kept; its folder is made."""
    if out is not None:
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
        refuse_unwritable(out)
