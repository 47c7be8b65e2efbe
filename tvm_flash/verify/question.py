"""A problem as tensors: what a kernel is given, what is right, and what plain PyTorch answers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from ..cases import Inputs, make_inputs
from ..problem.block_mask import BlockMask
from ..problem.spec import AttentionSpec
from ..reference import attention_reference
from .problems import Problem
from .rule import Results, largest_error, results
from .score_function import as_function
from .tables import random_tables

# Upstream gradients of which PyTorch's error by tables is the largest.
DRAWS = 4


@dataclass(frozen=True, eq=False)
class Question:
    """Inputs of a problem, and the results of torch that a kernel's are compared with.

    numbers: of the call, by name. exact, plain: out, lse, dq, dk, dv and the gradients of what else
    learns, in float64 and in the kernel's dtype (by tables: ``_worst_of_draws``).
    """

    inputs: Inputs
    tables: list[torch.Tensor]
    numbers: dict[str, Any]
    exact: Results
    plain: Results


def ask(spec: AttentionSpec, problem: Problem, seed: int = 0) -> Question:
    """``problem`` for ``spec``, of dense tensors whatever its sequences: equal for equal seeds."""
    inputs = make_inputs(problem.case(spec), seed)
    tables = random_tables(spec, problem, torch.Generator().manual_seed(seed))
    numbers = problem.numbers(spec.head_dim)
    learned = {f"table{n}": tables[n] for n in spec.learned}
    asked = inputs._replace(variant=_weights(inputs) | learned)

    def attention(*qkv, **given):
        own = [given.pop(f"table{n}", table) for n, table in enumerate(tables)]
        return attention_reference(*qkv, **given, **_variant(spec, problem, own, numbers))

    exact, plain = _answers(attention, asked, learned)
    if learned:
        plain |= _worst_of_draws(attention, asked, (exact, plain), learned, seed)
    return Question(inputs, tables, numbers, exact, plain)


def _answers(
    attention: Callable, asked: Inputs, learned: Collection[str]
) -> tuple[Results, Results]:
    exact, plain = (
        results(attention, asked, dtype, learned=learned) for dtype in (torch.float64, None)
    )
    return exact, plain


def _worst_of_draws(
    attention: Callable,
    asked: Inputs,
    answers: tuple[Results, Results],
    learned: Collection[str],
    seed: int,
) -> Results:
    """Gradients of tables as far from the exact ones as PyTorch's are in the worst of ``DRAWS``.

    A table may have one element, the sum over all pairs of a head: whether PyTorch's is right to
    the last bit is chance.
    """
    (exact, plain), names = answers, [f"d{name}" for name in learned]
    worst = {name: largest_error(plain[name], exact[name]) for name in names}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(DRAWS - 1):
        dout, dlse = (
            torch.randn(x.shape, generator=generator).to(x.dtype) for x in (asked.dout, asked.dlse)
        )
        right, rounded = _answers(attention, asked._replace(dout=dout, dlse=dlse), learned)
        worst = {x: max(worst[x], largest_error(rounded[x], right[x])) for x in names}
    return {name: exact[name] + worst[name] for name in names}


def _weights(inputs: Inputs) -> dict[str, Any]:
    """Keywords that say what makes weights of scores, and which of them are dropped."""
    found = ("softmax", "sink", "dropout_p", "rng")
    return {name: inputs.variant[name] for name in found if name in inputs.variant}


def _variant(
    spec: AttentionSpec, problem: Problem, tables: list[torch.Tensor], numbers: dict[str, Any]
) -> dict[str, Any]:
    """Keywords of ``attention_reference`` that mean ``spec``."""
    left = list(tables)
    slopes = left.pop(0) if spec.alibi else None
    functions: dict[str, Any] = {}
    for name in ("score_mod", "mask_mod"):
        program = getattr(spec, name)
        if program is not None:
            own, left = left[: len(program.tables)], left[len(program.tables) :]
            functions[name] = as_function(program, own)
    if spec.block_mask:
        known = (problem.seqlen_q, problem.seqlen_k, spec.block_mask, *left)
        functions["block_mask"] = BlockMask(*known, functions.pop("mask_mod", None))
    return {
        "softmax_scale": numbers["softmax_scale"],
        "window_size": tuple(-1 if end is None else end for end in spec.window(numbers)),
        "softcap": numbers["softcap"] if spec.softcap else 0.0,
        "alignment": spec.alignment,
        "alibi_slopes": slopes,
        **functions,
    }
