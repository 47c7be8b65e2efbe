"""The suites of GPUs as far as they go without one: what is timed, counted, written and drawn."""

import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from tvm_flash import bench
from tvm_flash.artifact.library import symbol_name
from tvm_flash.bench import (
    device,
    gpu_host,
    gpu_sections,
    measuring,
    rows,
    run,
    tables,
    timing,
)
from tvm_flash.bench.contender import OURS
from tvm_flash.bench.contenders import CONTENDERS, names_on
from tvm_flash.bench.plot import draw
from tvm_flash.bench.sequences.contenders import SEQUENCE_CONTENDERS
from tvm_flash.cli.app import app
from tvm_flash.errors import TvmFlashError
from tvm_flash.problem.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
SMALL = bench.Problem("float32", 16, 64, causal=True, batch=1, heads=2)
THREE_ROUNDS = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0)
SMI = "NVIDIA H100 80GB HBM3, 570.86.15, 1980 MHz, 1980 MHz, 2619 MHz, 71.2 W, 700.00 W, [N/A]\n"


def sdpa(problem, where):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=problem.causal)


def absent(problem, where):
    raise ModuleNotFoundError("No module named 'triton'\nand more")


def breaks_in_backward(problem, where):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=problem.causal)

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("CUDA error: an illegal instruction was encountered")

    return Broken.apply


FAKES = (
    bench.Contender("tvm_flash", sdpa, "bhsd"),
    bench.Contender("sdpa_flash", sdpa, "bhsd"),
    bench.Contender("triton", absent, "bhsd"),
    bench.Contender("flex", breaks_in_backward, "bhsd"),
)


@pytest.fixture
def measured(monkeypatch):
    """A forward and a backward row of made-up contenders, nobody of whom is required."""

    def rows_of(contenders=FAKES, problem=SMALL):
        monkeypatch.setattr(rows, "contenders_for", lambda problem, names: contenders)
        return [rows.timed(problem, d, THREE_ROUNDS, required=()) for d in rows.DIRECTIONS]

    return rows_of


def test_the_grid_keeps_tokens_and_hidden_size():
    cells = [c for c in bench.SUITES["gpu"].cells([1]) if c.section.endswith("lengths")]
    problems = {c.problem for c in cells}
    assert len(cells) == 2 * len(problems) == 2 * 3 * 2 * 5
    assert {p.seqlen for p in problems} == {1024, 2048, 4096, 8192, 16384}
    assert {p.batch * p.seqlen for p in problems} == {16384}
    assert {p.heads * p.head_dim for p in problems} == {2048}
    more = [c.problem for c in bench.SUITES["gpu"].cells([1]) if c.section == "more tokens"]
    assert {p.batch * p.seqlen for p in more} == {32768}


def test_the_best_comes_first():
    """Ten minutes give the first sections; each has who it is compared with, and ours."""
    cells = bench.SUITES["gpu"].cells([1])
    sections = list(dict.fromkeys(c.section for c in cells))
    assert sections[:5] == ["correctness", "lengths", "decode", "gqa", "packed"]
    assert sections[-2:] == ["triton", "other dtypes"], "these are tuned for a minute, or rare"
    timed = [c for c in cells if c.kind == "time"]
    assert {c.device for c in cells} == {"cuda"} and all(c.names[0] == OURS for c in timed)
    known = {c.name for c in (*CONTENDERS, *SEQUENCE_CONTENDERS) if "cuda" in c.devices}
    assert {name for c in timed for name in c.names} == known
    targets = {c.direction: c.target.ratio for c in timed if c.target}
    assert targets == {"forward": 1.0, "backward": 0.95}


def test_the_preset_benchmark_has_what_is_timed():
    served = set(PRESETS["benchmark"].pairs(("forward", "backward")))
    for cell in bench.SUITES["gpu"].cells([1]):
        if cell.kind == "time" and cell.section != "other dtypes":
            assert {(cell.problem.spec, "forward"), (cell.problem.spec, cell.direction)} <= served
            few = cell.problem.queries < cell.problem.seqlen
            assert not few or (cell.problem.spec, "forward_split") in served


def test_what_was_built_is_checked_and_searched():
    records = [
        SimpleNamespace(spec=SMALL.spec, direction="forward", symbol=f"attn_fwd_00{n}", meta=meta)
        for n, meta in enumerate(({"block_q": 64, "block_k": 32}, {"block_q": 128}))
    ]
    manifest = SimpleNamespace(kernels=records)
    cells = bench.SUITES["gpu"].cells([1], bench.Built(manifest, manifest))
    found = [(c.section, c.kind, c.case) for c in cells if c.section in ("kernels", "candidates")]
    assert found == [
        ("kernels", "kernel", "attn_fwd_000"),
        ("kernels", "kernel", "attn_fwd_001"),
        ("candidates", "search", symbol_name(SMALL.spec, "forward")),
    ]
    assert cells[0].problem.name.startswith("float32 D=16 S=32 full Sq=64")
    assert [run.cell_head(c)["case"] for c in cells[:2]] == ["attn_fwd_000", "attn_fwd_001"]


