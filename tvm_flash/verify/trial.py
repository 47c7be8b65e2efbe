"""Kernels on trial: each is run on the problems of its tile and held to the error rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UnsupportedSpec
from ..problem.arguments import (
    WRITTEN,
    arguments,
    given_sizes,
    names,
    size_values,
)
from ..problem.lengths import is_forward
from ..problem.spec import AttentionSpec
from ..problem.table_parts import table_parts
from ..runtime.call import completed, new_tensors
from .appended import append_problems, judge_append
from .beside_attention import judge_beside, problems_beside
from .layouts import as_dense, as_sequences
from .problems import Problem, problems
from .question import Question, ask
from .rule import deviations
from .verdict import Counts, KernelVerdict, Outcome, Verification

if TYPE_CHECKING:
    from ..ptx_interpreter import Report

# Parts of the keys, where a kernel divides them.
_SPLITS = 3

Tensors = dict[str, torch.Tensor]
# Tensors and numbers of a kernel's call by name, in its order.
CallArguments = dict[str, Any]
# Steps done, of how many, and what comes next; called first with nothing done.
Progress = Callable[[int, int, str], None]


class ForwardFailed(RuntimeError):
    """A backward could not be judged, because its forward failed."""


@dataclass(frozen=True)
class Candidate:
    """A kernel, and how to run it on host tensors.

    tile: query rows and keys. meta: what its workspaces are sized by (problem.arguments).
    run(call, written): what the kernel is called with, and which of that it writes; it gives
    reports of interpreted launches, or raises what is wrong. threads: of a CPU. forward: of a
    backward, the kernel that comes before it. Scores are rounded alike in both, so that the softmax
    is right where exp(score - lse) with a perfect lse would not be.
    """

    symbol: str
    spec: AttentionSpec
    direction: str
    archs: tuple[str, ...]
    tile: tuple[int, int]
    meta: Mapping[str, int]
    run: Callable[[CallArguments, tuple[str, ...]], list[Report]]
    threads: int = 0
    forward: Candidate | None = None

    def listed(self, quick: bool) -> list[Problem]:
        """Its problems; large logits need the rounding of its own forward."""
        if self.direction == "append":
            return append_problems(quick)
        if self.spec.computes != "attention":
            return problems_beside(self, quick)
        found = problems(*self.tile, quick)
        alone = not is_forward(self.direction) and self.forward is None
        return [problem for problem in found if problem.logits_scale == 1 or not alone]


def tile_of(meta: Mapping[str, int]) -> tuple[int, int]:
    """Query rows and keys of a kernel with these sizes."""
    return meta["block_q"], meta.get("block_k", meta["block_q"])


def with_forward(candidate: Candidate, found: Collection[Candidate]) -> Candidate:
    """``candidate``, if it is a backward with the forward among ``found`` that its device runs."""
    if is_forward(candidate.direction):
        return candidate
    for other in found:
        same = other.direction == "forward" and other.spec == candidate.spec.forward_spec
        if same and set(candidate.archs[:1]) <= set(other.archs):
            return replace(candidate, forward=other)
    return candidate


def verification(
    subject: str,
    device: str,
    candidates: Sequence[Candidate],
    *,
    quick: bool,
    seed: int,
    progress: Progress | None,
) -> Verification:
    """The verdicts on ``candidates``. Raises UnsupportedSpec where there is none."""
    if not candidates:
        raise UnsupportedSpec(
            f"{subject} has no kernel of these directions and architectures: ask for others"
        )
    plans = [(candidate, candidate.listed(quick)) for candidate in candidates]
    total, done = sum(len(listed) for _, listed in plans), 0
    kernels = []
    for candidate, listed in plans:
        outcomes = []
        for problem in listed:
            if progress is not None:
                progress(done, total, f"{candidate.symbol} {problem.name}")
            outcomes.append(judge(candidate, problem, seed))
            done += 1
        known = (candidate.symbol, candidate.direction, candidate.archs, candidate.tile)
        kernels.append(KernelVerdict(*known, tuple(outcomes)))
    return Verification(subject, device, seed, tuple(kernels))


def judge(candidate: Candidate, problem: Problem, seed: int = 0) -> Outcome:
    """One run of ``candidate``. Whatever it raises is a verdict on it, not an error of ours."""
    if candidate.direction == "append":
        return judge_append(candidate, problem, seed)
    if candidate.spec.computes != "attention":
        return judge_beside(candidate, problem, seed)
    question = ask(candidate.spec, problem, seed)
    lse = question.exact.get("lse", torch.zeros(1))
    empty = int((lse == -torch.inf).sum())
    started = time.perf_counter()
    try:
        results, reports = _run(candidate, problem, question)
    except Exception as error:
        seconds = time.perf_counter() - started
        message = f"{type(error).__name__}: {error}"
        return Outcome(problem, seconds=seconds, rows_without_keys=empty, failure=message)
    seconds = time.perf_counter() - started
    # A table's gradient sums over pairs what the rounding of lse does to all weights of a row.
    rounded = problem.logits_scale > 1 or candidate.spec.learned
    size = lse.nan_to_num(0.0, 0.0, 0.0).abs().amax().item() if rounded else 0.0
    known = (candidate.spec.dtype, _whole(results), question.exact, question.plain)
    held = deviations(*known, score_size=size)
    failure = "; ".join(str(deviation) for deviation in held if not deviation.ok)
    return Outcome(problem, tuple(held), Counts.of(reports), seconds, empty, failure)


def _whole(results: Tensors) -> Tensors:
    """``results`` with the two parts of lse as one."""
    if "lse_low" not in results:
        return results
    rest = {name: tensor for name, tensor in results.items() if name != "lse_low"}
    return {**rest, "lse": results["lse"].double() + results["lse_low"].double()}


def _run(
    candidate: Candidate, problem: Problem, question: Question
) -> tuple[Tensors, list[Report]]:
    """Results of one call by name, and what its launches did."""
    inputs, spec = question.inputs, candidate.spec
    given = {name: getattr(inputs, name) for name in ("q", "k", "v", "dout", "dlse")}
    given |= {name: inputs.variant.get(name) for name in ("sink", "rng")}
    given |= {f"table{n}": table for n, table in enumerate(question.tables)} | question.numbers
    if not is_forward(candidate.direction):
        given |= _saved(candidate.forward, problem, question)
    table, kind = arguments(spec, candidate.direction), spec.sequences
    given = as_sequences(kind, given, problem.sizes)
    sizes = {**given_sizes(table, given), "max_seqlen_k": problem.seqlen_k, "splits": _SPLITS}
    if spec.learned:
        elements = sum(question.tables[n].numel() for n in spec.learned)
        parts = table_parts(spec, sizes, elements, candidate.threads)
        sizes |= {"learned": len(spec.learned), "parts": parts}
    values = size_values(spec, sizes, candidate.meta, candidate.threads)
    call = completed(table, given, new_tensors(values))
    reports = candidate.run(call, names(table, *WRITTEN))
    outputs = [argument for argument in table if argument.role == "output"]
    results = {a.name: call[a.name].sum(0) if a.in_parts else call[a.name] for a in outputs}
    return as_dense(kind, results, problem.sizes), reports


def _saved(forward: Candidate | None, problem: Problem, question: Question) -> Tensors:
    """What the forward gives; without one, what is right."""
    if forward is None:
        saved = {"out": question.exact["out"].to(question.inputs.q.dtype)}
        if "lse" in question.exact:
            saved["lse"] = question.exact["lse"].float()
            saved["lse_low"] = torch.zeros_like(saved["lse"])
        return saved
    try:
        return _run(forward, problem, question)[0]
    except Exception as error:
        raise ForwardFailed(f"nothing to go back from: {type(error).__name__}: {error}") from error
