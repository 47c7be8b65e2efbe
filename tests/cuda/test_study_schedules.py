"""The schedules made for study, standard attention and the original FlashAttention, are right."""

import pytest
import torch
from problems import captured

from tvm_flash.cases import Case, make_inputs
from tvm_flash.codegen.cuda import ptx_of
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.study.kernels.original import original_program
from tvm_flash.study.kernels.original_config import DEFAULT as ORIGINAL
from tvm_flash.study.kernels.original_config import OriginalConfig
from tvm_flash.study.kernels.standard import DEFAULT as STANDARD
from tvm_flash.study.kernels.standard import StandardConfig, standard_program
from tvm_flash.verify.plan import run_program
from tvm_flash.verify.rule import allowed_error, largest_error

CAUSAL = {"causal": True}
CASES = [
    Case("plain", "bfloat16"),
    Case("causal_gqa_views", "float16", heads=4, view="packed", variant=CAUSAL),
    Case("wide", "bfloat16", head_dim=128, kv_heads=1, seqlen_q=37, seqlen_k=203, batch=1),
    Case("odd_dims", "float16", head_dim=59, head_dim_v=40, seqlen_q=40, variant=CAUSAL, batch=1),
    Case("empty_rows", "bfloat16", seqlen_q=90, seqlen_k=40, variant={"window_size": (3, 3)}),
    Case("softcap_large", "float16", logits_scale=24.0, variant={"softcap": 15.0, **CAUSAL}),
    Case(
        "mods", "bfloat16", heads=4, alibi=True, score_mod="relative_bias", mask_mod="some_rows",
        variant={"window_size": (40, 9)},
    ),
    Case("no_keys", "float16", seqlen_k=0),
]  # fmt: skip
SCHEDULES = {
    "original": (original_program, OriginalConfig(16, 64, 4), OriginalConfig(32, 32, 2)),
    "standard": (standard_program, StandardConfig(64, 64, 4), StandardConfig(64, 32, 2)),
}


def tensors_of(case, inputs, spec, tables, block_k):
    """Every parameter either schedule has, by name; outputs and workspaces uninitialised."""
    dtype, rows = inputs.q.dtype, (case.batch, case.heads, case.seqlen_q)
    square = (*rows, -(-case.seqlen_k // block_k) * block_k)
    out = torch.empty(case.batch, case.seqlen_q, case.heads, spec.head_dim_v, dtype=dtype)
    slopes = [inputs.variant["alibi_slopes"]] if case.alibi else []
    return {
        "q": inputs.q, "k": inputs.k, "v": inputs.v, "out": out,
        **{name: torch.empty(rows) for name in ("lse", "row_max", "row_sum")},
        "sums": torch.empty(*rows, spec.head_dim_v),
        **{name: torch.empty(square, dtype=dtype) for name in ("s", "p")},
        **{f"table{n}": table for n, table in enumerate([*slopes, *tables])},
    }  # fmt: skip


def interpret(schedule, config, case, seed):
    """(inputs, tensors after the run) of one case."""
    inputs = make_inputs(case)
    dims = {"head_dim": case.head_dim, "head_dim_v": case.head_dim_v}
    spec, tables, _ = captured(inputs.variant, dtype=case.dtype, alibi=case.alibi, **dims)
    arch = ARCHS["sm_80"]
    assert not config.reasons(spec, arch)
    program = SCHEDULES[schedule][0](spec, config, arch, schedule)
    found = tensors_of(case, inputs, spec, tables, config.block_k)
    found = {name: (found | case.numbers)[name] for name in program.parameters}
    read = ("q", "k", "v", "table", *case.numbers)
    written = [name for name in found if not name.startswith(read)]
    run_program(program, ptx_of(program), found, outputs=written, seed=seed)
    return inputs, found


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_error_rule(schedule, case):
    config = SCHEDULES[schedule][1 if case.head_dim < 128 else 2]
    # Half of the cases with warps in a shuffled order.
    inputs, found = interpret(schedule, config, case, seed=len(case.name) % 2)
    exact = attention_reference(*inputs[:3], **inputs.variant, upcast=torch.float64)
    plain = attention_reference(*inputs[:3], **inputs.variant)
    for name, want, baseline in zip(("out", "lse"), exact, plain, strict=True):
        assert largest_error(found[name], want) <= allowed_error(
            name, case.dtype, want, baseline
        ), name


def test_rows_longer_than_the_softmax_holds():
    case = Case("long", "bfloat16", seqlen_q=5, seqlen_k=1100, batch=1, heads=1, kv_heads=1)
    test_error_rule("standard", case)


def test_what_cannot_be_served_has_reasons():
    half, turing, ampere = (
        AttentionSpec(dtype="float16", head_dim=64),
        ARCHS["sm_75"],
        ARCHS["sm_80"],
    )
    for config in (OriginalConfig(), StandardConfig()):
        assert not config.reasons(half, ampere)
        assert "cp.async" in config.reasons(half, turing)[0]
        assert "float32" in config.reasons(AttentionSpec(dtype="float32", head_dim=64), ampere)[0]
        assert (
            "head_dim=256"
            in config.reasons(AttentionSpec(dtype="float16", head_dim=256), ampere)[0]
        )
    assert "multiple of 16 * self.num_warps=4" in OriginalConfig(16, 48).reasons(half, ampere)[0]
    assert "multiple of 16 * self.num_warps=4" in StandardConfig(48).reasons(half, ampere)[0]
    assert "shared memory" in OriginalConfig(128, 256).reasons(half, ampere)[0]


def test_the_default_configs_fit_and_lse_is_optional():
    spec, arch = AttentionSpec(dtype="bfloat16", head_dim=128, returns="out"), ARCHS["sm_80"]
    for make, config in ((original_program, ORIGINAL), (standard_program, STANDARD)):
        assert not config.reasons(spec, arch)
        program = make(spec, config, arch, "f")
        assert "lse" not in program.parameters
        assert all(step.shared_bytes <= arch.shared_bytes for step in program.launches)
        assert max(step.shared_bytes for step in program.launches) == config.shared_bytes(spec)
