"""Tuning records: what a line must hold, what a log holds, what is skipped."""

import json
import logging
from pathlib import Path

import pytest
from record_lines import CAUSAL, SPEC, TARGET, chosen, config_of, line

from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules import record_format
from tvm_flash.schedules.record_format import line_problems, log_name, read

ROOT = Path(__file__).resolve().parents[2]


COMMITTED = sorted((ROOT / "tuning_logs").rglob("*.jsonl"))


def test_every_committed_line_is_valid():
    problems = [
        f"{path.name}:{number}: {problem}"
        for path in COMMITTED
        for number, _, found in record_format.checked(path)
        for problem in found
    ]
    assert COMMITTED and problems == []


def test_committed_logs_say_once_what_a_search_was():
    for path in COMMITTED:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        headers = [line["header"] for line in lines if "header" in line]
        assert len(headers) == len(set(headers)), path
        assert {line.get("search") for line in lines} == {None, *headers}, path


def test_the_readme_lists_every_field():
    text = (ROOT / "tuning_logs" / "README.md").read_text(encoding="utf-8")
    missing = [name for name in line() if f"`{name}`" not in text]
    more = (*record_format.OUTCOMES, *record_format.STAGES, *record_format._OPTIONAL)
    missing += [name for name in more if f"`{name}`" not in text]
    assert missing == []


def test_a_valid_line():
    assert line_problems(line()) == []
    assert line_problems(line(best=False, outcome="crash", seconds=[], error=None)) == []
    assert line_problems(line(resources={"registers": 32})) == [], "more fields may follow"
    without = line()
    del without["best"]
    assert line_problems(without) == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"format": 3}, "format=3"),
        ({"format": 2}, "header of its search, None, is not in the file"),
        ({"target": ""}, "target=''"),
        ({"direction": "sideways"}, "sideways"),
        ({"bucket": "middling"}, "tiny, decode"),
        ({"direction": "backward", "bucket": "decode"}, "none of direction='backward'"),
        ({"problem": {"batch": 1}}, "num_kv_heads"),
        ({"problem": dict.fromkeys(record_format.SIZES, 0)}, "positive"),
        ({"config": {"block_k": 64}}, "schedule"),
        ({"outcome": "fast"}, "fast"),
        ({"seconds": [0.0]}, "list of times"),
        ({"seconds": [float("nan")]}, "list of times"),
        ({"seconds": []}, "without seconds"),
        ({"error": None}, "without error"),
        ({"error": 1.0}, "above"),
        ({"outcome": "wrong"}, "best with outcome='wrong'"),
        ({"best": 1}, "best=1"),
        ({"trial": -1}, "trial=-1"),
        ({"date": "2026-11-21T12:00:00"}, "date"),
        ({"date": 5}, "date"),
        ({"machine": []}, "machine"),
        ({"stage": "second"}, "start, recorded"),
        ({"incumbent": {"block_k": 64}}, "incumbent"),
        ({"cost_model": ""}, "cost_model"),
        ({"wall": -1.0}, "wall=-1"),
        ({"resources": 5}, "resources"),
        ({"note": ""}, "note"),
    ],
    ids=str,
)
def test_invalid_lines(changes, part):
    problems = line_problems(line(**changes))
    assert problems and part in " ".join(problems)


def test_a_spec_of_another_version():
    foreign = {**line(), "spec": {**SPEC.to_json(), "version": 99}}
    assert "is not a spec" in line_problems(foreign)[0]


@pytest.mark.parametrize("name", sorted(set(line()) - {"best", "format"}))
def test_a_missing_field_is_named(name):
    partial = line()
    del partial[name]
    assert line_problems(partial) == [f"{name} missing"]


@pytest.mark.parametrize("value", [None, 5, "text", [], {}, [line()]], ids=str)
def test_what_is_no_line_at_all(value):
    assert line_problems(value)


def test_append_refuses_what_read_would_skip(logs):
    with pytest.raises(ValueError, match="above"):
        logs(line(error=1.0))
    assert list(logs.folder.rglob("*")) == []


def test_optional_fields():
    optional = {
        "stage": "confirm", "incumbent": config_of(64), "cost_model": "xgb", "wall": 12.5,
        "resources": {"products": 5}, "note": "why", "sources": "5f2c",
    }  # fmt: skip
    assert optional.keys() == record_format._OPTIONAL.keys()
    assert line_problems(line(**optional, of_a_later_release=True)) == []


