"""`tvm-flash study search`: what it writes, what it refuses, whose fault an error is."""

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from replay_tables import write_table
from typer.testing import CliRunner

from tvm_flash.cli.app import app
from tvm_flash.errors import TvmFlashError
from tvm_flash.study.search import document as search_document
from tvm_flash.study.search.curves import curves, summaries
from tvm_flash.study.search.run import Budget, Run, study

ROOT = Path(__file__).resolve().parents[2]
RUN = CliRunner()


def command(*arguments):
    done = RUN.invoke(app, ["study", "search", *map(str, arguments)])
    done.text = " ".join(done.output.replace("│", " ").split())
    return done


def test_the_command_writes_tables_numbers_and_picture(small, tmp_path):
    files = [tmp_path / f"s.{kind}" for kind in ("csv", "png")]
    options = itertools.chain(*zip(("--csv", "--plot"), files, strict=True))
    searched = (
        "--table", tmp_path / "small.jsonl", "--strategies", "random,grid", "--trials", 8,
        "--seeds", 3,
    )  # fmt: skip
    done = command(*searched, *options)
    assert done.exit_code == 0, done.output
    assert "random" in done.output and "final regret" in done.output
    (found,) = json.loads(command(*searched, "--json").stdout)
    assert found["table"] == "small" and found["seeds"] == [0, 1, 2] and found["trials"] == 8
    points = list(small.measured)
    rows = list(csv.DictReader(files[0].open()))
    assert len(rows) == 2 * 3 * 9
    for run in found["runs"]:
        own = [r for r in rows if (r["strategy"], int(r["seed"])) == (run["strategy"], run["seed"])]
        tried = [tuple(int(row[knob]) for knob in small.head["knobs"]) for row in own]
        assert tried == [points[n] for n in (run["start"], *run["order"])]
        assert min(float(r["seconds"] or "inf") for r in own) == float(own[-1]["best_seconds"])
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "s.csv",
        "s.png",
        "small.jsonl",
    ]


def test_more_trials_than_points_are_clipped_with_a_note(small, tmp_path):
    done = command("--table", tmp_path / "small.jsonl", "--strategies", "grid", "--trials", 999)
    assert done.exit_code == 0
    assert f"small has {len(small.measured)} points" in done.text


