"""Kernels made from each kind's recurrence, on CPUs and interpreted for a GPU, against float64."""

import math
from dataclasses import replace

import pytest
import torch
from attention_kinds import exact, rises
from problems import Sizes, captured, compile_function, inputs

from tvm_flash.codegen.cuda import ptx_of, ptx_version
from tvm_flash.definition.derive.bound import BACKWARD_BLOCKS, BoundGradient, BoundRecurrence
from tvm_flash.definition.kinds import gradient_of, recurrence_of
from tvm_flash.definition.plain_backward import plain_backward
from tvm_flash.definition.rows import KINDS
from tvm_flash.definition.signature import Signature
from tvm_flash.problem.arguments import TABLE, WRITTEN, names
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cpu.defaults import forward_config
from tvm_flash.schedules.cpu.forward import schedule_forward
from tvm_flash.schedules.cpu.split_forward import default_split_config, schedule_split_forward
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.forward import ForwardConfig, forward_launch
from tvm_flash.schedules.cuda.merge import merge_launch
from tvm_flash.schedules.cuda.program import CudaProgram
from tvm_flash.schedules.cuda.split_forward import SplitForwardConfig, parts_launch
from tvm_flash.schedules.target import host_target
from tvm_flash.verify.plan import run_program
from tvm_flash.verify.rule import largest_error

SIZES = [Sizes(b=1, sq=40, sk=75, h=4, hk=2), Sizes(b=1, sq=19, sk=9, h=2, hk=1)]
SINKS = [(-1.0, 3.0), (400.0, 800.0)]  # among the scores; far above all of them


def scheduled(spec, form):
    target = host_target()
    if form == "streaming":
        config = replace(forward_config(spec, target), block_q=64, group=16, lanes=16, block_k=16)
        return schedule_forward(spec, replace(config, rows_s=4))
    config = replace(default_split_config(spec, target), chunk=32, block_k=16)
    return schedule_split_forward(spec, config)


def problem(spec, kind, sizes, sink, variant):
    """(named arguments of a kernel, outputs as NaN; float64 out; float64 lse or None)."""
    q, k, v, _ = inputs(spec, sizes)
    logits = torch.linspace(*sink, sizes.h)
    out, lse = exact(kind, *(x.double() for x in (q, k, v)), logits, variant)
    named = {"q": q, "k": k, "v": v, "out": torch.full_like(out, math.nan, dtype=q.dtype)}
    if lse is not None:
        named["lse"] = torch.full(lse.shape, math.nan)
    if kind == "sink":
        named["sink"] = logits
    return named, out, lse


def check(named, out, lse, tolerance):
    assert largest_error(named["out"], out) < tolerance * max(1, out.abs().max().item())
    if lse is not None:
        assert largest_error(named["lse"], lse) < 2e-6 * max(
            1, lse[lse.isfinite()].abs().max().item()
        )


@pytest.mark.parametrize("form", ["streaming", "split"])
@pytest.mark.parametrize("kind", KINDS)
def test_cpu_forms(kind, form):
    """Rows without a visible key, maxima that lag, a start that counts once in many chunks."""
    spec = AttentionSpec(dtype="float32", head_dim=24, head_dim_v=16, causal=True, softmax=kind)
    kernel = compile_function(scheduled(spec, form), host_target().tvm_target())
    for sizes in SIZES:
        for sink in SINKS if kind == "sink" else SINKS[:1]:
            named, out, lse = problem(spec, kind, sizes, sink, {"causal": True})
            kernel(*named.values(), spec.head_dim**-0.5)
            check(named, out, lse, 3e-6)


def whole(spec):
    """One kernel for all keys."""
    return (forward_launch(spec, ForwardConfig(32, 16, 2), ARCHS["sm_80"], "kinds"),)


def divided(spec):
    """A start counts once in many parts."""
    config = SplitForwardConfig(32, 16, 2)
    parts = parts_launch(spec, config, ARCHS["sm_80"], "parts")
    return parts, merge_launch(spec, config, "merge")


def workspaces(named):
    """Memory for the states of three parts."""
    batch, rows, heads, columns = named["out"].shape
    shape = 3, batch, heads, rows
    states = {name: torch.empty(shape) for name in ("part_m", "part_l")}
    return {"part_out": torch.empty(*shape, columns), **states}


@pytest.mark.parametrize("launches", [whole, divided])
@pytest.mark.parametrize("variant", ["causal", "score_mod"])
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_forward(kind, variant, launches):
    options = {"causal": True}
    if variant == "score_mod":
        options |= {"score_mod": rises, "window_size": (10**6, 0)}
    spec, _, _ = captured(options, dtype="float16", head_dim=16, softmax=kind)
    made = launches(spec)
    for sizes in SIZES:
        for sink in SINKS if kind == "sink" else SINKS[:1]:
            named, out, lse = problem(spec, kind, sizes, sink, options)
            if variant == "score_mod" and lse is not None:
                named["lse_low"] = torch.full_like(named["lse"], math.nan)
            tensors = named | (workspaces(named) if launches is divided else {})
            called = tensors | {"softmax_scale": spec.head_dim**-0.5, "window_left": 10**6}
            called = {name: called[name] for name in (*tensors, *Signature(spec).numbers)}
            written = names(TABLE["forward_split"], *WRITTEN)
            written = tuple(name for name in written if name in called)
            program = CudaProgram("kinds", tuple(called), made, written=written)
            run_program(program, ptx_of(program, ptx_version((ARCHS["sm_80"],))), called)
            check(named, out, lse, 3e-3)


def test_a_kernel_uses_its_whole_definition():
    softmax = BoundRecurrence(recurrence_of("softmax"))
    with pytest.raises(AssertionError, match="without exp, lse, mask, out, pv, row_max"):
        softmax.check(["lse"])
    gradient = BoundGradient(gradient_of("softmax"))
    with pytest.raises(AssertionError, match="without ds, mask, p, score_mod"):
        gradient.check("scores", "delta", "dp", "dq", "dk", "dv")


def test_blocks_of_the_backward():
    script = plain_backward(AttentionSpec(dtype="float32", head_dim=8)).script()
    assert all(f'T.sblock("{name}")' in script for name in BACKWARD_BLOCKS)
    assert script.count("T.sblock(") == len(BACKWARD_BLOCKS) + len(("dq", "dk", "dv")) + 1
