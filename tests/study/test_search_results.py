"""The committed study: its numbers follow from its tables, and the document prints them."""

import json
import re
from pathlib import Path

import pytest

from tvm_flash.study.replay import table as replay_table
from tvm_flash.study.search import document as search_document
from tvm_flash.study.search.curves import curves, summaries
from tvm_flash.study.search.run import Budget, Run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "search-study.json"
DOCUMENT = (ROOT / "docs" / "search-study.md").read_text(encoding="utf-8")
STUDIES = json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study["table"])
def test_the_study_follows_from_the_orders_of_its_trials(study):
    table = replay_table.read(study["table"])
    points = list(table.measured)
    runs = [
        Run(
            run["strategy"], run["seed"], points[run["start"]],
            tuple(points[n] for n in run["order"]), run["thinking_seconds"],
        )
        for run in study["runs"]
    ]  # fmt: skip
    budget = Budget(study["trials"], study["batch"], study["starts"])
    assert all(run.start == budget.start_of(table, run.seed) for run in runs)
    found = curves(table, runs, budget.trials)
    again = search_document.document(table, runs, budget, found, summaries(found))
    assert without_thinking(json.loads(search_document.json_text([again]))) == [
        without_thinking(study)
    ]


def without_thinking(value):
    """Medians of rounded times are not rounded medians."""
    if isinstance(value, dict):
        return {k: without_thinking(v) for k, v in value.items() if k != "thinking_seconds"}
    return list(map(without_thinking, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study["table"])
def test_the_study_is_as_wide_as_promised(study):
    strategies = {one["strategy"] for one in study["summary"]}
    wanted = "random grid coordinate evolutionary xgb mlp analytical analytical-measured".split()
    assert set(wanted) <= strategies and len(study["seeds"]) >= 20
    best = study["optimum"]["seconds"]
    assert study["default"]["seconds"] >= best


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study["table"])
def test_the_document_prints_the_study(study):
    assert search_document.markdown(study) in DOCUMENT


def test_the_document_shows_the_example_as_it_is():
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    example = (ROOT / "examples" / "my_strategy.py").read_text(encoding="utf-8")
    assert block == example
    assert len(example.splitlines()) < 45


def test_the_document_lists_the_tables_of_the_package():
    names = {path.name.removesuffix(".jsonl.gz") for path in replay_table.TABLES.glob("*.gz")}
    for name in names:
        points = len(replay_table.read(name).measured)
        assert f"| `{name}` | {points} |" in DOCUMENT
