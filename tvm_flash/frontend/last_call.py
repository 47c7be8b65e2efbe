"""What was made of the arguments of the last call, which the layers of a model share."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch


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
        known, places, arrays, numbers, others, answer = kept
        if (
            len(known) == len(tensors)
            and all(map(is_, tensors, known))
            and others == (sizes, torch.is_inference_mode_enabled())
            and places == _places(tensors)
            and numbers == [x.tobytes() for x in arrays]
        ):
            return answer
        return None

    def keep(self, tensors: tuple, sizes: tuple, answer: Any) -> None:
        """Keep ``answer`` for these, in place of the one before."""
        # Arrays on the memory itself, which stays though a tensor is given other memory.
        arrays = [x.detach().numpy() for x in tensors if x is not None]
        others = sizes, torch.is_inference_mode_enabled()
        numbers = [x.tobytes() for x in arrays]
        self._kept = tensors, _places(tensors), arrays, numbers, others, answer


def _places(tensors: tuple) -> list[tuple]:
    """Where the tensors lie: one may be given other memory, or other sizes."""
    return [(x.data_ptr(), x.shape, x.stride()) for x in tensors if x is not None]
