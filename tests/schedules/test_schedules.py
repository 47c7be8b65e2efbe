"""Every CPU schedule, config and target against the definition and float64."""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tvm
from problems import (
    Sizes,
    backward_workspace,
    call_backward,
    call_forward,
    captured,
    compile_function,
    exact,
    inputs,
)
from soft_bf16 import SOFT_DOT, SOFT_PAIRS

from tvm_flash.codegen.cpu_pipeline import PIPELINE
from tvm_flash.definition.plain import plain_forward
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.machine import cpu_features
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.schedules.cpu import amx_tile, backward_pairs, micro_tile
from tvm_flash.schedules.cpu.backward import BackwardConfig, schedule_backward
from tvm_flash.schedules.cpu.defaults import backward_config, forward_config
from tvm_flash.schedules.cpu.forward import ForwardConfig, schedule_forward
from tvm_flash.schedules.select import scheduled_module
from tvm_flash.schedules.target import TARGETS, cpu_target, host_target
from tvm_flash.verify.rule import largest_error

SUPPORT = Path(__file__).resolve().parents[1] / "support"
RUNNABLE = [t.name for t in TARGETS if t.features <= cpu_features()]
X86 = [t.name for t in TARGETS if t.name.startswith("x86")]
TOLERANCE = {"float32": 3e-6, "bfloat16": 2**-7, "float16": 2**-10}


def compiled(scheduled, target):
    symbol = next(iter(scheduled.mod.functions)).name_hint
    return _module(scheduled, target)[symbol]


def assembly(scheduled, target) -> str:
    return _module(scheduled, target).mod.inspect_source("s")


def _module(scheduled, target):
    with target.tvm_target():
        return tvm.compile(scheduled.mod, target=target.tvm_target(), tir_pipeline=PIPELINE)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", RUNNABLE)
def test_forward_on_every_runnable_target(name, dtype):
    target, spec = (
        cpu_target(name),
        AttentionSpec(dtype=dtype, head_dim=40, head_dim_v=24, causal=True),
    )
    kernel = compiled(scheduled_module(spec, "forward", target), target)
    for sizes in (Sizes(), Sizes(b=1, sq=150, sk=129), Sizes(b=1, sq=1, sk=1)):
        q, k, v, _ = inputs(spec, sizes)
        _, (out, lse) = exact(q, k, v, causal=True)
        got, got_lse = call_forward(kernel, q, k, v)
        assert largest_error(got, out) < TOLERANCE[dtype] * max(1.0, out.abs().max().item())
        assert largest_error(got_lse, lse) < 2e-4


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", RUNNABLE)
def test_backward_on_every_runnable_target(name, dtype):
    target, spec = (
        cpu_target(name),
        AttentionSpec(dtype=dtype, head_dim=40, head_dim_v=24, causal=True),
    )
    scheduled = scheduled_module(spec, "backward", target)
    kernel = compiled(scheduled, target)
    for sizes in (Sizes(), Sizes(b=1, sq=150, sk=129)):
        q, k, v, dout = inputs(spec, sizes)
        leaves, (out, lse) = exact(q, k, v, causal=True)
        want = torch.autograd.grad(out, leaves, dout.double())
        saved = (q, k, v, out.detach().to(q.dtype), dout, lse.detach().float())
        extra = backward_workspace(scheduled.meta, q, k)
        got = call_backward(kernel, *saved, torch.zeros_like(saved[5]), (), extra)
        for a, b in zip(got, want, strict=True):
            assert largest_error(a, b) < 4 * TOLERANCE[dtype] * max(1.0, b.abs().max().item())


def test_scheduled_equals_definition():
    target, variant = host_target(), {"window_size": (9, 0), "softcap": 3.0}
    spec, _, numbers = captured(variant, dtype="float32", head_dim=16)
    definition = compile_function(plain_forward(spec), target.tvm_target())
    schedule = compiled(scheduled_module(spec, "forward", target), target)
    q, k, v, _ = inputs(spec, Sizes())
    results = [call_forward(x, q, k, v, numbers=numbers) for x in (schedule, definition)]
    for got, want in zip(*results, strict=True):
        assert largest_error(got, want) < 3e-6


@pytest.mark.parametrize(
    "change",
    [
        {"block_k": 32},
        {"groups": 2},
        {"groups": 1},
        {"group": 128, "lanes": 16, "groups": 2},
        {"group": 16, "lanes": 16},
        {"rows_s": 8},
        {"rows_o": 2},
        {"tasks_per_thread": 1},
        {"unroll": 4},
    ],
)
def test_forward_config_changes_no_result(change):
    target, spec = host_target(), AttentionSpec(dtype="float32", head_dim=32, causal=True)
    change = dict(change)
    groups = change.pop("groups", None)  # block_q is a multiple of a size that CPUs differ in
    config = replace(forward_config(spec, target), **change)
    if groups is not None:
        config = replace(config, block_q=groups * config.group)
    kernel = compiled(scheduled_module(spec, "forward", target, config), target)
    q, k, v, _ = inputs(spec, Sizes(sq=140, sk=200))
    _, (out, _) = exact(q, k, v, causal=True)
    assert largest_error(call_forward(kernel, q, k, v)[0], out) < 3e-6


