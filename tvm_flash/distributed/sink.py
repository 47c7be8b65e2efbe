"""A sink beside attention that was merged from parts: one more part, without a value."""

from __future__ import annotations

import torch

from ..frontend.merging import merge_states
from .partition import pieces
from .plan import Division


def with_sink(
    out: torch.Tensor, lse: torch.Tensor, sink: torch.Tensor, division: Division, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``out`` (rows, H, Dv) and ``lse`` (H, rows) with exp(``sink``), (H,), in the denominators.

    Rows of padding have none: they stay 0 and -inf, and give the sink no gradient.
    """
    is_row = _is_of_document(division, rank).to(sink.device)
    logits = torch.where(is_row, sink[:, None], -torch.inf)
    return merge_states(out, lse, torch.zeros_like(out), logits)


def _is_of_document(division: Division, rank: int) -> torch.Tensor:
    """Whether the rows of a rank's queries are of a document, bool (rows,)."""
    stream = division.queries
    one = stream._replace(ends=(0, stream.ends[-1]))  # all documents as one
    found = torch.zeros(stream.entries * stream.rows, dtype=torch.bool)
    for piece in pieces(division.layout, one, rank, division.world):
        found[piece.row : piece.row + piece.length] = True
    return found
