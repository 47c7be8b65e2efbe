"""The suite of sequences: its problems, who is compared with whom, and what becomes of it."""

import itertools
from dataclasses import replace

import bench_documents
import pytest
import torch
from bench_documents import HASTE

from tvm_flash import bench
from tvm_flash.bench.contender import Prepared
from tvm_flash.bench.contenders import contenders_for
from tvm_flash.bench.markdown import complete
from tvm_flash.bench.measuring import Libraries, measured_cell
from tvm_flash.bench.plot import draw
from tvm_flash.bench.sequences.length_lists import LISTS
from tvm_flash.bench.sequences.problems import (
    AppendedProblem,
    CachedProblem,
    PackedProblem,
    StepProblem,
)

SUITE = bench.SUITES["sequences"]
EVERYBODY = (
    "tvm_flash",
    "dense",
    "one_by_one",
    "sdpa_padded",
    "contiguous",
    "apart",
    "read",
    "copy",
)


def packed(lengths, **fields):
    return PackedProblem.of(lengths, "some", "float32", 32, **{"heads": 2, **fields})


def cached(lengths, kind=CachedProblem, **fields):
    known = {"heads": 4, "kv_heads": 2, "page_size": 4, "seqlen_q": 1}
    return kind.of(lengths, "some", "float32", 32, **{**known, **fields})


@pytest.mark.parametrize(
    "section, targets",
    [
        ("equal", {0.97}),
        ("mixed", {0.9}),
        ("paged", {0.9, 0.97}),
        ("append", {0.7}),
        ("decode", {0.8}),
        ("step", {0.9}),
        ("overhead", {1 / 1.3}),
    ],
)
def test_targets(section, targets):
    cells = [cell for cell in SUITE.cells([1, 2]) if cell.section == section]
    assert {cell.target.ratio for cell in cells} == targets
    assert {cell.threads for cell in cells} == {2}
    # A comparison of which a side is missing is none.
    assert all(cell.required == cell.names for cell in cells)


def test_sdpa_is_to_be_beaten_by_all_the_padding():
    cells = [cell for cell in SUITE.cells([2]) if cell.section == "padding"]
    for cell in cells:
        lengths = LISTS[cell.problem.listed]
        pairs = len(lengths) * max(lengths) ** 2 / sum(n * n for n in lengths)
        assert cell.target.ratio == pytest.approx(pairs) and pairs > 5
    assert {cell.direction for cell in cells} == {"forward", "backward"}


def test_operations_and_bytes_are_those_of_the_sequences():
    lengths = (3, 10, 7)
    for causal, direction in itertools.product((False, True), bench.rows.DIRECTIONS):
        problem = packed(lengths, causal=causal)
        alone = [bench.Problem("float32", 32, n, causal, heads=2) for n in lengths]
        for count in ("flops", "least_bytes", "output_bytes"):
            total = sum(getattr(one, count)(direction) for one in alone)
            assert getattr(problem, count)(direction) == total
    # New keys and values are read and written, 2 heads of 32 numbers each.
    assert cached([6, 6], AppendedProblem).least_bytes("forward") == 2 * 2 * 12 * 2 * 32 * 4


def test_every_sequence_has_pages_of_its_own():
    problem = cached([1, 4, 9])
    counts = [1, 1, 3]
    assert problem.page_counts == counts
    rows = zip(problem.page_table().tolist(), counts, strict=True)
    assert sorted(page for row, count in rows for page in row[:count]) == list(range(5))
    assert cached([4, 4], AppendedProblem, past=3).page_counts == [2, 2]