def test_lines_are_listed_with_what_is_wrong(logs):
    path = logs(line(), line(CAUSAL)) / TARGET / "float32_d64.jsonl"
    with path.open("a") as log:
        log.write("nonsense\n\n" + json.dumps(line(CAUSAL)) + "\n")
    found = list(record_format.checked(path))
    assert [number for number, _, problems in found if problems] == [3, 5], "1 is the header"
    assert "belongs in" in found[2][2][0]
    assert not list(record_format.checked(path, in_place=False))[2][2]


def test_append_and_read(logs):
    lines = [line(trial=n, best=False) for n in range(3)]
    path = logs(*lines) / TARGET / "float32_d64.jsonl"
    assert list(read(path)) == lines
    with path.open("a") as log:
        log.write('{"format": 1, "cut o')  # a process that died
    logs(lines[0])
    assert list(read(path)) == [*lines, lines[0]]


def test_a_log_holds_one_header_for_each_search(logs):
    path = logs(line(), line(trial=4), line(seed=1), line(trial=5)) / TARGET / "float32_d64.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [("header" in one, one.get("trial")) for one in lines] == [
        (True, None), (False, 3), (False, 4), (True, None), (False, 3), (False, 5),
    ]  # fmt: skip
    assert all("spec" not in one for one in lines if "header" not in one)


def test_lines_of_earlier_releases_stand_among_others(logs):
    """They hold the fields of their search themselves."""
    path = logs(line()) / TARGET / "float32_d64.jsonl"
    with path.open("a") as log:
        log.write(json.dumps(line(trial=4, day=2, config=config_of(96))) + "\n")
    logs(line(trial=5))
    assert [one["trial"] for one in read(path)] == [3, 4, 5]
    assert chosen(logs.folder).config == config_of(96)


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "not the name of what it holds"),
        (lambda text: text[:-2], "not JSON"),
        (lambda text: text.replace('"format": 2', '"format": 9'), "no header"),
        (lambda text: "", "is not in the file"),
    ],
    ids=["changed", "cut off", "foreign", "missing"],
)
def test_records_without_their_header_are_skipped(logs, spoil, part):
    path = logs(line(), line(trial=4), line(seed=1)) / TARGET / "float32_d64.jsonl"
    header, *rest = path.read_text().splitlines()
    path.write_text("\n".join([spoil(header), *rest]) + "\n")
    problems = [problem for *_, found in record_format.checked(path) for problem in found]
    assert part in problems[0] and all("header of its search" in p for p in problems[-2:])
    assert [(one["seed"], one["trial"]) for one in read(path)] == [(1, 3)]
    logs(line(trial=5))
    assert len(list(read(path))) == 4, "the next record of the search brings its header again"


def test_names_of_files():
    assert log_name(CAUSAL) == "float32_d64_causal.jsonl"
    wide = AttentionSpec(dtype="bfloat16", head_dim=64, head_dim_v=128, softcap=True, alibi=True)
    assert log_name(wide) == "bfloat16_d64v128.jsonl"


def test_corrupt_and_foreign_lines_are_skipped_with_one_warning(logs, caplog):
    path = logs(line(), line(trial=4)) / TARGET / "float32_d64.jsonl"
    good = path.read_text()
    corrupt = ["{", "[" * 100_000, '"text"', "\x00\xff", json.dumps(line(format=7)), "NaN"]
    misplaced = json.dumps(line(CAUSAL))
    path.write_bytes(b"\xff\xfe\n" + "\n".join([*corrupt, misplaced, "", good]).encode())
    with caplog.at_level(logging.WARNING, logger="tvm_flash"):
        assert [one["trial"] for one in read(path)] == [3, 4]
        list(read(path))
    (warning,) = caplog.messages
    assert str(path) in warning and "8 lines" in warning


def test_a_file_that_cannot_be_read_costs_nothing_else(logs, caplog):
    folder = logs(line()) / TARGET
    (folder / "float32_d63.jsonl").mkdir()
    (folder / "float32_d65.jsonl").symlink_to(folder / "nothing")
    with caplog.at_level(logging.WARNING, logger="tvm_flash"):
        assert chosen(logs.folder, AttentionSpec(dtype="float32", head_dim=63)).source.startswith(
            "nearest"
        )
    assert "float32_d63.jsonl" in caplog.text
