"""benchmarks/gpu.py as far as it goes without a GPU: what is timed, counted, written and drawn."""

import itertools
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import tvm_flash
from tvm_flash.bench import Patience, Problem, Timing
from tvm_flash.cases import CORRECTNESS, make_inputs
from tvm_flash.reference import attention_reference

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu import clock, correctness, grid, machine, report, rows  # noqa: E402
from gpu.contenders import CONTENDERS, Contender  # noqa: E402

SMALL = Problem("float32", 16, 64, causal=True, batch=1, heads=2)
THREE_ROUNDS = Patience(min_rounds=3, max_rounds=3, seconds=0.0)
SMI = "NVIDIA H100 80GB HBM3, 570.86.15, 1980 MHz, 1980 MHz, 2619 MHz, 71.2 W, 700.00 W, [N/A]\n"


def sdpa(problem, device):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=problem.causal)


def absent(problem, device):
    raise ModuleNotFoundError("No module named 'triton'\nand more")


def breaks_in_backward(problem, device):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=problem.causal)

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("CUDA error: an illegal instruction was encountered")

    return Broken.apply


FAKES = (
    Contender("tvm_flash", "bhsd", sdpa),
    Contender("sdpa_flash", "bhsd", sdpa),
    Contender("triton", "bhsd", absent),
    Contender("flex", "bhsd", breaks_in_backward),
)


def measured(contenders=FAKES, problem=SMALL):
    return list(rows.measure(problem, contenders, clock.host_stopwatch, THREE_ROUNDS, "cpu"))


def test_the_grid_keeps_tokens_and_hidden_size():
    problems = grid.problems("bfloat16")
    assert len(problems) == 3 * 2 * 6
    assert {p.batch * p.seqlen for p in problems} == {16384}
    assert {p.heads * p.head_dim for p in problems} == {2048}
    assert len(grid.problems("bfloat16", **grid.QUICK)) == 8


def test_flops_are_counted_as_flash_attention_does():
    row = rows.Row(Problem("bfloat16", 128, 4096, False, 4, 16), "forward", {})
    row.timings["tvm_flash"] = Timing(1.0, 0.0, 3)
    assert row.tflops("tvm_flash") == 4 * 4 * 16 * 4096 * 4096 * 128 / 1e12
    causal = rows.Row(Problem("bfloat16", 128, 4096, True, 4, 16), "backward", row.timings)
    assert causal.tflops("tvm_flash") == row.tflops("tvm_flash") * 2.5 / 2


def test_a_contender_that_fails_is_named_and_the_others_go_on():
    forward, backward = measured()
    assert set(forward.timings) == {"tvm_flash", "sdpa_flash", "flex"}
    assert forward.missing == {"triton": "ModuleNotFoundError: No module named 'triton'"}
    assert set(backward.timings) == {"tvm_flash", "sdpa_flash"}
    assert backward.missing["flex"].startswith("RuntimeError: CUDA error")
    assert forward.difference == {"tvm_flash": 0.0, "sdpa_flash": 0.0, "flex": 0.0}


def test_without_us_there_are_no_ratios():
    (forward, _) = measured((Contender("tvm_flash", "bshd", absent), *FAKES[1:2]))
    assert forward.to_json()["ratio"] == {"sdpa_flash": None}


def test_a_wrong_result_shows():
    def wrong(problem, device):
        return lambda q, k, v: sdpa(problem, device)(q, k, v) * 1.5

    forward, _ = measured((*FAKES[:2], Contender("triton", "bhsd", wrong)))
    assert forward.difference["triton"] > 0.1


def test_who_fails_while_it_is_timed_leaves_the_round():
    ticks = itertools.count()

    def fails_later():
        if next(ticks) == 1:
            raise RuntimeError("out of memory")

    calls = {"a": lambda: None, "b": fails_later}
    timings, failed = clock.interleaved(calls, clock.host_stopwatch, THREE_ROUNDS)
    assert failed == {"b": "RuntimeError: out of memory"}
    assert timings["a"].rounds == 3 and "b" not in timings


def test_contenders_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    clock.interleaved(calls, clock.host_stopwatch, THREE_ROUNDS)
    assert "".join(order) == "abcbcacab"


def test_warm_up_ends_when_the_time_is_steady():
    drifting = itertools.chain([3.0] * clock.WINDOW, [2.0] * clock.WINDOW, itertools.repeat(1.0))
    assert clock.settle(lambda call: next(drifting), None, seconds=60) == 4 * clock.WINDOW


def test_every_contender_has_a_name_of_its_own():
    assert len({c.name for c in CONTENDERS}) == len(CONTENDERS) == 7


@pytest.mark.parametrize("name", ["sdpa_flash", "sdpa_cudnn", "flex", "triton", "triton_tma"])
def test_contenders_of_a_gpu_are_missing_on_a_cpu_or_work(name):
    contender = next(c for c in CONTENDERS if c.name == name)
    if name == "flex":
        pytest.skip("torch.compile takes long")
    problem = Problem("bfloat16", 64, 128, causal=True, batch=1, heads=2)
    forward, backward = measured((contender,), problem)
    assert len(forward.timings) + len(forward.missing) == 1
    assert len(backward.timings) + len(backward.missing) == 1


