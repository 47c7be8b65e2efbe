"""flash_attn_with_kvcache: caches in every form, appended to and attended to, against float64."""

import pytest
import torch
from held_cache import CAPACITY, COS, SEQLENS, SIN, B, Held, append_to, new_rows, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_problems import DIM, HEADS, KV_HEADS, cumulative, int32, of_entry, random
from pairwise import grid

from tvm_flash import PagedCache, apply_rotary, flash_attn_with_kvcache
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import allowed_error, deviations, largest_error

LEFTPAD = int32(5, 0, 64)


def wanted(held: Held, q, new, rotary, upcast, seqlens=SEQLENS, leftpad=None, **variant):
    """out (total, H, D) and lse (H, total), of lists q and new (or None) and in ``upcast``."""
    outs, lses = [], []
    for b, (q_b, start) in enumerate(zip(q, seqlens.tolist(), strict=True)):
        keys = [held.rows(b)[:start], held.rows(b, held.v)[:start]]
        keys = [x.to(upcast or x.dtype) for x in keys]
        if new is not None:
            k_b, v_b = (x[b] for x in new)
            if rotary:
                moves = variant.get("causal", False) or "window_size" in variant
                q_b = turned(q_b, start, *rotary, moves)
                k_b = turned(k_b, start, *rotary)
            keys = [torch.cat((x, y.to(x.dtype))) for x, y in zip(keys, (k_b, v_b), strict=True)]
        first = 0 if leftpad is None else int(leftpad[b])
        entry = (q_b.to(keys[0].dtype)[None], *(x[None, first:] for x in keys))
        out, lse = attention_reference(*entry, **of_entry(variant, b))
        outs.append(out[0])
        lses.append(lse[0])
    return torch.cat(outs), torch.cat(lses, 1)


def assert_right(got, held, q, *others, **options):
    """The error rule for (out, lse) of a call on a cache that holds what ``held`` does."""
    exact, plain = (
        dict(zip(("out", "lse"), wanted(held, q, *others, upcast, **options), strict=True))
        for upcast in (torch.float64, None)
    )
    dtype = str(held.k.dtype).removeprefix("torch.")
    for deviation in deviations(dtype, dict(zip(exact, got, strict=True)), exact, plain):
        assert deviation.ok, str(deviation)


def packed_results(out, lse):
    """(out, lse) as of packed queries."""
    return (out, lse) if out.ndim == 3 else (out.flatten(0, 1), lse.transpose(0, 1).flatten(1))


def given_rows(parts, ragged: bool):
    """One tensor (B, S, H, D), or packed, of a tensor for each sequence."""
    return torch.cat(parts) if ragged else torch.stack(parts)


