"""What DTensor is told of the operators: entries of the batch and heads are computed apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding as of_torch

from ..frontend import ops, ragged_ops  # noqa: F401  define the operators
from ..frontend.recording import named
from ..frontend.spec_names import spec_of
from ..problem.block_maker import reads
from ..problem.spec import AttentionSpec

_ROWS = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")
_STATISTICS = ("lse", "lse_low", "dlse")


def _by_dimension(rows: int, statistics: int) -> dict[str, Shard]:
    """Placements of tensors by name: rows (B, S, H, D), statistics (B, H, S) and the like."""
    return {**dict.fromkeys(_ROWS, Shard(rows)), **dict.fromkeys(_STATISTICS, Shard(statistics))}


_SINK_OF_HEADS = {"sink": Shard(0), "dsink": Shard(0)}
# How a call may be divided, by kind of sequences and by what score functions call the divided; what
# is not named is replicated.
_WAYS = {
    "attention": {
        "b": {**_by_dimension(0, 0), "dsink": Partial()},
        "h": {**_by_dimension(2, 1), **_SINK_OF_HEADS},
    },
    "attention_packed": {"h": {**_by_dimension(1, 0), **_SINK_OF_HEADS}},
}


@cache
def register_sharding() -> None:
    """Tell torch how calls of ``attention`` on DTensors are divided; once for the process.

    Dense tensors may be sharded by entries, Shard(0), and by heads, Shard(2) of q, k, v (B, S, H,
    D), where every dimension of the mesh divides the number of key heads; packed ones by heads,
    Shard(1). lse (B, H, S) then is Shard(0) or Shard(1). Anything else torch redistributes first:
    rows that are sharded are gathered (``ring_attention`` does not). So are calls with captured
    tensors, slopes, dropout, or functions of the entry or the head, by their numbers in the whole.
    """
    for kind, ways in _WAYS.items():
        for direction in ("forward", "backward"):
            operator = getattr(torch.ops.tvm_flash, f"{kind}_{direction}").default
            of_torch(operator)(_rule(operator, ways))
            _ask_for_each_spec(operator)


def _ask_for_each_spec(operator) -> None:
    """Keep placements by all arguments: torch does so by tensors and integers, and a spec, which
    decides them too, is a text."""
    kept_by = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    kept_by[operator] = RuntimeSchemaInfo(static_argnum=0, needs_pytree=True)


def _rule(operator, ways: Mapping[str, Mapping]):
    """The function that torch asks for the placements of a call of ``operator``."""
    results = [x.name for x in operator._schema.returns]

    def acceptable(*inputs, **others):
        given = {**named(operator, inputs), **others}
        spec = spec_of(given["spec"])
        absent = _absent(spec)
        found = []
        for way in ({}, *(way for symbol, way in ways.items() if _may_divide(symbol, spec, given))):
            known = {name: place for name, place in way.items() if name not in absent}
            placements = [known.get(name, Replicate()) for name in results]
            found.append((placements, _placements(given, known)))
        return found

    return acceptable


def _absent(spec: AttentionSpec) -> set[str]:
    """Results of the operators that are tensors without elements."""
    absent = {"lse", "lse_low"}.difference(spec.forward_statistics)
    return absent if spec.softmax == "sink" else absent | {"dsink"}


def _may_divide(symbol: str, spec: AttentionSpec, given: Mapping) -> bool:
    """Whether entries ("b") or heads ("h"), as score functions call them, are computed apart."""
    programs = [x for x in (spec.score_mod, spec.mask_mod) if x is not None]
    keys = given["k"]
    return (
        not given["tables"]
        and given["rng"] is None
        and not any(reads(program, symbol) for program in programs)
        and (symbol == "b" or all(keys.shape[-2] % n == 0 for n in keys.mesh.shape))
    )


def _placements(given: Mapping, known: Mapping) -> list:
    """The placement of each argument: None for what is no tensor, one for each of a list."""
    found = []
    for name, value in given.items():
        if name == "tables":
            found += [Replicate()] * len(value or ()) or [None]
        elif value is None or isinstance(value, (str, int, float, bool)):
            found.append(None)
        else:
            found.append(known.get(name, Replicate()))
    return found