@pytest.mark.parametrize(
    "problem",
    [
        packed([33, 33], causal=False),
        packed([20, 1, 70], causal=True, kv_heads=2),
    ],
    ids=["equal", "mixed"],
)
def test_packed_contenders_compute_the_same(problem):
    names = ("dense",) if len(set(problem.lengths)) == 1 else ("one_by_one", "sdpa_padded")
    found = []
    for contender in contenders_for(problem, ("tvm_flash", *names)):
        prepared = Prepared(contender, problem)
        prepared.record()
        grads = [prepared.as_drawn(grad) for grad in prepared.backward()]
        found.append([prepared.as_drawn(prepared.forward()).detach(), *grads])
    assert len(found) == 1 + len(names)
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(9, 9), (1, 30, 8)], ids=["equal", "mixed"])
def test_cached_contenders_compute_the_same(lengths):
    names = ("contiguous",) + ("dense",) * (len(set(lengths)) == 1)
    problem = cached(lengths)
    found = [
        Prepared(contender, problem).forward()
        for contender in contenders_for(problem, ("tvm_flash", *names))
    ]
    assert len(found) == 1 + len(names)
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-5, rtol=1e-5)


def test_a_step_is_the_same_in_one_call_and_in_two():
    problem = cached([20, 9, 600, 500], StepProblem, seqlen_q=None, causal=True)
    ours, apart = (
        Prepared(contender, problem).forward()
        for contender in contenders_for(problem, ("tvm_flash", "apart"))
    )
    torch.testing.assert_close(ours, apart, atol=1e-5, rtol=1e-5)
    assert problem.flops("forward") == 4 * 32 * 4 * (20 * 20 / 2 + 9 + 600 + 500)


def test_appended_queries_see_the_last_new_key():
    (ours,) = contenders_for(problem := cached([5, 5], AppendedProblem), ("tvm_flash",))
    prepared = Prepared(ours, problem)
    last = prepared.v[:, -1:].repeat_interleave(2, dim=2)
    torch.testing.assert_close(prepared.forward(), last)


@pytest.mark.parametrize("rate, kind", [("read", CachedProblem), ("copy", AppendedProblem)])
def test_rates_are_timed_and_not_compared(rate, kind):
    names = ("tvm_flash", rate)
    row = bench.timed(cached([8, 8], kind), "forward", HASTE, names, required=names).to_json()
    assert set(row["seconds"]) == set(names) and row["ratio"][rate] > 0
    assert set(row["difference"]) == set(row["gflops"]) == {"tvm_flash"}
    assert row["max_difference"] is None and row["missing"] == {}


def test_reading_reads_every_byte():
    problem = cached([5, 3])
    (read,) = contenders_for(problem, ("read",))
    prepared = Prepared(read, problem)
    torch.testing.assert_close(prepared.forward(), prepared.k.sum() + prepared.v.sum())


def test_a_comparison_without_the_other_fails():
    cell = next(cell for cell in SUITE.cells([1]) if cell.section == "padding")
    cell = replace(cell, problem=packed([3, 2], causal=False))
    with pytest.raises(ValueError, match="causal mask"):
        measured_cell(cell, HASTE, Libraries([], None))


def test_every_contender_has_its_problems():
    kinds = (CachedProblem, AppendedProblem, StepProblem)
    problems = (packed([2]), *(cached([2, 2], kind) for kind in kinds))
    found = [{c.name for c in contenders_for(problem, EVERYBODY)} for problem in problems]
    assert set.union(*found) == set(EVERYBODY)
    assert all("tvm_flash" in names for names in found)


def test_a_document_says_what_the_sequences_are(tmp_path):
    data = bench_documents.whole_document("sequences")
    cells = {cell["section"]: cell for cell in data["cells"]}
    assert cells["mixed"]["lengths"] == "text" and cells["mixed"]["total_k"] == sum(LISTS["text"])
    assert {cell["page_size"] for cell in data["cells"] if cell["section"] == "paged"} == {16, 128}
    cells["paged"].update(ratio={"contiguous": 0.5}, met=False, of_floor=0.25)
    text = complete(data)
    assert "`one_by_one`'s speed, target 0.90" in text and "targets 0.90, 0.97" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| paged: ")]
    assert row.endswith("| 0.50 | 0.97 | 25% | 2.00 |")
    draw(data, tmp_path / "plot.svg")
    assert "Times faster than what is beside us" in (tmp_path / "plot.svg").read_text()
