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
    compile_function,
    exact,
    inputs,
    max_error,
)

from tvm_flash.definition.plain import plain_forward
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.machine import cpu_features
from tvm_flash.schedules.cpu import amx_tile
from tvm_flash.schedules.cpu.defaults import backward_config, forward_config
from tvm_flash.schedules.cpu.forward import ForwardConfig, schedule_forward
from tvm_flash.schedules.select import scheduled_module
from tvm_flash.schedules.target import TARGETS, cpu_target, host_target
from tvm_flash.spec import AttentionSpec

HERE = Path(__file__).parent
RUNNABLE = [t.name for t in TARGETS if t.features <= cpu_features()]
X86 = [t.name for t in TARGETS if t.name.startswith("x86")]
TOLERANCE = {"float32": 3e-6, "bfloat16": 2**-7, "float16": 2**-10}


def compiled(scheduled, target):
    symbol = next(iter(scheduled.mod.functions)).name_hint
    with target.tvm_target():
        return tvm.compile(scheduled.mod, target=target.tvm_target())[symbol]


def assembly(scheduled, target) -> str:
    with target.tvm_target():
        return tvm.compile(scheduled.mod, target=target.tvm_target()).mod.inspect_source("s")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", RUNNABLE)
def test_forward_on_every_runnable_target(name, dtype):
    target, spec = cpu_target(name), AttentionSpec(dtype, 40, head_dim_v=24, causal=True)
    kernel = compiled(scheduled_module(spec, "forward", target), target)
    for sizes in (Sizes(), Sizes(b=1, sq=150, sk=129), Sizes(b=1, sq=1, sk=1)):
        q, k, v, _ = inputs(spec, sizes)
        _, (out, lse) = exact(q, k, v, causal=True)
        got, got_lse = call_forward(kernel, q, k, v)
        assert max_error(got, out) < TOLERANCE[dtype] * max(1.0, out.abs().max().item())
        assert max_error(got_lse, lse) < 2e-4


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", RUNNABLE)
def test_backward_on_every_runnable_target(name, dtype):
    target, spec = cpu_target(name), AttentionSpec(dtype, 40, head_dim_v=24, causal=True)
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
            assert max_error(a, b) < 4 * TOLERANCE[dtype] * max(1.0, b.abs().max().item())


def test_scheduled_equals_definition():
    target, spec = host_target(), AttentionSpec("float32", 16, window_size=(9, 0), softcap=3.0)
    definition = compile_function(plain_forward(spec), target.tvm_target())
    schedule = compiled(scheduled_module(spec, "forward", target), target)
    q, k, v, _ = inputs(spec, Sizes())
    for got, want in zip(
        call_forward(schedule, q, k, v), call_forward(definition, q, k, v), strict=True
    ):
        assert max_error(got, want) < 3e-6


@pytest.mark.parametrize(
    "change",
    [
        {"block_k": 32},
        {"block_q": 128},
        {"block_q": 64},
        {"group": 128},
        {"group": 16, "lanes": 16},
        {"rows_s": 8},
        {"rows_o": 2},
        {"tasks_per_thread": 1},
    ],
)
def test_forward_config_changes_no_result(change):
    target, spec = host_target(), AttentionSpec("float32", 32, causal=True)
    config = replace(forward_config(spec, target), **change)
    kernel = compiled(scheduled_module(spec, "forward", target, config), target)
    q, k, v, _ = inputs(spec, Sizes(sq=140, sk=200))
    _, (out, _) = exact(q, k, v, causal=True)
    assert max_error(call_forward(kernel, q, k, v)[0], out) < 3e-6


@pytest.mark.parametrize("change", [{"block_k": 128}, {"block_q": 32}, {"rows": 8}])
def test_backward_config_changes_no_result(change):
    target, spec = host_target(), AttentionSpec("float32", 32, causal=True)
    config = replace(backward_config(spec, target), **change)
    scheduled = scheduled_module(spec, "backward", target, config)
    kernel = compiled(scheduled, target)
    q, k, v, dout = inputs(spec, Sizes(sq=140, sk=200))
    leaves, (out, lse) = exact(q, k, v, causal=True)
    want = torch.autograd.grad(out, leaves, dout.double())
    saved = (q, k, v, out.detach().float(), dout, lse.detach().float())
    extra = backward_workspace(scheduled.meta, q, k, copies=3)
    got = call_backward(kernel, *saved, torch.zeros_like(saved[5]), (), extra)
    assert all(max_error(a, b) < 1e-5 for a, b in zip(got, want, strict=True))


def test_backward_is_bit_equal_from_run_to_run():
    target, spec = host_target(), AttentionSpec("float32", 64)
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
    spec = AttentionSpec("float32", 64)
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
    text = assembly(scheduled_module(AttentionSpec(dtype, 64), "forward", target), target)
    assert [i for i in instructions if i not in text] == []


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", [*X86, "aarch64"])
def test_every_target_compiles(name, direction):
    target, spec = cpu_target(name), AttentionSpec("float16", 80, causal=True, softcap=20.0)
    assert len(assembly(scheduled_module(spec, direction, target), target)) > 10_000


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler for the software tiles")
@pytest.mark.skipif("avx512_bf16" not in cpu_features(), reason="the rest of the kernel is AVX-512")
def test_amx_forward_on_software_tiles(tmp_path, monkeypatch):
    """The AMX kernel with its four instructions replaced by C functions."""
    library = tmp_path / "soft_amx.so"
    subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", HERE / "soft_amx.c", "-o", library], check=True
    )
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    software = lambda name, *args: tvm.tirx.call_extern("void", f"soft_{name}", *args)  # noqa: E731
    monkeypatch.setattr(amx_tile, "tile_call", software)
    caches = (amx_tile.register_amx, amx_tile.register_start)
    for cache in caches:
        cache.cache_clear()
    spec = AttentionSpec("bfloat16", 80, head_dim_v=48, causal=True)
    config = forward_config(spec, cpu_target("x86-64-v4+amx"))
    assert config.unit == "amx"
    func = schedule_forward(spec, config).with_attr("global_symbol", "amx_fwd")
    kernel = compile_function(func, cpu_target("x86-64-v4+bf16").tvm_target())
    for cache in caches:
        cache.cache_clear()
    for sizes in (Sizes(), Sizes(b=1, sq=200, sk=300)):
        q, k, v, _ = inputs(spec, sizes)
        _, (out, lse) = exact(q, k, v, causal=True)
        got, got_lse = call_forward(kernel, q, k, v)
        assert max_error(got, out) < 2**-7 * out.abs().max().item()
        assert max_error(got_lse, lse) < 2e-4


def test_a_spec_that_returns_out_has_no_lse_argument():
    target = host_target()
    spec = AttentionSpec("float32", 16, causal=True, returns="out")
    kernel = compiled(scheduled_module(spec, "forward", target), target)
    q, k, v, _ = inputs(spec, Sizes())
    _, (want, _) = exact(q, k, v, causal=True)
    out = torch.full_like(want, torch.nan, dtype=torch.float32)
    kernel(q, k, v, out, q.shape[3] ** -0.5)
    assert max_error(out, want) < 3e-6
