"""Suites: which cells they hold, the targets of these, and verdicts on what was measured."""

from dataclasses import replace

import bench_documents
import pytest
from bench_documents import CELLS, TINY

from tvm_flash import bench
from tvm_flash.bench import verdicts


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
