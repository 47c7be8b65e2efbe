"""How many blocks of queries a tile of keys of the backward visits, in all heads of its group."""

from __future__ import annotations

from tvm.script import tirx as T

from ....problem.spec import AttentionSpec


def visited_queries(spec: AttentionSpec):
    """An inline function (span, queries, head, group): stores the first visit and how many there
    are at most, in any of ``group`` heads from ``head`` on, whose visits queries(head) tells."""

    @T.inline
    def of_all_heads(span, queries, head, group):
        visits = T.meta_var(queries(head))
        span[0] = visits.start
        span[1] = visits.count

    @T.inline
    def of_each_head(span, queries, head, group):
        span[0] = 0
        span[1] = 0
        for g in range(group):
            with T.sblock("longest"):
                vg = T.axis.opaque(group, g)
                span[1] = T.max(span[1], queries(head + vg).count)

    return of_each_head if spec.block_mask else of_all_heads
