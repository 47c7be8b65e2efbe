"""Suites, targets, documents: what a run measures, keeps, continues, refuses, says and draws."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import bench_documents
import pytest
from typer.testing import CliRunner

from tvm_flash import bench
from tvm_flash.bench import run, verdicts
from tvm_flash.bench.markdown import complete, short
from tvm_flash.bench.plot import draw
from tvm_flash.cli.app import app
from tvm_flash.errors import TvmFlashError

ROOT = Path(__file__).resolve().parents[2]
SMALL = bench.Problem("float32", 64, 256, causal=True, heads=2)
HASTE = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0, steady=1e9)


def two_cells(threads):
    for direction in ("forward", "backward"):
        yield bench.Cell("main", SMALL, direction, threads, bench.Target(1e-6))


TINY = bench.Suite("tiny", (bench.Section("main", "two cells", two_cells),), HASTE)
CELLS = TINY.cells([1])


@pytest.fixture
def without_floors(monkeypatch):
    """Floors take seconds, which tests of other things do not have."""

    def measured(threads, quick=False):
        return bench.Floors(threads, "host", {"float32": 100.0}, 10.0, 0.01)

    monkeypatch.setattr(run, "measure_floors", measured)


def document_at(path):
    return bench.Document.opened(path, TINY, bench.described_host())


def measure_all(document, cells):
    return list(bench.Runner(document, HASTE).run(cells))


# What is measured.


def test_keys_are_unique():
    for suite in bench.SUITES.values():
        keys = [cell.key for cell in suite.cells([1, 2])]
        assert len(set(keys)) == len(keys)


def test_the_suite_holds_every_cell_of_its_targets():
    cells = bench.SUITES["cpu"].cells([1, 2])
    count = dict.fromkeys((cell.section for cell in cells), 0)
    for cell in cells:
        count[cell.section] += 1
    # dtypes x directions x head_dims x masks x lengths x threads
    assert count["main"] == 3 * 2 * 2 * 2 * 3 * 2
    assert count["head dims"] == 4 * 2 * 2
    for section in ("single head", "decode", "window", "tiny", "avx2"):
        assert any(c.target for c in cells if c.section == section), section
    # What is split over cores, or compared at full width, needs all of them.
    narrow = [c for c in cells if c.section in ("single head", "head dims") and c.threads == 1]
    assert not narrow


@pytest.mark.parametrize(
    "dtype, direction, causal, seqlen, ratio, feature",
    [
        ("float32", "forward", False, 2048, 1.15, ""),
        ("float32", "forward", True, 8192, 1.30, ""),
        ("bfloat16", "forward", False, 8192, 1.70, "amx_bf16"),
        ("bfloat16", "backward", True, 2048, 2.00, "amx_bf16"),
        ("float16", "backward", False, 2048, 1.3, ""),
        ("bfloat16", "forward", True, 512, 1.0, ""),
    ],
)
def test_targets_of_the_main_section(dtype, direction, causal, seqlen, ratio, feature):
    problem = bench.Problem(dtype, 64, seqlen, causal)
    cells = [c for c in bench.SUITES["cpu"].cells([2]) if c.section == "main"]
    found = next(c for c in cells if (c.problem, c.direction) == (problem, direction))
    assert found.target == bench.Target(ratio, feature)


# Verdicts.


@pytest.mark.parametrize(
    "target, ratio, expected",
    [
        (None, 0.5, "open"),
        (bench.Target(1.3), 1.3, "met"),
        (bench.Target(1.3), 1.29, "missed"),
        (bench.Target(1.3, "no_such_feature"), 1.29, "elsewhere"),
        (bench.Target(1.3, "no_such_feature"), 1.31, "met"),
    ],
)
def test_met_and_missed(target, ratio, expected):
    cell = bench_documents.timed_cell(replace(CELLS[0], target=target), ratio)
    assert verdicts.state(cell) == expected
    assert verdicts.totals([cell])[expected] == 1


def test_noise_is_said():
    quiet = bench_documents.timed_cell(CELLS[0], 1.0)
    noisy = bench_documents.timed_cell(CELLS[0], 1.0, spread=0.06)
    assert not quiet["noisy"] and noisy["noisy"]
    data = {"cells": [quiet, noisy], "runs": [{"load_average": [7.5, 0, 0], "cores": 2}]}
    text = " ".join(verdicts.quietness(data))
    assert "1 of 2 cells stayed noisy" in text and "7.5" in text and "was quiet" in text
    for cell in data["cells"]:
        cell["others"] = 0.3
    assert "was busy" in " ".join(verdicts.quietness(data))
    data["runs"] += [{"load_average": [load, 0, 0], "cores": 2} for load in (0.5, 9.25)]
    assert "0.5 to 9.25 (3 runs, 2 cores" in next(verdicts.quietness(data))


def test_the_window_line_is_time_over_window():
    cells = []
    for window in (128, 256):
        problem = bench.Problem("float32", 64, 1024, True, window=window)
        cells.append(bench_documents.timed_cell(replace(CELLS[0], problem=problem), 2.0))
    assert "7.8 at 128, 3.9 at 256" in verdicts.window_line(cells)


def test_shares_of_the_floor():
    document = bench.Document(TINY, dict(bench_documents.HOST))
    document.floors[2, "host"] = bench_documents.FLOORS
    decode = bench.Problem("bfloat16", 128, 8192, False, heads=32, kv_heads=8, seqlen_q=1)
    prefill = bench.Problem("bfloat16", 64, 2048, False)
    for problem, bound in ((decode, "copy"), (prefill, "matmul")):
        cell = replace(CELLS[0], problem=problem, threads=2)
        judged = document.judged(bench_documents.timed_cell(cell, 1.0))
        assert judged["bound"] == bound
        # bfloat16's own products are the slower way here: float32's rate is the floor.
        assert judged["floor_seconds"]["matmul"] == pytest.approx(judged["flops"] / 200e9)
        assert judged["of_floor"] == pytest.approx(judged["floor_seconds"][bound] / 1e-3)


# Keeping and continuing.


def test_a_run_is_continued(tmp_path, without_floors):
    path = tmp_path / "run.json"
    first = measure_all(document_at(path), CELLS[:1])
    again = document_at(path)
    assert bench.pending(again, CELLS) == CELLS[1:]
    measure_all(again, CELLS[1:])
    data = json.loads(path.read_text())
    assert data["format"] == bench.FORMAT and len(data["runs"]) == 2 and data["floors"]
    assert [cell["key"] for cell in data["cells"]] == [cell.key for cell in CELLS]
    assert data["cells"][0] == json.loads(json.dumps(first[0]))
    assert all(cell["met"] and cell["of_floor"] > 0 for cell in data["cells"])
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_an_interrupted_run_keeps_what_it_had(tmp_path, monkeypatch, without_floors):
    real = run.measured_cell

    def interrupted(cell, *rest):
        if cell.direction == "backward":
            raise KeyboardInterrupt
        return real(cell, *rest)

    path = tmp_path / "run.json"
    monkeypatch.setattr(run, "measured_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_all(document_at(path), CELLS)
    assert bench.pending(document_at(path), CELLS) == CELLS[1:]


def test_a_failing_cell_does_not_end_the_run(tmp_path, monkeypatch, without_floors):
    real = run.measured_cell

    def failing(cell, *rest):
        if cell.direction == "forward":
            raise RuntimeError("no such kernel")
        return real(cell, *rest)

    path = tmp_path / "run.json"
    monkeypatch.setattr(run, "measured_cell", failing)
    found = measure_all(document_at(path), CELLS)
    assert "no such kernel" in found[0]["error"] and "seconds" in found[1]
    assert verdicts.totals(found)["failed"] == 1
    assert verdicts.reasons(found) == {("failed", "RuntimeError: no such kernel"): 1}
    assert bench.pending(document_at(path), CELLS) == CELLS[:1]


def test_what_is_measured_again(monkeypatch):
    document = bench.Document(TINY, dict(bench_documents.HOST))
    for cell in CELLS:
        document.add(bench_documents.timed_cell(cell, 1.0))
    assert bench.pending(document, CELLS) == []
    assert bench.pending(document, CELLS, rerun=True) == CELLS
    assert bench.pending(document, CELLS, stale=True) == []
    document.cells[CELLS[0].key]["kernels"] = "older"
    assert bench.pending(document, CELLS, stale=True) == CELLS[:1]
    assert "2 states" in verdicts.kernels_line(document.to_json())


def test_floors_of_a_busy_machine_are_measured_again(without_floors):
    document = bench.Document(TINY, dict(bench_documents.HOST))
    for others, expected in ((0.5, 100.0), (0.0, 7.0)):
        rates = {"matmul_gflops": {"float32": 7.0}, "threads": 1, "others": others}
        document.floors[1, "host"] = {**bench_documents.FLOORS, **rates}
        bench.Runner(document, HASTE)._ensure_floors(CELLS[0])
        assert document.floors[1, "host"]["matmul_gflops"]["float32"] == expected


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"host": {"cpu": "Other CPU"}}, "cpu Other CPU"),
        ({"host": {"torch": "1.0"}}, "torch 1.0"),
        ({"host": {"tvm": "0.1"}}, "tvm 0.1"),
        ({"suite": "cpu"}, "suite cpu"),
        ({"format": 1}, "has format 1"),
        ({"cells": None}, "lacks cells"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, change, reason):
    path = tmp_path / "run.json"
    document = document_at(path)
    document.write()
    data = json.loads(path.read_text())
    for key, value in change.items():
        if value is None:
            del data[key]
        else:
            data[key] = {**data[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(data))
    before = path.read_bytes()
    with pytest.raises(TvmFlashError, match=reason):
        document_at(path)
    assert path.read_bytes() == before


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"format": 2, "cel')
    with pytest.raises(TvmFlashError, match="not a document"):
        document_at(path)


# The command.


def call(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_measures_once(tmp_path, monkeypatch, without_floors):
    monkeypatch.setitem(bench.SUITES, "short", TINY)
    file, picture = tmp_path / "run.json", tmp_path / "run.png"
    arguments = ("--json", str(file), "--threads", "1")
    done = call(*arguments, "--plot", str(picture))
    assert done.exit_code == 0, done.output
    assert "main: two cells" in done.output and "2 met, 0 missed" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    before = file.read_bytes()
    again = call(*arguments)
    assert again.exit_code == 0 and file.read_bytes() == before
    renewed = call(*arguments, "--rerun", "--match", "forward")
    assert renewed.exit_code == 0 and "1 met, 0 missed" in renewed.output
    old, new = json.loads(before)["cells"], json.loads(file.read_text())["cells"]
    assert old[1]["seconds"] == new[1]["seconds"] and old[0]["seconds"] != new[0]["seconds"]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("--match", "no such cell"), "no cell"),
        (("--threads", "0"), "positive"),
        (("--threads", "100000"), "cores"),
        (("--plot", "no/such/folder/a.png"), "does not exist"),
    ],
)
def test_wrong_options_are_refused_before_measuring(arguments, complaint):
    done = call("--quick", *arguments)
    assert done.exit_code == 2 and complaint in done.output


# Words and pictures.


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