def test_flops_are_counted_as_flash_attention_does():
    second = {"tvm_flash": timing.Timing(1.0, 0.0, 3)}
    row = rows.Row(bench.Problem("bfloat16", 128, 4096, False, 4, 16), "forward", second)
    assert row.gflops("tvm_flash") == 4 * 4 * 16 * 4096 * 4096 * 128 / 1e9
    causal = rows.Row(bench.Problem("bfloat16", 128, 4096, True, 4, 16), "backward", second)
    assert causal.gflops("tvm_flash") == row.gflops("tvm_flash") * 2.5 / 2


def test_a_contender_that_fails_is_named_and_the_others_go_on(measured):
    forward, backward = measured()
    assert set(forward.timings) == {"tvm_flash", "sdpa_flash", "flex"}
    assert forward.missing == {"triton": "ModuleNotFoundError: No module named 'triton'"}
    assert set(backward.timings) == {"tvm_flash", "sdpa_flash"}
    assert backward.missing["flex"].startswith("RuntimeError: CUDA error")
    assert forward.difference == {"tvm_flash": 0.0, "sdpa_flash": 0.0, "flex": 0.0}


def test_without_us_there_are_no_ratios(measured):
    forward, _ = measured((bench.Contender("tvm_flash", absent, "bshd"), *FAKES[1:2]))
    assert forward.to_json()["ratio"] == {"sdpa_flash": None}


def test_who_is_required_is_not_missing(monkeypatch):
    without_us = (bench.Contender("tvm_flash", absent, "bshd"), *FAKES[1:2])
    monkeypatch.setattr(rows, "contenders_for", lambda problem, names: without_us)
    with pytest.raises(ModuleNotFoundError, match="triton"):
        rows.timed(SMALL, "forward", THREE_ROUNDS)


def test_a_wrong_result_shows(measured):
    def wrong(problem, where):
        return lambda q, k, v: sdpa(problem, where)(q, k, v) * 1.5

    forward, _ = measured((*FAKES[:2], bench.Contender("triton", wrong, "bhsd")))
    assert forward.difference["triton"] > 0.1
    with pytest.raises(TvmFlashError, match="our result is not sdpa_flash's"):
        measured((bench.Contender("tvm_flash", wrong, "bhsd"), FAKES[1]))


def test_who_fails_while_it_is_timed_leaves_the_round():
    ticks = itertools.count()

    def fails_later():
        if next(ticks) == 1:
            raise RuntimeError("out of memory")

    calls, failed = {"a": lambda: None, "b": fails_later}, {}
    warm = dict.fromkeys(calls, 1.0)
    timings = timing.interleaved(calls, THREE_ROUNDS, warm=warm, failed=failed)
    assert failed == {"b": "RuntimeError: out of memory"}
    assert timings["a"].rounds == 3 and "b" not in timings


def test_who_fails_with_nobody_to_note_it_ends_the_timing():
    def fails(repeats):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        timing.in_turns({"a": fails}, {"a": 1}, lambda samples, turns: True)
    noted = {}
    assert timing.in_turns({"a": fails}, {"a": 1}, lambda samples, turns: False, noted) == {}
    assert noted == {"a": "RuntimeError: out of memory"}


def test_contenders_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    timing.interleaved(calls, THREE_ROUNDS, warm=dict.fromkeys(calls, 1.0))
    assert "".join(order) == "abcbcacab"


def test_warm_up_ends_when_the_time_is_steady():
    window = timing.WINDOW
    drifting = itertools.chain([3.0] * window, [2.0] * window, itertools.repeat(1.0))
    assert timing.settle(lambda call, _: next(drifting), None, seconds=60) == 4 * window


def test_calls_are_timed_between_events_after_the_caches_were_cleared(monkeypatch):
    """torch.cuda replaced by what writes down what it is asked for."""
    asked = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            asked.append("record")

        def elapsed_time(self, end):
            return 2.0

    buffer = SimpleNamespace(zero_=lambda: asked.append("clear"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 2**36))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: asked.append("wait"))
    monkeypatch.setattr(torch, "empty", lambda size, **_: asked.append(size) or buffer)
    stopwatch = device.CudaStopwatch()
    assert asked == [2**30], "a sixteenth of the memory is more"
    assert stopwatch(lambda: asked.append("call"), 2) == pytest.approx(2e-3)
    assert asked[1:] == ["clear", "record", "call", "record"] * 2 + ["wait"]


