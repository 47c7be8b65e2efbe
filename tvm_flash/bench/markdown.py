"""A document as Markdown: the short form for a README, and the complete tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .host import sentence
from .verdicts import quietness, state, target_words, totals, window_line


def short(document: dict, picture: str = "", page: str = "") -> str:
    """What a README says: ratios of the main section, and a line for each other section.

    picture, page: where the plot and the complete tables are; empty: nowhere.
    """
    main = [c for c in document["cells"] if c["section"] == "main" and "ratio" in c]
    lines = [sentence(document["host"]) + ".", ""]
    if picture:
        lines += [f"![Times faster than SDPA, cell by cell]({picture})", ""]
    if main:
        lines += [*ratio_lines(main), ""]
    lines += [f"- {line}" for line in section_lines(document)]
    lines += [f"- {line}" for line in closing_lines(document)]
    if page:
        lines += ["", f"Every cell, with the floors of the machine: [{page}]({page})."]
    return "\n".join(lines)


def ratio_lines(cells: list[dict]) -> Iterator[str]:
    """Ratio and GFLOP/s: a line for each direction, dtype and D; a column for each mask and S."""
    most = max(cell["threads"] for cell in cells)
    cells = [cell for cell in cells if cell["threads"] == most]
    first = cells[0]
    yield (
        f"How many times faster than torch's SDPA, and our GFLOP/s; batch x heads = "
        f"{first['batch'] * first['heads']}, {_threads(most)}; ° is below its target:"
    )
    yield ""
    places = sorted({(cell["causal"], cell["seqlen_k"]) for cell in cells})
    heads = [f"{'causal' if causal else 'full'} {seqlen}" for causal, seqlen in places]
    yield from _header(["", *heads])
    rows = dict.fromkeys((c["direction"], c["dtype"], c["head_dim"]) for c in cells)
    found = {
        (c["direction"], c["dtype"], c["head_dim"], c["causal"], c["seqlen_k"]): c for c in cells
    }
    for direction, dtype, dim in sorted(rows, key=lambda row: row[0] == "backward"):
        texts = (_ratio(found.get((direction, dtype, dim, *place))) for place in places)
        yield _line([f"{direction}, {dtype}, D={dim}", *texts])


def _ratio(cell: dict | None) -> str:
    if cell is None:
        return ""
    mark = "°" if state(cell) in ("missed", "elsewhere") else ""
    return f"{cell['ratio']['sdpa']:.2f}{mark} ({cell['gflops']['tvm_flash']:.0f})"


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
            yield f"{name} ({title}, {_threads(most)}): {ratio_range(timed)}"
    if line := window_line(document["cells"]):
        yield line


def ratio_range(cells: list[dict]) -> str:
    """Ratios in words, of those with a target where there are any."""
    aimed = [cell for cell in cells if cell["target"] is not None] or cells
    ratios = sorted(cell["ratio"]["sdpa"] for cell in aimed)
    low, high = f"{ratios[0]:.2f}", f"{ratios[-1]:.2f}"
    text = low if low == high else f"{low} to {high}"
    targets = sorted({cell["target"] for cell in aimed if cell["target"] is not None})
    at_least = f", target {targets[0]:.2f}" if targets else ""
    return f"{text} times SDPA's speed{at_least}"


def memory_lines(cells: list[dict]) -> Iterator[str]:
    """Peaks of the longest problem, and our scratch at each length."""
    plain = sorted(
        (cell for cell in cells if cell["heads"] == cell["kv_heads"]),
        key=lambda cell: cell["seqlen_k"],
    )
    if not plain:
        return
    last = plain[-1]
    peaks = (f"{name} {_mebibytes(found)}" for name, found in last["bytes"].items())
    lengths = ", ".join(str(cell["seqlen_k"]) for cell in plain)
    scratch = ", ".join(_mebibytes(cell["scratch_bytes"]) for cell in plain)
    yield (
        f"memory: peak MiB above the inputs, forward / with backward, S={last['seqlen_k']}: "
        f"{', '.join(peaks)}; of ours {_mebibytes(last['output_bytes'])} are outputs. Besides "
        f"outputs ours needs {scratch} at S={lengths} ({_threads(last['threads'])} together)"
    )


def closing_lines(document: dict) -> Iterator[str]:
    """Targets, and how quiet the machine was."""
    found = totals(document["cells"])
    line = f"targets: {found['met']} met, {found['missed']} missed"
    if found["elsewhere"]:
        line += f", {found['elsewhere']} set for AMX and not reached without it"
    yield line
    yield from quietness(document)


def complete(document: dict) -> str:
    """Floors and every cell."""
    lines = [sentence(document["host"]) + ".", "", *floor_lines(document["floors"])]
    for name, title in document["sections"].items():
        cells = [cell for cell in document["cells"] if cell["section"] == name]
        if cells:
            table = memory_table if cells[0]["kind"] == "memory" else cell_table
            lines += ["", f"### {name}: {title}", "", *table(cells)]
    missed = [cell for cell in document["cells"] if state(cell) == "missed"]
    if missed:
        lines += ["", "### What misses its target", "", *missed_table(missed)]
    lines += ["", *(f"- {line}" for line in closing_lines(document))]
    return "\n".join(lines)


def missed_table(cells: list[dict]) -> Iterator[str]:
    """How far below, and what is left: the ratio of a kernel that reached its floor."""
    yield from _header(["problem", "threads", "ratio", "target", "of the floor", "at the floor"])
    for cell in cells:
        ratio, share = cell["ratio"]["sdpa"], cell.get("of_floor")
        left = ["-", "-"] if not share else [f"{share:.0%}", f"{ratio / share:.2f}"]
        name = f"{cell['section']}: {_problem(cell)}"
        figures = (f"{ratio:.2f}", f"{cell['target']:.2f}", *left)
        yield _line([name, str(cell["threads"]), *figures])


def floor_lines(floors: list[dict]) -> Iterator[str]:
    """The rates of a large matmul and of a large copy."""
    dtypes = list(dict.fromkeys(dtype for floor in floors for dtype in floor["matmul_gflops"]))
    yield from _header(["", *(f"{dtype} matmul, GFLOP/s" for dtype in dtypes), "copy, GB/s"])
    for floor in floors:
        rates = (floor["matmul_gflops"].get(dtype) for dtype in dtypes)
        words = "" if floor["isa"] == "host" else f", {floor['isa'].upper()} alone"
        yield _line(
            [
                _threads(floor["threads"]) + words,
                *("-" if rate is None else f"{rate:.0f}" for rate in rates),
                f"{floor['copy_gbytes']:.1f}",
            ]
        )


def cell_table(cells: list[dict]) -> Iterator[str]:
    """One line for each timed cell."""
    times = ("ours, ms", "SDPA, ms", "spread")
    yield from _header(
        ["problem", "threads", *times, "GFLOP/s", "of the floor", "ratio", "target", ""]
    )
    for cell in cells:
        yield _line([_problem(cell), str(cell["threads"]), *_figures(cell)])


def _problem(cell: dict) -> str:
    return cell["key"].partition(": ")[2].rpartition(f" {_threads(cell['threads'])}")[0]


def _figures(cell: dict) -> Iterator[str]:
    for word in ("error", "skipped"):
        if word in cell:
            yield from ["-"] * 7 + ["failed" if word == "error" else cell[word]]
            return
    for name in ("tvm_flash", "sdpa"):
        yield f"{cell['seconds'][name] * 1e3:.4g}"
    yield f"{max(cell['spread'][name] for name in ('tvm_flash', 'sdpa')):.0%}"
    yield f"{cell['gflops']['tvm_flash']:.0f}"
    yield f"{cell['of_floor']:.0%} ({cell['bound']})" if "of_floor" in cell else "-"
    yield f"{cell['ratio']['sdpa']:.2f}"
    yield target_words(cell)
    words = {"open": "", "elsewhere": "no AMX here"}
    found = [words.get(state(cell), state(cell)), "noisy" * cell["noisy"]]
    yield ", ".join(filter(None, found))


def memory_table(cells: list[dict]) -> Iterator[str]:
    """Peaks and scratch, MiB."""
    yield "MiB above the inputs, forward / with backward."
    yield ""
    names = ("tvm_flash", "sdpa", "naive")
    yield from _header(["problem", "threads", *names, "our outputs", "our scratch, all threads"])
    for cell in cells:
        if "bytes" not in cell:
            continue
        words = cell["key"].partition(": ")[2].rpartition(" forward_backward")[0]
        peaks = (_mebibytes(cell["bytes"].get(name)) for name in names)
        rest = (_mebibytes(cell[name]) for name in ("output_bytes", "scratch_bytes"))
        yield _line([words, str(cell["threads"]), *peaks, *rest])


def _mebibytes(found: dict | None) -> str:
    if found is None:
        return "does not fit"
    values = (found["forward"], found["forward_backward"])
    return " / ".join("?" if value is None else f"{value / 2**20:.1f}" for value in values)


def _threads(number: int) -> str:
    return f"{number} thread" + "s" * (number > 1)


def _header(cells: list[str]) -> Iterator[str]:
    yield _line(cells)
    yield _line(["---", *("---:" for _ in cells[1:])])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
