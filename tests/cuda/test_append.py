"""Appending on interpreted GPU kernels, with all checks: rows in their places and nowhere else."""

import pytest
import torch
from held_cache import COS, SIN, B, Held, append_to
from interpreted import aligned_rows, interpreted, resolver
from packed_problems import DIM, KV_HEADS, random

from tvm_flash import AttentionSpec, apply_rotary
from tvm_flash.codegen.cuda import ptx_of, ptx_version
from tvm_flash.codegen.nvcc import assemble
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.frontend import append_ops, placement
from tvm_flash.ptx_interpreter import Checks
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.verify.appended import append_problems, appending
from tvm_flash.verify.compiled import verify_spec
from tvm_flash.verify.plan import run_program

# Accesses of 16 bytes, of 8, of an element; a width of v of its own.
WIDTHS = [
    ("float16", 64, 32, "sm_75"), ("float32", 24, 40, "sm_90"), ("float16", 15, 8, "sm_80"),
    *(pytest.param(*width, marks=pytest.mark.sweep) for width in (
        ("bfloat16", 128, 128, "sm_80"), ("bfloat16", 20, 20, "sm_120"),
    )),
]  # fmt: skip


def spec_of(dtype, head_dim, head_dim_v):
    widths = {"head_dim": head_dim, "head_dim_v": head_dim_v}
    return AttentionSpec(dtype=dtype, sequences="paged", **widths)


@pytest.mark.parametrize("dtype, head_dim, head_dim_v, arch", WIDTHS)
def test_rows_go_to_their_places(dtype, head_dim, head_dim_v, arch):
    found = verify_spec(spec_of(dtype, head_dim, head_dim_v), ("append",), (arch,))
    failures = [one.failure for kernel in found.kernels for one in kernel.outcomes if not one.ok]
    assert not failures, failures
    assert len(found.kernels[0].outcomes) == len(append_problems())


# As far as int32 goes; the same place for several rows, which is wrong of the caller.
HOSTILE = [(-9, 7, 40, 2**31 - 1), (-(2**31), 2**31 - 1, -1, 50), (3, 3, 0, 1)]


@pytest.mark.parametrize("numbers", HOSTILE, ids=str)
@pytest.mark.parametrize("name", ["starts_q", "ends_q", "starts_k", "rotary_seqlens", "page_table"])
def test_nothing_outside_the_tensors_is_read_or_written(numbers, name):
    kernel = interpreted(spec_of("float16", 16, 16), "append")
    (problem,) = append_problems(quick=True)
    call = appending(spec_of("float16", 16, 16), problem).call
    wrong = torch.tensor(numbers, dtype=torch.int32)
    call[name] = wrong.repeat(call[name].numel())[: call[name].numel()].view(call[name].shape)
    written = ("k_pages", "v_pages")
    run_program(
        kernel.program, kernel.ptx, call, outputs=written, checks=Checks(global_races=False)
    )


def test_turing_does_not_convert_to_bfloat16():
    with pytest.raises(UnsupportedSpec, match="sm_75: no conversion to bfloat16"):
        cuda_programs(spec_of("bfloat16", 64, 64), "append", (ARCHS["sm_75"],))


# The widest rows take the most registers.
NARROW = [pytest.param(head_dim, marks=pytest.mark.sweep) for head_dim in (8, 16)]


@pytest.mark.parametrize("head_dim", [*NARROW, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_no_architecture_spills(dtype, head_dim):
    archs = tuple(arch for arch in ARCHS.values() if arch.bf16)
    spec = spec_of(dtype, head_dim, head_dim)
    for _, program in cuda_programs(spec, "append", archs):
        (name,), (ptx,) = [x.name for x in program.launches], ptx_of(program, ptx_version(archs))
        for arch in archs:
            assert assemble(ptx, name, arch.name).resources.in_local_memory == 0, arch.name


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_front_calls_them(interleaved, monkeypatch):
    """A cache, its queries rotated too, beside CPU kernels."""
    cpu, gpu = Held(16), Held(16)
    rows = {name: random(B, 3, KV_HEADS, DIM, seed=n) for n, name in enumerate("kv")}
    options = {"rotary_cos": COS, "rotary_sin": SIN, "rotary_interleaved": interleaved, **rows}
    want = append_to(cpu, **options)
    monkeypatch.setattr(append_ops, "resolve", resolver())
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    got = append_to(gpu, **options)
    for one, other in zip((*got, gpu.k, gpu.v), (*want, cpu.k, cpu.v), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    x, cu_seqlens = random(9, 2, DIM), torch.tensor([0, 4, 7], dtype=torch.int32)
    turned = apply_rotary(x, COS, SIN, interleaved, cu_seqlens=cu_seqlens)
    monkeypatch.undo()
    want = apply_rotary(x, COS, SIN, interleaved, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(turned, want)
    assert torch.equal(turned[7:], x[7:])
