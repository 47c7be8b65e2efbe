"""The document of a run, its tables on the terminal, and its plot."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .correctness import Failure
from .rows import Row

FORMAT = 1


@dataclass
class Report:
    """Everything one run found; ``missing_cases`` are those that the library does not serve."""

    machine: dict
    options: dict
    checked: list[str] = field(default_factory=list)
    missing_cases: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def to_json(self) -> dict:
        """The document."""
        return {
            "format": FORMAT,
            "machine": self.machine,
            "options": self.options,
            "correctness": {
                "checked": self.checked,
                "not_served": self.missing_cases,
                "failures": [failure.to_json() for failure in self.failures],
            },
            "rows": [row.to_json() for row in self.rows],
        }

    def write(self, path: Path) -> None:
        """Write the document at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".part")
        draft.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(draft, path)


def failure_table(failures: list[Failure]) -> Iterator[str]:
    """One line for each failure."""
    for f in failures:
        number = "" if f.error is None else f"{f.error:.3e} > {f.limit:.3e}"
        yield f"{f.case:32} {f.result:6} {number}{f.message}"


def row_line(row: Row) -> str:
    """TFLOP/s of everybody, in one line."""
    cells = [f"{name} {row.tflops(name):.0f}" for name in row.timings]
    cells += [f"{name} -" for name in row.missing]
    return f"{row.direction:8} {row.problem.name:32} {'  '.join(cells)}"


def plot(document: dict, path: Path) -> list[Path]:
    """TFLOP/s against the length, a panel for each head_dim and mask; one file a direction.

    Needs matplotlib. ``path`` names the files: results.svg gives results_forward.svg and so on.
    """
    written = []
    for direction in ("forward", "backward"):
        rows = [row for row in document["rows"] if row["direction"] == direction]
        if rows:
            target = path.with_name(f"{path.stem}_{direction}{path.suffix}")
            _draw(rows, f"{direction}, {_title(document)}", target)
            written.append(target)
    return written


def _title(document: dict) -> str:
    machine = document["machine"]
    torch_version = machine.get("versions", {}).get("torch", "?")
    return f"{machine.get('gpu', machine['device'])}, torch {torch_version}, {machine['date']}"


def _draw(rows: list[dict], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    dims = sorted({row["head_dim"] for row in rows})
    masks = sorted({row["causal"] for row in rows})
    figure = Figure(figsize=(1 + 4 * len(dims), 1 + 3 * len(masks)), layout="constrained")
    axes = figure.subplots(len(masks), len(dims), squeeze=False, sharex=True)
    for i, causal in enumerate(masks):
        for j, dim in enumerate(dims):
            panel = [r for r in rows if (r["causal"], r["head_dim"]) == (causal, dim)]
            _draw_panel(axes[i][j], panel)
            axes[i][j].set_title(f"D={dim}, {'causal' if causal else 'full'}")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(title)
    figure.savefig(path)


def _draw_panel(axis, rows: list[dict]) -> None:
    names = dict.fromkeys(name for row in rows for name in row["contenders"])
    for name in names:
        points = [
            (row["seqlen"], row["contenders"][name]["tflops"])
            for row in sorted(rows, key=lambda row: row["seqlen"])
            if name in row["contenders"]
        ]
        width = 2.2 if name == "tvm_flash" else 1.0
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=width, label=name)
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("sequence length")
    axis.set_ylabel("TFLOP/s")
