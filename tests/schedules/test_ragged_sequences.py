"""CPU forms take rows from Sequences alone: packed and paged kinds run in them without a change."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import tvm
from problems import backward_workspace, call_backward, compile_function, in_order
from ragged_sequences import PAGE, PackedSequences, PagedSequences

from tvm_flash.codegen.cpu import PASS_OPTIONS
from tvm_flash.definition import arithmetic
from tvm_flash.problem.sequences import DenseSequences
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.schedules.cpu.backward import schedule_backward
from tvm_flash.schedules.cpu.defaults import backward_config, forward_config
from tvm_flash.schedules.cpu.forms import (
    backward,
    backward_rows,
    forward,
    split_combine,
    split_forward,
)
from tvm_flash.schedules.cpu.forward import schedule_forward
from tvm_flash.schedules.cpu.split_forward import default_split_config, schedule_split_forward
from tvm_flash.schedules.target import host_target
from tvm_flash.verify.rule import largest_error

ROWS, KEYS = [5, 0, 33, 17], [40, 7, 0, 66]
HEADS, KV_HEADS, DIM = 4, 2, 16


@pytest.fixture
def captured(monkeypatch):
    """A function of a kind and two tables indexed by entry (and head): a spec whose kernels are
    made for that kind. Its score_mod captures the tables, and changes nothing."""

    def capture(kind, unchanged):
        def sequences(sig):
            made = kind if sig.tables else DenseSequences  # what is derived has no tables
            return made(sig.seqlen_q, sig.seqlen_k, *sig.tables)

        forms = (forward, backward, backward_rows, split_forward, split_combine)
        for module in (arithmetic, *forms):
            monkeypatch.setattr(module, "sequences_of", sequences)
        fields = {"dtype": "float32", "head_dim": DIM, "causal": True}
        return AttentionSpec.capture(score_mod=unchanged, **fields)

    return capture


@pytest.fixture
def packed(captured):
    """(spec, tables) for packed sequences."""
    starts_q, starts_k = (
        torch.tensor([0, *lengths]).cumsum(0).to(torch.int32) for lengths in (ROWS, KEYS)
    )

    def unchanged(score, b, h, q_idx, k_idx):
        return score + 0 * (starts_q[b] + starts_k[b])

    return captured(PackedSequences, unchanged)


def inputs():
    """q, k, v, dout (B, longest, H, D): the rows of entries are some of these."""
    random = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    rows, keys = (len(ROWS), max(ROWS)), (len(KEYS), max(KEYS))
    return (
        random(*rows, HEADS, DIM), random(*keys, KV_HEADS, DIM), random(*keys, KV_HEADS, DIM),
        random(*rows, HEADS, DIM),
    )  # fmt: skip


def entries(x, lengths):
    """The rows of each packed entry (1, length, H, D)."""
    rows = x.flatten(0, 1)[: sum(lengths)]
    return [entry.unsqueeze(0) for entry in rows.split(lengths)]


def exact(*parts):
    """Leaves and (out, lse) of one entry, float64."""
    leaves = [part.double().requires_grad_() for part in parts]
    return leaves, attention_reference(*leaves, causal=True)


def of_packed(q, k, v):
    parts = map(entries, (q, k, v), (ROWS, KEYS, KEYS))
    return [exact(*part) for part in zip(*parts, strict=True)]


def kernel(func):
    with tvm.transform.PassContext(opt_level=3, config=PASS_OPTIONS):
        return compile_function(func, host_target().tvm_target())


def small_forward(spec):
    config = replace(forward_config(spec, host_target()), block_k=16)
    return schedule_forward(spec, replace(config, block_q=config.group))


def small_split(spec):
    config, vector = default_split_config(spec, host_target()), host_target().vector
    sizes = {"rows": 8, "chunk": 2 * vector, "block_k": vector, "columns": vector}
    return schedule_split_forward(spec, replace(config, **sizes))


def call(function, tables, q, k, v):
    """out, lse of a forward; what it leaves unwritten is NaN."""
    lse, low = (torch.full((len(ROWS), HEADS, max(ROWS)), math.nan) for _ in range(2))
    out = torch.full_like(q, math.nan)
    given = {"q": q, "k": k, "v": v, "out": out, "lse": lse, "lse_low": low}
    function(*in_order("forward", given), *tables, DIM**-0.5)
    return out, lse


@pytest.mark.parametrize("schedule", [small_forward, small_split])
def test_packed_forward(packed, schedule):
    spec, tables = packed
    q, k, v, _ = inputs()
    out, lse = call(kernel(schedule(spec)), tables, q, k, v)
    for n, (_, (want, want_lse)) in enumerate(of_packed(q, k, v)):
        assert largest_error(entries(out, ROWS)[n], want) < 3e-6
        assert largest_error(lse[n : n + 1, :, : ROWS[n]], want_lse) < 3e-6
        assert lse[n, :, ROWS[n] :].isnan().all(), "a row that is not there"
    assert out.flatten(0, 1)[sum(ROWS) :].isnan().all()


def test_packed_backward(packed):
    spec, tables = packed
    config = replace(backward_config(spec, host_target()), block_q=16, block_k=64)
    q, k, v, dout = inputs()
    out, lse = torch.zeros_like(q), torch.zeros(len(ROWS), HEADS, max(ROWS))
    dlse = torch.randn(lse.shape, generator=torch.Generator().manual_seed(1))
    want = []
    for n, (leaves, (saved, saved_lse)) in enumerate(of_packed(q, k, v)):
        entries(out, ROWS)[n].copy_(saved.detach())
        lse[n, :, : ROWS[n]] = saved_lse[0].detach()
        finite = torch.where(saved_lse.isinf(), 0.0, saved_lse)
        given = (entries(dout, ROWS)[n].double(), dlse[n : n + 1, :, : ROWS[n]].double())
        want.append(torch.autograd.grad((saved, finite), leaves, given))
    meta = {"block_q": 16, "head_dim_pad": config.tile(spec).depth_lanes}
    got = call_backward(
        kernel(schedule_backward(spec, config)), q, k, v, out, dout, lse, dlse, tables,
        backward_workspace(meta, q, k), [torch.zeros_like(lse)],
    )  # fmt: skip
    for x, lengths, gradients in zip(got, (ROWS, KEYS, KEYS), zip(*want, strict=True), strict=True):
        for entry, gradient in zip(entries(x, lengths), gradients, strict=True):
            assert largest_error(entry, gradient) < 1e-5
        assert x.flatten(0, 1)[sum(lengths) :].isnan().all()


@pytest.mark.parametrize("schedule", [small_forward, small_split])
def test_paged_forward(captured, schedule):
    most = max(KEYS) // PAGE
    counts = torch.tensor([min(keys, most * PAGE) for keys in KEYS], dtype=torch.int32)
    order = torch.randperm(len(KEYS) * most, generator=torch.Generator().manual_seed(3))
    pages = order.to(torch.int32).view(len(KEYS), most)

    def unchanged(score, b, h, q_idx, k_idx):
        return score + 0 * (counts[b] + pages[b, h])

    spec, tables = captured(PagedSequences, unchanged)
    q, k, v, _ = inputs()
    out, lse = call(kernel(schedule(spec)), tables, q, k, v)
    for n, count in enumerate(counts.tolist()):
        lie = (pages[n, :, None] * PAGE + torch.arange(PAGE)).flatten()[:count]
        own = (x.flatten(0, 1)[lie].unsqueeze(0) for x in (k, v))
        _, (want, want_lse) = exact(q[n : n + 1], *own)
        assert largest_error(out[n : n + 1], want) < 3e-6
        assert largest_error(lse[n : n + 1], want_lse) < 3e-6
