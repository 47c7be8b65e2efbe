"""What CUDA kernels cost, as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

if TYPE_CHECKING:
    from ..codegen.report import KernelReport

# Kinds of PTX instructions that tell a kernel's balance.
_KINDS = ("mma", "ldmatrix", "cp.async", "ex2", "fma", "mul", "add", "integer", "branch", "all")


def cost_tables(reports: Sequence[KernelReport]) -> list[Table]:
    """Resources, one line for each kernel and architecture; instructions, one for each kernel."""
    return [_resources(reports), _instructions(reports)]


def _resources(reports: Iterable[KernelReport]) -> Table:
    headings = ("arch", "regs", "spill", "stack", "KiB", "blocks", "occ.", "limit", "s")
    table = _table("registers; spill and stack bytes; shared KiB; blocks per SM", headings)
    for report in reports:
        resources = report.resources
        table.add_row(
            report.name,
            report.arch,
            str(resources.registers),
            str(resources.spill_stores + resources.spill_loads),
            str(resources.stack),
            f"{report.shared_bytes / 1024:.1f}",
            str(report.blocks_per_sm),
            f"{report.occupancy:.0%}",
            report.limit.removesuffix(" memory"),
            f"{resources.seconds:.1f}",
        )
    return table


def _instructions(reports: Iterable[KernelReport]) -> Table:
    table = _table("instructions in the PTX", _KINDS)
    for name, counts in {report.name: report.instructions for report in reports}.items():
        table.add_row(name, *(str(counts.get(kind, 0)) for kind in _KINDS))
    return table


def _table(title: str, headings: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("kernel", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
