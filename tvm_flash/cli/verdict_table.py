"""What verifying found, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table

if TYPE_CHECKING:
    from ..verify.rule import Deviation
    from ..verify.verdict import Counts, KernelVerdict, Verification


def verdict_table(found: Iterable[Verification], by_problem: bool = False) -> Table:
    """One line for each kernel, or one for each problem of it.

    The error is that of the result which came nearest to its limit.
    """
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("kernel", overflow="fold")
    for heading in ("archs", "problem"):
        table.add_column(heading)
    for heading in ("error", "allowed", "PTX instr.", "conflicts", "bytes", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for verification in found:
        for kernel in verification.kernels:
            _add_kernel(table, kernel, by_problem)
    return table


def _add_kernel(table: Table, kernel: KernelVerdict, by_problem: bool) -> None:
    known = (kernel.symbol, _archs(kernel.archs))
    if not by_problem:
        cells = (*_error_cells(kernel.worst), *_count_cells(kernel.counts))
        title = f"{len(kernel.outcomes)} of {kernel.tile[0]}x{kernel.tile[1]}"
        table.add_row(*known, title, *cells, f"{kernel.seconds:.1f}", _mark(kernel.ok))
        return
    for outcome in kernel.outcomes:
        problem = outcome.problem
        title = f"{problem.name} {problem.seqlen_q}x{problem.seqlen_k}"
        worst = max(outcome.deviations, key=lambda d: d.share, default=None)
        cells = (*_error_cells(worst), *_count_cells(outcome.counts))
        table.add_row(*known, title, *cells, f"{outcome.seconds:.1f}", _mark(outcome.ok))


def _error_cells(worst: Deviation | None) -> tuple[str, str]:
    if worst is None:
        return "-", "-"
    return f"{worst.result} {worst.error:.1e}", f"{worst.allowed:.1e}"


def _count_cells(counts: Counts) -> tuple[str, str, str]:
    numbers = (counts.instructions, counts.bank_conflicts, counts.device_bytes)
    if not counts.instructions:  # a CPU's kernel is run, not interpreted
        return "-", "-", "-"
    return tuple(f"{number:,}" for number in numbers)


def _archs(names: Sequence[str]) -> str:
    """sm_80,sm_90 as sm_80,90."""
    return "sm_" + ",".join(name.removeprefix("sm_") for name in names) if names else "cpu"


def _mark(ok: bool) -> str:
    return "[green]ok[/]" if ok else "[bold red]wrong[/]"
