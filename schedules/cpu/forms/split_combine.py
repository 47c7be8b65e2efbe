"""The split forward's second loop: the partial results of a row's chunks, combined in order."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from ....definition.arithmetic import visibility
from ....definition.derive.bound import BoundRecurrence
from ....definition.signature import Signature
from .entries import places_of
from .regions import whole


def combined_chunks(sig: Signature, softmax: BoundRecurrence, numbers: Callable, chunk: int):
    """A loop that stores O and the statistics of every row, combined from what its chunks left.

    That is m and l (rows, chunks), acc (rows, chunks, Dv); rows are numbered by entry, key/value
    head and packed row. chunk: keys of one. numbers(h): a kind's inputs in head h; inputs: their
    buffers. results: lse and lse_low, by name.
    """
    places, dim_v = places_of(sig), sig.spec.head_dim_v
    find_row = places.find_packed_row()

    # An inline function numbers the blocks of its second use: each definition makes its own.
    @T.inline
    def combine(chunk_m, chunk_l, chunk_acc, inputs, O, results):
        all_rows, chunks = T.meta_var(chunk_m.shape[0]), T.meta_var(chunk_m.shape[1])
        Dv = T.meta_var(int(chunk_acc.shape[2]))
        for t in T.serial(all_rows):
            with T.sblock("combine"):
                vt = T.axis.spatial(all_rows, t)
                T.reads(
                    chunk_m[vt, 0:chunks], chunk_l[vt, 0:chunks], chunk_acc[vt, 0:chunks, 0:Dv],
                    *whole(inputs),
                )  # fmt: skip
                T.writes(whole([O, *results.values()]))
                place = T.sblock_alloc_buffer((places.size,), "int64")
                find_row(place, vt)
                sequences = T.meta_var(places.sequences(place))
                out_b: T.let[T.int64] = place[0]
                out_h: T.let[T.int64] = place[1]
                out_q: T.let[T.int64] = place[2]
                row = T.meta_var(T.Cast("int32", out_q))
                lengths = T.meta_var(sequences.lengths(out_b))
                parts = T.meta_var(visibility(sig, lengths).keys(row, row + 1, chunk))
                begin: T.let[T.int64] = T.Cast("int64", parts.start)
                count: T.let[T.int64] = T.Cast("int64", parts.count)
                top = T.sblock_alloc_buffer((1,), "float32")
                total = T.sblock_alloc_buffer((1,), "float32")
                inverse = T.sblock_alloc_buffer((1,), "float32")
                out = T.sblock_alloc_buffer((Dv,), "float32")
                if softmax.has_sum:
                    for n in range(count):
                        with T.sblock("top"):
                            vn = T.axis.reduce(chunks, begin + n)
                            with T.init():
                                top[0] = softmax.start("m", **numbers(out_h))
                            top[0] = softmax.join("m", top[0], chunk_m[vt, vn])
                    for n in range(count):
                        with T.sblock("total"):
                            vn = T.axis.reduce(chunks, begin + n)
                            with T.init():
                                total[0] = softmax.start("l", m=top[0], **numbers(out_h))
                            own = T.meta_var((chunk_l[vt, vn], chunk_m[vt, vn]))
                            total[0] = softmax.join("l", total[0], softmax.repaired(*own, top[0]))
                for n, d in T.grid(count, Dv):
                    with T.sblock("merge"):
                        vn = T.axis.reduce(chunks, begin + n)
                        vd = T.axis.spatial(Dv, d)
                        with T.init():
                            out[vd] = softmax.start("acc")
                        own = T.meta_var((chunk_acc[vt, vn, vd], chunk_m[vt, vn]))
                        out[vd] = softmax.join("acc", out[vd], softmax.repaired(*own, top[0]))
                if softmax.has_sum:
                    with T.sblock("inverse"):
                        inverse[0] = softmax.inverse(total[0])
                there = T.meta_var(T.And(out_q >= 0, out_q < lengths[0]))
                at = T.meta_var(sequences.statistic(out_b, out_h, out_q))
                for d in range(dim_v):
                    with T.sblock("out"):
                        T.where(there)
                        vd = T.axis.spatial(dim_v, d)
                        out_at = T.meta_var(sequences.query(out_b, out_h, out_q, vd))
                        O[out_at] = T.Cast(O.dtype, softmax.out(out[vd], inverse[0]))
                if "lse" in results:
                    with T.sblock("lse"):
                        T.where(there)
                        L = T.meta_var(results["lse"])
                        L[at] = softmax.lse(top[0], total[0])
                if "lse_low" in results:
                    with T.sblock("lse_low"):
                        T.where(there)
                        L, L_low = T.meta_var(results["lse"]), T.meta_var(results["lse_low"])
                        L_low[at] = softmax.lse_low(L[at], top[0], total[0])

    return combine
