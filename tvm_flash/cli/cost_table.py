"""What CUDA kernels cost, as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..bench.table import Column, Table, numbers, words

if TYPE_CHECKING:
    from ..codegen.report import KernelReport

# Kinds of PTX instructions that tell a kernel's balance.
_KINDS = ("mma", "ldmatrix", "cp.async", "ex2", "fma", "all")
# Those that a narrow terminal leaves out, the last first.
_MORE_KINDS = ("mul", "add", "integer", "branch")


def cost_summary(reports: Sequence[KernelReport]) -> Table:
    """One line for each architecture: what the costliest of its kernels take."""
    columns = (
        *words("arch"), *numbers("kernels", "most registers", "of these spill"),
        *numbers("most spilled", unit="B"), *numbers("most shared", unit="KiB"),
        *numbers("fewest blocks"), *numbers("compiled", unit="s", rank=1),
    )  # fmt: skip
    rows = []
    for arch in dict.fromkeys(report.arch for report in reports):
        own = [report for report in reports if report.arch == arch]
        spills = [r.resources.spill_stores + r.resources.spill_loads for r in own]
        rows.append(
            (
                arch,
                str(len(own)),
                str(max(report.resources.registers for report in own)),
                str(sum(spilled > 0 for spilled in spills)),
                str(max(spills)),
                f"{max(report.shared_bytes for report in own) / 1024:.1f}",
                str(min(report.blocks_per_sm for report in own)),
                f"{sum(report.resources.seconds for report in own):.1f}",
            )
        )
    return Table("kernels by architecture; --verbose shows each", tuple(columns), rows)


def cost_tables(reports: Sequence[KernelReport]) -> list[Table]:
    """Resources, one line for each kernel and architecture; instructions, one for each kernel."""
    return [_resources(reports), _instructions(reports)]


def _resources(reports: Iterable[KernelReport]) -> Table:
    columns = (
        *words("kernel", "arch"), *numbers("registers"), *numbers("spill", "stack", unit="B"),
        *numbers("shared", unit="KiB"), *numbers("blocks"), *numbers("occupancy", rank=2),
        *words("limit", rank=1), *numbers("compiled", unit="s", rank=3),
    )  # fmt: skip
    rows = [
        (
            report.name,
            report.arch,
            str(report.resources.registers),
            str(report.resources.spill_stores + report.resources.spill_loads),
            str(report.resources.stack),
            f"{report.shared_bytes / 1024:.1f}",
            str(report.blocks_per_sm),
            f"{report.occupancy:.0%}",
            report.limit.removesuffix(" memory"),
            f"{report.resources.seconds:.1f}",
        )
        for report in reports
    ]
    return Table("resources, by architecture; blocks per SM, and what limits them", columns, rows)


def _instructions(reports: Iterable[KernelReport]) -> Table:
    rows = [
        (name, *(str(counts.get(kind, 0)) for kind in (*_KINDS, *_MORE_KINDS)))
        for name, counts in {report.name: report.instructions for report in reports}.items()
    ]
    more = [Column(kind, rank=rank) for rank, kind in enumerate(_MORE_KINDS, 1)]
    return Table("instructions in the PTX", (*words("kernel"), *numbers(*_KINDS), *more), rows)
