"""How many tiles a kernel visits: those that neither the mask nor the ends hide whole."""

from __future__ import annotations

from functools import lru_cache

from ...problem.numbers import usual_numbers
from ...problem.spec import AttentionSpec
from ...problem.visits import Visibility
from ...problem.work import Work
from ..trial import Sizes


def visibility(spec: AttentionSpec, seqlen_q: int, seqlen_k: int) -> Visibility:
    """What rows and keys see of each other in a problem of these lengths."""
    return Visibility(spec, seqlen_q, seqlen_k, usual_numbers(spec.head_dim, seqlen_k))


def query_loads(
    spec: AttentionSpec, work: Work, sizes: Sizes, block_q: int, block_k: int
) -> list[int]:
    """How many key tiles each worker of ``work`` visits, which deals out query tiles; in order."""
    visited = key_tiles(spec, sizes.seqlen_q, sizes.seqlen_k, block_q, block_k)
    return [visited[place["tile"]] for place in work.places()]


def key_loads(
    spec: AttentionSpec, work: Work, sizes: Sizes, block_q: int, block_k: int
) -> list[int]:
    """How many query tiles each worker of ``work`` visits, which deals out key tiles; in order.

    A query tile counts once for each head of the group.
    """
    visited = query_tiles(spec, sizes.seqlen_q, sizes.seqlen_k, block_q, block_k)
    group = sizes.num_heads // sizes.num_kv_heads
    return [group * visited[place["tile"]] for place in work.places()]


def key_tiles(
    spec: AttentionSpec, seqlen_q: int, seqlen_k: int, block_q: int, block_k: int
) -> list[int]:
    """Key tiles that each query tile visits, first rows first.

    A window of the usual ends and causal masks skip tiles; a mask_mod skips none.
    """
    return list(_key_tiles(spec, seqlen_q, seqlen_k, block_q, block_k))


def query_tiles(
    spec: AttentionSpec, seqlen_q: int, seqlen_k: int, block_q: int, block_k: int
) -> list[int]:
    """Query tiles that each key tile visits, first keys first."""
    seen = visibility(spec, seqlen_q, seqlen_k)
    return [seen.queries(k, k + block_k, block_q).count for k in range(0, seqlen_k, block_k)]


@lru_cache(maxsize=1024)  # other knobs than the blocks' leave it the same
def _key_tiles(
    spec: AttentionSpec, seqlen_q: int, seqlen_k: int, block_q: int, block_k: int
) -> tuple[int, ...]:
    seen = visibility(spec, seqlen_q, seqlen_k)
    return tuple(seen.keys(q, q + block_q, block_k).count for q in range(0, seqlen_q, block_q))
