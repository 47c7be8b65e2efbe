"""Length buckets: the lengths of a call choose the kernel; a library without one stands in."""

import ctypes
import dataclasses
import json

import pytest
import torch

import tvm_flash
from tvm_flash.artifact.library import KernelRecord, symbol_name, verify
from tvm_flash.codegen import jit
from tvm_flash.codegen.build import build
from tvm_flash.frontend import ops
from tvm_flash.problem.lengths import (
    BACKWARD_BUCKETS,
    DECODE_QUERIES,
    FORWARD_BUCKETS,
    LIMITS,
    bucket_of,
    buckets_of,
    check_buckets,
    stand_in,
)
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.runtime import kernels, loader
from tvm_flash.runtime.loader import Kernel, load, registered
from tvm_flash.runtime.openmp import torch_openmp
from tvm_flash.schedules.select import choose, choose_all
from tvm_flash.schedules.target import TARGETS, host_target

SPEC = AttentionSpec(dtype="float32", head_dim=24, causal=True)


@pytest.fixture(autouse=True)
def registry():
    """Leave the process as it was."""
    before = dict(registered)
    registered.clear()
    yield registered
    registered.clear()
    registered.update(before)


@pytest.mark.parametrize(
    ("seqlen_q", "seqlen_k", "bucket"),
    [
        (1, 1, "tiny"),
        (LIMITS["tiny"], LIMITS["tiny"], "tiny"),
        (LIMITS["tiny"], LIMITS["tiny"] + 1, "short"),
        (1, LIMITS["tiny"] + 1, "decode"),
        (DECODE_QUERIES, 10**6, "decode"),
        (DECODE_QUERIES + 1, LIMITS["short"], "short"),
        (LIMITS["short"], 1, "short"),
        (LIMITS["short"] + 1, 1, "medium"),
        (LIMITS["medium"], LIMITS["medium"], "medium"),
        (LIMITS["medium"], LIMITS["medium"] + 1, "long"),
        (2**29, 1, "long"),
    ],
)
def test_bucket_of_a_forward(seqlen_q, seqlen_k, bucket):
    assert bucket_of("forward", seqlen_q, seqlen_k) == bucket


def test_backwards_have_no_decode():
    assert bucket_of("backward", 1, 8192) == "long"
    assert bucket_of("backward_deterministic", 1, 100) == "short"
    assert set(FORWARD_BUCKETS) - set(BACKWARD_BUCKETS) == {"decode"}


@pytest.mark.parametrize("bucket", FORWARD_BUCKETS)
def test_every_bucket_has_a_stand_in(bucket):
    assert stand_in(bucket, FORWARD_BUCKETS) == bucket
    for other in set(BACKWARD_BUCKETS) - {bucket}:
        assert stand_in(bucket, [other]) == other
    assert stand_in(bucket, []) is None


def test_nearer_lengths_stand_in_first():
    assert stand_in("long", ["tiny", "short", "medium"]) == "medium"
    assert stand_in("medium", ["tiny", "short", "long"]) == "long"
    assert stand_in("short", ["tiny", "medium", "long"]) == "medium"
    assert stand_in("decode", ["short", "long"]) == "short"
    assert stand_in("long", ["decode"]) is None, "a kernel for few rows is no kernel for many"


def test_symbols_stay_unique():
    names = [symbol_name(SPEC, "forward", bucket) for bucket in FORWARD_BUCKETS]
    assert names[-1] == symbol_name(SPEC, "forward") == f"{SPEC.name}_fwd"
    assert names[1] == f"{SPEC.name}_fwd_decode" and len(set(names)) == len(names)


