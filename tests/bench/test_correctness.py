"""Cases of the shared list held to the error rule on a device: inputs, verdicts, words."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from error_rule import off, unwritten

from tvm_flash import bench
from tvm_flash.bench import Cell, Patience, Problem, correctness, device, run, tables, verdicts
from tvm_flash.bench.measuring import measured_cell
from tvm_flash.cases import CORRECTNESS, make_inputs
from tvm_flash.reference import attention_reference


def case(name: str):
    return next(case for case in CORRECTNESS if case.name == name)


@pytest.mark.parametrize("name", ["everything", "bf16_gqa", "some_rows", "lengths_5x0", "batch_0"])
def test_the_reference_passes_the_error_rule(name):
    def exact(*tensors, return_lse, **variant):
        dtype = tensors[0].dtype
        out, lse = attention_reference(*tensors, **variant, upcast=torch.float64)
        return out.to(dtype), lse.float()

    assert all(held.ok for held in correctness.check(case(name), True, "cpu", exact))
    found = correctness.case_row(case(name), None, "cpu", exact)
    results = {"out", "lse", "dq", "dk", "dv"} | ({"dsink"} if name == "everything" else set())
    assert found["right"] and set(found["errors"]) == results


def test_wrong_unwritten_and_broken_results_fail(tmp_path):
    def broken(*tensors, **options):
        raise RuntimeError("CUDA error: misaligned address")

    failed = {h.result for h in correctness.check(case("f32_full"), True, "cpu", off) if not h.ok}
    assert failed == {"out", "dq", "dk", "dv"}
    held = correctness.check(case("f32_full"), False, "cpu", unwritten)
    assert "out" in {h.result for h in held if not h.ok}
    with pytest.raises(RuntimeError, match="misaligned"):
        correctness.check(case("f32_full"), False, "cpu", broken)
    cell = next(c for c in bench.SUITES["gpu"].cells([1]) if c.case == "f32_full")
    head = run.cell_head(cell)
    wrong = [{**head, **correctness.case_row(case("f32_full"), None, "cpu", f)}
             for f in (off, unwritten)]  # fmt: skip
    json.dumps(wrong, allow_nan=False)
    wrong.append({**head, "error": "RuntimeError: CUDA error: misaligned address"})
    assert [verdicts.state(one) for one in wrong] == ["wrong", "wrong", "failed"]
    lines = [row[-1] for row in tables.case_table("correctness", wrong).rows]
    assert "misaligned" in lines[-1] and "exceeds" in lines[0]
    assert any("error inf exceeds" in line for line in lines)
    assert "2 wrong" in verdicts.counted(wrong)


def test_poison():
    with correctness.poisoned_memory():
        assert torch.empty(4).isnan().all()


@pytest.mark.parametrize("view", ["bhsd", "packed", "every_other"])
def test_inputs_keep_their_strides_on_the_device(view):
    inputs = make_inputs(case(f"view_{view}"))
    moved = device.inputs_on(inputs, "meta")
    assert [x.stride() for x in moved[:4]] == [x.stride() for x in inputs[:4]]
    assert not inputs.q.is_contiguous() and moved.q.device.type == "meta"
    copied = device.inputs_on(inputs, "cpu")
    assert torch.equal(copied.k, inputs.k)


def test_captured_tensors_go_to_the_device():
    inputs = make_inputs(case("everything"))
    moved = device.inputs_on(inputs, "meta").variant
    found = [moved["alibi_slopes"]]
    for name in ("score_mod", "mask_mod"):
        found += [cell.cell_contents for cell in moved[name].__closure__]
    devices = {x.device.type for x in found if isinstance(x, torch.Tensor)}
    assert devices == {"meta"}


def test_only_what_the_library_serves_is_checked():
    full, causal = case("f32_full"), case("f32_gqa")
    kernels = [SimpleNamespace(spec=full.spec, direction=d) for d in ("forward", "backward")]
    kernels.append(SimpleNamespace(spec=causal.spec, direction="forward"))
    library = SimpleNamespace(kernels=kernels)
    assert set(correctness.directions_of(full.spec, library)) == {"forward", "backward"}
    assert set(correctness.directions_of(causal.spec, library)) == {"forward"}
    assert not correctness.directions_of(case("softcap").spec, library)
    found = correctness.case_row(case("softcap"), library, "cpu")
    assert "no kernel" in found["skipped"]
    forward = correctness.case_row(causal, library, "cpu")
    assert set(forward["errors"]) == {"out", "lse"} and forward["right"]


def test_only_problems_that_the_library_serves_are_timed():
    problem = Problem("float16", 16, 64, causal=True, heads=2)
    kernels = [SimpleNamespace(spec=problem.spec, direction="forward")]
    libraries = SimpleNamespace(loaded=SimpleNamespace(kernels=kernels))
    for one, direction in ((problem, "backward"), (replace(problem, causal=False), "forward")):
        found = measured_cell(Cell("lengths", one, direction, 1), Patience(), libraries)
        assert found == {"skipped": "the library has no kernel of this problem"}
