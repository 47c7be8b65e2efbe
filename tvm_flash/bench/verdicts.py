"""Words for what a document says: marks, totals, and how quiet the machine was."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

BUSY = 0.05  # of the cores' time, taken by others


def state(cell: dict) -> str:
    """One of: failed, skipped, met, missed, elsewhere (a target for another CPU), open (none)."""
    for word in ("error", "skipped"):
        if word in cell:
            return "failed" if word == "error" else word
    if cell.get("target") is None:
        return "open"
    if cell["met"]:
        return "met"
    return "missed" if cell["counts"] else "elsewhere"


def totals(cells: Iterable[dict]) -> dict[str, int]:
    """How many cells are in each state."""
    counted = dict.fromkeys(("met", "missed", "elsewhere", "open", "skipped", "failed"), 0)
    for cell in cells:
        counted[state(cell)] += 1
    return counted


def reasons(cells: Iterable[dict]) -> dict[tuple[str, str], int]:
    """How many cells failed, or were skipped, for each reason."""
    counted: dict[tuple[str, str], int] = {}
    for cell in cells:
        word = state(cell)
        if word in ("failed", "skipped"):
            lines = [line for line in cell.get("error", cell.get("skipped")).splitlines() if line]
            reason = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}"
            counted[word, reason] = counted.get((word, reason), 0) + 1
    return counted


def target_words(cell: dict) -> str:
    """The target as text, with the unit that it was set for: 1.70 AMX."""
    if cell.get("target") is None:
        return "-"
    needs = cell.get("target_needs")
    return f"{cell['target']:.2f}" + (f" {needs.split('_')[0].upper()}" if needs else "")


def quietness(data: dict) -> Iterator[str]:
    """Lines that say whether the machine was busy, from a whole document."""
    loads = [run["load_average"][0] for run in data["runs"] if run["load_average"]]
    cores = max((run["cores"] for run in data["runs"]), default=0)
    if loads:
        ends = dict.fromkeys(f"{load:g}" for load in (min(loads), max(loads)))
        runs = f"{len(loads)} runs, " if len(loads) > 1 else ""
        yield (
            f"load average before the start: {' to '.join(ends)} "
            f"({runs}{cores} cores for this process)"
        )
    timed = [cell for cell in data["cells"] if "spread" in cell]
    if not timed:
        return
    spreads = [max(cell["spread"]["tvm_flash"], cell["spread"]["sdpa"]) for cell in timed]
    noisy = sum(cell["noisy"] for cell in timed)
    yield (
        f"spread of a cell: {statistics.median(spreads):.1%} in the median, {max(spreads):.1%} at "
        f"most; {noisy} of {len(timed)} cells stayed noisy"
    )
    taken = [cell["others"] for cell in timed if cell["others"] is not None]
    if taken:
        busy = sum(share > BUSY for share in taken)
        word = "the machine was busy" if busy > len(taken) / 10 else "the machine was quiet"
        yield (
            f"{word}: other programs took {statistics.median(taken):.1%} of the cores in the "
            f"median, more than {BUSY:.0%} in {busy} of {len(taken)} cells"
        )


def kernels_line(data: dict) -> str:
    """A warning when cells were measured with different kernels, else an empty string."""
    states = {cell["kernels"] for cell in data["cells"]}
    if len(states) < 2:
        return ""
    return f"the cells were measured with {len(states)} states of the kernels (--stale renews)"


def window_line(cells: Iterable[dict]) -> str:
    """Time for each key of a window: equal numbers mean time proportional to the window."""
    found = [
        (cell["window"], cell["seconds"]["tvm_flash"] / cell["window"])
        for cell in cells
        if cell.get("window") and cell["direction"] == "forward" and "seconds" in cell
    ]
    listed = ", ".join(f"{seconds * 1e6:.1f} at {window}" for window, seconds in sorted(found))
    return f"microseconds for each key of the window: {listed}" if len(found) > 1 else ""
