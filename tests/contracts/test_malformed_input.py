"""Files and texts that are not what a command takes: one line, exit status 2, no traceback."""

import gzip
import json
import math
import os
import sys

import pytest
from record_lines import line
from replay_tables import made_up
from search_toys import task
from typer.testing import CliRunner

from tvm_flash import bench as bench_library
from tvm_flash.cli.app import app
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.tune.metaschedule.database import MetaScheduleDatabase

SPEC = AttentionSpec(dtype="float32", head_dim=16).to_json()
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "1" * 5000
CONTENTS = {
    "empty": b"", "null": b"null", "number": b"5", "true": b"true", "list of null": b"[null]",
    "NaN": b"NaN", "nested": b"[[]]", "deep": DEEP.encode(), "huge": HUGE.encode(),
    "cut off": b'{"version": 1', "not UTF-8": b"\xff\xfe\x00", "zeros": bytes(64),
}  # fmt: skip
FIELDS = {
    "version": 99, "dtype": ["float32"], "head_dim": math.nan, "window_size": 5, "softcap": 10**400,
    "causal": 1, "score_mod": {"instructions": None}, "mask_mod": [None], "unknown": 1,
}  # fmt: skip


def refused(*arguments, words=()):
    """The one line that a command says, which holds ``words``."""
    done = CliRunner().invoke(app, [str(word) for word in arguments], terminal_width=200)
    assert done.exit_code == 2, f"{done.output}\n{done.exception!r}"
    assert isinstance(done.exception, SystemExit) and "Traceback" not in done.output
    said = done.stderr.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error:") and len(said[0]) < 800, said
    assert all(word in said[0] for word in words), said
    return said[0]


@pytest.mark.parametrize("command", ["build", "tune"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_specs_files(tmp_path, command, content):
    path = tmp_path / "specs.json"
    path.write_bytes(content)
    refused(command, "--specs", path, words=[str(path)])


@pytest.mark.parametrize("field", FIELDS)
def test_fields_of_specs(tmp_path, field):
    path = tmp_path / "specs.json"
    path.write_text(json.dumps(["fp32,d=16", {**SPEC, field: FIELDS[field]}]))
    refused("build", "--specs", path, words=[str(path), "entry 2: "])


@pytest.mark.parametrize(
    "text", ["a\0b.json", "a" * 5000 + ".json", "no.json", "no.txt", "attn_none", f"fp32,d={HUGE}"]
)
def test_odd_texts_of_specs(text):
    done = CliRunner().invoke(app, ["show", text])
    assert done.exit_code == 2 and "error:" in done.stderr and "Traceback" not in done.output


@pytest.mark.parametrize(
    "text",
    ["1 / 0", "def f(", "raise SystemExit(0)", "import no_such_module", "def f(score): return 1"],
)
def test_a_users_file_that_fails(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    refused("show", f"fp32,d=16,score_mod={path}:f", words=[str(path)])


def test_pipes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "specs.json")
    refused("build", "--specs", tmp_path / "specs.json", words=["is not a file"])


@pytest.mark.parametrize(
    "subject", ["", "no/manifest.json", "a\0b", "b" * 5000, "fp32,d=16,", "/dev/null"]
)
def test_odd_subjects_of_verify(subject, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["verify", subject, "--arch", "sm_999"])
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit)


BENCH = {
    "format": bench_library.FORMAT, "suite": "quick", "sections": {}, "runs": [],
    "floors": [], "cells": [],
}  # fmt: skip


def whole_bench():
    host = bench_library.described_host()
    return {**BENCH, "host": host, "sections": {"main": "title"}}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_bench_continues_no_foreign_file(tmp_path, content):
    path = tmp_path / "bench.json"
    path.write_bytes(content)
    refused("bench", "--quick", "--out", path, words=[str(path)])
    assert path.read_bytes() == content


def test_bench_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "bench.json")
    refused("bench", "--quick", "--out", tmp_path / "bench.json", words=["cannot be written"])


@pytest.mark.parametrize(
    "changes",
    [
        {"host": None}, {"host": {}}, {"cells": {}}, {"cells": [None]}, {"cells": [{}]},
        {"cells": [{"key": []}]}, {"cells": [{"key": "x", "section": "main"}]}, {"floors": [{}]},
        {"floors": [{"threads": 1, "isa": "host"}]}, {"runs": 5}, {"sections": []},
        {"suite": None}, {"format": True},
    ],
    ids=str,
)  # fmt: skip
def test_bench_continues_no_document_that_it_cannot_show(tmp_path, changes):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({**whole_bench(), **changes}))
    before = path.read_bytes()
    refused("bench", "--quick", "--out", path, words=[str(path)])
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("packed", [False, True])
def test_replay_tables(tmp_path, content, packed):
    path = tmp_path / "t.jsonl"
    path.write_bytes(gzip.compress(content) if packed else content)
    for command in ("search", "models"):
        refused("study", command, "--table", path, words=[str(path)])


