"""Kinds of sequences: how many rows each entry of the batch has, and where they lie in memory."""

from .dense import DenseSequences
from .packed import PackedSequences
from .paged import PagedSequences
from .shapes import Shapes, key_of_run

KINDS = {"dense": DenseSequences, "packed": PackedSequences, "paged": PagedSequences}


def kind_of(sizes):
    """The kind of sequences whose calls have ``sizes``, by name."""
    return next(kind for kind in KINDS.values() if kind.shapes.rows("q") in sizes)


__all__ = [
    "KINDS",
    "DenseSequences",
    "PackedSequences",
    "PagedSequences",
    "Shapes",
    "key_of_run",
    "kind_of",
]
