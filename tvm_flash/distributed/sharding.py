"""What DTensor is told of the operators: entries of the batch and heads are computed apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding as of_torch

from ..frontend import ops, ragged_ops  # noqa: F401  define the operators
from ..frontend.recording import named
from ..frontend.spec_names import spec_of
from ..problem.spec import AttentionSpec

_ROWS = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")
_STATISTICS = ("lse", "lse_low", "dlse")


def _by_dimension(rows: int, statistics: int) -> dict[str, Shard]:
    """Placements of tensors by name: rows (B, S, H, D), statistics (B, H, S) and the like."""
    return {**dict.fromkeys(_ROWS, Shard(rows)), **dict.fromkeys(_STATISTICS, Shard(statistics))}


_SINK_OF_HEADS = {"sink": Shard(0), "dsink": Shard(0)}
# Ways to divide a call by kind of sequences; what is not named is replicated.
_BATCH = {**_by_dimension(0, 0), "dsink": Partial()}
_HEADS = {
    "attention": {**_by_dimension(2, 1), **_SINK_OF_HEADS},
    "attention_packed": {**_by_dimension(1, 0), **_SINK_OF_HEADS},
}


@cache
def register_sharding() -> None:
    """Tell torch how calls of ``attention`` on DTensors are divided; once for the process.

    Dense tensors may be sharded by entries, Shard(0), and by heads, Shard(2) of q, k, v (B, S, H,
    D), where every dimension of the mesh divides the number of key heads; packed ones by heads,
    Shard(1). lse (B, H, S) then is Shard(0) or Shard(1). Anything else torch redistributes first:
    rows that are sharded are gathered (``ring_attention`` does not). So are all of a call with
    captured tensors or dropout, whose entries and heads are known by their numbers in the whole.
    """
    for kind, heads in _HEADS.items():
        ways = (_BATCH, heads) if kind == "attention" else (heads,)
        for direction in ("forward", "backward"):
            operator = getattr(torch.ops.tvm_flash, f"{kind}_{direction}").default
            of_torch(operator)(_rule(operator, ways))


def _rule(operator, ways: Sequence[Mapping]):
    """The function that torch asks for the placements of a call of ``operator``."""
    results = [x.name for x in operator._schema.returns]

    def acceptable(*inputs, **others):
        given = {**named(operator, inputs), **others}
        spec = spec_of(given["spec"])
        absent = _absent(spec)
        is_replicated = given["tables"] or given["rng"] is not None
        found = []
        for way in ({}, *([] if is_replicated else ways)):
            if way is _BATCH or not way or _divides(given):
                outputs = [Replicate() if x in absent else way.get(x, Replicate()) for x in results]
                found.append((outputs, [_placement(x, given[x], way, absent) for x in given]))
        return found

    return acceptable


def _absent(spec: AttentionSpec) -> set[str]:
    """Results of the operators that are tensors without elements."""
    absent = {"lse", "lse_low"}.difference(spec.forward_statistics)
    return absent if spec.softmax == "sink" else absent | {"dsink"}


def _divides(given: Mapping) -> bool:
    """Whether every dimension of the mesh divides the key heads."""
    keys = given["k"]
    return all(keys.shape[-2] % keys.mesh.size(n) == 0 for n in range(keys.mesh.ndim))


def _placement(name: str, value, way: Mapping, absent: set[str]):
    """The placement of an argument; None for what is no tensor."""
    if value is None or isinstance(value, (str, int, float, bool)) or name == "tables":
        return None
    return Replicate() if name in absent else way.get(name, Replicate())