def test_what_nvidia_smi_says():
    found = machine.parse_clocks(SMI)
    assert found["driver"] == "570.86.15" and found["sm_clock_max"] == "1980 MHz"
    assert "temperature" not in found
    assert machine.describe("cpu")["versions"]["torch"]


def case(name: str):
    return next(case for case in CORRECTNESS if case.name == name)


@pytest.mark.parametrize("name", ["everything", "bf16_gqa", "some_rows", "lengths_5x0", "batch_0"])
def test_the_reference_passes_the_error_rule(name):
    def exact(*tensors, return_lse, **variant):
        dtype = tensors[0].dtype
        out, lse = attention_reference(*tensors, **variant, upcast=torch.float64)
        return out.to(dtype), lse.float()

    assert correctness.check(case(name), True, "cpu", exact) == []


def test_wrong_unwritten_and_broken_results_fail():
    def off(*tensors, return_lse, **variant):
        out, lse = attention_reference(*tensors, **variant)
        return out * 1.01, lse

    def unwritten(*tensors, return_lse, **variant):
        out, lse = attention_reference(*tensors, **variant)
        return out + torch.full_like(out, float("nan")), lse

    def broken(*tensors, **options):
        raise RuntimeError("CUDA error: misaligned address")

    failed = correctness.check(case("f32_full"), True, "cpu", off)
    assert {f.result for f in failed} == {"out", "dq", "dk", "dv"}
    assert "out" in {f.result for f in correctness.check(case("f32_full"), False, "cpu", unwritten)}
    (failure,) = correctness.check(case("f32_full"), False, "cpu", broken)
    assert failure.message == "RuntimeError: CUDA error: misaligned address"
    lines = list(report.failure_table([*failed, failure]))
    assert "misaligned" in lines[-1] and ">" in lines[0]


def test_poison():
    with correctness.poisoned_memory():
        assert torch.empty(4).isnan().all()


@pytest.mark.parametrize("view", ["bhsd", "packed", "every_other"])
def test_inputs_keep_their_strides_on_the_device(view):
    inputs = make_inputs(case(f"view_{view}"))
    moved = correctness.on_device(inputs, "meta")
    assert [x.stride() for x in moved[:4]] == [x.stride() for x in inputs[:4]]
    assert not inputs.q.is_contiguous() and moved.q.device.type == "meta"
    copied = correctness.on_device(inputs, "cpu")
    assert torch.equal(copied.k, inputs.k)


def test_captured_tensors_go_to_the_device():
    inputs = make_inputs(case("everything"))
    moved = correctness.on_device(inputs, "meta").variant
    found = [moved["alibi_slopes"]]
    for name in ("score_mod", "mask_mod"):
        found += [cell.cell_contents for cell in moved[name].__closure__]
    devices = {x.device.type for x in found if isinstance(x, torch.Tensor)}
    assert devices == {"meta"}


def test_only_what_the_library_serves_is_checked():
    full, causal = case("f32_full"), case("f32_gqa")
    kernels = [SimpleNamespace(spec=full.spec, direction=d) for d in ("forward", "backward")]
    kernels.append(SimpleNamespace(spec=causal.spec, direction="forward"))
    listed = dict(correctness.served([full, causal, case("softcap")], kernels))
    assert listed == {full: True, causal: False}


def test_the_command_writes_a_document_and_a_plot(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    script = runpy.run_path(str(BENCHMARKS / "gpu.py"))
    shared = script["main"].__globals__
    monkeypatch.setattr(tvm_flash, "load", lambda path: SimpleNamespace(kernels=[]))
    monkeypatch.setitem(shared, "CONTENDERS", FAKES)
    monkeypatch.setattr(grid, "problems", lambda dtype, **sizes: [SMALL])
    monkeypatch.setattr(clock, "HASTE", THREE_ROUNDS)
    out = tmp_path / "results.json"
    arguments = ["--library", "none", "--out", str(out), "--quick", "--device", "cpu"]
    assert script["main"](arguments) == 0
    document = json.loads(out.read_text())
    assert [row["direction"] for row in document["rows"]] == ["forward", "backward"]
    assert document["rows"][0]["contenders"]["tvm_flash"]["tflops"] > 0
    assert document["options"]["quick"] == "True"
    assert document["correctness"]["checked"] == []
    assert {p.name for p in tmp_path.glob("*.svg")} == {
        "results_forward.svg",
        "results_backward.svg",
    }
    assert "triton -" in capsys.readouterr().out


def test_plot_of_samples(tmp_path):
    pytest.importorskip("matplotlib")
    found = report.Report(machine.describe("cpu"), {})
    for problem in grid.problems("bfloat16"):
        timings = {"tvm_flash": Timing(problem.flops("forward") / 5e14, 0.01, 9)}
        if problem.seqlen < 8192:
            timings["flex"] = Timing(problem.flops("forward") / 3e14, 0.01, 9)
        found.rows.append(rows.Row(problem, "forward", timings, {"triton": "no"}))
    found.write(tmp_path / "fake.json")
    (file,) = report.plot(found.to_json(), tmp_path / "fake.svg")
    text = file.read_text(encoding="utf-8")
    assert text.count("<!-- D=") == 6
