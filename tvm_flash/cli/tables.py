"""Measurements as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ..bench import Row, Timing


def timing_table(rows: Iterable[Row], title: str = "milliseconds, median") -> Table:
    """One line for each problem and direction; ratios above 1 mean that we are faster."""
    table = Table(title=title, title_justify="left")
    for heading in ("dtype", "D", "S", "mask", "direction"):
        table.add_column(heading)
    for heading in ("tvm-flash", "±", "SDPA", "naive", "GF/s", "vs SDPA", "vs naive"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_problem_cells(row), *_timing_cells(row))
    return table


def _problem_cells(row: Row) -> tuple[str, ...]:
    problem = row.problem
    mask = "causal" if problem.causal else "full"
    return problem.dtype, str(problem.head_dim), str(problem.seqlen), mask, row.direction


def _timing_cells(row: Row) -> tuple[str, ...]:
    ours = row.timings["tvm_flash"]
    gflops = row.problem.flops(row.direction) / ours.median / 1e9
    return (
        _milliseconds(ours),
        f"{ours.spread:.0%}",
        _milliseconds(row.timings.get("sdpa")),
        _milliseconds(row.timings.get("naive")),
        f"{gflops:.0f}",
        _ratio(row.ratio("sdpa")),
        _ratio(row.ratio("naive")),
    )


def _milliseconds(timing: Timing | None) -> str:
    return "-" if timing is None else f"{timing.median * 1e3:.2f}"


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"[{'green' if value >= 1 else 'yellow'}]{value:.2f}x[/]"