def test_record_survives_the_manifest_and_older_ones_serve_all():
    record = KernelRecord("f", SPEC, "forward", {"x": 1}, {"block_q": 64})
    assert {"buckets", "config_source"}.isdisjoint(record.to_json())
    own = dataclasses.replace(record, buckets=("tiny", "short"), config_source="default")
    for one in (record, own):
        assert KernelRecord.from_json(json.loads(json.dumps(one.to_json()))) == one
    with pytest.raises(ValueError, match=r"\['middling'\].*tiny, decode"):
        KernelRecord.from_json({**own.to_json(), "buckets": ["middling"]})


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_defaults_serve_every_bucket(target):
    for dtype in ("float32", "bfloat16"):
        spec = AttentionSpec(dtype=dtype, head_dim=64)
        for direction in ("forward", "backward"):
            chosen = choose_all(spec, direction, target, buckets_of(direction))
            assert not [reason for one in chosen for reason in one.config.reasons(spec)]
            served = [bucket for one in chosen for bucket in one.buckets]
            assert sorted(served) == sorted(buckets_of(direction))
            assert "long" in chosen[0].buckets, "the main kernel comes first"


def of(bucket: str, *buckets: str, name: str = "") -> Kernel:
    """A kernel that returns its name instead of attending."""
    return Kernel(SPEC, "forward", {}, {}, lambda *_: name or bucket, "cpu", (bucket, *buckets))


def served() -> dict[str, str]:
    """Who serves each bucket."""
    found = {bucket: registered.get((SPEC.name, "forward", "cpu", bucket)) for bucket in LIMITS}
    return {bucket: kernel and kernel() for bucket, kernel in found.items()}


def loads(monkeypatch, *libraries):
    for library in libraries:
        monkeypatch.setattr(loader, "opened", lambda _, own=library: loader.Library("", None, own))
        load("somewhere")


def test_a_library_serves_what_it_lacks_with_its_nearest(monkeypatch):
    loads(monkeypatch, [of("medium"), of("tiny")])
    assert served() == {"tiny": "tiny", "short": "medium", "medium": "medium"}
    assert kernels.resolve(SPEC, "forward", "cpu", None, "decode")() == "tiny"
    assert kernels.resolve(SPEC, "forward")() == "medium", "no compiler for long"


def test_a_later_library_takes_over_what_it_was_built_for(monkeypatch):
    loads(monkeypatch, [of("long", "short")], [of("medium", name="new")])
    assert served() == {"tiny": "long", "short": "long", "medium": "new"}
    loads(monkeypatch, [of("short", "tiny", name="newer")])
    assert served() == {"tiny": "newer", "short": "newer", "medium": "new"}