@pytest.mark.parametrize(
    "change",
    [
        {"block_k": 64},
        {"block_q": 32},
        {"step_k": 32, "lanes": 32, "rows": 8},
        pytest.param({"step_k": 128}, marks=pytest.mark.sweep),
        pytest.param({"key_rows": 8, "head_lanes": 16}, marks=pytest.mark.sweep),
        pytest.param({"unroll": 4}, marks=pytest.mark.sweep),
    ],
)
def test_backward_config_changes_no_result(change):
    target, spec = host_target(), AttentionSpec(dtype="float32", head_dim=32, causal=True)
    config = replace(backward_config(spec, target), **change)
    scheduled = scheduled_module(spec, "backward", target, config)
    kernel = compiled(scheduled, target)
    q, k, v, dout = inputs(spec, Sizes(sq=140, sk=200))
    leaves, (out, lse) = exact(q, k, v, causal=True)
    want = torch.autograd.grad(out, leaves, dout.double())
    saved = (q, k, v, out.detach().float(), dout, lse.detach().float())
    extra = backward_workspace(scheduled.meta, q, k, copies=3)
    got = call_backward(kernel, *saved, torch.zeros_like(saved[5]), (), extra)
    assert all(largest_error(a, b) < 1e-5 for a, b in zip(got, want, strict=True))


def test_backward_is_bit_equal_from_run_to_run():
    target, spec = host_target(), AttentionSpec(dtype="float32", head_dim=64)
    scheduled = scheduled_module(spec, "backward", target)
    kernel = compiled(scheduled, target)
    q, k, v, dout = inputs(spec, Sizes(b=1, sq=300, sk=500, h=1, hk=1))
    _, (out, lse) = exact(q, k, v)
    saved = (q, k, v, out.detach().float(), dout, lse.detach().float())
    runs = [
        call_backward(
            kernel,
            *saved,
            torch.zeros_like(saved[5]),
            (),
            backward_workspace(scheduled.meta, q, k, 8),
        )
        for _ in range(5)
    ]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_unsupported_config_lists_every_reason():
    spec = AttentionSpec(dtype="float32", head_dim=64)
    with pytest.raises(UnsupportedSpec) as error:
        config = ForwardConfig(block_q=60, block_k=61, exp2_degree=3, unit="dot")
        scheduled_module(spec, "forward", host_target(), config)
    for part in ("group=60", "block_k=61", "bfloat16", "exp2_degree=3 must be 5 or more"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "name, dtype, instructions",
    [
        ("x86-64-v4+amx", "bfloat16", ["tdpbf16ps", "tileloadd", "ldtilecfg"]),
        ("x86-64-v4+bf16", "bfloat16", ["vdpbf16ps", "zmm"]),
        ("x86-64-v4", "float32", ["vfmadd", "zmm"]),
        ("x86-64-v3", "float32", ["vfmadd", "ymm"]),
        ("x86-64-v2", "float32", ["mulps"]),
        ("aarch64", "float32", ["fmla", "v0.4s"]),
    ],
)
def test_instructions_of_every_target(name, dtype, instructions):
    target = cpu_target(name)
    text = assembly(
        scheduled_module(AttentionSpec(dtype=dtype, head_dim=64), "forward", target), target
    )
    assert [i for i in instructions if i not in text] == []


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", [*X86, "aarch64"])
def test_every_target_compiles(name, direction):
    target, spec = (
        cpu_target(name),
        AttentionSpec(dtype="float16", head_dim=80, causal=True, softcap=True),
    )
    assert len(assembly(scheduled_module(spec, direction, target), target)) > 10_000


needs_avx512 = pytest.mark.skipif(
    "avx512f" not in cpu_features(), reason="the rest of the kernel is AVX-512"
)


