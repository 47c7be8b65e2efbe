"""Rows into pages: CPU kernels held to the rule, and the operator as PyTorch sees it."""

import pytest
import torch
from held_cache import COS, SEQLENS, SIN, B, Held, append_to
from packed_problems import DIM, KV_HEADS, int32, random
from torch.fx.experimental.proxy_tensor import make_fx

from tvm_flash import AttentionSpec, apply_rotary, flash_attn_with_kvcache
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.frontend.append_ops import Angles, Places, append
from tvm_flash.problem.arguments import TABLES, arguments, names
from tvm_flash.runtime.kernels import resolve
from tvm_flash.verify.appended import append_problems
from tvm_flash.verify.trial import Candidate, judge

APPEND = torch.ops.tvm_flash.append.default
# dtype, head_dim, head_dim_v: whole vectors, parts of them, an odd column.
WIDTHS = [
    ("float32", 64, 64), ("bfloat16", 128, 128),
    *(pytest.param(width, marks=pytest.mark.sweep) for width in (
        ("float16", 40, 24), ("bfloat16", 9, 33), ("float32", 15, 8),
    )),
]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("problem", append_problems(), ids=lambda problem: problem.name)
def test_kernels_append_what_fits_and_nothing_else(width, problem):
    dtype, head_dim, head_dim_v = width
    widths = {"head_dim": head_dim, "head_dim_v": head_dim_v}
    spec = AttentionSpec(dtype=dtype, sequences="paged", **widths)
    kernel = resolve(spec, "append")

    def run(call, written):
        kernel(*call.values())
        return []

    candidate = Candidate("append", spec, "append", (), (1, 1), {}, run)
    outcome = judge(candidate, problem)
    assert outcome.ok, outcome.failure


def given(seed=0, dtype=torch.float32):
    """An append of 2 and 3 rows, of seven, behind 3 and 0 positions of pages of 4 rows."""
    k, v = (random(7, KV_HEADS, DIM, seed=seed + n, dtype=dtype) for n in range(2))
    pages = [torch.zeros(6, 4, KV_HEADS, DIM, dtype=dtype) for _ in range(2)]
    table = int32(4, 1, 0, 3).view(2, 2)
    places = Places(int32(0, 3), int32(2, 6), int32(3, 0), int32(5, 3), table)
    return k, v, *pages, places, int32(3, 0), Angles.of(COS, SIN, False, dtype)


def as_operator(k, v, k_pages, v_pages, places, offsets, angles):
    """The arguments of ``append`` in the operator's order."""
    return k, v, offsets, k_pages, v_pages, *places, *angles


def test_the_operator_and_its_caller_do_the_same():
    ours, theirs = given(), given()
    append(*ours)
    assert APPEND(*as_operator(*theirs)) is None
    for n in (2, 3):
        assert torch.equal(ours[n], theirs[n]) and ours[n].any()
    assert torch.equal(ours[3][4, 3], ours[1][0]) and torch.equal(ours[3][1, 0], ours[1][1])


def test_opcheck():
    torch.library.opcheck(APPEND, as_operator(*given()))


def test_the_order_of_the_kernels_arguments():
    """``append_ops._run`` calls it by place."""
    spec = AttentionSpec(dtype="float32", head_dim=DIM, sequences="paged")
    found = [a.name for a in arguments(spec, "append")]
    assert found == [
        "k_new", "v_new", "cos", "sin", "rounded_cos", "rounded_sin", "rotary_seqlens", "k_pages",
        "v_pages", "starts_q", "ends_q", "starts_k", "ends_k", "page_table", "interleaved",
    ]  # fmt: skip
    assert names(TABLES["paged"]["append"], "updated") == ("k_pages", "v_pages")


def test_autograd_sees_that_pages_were_written():
    call = given()
    x = torch.ones(1, requires_grad=True)
    product = (call[2] * x).sum()
    append(*call)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_traced_calls_append_too():
    ours, theirs = given(), given()
    graph = make_fx(lambda *x: append(*x[:4], *ours[4:]))(*ours[:4])
    assert APPEND in [node.target for node in graph.graph.nodes]
    append(*ours)
    graph(*theirs[:4])
    assert torch.equal(ours[2], theirs[2]) and torch.equal(ours[3], theirs[3])


