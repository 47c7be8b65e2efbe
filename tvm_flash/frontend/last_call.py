"""What was made of the arguments of the last call, which the layers of a model share."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch

from .packed_rows import memory_of


class LastCall:
    """One answer, for arguments that are the same tensors on a CPU with the same numbers in them.

    The numbers are compared, not torch's count of changes: buffers that serving loops fill are
    often arrays on the same memory. An answer of inference mode is not given outside of it. The
    tensors are kept too, of which an answer has views.
    """

    def __init__(self) -> None:
        self._kept: tuple | None = None

    def answer(self, tensors: tuple, sizes: tuple) -> Any:
        """What was kept for ``tensors``, some of which may be None, and equal ``sizes``."""
        kept = self._kept
        if kept is None:
            return None
        known, others, states, answer = kept
        if (
            len(known) != len(tensors)
            or not all(map(is_, tensors, known))
            or others != (sizes, torch.is_inference_mode_enabled())
        ):
            return None
        for x, place, array, numbers in states:
            if _place(x) != place or array.tobytes() != numbers:
                return None
        return answer

    def keep(self, tensors: tuple, sizes: tuple, answer: Any) -> None:
        """Keep ``answer`` for these, in place of the one before."""
        states = []
        for x in {id(x): x for x in tensors if x is not None}.values():
            array = memory_of(x)  # read only while it is that of x
            states.append((x, _place(x), array, array.tobytes()))
        self._kept = tensors, (sizes, torch.is_inference_mode_enabled()), states, answer


def _place(x: torch.Tensor) -> tuple:
    """Where the elements of ``x`` lie, which operations in place may change."""
    return x.data_ptr(), x.shape, x.stride()
