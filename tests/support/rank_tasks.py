"""What ranks of ``process_group`` do in tests; every rank draws the same inputs."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from packed_problems import Entries, random

from tvm_flash.cases import Inputs
from tvm_flash.distributed import (
    ring_attention,
    sequence_positions,
    shard_sequence,
    ulysses_attention,
    unshard_sequence,
)
from tvm_flash.verify.rule import results

BATCH, HEADS, KV_HEADS, DIM = 2, 4, 2, 32
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
SINK = torch.tensor([0.5, -1.0, 2.0, 0.0])


def leaning(score, b, h, q_idx, k_idx):
    return score - SLOPES[h] * (q_idx - k_idx).abs() * (b + 1)


def striped(b, h, q_idx, k_idx):
    return (q_idx + k_idx + b + h) % 3 != 0


# Functions are named, because tasks travel to other processes.
FUNCTIONS = {"score_mod": {"leaning": leaning}, "mask_mod": {"striped": striped}}


def variant_of(options: dict) -> dict:
    """Keywords of attention and of its reference."""
    named = {name: known[options[name]] for name, known in FUNCTIONS.items() if name in options}
    return {**options, **named, **({"sink": SINK} if options.get("sink") else {})}


def dense_inputs(seqlen_q: int, seqlen_k: int, heads, dtype, options: dict) -> Inputs:
    """Inputs (B, S, H, D) of a whole sequence; heads: of q and of k."""
    queries, keys = (BATCH, seqlen_q, heads[0], DIM), (BATCH, seqlen_k, heads[1], DIM)
    shapes = (queries, keys, keys, queries)
    tensors = [random(*x, seed=n, dtype=dtype) for n, x in enumerate(shapes)]
    dlse = random(BATCH, heads[0], seqlen_q, seed=4)
    return Inputs(*tensors, dlse, variant_of(options))


def documents_of(lengths, padding: int, heads) -> Entries:
    """Documents of ``lengths`` one behind the other; ``padding`` rows of none behind them."""
    return Entries((*lengths, padding), (*lengths, padding), *heads)


def attend(how: str, layout: str, is_packed: bool, more: dict, group=None):
    """A function of whole sequences that each rank of ``group`` (None: all) computes its part of.

    how: "ring", "ulysses", or "both", where pairs of neighbours of all ranks exchange heads.
    """
    dim = 0 if is_packed else 1

    def function(q, k, v, return_lse, **variant):
        groups = _pairs() if how == "both" else (group, None)
        parts = [_sharded(x, dim, layout, groups) for x in (q, k, v)]
        given = {**variant, **more, "return_lse": return_lse}
        if how == "ring":
            found = ring_attention(*parts, layout=layout, group=groups[0], **given)
        elif how == "ulysses":
            if "cu_seqlens_q" in given:
                given.setdefault("cu_seqlens_k", given["cu_seqlens_q"])
            found = ulysses_attention(*parts, group=groups[0], **given)
        else:
            outer = partial(ring_attention, group=groups[0])
            found = ulysses_attention(*parts, group=groups[1], attention=outer, **given)
        return tuple(_whole(x, at, layout, groups) for x, at in zip(found, (dim, -1), strict=True))

    return function


def _pairs():
    """The groups of ring attention, and of pairs of neighbours who exchange heads."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size() // 2, 2))
    return mesh.get_group(0), mesh.get_group(1)


def _sharded(x, dim, layout, groups):
    outer = shard_sequence(x, dim, layout=layout, group=groups[0])
    if groups[1] is None:
        return outer
    return shard_sequence(outer, dim, layout="contiguous", group=groups[1])


def _whole(x, dim, layout, groups):
    if groups[1] is not None:
        x = unshard_sequence(x, dim, layout="contiguous", group=groups[1])
    return unshard_sequence(x, dim, layout=layout, group=groups[0])


def dense(how, layout, sizes, heads, dtype, options, more):
    """out, lse and gradients of a whole dense call; those of tensors are summed over ranks."""
    inputs = dense_inputs(*sizes, heads, dtype, options)
    return summed(results(attend(how, layout, False, more), inputs, return_lse=True))


def documents(how, layout, lengths, padding, heads, dtype, options, more):
    """As ``dense``, of packed documents."""
    entries = documents_of(lengths, padding, heads)
    inputs = entries.inputs(DIM, dtype=dtype, **variant_of(options))
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    more = {**more, "cu_seqlens_q": torch.tensor(ends, dtype=torch.int32)}
    return summed(results(attend(how, layout, True, more), inputs, return_lse=True))


def summed(found, group=None):
    """Every rank's gradient of a whole tensor is that of its rows, times the ranks that look."""
    for name, x in found.items():
        if name.startswith("d"):
            total = x.double()
            dist.all_reduce(total, group=group)
            found[name] = (total / dist.get_world_size(group)).to(x.dtype)
    return found


def positions(seqlen, layout):
    """Positions of this rank, and whether rows come back where they were."""
    x = random(BATCH, seqlen, 3)
    whole = unshard_sequence(shard_sequence(x, layout=layout), layout=layout)
    return sequence_positions(seqlen, layout=layout).tolist(), torch.equal(whole, x)


def refusal(how: str, change: dict, options: dict) -> str:
    """What a wrong call says on this rank."""
    rank = dist.get_rank()
    rows = {None: 32, "odd": 33, "other": 32 + 2 * rank}[change.get("rows")]
    heads = change.get("heads", HEADS)
    q, k = random(BATCH, rows, heads, DIM), random(BATCH, 32, heads, DIM)
    options = dict(options)
    if options.get("causal") == "of rank":
        options["causal"] = rank == 0
    if options.get("score_mod") == "learned":
        slopes = SLOPES.clone().requires_grad_()
        options["score_mod"] = lambda score, b, h, q_idx, k_idx: score * slopes[h]
    function = ring_attention if how == "ring" else ulysses_attention
    try:
        function(q, k, k, **options)
    except (ValueError, TypeError, NotImplementedError) as error:
        return str(error)
    return "not refused"
