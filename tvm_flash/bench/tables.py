"""What a document holds as tables, for terminals and for Markdown alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .cells import place
from .contender import OURS
from .table import Mark, Table, numbers, words
from .verdicts import rival, spread, state, target_words

_TONES = {"met": "good", "right": "good", "missed": "bad", "wrong": "bad", "failed": "bad"}
_WORDS = {"open": "", "elsewhere": "no AMX here"}


def section_tables(cells: Sequence[dict], titles: dict[str, str]) -> Iterator[Table]:
    """One table for each section that has cells."""
    kinds = {
        "memory": memory_table, "case": case_table, "kernel": case_table, "search": search_table,
    }  # fmt: skip
    for name, title in titles.items():
        found = [cell for cell in cells if cell["section"] == name]
        if found:
            yield kinds.get(found[0]["kind"], timing_table)(f"{name}: {title}", found)


def floor_table(floors: Sequence[dict]) -> Table:
    """The rates of a large matmul and of a large copy."""
    dtypes = list(dict.fromkeys(dtype for floor in floors for dtype in floor["matmul_gflops"]))
    columns = [*words(""), *numbers(*(f"{dtype} matmul" for dtype in dtypes), unit="GFLOP/s")]
    rows = []
    for floor in floors:
        rates = (floor["matmul_gflops"].get(dtype) for dtype in dtypes)
        texts = ("-" if rate is None else f"{rate:.0f}" for rate in rates)
        rows.append((_floor_words(floor), *texts, f"{floor['copy_gbytes']:.1f}"))
    return Table("floors", (*columns, *numbers("copy", unit="GB/s")), rows)


def timing_table(title: str, cells: Sequence[dict]) -> Table:
    """A line for each timed cell; ratios above 1 mean that we are faster."""
    measured = [cell for cell in cells if "ratio" in cell]
    several = any(len(cell["ratio"]) > 1 for cell in measured)
    named = {rival(cell) for cell in measured} != {"sdpa"} and bool(measured)
    columns = [
        *words("problem", "on"),
        *numbers("ours", "other" if named else "SDPA", unit="ms"),
        *numbers("spread", rank=1),
        *numbers("GFLOP/s", rank=2),
        *numbers("of the floor", rank=3),
        *numbers("ratio"),
        *numbers("target", rank=4),
        *words("verdict"),
        *(words("all ratios", rank=5) if several else ()),
    ]
    rows = []
    for cell in cells:
        others = (all_ratios(cell),) if several else ()
        rows.append((problem_words(cell), on(cell), *_figures(cell), *others))
    return Table(title, tuple(columns), rows).without_empty()


def memory_table(title: str, cells: Sequence[dict]) -> Table:
    """Peaks and scratch of every cell."""
    names = (OURS, "sdpa", "naive")
    columns = (
        *words("problem", "on"), *numbers(*names[:2]), *numbers(names[2], rank=1),
        *numbers("our outputs", rank=2), *numbers("our scratch, all threads"),
    )  # fmt: skip
    rows = []
    for cell in cells:
        texts = ("failed", *["-"] * 4)
        if "bytes" in cell:
            peaks = (mebibytes(cell["bytes"].get(name)) for name in names)
            texts = (*peaks, *(mebibytes(cell[n]) for n in ("output_bytes", "scratch_bytes")))
        rows.append((problem_words(cell), on(cell), *texts))
    return Table(f"{title}; MiB, forward / with backward", columns, rows)


def case_table(title: str, cells: Sequence[dict]) -> Table:
    """A line for each case or kernel that is wrong; how many are right is in the title."""
    right = sum(state(cell) == "right" for cell in cells)
    skipped = sum(state(cell) == "skipped" for cell in cells)
    rows = [
        (cell["case"], on(cell), text)
        for cell in cells
        for text in _complaints(cell)
    ]  # fmt: skip
    counts = f"{right} of {len(cells)} right, {skipped} not served"
    return Table(f"{title}: {counts}", tuple(words("case", "on", "what is wrong")), rows)


def search_table(title: str, cells: Sequence[dict]) -> Table:
    """What each search gained (ratio: of the best's time over the default's), and how well models
    had ordered its candidates (-1 to 1)."""
    models = list(
        dict.fromkeys(m for c in cells if "search" in c for m in c["search"]["agreement"])
    )
    columns = (
        *words("kernel"), *numbers("default", "best", unit="ms", rank=1), *numbers("ratio"),
        *numbers("configs", rank=2), *numbers(*models), *words("failures", rank=3),
    )  # fmt: skip
    rows = []
    for cell in cells:
        found = cell.get("search")
        if found is None:
            rows.append((cell["case"], "failed", *["-"] * (4 + len(models))))
            continue
        times = (f"{found[name] * 1e3:.4g}" for name in ("default_seconds", "best_seconds"))
        agreed = (found["agreement"].get(model) for model in models)
        texts = ("-" if number is None else f"{number:.2f}" for number in agreed)
        failures = ", ".join(f"{n} {outcome}" for outcome, n in found["failures"].items())
        ratio, count = f"{found['ratio']:.3f}", str(len(found["candidates"]))
        rows.append((cell["case"], *times, ratio, count, *texts, failures))
    return Table(f"{title}; rank correlation of models", columns, rows)


def missed_table(cells: Iterable[dict]) -> Table:
    """How far below, and what is left: the ratio of a kernel that reached its floor."""
    columns = (
        *words("problem", "on"),
        *numbers("ratio", "target", "of the floor", "at the floor"),
    )
    rows = []
    for cell in cells:
        ratio, share = cell["ratio"][rival(cell)], cell.get("of_floor")
        left = ["-", "-"] if not share else [f"{share:.0%}", f"{ratio / share:.2f}"]
        name = f"{cell['section']}: {problem_words(cell)}"
        rows.append((name, on(cell), f"{ratio:.2f}", f"{cell['target']:.2f}", *left))
    return Table("What misses its target", columns, rows)


def ratio_table(cells: Sequence[dict]) -> Table:
    """Ratio and GFLOP/s: a line for each direction, dtype and D; a column for each mask and S."""
    places = sorted({(cell["causal"], cell["seqlen_k"]) for cell in cells})
    heads = [f"{'causal' if causal else 'full'} {seqlen}" for causal, seqlen in places]
    lines = dict.fromkeys((c["direction"], c["dtype"], c["head_dim"]) for c in cells)
    found = {
        (c["direction"], c["dtype"], c["head_dim"], c["causal"], c["seqlen_k"]): c for c in cells
    }
    rows = [
        (
            f"{direction}, {dtype}, D={dim}",
            *(_ratio(found.get((direction, dtype, dim, *place))) for place in places),
        )
        for direction, dtype, dim in sorted(lines, key=lambda line: line[0] == "backward")
    ]
    return Table("", (*words(""), *numbers(*heads)), rows)


def problem_words(cell: dict) -> str:
    """The problem and, of a timed cell, the direction."""
    text = cell["key"].partition(": ")[2].rpartition(f" {on(cell)}")[0]
    return text.removesuffix(" forward_backward")


def on(cell: dict) -> str:
    """Where a cell ran."""
    return place(cell["threads"], cell.get("device", "cpu"))


def all_ratios(cell: dict) -> str:
    """Everybody's time over ours, and who is missing."""
    known = [f"{name} {ratio:.2f}" for name, ratio in cell.get("ratio", {}).items() if ratio]
    return ", ".join([*known, *(f"{name} -" for name in cell.get("missing", ()))])


