"""Kernels on trial: each is run on the problems of its tile and held to the error rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import UnsupportedSpec
from ..spec import AttentionSpec
from .problems import Problem, problems
from .question import Question, ask
from .rule import deviations
from .verdict import Counts, KernelVerdict, Outcome, Verification

if TYPE_CHECKING:
    from ..ptx_interpreter import Report

Tensors = dict[str, torch.Tensor]
# Steps done, of how many, and what comes next; called first with nothing done.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Candidate:
    """A kernel, and how to run it on host tensors.

    workspace: shapes of delta and dq_acc. run(tensors, softmax_scale, outputs): tensors by name in
    the kernel's order; it gives reports of interpreted launches, or raises what is wrong.
    """

    symbol: str
    spec: AttentionSpec
    direction: str
    archs: tuple[str, ...]
    tile: tuple[int, int]
    workspace: Callable[[Problem], tuple[tuple[int, ...], tuple[int, ...]]]
    run: Callable[[Tensors, float, tuple[str, ...]], list[Report]]


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
    plans = [(candidate, problems(*candidate.tile, quick)) for candidate in candidates]
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
    question = ask(candidate.spec, problem, seed)
    empty = int((question.exact["lse"] == -torch.inf).sum())
    tensors, outputs, results = _arguments(candidate, problem, question)
    started = time.perf_counter()
    try:
        reports = candidate.run(tensors, question.softmax_scale, outputs)
    except Exception as error:
        seconds = time.perf_counter() - started
        message = f"{type(error).__name__}: {error}"
        return Outcome(problem, seconds=seconds, rows_without_keys=empty, failure=message)
    seconds = time.perf_counter() - started
    found = {name: tensors[name] for name in results}
    held = deviations(candidate.spec.dtype, found, question.exact, question.plain)
    failure = "; ".join(str(deviation) for deviation in held if not deviation.ok)
    return Outcome(problem, tuple(held), Counts.of(reports), seconds, empty, failure)


def _arguments(
    candidate: Candidate, problem: Problem, question: Question
) -> tuple[Tensors, tuple[str, ...], tuple[str, ...]]:
    """Tensors in the kernel's order, which of them it writes, and which of these are judged."""
    inputs = question.inputs
    tables = {f"table{n}": table for n, table in enumerate(question.tables)}
    tensors = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
    # Each kernel by itself: a backward is given the exact results of a forward, rounded.
    out = question.exact["out"].to(inputs.q.dtype).contiguous()
    lse = question.exact["lse"].float().contiguous()
    if candidate.direction == "forward":
        results = {"out": torch.empty_like(out), "lse": torch.empty_like(lse)}
        if candidate.spec.returns == "out":
            del results["lse"]
        return {**tensors, **results, **tables}, tuple(results), tuple(results)
    delta, sums = candidate.workspace(problem)
    gradients = {f"d{name}": torch.empty_like(tensor) for name, tensor in tensors.items()}
    work = {"delta": torch.empty(delta), "dq_acc": torch.zeros(sums)}
    given = {"out": out, "dout": inputs.dout, "lse": lse, "dlse": inputs.dlse}
    outputs = (*gradients, *work)
    return {**tensors, **given, **gradients, **work, **tables}, outputs, tuple(gradients)
