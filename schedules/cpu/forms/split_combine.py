"""The split forward's second loop: the partial results of a row's chunks, combined in order."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from ....definition.arithmetic import visibility
from ....definition.derive.bound import BoundRecurrence
from ....definition.signature import Signature
from .chunks import Chunks
from .regions import whole


def combined_chunks(sig: Signature, softmax: BoundRecurrence, numbers: Callable, chunks: Chunks):
    """A loop that stores O and the statistics of every row, combined from what its chunks left.

    That is m and l (results,), acc (results, Dv), in the order of ``chunks``. numbers(h): a kind's
    inputs in head h; inputs: their buffers. results: lse and lse_low, by name.
    """
    places, dim_v = chunks.places, sig.spec.head_dim_v
    find_row = places.find_packed_row()

    # An inline function numbers the blocks of its second use: each definition makes its own.
    @T.inline
    def combine(chunk_m, chunk_l, chunk_acc, before, inputs, O, results):
        Dv = T.meta_var(int(chunk_acc.shape[1]))
        for t in T.serial(places.packed_rows):
            with T.sblock("combine"):
                vt = T.axis.spatial(places.packed_rows, t)
                T.reads(whole([chunk_m, chunk_l, chunk_acc, before, *inputs]))
                T.writes(whole([O, *results.values()]))
                place = T.sblock_alloc_buffer((places.size,), "int64")
                find_row(place, vt)
                sequences = T.meta_var(places.sequences(place))
                out_b: T.let[T.int64] = place[0]
                out_h: T.let[T.int64] = place[1]
                out_q: T.let[T.int64] = place[2]
                row = T.meta_var(T.Cast("int32", out_q))
                lengths = T.meta_var(sequences.lengths(out_b))
                there = T.meta_var(T.And(out_q >= 0, out_q < lengths[0]))
                parts = T.meta_var(visibility(sig, lengths).keys(row, row + 1, chunks.keys))
                begin: T.let[T.int64] = T.Cast("int64", parts.start)
                last = T.meta_var(chunks.of(before, out_b, lengths[0]))
                seen = T.meta_var(T.min(T.Cast("int64", parts.count), last - begin))
                count: T.let[T.int64] = T.Select(there, seen, T.int64(0))
                kv_head = T.meta_var(T.truncdiv(out_h, sig.group))
                packed = T.meta_var(out_q * sig.group + T.truncmod(out_h, sig.group))
                whose = T.meta_var((before, out_b, lengths[0], kv_head, packed))
                nearest: T.let[T.int64] = chunks.result(*whose, begin)
                apart: T.let[T.int64] = lengths[0] * sig.heads
                at = T.meta_var(lambda n: nearest + n * apart)
                top = T.sblock_alloc_buffer((1,), "float32")
                total = T.sblock_alloc_buffer((1,), "float32")
                inverse = T.sblock_alloc_buffer((1,), "float32")
                out = T.sblock_alloc_buffer((Dv,), "float32")
                if softmax.has_sum:
                    for n in range(count):
                        with T.sblock("top"):
                            vn = T.axis.reduce(count, n)
                            with T.init():
                                top[0] = softmax.start("m", **numbers(out_h))
                            top[0] = softmax.join("m", top[0], chunk_m[at(vn)])
                    for n in range(count):
                        with T.sblock("total"):
                            vn = T.axis.reduce(count, n)
                            with T.init():
                                total[0] = softmax.start("l", m=top[0], **numbers(out_h))
                            own = T.meta_var((chunk_l[at(vn)], chunk_m[at(vn)]))
                            total[0] = softmax.join("l", total[0], softmax.repaired(*own, top[0]))
                for n, d in T.grid(count, Dv):
                    with T.sblock("merge"):
                        vn = T.axis.reduce(count, n)
                        vd = T.axis.spatial(Dv, d)
                        with T.init():
                            out[vd] = softmax.start("acc")
                        own = T.meta_var((chunk_acc[at(vn), vd], chunk_m[at(vn)]))
                        out[vd] = softmax.join("acc", out[vd], softmax.repaired(*own, top[0]))
                if softmax.has_sum:
                    with T.sblock("inverse"):
                        inverse[0] = softmax.inverse(total[0])
                to = T.meta_var(sequences.statistic(out_b, out_h, out_q))
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
                        L[to] = softmax.lse(top[0], total[0])
                if "lse_low" in results:
                    with T.sblock("lse_low"):
                        T.where(there)
                        L, L_low = T.meta_var(results["lse"]), T.meta_var(results["lse_low"])
                        L_low[to] = softmax.lse_low(L[to], top[0], total[0])

    return combine