def test_unreadable_replay_tables(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    refused("study", "search", "--table", path, words=[str(path)])
    refused("study", "search", "--table", "a\0b")
    refused("study", "export", "-o", tmp_path / "o.npz", "--table", tmp_path, words=[str(tmp_path)])


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        (0, {"knobs": {"block_q": {"values": [[1], {}], "meaning": "rows"}}}),
        (0, {"knobs": {str(n): {"values": list(range(99)), "meaning": "x"} for n in range(9)}}),
        (0, {"start": {"schedule": "cpu.forward", "block_q": -64}}),
        (0, {"problem": {"batch": 10**400}}),
        (1, {"point": [[1]]}),
        (1, {"point": None}),
        (1, {"seconds": [1e-320, 1e308], "reference_seconds": [1e308, 1e-320]}),
    ],
)
def test_fields_of_replay_tables(tmp_path, place, changes):
    head, lines = made_up(knobs={"block_q": (64, 128)})
    texts = [head, *lines]
    texts[place].update(changes)
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in texts))
    refused("study", "search", "--table", path, "--trials", "2", "--seeds", "1")


@pytest.mark.parametrize("knob", ["lanes=0", "block_q=-64", f"block_q={10**400}", f"x={HUGE}"])
def test_hostile_knobs_on_the_command_line(tmp_path, knob):
    options = ["--spec", "f32,d=64", "--knob", knob, "-o", tmp_path / "t.jsonl"]
    done = CliRunner().invoke(app, ["study", "table", *map(str, options)])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("text", ["null", "[]", '{"point": 1}', DEEP], ids=["a", "b", "c", "deep"])
def test_a_foreign_journal_of_a_table(tmp_path, text):
    work = tmp_path / "t.jsonl.work"
    work.mkdir()
    (work / "events.jsonl").write_text(text + "\n")
    options = ["--spec", "f32,d=64", "--knob", "block_q=192", "-o", tmp_path / "t.jsonl"]
    refused("study", "table", *options, words=[str(work)])


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "5",
        "[]",
        "[null, 5]",
        '{"a": 1}',
        "[0, null]",
        "[0, [[[null], []], [], {}, []]]",
        DEEP,
    ],
    ids=lambda text: text[:40],
)
@pytest.mark.parametrize("name", ["database_workload.json", "database_tuning_record.json"])
def test_foreign_databases_of_tune(tmp_path, text, name):
    """What is no line of the database is set aside: TVM would crash on some of it."""
    MetaScheduleDatabase(tmp_path, task())
    with (tmp_path / name).open("a") as database:
        database.write(text + "\n")
    MetaScheduleDatabase(tmp_path, task())
    assert text not in (tmp_path / name).read_text().splitlines()
    assert text in (tmp_path / f"{name}.broken1").read_text().splitlines()


@pytest.mark.parametrize(
    "options",
    [
        ["--strategy", "nonsense"], ["--strategy", "json:nothing"], ["--strategy", ":"],
        ["--strategy", "failing:Class"], ["--buckets", "vast"], ["--directions", "sideways"],
        ["--target", "z80"], ["--seqlen", "-5"], ["--rpc", "host"], ["--cost-model", "none"],
        ["--logs", "/dev/null"], ["--work-dir", "/dev/null"], ["--check-logs", "no"],
    ],
    ids=str,
)  # fmt: skip
def test_text_options_of_tune(options, tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    refused("tune", "fp32,d=16", "--trials", "1", "--logs", tmp_path / "logs", *options)
    sys.modules.pop("failing", None)


def test_logs_that_check_logs_reads(tmp_path):
    good = line()
    path = tmp_path / good["target"] / "float32_d64.jsonl"
    path.parent.mkdir()
    hostile = [DEEP, HUGE, "NaN", "null", json.dumps({**good, "config": {"schedule": 5}})]
    path.write_text("\n".join([json.dumps(good), *hostile]) + "\n")
    done = CliRunner().invoke(app, ["tune", "--check-logs", str(tmp_path)])
    assert done.exit_code == 1 and f"{len(hostile)} lines are skipped" in done.stderr
