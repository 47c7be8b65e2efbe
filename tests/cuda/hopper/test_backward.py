"""The backward for sm_90a on the shared list of cases, interpreted under random schedules."""

import dataclasses

import pytest
import torch
from hopper_kernels import ARCH, served, sweeping
from interpreted import aligned_rows, interpreted, shuffled

import tvm_flash
from tvm_flash.cases import CORRECTNESS, make_inputs
from tvm_flash.frontend import ops, placement
from tvm_flash.schedules.cuda.hopper.backward_config import HopperBackwardConfig
from tvm_flash.schedules.cuda.hopper.defaults import (
    hopper_backward_configs,
    hopper_ordered_configs,
)
from tvm_flash.schedules.cuda.hopper.ring import BARRIER_BYTES
from tvm_flash.schedules.cuda.kernels import SCHEDULES
from tvm_flash.verify.rule import judged

SERVED = served(hopper_backward_configs)


# One of each width, and what leaves the middle of the kernel another code.
FEW = ("bf16_gqa", "bf16_dim_128", "dropout_causal", "sigmoid_score_mod")


def resolve(spec, direction, *_):
    """Backwards for sm_90a, by warp groups; what comes before them for sm_80."""
    if not direction.startswith("backward"):
        return interpreted(spec, direction)
    kernel = interpreted(spec, direction, ARCH.name)
    assert kernel.program.config["schedule"] == HopperBackwardConfig.schedule
    return kernel


@pytest.fixture(autouse=True)
def on_hopper(monkeypatch):
    """Operators on CPU tensors run these interpreted kernels."""
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    monkeypatch.setattr(ops, "resolve", resolve)


def check(case, seed=0, **options):
    """Assert the error rule for ``case``, warps and copies shuffled by ``seed``."""
    with shuffled(seed):
        found = judged(tvm_flash.attention, make_inputs(case), **options)
    for deviation in found:
        assert deviation.ok, str(deviation)


@pytest.mark.parametrize("case", sweeping(SERVED, FEW))
def test_case(case):
    check(case, seed=len(case.name))


def case_of(**fields):
    """A causal case in bfloat16 of grouped heads, whose queries and keys fill more than a tile."""
    found = next(case for case in CORRECTNESS if case.name == "bf16_gqa")
    return dataclasses.replace(found, **{"seqlen_q": 150, "seqlen_k": 300, **fields})


LENGTHS = ((64, 128), (200, 333), (333, 200), (65, 130), (1, 300), (300, 1), (257, 500), (129, 129))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("number", range(2), ids=["bulk", "red"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.sweep
def test_every_default(dim, number, lengths, monkeypatch):
    case = case_of(head_dim=dim, head_dim_v=dim, seqlen_q=lengths[0], seqlen_k=lengths[1])
    chosen = hopper_backward_configs(case.spec, ARCH)[number]
    assert chosen.sums == ("bulk", "red")[number]
    monkeypatch.setattr(
        ops, "resolve", lambda spec, direction, *_: interpreted(spec, direction, ARCH.name, number)
    )
    check(case, seed=sum(lengths))


@pytest.mark.parametrize("dim", [128, pytest.param(64, marks=pytest.mark.sweep)])
def test_reductions_from_registers(dim, monkeypatch):
    """dQ by red of four numbers, in place of bulk reductions."""
    case = case_of(head_dim=dim, head_dim_v=dim, seqlen_q=100, seqlen_k=200)
    kernel = interpreted(case.spec, "backward", ARCH.name, 1)
    assert kernel.program.config["sums"] == "red"
    monkeypatch.setattr(ops, "resolve", lambda spec, direction, *rest: (
        kernel if direction == "backward" else resolve(spec, direction)))  # fmt: skip
    check(case, seed=7)
    assert any("red.global.add.v4.f32" in text for text in kernel.ptx)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.sweep
def test_listed_blocks(dim):
    """Lists of blocks that tiles divide: producer, statistics and consumers read them."""
    check(case_of(head_dim=dim, mask_mod="document", block=(128, 128), variant={}), seed=3)


def test_equal_bits_in_order():
    """deterministic=True under other schedules; dK and dV are sums of one block anyhow."""
    gradients = []
    for seed in (1, 2):
        inputs = make_inputs(case_of(seqlen_q=90, seqlen_k=200))
        leaves = [x.detach().requires_grad_() for x in inputs[:3]]
        with shuffled(seed):
            out = tvm_flash.attention(*leaves, **inputs.variant, deterministic=True)
            gradients.append(torch.autograd.grad(out, leaves, torch.ones_like(out)))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("scale", [-0.3, 0.0])
@pytest.mark.sweep
def test_scales_that_are_not_positive(scale):
    check(case_of(variant={"softmax_scale": scale, "causal": True}, seqlen_q=70), seed=5)


def test_what_it_does_not_serve_is_left_to_the_others():
    for fields in ({"dtype": "float32"}, {"head_dim": 36}, {"head_dim": 192, "head_dim_v": 192}):
        spec = case_of(**{"head_dim_v": None, **fields}).spec
        first = SCHEDULES.defaults(spec, "backward", ARCH)[0]
        assert first.schedule == "cuda.backward", fields
        assert HopperBackwardConfig().reasons(spec, ARCH)
    packed = dataclasses.replace(case_of().spec, sequences="packed")
    assert not hopper_ordered_configs(packed, ARCH) and not hopper_backward_configs(packed, ARCH)


@pytest.mark.parametrize("spec", [case.spec for case in SERVED[::40]], ids=lambda spec: spec.name)
def test_shared_memory_is_told_before(spec):
    config = hopper_backward_configs(spec, ARCH)[0]
    launches, _ = SCHEDULES.of(config).function(spec, (config,), ARCH, "k")
    (own,) = [launch for launch in launches if launch.name == "k_dkdv"]
    assert 0 <= config.shared_bytes(spec) - own.shared_bytes < BARRIER_BYTES
