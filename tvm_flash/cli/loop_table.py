"""What main loops are predicted to take, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..bench.table import Table, numbers, words

if TYPE_CHECKING:
    from ..tune.simulation.artifact import KernelLoop
    from ..tune.simulation.prediction import LoopPrediction

# What JSON says of the same.
PREDICTED = "predicted, not measured"


def loop_table(found: Sequence[KernelLoop]) -> Table:
    """One line for each kernel and architecture whose main loop was simulated."""
    columns = (
        *words("kernel", "arch"), *numbers("blocks", "clocks"), *words("busiest part"),
        *numbers("share of peak", "least", "most"), *numbers("registers", rank=1),
        *numbers("spill loads", rank=2),
    )  # fmt: skip
    rows = [
        (kernel.name, kernel.arch, str(kernel.blocks), *_cells(kernel.loop, kernel))
        for kernel in found
        if kernel.loop is not None
    ]
    title = (
        f"{PREDICTED}: a steady round of the main loop, of all blocks of an SM; "
        "share of the data sheet's tensor peak"
    )
    return Table(title, columns, rows)


def _cells(loop: LoopPrediction, kernel: KernelLoop) -> tuple[str, ...]:
    shares = [f"{share:.0%}" for share in (loop.share, loop.least, loop.most)]
    spills = str(loop.instructions.get("spill load", 0))
    bound = f"{loop.bound} {loop.busy:.0%}"
    return (f"{loop.clocks:.0f}", bound, *shares, str(kernel.resources.registers), spills)


def without_loops(found: Sequence[KernelLoop]) -> list[str]:
    """A line for each reason why kernels have no prediction, naming them."""
    reasons: dict[str, list[str]] = {}
    for kernel in found:
        if kernel.loop is None:
            reasons.setdefault(kernel.reason, []).append(f"{kernel.name} {kernel.arch}")
    return [f"{reason}: {', '.join(names)}" for reason, names in reasons.items()]
