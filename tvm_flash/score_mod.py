"""From a user's score_mod or mask_mod, a plain torch function of one score, to a ScoreProgram."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .program import MASK_SYMBOLS, SCORE_SYMBOLS, ScoreProgram, TableType
from .tracing import Recorder

__all__ = ["ScoreProgram", "TableType", "trace_mask_mod", "trace_score_mod"]


def trace_score_mod(fn: Callable) -> tuple[ScoreProgram, list[torch.Tensor]]:
    """Trace ``fn(score, b, h, q_idx, k_idx) -> score``, written for scalars as in FlexAttention.

    ``score`` is float32, in natural units and already scaled (and soft-capped, if so specified);
    the others are int32. ``fn`` may use Python operators, torch functions and captured torch
    tensors, indexed with one symbol or integer per dimension. An index computed in ``fn`` must
    lie in [0, dim): negative ones do not count from the end, and any other is clamped, so that
    nothing outside the tensor is read.

    Returns the program and the captured tensors in the order of ``program.tables``: bool as
    uint8, small integers as int32, floating point as float32. Every call traces afresh (tens of
    microseconds), so a closure that changed gives another program.

    Raises UnsupportedSpec for a torch function or capture that has no counterpart and TypeError
    for Python control flow on a symbol; both name the line.
    """
    recorder = Recorder(SCORE_SYMBOLS)
    return recorder.finish(fn(*recorder.symbols), "float32")


def trace_mask_mod(fn: Callable) -> tuple[ScoreProgram, list[torch.Tensor]]:
    """Trace ``fn(b, h, q_idx, k_idx) -> bool``, true where row q_idx sees key k_idx.

    As ``trace_score_mod``; the result must be a bool.
    """
    recorder = Recorder(MASK_SYMBOLS)
    return recorder.finish(fn(*recorder.symbols), "bool")
