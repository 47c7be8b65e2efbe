"""Functions of positions in a whole sequence, called with positions in a rectangle of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from ..frontend.captured import Captured, capture
from ..score.gradients import wants_gradient
from .rectangles import Call


@dataclass(frozen=True)
class Functions:
    """A score_mod and a mask_mod that were traced, with tables in place of what a call decides.

    places: for each captured table which of ``_origins`` it stands for, or None. documents: how
    many an entry of the batch has.
    """

    captured: Captured
    places: tuple[int | None, ...]
    documents: int

    def of(self, call: Call, device: torch.device) -> Captured:
        """The functions for the rectangles of ``call``."""
        own = _origins(call, self.documents, device)
        tables = zip(self.captured.tables, self.places, strict=True)
        return self.captured.with_tables(
            *(table if place is None else own[place] for table, place in tables)
        )


def functions_of(score_mod: Callable | None, mask_mod: Callable | None, documents: int):
    """The functions of a call of ``ring_attention``, traced; None where there are none.

    They are called with the entry of the batch (packed: with the document) and positions inside
    it. NotImplementedError for captured tensors that want gradients; TypeError for functions that
    were captured before, which know positions in a call alone.
    """
    if score_mod is mask_mod is None:
        return None
    for name, mod in (("score_mod", score_mod), ("mask_mod", mask_mod)):
        if mod is not None and (isinstance(mod, Captured) or not callable(mod)):
            raise TypeError(
                f"{name} of ring_attention must be a function, not {type(mod).__name__}: it is "
                "traced with positions in the whole sequence"
            )
    # Known again by their memory: what is captured are views.
    origins = [torch.zeros(1, dtype=torch.int32) for _ in range(3)]
    memory = [x.data_ptr() for x in origins]
    captured = capture(
        score_mod and partial(_shifted_score, score_mod, origins),
        mask_mod and partial(_shifted_mask, mask_mod, origins),
    )
    known = [t.data_ptr() for t in captured.tables]
    places = [memory.index(place) if place in memory else None for place in known]
    for number, (table, place) in enumerate(zip(captured.tables, places, strict=True)):
        if place is None and wants_gradient(table):
            raise NotImplementedError(
                f"captured tensor {number} of shape {tuple(table.shape)} requires grad, which "
                "ring_attention does not compute: use ulysses_attention, or pass its .detach()"
            )
    return Functions(captured, tuple(places), documents)


def _shifted_score(score_mod, origins, score, b, h, q_idx, k_idx):
    document, first_q, first_k = origins
    return score_mod(score, document[b], h, q_idx + first_q[b], k_idx + first_k[b])


def _shifted_mask(mask_mod, origins, b, h, q_idx, k_idx):
    document, first_q, first_k = origins
    return mask_mod(document[b], h, q_idx + first_q[b], k_idx + first_k[b])


@lru_cache(maxsize=1024)
def _origins(call: Call, documents: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The document of each rectangle, and the positions of its first query and key; int32."""
    rows = [(r.document[0] * documents + r.document[1], *r.first) for r in call.rectangles]
    return tuple(torch.tensor(rows, dtype=torch.int32).T.contiguous().to(device))