@pytest.fixture
def software_tiles(tmp_path, monkeypatch):
    """The AMX instructions replaced by C functions; registered intrinsics are made anew."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler for the software tiles")
    library = tmp_path / "soft_amx.so"
    subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", SUPPORT / "soft_amx.c", "-o", library], check=True
    )
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    software = lambda name, *args: tvm.tirx.call_extern("void", f"soft_{name}", *args)  # noqa: E731
    caches = (amx_tile.register_amx, amx_tile.register_start)
    monkeypatch.setattr(amx_tile, "tile_call", software)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@needs_avx512
def test_amx_forward_on_software_tiles(software_tiles):
    spec = AttentionSpec(dtype="bfloat16", head_dim=80, head_dim_v=48, causal=True)
    config = forward_config(spec, cpu_target("x86-64-v4+amx"))
    assert config.unit == "amx"
    func = schedule_forward(spec, config).with_attr("global_symbol", "amx_fwd")
    kernel = compile_function(func, cpu_target("x86-64-v4").tvm_target())
    for sizes in (Sizes(), Sizes(b=1, sq=200, sk=300)):
        q, k, v, _ = inputs(spec, sizes)
        _, (out, lse) = exact(q, k, v, causal=True)
        got, got_lse = call_forward(kernel, q, k, v)
        assert largest_error(got, out) < 2**-7 * out.abs().max().item()
        assert largest_error(got_lse, lse) < 2e-4


AMX_BACKWARD = BackwardConfig(
    block_q=64, step_k=64, rows=32, lanes=32, key_rows=32, head_lanes=32, exp2_degree=3, unit="amx"
)
DOT_BACKWARD = BackwardConfig(head_lanes=48, exp2_degree=3, unit="dot")


@needs_avx512
def test_amx_backward_on_software_tiles(software_tiles, monkeypatch):
    monkeypatch.setattr(backward_pairs, "PAIRS", SOFT_PAIRS)
    check_bf16_backward(AMX_BACKWARD, cpu_target("x86-64-v4"))


@needs_avx512
@pytest.mark.parametrize("change", [{}, {"block_q": 128, "step_k": 128, "unroll": 2}])
def test_dot_backward_in_software(monkeypatch, change):
    monkeypatch.setattr(backward_pairs, "PAIRS", SOFT_PAIRS)
    monkeypatch.setattr(micro_tile, "DOT_BF16", SOFT_DOT)
    check_bf16_backward(replace(DOT_BACKWARD, **change), cpu_target("x86-64-v4"))


@pytest.mark.skipif("avx512_bf16" not in cpu_features(), reason="the instruction itself")
def test_dot_backward():
    check_bf16_backward(DOT_BACKWARD, cpu_target("x86-64-v4+bf16"))


def check_bf16_backward(config, target):
    """Gradients within 3 times the error of the same computation by torch in bf16."""
    spec = AttentionSpec(dtype="bfloat16", head_dim=80, head_dim_v=48, causal=True)
    assert not config.reasons(spec)
    func = schedule_backward(spec, config).with_attr("global_symbol", "bwd")
    kernel = compile_function(func, target.tvm_target())
    meta = {"block_q": config.block_q, "head_dim_pad": config.tile(spec).depth_lanes}
    for sizes in (Sizes(), Sizes(b=1, sq=201, sk=431)):
        q, k, v, dout = inputs(spec, sizes)
        leaves, (out, lse) = exact(q, k, v, causal=True)
        want = torch.autograd.grad(out, leaves, dout.double())
        plain_leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        plain_out = attention_reference(*plain_leaves, causal=True)[0]
        plain = torch.autograd.grad(plain_out, plain_leaves, dout)
        saved = (q, k, v, out.detach().to(q.dtype), dout, lse.detach().float())
        extra = backward_workspace(meta, q, k)
        got = call_backward(kernel, *saved, torch.zeros_like(saved[5]), (), extra)
        for name, a, b, c in zip(("dq", "dk", "dv"), got, want, plain, strict=True):
            assert largest_error(a, b) < 3 * largest_error(c, b) + 1e-4, name


@pytest.mark.parametrize(
    "target, config, instructions",
    [
        ("x86-64-v4+amx", AMX_BACKWARD, ["tdpbf16ps", "tilezero", "ldtilecfg", "vcvtne"]),
        ("x86-64-v4+bf16", DOT_BACKWARD, ["vdpbf16ps", "vcvtne"]),
    ],
)
def test_instructions_of_backward_units(target, config, instructions):
    target, spec = cpu_target(target), AttentionSpec(dtype="bfloat16", head_dim=64)
    config = replace(config, head_lanes=32)
    text = assembly(scheduled_module(spec, "backward", target, config), target)
    assert [i for i in instructions if i not in text] == []


def test_unsupported_backward_config_lists_every_reason():
    config = BackwardConfig(block_q=63, block_k=100, step_k=48, unit="amx")
    reasons = "; ".join(config.reasons(AttentionSpec(dtype="float16", head_dim=64)))
    for part in ("block_q=63", "block_k=100", "step_k=48", "float16", "32 x 32"):
        assert part in reasons


def test_a_spec_that_returns_out_has_no_lse_argument():
    target = host_target()
    spec = AttentionSpec(dtype="float32", head_dim=16, causal=True, returns="out")
    kernel = compiled(scheduled_module(spec, "forward", target), target)
    q, k, v, _ = inputs(spec, Sizes())
    _, (want, _) = exact(q, k, v, causal=True)
    out = torch.full_like(want, torch.nan, dtype=torch.float32)
    kernel(q, k, v, out, q.shape[3] ** -0.5)
    assert largest_error(out, want) < 3e-6
