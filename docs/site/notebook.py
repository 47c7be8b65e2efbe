"""Scripts in percent format as pages: text, code, what it prints and draws.

    python docs/site/notebook.py [NAME ...]    # runs examples/NAME.py, writes docs/NAME.md

A cell begins with "# %%", one of text with "# %% [markdown]"; editors run them one by one. What a
cell with the tag "compiler" prints depends on the CUDA compiler at hand.
"""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("mask_gallery", "formula_to_machine_code", "search_replayed")
_HEAD = re.compile(r"^# %%(.*)\n", re.MULTILINE)
_DOTS_PER_INCH = 100


@dataclass
class Cell:
    """A part of a script. head: what stands behind "# %%"; line: that of its first one."""

    head: str
    source: str
    line: int
    printed: str = ""
    pictures: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def is_text(self) -> bool:
        """Whether it is Markdown in comments."""
        return "[markdown]" in self.head

    @property
    def depends_on_compiler(self) -> bool:
        """Whether another release of nvcc may print something else."""
        return '"compiler"' in self.head


def cells_of(text: str) -> list[Cell]:
    """The cells of a script, not run yet."""
    parts = _HEAD.split(text)
    if parts[0].strip():
        raise ValueError("a script in percent format begins with a cell: # %%")
    line, found = 1, []
    for head, source in zip(parts[1::2], parts[2::2], strict=True):
        found.append(Cell(head, source.strip("\n"), line + 1 + _blank_lines(source)))
        line += 1 + source.count("\n")
    return found


def _blank_lines(source: str) -> int:
    return len(source) - len(source.lstrip("\n"))


def run(path: Path) -> list[Cell]:
    """The cells of a script, run in order, with what they printed and the figures they showed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.close("all")  # what others have drawn in this process
    cells, names = cells_of(path.read_text(encoding="utf-8")), {"__name__": "__main__"}
    for cell in cells:
        if cell.is_text:
            continue
        printed = io.StringIO()
        code = compile("\n" * (cell.line - 1) + cell.source, str(path), "exec")
        keep = mock.patch.object(pyplot, "show", lambda cell=cell: _keep(cell, pyplot))
        with keep, redirect_stdout(printed):
            exec(code, names)
        cell.printed = printed.getvalue()
    return cells


def _keep(cell: Cell, pyplot) -> None:
    """In place of a window: the open figures as PNG, by their names."""
    for number in pyplot.get_fignums():
        figure, file = pyplot.figure(number), io.BytesIO()
        figure.savefig(file, dpi=_DOTS_PER_INCH, metadata={"Software": None})
        cell.pictures.append((figure.get_label(), file.getvalue()))
    pyplot.close("all")


def page(name: str, cells: list[Cell]) -> str:
    """The Markdown of docs/NAME.md; pictures are NAME-1.png and so on."""
    shown, pictures = [], 0
    for cell in cells:
        shown.append(_text_of(cell) if cell.is_text else f"```python\n{cell.source}\n```")
        if cell.printed:
            shown.append(f"```text\n{cell.printed.rstrip()}\n```")
        for title, _ in cell.pictures:
            pictures += 1
            shown.append(f"![{title}]({name}-{pictures}.png)")
    origin = f"This page is [examples/{name}.py](../examples/{name}.py), run: `make notebooks`."
    return "\n\n".join([shown[0], origin, *shown[1:]]) + "\n"


def _text_of(cell: Cell) -> str:
    """Markdown from comments; links are as from examples/, beside which docs/ lies."""
    lines = "\n".join(line.removeprefix("#").removeprefix(" ") for line in cell.source.split("\n"))
    return lines.strip().replace("](../docs/", "](")


def main() -> None:
    """Run the scripts that are named, or all, and write their pages and pictures."""
    for name in sys.argv[1:] or NAMES:
        cells = run(ROOT / "examples" / f"{name}.py")
        (ROOT / "docs" / f"{name}.md").write_text(page(name, cells), encoding="utf-8")
        pictures = [data for cell in cells for _, data in cell.pictures]
        for number, data in enumerate(pictures, 1):
            (ROOT / "docs" / f"{name}-{number}.png").write_bytes(data)


if __name__ == "__main__":
    main()
