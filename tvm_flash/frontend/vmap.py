"""torch.vmap of the operators: the mapped dimension joins the batch where b only selects."""

from __future__ import annotations

import torch

from ..problem.spec import AttentionSpec
from ..score.program import ScoreProgram, operands
from .spec_names import spec_of


def batched(operator):
    """The vmap rule of ``operator``, whose tensors, but for its tables, have the batch first."""
    names = [parameter.name for parameter in operator._schema.arguments]
    places = {name: names.index(name) for name in ("q", "tables", "spec")}
    single = [names.index(name) for name in ("sink", "rng")]

    def rule(info, dims, *inputs):
        q, tables, spec = (inputs[place] for place in places.values())
        n, batch = info.batch_size, _batch(q, dims[places["q"]])
        mapped = tuple(zip(tables or (), dims[places["tables"]] or (), strict=True))
        joined = _joined_tables(mapped, spec_of(spec), n, batch)
        given = [inputs[place] for place in single if place < len(inputs)]
        if joined is None or any(x is not None for x in given):
            return _one_by_one(operator, n, dims, inputs)
        call = [
            _joined(x, dim, n) if isinstance(x, torch.Tensor) else x
            for x, dim in zip(inputs, dims, strict=True)
        ]
        call[places["tables"]] = joined
        results = operator(*call)
        return tuple(_entries(x, n, batch) for x in results), (0,) * len(results)

    return rule


def _entries(x: torch.Tensor, n: int, batch: int) -> torch.Tensor:
    """A result of ``n * batch`` entries by entry; what the spec lacks is without elements."""
    return x.unflatten(0, (n, batch)) if x.ndim > 1 else x.expand(n, *x.shape)


def one_by_one(operator):
    """The vmap rule of an ``operator`` whose entries are calls of their own."""
    return lambda info, dims, *inputs: _one_by_one(operator, info.batch_size, dims, inputs)


def _one_by_one(operator, n: int, dims, inputs) -> tuple:
    """``n`` calls of ``operator``, whose results are stacked; ValueError for none."""
    if n == 0:
        raise ValueError(f"vmap of {operator} over a dimension of size 0: map one entry or more")
    calls = (map(_entry, inputs, dims, [number] * len(dims)) for number in range(n))
    results = [operator(*call) for call in calls]
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


def table_axes(spec: AttentionSpec) -> list[int | None] | None:
    """The axis of each table that b indexes, None for no axis; None where b does more than that.

    If b only selects from tables, entries of a longer batch may select from longer tables.
    """
    axes: list[int | None] = [0] * spec.alibi
    for program in (spec.score_mod, spec.mask_mod):
        found = [] if program is None else _axes_of(program)
        if found is None:
            return None
        axes += found
    return [*axes, *(0, None) * 2] if spec.block_mask else axes


def _axes_of(program: ScoreProgram) -> list[int | None] | None:
    b = program.instructions.index(("b",))
    places: list[set[tuple[int, ...]]] = [set() for _ in program.tables]
    for instruction in program.instructions:
        op, *rest = instruction
        if op == "load":
            places[rest[0]].add(tuple(axis for axis, ref in enumerate(rest[1:]) if ref == b))
        elif b in operands(instruction):
            return None
    # Each load of a table must select along the same axis: T[b, 0] + T[0, b] is of one batch.
    if any(len(found) > 1 or any(len(axes) > 1 for axes in found) for found in places):
        return None
    return [next((axis for axes in found for axis in axes), None) for found in places]


def _joined_tables(mapped, spec: AttentionSpec, n: int, batch: int) -> list[torch.Tensor] | None:
    """Tables for ``n * batch`` entries of (table, mapped dimension or None) for ``batch`` each.

    None where the entries must be calls of their own.
    """
    if n == 0:
        return []  # nothing will be read
    axes, tables = table_axes(spec), []
    if axes is None:
        return None
    for (table, dim), axis in zip(mapped, axes, strict=True):
        if axis is None and dim is None:
            tables.append(table)
        elif axis is None or _batch(table, dim, axis) != batch:
            return None  # another table for each entry, or an index that the kernel clamps
        else:
            tables.append(_joined(table, dim, n, axis))
    return tables


def _batch(x: torch.Tensor, dim: int | None, axis: int = 0) -> int:
    """The size of ``axis`` where the mapped dimension ``dim`` is not counted."""
    return x.shape[axis if dim is None or axis < dim else axis + 1]


def _joined(x: torch.Tensor, dim: int | None, n: int, axis: int = 0) -> torch.Tensor:
    """``x`` with its mapped dimension, or ``n`` times itself, in front of ``axis``, as one."""
    if dim is None:
        x = x.unsqueeze(axis).expand(*x.shape[:axis], n, *x.shape[axis:])
    else:
        x = x.movedim(dim, axis)
    return x.flatten(axis, axis + 1)


def _entry(value, dim, number: int):
    if isinstance(value, (list, tuple)):
        return [_entry(x, d, number) for x, d in zip(value, dim, strict=True)]
    return value if dim is None else value.select(dim, number)
