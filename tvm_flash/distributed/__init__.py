"""Sequences, heads and batches on many processes: ring attention, exchanges of heads, DTensor."""

from .ring import ring_attention
from .sequence import sequence_positions, shard_sequence, unshard_sequence

__all__ = [
    "ring_attention",
    "sequence_positions",
    "shard_sequence",
    "unshard_sequence",
]
