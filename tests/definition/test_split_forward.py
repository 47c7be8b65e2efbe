"""The forward that splits keys, against float64: features, lengths, groups, views, threads."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from problems import Sizes, call_forward, captured, compile_function, exact, inputs

from tvm_flash.artifact.library import symbol_name
from tvm_flash.cases import CORRECTNESS, make_inputs
from tvm_flash.codegen.cpu import compile_module
from tvm_flash.definition.signature import as_module
from tvm_flash.machine import cpu_features
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.schedules.cpu.split_forward import (
    SplitForwardConfig,
    default_split_config,
    schedule_split_forward,
)
from tvm_flash.schedules.target import TARGETS, cpu_target, host_target
from tvm_flash.verify.rule import deviations, largest_error

RUNNABLE = [t.name for t in TARGETS if t.features <= cpu_features()]
TOLERANCE = {"float32": 3e-6, "bfloat16": 2**-7, "float16": 2**-10}
CASES = {case.name: case for case in CORRECTNESS}
# Five rows of two heads in one task or several; keys in three chunks, the last one not whole.
FEATURES = [
    "window", "window_left", "softcap_causal", "alibi_causal", "top_left", "everything",
    "relative_bias", "tanh_gate", "document", "some_rows", "mods_causal",
]  # fmt: skip


def split_kernel(spec, target=None, **changes):
    target = target or host_target()
    config = replace(default_split_config(spec, target), **changes)
    assert config.reasons(spec) == []
    return compile_function(schedule_split_forward(spec, config), target.tvm_target())


def small_blocks(spec, target) -> dict:
    """Many chunks and blocks of few keys, so that short problems meet every boundary."""
    vector = target.vector
    return {"rows": 8, "chunk": 2 * vector, "block_k": vector, "columns": vector}


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_of_a_spec(name):
    # Where weights are dropped, keys are not divided.
    variant = {n: x for n, x in CASES[name].variant.items() if n != "dropout_p"}
    case = replace(CASES[name], head_dim=16, seqlen_q=5, heads=4, kv_heads=2, variant=variant)
    given = make_inputs(case)
    known = {"dtype": case.dtype, "head_dim": 16, "alibi": case.alibi}
    spec, tables, numbers = captured(given.variant, **known)
    tables = (given.variant["alibi_slopes"], *tables) if case.alibi else tables
    tables = (given.variant["sink"], *tables) if case.softmax == "sink" else tables
    kernel = split_kernel(spec, **small_blocks(spec, host_target()))
    found = call_forward(kernel, *given[:3], tables, spec.forward_statistics, numbers)
    doubled = [x.double() for x in given[:3]]
    results = [
        dict(zip(("out", "lse"), pair, strict=True))
        for pair in (
            found,
            attention_reference(*doubled, **given.variant),
            attention_reference(*given[:3], **given.variant),
        )
    ]
    for deviation in deviations(case.dtype, *results):
        assert deviation.ok, str(deviation)


@pytest.fixture(scope="module")
def causal_kernel():
    spec = AttentionSpec(dtype="float32", head_dim=16, causal=True)
    return split_kernel(spec, **small_blocks(spec, host_target()))


@pytest.mark.parametrize("group", [1, 4, 5, 8])
def test_lengths_and_groups(causal_kernel, group):
    spec = AttentionSpec(dtype="float32", head_dim=16, causal=True)
    lanes = host_target().vector
    edges = {1, 2, 5} | {n * lanes + r for n in (1, 2, 4) for r in (-1, 0, 1)}
    for sq in range(1, 6):
        for sk in sorted(edges):
            sizes = Sizes(b=2, sq=sq, sk=sk, h=2 * group, hk=2)
            check(causal_kernel, spec, sizes, causal=True)


def check(kernel, spec, sizes, **variant):
    q, k, v, _ = inputs(spec, sizes)
    _, (out, lse) = exact(q, k, v, **variant)
    got, got_lse = call_forward(kernel, q, k, v)
    bound = TOLERANCE[spec.dtype] * max(1.0, out.abs().max().item())
    assert largest_error(got, out) < bound, sizes
    assert largest_error(got_lse, lse) < 3e-6, sizes


@pytest.mark.parametrize(
    "name, dtype",
    [(name, dtype) for name in RUNNABLE for dtype in TOLERANCE if "v4" in name or "16" in dtype],
)
def test_default_config_on_every_runnable_target(name, dtype):
    # Keys are read in place, values are padded and staged.
    target, spec = cpu_target(name), AttentionSpec(dtype=dtype, head_dim=64, head_dim_v=24)
    kernel = split_kernel(spec, target)
    for sizes in (Sizes(), Sizes(b=1, sq=1, sk=600, h=8, hk=1), Sizes(b=1, sq=1, sk=1)):
        check(kernel, spec, sizes)


@pytest.mark.skipif("x86-64-v4+bf16" not in RUNNABLE, reason="needs AVX512_BF16")
@pytest.mark.parametrize("columns", [64, 160])
def test_pairs_of_bf16_and_what_remains_of_their_blocks(columns):
    target = cpu_target("x86-64-v4+bf16")
    spec = AttentionSpec(dtype="bfloat16", head_dim=64, head_dim_v=columns)
    kernel = split_kernel(spec, target, unit="dot", chunk=256)
    for sk in (1, 7, 8, 9, 257, 333):
        check(kernel, spec, Sizes(b=1, sq=3, sk=sk, h=6, hk=3))


def test_heads_of_a_task_change_no_bit():
    spec = AttentionSpec(dtype="float32", head_dim=32)
    q, k, v, _ = inputs(spec, Sizes(b=2, sq=2, sk=300, h=10, hk=5))
    found = [call_forward(split_kernel(spec, heads=n, tasks_per_thread=1), q, k, v) for n in (1, 3)]
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_odd_head_dim_is_staged_and_wide_values_are_not():
    spec = AttentionSpec(dtype="bfloat16", head_dim=59, head_dim_v=256)
    check(split_kernel(spec), spec, Sizes(b=1, sq=2, sk=321, h=4, hk=2))


def test_rows_without_a_visible_key(causal_kernel):
    spec = AttentionSpec(dtype="float32", head_dim=16)
    for sizes, blind in ((Sizes(sq=5, sk=3), 2), (Sizes(sq=3, sk=0), 3)):
        q, k, v, _ = inputs(spec, sizes)
        out, lse = call_forward(causal_kernel, q, k, v)
        assert (out[:, :blind] == 0).all() and (lse[..., :blind] == -math.inf).all()
        assert lse[..., blind:].isfinite().all() and out.isfinite().all()


@pytest.mark.parametrize("view", ["bhsd", "packed", "every_other"])
def test_strided_views(causal_kernel, view):
    case = replace(CASES["f32_gqa"], head_dim=16, seqlen_q=3, view=view)
    given = make_inputs(case)
    _, (out, _) = exact(*given[:3], causal=True)
    assert largest_error(call_forward(causal_kernel, *given[:3])[0], out) < 3e-6


def test_nothing_past_the_last_key_is_used(causal_kernel):
    q, k, v, _ = inputs(AttentionSpec(dtype="float32", head_dim=16), Sizes(sq=1, sk=100))
    k[:, 37:], v[:, 37:] = math.nan, math.nan
    _, (out, lse) = exact(q, k[:, :37], v[:, :37], causal=True)
    got, got_lse = call_forward(causal_kernel, q, k[:, :37], v[:, :37])
    assert largest_error(got, out) < 3e-6 and largest_error(got_lse, lse) < 3e-6


def test_large_logits(causal_kernel):
    q, k, v, _ = inputs(AttentionSpec(dtype="float32", head_dim=16), Sizes(sq=2, sk=150))
    q = q * 24
    _, (out, lse) = exact(q, k, v, causal=True)
    got, got_lse = call_forward(causal_kernel, q, k, v)
    assert largest_error(got, out) < 3e-5 and largest_error(got_lse, lse) < 3e-5


def test_config_changes_no_result():
    spec = AttentionSpec(dtype="float32", head_dim=32, causal=True)
    kernel = split_kernel(spec, rows=4, chunk=128, block_k=32, ahead=0)
    check(kernel, spec, Sizes(sq=3, sk=300, h=8), causal=True)


def test_without_lse():
    spec = AttentionSpec(dtype="float32", head_dim=16, returns="out")
    kernel = split_kernel(spec, **small_blocks(spec, host_target()))
    q, k, v, _ = inputs(spec, Sizes(sq=2))
    out = torch.full_like(q, math.nan)
    kernel(q, k, v, out, 0.25)
    assert largest_error(out, exact(q, k, v)[1][0]) < 3e-6


def test_unsupported_config_lists_every_reason():
    config = SplitForwardConfig(rows=6, block_k=40, columns=48)
    reasons = " ".join(config.reasons(AttentionSpec(dtype="float32", head_dim=64)))
    for part in ("rows=6", "chunk=512", "block_k=40", "padded head_dim_v=64"):
        assert part in reasons


@pytest.mark.parametrize(
    "name, instructions",
    [
        ("x86-64-v4", ["vfmadd", "zmm", "prefetcht1", "vpslld"]),
        ("aarch64", ["fmla", "v0.4s", "prfm"]),
    ],
)
def test_instructions_of_every_target(name, instructions):
    target, spec = cpu_target(name), AttentionSpec(dtype="bfloat16", head_dim=64)
    func = schedule_split_forward(spec, default_split_config(spec, target))
    text = compile_module(as_module(func), target).inspect_source("asm")
    assert [i for i in instructions if i not in text] == []


def test_the_same_bits_on_any_number_of_threads(tmp_path: Path):
    from tvm_flash.codegen.build import Job, build_jobs
    from tvm_flash.runtime.loader import load
    from tvm_flash.schedules.select import Scheduled

    spec, target = AttentionSpec(dtype="bfloat16", head_dim=64), host_target()
    config = default_split_config(spec, target)
    symbol = symbol_name(spec, "forward")
    func = schedule_split_forward(spec, config).with_attr("global_symbol", symbol)
    tile = config.tile(spec)
    meta = {"block_q": tile.block_q, "block_k": tile.block_k}
    scheduled = Scheduled(as_module(func), config.to_json(), meta)
    path = build_jobs([Job(symbol, spec, "forward", lambda: scheduled)], target, tmp_path / "k")
    kernel = load(path).kernels[0]
    q, k, v, _ = inputs(spec, Sizes(b=1, sq=1, sk=2000, h=8, hk=2))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(call_forward(kernel, q, k, v))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for pair in found[1:] for a, b in zip(pair, found[0], strict=True))
