"""CPU forms on entries of any lengths: packed ones, and keys in pages."""

import math
from dataclasses import replace

import pytest
import torch
from packed_problems import Entries
from problems import compile_function

from tvm_flash.problem.arguments import arguments, given_sizes, shape_of, size_values
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cpu.backward import schedule_backward
from tvm_flash.schedules.cpu.defaults import backward_config, forward_config
from tvm_flash.schedules.cpu.forward import schedule_forward
from tvm_flash.schedules.cpu.split_forward import default_split_config, schedule_split_forward
from tvm_flash.schedules.target import host_target
from tvm_flash.verify.rule import largest_error, results

PROBLEM = Entries((5, 0, 33, 17, 1), (40, 7, 0, 66, 3), heads=4, kv_heads=2, gap=2)
ALONE = Entries((70,), (70,), heads=4, kv_heads=2)
SMALL = {"block_q": 16, "block_k": 64}


def spec_of(kind, **fields):
    return AttentionSpec(dtype="float32", head_dim=16, causal=True, sequences=kind, **fields)


def kernel(func):
    return compile_function(func, host_target().tvm_target())


def streaming(spec):
    config = replace(forward_config(spec, host_target()), block_k=16)
    return schedule_forward(spec, replace(config, block_q=config.group))


def split(spec):
    config, vector = default_split_config(spec, host_target()), host_target().vector
    sizes = {"rows": 8, "chunk": 2 * vector, "block_k": vector, "columns": vector}
    return schedule_split_forward(spec, replace(config, **sizes))


def call(function, spec, direction, given, meta=None):
    """The tensors of a call, outputs poisoned, workspaces made."""
    found = arguments(spec, direction)
    numbers = {"softmax_scale": 0.25, "max_seqlen_k": given["longest"]}
    sizes = {**given_sizes(found, given), "max_seqlen_k": given["longest"]}
    values = size_values(spec, sizes, meta, threads=2 if meta else 0)
    made = {}
    for a in found:
        if a.is_tensor and a.name not in given:
            made[a.name] = torch.full(shape_of(a, values), 0.0 if a.zeroed else math.nan)
    whole = {**given, **made, **numbers}
    function(*[whole[a.name] for a in found])
    return made


def inputs_of(problem):
    return problem.inputs(16, causal=True)


def call_inputs(problem):
    """What a packed forward is given, by name."""
    q, k, v, *_ = inputs_of(problem)
    return {"q": q, "k": k, "v": v, **problem.spans, "longest": max(problem.keys)}


def answers(problem):
    return results(problem.alone, inputs_of(problem), torch.float64)


def check_forward(problem, made):
    want, outside = answers(problem), problem.outside("q")
    for name, rows in (("out", lambda x: x), ("lse", torch.t)):
        got = rows(made[name])
        assert largest_error(got[~outside], rows(want[name])[~outside]) < 3e-6
        assert got[outside].isnan().all()


@pytest.fixture(scope="module", params=[streaming, split], ids=["streaming", "split"])
def forwards(request):
    """A forward's function by kind of sequences."""
    specs = map(spec_of, ("packed", "paged"))
    return {spec.sequences: (kernel(request.param(spec)), spec) for spec in specs}


@pytest.mark.parametrize("problem", [PROBLEM, ALONE], ids=["5", "1"])
def test_packed_forward(forwards, problem):
    check_forward(problem, call(*forwards["packed"], "forward", call_inputs(problem)))


@pytest.mark.parametrize("size", [1, 3, 32])
def test_paged_forward(forwards, size):
    """Unused rows of pages are NaN, and none of it gets into a result."""
    given = call_inputs(PROBLEM)
    given |= PROBLEM.in_pages(given["k"], given["v"], size, left=(0, 3, 0, 32, 1))
    check_forward(PROBLEM, call(*forwards["paged"], "forward", given))


@pytest.mark.parametrize("shift", [-1000, 1000, 2**31 - 100])
def test_spans_outside_of_tensors_reach_nothing_else(forwards, shift):
    """Operators refuse them; a kernel called by others has no more than a wrong result."""
    given = call_inputs(PROBLEM)
    for name in ("starts_k", "ends_k", "ends_q"):
        given[name] = (given[name].long() + shift).clamp(-(2**31), 2**31 - 1).int()
    for longest in (given["longest"], 1):
        made = call(*forwards["packed"], "forward", {**given, "longest": longest})
        assert made["out"].shape == given["q"].shape


def test_packed_backward():
    spec = spec_of("packed")
    config = replace(backward_config(spec, host_target()), **SMALL)
    meta = {**SMALL, "head_dim_pad": config.tile(spec).depth_lanes}
    inputs, want = inputs_of(PROBLEM), answers(PROBLEM)
    given = {**call_inputs(PROBLEM), "dout": inputs.dout, "dlse": inputs.dlse}
    given |= {name: want[name].float() for name in ("out", "lse")}
    made = call(kernel(schedule_backward(spec, config)), spec, "backward", given, meta)
    for name, axis in (("dq", "q"), ("dk", "k"), ("dv", "k")):
        inside = ~PROBLEM.outside(axis)
        assert largest_error(made[name][inside], want[name][inside]) < 1e-5
    assert not made["dq"].isnan().any(), "the sums of rows of no entry are 0"
    assert torch.equal(made["dk"].isnan().all(dim=(1, 2)), PROBLEM.outside("k"))