BAD = {
    "angles": {"cos": torch.ones(9, DIM // 2 + 1), "sin": torch.ones(9, DIM // 2 + 1)},
    "cos and sin": {"cos": torch.ones(9, 3)},
    "pages": {"v_pages": torch.zeros(5, 4, KV_HEADS, DIM)},
    "heads": {"k_pages": torch.zeros(6, 4, KV_HEADS + 1, DIM)},
    "interleaved": {"interleaved": 2},
}


@pytest.mark.parametrize("name", BAD)
def test_the_kernel_refuses_what_does_not_fit(name):
    call = dict(zip((p.name for p in APPEND._schema.arguments), as_operator(*given()), strict=True))
    with pytest.raises(Exception, match="append"):
        APPEND(**{**call, **BAD[name]})


def strided(x, how: str):
    """``x`` (.., Hk, D) with the same values: columns apart, or in part of a wider tensor."""
    if how == "columns apart":
        return x.repeat_interleave(2, -1)[..., ::2]
    return torch.cat((x, x, x), -2)[..., x.shape[-2] : 2 * x.shape[-2], :]


@pytest.mark.parametrize("how", ["columns apart", "part of a wider one"])
def test_views(how):
    """A cache whose columns lie apart is copied for the kernel, and back."""
    plain, viewed = Held(16), Held(16)
    viewed.k, viewed.v = (strided(x, how) for x in (viewed.k, viewed.v))
    rows = {name: random(B, 3, KV_HEADS, DIM, seed=n) for n, name in enumerate("kv")}
    options = {"rotary_cos": COS, "rotary_sin": SIN}
    want = append_to(plain, **rows, **options)
    got = append_to(viewed, **{name: strided(x, how) for name, x in rows.items()}, **options)
    for one, other in zip((*got, viewed.k, viewed.v), (*want, plain.k, plain.v), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("how", ["rows", 16])
def test_new_rows_that_are_rows_of_the_cache(how):
    """Those given are appended, though some are written before they would be read."""
    held, apart = Held(how), Held(how)
    seqlens, table = int32(37, 0, 64), held.keywords.get("block_table")
    first = 0 if table is None else int(table[0, 2])  # the page with the positions 32 .. 47
    start = 34 if table is None else 2
    rows = [x[first : first + 1, start : start + 6].expand(B, -1, -1, -1) for x in (held.k, held.v)]
    copies = [x.clone() for x in rows]
    append_to(held, k=rows[0], v=rows[1], cache_seqlens=seqlens)
    append_to(apart, k=copies[0], v=copies[1], cache_seqlens=seqlens)
    for one, other in ((held.k, apart.k), (held.v, apart.v)):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_under_autocast_the_cache_gets_the_rows_as_they_are():
    held, rows = Held(16), random(B, 1, KV_HEADS, DIM, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = append_to(held, k=rows)
    assert out.dtype == torch.bfloat16 and torch.equal(held.rows(0)[37], rows[0, 0])
    want, _ = append_to(Held(16), k=rows)
    torch.testing.assert_close(out.float(), want, atol=3e-2, rtol=3e-2)


def test_numbers_that_change_in_place_are_seen():
    """Serving loops fill one tensor; what was made of its last numbers must not be used."""
    held, seqlens = Held("rows"), SEQLENS.clone()
    for length in (37, 40, 38):
        seqlens[0] = length
        rows = random(B, 1, KV_HEADS, DIM, seed=length)
        append_to(held, cache_seqlens=seqlens, k=rows, v=rows)
        assert torch.equal(held.rows(0)[length], rows[0, 0])


def test_layers_may_differ_in_their_pages():
    first, other = Held("rows"), Held("rows")
    other.k, other.v = (torch.cat((x, x)) for x in (other.k, other.v))
    for held in (first, other, first):
        rows = random(B, 1, KV_HEADS, DIM, seed=4)
        append_to(held, k=rows, v=rows)
        assert torch.equal(held.rows(2)[64], rows[2, 0])


def test_without_a_kernel_apply_rotary_computes_by_torch(monkeypatch):
    x = random(2, 5, 3, DIM)

    def none(*_):
        raise UnsupportedSpec(["no loaded library has this kernel"])

    want = apply_rotary(x, COS, SIN)
    monkeypatch.setattr("tvm_flash.frontend.append_ops.resolve", none)
    torch.testing.assert_close(apply_rotary(x, COS, SIN), want)


def test_a_width_that_kernels_are_not_made_for():
    """Attention refuses it; rotating is torch's then."""
    x, half = random(1, 3, 2, 6), COS[:, :2]
    turned = apply_rotary(x, half, SIN[:, :2])
    assert torch.equal(turned[..., 4:], x[..., 4:]) and not torch.equal(turned, x)
    with pytest.raises(ValueError, match="head_dim=6"):
        flash_attn_with_kvcache(x, x[:, :, :1].clone(), x[:, :, :1].clone(), cache_seqlens=1)


def test_in_inference_mode_and_outside_of_it():
    """What is kept of a call in one mode is not used in the other."""
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            held, rows = Held("rows"), random(B, 1, KV_HEADS, DIM, seed=5)
            append_to(held, k=rows, v=rows, rotary_cos=COS, rotary_sin=SIN)
            assert torch.equal(held.rows(0, held.v)[37], rows[0, 0])
