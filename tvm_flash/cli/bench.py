"""``tvm-flash bench``: our kernels, torch's SDPA and naive attention, timed in turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import console, progress
from .tables import memory_table, timing_table


def bench(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few short problems.")] = False,
    match: Annotated[str, typer.Option(help="Only problems whose name contains this.")] = "",
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
) -> None:
    """Time forward and backward of the listed problems, and the memory they need."""
    from .. import bench as library

    problems = [p for p in library.listed_problems(quick) if match in p.name]
    report = library.Report(library.describe())
    console.print(library.sentence(report.host.to_json()), highlight=False)
    patience = library.Patience(3, 5, 0.2) if quick else library.Patience()
    with progress("measure", 2 * len(problems)) as advance:
        for problem in problems:
            for row in library.measure(problem, patience):
                report.rows.append(row)
                advance(f"{row.problem.name} {row.direction}")
    console.print(timing_table(report.rows))
    if memory:
        report.memory.extend(_memory(quick))
        console.print(memory_table(report.memory))
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
        console.print(f"written to {json_file}")


def _memory(quick: bool) -> list:
    from .. import bench as library

    problems = library.memory_problems((512, 1024) if quick else library.MEMORY_SEQLENS)
    rows = []
    with progress("memory", len(problems)) as advance:
        for problem in problems:
            rows.extend(library.measure_memory(problem))
            advance(problem.name)
    return rows
