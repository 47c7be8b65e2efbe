"""Our kernels of other calls as subjects of mutation: each is judged by whole calls of its program.

Packed and paged sequences, appending, dropout, lists of blocks, captured tables that learn, linear
attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace
from unittest.mock import patch

import linear_problems
import torch
from entries import Ragged
from interpreted import InterpretedKernel, interpreted, shuffled
from packed_problems import Entries

from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.program import Launch
from tvm_flash.score.trace import trace_score_mod
from tvm_flash.verify import plan
from tvm_flash.verify.problems import Problem
from tvm_flash.verify.trial import Candidate, judge, tile_of

ARCH = "sm_80"
# Runs the program and raises what is wrong with its results; takes the number of the schedule.
Check = Callable[[int], None]


@dataclass(frozen=True)
class Called:
    """Launch ``number`` of a program. build: the program, and the calls that judge it."""

    number: int
    build: Callable[[], tuple[InterpretedKernel, list[Check]]]

    @cached_property
    def _built(self) -> tuple[InterpretedKernel, list[Check]]:
        return self.build()

    @property
    def step(self) -> Launch:
        """The launch."""
        return self._built[0].program.launches[self.number]

    @property
    def ptx(self) -> str:
        """Its text."""
        return self._built[0].ptx[self.number]

    @property
    def problems(self) -> list[Callable]:
        """Take a parsed kernel to run in place of its own."""
        return [partial(self._run, check, n % 3) for n, check in enumerate(self._built[1])]

    def _run(self, check: Check, seed: int, kernel) -> None:
        parsed, name = plan.parsed, f"{self.step.name}_kernel"
        with patch.object(
            plan,
            "parsed",
            lambda ptx: SimpleNamespace(kernels={**parsed(ptx).kernels, name: kernel}),
        ):
            check(seed)


def judged(direction: str, **fields) -> tuple[InterpretedKernel, list[Check]]:
    """Judged as ``tvm-flash verify`` does, and with lengths that end in the middle of a tile and a
    negative scale; a backward is given the right out and lse."""
    kernel = interpreted(spec := AttentionSpec(**fields), direction, ARCH)
    meta = kernel.program.meta

    def check(problem, seed):
        def run(call, outputs):
            return plan.run_program(kernel.program, kernel.ptx, call, outputs=outputs, seed=seed)

        outcome = judge(Candidate("", spec, direction, (ARCH,), tile_of(meta), meta, run), problem)
        assert outcome.ok, outcome.failure

    candidate = Candidate("", spec, direction, (ARCH,), tile_of(meta), meta, None)
    listed = candidate.listed(quick=False)
    if direction != "append" and spec.computes == "attention":
        rows, keys = candidate.tile
        middle = (rows + 3 * rows // 8 + 1, keys + 3 * keys // 4 + 2)
        listed.append(Problem("middle", *middle, softmax_scale=-0.3))
    return kernel, [partial(check, problem) for problem in listed]


ENTRIES = (
    Entries((33, 0, 70, 1), (45, 9, 64, 0)),
    Entries((20, 66), (70, 3), heads=4, kv_heads=2, gap=3),
    Entries((131, 5), (203, 130)),
    Entries((0, 0), (0, 5)),
    Entries((1, 2) * 17, (2, 1) * 17, heads=1),  # more than lanes search
)


def ragged(direction: str, page_size: int = 0) -> tuple[InterpretedKernel, list[Check]]:
    """Judged by entries of different lengths."""
    fields = {"dtype": "float16", "head_dim": 32, "page_size": page_size}
    calls = [Ragged(entries, {"causal": True}, **fields) for entries in ENTRIES]
    checks = [partial(_check_ragged, call, direction, {}) for call in calls]
    return interpreted(calls[0].spec, direction, ARCH), checks


def _check_ragged(problem: Ragged, direction: str, saved: dict, seed: int) -> None:
    options = {"unwritten": problem.entries.gap > 0}
    if direction != "forward" and not saved:
        saved |= problem.call("forward", ARCH, {}, **options)
    problem.check(saved | problem.call(direction, ARCH, saved, seed=seed, **options))


def learned(direction: str) -> tuple[InterpretedKernel, list[Check]]:
    """Gradients of a table by rows and one by keys, which scores read in products."""
    rows, keys = torch.ones(1, 1), torch.ones(1)

    def score_mod(score, b, h, q_idx, k_idx):
        return torch.tanh(score * rows[b, q_idx]) + rows[b, q_idx] * keys[k_idx // 2]

    program, _ = trace_score_mod(score_mod)
    fields = {"window_left": True, "window_right": True, "learned": (0, 1), **_HALF}
    return judged(direction, score_mod=program, **fields)


# Queries, keys, key/value heads, parts, reverse, normalize, age of the state; a chunk has 64 rows.
# The second of three or four parts is summed, and ends in its first chunk or its second. A first or
# a second part of so few rows that powers of the decay after it are told apart, behind it nobody.
LINEAR = (
    (70, 70, 1, 4, 1, 0, 0), (245, 245, 1, 3, 0, 1, 0), (131, 131, 2, 2, 0, 1, 1),
    (3, 3, 1, 1, 0, 0, 1), (0, 0, 1, 1, 1, 1, 0), (2, 2, 1, 2, 0, 0, 0), (65, 65, 1, 3, 0, 0, 1),
)  # fmt: skip


def linear() -> tuple[InterpretedKernel, list[Check]]:
    """Judged by calls in which everything is drawn at random."""
    widths = {"head_dim": 32, "head_dim_v": 64}  # as many as a block takes: others would be padding
    spec = AttentionSpec(dtype="float16", causal=True, computes="linear", **widths)
    kernel = interpreted(spec, "linear", ARCH)

    def check(call, seed):
        with shuffled(seed):
            linear_problems.check(spec, call, kernel)

    return kernel, [partial(check, call) for call in LINEAR]


_HALF = {"dtype": "float16", "head_dim": 32}
_ROWS = {"dtype": "float16", "head_dim": 8, "computes": "softmax"}
CALLED = {
    **{
        f"linear_{name}_f16_d32v64_causal": Called(number, linear)
        for number, name in enumerate(("sums", "join", "rows"))
    },
    "append_f16_d32": Called(0, partial(judged, "append", sequences="paged", **_HALF)),
    "packed_forward_f16_d32_causal": Called(0, partial(ragged, "forward")),
    "packed_backward_f16_d32_causal": Called(1, partial(ragged, "backward")),
    "packed_dq_rows_f16_d32_causal": Called(2, partial(ragged, "backward")),
    "paged_forward_f16_d32_causal": Called(0, partial(ragged, "forward", 3)),
    "dropout_forward_f16_d32": Called(0, partial(judged, "forward", dropout=True, **_HALF)),
    "dropout_backward_f16_d32": Called(1, partial(judged, "backward", dropout=True, **_HALF)),
    "listed_forward_f16_d32": Called(0, partial(judged, "forward", block_mask=(64, 64), **_HALF)),
    "listed_backward_f16_d32": Called(1, partial(judged, "backward", block_mask=(64, 64), **_HALF)),
    **{
        f"{direction}_f16": Called(0, partial(judged, direction, **_ROWS))
        for direction in ("softmax", "softmax_backward")
    },
    "tables_f16_d32": Called(1, partial(learned, "tables")),
    "ordered_tables_f16_d32": Called(2, partial(learned, "tables_deterministic")),
}
