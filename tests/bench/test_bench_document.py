"""A run's document: what is kept, continued and refused, and the command that measures."""

import json

import bench_documents
import pytest
from bench_documents import CELLS, HASTE, TINY
from typer.testing import CliRunner

from tvm_flash import bench
from tvm_flash.bench import measuring, verdicts
from tvm_flash.cli.app import app
from tvm_flash.errors import TvmFlashError


@pytest.fixture
def without_floors(monkeypatch):
    """Floors take seconds, which tests of other things do not have."""

    def measured(threads, quick=False):
        return bench.Floors(threads, "host", {"float32": 100.0}, 10.0, 0.01)

    monkeypatch.setattr(measuring, "measure_floors", measured)


def document_at(path):
    return bench.Document.opened(path, TINY, bench.described_host())


def measure_all(document, cells):
    return list(bench.Runner(document, HASTE).run(cells))


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
    real = measuring.measured_cell

    def interrupted(cell, *rest):
        if cell.direction == "backward":
            raise KeyboardInterrupt
        return real(cell, *rest)

    path = tmp_path / "run.json"
    monkeypatch.setattr(measuring, "measured_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_all(document_at(path), CELLS)
    assert bench.pending(document_at(path), CELLS) == CELLS[1:]


def test_a_failing_cell_does_not_end_the_run(tmp_path, monkeypatch, without_floors):
    real = measuring.measured_cell

    def failing(cell, *rest):
        if cell.direction == "forward":
            raise RuntimeError("no such kernel")
        return real(cell, *rest)

    path = tmp_path / "run.json"
    monkeypatch.setattr(measuring, "measured_cell", failing)
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
        bench.Runner(document, HASTE)._ensure_floors(CELLS[0], measuring.Here(CELLS, HASTE))
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
    arguments = ("--out", str(file), "--threads", "1")
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
