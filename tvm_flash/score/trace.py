"""From a user's score_mod or mask_mod, a plain torch function of one score, to a ScoreProgram."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from .program import MASK_SYMBOLS, SCORE_SYMBOLS, TABLE_DTYPES, ScoreProgram, TableType
from .tracing import TABLE_NAMES, Recorder

__all__ = ["ScoreProgram", "TableType", "trace_mask_mod", "trace_score_mod", "with_tables"]


def trace_score_mod(
    fn: Callable, device: torch.device | None = None
) -> tuple[ScoreProgram, list[torch.Tensor]]:
    """Trace ``fn(score, b, h, q_idx, k_idx) -> score``, written for scalars as in FlexAttention.

    ``score`` is float32, in natural units and already scaled (and soft-capped, if so specified);
    the others are int32. ``fn`` may use Python operators, torch functions and captured torch
    tensors, indexed with one symbol or integer per dimension. An index computed in ``fn`` must
    lie in [0, dim): negative ones do not count from the end, and any other is clamped, so that
    nothing outside the tensor is read. ``device`` is what ``score.device`` says.

    Returns the program and the captured tensors (or views, where an index is constant) in the
    order of ``program.tables``. Kernels read them as they are stored; their values in ``fn`` are
    bool, int32 (int8, int16, uint8 too), int64, or float32 (any floating point). Every call traces
    afresh (tens of microseconds), so a closure that changed gives another program.

    Raises UnsupportedSpec for a torch function or capture that has no counterpart and TypeError
    for Python control flow on a symbol; both name the line.
    """
    recorder = Recorder(SCORE_SYMBOLS, device)
    return recorder.finish(_called("score_mod", SCORE_SYMBOLS, fn, recorder.symbols), "float32")


def trace_mask_mod(
    fn: Callable, device: torch.device | None = None
) -> tuple[ScoreProgram, list[torch.Tensor]]:
    """Trace ``fn(b, h, q_idx, k_idx) -> bool``, true where row q_idx sees key k_idx.

    As ``trace_score_mod``; the result must be a bool.
    """
    recorder = Recorder(MASK_SYMBOLS, device)
    return recorder.finish(_called("mask_mod", MASK_SYMBOLS, fn, recorder.symbols), "bool")


def _called(name: str, wanted: Sequence[str], fn: Callable, symbols):
    """``fn(*symbols)``; TypeError says how ``name`` is called where ``fn`` cannot be."""
    try:
        return fn(*symbols)
    except TypeError:
        call = f"it is called as {name}({', '.join(wanted)})"
        if not callable(fn):
            raise TypeError(f"{name} of {type(fn).__name__} is no function: {call}") from None
        try:
            inspect.signature(fn).bind(*symbols)
        except TypeError as error:
            raise TypeError(f"{name} takes other arguments ({error}): {call}") from None
        except ValueError:  # of a function in C, which tells nobody
            pass
        raise


def with_tables(
    program: ScoreProgram, tables: Sequence[torch.Tensor]
) -> tuple[ScoreProgram, list[torch.Tensor]]:
    """``program`` for ``tables`` of other dtypes, one for each of its own and of its rank.

    A tensor that would be read as another type (bool, int32, int64, float32) is converted.
    """
    read = [_readable_as(own, table) for table, own in zip(tables, program.tables, strict=True)]
    return _retyped(program, tuple(table.dtype for table in read)), read


def _readable_as(kind: TableType, table: torch.Tensor) -> torch.Tensor:
    value = TABLE_DTYPES.get(TABLE_NAMES.get(table.dtype))
    return table if value == TABLE_DTYPES[kind.dtype] else table.to(getattr(torch, kind.dtype))


@lru_cache(maxsize=256)
def _retyped(program: ScoreProgram, dtypes: tuple[torch.dtype, ...]) -> ScoreProgram:
    types = [
        TableType(TABLE_NAMES[dtype], own.ndim)
        for dtype, own in zip(dtypes, program.tables, strict=True)
    ]
    return ScoreProgram(program.instructions, tuple(types))
