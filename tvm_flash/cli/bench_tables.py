"""A document of ``tvm-flash bench`` as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ..problem.dtype import DTYPES

_MARKS = {
    "met": "[green]met[/]",
    "missed": "[bold red]missed[/]",
    "elsewhere": "[dim]no AMX[/]",
    "open": "",
    "skipped": "[dim]skipped[/]",
    "failed": "[bold red]failed[/]",
}


def floor_table(floors: Iterable[dict]) -> Table:
    """One line for each number of threads and instruction set."""
    headings = ("threads", *DTYPES, "copy GB/s", "±")
    table = _table("floors: GFLOP/s of a large matmul, GB/s of a large copy", ("on", *headings))
    for floor in floors:
        rates = floor["matmul_gflops"]
        table.add_row(
            floor["isa"],
            str(floor["threads"]),
            *(f"{rates[dtype]:.0f}" if dtype in rates else "-" for dtype in DTYPES),
            f"{floor['copy_gbytes']:.1f}",
            f"{floor['spread']:.0%}",
        )
    return table


def section_tables(cells: Sequence[dict], titles: dict[str, str]) -> Iterator[Table]:
    """One table for each section; ratios above 1 mean that we are faster."""
    for name, title in titles.items():
        found = [cell for cell in cells if cell["section"] == name]
        if not found:
            continue
        make = _memory_table if found[0]["kind"] == "memory" else _timing_table
        yield make(f"{name}: {title}", found)


def _timing_table(title: str, cells: Sequence[dict]) -> Table:
    headings = ("dir.", "thr.", "ours ms", "SDPA ms", "±", "GF/s", "of floor", "ratio", "target")
    table = _table(title, ("dtype", "D", "S", "mask", *headings, ""))
    for cell in cells:
        table.add_row(*_problem_cells(cell), *_timing_cells(cell))
    return table


def _problem_cells(cell: dict) -> tuple[str, ...]:
    mask = f"window {cell['window']}" if cell["window"] else "causal" if cell["causal"] else "full"
    direction = {"forward": "fwd", "backward": "bwd"}.get(cell["direction"], "")
    dtype = cell["dtype"].replace("float", "f")
    sizes = str(cell["head_dim"]), str(cell["seqlen_k"])
    return dtype, *sizes, mask, direction, str(cell["threads"])


def _timing_cells(cell: dict) -> tuple[str, ...]:
    from ..bench.verdicts import state, target_words

    if "seconds" not in cell:
        return ("-",) * 8 + (_MARKS[state(cell)],)
    noise = max(cell["spread"]["tvm_flash"], cell["spread"]["sdpa"])
    of_floor = f"{cell['of_floor']:.0%} {cell['bound']}" if "of_floor" in cell else "-"
    return (
        _milliseconds(cell["seconds"]["tvm_flash"]),
        _milliseconds(cell["seconds"]["sdpa"]),
        f"{noise:.0%}",
        f"{cell['gflops']['tvm_flash']:.0f}",
        of_floor,
        f"{cell['ratio']['sdpa']:.2f}x",
        target_words(cell),
        " ".join(filter(None, (_MARKS[state(cell)], "[yellow]noisy[/]" * cell["noisy"]))),
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.{3 if seconds < 1e-3 else 2 if seconds < 1 else 0}f}"


def _memory_table(title: str, cells: Sequence[dict]) -> Table:
    headings = ("thr.", "ours", "SDPA", "naive", "outputs", "scratch")
    table = _table(f"{title}, MiB, forward / with backward", ("dtype", "D", "S", "H", *headings))
    for cell in cells:
        heads = f"{cell['heads']}/{cell['kv_heads']}"
        sizes = (cell["dtype"].replace("float", "f"), str(cell["head_dim"]), str(cell["seqlen_k"]))
        table.add_row(*sizes, heads, str(cell["threads"]), *_memory_cells(cell))
    return table


def _memory_cells(cell: dict) -> tuple[str, ...]:
    if "bytes" not in cell:
        return (_MARKS["failed"],)
    peaks = [cell["bytes"].get(name) for name in ("tvm_flash", "sdpa", "naive")]
    rest = (cell["output_bytes"], cell["scratch_bytes"])
    return tuple(map(_mebibytes, (*peaks, *rest)))


def _mebibytes(found: dict[str, int | None] | None) -> str:
    if found is None:
        return "-"
    values = (found["forward"], found["forward_backward"])
    return " / ".join("?" if value is None else f"{value / 2**20:.1f}" for value in values)


def summary_lines(data: dict) -> Iterator[str]:
    """Targets met and missed, proportionality of windows, and how quiet the machine was."""
    from ..bench.verdicts import kernels_line, quietness, reasons, totals, window_line

    found = totals(data["cells"])
    line = f"targets: [green]{found['met']} met[/], [red]{found['missed']} missed[/]"
    if found["elsewhere"]:
        line += f", {found['elsewhere']} set for AMX and not reached without it"
    for word in ("skipped", "failed"):
        if found[word]:
            line += f", {found[word]} {word}"
    yield line
    for (word, reason), number in reasons(data["cells"]).items():
        yield f"{word}, {number} cells: {escape(reason)}"
    yield from filter(None, (window_line(data["cells"]), kernels_line(data)))
    yield from quietness(data)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in headings:
        left = heading in ("dtype", "mask", "on", "dir.", "")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    return table
