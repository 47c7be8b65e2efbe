"""Random tables for what a spec's functions capture, of shapes that fit how they are indexed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..problem.block_mask import mask_of_lists, visits_of
from ..problem.spec import AttentionSpec
from ..score.program import ScoreProgram, TableType
from .problems import Problem

# Extent of a dimension whose index is computed. Kernels clamp indices, so any is right.
_EXTENT = 17


def random_tables(
    spec: AttentionSpec, problem: Problem, generator: torch.Generator
) -> list[torch.Tensor]:
    """One tensor for each of ``spec.table_types``: ALiBi slopes, functions' tables, block lists."""
    tables = []
    if spec.alibi:
        tables.append(torch.rand(problem.batch, problem.heads, generator=generator) * 0.3)
    for program in (spec.score_mod, spec.mask_mod):
        for kind, shape in _shapes(program, problem) if program else ():
            tables.append(_random(kind, shape, problem, generator))
    return tables + _random_lists(spec, problem, generator)


def _random_lists(
    spec: AttentionSpec, problem: Problem, generator: torch.Generator
) -> list[torch.Tensor]:
    """Lists of a block mask, of which each head has its own; none for a spec without."""
    if not spec.block_mask:
        return []
    lengths = problem.seqlen_q, problem.seqlen_k
    heads = problem.batch, problem.heads
    rows, keys = (-(-n // block) for n, block in zip(lengths, spec.block_mask, strict=True))
    states = torch.randint(0, 3, (heads[0] * heads[1] * rows, keys), generator=generator)
    counts, visited = visits_of([states])
    mask = mask_of_lists(*lengths, spec.block_mask, counts.view(*heads, rows), visited)
    return mask.lists(*heads)


def _shapes(program: ScoreProgram, problem: Problem) -> Iterator[tuple[TableType, list[int]]]:
    """Type and shape of each table: a dimension that a symbol itself indexes has its range."""
    extents = {
        "b": problem.batch,
        "h": problem.heads,
        "q_idx": problem.seqlen_q,
        "k_idx": problem.seqlen_k,
    }
    shapes = [[1] * kind.ndim for kind in program.tables]
    for op, *rest in program.instructions:
        if op == "load":
            shape = shapes[rest[0]]
            for axis, number in enumerate(rest[1:]):
                extent = extents.get(program.instructions[number][0], _EXTENT)
                shape[axis] = max(shape[axis], extent)
    yield from zip(program.tables, shapes, strict=True)


def _random(
    kind: TableType, shape: list[int], problem: Problem, generator: torch.Generator
) -> torch.Tensor:
    """Numbers away from 0, which a function may divide by or take the logarithm of."""
    dtype = getattr(torch, kind.dtype)
    if dtype.is_floating_point:
        return (torch.rand(shape, generator=generator) + 0.25).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.7
    above = min(problem.integers, torch.iinfo(dtype).max + 1)
    return torch.randint(0, above, shape, generator=generator, dtype=dtype)
