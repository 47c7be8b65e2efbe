"""Random attention problems with a float64 answer, and a call of a kernel on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import tvm

from tvm_flash.codegen.cpu_pipeline import PIPELINE
from tvm_flash.definition.signature import as_module
from tvm_flash.problem.arguments import TABLE, named_sizes, numbers_of, shape_of
from tvm_flash.problem.numbers import kinds_of, numbers_by_name
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference


@dataclass(frozen=True)
class Sizes:
    """Batch, query length, key length, heads, key/value heads."""

    b: int = 2
    sq: int = 70
    sk: int = 100
    h: int = 4
    hk: int = 2


def inputs(spec, sizes: Sizes, seed: int = 0):
    """q, k, v, dout of ``spec`` in (B, S, H, D)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(spec.element.torch)

    return (
        random(sizes.b, sizes.sq, sizes.h, spec.head_dim),
        random(sizes.b, sizes.sk, sizes.hk, spec.head_dim),
        random(sizes.b, sizes.sk, sizes.hk, spec.head_dim_v),
        random(sizes.b, sizes.sq, sizes.h, spec.head_dim_v),
    )


def captured(variant, **fields):
    """(spec, tables, numbers) of keywords of ``attention``.

    numbers: what follows softmax_scale in a call of the spec's kernels.
    """
    given = {name: x for name, x in variant.items() if name != "alibi_slopes"}
    if given.pop("sink", None) is not None:
        fields["softmax"] = "sink"
    numbers = {name: given.pop(name) for name in ("window_size", "softcap") if name in given}
    kinds = kinds_of(causal=given.pop("causal", False), **numbers)
    spec, tables = AttentionSpec.capture(**fields, **kinds, **given)
    named = numbers_by_name(1.0, **numbers)
    return spec, tables, [named[a.name] for a in numbers_of(spec)[1:]]


def compile_function(func, target: tvm.target.Target):
    """The callable of one TIR function, lowered as kernels are."""
    module = as_module(func)
    with target:
        return tvm.compile(module, target=target, tir_pipeline=PIPELINE)[
            func.attrs["global_symbol"]
        ]


def call_forward(kernel, q, k, v, tables=(), statistics=("lse",), numbers=()):
    """(out, lse) of a kernel whose spec has these ``forward_statistics``; numbers: of ``captured``.

    Outputs start as NaN, so that what a kernel leaves unwritten shows.
    """
    out = q.new_full((*q.shape[:3], v.shape[3]), math.nan)
    rows = (q.shape[0], q.shape[2], q.shape[1])
    results = {name: torch.full(rows, math.nan) for name in statistics}
    given = {"q": q, "k": k, "v": v, "out": out, **results}
    kernel(*in_order("forward", given), *tables, q.shape[3] ** -0.5, *numbers)
    assert "lse_low" not in results or not results["lse_low"].isnan().any()
    return out, results["lse"]


def in_order(direction: str, given):
    """Tensors by name, in the order of a kernel's arguments."""
    return [given[argument.name] for argument in TABLE[direction] if argument.name in given]


def call_backward(
    kernel, q, k, v, out, dout, lse, dlse, tables=(), workspace=(), low=(), numbers=()
):
    """(dq, dk, dv) of a kernel; results start as NaN. low: lse_low, where the spec saves it;
    numbers: of ``captured``."""
    given = {"q": q, "k": k, "v": v, "out": out, "dout": dout, "lse": lse, "dlse": dlse}
    grads = {f"d{name}": torch.full_like(given[name], math.nan) for name in "qkv"}
    given |= {**grads, **dict(zip(("delta", "dq_acc"), workspace, strict=False))}
    given |= dict(zip(("lse_low",), low, strict=False))
    kernel(*in_order("backward", given), *tables, q.shape[3] ** -0.5, *numbers)
    return list(grads.values())


def backward_workspace(meta, q, k, copies: int = 2):
    """delta and dq_acc for a scheduled backward."""
    sizes = (q.shape[0], q.shape[2], k.shape[2], q.shape[1], k.shape[1])
    values = {**named_sizes(sizes), **meta, "copies": copies}
    delta, sums = (shape_of(a, values) for a in TABLE["backward"] if a.role == "workspace")
    return torch.full(delta, math.nan), torch.zeros(sums)


def exact(q, k, v, **variant):
    """Leaves in float64 with out and lse computed from them."""
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    return leaves, attention_reference(*leaves, **variant)