def mebibytes(found: dict | None) -> str:
    """MiB of a forward and of both directions, as text."""
    if found is None:
        return "does not fit"
    values = (found["forward"], found["forward_backward"])
    return " / ".join("?" if value is None else f"{value / 2**20:.1f}" for value in values)


def _floor_words(floor: dict) -> str:
    if floor["isa"] == "cuda":
        return "cuda"
    return place(floor["threads"]) + ("" if floor["isa"] == "host" else ", AVX2 alone")


def _figures(cell: dict) -> tuple[str | Mark, ...]:
    word = state(cell)
    if "seconds" not in cell:
        return (*["-"] * 7, Mark("failed", "bad") if word == "failed" else cell["skipped"])
    other = rival(cell)
    ratio = f"{cell['ratio'][other]:.2f}" if other else "-"
    theirs = f"{cell['seconds'][other] * 1e3:.4g}" if other else "-"
    verdict = ", ".join(filter(None, (_WORDS.get(word, word), "noisy" * cell.get("noisy", False))))
    return (
        f"{cell['seconds'][OURS] * 1e3:.4g}",
        theirs if other in ("", "sdpa") else f"{other} {theirs}",
        f"{spread(cell):.0%}",
        f"{cell['gflops'][OURS]:.0f}",
        f"{cell['of_floor']:.0%} ({cell['bound']})" if "of_floor" in cell else "-",
        ratio,
        target_words(cell),
        Mark(verdict, _TONES.get(word, "doubtful" if cell.get("noisy") else "faint")),
    )


def _complaints(cell: dict) -> Iterator[str]:
    for word in ("error", "failure"):
        if word in cell:
            yield cell[word].splitlines()[0]
    if "failure" in cell:
        return
    for name, found in cell.get("errors", {}).items():
        error, allowed = (
            float("inf") if found[n] is None else found[n] for n in ("error", "allowed")
        )
        if not error <= allowed:
            yield f"{name}: error {error:.3g} exceeds {allowed:.3g}"


def _ratio(cell: dict | None) -> str:
    if cell is None:
        return ""
    mark = "°" if state(cell) in ("missed", "elsewhere") else ""
    return f"{cell['ratio']['sdpa']:.2f}{mark} ({cell['gflops']['tvm_flash']:.0f})"
