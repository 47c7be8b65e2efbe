"""A ScoreProgram as the torch function that it was traced from: what the oracle calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..score.program import INTEGERS, MASK_SYMBOLS, SCORE_SYMBOLS, ScoreProgram

_RENAMED = {
    "mod": "remainder", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "not": "bitwise_not", "floordiv": "floor_divide", "shift_left": "bitwise_left_shift",
    "shift_right": "bitwise_right_shift",
}  # fmt: skip
# float32 holds the second number, not the integer types' own last one.
_BOUNDS = {"int32": (-(2**31), 2**31 - 2**7), "int64": (-(2**63), 2**63 - 2**39)}


def as_function(program: ScoreProgram, tables: Sequence[torch.Tensor]) -> Callable:
    """score_mod or mask_mod of broadcasting tensors, with the meaning that kernels give it.

    Integers have the program's types, floating point the precision of the score; a mask's is
    float32, so that its comparisons fall as the kernel's do.
    """
    names = SCORE_SYMBOLS if program.is_score else MASK_SYMBOLS

    def function(*symbols: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, symbols, strict=True))
        wide = program.is_score and symbols[0].dtype == torch.float64
        floating = torch.float64 if wide else torch.float32
        values: list[torch.Tensor] = []
        for instruction, dtype in zip(program.instructions, program.dtypes, strict=True):
            target = floating if dtype == "float32" else getattr(torch, dtype)
            values.append(_value(instruction, target, given, values, tables))
        result = values[-1]
        return torch.broadcast_to(result, symbols[0].shape) if program.is_score else result

    return function


def _value(
    instruction: tuple, dtype: torch.dtype, given: dict, values: list, tables: Sequence
) -> torch.Tensor:
    op, *rest = instruction
    if op in given:
        return given[op] if op == "score" else given[op].to(dtype)
    if op == "const":
        return torch.tensor(rest[1], dtype=dtype)
    if op == "cast":
        return _cast(values[rest[1]], dtype)
    if op == "load":
        return _load(tables[rest[0]], [values[number] for number in rest[1:]]).to(dtype)
    return _apply(op, [values[number] for number in rest])


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if value.is_floating_point() and dtype.is_floating_point:
        return value
    if value.is_floating_point():
        value = value.clamp(*_BOUNDS[str(dtype).removeprefix("torch.")])
    return value.to(dtype)


def _load(table: torch.Tensor, indices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Indices are clamped, as kernels do."""
    clamped = [
        index.long().clamp(0, extent - 1)
        for index, extent in zip(indices, table.shape, strict=True)
    ]
    return table[tuple(clamped)] if clamped else table


def _apply(op: str, arguments: list[Any]) -> torch.Tensor:
    dtype = str(arguments[-1].dtype).removeprefix("torch.")
    if dtype in INTEGERS and op in ("mod", "floordiv"):
        arguments[1] = torch.where(arguments[1] == 0, 1, arguments[1])
    if op in ("shift_left", "shift_right"):
        arguments[1] = arguments[1] & (31 if dtype == "int32" else 63)
    return getattr(torch, _RENAMED.get(op, op))(*arguments)
