"""What the forward leaves of a group of rows: O, and the statistics that the backward takes."""

from __future__ import annotations

from tvm.script import tirx as T

from ....definition.derive.bound import BoundRecurrence


def stored_results(softmax: BoundRecurrence):
    """Blocks that finish and store group g of a tile, whose first row is ``row0``.

    out: where O's rows lie; results: lse and lse_low by name, place(row) their index. sums: O^T
    before it is divided (G, Dv, R) and the row states (m, l), each (G, R), that a kind has. work:
    O^T (columns, R), O (R, columns) and, beside states, the inverse of the sum (R,).
    """

    # An inline function numbers the blocks of its second use: each definition makes its own.
    @T.inline
    def store_results(out, results, place, row0, g, sums, work):
        acc, states = T.meta_var(sums[0]), T.meta_var(sums[1:])
        turned, rows, inverse = T.meta_var(work[0]), T.meta_var(work[1]), T.meta_var(work[2:])
        R, columns = T.meta_var(rows.shape[0]), T.meta_var(rows.shape[1])
        if softmax.has_sum:
            for i in range(R):
                with T.sblock("inverse"):
                    vi = T.axis.spatial(R, i)
                    inverse[0][vi] = softmax.inverse(states[1][g, vi])
        for d, i in T.grid(acc.shape[1], R):
            with T.sblock("normalise"):
                vd, vi = T.axis.remap("SS", [d, i])
                turned[vd, vi] = softmax.out(acc[g, vd, vi], *[x[vi] for x in inverse])
        for i, d in T.grid(R, columns):
            with T.sblock("transpose_o"):
                vi, vd = T.axis.remap("SS", [i, d])
                rows[vi, vd] = turned[vd, vi]
        for i, d in T.grid(R, out.columns):
            with T.sblock("out"):
                T.where(row0 + i < out.count)
                vi, vd = T.axis.remap("SS", [i, d])
                O = T.meta_var(out.buffer)
                O[out.index(row0 + vi, vd)] = T.Cast(O.dtype, rows[vi, vd])
        if "lse" in results:
            for i in range(R):
                with T.sblock("lse"):
                    T.where(row0 + i < out.count)
                    vi = T.axis.spatial(R, i)
                    L = T.meta_var(results["lse"])
                    L[place(row0 + vi)] = softmax.lse(*[x[g, vi] for x in states])
        if "lse_low" in results:
            for i in range(R):
                with T.sblock("lse_low"):
                    T.where(row0 + i < out.count)
                    vi = T.axis.spatial(R, i)
                    at, L_low = T.meta_var(place(row0 + vi)), T.meta_var(results["lse_low"])
                    lse = T.meta_var(results["lse"][at])
                    L_low[at] = softmax.lse_low(lse, *[x[g, vi] for x in states])

    return store_results
