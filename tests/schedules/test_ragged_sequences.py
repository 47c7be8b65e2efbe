"""CPU forms take rows from Sequences alone: a kind with ragged entries runs without a change."""

import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import tvm
from problems import backward_workspace, call_backward, compile_function, in_order
from tvm import tirx

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


@dataclass(frozen=True)
class PackedSequences(DenseSequences):
    """Entries of different lengths, one behind the other from the first row of entry 0 on.

    starts_q, starts_k: (B + 1,) where entries begin. seqlen_q, seqlen_k: of the longest ones.
    """

    starts_q: tirx.Buffer
    starts_k: tirx.Buffer

    def lengths(self, entry):
        counts = (starts[entry + 1] - starts[entry] for starts in (self.starts_q, self.starts_k))
        return tuple(tirx.Cast("int64", count) for count in counts)

    def has_query(self, entry, row):
        return row < self.lengths(entry)[0]

    def query(self, entry, head, row, column):
        return 0, after(self.starts_q[entry], row), head, column

    def key(self, entry, head, row, column):
        return 0, after(self.starts_k[entry], row), head, column


def after(start, row):
    return slice(start + row.start, start + row.stop) if isinstance(row, slice) else start + row


def starts_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@pytest.fixture
def problem(monkeypatch):
    """(spec, tables) whose kernels are made for packed sequences: tables say where they start."""
    starts_q, starts_k = starts_of(ROWS), starts_of(KEYS)

    def unchanged(score, b, h, q_idx, k_idx):
        return score + 0 * (starts_q[b] + starts_k[b])

    def packed(sig):
        kind = PackedSequences if sig.tables else DenseSequences  # what is derived has no tables
        return kind(sig.seqlen_q, sig.seqlen_k, *sig.tables)

    forms = (forward, backward, backward_rows, split_forward, split_combine)
    for module in (arithmetic, *forms):
        monkeypatch.setattr(module, "sequences_of", packed)
    return AttentionSpec.capture(dtype="float32", head_dim=DIM, causal=True, score_mod=unchanged)


def kernel(func):
    with tvm.transform.PassContext(opt_level=3, config=PASS_OPTIONS):
        return compile_function(func, host_target().tvm_target())


def inputs():
    """q, k, v, dout (B, longest, H, D), of whose memory packed rows are the first."""
    random = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    rows, keys = (len(ROWS), max(ROWS)), (len(KEYS), max(KEYS))
    return (
        random(*rows, HEADS, DIM), random(*keys, KV_HEADS, DIM), random(*keys, KV_HEADS, DIM),
        random(*rows, HEADS, DIM),
    )  # fmt: skip


def entries(x, lengths):
    """The rows of each entry (1, length, H, D)."""
    packed = x.flatten(0, 1)[: sum(lengths)]
    return [entry.unsqueeze(0) for entry in packed.split(lengths)]


def of_entries(q, k, v):
    """Leaves and (out, lse) of each entry, float64."""
    for parts in zip(*map(entries, (q, k, v), (ROWS, KEYS, KEYS)), strict=True):
        leaves = [part.double().requires_grad_() for part in parts]
        yield leaves, attention_reference(*leaves, causal=True)


def small_forward(spec):
    config = replace(forward_config(spec, host_target()), block_k=16)
    return schedule_forward(spec, replace(config, block_q=config.group))


def small_split(spec):
    config, vector = default_split_config(spec, host_target()), host_target().vector
    sizes = {"rows": 8, "chunk": 2 * vector, "block_k": vector, "columns": vector}
    return schedule_split_forward(spec, replace(config, **sizes))


@pytest.mark.parametrize("schedule", [small_forward, small_split])
def test_forward(problem, schedule):
    spec, tables = problem
    q, k, v, _ = inputs()
    lse, low = (torch.full((len(ROWS), HEADS, max(ROWS)), math.nan) for _ in range(2))
    given = {
        "q": q,
        "k": k,
        "v": v,
        "out": torch.full_like(q, math.nan),
        "lse": lse,
        "lse_low": low,
    }
    kernel(schedule(spec))(*in_order("forward", given), *tables, DIM**-0.5)
    out = given["out"]
    for n, (_, (want, want_lse)) in enumerate(of_entries(q, k, v)):
        assert largest_error(entries(out, ROWS)[n], want) < 3e-6
        assert largest_error(lse[n : n + 1, :, : ROWS[n]], want_lse) < 3e-6
        assert lse[n, :, ROWS[n] :].isnan().all(), "a row that is not there"
    assert out.flatten(0, 1)[sum(ROWS) :].isnan().all()


def test_backward(problem):
    spec, tables = problem
    config = replace(backward_config(spec, host_target()), block_q=16, block_k=64)
    q, k, v, dout = inputs()
    out, lse = torch.zeros_like(q), torch.zeros(len(ROWS), HEADS, max(ROWS))
    dlse = torch.randn(lse.shape, generator=torch.Generator().manual_seed(1))
    want = []
    for n, (leaves, (exact, exact_lse)) in enumerate(of_entries(q, k, v)):
        entries(out, ROWS)[n].copy_(exact.detach())
        lse[n, :, : ROWS[n]] = exact_lse[0].detach()
        finite = torch.where(exact_lse.isinf(), 0.0, exact_lse)
        given = (entries(dout, ROWS)[n].double(), dlse[n : n + 1, :, : ROWS[n]].double())
        want.append(torch.autograd.grad((exact, finite), leaves, given))
    meta = {"block_q": 16, "head_dim_pad": config.tile(spec).depth_lanes}
    got = call_backward(
        kernel(schedule_backward(spec, config)), q, k, v, out, dout, lse, dlse, tables,
        backward_workspace(meta, q, k), [torch.zeros_like(lse)],
    )  # fmt: skip
    for x, lengths, exact in zip(got, (ROWS, KEYS, KEYS), zip(*want, strict=True), strict=True):
        for entry, gradient in zip(entries(x, lengths), exact, strict=True):
            assert largest_error(entry, gradient) < 1e-5
        assert x.flatten(0, 1)[sum(lengths) :].isnan().all()