BAD = {
    "an unknown strategy": (["--strategies", "magic"], "strategy 'magic' must be one of"),
    "a module that is not there": (["--strategies", "no_such:Thing"], "no_such"),
    "a module for a class": (["--strategies", "os:path"], "not a class"),
    "a device": (["--csv", "/dev/null"], "cannot be written"),
    "no strategy": (["--strategies", ","], "must be 1 or more"),
    "no trials": (["--trials", "0"], "trials=0 must be 1 or more"),
    "no batch": (["--batch", "0"], "batch=0 must be 1 or more"),
    "an unknown start": (["--start", "best"], "start='best' must be one of"),
    "no seeds": (["--seeds", "0"], "--seeds 0"),
    "an output that is a folder": (["--csv", "."], "cannot be written"),
    "an output in no folder": (["--plot", "no/where.png"], "cannot be written"),
    "a picture of no kind": (["--plot", "s.docx"], "suffix must be one of"),
    "no table": (["--table", "nowhere"], "not a file, nor one of the package's tables"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_the_command_refuses_with_reasons(small, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    place = [] if "--table" in options else ["--table", "small.jsonl"]
    done = command(*place, *options)
    assert done.exit_code == 2 and message in done.text, done.output
    assert [file.name for file in tmp_path.iterdir()] == ["small.jsonl"]


def test_a_table_of_one_point_leaves_nothing_to_search(tmp_path):
    one = write_table(tmp_path / "one.jsonl", knobs={"block_q": (128,)}, failing=0)
    assert len(one.measured) == 1
    done = command("--table", tmp_path / "one.jsonl")
    assert done.exit_code == 2 and "one has one point, the start" in done.text


def test_a_table_of_another_version_is_refused_before_anything_runs(small, tmp_path):
    path = tmp_path / "small.jsonl"
    path.write_text(path.read_text().replace('"format": 1', '"format": 7', 1))
    done = command("--table", path)
    assert done.exit_code == 2 and "format=7, this version reads 1" in done.text


def test_a_fault_within_a_strategy_is_not_taken_for_bad_input(small, tmp_path, monkeypatch):
    """Whoever writes one needs the place, not a line about options."""
    (tmp_path / "my_faulty_search.py").write_text(
        "class Faulty:\n"
        "    def __init__(self, task, seed):\n"
        "        raise ValueError('list.remove(x): x not in list')\n"
    )
    monkeypatch.chdir(tmp_path)
    done = command("--table", "small.jsonl", "--strategies", "my_faulty_search:Faulty")
    assert isinstance(done.exception, ValueError) and done.exit_code == 1


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fault_deep_within_a_strategy_keeps_its_mark(small, tmp_path, monkeypatch, jobs):
    """Its last frame may be anybody's, json's here, and the process another one."""
    (tmp_path / "my_deep_fault.py").write_text(
        "import json\n"
        "class Deep:\n"
        "    def __init__(self, task, seed):\n"
        "        pass\n"
        "    def observe(self, observations):\n"
        "        json.loads('{')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    table = Path("small.jsonl") if jobs > 1 else small
    with pytest.raises(json.JSONDecodeError) as found:
        list(study(table, ["my_deep_fault:Deep"], [0], Budget(4, 2), jobs))
    assert found.value.in_strategy == "my_deep_fault:Deep"
    done = command("--table", "small.jsonl", "--strategies", "my_deep_fault:Deep")
    assert isinstance(done.exception, ValueError) and done.exit_code == 1


@pytest.mark.slow
def test_another_process_gets_the_same_bits(tmp_path, monkeypatch):
    """One that orders its sets and dictionaries of text in another way."""
    write_table(tmp_path / "t.jsonl.gz")
    monkeypatch.chdir(tmp_path)
    names = "random,grid,coordinate,xgb,ranked-xgb"
    options = ["--table", "t.jsonl.gz", "--strategies", names, "--trials", "24", "--seeds", "2"]

    here = command(*options, "--json", "--csv", "here.csv")
    assert here.exit_code == 0
    there = [sys.executable, "-m", "tvm_flash", "study", "search", *options]
    there += ["--json", "--csv", "there.csv"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(there, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    here, there = (without_thinking(json.loads(text)) for text in (here.stdout, done.stdout))
    assert here == there
    assert Path("here.csv").read_bytes() == Path("there.csv").read_bytes()


def without_thinking(document):
    if isinstance(document, dict):
        kept = {k: v for k, v in document.items() if k != "thinking_seconds"}
        return {k: without_thinking(v) for k, v in kept.items()}
    return list(map(without_thinking, document)) if isinstance(document, list) else document


def test_the_example_of_a_strategy_works(table, tmp_path, monkeypatch):
    """The one in the documents, by the command that they give."""
    monkeypatch.chdir(ROOT / "examples")
    write_table(tmp_path / "t.jsonl.gz")
    done = command(
        "--table", tmp_path / "t.jsonl.gz", "--strategies", "random,my_strategy:Nearest",
        "--trials", 40, "--seeds", 10, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    area = {summary["strategy"]: summary["area"][0] for summary in found["summary"]}
    assert area["my_strategy:Nearest"] < area["random"]


@pytest.mark.parametrize("name", ["forward_d64_s512", "backward_d64_s512"])
def test_a_study_on_a_real_table(name):
    names = "random,grid,coordinate,xgb"
    done = command("--table", name, "--strategies", names, "--trials", 48, "--seeds", 3, "--json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    assert {summary["strategy"] for summary in found["summary"]} == set(names.split(","))
    starts = [found["curves"][name]["median"][0] for name in names.split(",")]
    assert len(set(starts)) == 1 and starts[0] > 0.05
    for curve in found["curves"].values():
        assert all(a >= b for a, b in itertools.pairwise(curve["median"]))
        assert all(a < b for a, b in itertools.pairwise(curve["spent_seconds"]))


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.json").symlink_to("there/s.json")
    search_document.write(tmp_path / "link.json", "text")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "there" / "s.json").read_text() == "text"


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, *arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(TvmFlashError, match="No space left"):
        search_document.write(tmp_path / "s.json", "text")
    assert not list(tmp_path.iterdir())


def test_documents_are_json_without_infinities(small):
    runs = [Run("none", 0, small.start, ())]
    found = curves(small, runs, 3)
    text = search_document.json_text(
        [search_document.document(small, runs, Budget(3), found, summaries(found))]
    )
    (loaded,) = json.loads(text, parse_constant=pytest.fail)
    assert loaded["summary"][0]["trials_to"]["1%"] in (None, 0.0)
