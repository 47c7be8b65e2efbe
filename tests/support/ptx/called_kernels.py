"""Our kernels of other calls as subjects of mutation: each is judged by whole calls of its program.

Packed and paged sequences, appending, dropout, lists of blocks, captured tables that learn, linear
attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace
from unittest.mock import patch

import linear_problems
import torch
from entries import Ragged
from interpreted import InterpretedKernel, aligned_rows, interpreted, resolver, shuffled
from packed_problems import Entries
from table_problems import OTHERS

from tvm_flash import attention
from tvm_flash.frontend import ops, placement, table_ops
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.schedules.cuda.program import Launch
from tvm_flash.verify import plan
from tvm_flash.verify.rule import allowed_error, largest_error
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
    """Judged as ``tvm-flash verify`` does; a backward is given the right out and lse."""
    kernel = interpreted(spec := AttentionSpec(**fields), direction, ARCH)
    meta = kernel.program.meta

    def check(problem, seed):
        def run(call, outputs):
            return plan.run_program(kernel.program, kernel.ptx, call, outputs=outputs, seed=seed)

        outcome = judge(Candidate("", spec, direction, (ARCH,), tile_of(meta), meta, run), problem)
        assert outcome.ok, outcome.failure

    listed = Candidate("", spec, direction, (ARCH,), tile_of(meta), meta, None).listed(quick=False)
    return kernel, [partial(check, problem) for problem in listed]


ENTRIES = (
    Entries((33, 0, 70, 1), (45, 9, 64, 0)),
    Entries((20, 66), (70, 3), heads=4, kv_heads=2, gap=3),
    Entries((131, 5), (203, 130)),
    Entries((0, 0), (0, 5)),
)


def ragged(direction: str, page_size: int = 0) -> tuple[InterpretedKernel, list[Check]]:
    """Judged by entries of different lengths."""
    fields = {"dtype": "float16", "head_dim": 16, "page_size": page_size}
    calls = [Ragged(entries, {"causal": True}, **fields) for entries in ENTRIES]
    checks = [partial(_check_ragged, call, direction, {}) for call in calls]
    return interpreted(calls[0].spec, direction, ARCH), checks


def _check_ragged(problem: Ragged, direction: str, saved: dict, seed: int) -> None:
    options = {"unwritten": problem.entries.gap > 0}
    if direction != "forward" and not saved:
        saved |= problem.call("forward", ARCH, {}, **options)
    problem.check(saved | problem.call(direction, ARCH, saved, seed=seed, **options))


def learned(name: str, deterministic: bool) -> tuple[InterpretedKernel, list[Check]]:
    """Judged by the gradients of the tables of a problem of ``table_problems``."""
    (problem,) = (dataclasses.replace(x, dtype=torch.float16) for x in OTHERS if x.name == name)
    kernel, call = _recorded(problem, deterministic)
    exact, plain = (problem.gradients(attention_reference, x) for x in (torch.float64, None))

    def check(seed):
        sums = {name: x for name, x in call.items() if plan.is_table_sum(name)}
        for x in sums.values():
            x.zero_()
        plan.run_program(kernel.program, kernel.ptx, call, seed=seed)
        for name in exact.keys() & sums.keys():
            allowed = allowed_error(name, "float16", exact[name], plain[name])
            error = largest_error(sums[name].sum(0).view_as(exact[name]), exact[name])
            assert error <= allowed, f"{name}: error {error:.3g} exceeds {allowed:.3g}"

    return kernel, [check]


# Queries, keys, key/value heads, parts, reverse, normalize; a chunk has 64 rows.
LINEAR = ((70, 70, 1, 2, 1, 0), (131, 131, 2, 2, 0, 1), (3, 3, 1, 1, 0, 0), (0, 0, 1, 1, 1, 1))


def linear() -> tuple[InterpretedKernel, list[Check]]:
    """Judged by calls in which everything is drawn at random."""
    spec = AttentionSpec(dtype="float16", head_dim=32, causal=True)
    kernel = interpreted(spec, "linear", ARCH)

    def check(call, seed):
        with shuffled(seed):
            linear_problems.check(spec, call, kernel)

    return kernel, [partial(check, call) for call in LINEAR]


def _recorded(problem, deterministic: bool) -> tuple[InterpretedKernel, dict]:
    """The kernel of tables that ``attention`` calls for ``problem``, and its arguments by name."""
    found = []

    def resolve(*which):
        kernel = copy(resolver(ARCH)(*which))

        def run(*arguments):
            found.append((kernel, dict(zip(kernel.program.parameters, arguments, strict=True))))
            InterpretedKernel.function(kernel, *arguments)

        kernel.function = run
        return kernel

    with (
        patch.object(placement, "has_readable_rows", aligned_rows),
        patch.object(ops, "resolve", resolver(ARCH)),
        patch.object(table_ops, "resolve", resolve),
    ):
        problem.gradients(partial(attention, deterministic=deterministic))
    ((kernel, call),) = found
    return kernel, call


_HALF = {"dtype": "float16", "head_dim": 16}
CALLED = {
    **{
        f"linear_{name}_f16_d32_causal": Called(number, linear)
        for number, name in enumerate(("sums", "join", "rows"))
    },
    "append_f16_d16": Called(0, partial(judged, "append", sequences="paged", **_HALF)),
    "packed_forward_f16_d16_causal": Called(0, partial(ragged, "forward")),
    "packed_backward_f16_d16_causal": Called(1, partial(ragged, "backward")),
    "packed_dq_rows_f16_d16_causal": Called(2, partial(ragged, "backward")),
    "paged_forward_f16_d16_causal": Called(0, partial(ragged, "forward", 3)),
    "dropout_forward_f16_d16": Called(0, partial(judged, "forward", dropout=True, **_HALF)),
    "dropout_backward_f16_d16": Called(1, partial(judged, "backward", dropout=True, **_HALF)),
    "listed_forward_f16_d16": Called(0, partial(judged, "forward", block_mask=(64, 64), **_HALF)),
    "listed_backward_f16_d16": Called(1, partial(judged, "backward", block_mask=(64, 64), **_HALF)),
    "tables_f16_d16": Called(1, partial(learned, "rows_and_products", deterministic=False)),
    "ordered_tables_f16_d16": Called(2, partial(learned, "rows_and_products", deterministic=True)),
}