def test_what_was_compiled_here_stands_in_for_nothing(monkeypatch, tmp_path):
    asked = []

    def artifact_for(spec, direction, *, bucket, use):
        asked.append(bucket)
        return use(bucket)

    def opened(bucket):
        return loader.Library("", None, [of(bucket, *(["short"] if bucket == "medium" else []))])

    monkeypatch.setattr(jit, "artifact_for", artifact_for)
    monkeypatch.setattr(kernels, "opened", opened)
    for bucket in ("tiny", "medium", "short", "long", "tiny"):
        resolved = kernels.resolve(SPEC, "forward", "cpu", None, bucket)()
        assert resolved == ("medium" if bucket == "short" else bucket)
    assert asked == ["tiny", "medium", "long"], "a shared kernel is compiled once"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Every bucket of SPEC, forward and backward."""
    return build([SPEC], path=tmp_path_factory.mktemp("buckets") / "kernels")


def test_a_build_has_one_kernel_for_each_config(artifact):
    records = verify(artifact)[1].kernels
    forward = [record for record in records if record.direction == "forward"]
    assert records[0].symbol == f"{SPEC.name}_fwd" and len(forward) > 1
    assert sorted(b for r in forward for b in r.buckets) == sorted(FORWARD_BUCKETS)
    configs = [json.dumps(record.config, sort_keys=True) for record in forward]
    assert len(set(configs)) == len(configs)
    assert all(record.config_source for record in records)
    for record in forward:
        for bucket in record.buckets:
            chosen = choose(SPEC, "forward", host_target(), bucket)
            assert chosen.config.to_json() == record.config
            assert chosen.source in record.config_source


# Lengths at both sides of each limit, few rows, and sequences shorter than a tile.
LENGTHS = [(1, 1), (16, 16), (32, 32), (33, 33), (7, 150), (16, 40), (256, 257), (70, 1100)]


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), LENGTHS)
def test_every_kernel_is_right_for_every_length(artifact, seqlen_q, seqlen_k):
    q = torch.randn(1, seqlen_q, 4, 24)
    k, v = torch.randn(2, 1, seqlen_k, 2, 24)
    exact, exact_lse = attention_reference(q, k, v, causal=True, upcast=torch.float64)
    for kernel in load(artifact).kernels:
        if kernel.direction == "forward":
            out, lse = torch.full_like(q, torch.nan), torch.full((1, 4, seqlen_q), torch.nan)
            kernel(q, k, v, out, lse, 24**-0.5)
            torch.testing.assert_close(out.double(), exact, atol=3e-6, rtol=0)
            torch.testing.assert_close(lse.double(), exact_lse, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), LENGTHS)
def test_a_call_runs_the_kernel_of_its_lengths(artifact, seqlen_q, seqlen_k, monkeypatch):
    load(artifact)
    found = []

    def resolve(spec, direction, device, capability, bucket):
        found.append((direction, bucket, kernels.resolve(spec, direction, device, None, bucket)))
        return found[-1][2]

    monkeypatch.setattr(ops, "resolve", resolve)
    leaves = [torch.randn(1, seqlen_q, 4, 24), *torch.randn(2, 1, seqlen_k, 2, 24)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = tvm_flash.attention(*leaves, causal=True)
    grads = torch.autograd.grad(out.sin().sum(), leaves)
    for direction, bucket, kernel in found:
        assert bucket == bucket_of(direction, seqlen_q, seqlen_k) and bucket in kernel.buckets
    assert [direction for direction, *_ in found] == ["forward", "backward"]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    want = torch.autograd.grad(attention_reference(*exact, causal=True)[0].sin().sum(), exact)
    for got, exactly in zip(grads, want, strict=True):
        torch.testing.assert_close(got.double(), exactly, atol=2e-5, rtol=1e-4)


def test_fewer_buckets_on_demand(tmp_path):
    path = build([SPEC], path=tmp_path / "few", directions=["forward"], buckets=["tiny"])
    (record,) = verify(path)[1].kernels
    assert (record.symbol, record.buckets) == (f"{SPEC.name}_fwd_tiny", ("tiny",))
    load(path)
    q = torch.randn(1, 40, 1, 24)
    want = attention_reference(q, q, q, causal=True)[0]
    torch.testing.assert_close(tvm_flash.attention(q, q, q, causal=True), want)
    with pytest.raises(ValueError, match=r"\['huge'\]"):
        build([SPEC], path=tmp_path / "none", buckets=["huge"])
    assert check_buckets(["long"]) == ("long",)


def test_a_loop_of_one_iteration_starts_no_team(artifact):
    """Counted by a stand-in for OpenMP's entry point."""
    library = load(artifact)
    kernel = library.kernels[0]
    teams = []
    run_team = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    )
    real = run_team(torch_openmp().run_team)
    counting = run_team(lambda *arguments: teams.append(real(*arguments)))
    bind = library.symbols.tvm_flash_bind_threads
    others = (torch_openmp().threads, torch_openmp().in_parallel)
    bind(counting, *map(ctypes.c_void_p, others))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for heads, expected in ((1, 0), (8, 1)):
            teams.clear()
            q = torch.randn(1, 16, heads, 24)
            kernel(q, q, q, torch.empty_like(q), torch.empty(1, heads, 16), 1.0)
            assert len(teams) == expected
    finally:
        torch.set_num_threads(threads)
        bind(*map(ctypes.c_void_p, (torch_openmp().run_team, *others)))
