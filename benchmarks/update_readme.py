"""Write the measured tables of README.md from benchmarks/results/*.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
NOTHING = "Nothing is measured yet: `make bench` fills this in."


def main() -> None:
    """Rewrite README.md; with --check, only say whether it would change."""
    text = README.read_text(encoding="utf-8")
    renewed = with_tables(text, tables())
    if "--check" in sys.argv[1:]:
        sys.exit("README.md is behind benchmarks/results" if renewed != text else 0)
    README.write_text(renewed, encoding="utf-8")


def with_tables(text: str, measured: str) -> str:
    """``text`` with what stands between the markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{measured}\n{END}{after}"


def tables() -> str:
    """One section for each result file, or a line that says there is none."""
    files = sorted(RESULTS.glob("*.json"))
    sections = [section(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return "\n\n".join(sections) or NOTHING


def section(document: dict) -> str:
    """The tables of one machine."""
    host = document["host"]
    features = ", ".join(host["features"])
    lines = [
        f"{host['cpu']}, {host['cores']} cores, {host['threads']} threads ({features}); "
        f"torch {host['torch']}; {host['date']}.",
        "",
        *_timing_lines(document["rows"]),
    ]
    if document["memory"]:
        lines += ["", *_memory_lines(document["memory"])]
    return "\n".join(lines)


def _timing_lines(rows: list[dict]) -> Iterator[str]:
    first = rows[0]
    yield (
        f"Batch x heads = {first['batch'] * first['heads']}. GFLOP/s of ours, and in brackets how "
        "many times faster than torch's SDPA / than naive attention:"
    )
    yield ""
    seqlens = sorted({row["seqlen"] for row in rows})
    yield _line(["", *(f"S={s}" for s in seqlens)])
    yield _line(["---", *("---:" for _ in seqlens)])
    cells = {(_label(row), row["seqlen"]): _cell(row) for row in rows}
    for label in sorted({label for label, _ in cells}, key=_label_order):
        yield _line([_words(label), *(cells.get((label, s), "") for s in seqlens)])


def _label(row: dict) -> tuple:
    return row["direction"], row["dtype"], row["head_dim"], row["causal"]


def _label_order(label: tuple) -> tuple:
    direction, dtype, head_dim, causal = label
    return direction == "backward", dtype != "float32", head_dim, causal


def _words(label: tuple) -> str:
    direction, dtype, head_dim, causal = label
    return f"{direction}, {dtype}, D={head_dim}, {'causal' if causal else 'full'}"


def _cell(row: dict) -> str:
    ratios = [row["ratio"]["sdpa"], row["ratio"]["naive"]]
    text = " / ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    return f"{row['contenders']['tvm_flash']['gflops']:.0f} ({text})"


def _memory_lines(rows: list[dict]) -> Iterator[str]:
    first = rows[0]
    yield (
        f"Peak MiB above the inputs, forward / with backward ({first['dtype']}, "
        f"D={first['head_dim']}, batch x heads = {first['batch'] * first['heads']}):"
    )
    yield ""
    seqlens = sorted({row["seqlen"] for row in rows})
    yield _line(["", *(f"S={s}" for s in seqlens)])
    yield _line(["---", *("---:" for _ in seqlens)])
    cells = {(row["contender"], row["seqlen"]): _mebibytes(row) for row in rows}
    for contender in dict.fromkeys(row["contender"] for row in rows):
        yield _line([contender, *(cells.get((contender, s), "does not fit") for s in seqlens)])


def _mebibytes(row: dict) -> str:
    values = (row["forward_bytes"], row["forward_backward_bytes"])
    return " / ".join("?" if value is None else f"{value / 2**20:.0f}" for value in values)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
