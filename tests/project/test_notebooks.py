"""The scripts behind pages of the documentation run, and print what the pages say."""

import re
from pathlib import Path

import pytest
from notebook import NAMES, cells_of, page, run

ROOT = Path(__file__).resolve().parents[2]
# The others take seconds: a whole stack of compilers is in one of them.
QUICK = ("mask_gallery", "search_replayed")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.sweep) for name in NAMES],
)
def test_scripts_print_what_their_pages_say(name):
    cells = run(ROOT / "examples" / f"{name}.py")
    pictures = [data for cell in cells for _, data in cell.pictures]
    assert len(pictures) >= 2 and all(len(data) > 5000 for data in pictures)
    said = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert without_compiler(page(name, cells), cells) == without_compiler(said, cells)


def without_compiler(text, cells):
    """A page without what cells that depend on a CUDA compiler printed."""
    for cell in cells:
        if cell.depends_on_compiler:
            code = re.escape(f"```python\n{cell.source}\n```\n\n")
            text, count = re.subn(code + r"```text\n.*?\n```", "", text, flags=re.DOTALL)
            assert count == 1
    return text


def test_cells_of_a_script(tmp_path):
    script = tmp_path / "small.py"
    script.write_text(
        "# %% [markdown]\n# # Small\n#\n# See [use](../docs/use.md).\n\n# %%\nx = 2\n\n"
        '# %% tags=["compiler"]\nprint(x + 1)\n'
    )
    cells = run(script)
    assert [(cell.line, cell.printed) for cell in cells] == [(2, ""), (7, ""), (10, "3\n")]
    assert [cell.depends_on_compiler for cell in cells] == [False, False, True]
    assert page("small", cells) == (
        "# Small\n\nSee [use](use.md).\n\n"
        "This page is [examples/small.py](../examples/small.py), run: `make notebooks`.\n\n"
        "```python\nx = 2\n```\n\n```python\nprint(x + 1)\n```\n\n```text\n3\n```\n"
    )


def test_lines_of_errors_are_those_of_the_script(tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text("# %%\nx = 1\n\n\n# %%\n\ny = x.none\n")
    with pytest.raises(AttributeError) as caught:
        run(script)
    assert caught.traceback[-1].lineno + 1 == 7
    with pytest.raises(ValueError, match="begins with a cell"):
        cells_of("x = 1\n# %%\n")