RAGGED = (3, 0, 16)
ROTARY = {"none": None, "half, in pairs": (DIM // 2, True), "all, in halves": (DIM, False)}


@grid(
    "store, new, rotary, queries, padded, layout",
    ["rows", "chosen", 7, 16, 1],
    [None, 1, 5, "ragged"],
    list(ROTARY),
    [1, 20, "ragged"],
    [False, True],
    ["bshd", "bhsd"],
)
def test_a_call_is_attention_to_old_and_new_rows(store, new, rotary, queries, padded, layout):
    held, before = Held(store, layout=layout), Held(store, layout=layout)
    q = [random(n, HEADS, DIM, seed=30 + b) for b, n in enumerate(
        RAGGED if queries == "ragged" else (queries,) * B
    )]  # fmt: skip
    options, rotation, rows, tensors = {"causal": True}, None, None, ()
    leftpad = LEFTPAD if padded else None
    if queries == "ragged":
        options["cu_seqlens_q"] = cumulative(RAGGED)
    if new is not None:
        counts = RAGGED if new == "ragged" else (new,) * B
        rows, rotation = new_rows(counts), ROTARY[rotary]
        tensors = [given_rows(x, new == "ragged") for x in rows]
        if new == "ragged":
            options["cu_seqlens_k_new"] = cumulative(counts)
        if rotation:
            half, interleaved = rotation[0] // 2, rotation[1]
            options |= {"rotary_cos": COS[:, :half], "rotary_sin": SIN[:, :half]}
            options["rotary_interleaved"] = interleaved
    got = held(
        given_rows(q, queries == "ragged"), *tensors, cache_seqlens=SEQLENS, cache_leftpad=leftpad,
        **options,
    )  # fmt: skip
    case = (before, q, rows, rotation)
    assert_right(packed_results(*got), *case, leftpad=leftpad, causal=True)
    for b, start in enumerate(SEQLENS.tolist()):
        end = start + (0 if rows is None else len(rows[0][b]))
        for pages, old, part in ((held.k, before.k, 0), (held.v, before.v, 1)):
            now, was = held.rows(b, pages), before.rows(b, old)
            assert torch.equal(now[:start], was[:start]) and now[end:].isnan().all()
            if rows is not None and (part or not rotation):
                assert torch.equal(now[start:end], rows[part][b])


VARIANTS = {
    "bfloat16": (torch.bfloat16, 1, {"causal": True}),
    "float16, all": (
        torch.float16, 9,
        {
            "window_size": (30, 3), "softcap": 3.0, "softmax_scale": 0.3,
            "alibi_slopes": torch.rand(B, HEADS, generator=torch.Generator().manual_seed(5)),
        },
    ),
    "no mask": (torch.float32, 5, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_masks_scores_and_dtypes(name):
    """Without a mask all queries of a sequence are rotated by the position of the first."""
    dtype, queries, variant = VARIANTS[name]
    held, before, rows = Held(16, dtype), Held(16, dtype), new_rows((4,) * B, dtype)
    q = [random(queries, HEADS, DIM, seed=30 + b, dtype=dtype) for b in range(B)]
    got = held(
        torch.stack(q), *map(torch.stack, rows), COS.to(dtype), SIN.to(dtype),
        cache_seqlens=SEQLENS, rotary_interleaved=False, **variant,
    )  # fmt: skip
    if dtype == torch.float32:
        assert_right(packed_results(*got), before, q, rows, (DIM, False), **variant)
        return
    # Angles rounded to the dtype are the caller's: the rotation itself is held to its own rule.
    rotated = [[apply_rotary(
        x[None], COS.to(dtype), SIN.to(dtype), seqlen_offsets=int(start)
    )[0] for x, start in zip(part, SEQLENS, strict=True)] for part in (q, rows[0])]  # fmt: skip
    assert_right(packed_results(*got), before, rotated[0], (rotated[1], rows[1]), None, **variant)


PAGE_SIZES = st.sampled_from([1, 3, 8, 16, 40, 100])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    page=PAGE_SIZES,
    seqlens=st.lists(st.integers(0, CAPACITY - 4), min_size=B, max_size=B),
    counts=st.lists(st.integers(0, 4), min_size=B, max_size=B),
)
def test_any_page_table(page, seqlens, counts):
    seqlens = int32(*seqlens)
    held, before = (Held(page, seqlens=seqlens) for _ in range(2))
    q, rows = [random(1, HEADS, DIM, seed=30 + b) for b in range(B)], new_rows(counts)
    got = held(
        torch.stack(q), *map(torch.cat, rows), cache_seqlens=seqlens, causal=True,
        cu_seqlens_k_new=cumulative(counts),
    )  # fmt: skip
    assert_right(packed_results(*got), before, q, rows, None, seqlens=seqlens, causal=True)


def test_decoding_step_by_step_is_causal_attention():
    """With a PagedCache, whose pages the call reads and writes."""
    steps = 9
    q, k, v = (random(2, steps, h, DIM, seed=h) for h in (HEADS, KV_HEADS, KV_HEADS))
    cache = PagedCache(8, 4, KV_HEADS, DIM, max_sequences=4, max_seqlen=12)
    ids, outs = [cache.allocate(), cache.allocate()], []
    for step in range(steps):
        before, now = cache.seqlens_of(ids), slice(step, step + 1)
        cache.extend(ids)
        outs.append(flash_attn_with_kvcache(
            q[:, now], cache.k_pages[0], cache.v_pages[0], k[:, now], v[:, now],
            cache_seqlens=before, block_table=cache.block_table(ids), causal=True,
        ))  # fmt: skip
    want, _ = attention_reference(q, k, v, causal=True, upcast=torch.float64)
    torch.testing.assert_close(torch.cat(outs, 1).double(), want, atol=1e-5, rtol=1e-5)
    assert torch.equal(cache.gather(ids[1])[0], k[1])


def test_what_is_returned_and_where():
    held, q = Held("rows"), random(B, 2, HEADS, DIM)
    out, lse = held(q, cache_seqlens=SEQLENS, causal=True)
    assert out.shape == q.shape and lse.shape == (B, HEADS, 2) and lse.dtype == torch.float32
    memory = torch.full_like(q, torch.nan)
    options = {"cache_seqlens": SEQLENS, "causal": True}
    again = flash_attn_with_kvcache(q, held.k, held.v, **options, out=memory, num_splits=3)
    assert again is memory and torch.equal(memory, out)
    packed, packed_lse = held(q.flatten(0, 1), cu_seqlens_q=int32(0, 2, 4, 6), **options)
    assert torch.equal(packed, out.flatten(0, 1))
    assert torch.equal(packed_lse, lse.transpose(0, 1).flatten(1))


def test_forms_of_one_call_give_the_same_bits():
    """A length for all, a table of one page a sequence, FlashAttention-3's name of it."""
    held, q = Held("rows", seqlens=int32(37, 37, 37)), random(B, 1, HEADS, DIM)
    want = flash_attn_with_kvcache(q, held.k, held.v, cache_seqlens=int32(37, 37, 37), causal=True)
    for options in (
        {"cache_seqlens": 37},
        {"cache_seqlens": 37, "page_table": int32(0, 1, 2)[:, None]},
        {"cache_seqlens": 37, "cache_batch_idx": int32(0, 1, 2)},
        {"cache_seqlens": 37, "max_seqlen_q": 1},
    ):
        assert torch.equal(flash_attn_with_kvcache(q, held.k, held.v, causal=True, **options), want)
    whole = flash_attn_with_kvcache(q, held.k[:3, :37], held.v[:3, :37], causal=True)
    torch.testing.assert_close(whole, want, atol=1e-6, rtol=1e-6)


def test_rotary_positions_of_the_callers_own():
    held, before, rows = Held("rows"), Held("rows"), new_rows((2,) * B)
    q, shift = [random(2, HEADS, DIM, seed=30 + b) for b in range(B)], int32(3, 0, 11)
    got = held(
        torch.stack(q), *map(torch.stack, rows), COS, SIN, cache_seqlens=SEQLENS, causal=True,
        rotary_seqlens=shift, rotary_interleaved=False,
    )  # fmt: skip
    q, k = ([turned(x, n, DIM, False) for x, n in zip(part, shift.tolist(), strict=True)]
            for part in (q, rows[0]))  # fmt: skip
    assert_right(packed_results(*got), before, q, (k, rows[1]), None, causal=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_a_cache_of_more_elements_than_int32_counts(layout):
    """Its last page, and one near it; the rest of the memory is never touched."""
    pages = 2**31 // (64 * KV_HEADS * DIM) + 4
    shape = (pages, 64, KV_HEADS, DIM) if layout == "bshd" else (pages, KV_HEADS, 64, DIM)
    caches = [torch.empty(shape, dtype=torch.bfloat16) for _ in "kv"]
    k, v = (random(1, 70, KV_HEADS, DIM, seed=n, dtype=torch.bfloat16) for n in (1, 2))
    q = random(1, 2, HEADS, DIM, dtype=torch.bfloat16)
    out = flash_attn_with_kvcache(
        q, *caches, k, v, cache_seqlens=0, block_table=int32(pages - 1, pages - 3)[None],
        causal=True, cache_layout=layout,
    )  # fmt: skip
    want, _ = attention_reference(q, k, v, causal=True, upcast=torch.float64)
    plain, _ = attention_reference(q, k, v, causal=True)
    assert largest_error(out, want) <= allowed_error("out", "bfloat16", want, plain)


NOTHING = {
    "no queries": (B, 0, 0),
    "no sequences": (0, 1, 1),
    "no new rows": (B, 1, 0),
    "no keys at all": (B, 1, None),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_do(name):
    batch, queries, new = NOTHING[name]
    held, q = Held("rows"), random(batch, queries, HEADS, DIM)
    rows = () if new is None else [random(batch, new, KV_HEADS, DIM)] * 2
    out, lse = held(q, *rows, cache_seqlens=0 if new is None else SEQLENS[:batch], causal=True)
    assert out.shape == q.shape and lse.shape == (batch, HEADS, queries)
    assert not out.isnan().any()
    if new is None:
        assert not out.any() and (lse == -torch.inf).all()


def test_equal_calls_give_equal_bits():
    q, outs = random(B, 1, HEADS, DIM), []
    for _ in range(3):
        outs.append(append_to(Held(7), q=q))
    assert all(torch.equal(x, outs[0][0]) and torch.equal(y, outs[0][1]) for x, y in outs)