def test_on_a_gpu_the_host_is_left_as_it_is():
    cell = bench.SUITES["gpu"].cells([1])[0]
    with run.cores_for(cell) as cores:
        assert cores is None
    assert cell.device == "cuda" and cell.key.endswith(" cuda")


def test_every_contender_has_a_name_of_its_own():
    assert len({c.name for c in CONTENDERS}) == len(CONTENDERS)
    assert len(names_on("cuda")) == 7 and names_on("cuda")[0] == OURS


@pytest.mark.parametrize("name", ["sdpa_flash", "sdpa_cudnn", "triton", "triton_tma"])
def test_contenders_of_a_gpu_are_missing_on_a_cpu_or_work(name, measured):
    contender = next(c for c in CONTENDERS if c.name == name)
    problem = bench.Problem("bfloat16", 64, 128, causal=True, batch=1, heads=2)
    forward, backward = measured((contender,), problem)
    assert len(forward.timings) + len(forward.missing) == 1
    assert len(backward.timings) + len(backward.missing) == 1


def test_what_nvidia_smi_says():
    found = gpu_host.parse_clocks(SMI)
    assert found["driver"] == "570.86.15" and found["sm_clock_max"] == "1980 MHz"
    assert "temperature" not in found
    assert gpu_host.installed_versions().keys() <= set(gpu_host.PACKAGES)
    assert bench.described_host()["torch"]


def a_case(threads):
    yield next(c for c in bench.SUITES["gpu"].cells([1]) if c.case == "f32_full")


def test_a_wrong_case_is_exit_status_1(monkeypatch):
    monkeypatch.setattr(measuring, "case_row", lambda *_: {"right": False, "errors": {}})
    section = bench.Section("correctness", "cases", a_case, True)
    small = bench.Suite("gpu-quick", (section,), THREE_ROUNDS, device="cpu")
    monkeypatch.setitem(bench.SUITES, "gpu-quick", small)
    done = CliRunner().invoke(app, ["bench", "--suite", "gpu-quick"])
    assert done.exit_code == 1 and "1 wrong" in done.output


def gpu_document(problems, **seconds):
    """A document of forwards on a GPU, ``seconds`` by contender at 1e15 flop/s."""
    document = bench.Document(bench.SUITES["gpu"], {**bench.described_host(), **GPU})
    document.runs.append({"started": "now", "load_average": None, "cores": 2})
    for problem in problems:
        cell = bench.Cell("lengths", problem, "forward", 1, names=tuple(seconds), device="cuda")
        timings = {
            name: timing.Timing(problem.flops("forward") / 1e15 * factor, 0.01, 9)
            for name, factor in seconds.items()
            if name == OURS or problem.seqlen < 8192
        }
        found = rows.Row(problem, "forward", timings, {}, {"triton": "no"}).to_json()
        found |= run.verdict(cell, found, THREE_ROUNDS)
        document.cells[cell.key] = {**run.cell_head(cell), **found, "others": None}
    return document.to_json()


GPU = {"gpu": "Some GPU", "capability": "9.0"}
PROBLEMS = gpu_sections.gpu_problems("bfloat16", (64, 128, 256), (512, 4096, 16384))


def test_plot_of_samples(tmp_path):
    pytest.importorskip("matplotlib")
    draw(gpu_document(PROBLEMS, tvm_flash=2.0, flex=3.0), tmp_path / "fake.svg")
    text = (tmp_path / "fake.svg").read_text(encoding="utf-8")
    assert text.count("<!-- D=") == 6 and "Some GPU" in text


def test_a_gpu_is_compared_with_the_fastest_of_the_others():
    data = gpu_document(PROBLEMS[:2], tvm_flash=2.0, flex=3.0, sdpa_cudnn=1.0)
    (table,) = tables.section_tables(data["cells"], data["sections"])
    row = dict(zip((c.name for c in table.columns), table.rows[0], strict=True))
    assert row["on"] == "cuda" and row["other"].startswith("sdpa_cudnn")
    assert row["ratio"] == "0.50" and "flex 1.50" in row["all ratios"]
    assert "triton -" in row["all ratios"] and row["problem"].endswith("forward")


def test_the_command_needs_neither_tvm_nor_a_compiler():
    code = (
        "import sys; sys.modules['tvm'] = None; sys.modules['triton'] = None\n"
        "from tvm_flash.bench import SUITES, Runner, Document, described_host\n"
        "from tvm_flash.bench import plot, tables, run, correctness\n"
        "import tvm_flash.cli.app, tvm_flash.cli.bench_built, tvm_flash.bench.overview\n"
        "import tvm_flash.tune.carried_cell, tvm_flash.verify.library\n"
        "assert SUITES['gpu'].cells([1]) and described_host()['tvm_flash']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
