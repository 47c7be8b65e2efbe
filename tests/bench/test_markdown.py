"""What becomes of a benchmark's document: tables in Markdown, a plot, the README's figures."""

import importlib.util
import json
import sys
from pathlib import Path

import bench_documents
import pytest

from tvm_flash.bench.markdown import complete, short
from tvm_flash.bench.plot import draw
from tvm_flash.errors import TvmFlashError

ROOT = Path(__file__).resolve().parents[2]


def test_the_plot_is_a_picture(tmp_path):
    file = tmp_path / "plot.png"
    draw(bench_documents.whole_document(), file)
    data = file.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert data.startswith(b"\x89PNG") and 1000 < width < 2000 and 700 < height < 2000
    assert 40_000 < len(data) < 400_000


def test_nothing_timed_is_nothing_drawn(tmp_path):
    data = bench_documents.whole_document()
    data["cells"] = [cell for cell in data["cells"] if cell["kind"] == "memory"]
    with pytest.raises(TvmFlashError, match="nothing to draw"):
        draw(data, tmp_path / "plot.png")


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(TvmFlashError, match=r"tvm-flash\[plot\]"):
        draw(bench_documents.whole_document(), tmp_path / "plot.png")


def test_markdown_holds_every_cell():
    data = bench_documents.whole_document()
    text = complete(data)
    for cell in data["cells"]:
        assert cell["key"].partition(": ")[2].split(" forward")[0].split(" backward")[0] in text
    assert text.count("\n| ") >= len(data["cells"])
    assert "What misses" not in text


def test_markdown_says_what_is_left_of_a_missed_target():
    data = bench_documents.whole_document()
    cell = next(c for c in data["cells"] if c["section"] == "main" and "of_floor" in c)
    cell.update(ratio={"sdpa": 0.9}, of_floor=0.75, met=False, counts=True, target=1.3)
    table = complete(data).partition("### What misses its target")[2].partition("\n- ")[0]
    (row,) = [line for line in table.splitlines() if line.startswith("| main")]
    assert row.endswith("| 0.90 | 1.30 | 75% | 1.20 |")


def test_the_short_form_is_four_rows_whatever_came_out():
    data = bench_documents.whole_document()
    text = short(data, "docs/a.png", "docs/a.md")
    rows = [line.partition(" |")[0] for line in text.splitlines() if "D=" in line]
    assert rows == [
        f"| {direction}, {dtype}, D=128"
        for direction in ("forward", "backward")
        for dtype in ("float32", "bfloat16")
    ]
    assert "(docs/a.png)" in text and "(docs/a.md)" in text and "\n- " not in text


@pytest.mark.parametrize("form", [short, complete])
def test_ratios_below_their_target_are_marked(form):
    data = bench_documents.whole_document()
    assert "°" not in form(data).partition("target that was set:")[2]
    cell = next(
        cell for cell in data["cells"] if "main: float32 D=128 S=512" in cell["key"]
        and cell["threads"] == 2
    )  # fmt: skip
    cell.update(ratio={"sdpa": 0.77}, met=False)
    assert "0.77° (" in form(data)


def test_the_complete_form_sums_up_each_section():
    data = bench_documents.whole_document()
    for name in list(data["sections"])[1:-1]:
        assert f"- {name} (" in complete(data)


def update_readme():
    spec = importlib.util.spec_from_file_location(
        "update_readme", ROOT / "benchmarks" / "update_readme.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_are_written_from_results(tmp_path, monkeypatch):
    module = update_readme()
    files = {
        "README": "a.md", "PAGE": "b.md", "PICTURE": "c.png", "RESULTS": "results",
        "TUNING": "d.md", "LOGS": "logs",
    }  # fmt: skip
    for name, file in files.items():
        monkeypatch.setattr(module, name, tmp_path / file)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "old.json").write_text('{"format": 1, "rows": []}')
    module.README.write_text("x\n{}\nold\n{}\ny\n".format(*module.MEASURED))
    assert module.renewed() == {}
    (tmp_path / "results" / "new.json").write_text(json.dumps(bench_documents.whole_document()))
    assert set(module.renewed()) == {module.README}
    module.PAGE.write_text("{}\n{}\n".format(*module.CELLS))
    monkeypatch.setattr(sys, "argv", ["update_readme.py", "--check"])
    with pytest.raises(SystemExit, match="behind"):
        module.main()
    monkeypatch.setattr(sys, "argv", ["update_readme.py"])
    module.main()
    text = module.README.read_text()
    assert text.startswith("x\n") and text.endswith("y\n") and "old" not in text
    assert "float32, D=128" in text and "[b.md](b.md)" in text
    assert "### avx2" in module.PAGE.read_text()
    monkeypatch.setattr(sys, "argv", ["update_readme.py", "--check"])
    module.main()
