"""Rows into pages as TensorIR: keys rotated by their positions, values as they are."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....definition.rotation import members, rotated
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .entries import SearchedPlaces
from .regions import whole


def append(spec: AttentionSpec) -> tirx.PrimFunc:
    """Each new row, of all heads, to its place (``problem.arguments``, direction "append").

    A row of no entry, and one whose place lies outside the pages, is left out; a position without
    angles is not rotated. The angles of a row are kept in float32 for all its heads.
    """
    sig = Signature(spec, "append")
    places, D, Dv = SearchedPlaces(sig), spec.head_dim, spec.head_dim_v
    find_row, rows, dtype = places.find_row(), sig.batch_rows, spec.dtype
    heads, heads_v, interleaved = sig.kv_heads, sig.sizes["Hv"], sig.numbers["interleaved"]

    @T.inline
    def take_angles(turn, cos, sin, position):
        for p in T.serial(cos.shape[1]):
            turn[0, p] = T.Cast("float32", cos[position, p])
            turn[1, p] = T.Cast("float32", sin[position, p])

    @T.inline
    def rotate_head(source, target, row, page, place, h, turn, pairs, is_interleaved):
        for p in T.serial(pairs):
            first, second = T.meta_var(members(p, pairs, is_interleaved))
            x = T.meta_var(T.Cast("float32", source[row, h, first]))
            y = T.meta_var(T.Cast("float32", source[row, h, second]))
            pair = T.meta_var(rotated(x, y, turn[0, p], turn[1, p]))
            target[page, place, h, first] = T.Cast(dtype, pair[0])
            target[page, place, h, second] = T.Cast(dtype, pair[1])

    @T.prim_func(s_tir=True, check_well_formed=False)
    def append(
        k_new: sig.own("k_new"), v_new: sig.own("v_new"), cos: sig.own("cos"), sin: sig.own("sin"),
        rounded_cos: sig.own("rounded_cos"), rounded_sin: sig.own("rounded_sin"),
        rotary_seqlens: sig.own("rotary_seqlens"), k_pages: sig.own("k_pages"),
        v_pages: sig.own("v_pages"),
    ):  # fmt: skip
        for t in T.serial(rows):
            with T.sblock("row"):
                vt = T.axis.spatial(rows, t)
                T.reads(whole([k_new, v_new, cos, sin, rounded_cos, rounded_sin, rotary_seqlens]))
                T.writes(whole([k_pages, v_pages]))
                place = T.sblock_alloc_buffer((places.size,), "int64")
                turn = T.sblock_alloc_buffer((2, D // 2), "float32")
                find_row(place, vt)
                sequences = T.meta_var(places.sequences(place))
                b: T.let[T.int64] = place[0]
                row: T.let[T.int64] = place[2]
                queries, keys = T.meta_var(sequences.lengths(b))
                # Two conditions: a place is looked up for rows that there are.
                if row >= 0 and row < queries and row < keys:  # noqa: SIM102
                    if not sequences.lacks_place(b, row):
                        at = T.meta_var(sequences.key(b, 0, row, 0))
                        page: T.let[T.int64] = at[0]
                        inner: T.let[T.int64] = at[1]
                        position: T.let[T.int64] = T.Cast("int64", rotary_seqlens[b]) + row
                        pairs: T.let[T.int64] = T.max(cos.shape[1], rounded_cos.shape[1])
                        for p in T.serial(pairs):
                            turn[0, p] = T.float32(1)
                            turn[1, p] = T.float32(0)
                        if position >= 0 and position < cos.shape[0]:
                            take_angles(turn, cos, sin, position)
                        if position >= 0 and position < rounded_cos.shape[0]:
                            take_angles(turn, rounded_cos, rounded_sin, position)
                        for h in T.serial(heads):
                            if interleaved != 0:
                                rotate_head(k_new, k_pages, vt, page, inner, h, turn, pairs, True)
                            else:
                                rotate_head(k_new, k_pages, vt, page, inner, h, turn, pairs, False)
                            for d in T.serial(D - 2 * pairs):
                                k_pages[page, inner, h, 2 * pairs + d] = k_new[vt, h, 2 * pairs + d]
                        for h in T.serial(heads_v):
                            for d in T.serial(Dv):
                                v_pages[page, inner, h, d] = v_new[vt, h, d]

    return sig.finish(append, "append")
