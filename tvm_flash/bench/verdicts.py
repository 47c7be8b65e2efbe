"""Words for what a document says: marks, totals, and how quiet the machine was."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

STATES = ("met", "missed", "elsewhere", "open", "skipped", "failed", "right", "wrong")
BUSY = 0.05  # of the cores' time, taken by others


def rival(cell: dict) -> str:
    """Whom we are compared with: torch's SDPA, on GPUs the fastest of the others; "": nobody."""
    if "sdpa" in cell["ratio"]:
        return "sdpa"
    return min(cell["ratio"], key=cell["seconds"].__getitem__, default="")


def state(cell: dict) -> str:
    """One of: failed, skipped, right and wrong (of a case), met, missed, elsewhere (a target for
    another CPU), open (none)."""
    for word in ("error", "skipped"):
        if word in cell:
            return "failed" if word == "error" else word
    if "right" in cell:
        return "right" if cell["right"] else "wrong"
    if cell.get("target") is None:
        return "open"
    if cell["met"]:
        return "met"
    return "missed" if cell["counts"] else "elsewhere"


def spread(cell: dict) -> float:
    """The wider of our spread and the rival's."""
    return max(cell["spread"][name] for name in ("tvm_flash", rival(cell)) if name)


def totals(cells: Iterable[dict]) -> dict[str, int]:
    """How many cells are in each state."""
    numbers = dict.fromkeys(STATES, 0)
    for cell in cells:
        numbers[state(cell)] += 1
    return numbers


def counted(cells: Iterable[dict]) -> str:
    """``totals`` in words."""
    found = totals(cells)
    line = f"targets: {found['met']} met, {found['missed']} missed"
    if found["elsewhere"]:
        line += f", {found['elsewhere']} set for AMX and not reached without it"
    line += "".join(f", {found[word]} {word}" for word in ("skipped", "failed") if found[word])
    if found["right"] or found["wrong"]:
        line += f"; cases: {found['right']} right, {found['wrong']} wrong"
    return line


def reasons(cells: Iterable[dict]) -> dict[tuple[str, str], int]:
    """How many cells failed, or were skipped, for each reason."""
    numbers: dict[tuple[str, str], int] = {}
    for cell in cells:
        word = state(cell)
        if word in ("failed", "skipped"):
            lines = [line for line in cell.get("error", cell.get("skipped")).splitlines() if line]
            reason = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}"
            numbers[word, reason] = numbers.get((word, reason), 0) + 1
    return numbers


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
    spreads = [spread(cell) for cell in timed]
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


def summary_lines(data: dict) -> Iterator[str]:
    """Totals, what failed and why, proportionality of windows, and how quiet the machine was."""
    yield counted(data["cells"])
    for (word, reason), number in reasons(data["cells"]).items():
        yield f"{word}, {number} cells: {reason}"
    yield from filter(None, (window_line(data["cells"]), kernels_line(data)))
    yield from quietness(data)


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
