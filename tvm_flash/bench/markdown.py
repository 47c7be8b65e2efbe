"""A document as Markdown: the short form for a README, and the complete tables."""

from __future__ import annotations

from collections.abc import Iterator

from .cells import place
from .host import sentence
from .tables import (
    floor_table,
    mebibytes,
    missed_table,
    on,
    ratio_table,
    section_tables,
)
from .verdicts import counted, quietness, rival, state, window_line

# The rows of a README, chosen by a rule and not by how they came out: both directions in the two
# dtypes that models are trained in, at the head dimension that most of them have.
_README_DTYPES, _README_HEAD_DIM = ("float32", "bfloat16"), 128


def short(document: dict, picture: str = "", page: str = "") -> str:
    """What a README says: the machine, the picture, four rows of the main section, and a link.

    picture, page: where the plot and the complete tables are; empty: nowhere.
    """
    rows = [
        cell
        for cell in _main_cells(document)
        if cell["dtype"] in _README_DTYPES and cell["head_dim"] == _README_HEAD_DIM
    ]
    lines = [sentence(document["host"]) + ".", ""]
    if picture:
        lines += [f"![Times faster than SDPA, cell by cell]({picture})", ""]
    if rows:
        lines += [*ratio_lines(rows), ""]
    if page:
        lines.append(
            "Other dtypes, head dimensions, decoding, windows, memory, and what misses its target: "
            f"[{page}]({page})."
        )
    return "\n".join(lines).rstrip()


def _main_cells(document: dict) -> list[dict]:
    return [c for c in document["cells"] if c["section"] == "main" and "ratio" in c]


def ratio_lines(cells: list[dict]) -> Iterator[str]:
    """The sentence over ``tables.ratio_table``, and that, on the largest number of threads."""
    most = max(cell["threads"] for cell in cells)
    cells = [cell for cell in cells if cell["threads"] == most]
    first = cells[0]
    yield (
        "SDPA's time over ours (above 1 we are faster), and our GFLOP/s; by mask and sequence "
        f"length; batch x heads = {first['batch'] * first['heads']}, {place(most)}; °: below the "
        "target that was set:"
    )
    yield ""
    yield from ratio_table(cells).markdown()


def section_lines(document: dict) -> Iterator[str]:
    """One for each section but the first, on the largest number of threads."""
    for name, title in document["sections"].items():
        cells = [cell for cell in document["cells"] if cell["section"] == name]
        if name == "main" or not cells:
            continue
        most = max(cell["threads"] for cell in cells)
        cells = [cell for cell in cells if cell["threads"] == most]
        if cells[0]["kind"] == "memory":
            yield from memory_lines([cell for cell in cells if "bytes" in cell])
        elif timed := [cell for cell in cells if "ratio" in cell]:
            yield f"{name} ({title}, {on(timed[0])}): {ratio_range(timed)}"
    if line := window_line(document["cells"]):
        yield line


def ratio_range(cells: list[dict]) -> str:
    """Ratios in words, of those with a target where there are any."""
    aimed = [cell for cell in cells if cell["target"] is not None] or cells
    ratios = sorted(cell["ratio"][rival(cell)] for cell in aimed if rival(cell))
    if not ratios:
        return "nothing to compare with"
    low, high = f"{ratios[0]:.2f}", f"{ratios[-1]:.2f}"
    text = low if low == high else f"{low} to {high}"
    targets = sorted({f"{cell['target']:.2f}" for cell in aimed if cell["target"] is not None})
    at_least = f", target{'s' * (len(targets) > 1)} {', '.join(targets)}" if targets else ""
    return f"{text} times {_whose(aimed)} speed{at_least}"


def _whose(cells: list[dict]) -> str:
    """Whose speed ours is compared with."""
    names = {rival(cell) for cell in cells} - {""}
    if len(names) > 1:
        return "the fastest other's"
    return "SDPA's" if names == {"sdpa"} else f"`{names.pop()}`'s"


def memory_lines(cells: list[dict]) -> Iterator[str]:
    """Peaks of the longest problem, and our scratch at each length."""
    plain = sorted(
        (cell for cell in cells if cell["heads"] == cell["kv_heads"]),
        key=lambda cell: cell["seqlen_k"],
    )
    if not plain:
        return
    last = plain[-1]
    peaks = (f"{name} {mebibytes(found)}" for name, found in last["bytes"].items())
    lengths = ", ".join(str(cell["seqlen_k"]) for cell in plain)
    scratch = ", ".join(mebibytes(cell["scratch_bytes"]) for cell in plain)
    yield (
        f"memory: peak MiB above the inputs, forward / with backward, S={last['seqlen_k']}: "
        f"{', '.join(peaks)}; of ours {mebibytes(last['output_bytes'])} are outputs. Besides "
        f"outputs ours needs {scratch} at S={lengths} ({place(last['threads'])} together)"
    )


def closing_lines(document: dict) -> Iterator[str]:
    """Targets, and how quiet the machine was."""
    yield counted(document["cells"])
    yield from quietness(document)


def complete(document: dict) -> str:
    """Floors, a summary of each section, and every cell."""
    lines = [sentence(document["host"]) + ".", "", *floor_table(document["floors"]).markdown(), ""]
    if main := _main_cells(document):
        lines += [*ratio_lines(main), ""]
    lines += [f"- {line}" for line in section_lines(document)]
    missed = [cell for cell in document["cells"] if state(cell) == "missed"]
    found = [*section_tables(document["cells"], document["sections"])]
    for table in [*found, *([missed_table(missed)] if missed else [])]:
        lines += ["", f"### {table.title}", "", *table.markdown()]
    lines += ["", *(f"- {line}" for line in closing_lines(document))]
    return "\n".join(lines)
