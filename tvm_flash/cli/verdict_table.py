"""What verifying found, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..bench.table import Mark, Table, numbers, words

if TYPE_CHECKING:
    from ..verify.rule import Deviation
    from ..verify.verdict import Counts, KernelVerdict, Outcome, Verification


def verdict_table(found: Iterable[Verification], by_problem: bool = False) -> Table:
    """One line for each kernel, or one for each problem of it.

    The error is that of the result which came nearest to its limit.
    """
    columns = (
        *words("", "kernel", "for"), *(words("problem") if by_problem else numbers("runs")),
        *numbers("error", "limit"), *numbers("PTX", rank=3), *numbers("conflicts", rank=2),
        *numbers("bytes", rank=4), *numbers("time", unit="s", rank=1),
    )  # fmt: skip
    rows = [
        (mark, kernel.symbol, _archs(kernel.archs), *row)
        for verification in found
        for kernel in verification.kernels
        for mark, *row in (_problem_rows(kernel) if by_problem else [_row(kernel)])
    ]
    return Table("", columns, rows)


def _row(kernel: KernelVerdict) -> tuple[str | Mark, ...]:
    return (_mark(kernel.ok), str(len(kernel.outcomes)), *_cells(kernel, kernel.worst))


def _problem_rows(kernel: KernelVerdict) -> Iterator[tuple[str | Mark, ...]]:
    for outcome in kernel.outcomes:
        problem = outcome.problem
        title = f"{problem.name} {problem.seqlen_q}x{problem.seqlen_k}"
        yield (_mark(outcome.ok), title, *_cells(outcome, outcome.worst))


def _cells(found: KernelVerdict | Outcome, worst: Deviation | None) -> tuple[str, ...]:
    errors = ("-", "-")
    if worst is not None:
        errors = (f"{worst.result} {_number(worst.error)}", _number(worst.allowed))
    return (*errors, *_count_cells(found.counts), f"{found.seconds:.1f}")


def _mark(ok: bool) -> Mark:
    return Mark("ok", "good") if ok else Mark("wrong", "bad")


def _count_cells(counts: Counts) -> tuple[str, ...]:
    if not counts.instructions:  # a CPU's kernel is run, not interpreted
        return "-", "-", "-"
    numbers = (counts.instructions, counts.bank_conflicts, counts.device_bytes)
    return tuple(map(_short, numbers))


def _short(count: int) -> str:
    """1234567 as 1.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.{0 if count >= 100 * size else 1}f}{unit}"
    return str(count)


def _number(error: float) -> str:
    """1.6e-02 as 1.6e-2."""
    return f"{error:.1e}".replace("e-0", "e-").replace("e+0", "e+")


def _archs(names: Sequence[str]) -> str:
    """The first of them, and how many more."""
    if not names:
        return "cpu"
    return names[0] + f" +{len(names) - 1}" * (len(names) > 1)
