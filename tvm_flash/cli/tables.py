"""Measurements as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ..bench import MemoryRow, Row, Timing


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


def memory_table(rows: Sequence[MemoryRow]) -> Table:
    """Peak MiB above the inputs: one line for each contender, one column for each length."""
    seqlens = sorted({row.problem.seqlen for row in rows})
    table = Table(title="peak MiB above inputs, forward / and backward", title_justify="left")
    table.add_column("")
    for seqlen in seqlens:
        table.add_column(f"S={seqlen}", justify="right")
    found = {(row.contender, row.problem.seqlen): row.bytes for row in rows}
    for contender in dict.fromkeys(row.contender for row in rows):
        table.add_row(contender, *(_mebibytes(found.get((contender, s))) for s in seqlens))
    return table


def _mebibytes(bytes_by_direction: dict[str, int | None] | None) -> str:
    if bytes_by_direction is None:
        return "-"
    values = (bytes_by_direction["forward"], bytes_by_direction["forward_backward"])
    return " / ".join("?" if value is None else f"{value / 2**20:.0f}" for value in values)
