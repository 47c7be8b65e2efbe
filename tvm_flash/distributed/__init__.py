"""Sequences, heads and batches on many processes: ring attention, exchanges of heads, DTensor.

Over process groups of torch.distributed (gloo, nccl). docs/distributed.md says which to take.
"""

from .heads import ulysses_attention
from .ring import ring_attention
from .sequence import sequence_positions, shard_sequence, unshard_sequence

__all__ = [
    "register_sharding",
    "ring_attention",
    "sequence_positions",
    "shard_sequence",
    "ulysses_attention",
    "unshard_sequence",
]


def __getattr__(name: str):
    if name == "register_sharding":  # torch.distributed.tensor takes a second to import
        from .sharding import register_sharding

        return register_sharding
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
