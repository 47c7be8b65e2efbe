"""Tables on terminals of 80 columns and in pipes: what is shown is whole."""

import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import bench_documents
import pytest
from rich.console import Console

from tvm_flash.bench.document import read
from tvm_flash.bench.table import Mark, Table, numbers, words
from tvm_flash.bench.tables import floor_table, missed_table, section_tables
from tvm_flash.cli import show_table
from tvm_flash.cli.cost_table import cost_summary, cost_tables
from tvm_flash.cli.loop_table import loop_table
from tvm_flash.cli.show_table import drawn, fitting, show, width_of
from tvm_flash.cli.verdict_table import verdict_table
from tvm_flash.tune.simulation.artifact import KernelLoop
from tvm_flash.tune.simulation.prediction import LoopPrediction
from tvm_flash.verify.problems import problems
from tvm_flash.verify.rule import Deviation
from tvm_flash.verify.verdict import Counts, KernelVerdict, Outcome, Verification

ROOT = Path(__file__).resolve().parents[2]
SYMBOL = "attn_bf16_d128_causal_softcap_alibi_bwd_det"


def text_of(table, width):
    console = Console(file=StringIO(), width=width, _environ={})
    console.print(drawn(table, width))
    return console.file.getvalue()


def cell_text(cell):
    return cell.text if isinstance(cell, Mark) else cell


def assert_whole(table, width):
    """Every cell and heading of the columns that fit, however folded; few columns are left out."""
    kept, left_out = fitting(table, width)
    text = text_of(kept, width)
    assert max(map(len, text.splitlines())) <= width
    letters = sorted("".join(text.replace("─", "").split()))
    cells = [column.heading for column in kept.columns]
    cells += [cell_text(cell) for row in kept.rows for cell in row]
    assert letters == sorted("".join("".join(cells).split()))
    assert "…" not in text
    for n, column in enumerate(kept.columns):
        figures = [] if column.text else [cell_text(row[n]) for row in kept.rows]
        assert all(figure in text for figure in figures), f"{column.name} is not folded"
    assert len(left_out) + len(kept.columns) == len(table.columns)
    ranks = {c.name: c.rank for c in table.columns}
    assert all(ranks[name] for name in left_out)


def report():
    counts = dict.fromkeys(("mma", "ldmatrix", "cp.async", "integer", "all"), 123456)
    resources = SimpleNamespace(
        registers=255, spill_stores=1234, spill_loads=1234, stack=1024, seconds=123.4
    )
    return SimpleNamespace(
        name=SYMBOL, arch="sm_100", resources=resources, shared_bytes=233472, blocks_per_sm=12,
        occupancy=0.1875, limit="shared memory", instructions=counts,
    )  # fmt: skip


def loop():
    known = {"tensor": 123456.0}, {"spill load": 12}
    found = LoopPrediction(123456.7, 0.812, 0.798, 0.826, *known, blocks=12, warps=16)
    return KernelLoop(SYMBOL, "sm_100", report().resources, 12, found)


def verification():
    counts = Counts(123456789, 123456, 987654321, 1234)
    held = (Deviation("out", 1.5e-3, 2.5e-2), Deviation("lse", 1e-5, 2e-4))
    outcomes = tuple(Outcome(p, held, counts, 123.4) for p in problems(64, 64))
    archs = ("sm_80", "sm_86", "sm_89", "sm_90")
    kernel = KernelVerdict(SYMBOL, "backward", archs, (64, 64), outcomes)
    return Verification("kernels", "cuda", 0, (kernel,))


def every_table():
    data = read(ROOT / "benchmarks" / "results" / "cpu.json")
    yield from (floor_table(data["floors"]), *section_tables(data["cells"], data["sections"]))
    made_up = bench_documents.whole_document()
    yield from section_tables(made_up["cells"], made_up["sections"])
    yield missed_table([c for c in data["cells"] if "ratio" in c and c["target"]])
    yield from cost_tables([report(), report()])
    yield cost_summary([report(), report()])
    yield loop_table([loop()])
    yield from (verdict_table([verification()], by_problem) for by_problem in (False, True))


TABLES = list(every_table())


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_80_columns_lose_nothing(number):
    assert_whole(TABLES[number], 80)
    assert_whole(TABLES[number], 200)
    assert fitting(TABLES[number], 400)[1] == []


@pytest.mark.parametrize("table", [cost_tables([report()])[0], loop_table([loop()])])
def test_80_columns_hold_the_blocks_of_an_sm(table):
    assert "blocks" in [column.name for column in fitting(table, 80)[0].columns]


SMALL = Table(
    "a table",
    (*words("name"), *numbers("time", unit="ms"), *numbers("first", rank=2), *numbers("n", rank=1)),
    [("a long name of a kernel", "1.25", "12345", Mark("7", "good")), ("b", "3.5", "1", "2")],
)


def test_names_are_broken_where_they_have_parts():
    table = Table("", tuple(words("name")), [(SYMBOL,), ("/usr/lib/python3/site-packages/x.so",)])
    lines = [line.strip() for line in text_of(table, 25).splitlines()]
    assert "attn_bf16_d128_causal_" in lines and "softcap_alibi_bwd_det" in lines
    assert "/usr/lib/python3/site-" not in lines and "/usr/lib/python3/" in lines


def test_a_summary_of_kernels_counts_those_that_spill():
    dry = report()
    dry.resources = SimpleNamespace(
        registers=40, spill_stores=0, spill_loads=0, stack=0, seconds=1.0
    )
    table = cost_summary([report(), dry, report()])
    assert table.rows == [("sm_100", "3", "255", "2", "2468", "228.0", "12", "247.8")]


def test_the_highest_rank_is_left_out_first():
    assert fitting(SMALL, width_of(SMALL))[1] == []
    assert fitting(SMALL, width_of(SMALL, folded=True) - 1)[1] == ["first"]
    assert fitting(SMALL, 10)[1] == ["first", "n"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_pipe_gets_the_whole_table(monkeypatch, terminal):
    console = Console(file=StringIO(), force_terminal=terminal, width=34, _environ={})
    monkeypatch.setattr(show_table, "console", console)
    show(SMALL)
    text = console.file.getvalue()
    assert ("12345" in text) != terminal and ("no room here for: first" in text) == terminal
    assert "a table" in text and ("a long name of a kernel" in text) != terminal


def test_columns_that_say_nothing_are_left_out():
    rows = [("a", "1", "-", ""), ("b", "-", "-", "")]
    table = Table("", SMALL.columns, rows).without_empty()
    assert [column.name for column in table.columns] == ["name", "time"]
    assert table.rows == [["a", "1"], ["b", "-"]]


def test_markdown_is_the_same_table():
    lines = SMALL.markdown()
    assert lines[0] == "| name | time, ms | first | n |"
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| a long name of a kernel | 1.25 | 12345 | 7 |"
    assert Table("", tuple(words("a")), [("x|y",)]).markdown()[2] == "| x\\|y |"


def test_the_command_line_needs_no_torch_for_tables():
    assert "torch" in sys.modules  # of this process; the import itself is what is looked at
    source = (ROOT / "tvm_flash" / "bench" / "table.py").read_text(encoding="utf-8")
    assert "import torch" not in source and "from ." not in source
