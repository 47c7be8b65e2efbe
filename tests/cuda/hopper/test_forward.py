"""The forward for sm_90a on the shared list of cases, interpreted under random schedules."""

import dataclasses

import pytest
import torch
from hopper_kernels import ARCH, served, sweeping
from interpreted import InterpretedKernel, aligned_rows, interpreted, resolver, shuffled

import tvm_flash
from tvm_flash.cases import CORRECTNESS, make_inputs
from tvm_flash.codegen.cuda import ptx_of
from tvm_flash.frontend import ops, placement
from tvm_flash.schedules.cuda.hopper.defaults import FORWARD, hopper_forward_configs
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.verify.rule import judged, largest_error

SERVED = served(hopper_forward_configs)


# One of each kind of mask, score and state, of views, widths and lengths; all of them are a sweep.
FEW = (
    "lengths_5x0", "bf16_view_every_other", "bf16_window_causal", "bf16_softcap",
    "bf16_sink", "bf16_sigmoid", "bf16_dropout", "bf16_dims_64_128", "f16_dim_80",
)  # fmt: skip


@pytest.fixture(autouse=True)
def on_hopper(monkeypatch):
    """Operators on CPU tensors run interpreted kernels for sm_90a."""
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    monkeypatch.setattr(ops, "resolve", resolver(ARCH.name))


def check(inputs, seed=0):
    """Assert the error rule for ``inputs``, warps and copies shuffled by ``seed``."""
    with shuffled(seed):
        found = judged(tvm_flash.attention, inputs, backward=False)
    for deviation in found:
        assert deviation.ok, str(deviation)


@pytest.mark.parametrize("case", sweeping(SERVED, FEW))
def test_case(case):
    check(make_inputs(case), seed=len(case.name))


@pytest.mark.parametrize("choice", range(4))
@pytest.mark.parametrize("dims", FORWARD, ids=str)
@pytest.mark.sweep
def test_every_default(dims, choice, monkeypatch):
    monkeypatch.setattr(ops, "resolve", resolver(ARCH.name, choice))
    for seed, (name, sq, sk) in enumerate((("bf16_gqa", 197, 413), ("f16_full", 257, 129)), 1):
        case = next(case for case in CORRECTNESS if case.name == name)
        case = dataclasses.replace(
            case, head_dim=dims[0], head_dim_v=dims[1], seqlen_q=sq, seqlen_k=sk
        )
        if choice >= len(hopper_forward_configs(case.spec, ARCH)):
            pytest.skip("fewer configs")
        check(make_inputs(case), seed)


def case_of(**fields):
    """A causal case in bfloat16, small, whose queries and keys fill more than a tile."""
    found = next(case for case in CORRECTNESS if case.name == "bf16_gqa")
    small = {"batch": 1, "heads": 2, "kv_heads": 1, "seqlen_q": 150, "seqlen_k": 300}
    return dataclasses.replace(found, **{**small, **fields})


@pytest.mark.parametrize("dim", [64, pytest.param(128, marks=pytest.mark.sweep)])
def test_listed_blocks(dim):
    """Lists of blocks that tiles divide: producer and consumers read them, each for itself."""
    case = case_of(head_dim=dim, mask_mod="document", block=(128, 128), variant={})
    assert interpreted(case.spec, "forward", ARCH.name).program.config["block_q"] == 128
    check(make_inputs(case), seed=3)


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.sweep
def test_other_numbers_of_stages(stages, monkeypatch):
    case = case_of(head_dim=64, seqlen_k=500)
    config = {"schedule": "cuda.hopper_forward", "block_k": 64, "stages": stages}
    ((_, program),) = cuda_programs(case.spec, "forward", (ARCH,), config)
    kernel = InterpretedKernel(case.spec, "forward", program, ptx_of(program))
    monkeypatch.setattr(ops, "resolve", lambda *which: kernel)
    for seed in range(3):
        check(make_inputs(case), seed)


def test_the_schedule_changes_nothing():
    inputs, outs = make_inputs(case_of()), []
    for seed in (1, 2):
        with shuffled(seed):
            outs.append(tvm_flash.attention(*inputs[:3], **inputs.variant))
    assert torch.equal(*outs)


@pytest.mark.parametrize("scale", [-0.3, pytest.param(0.0, marks=pytest.mark.sweep)])
def test_scales_that_fold_badly(scale):
    """A negative factor would turn maxima into minima, zero a hidden key's -inf into NaN."""
    check(make_inputs(case_of(variant={"softmax_scale": scale, "causal": True})), seed=5)


def test_heads_and_entries_that_repeat():
    """A stride of 0, which no tensor map can have."""
    inputs = make_inputs(case_of(batch=2, heads=4, kv_heads=4, seqlen_k=170))
    k, v = (x[:, :, :1].expand(-1, -1, 4, -1) for x in inputs[1:3])
    q = inputs.q[:1].expand(2, -1, -1, -1)
    assert 0 in k.stride() and 0 in q.stride()
    check(inputs._replace(q=q, k=k, v=v))


def test_rows_that_see_nothing():
    """Queries before the first key: zeros, and lse -inf."""
    inputs = make_inputs(case_of(seqlen_q=200, seqlen_k=40))
    out, lse = tvm_flash.attention(*inputs[:3], **inputs.variant, return_lse=True)
    assert torch.all(out[:, :160] == 0) and torch.all(lse[:, :, :160] == -torch.inf)
    assert largest_error(out[:, 160:], torch.zeros_like(out[:, 160:])) > 0


def test_what_it_does_not_serve_is_left_to_the_others():
    served = interpreted(case_of().spec, "forward", ARCH.name)
    assert served.program.config["schedule"] == "cuda.hopper_forward"
    for fields in ({"dtype": "float32"}, {"head_dim": 36, "head_dim_v": None}):
        left = interpreted(case_of(**fields).spec, "forward", ARCH.name)
        assert left.program.config["schedule"] == "cuda.forward", fields
