"""Sequences of any lengths in one tensor: each is attended to as if it were alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_problems import (
    DIM,
    HEADS,
    KV_HEADS,
    assert_rule,
    cumulative,
    int32,
    packed_entries,
    packed_inputs,
    random,
)

import tvm_flash
from tvm_flash import attention, flash_attn_varlen_func
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import allowed_error, largest_error

# None, one, less and more than a tile, a multiple of it, a row beyond; more queries than keys.
RESIDUES = [(0, 0), (1, 1), (37, 37), (64, 65), (0, 5), (7, 0), (97, 150), (1, 130), (63, 31)]
LISTS = {
    "residues": RESIDUES,
    "one": [(70, 70)],
    "one key": [(5, 1), (33, 1), (1, 1)],
    "empty ends": [(0, 3), (40, 40), (3, 0)],
}
POSITIONS = torch.linspace(-1, 1, 16 * 160).reshape(16, 160)


def by_sequence(score, b, h, q_idx, k_idx):
    return score * (1 + 0.1 * b) + POSITIONS[b, k_idx] - 0.01 * (q_idx - k_idx).abs()


def striped(b, h, q_idx, k_idx):
    return (q_idx + k_idx + b) % 3 != 0


VARIANTS = {
    "causal": {"causal": True},
    "all": {
        "causal": True, "softcap": 3.0, "softmax_scale": 0.3,
        "alibi_slopes": torch.rand(9, HEADS, generator=torch.Generator().manual_seed(5)),
    },
    "functions": {"window_size": (70, 25), "score_mod": by_sequence, "mask_mod": striped},
}  # fmt: skip


def lengths_of(lengths, **more):
    """The keywords of ``attention`` for sequences of ``lengths``."""
    queries, keys = zip(*lengths, strict=True)
    return {"cu_seqlens_q": cumulative(queries), "cu_seqlens_k": cumulative(keys), **more}


def packed(lengths, **more):
    """``attention`` of packed tensors, with lse."""
    return lambda *x, **options: attention(
        *x, return_lse=True, **lengths_of(lengths), **more, **options
    )


def values_and_gradients(function, inputs, **variant):
    """out, lse and all gradients of ``function`` of leaves."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    out, lse = function(*leaves, **variant)
    finite = torch.where(lse == -torch.inf, 0.0, lse)
    total = (out * inputs.dout).sum() + (finite * inputs.dlse).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(total, leaves)]


def assert_equal(found, wanted):
    for got, want in zip(found, wanted, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "all"),
        (torch.bfloat16, "causal"),
        (torch.float32, "functions"),
        pytest.param(torch.float16, "causal", marks=pytest.mark.sweep),
        pytest.param(torch.float16, "all", marks=pytest.mark.sweep),
        pytest.param(torch.bfloat16, "all", marks=pytest.mark.sweep),
        pytest.param(torch.bfloat16, "functions", marks=pytest.mark.sweep),
        pytest.param(torch.float16, "functions", marks=pytest.mark.sweep),
    ],
)
def test_the_error_rule(dtype, name):
    assert_rule(packed(RESIDUES), packed_inputs(RESIDUES, dtype, **VARIANTS[name]), RESIDUES)


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_lengths(name):
    lengths = LISTS[name]
    assert_rule(packed(lengths), packed_inputs(lengths, causal=True), lengths)


LENGTH = st.one_of(st.integers(0, 3), st.integers(60, 70), st.integers(0, 140))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(lengths=st.lists(st.tuples(LENGTH, LENGTH), min_size=1, max_size=6))
def test_any_lengths(lengths):
    lengths = [*lengths, (40, 40)]  # a kernel for longer ones, the same in each example
    assert_rule(packed(lengths), packed_inputs(lengths, causal=True), lengths)


def test_a_thousand_sequences():
    """Forward against padded rows in float64, and gradients that rows of padding do not reach."""
    lengths = torch.randint(0, 48, (1000,), generator=torch.Generator().manual_seed(1)).tolist()
    inputs = packed_inputs([(n, n) for n in lengths])
    got, _ = packed([(n, n) for n in lengths])(*inputs[:3], causal=True)

    def padded(x):
        return torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True)

    def exact(upcast):
        q, k, v = map(padded, inputs[:3])
        out, _ = attention_reference(q, k, v, causal=True, alignment="top_left", upcast=upcast)
        return torch.cat([x[:n] for x, n in zip(out, lengths, strict=True)])

    want = exact(torch.float64)
    assert largest_error(got, want) <= allowed_error("out", "float32", want, exact(None))


NOTHING = {
    "no sequence": ([], 0),
    "rows of no sequence": ([], 7),
    "sequences of nothing": ([(0, 0), (0, 0)], 0),
    "no queries": ([(0, 5), (0, 2)], 0),
    "no keys": ([(5, 0), (2, 0)], 0),
    "rows of empty sequences": ([(0, 0)], 3),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_do(name):
    lengths, rest = NOTHING[name]
    queries, keys = zip(*lengths, strict=True) if lengths else ((), ())
    q = random(sum(queries) + rest, HEADS, DIM).requires_grad_()
    k, v = (random(sum(keys) + rest, KV_HEADS, DIM, seed=n).requires_grad_() for n in (1, 2))
    given_lengths = {"cu_seqlens_q": cumulative(queries), "cu_seqlens_k": cumulative(keys)}
    out, lse = attention(q, k, v, causal=True, return_lse=True, **given_lengths)
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(lse, torch.full((HEADS, len(q)), -torch.inf))
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert_equal(grads, [torch.zeros_like(x) for x in (q, k, v)])


@pytest.fixture
def poisoned():
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
def test_rows_of_no_sequence_are_neither_read_nor_left_unwritten():
    """Past seqused and past the last sequence: NaN there, zeros in results and gradients."""
    lengths, used = [(40, 50), (3, 9), (20, 20)], [(33, 41), (0, 9), (20, 0)]
    inputs = packed_inputs([*lengths, (6, 6)])
    dead = [torch.ones(len(x), dtype=torch.bool) for x in inputs[:2]]
    for rows, counts, uses in zip(
        dead, zip(*lengths, strict=True), zip(*used, strict=True), strict=True
    ):
        for start, n in zip(cumulative(counts).tolist()[:-1], uses, strict=True):
            rows[start : start + n] = False
    q, k, v, dout = (
        x.masked_fill(rows[:, None, None], torch.nan)
        for x, rows in zip(inputs[:4], (dead[0], dead[1], dead[1], dead[0]), strict=True)
    )
    inputs = inputs._replace(q=q, k=k, v=v, dout=dout)
    seqused = (int32(*x) for x in zip(*used, strict=True))
    options = dict(zip(("seqused_q", "seqused_k"), seqused, strict=True))
    leaves = [x.requires_grad_() for x in inputs[:3]]
    out, lse = packed(lengths, **options)(*leaves, causal=True)
    grads = torch.autograd.grad(out, leaves, dout)
    for x, rows in zip((out, *grads), (dead[0], dead[0], dead[1], dead[1]), strict=True):
        assert torch.equal(x[rows], torch.zeros_like(x[rows]))
        assert x.isfinite().all()
    assert (lse[:, dead[0]] == -torch.inf).all() and not lse.isnan().any()
    alive = [
        x.detach()[~rows] for x, rows in zip((q, k, v), (dead[0], dead[1], dead[1]), strict=True)
    ]
    want, _ = packed_entries(used).alone(*(x.double() for x in alive), causal=True)
    torch.testing.assert_close(out[~dead[0]].double(), want, atol=1e-5, rtol=1e-5)


def test_views_of_one_tensor_and_other_strides_give_the_same_bits():
    lengths, (q, k, v, *_), cu = (
        [(40, 40), (0, 0), (9, 9)],
        packed_inputs([(49, 49)]),
        int32(0, 40, 40, 49),
    )
    want = attention(q, k, v, causal=True, **lengths_of(lengths))
    qkv = torch.cat((q, k, v), 1)
    wide = [torch.stack((x, -x), -1)[..., 0] for x in (q, k, v)]
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    every_other = torch.stack((cu, -cu), 1)[:, 0]
    for tensors in (qkv.split((HEADS, KV_HEADS, KV_HEADS), 1), wide, heads_first):
        got = attention(*tensors, causal=True, cu_seqlens_q=every_other, cu_seqlens_k=every_other)
        assert torch.equal(got, want)


def test_packed_functions_read_their_parts_in_place():
    qkv, cu = random(49, 3, HEADS, DIM), int32(0, 40, 49)
    q, k, v = qkv.unbind(1)
    want = flash_attn_varlen_func(q, k, v, cu, cu, 40, 40, 0.0, None, True)
    packed3 = tvm_flash.flash_attn_varlen_qkvpacked_func(qkv, cu, 40, causal=True)
    packed2 = tvm_flash.flash_attn_varlen_kvpacked_func(q, qkv[:, 1:], cu, cu, 40, 40, causal=True)
    torchs = tvm_flash.varlen_attention(q, k, v, cu, cu, 40, 40, window_size=(-1, 0))
    direct = attention(q, k, v, causal=True, cu_seqlens_q=cu, cu_seqlens_k=cu)
    assert_equal([packed3, packed2, direct], [want] * 3)
    torch.testing.assert_close(torchs, want, atol=1e-6, rtol=1e-6)


def test_what_is_returned_beside_out():
    q, cu = random(49, HEADS, DIM), int32(0, 40, 49)
    out, lse, nothing = flash_attn_varlen_func(
        q, q, q, cu, cu, 40, torch.tensor(40), causal=True, return_attn_probs=True
    )
    aux = type("AuxRequest", (), {"lse": True})()
    again, lse_again = tvm_flash.varlen_attention(
        q, q, q, cu, cu, 40, 40, window_size=(-1, 0), return_aux=aux
    )
    assert nothing is None and out.shape == again.shape == q.shape
    assert lse.shape == (HEADS, 49) and lse.dtype == torch.float32
    torch.testing.assert_close(lse, lse_again, atol=1e-6, rtol=1e-6)


def test_equal_inputs_give_equal_bits():
    inputs = packed_inputs(RESIDUES)
    runs = [
        values_and_gradients(packed(RESIDUES, deterministic=True), inputs, causal=True)
        for _ in range(3)
    ]
    for run in runs[1:]:
        assert_equal(run, runs[0])


def test_top_left_alignment_is_of_each_sequence():
    inputs = packed_inputs(RESIDUES, causal=True, alignment="top_left")
    assert_rule(packed(RESIDUES), inputs, RESIDUES, backward=False)


def test_pages_behind_flash_attn_varlen_func():
    """The same keys in pages, in any order, by either way of giving their number."""
    lengths, page = [(20, 40), (3, 0), (33, 33)], 16
    q, k, v, *_ = packed_inputs(lengths)
    queries, keys = zip(*lengths, strict=True)
    laid = packed_entries(lengths).in_pages(k, v, page, left=(0, 0, 0))
    pools, table = (laid["k"], laid["v"]), laid["page_table"]
    cu_q, cu_k = cumulative(queries), cumulative(keys)
    given_lengths = (cu_q, cu_k, max(queries), max(keys))
    got = flash_attn_varlen_func(q, *pools, *given_lengths, causal=True, block_table=table)
    used = tvm_flash.varlen_attention(
        q, *pools, cu_q, None, 33, 40, window_size=(-1, 0), enable_gqa=True,
        seqused_k=int32(*keys), block_table=table,
    )  # fmt: skip
    want, _ = packed_entries(lengths).alone(q.double(), k.double(), v.double(), causal=True)
    for out in (got, used):
        torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_nested_tensors(layout):
    lengths = [(40, 40), (1, 1), (20, 20)]
    inputs = packed_inputs(lengths)

    def nested(x):
        x = torch.nested.nested_tensor_from_jagged(x, cumulative([40, 1, 20]).long())
        return x.transpose(1, 2) if layout == "bhsd" else x

    def attend(*leaves, **options):
        out, lse = attention(*map(nested, leaves), layout=layout, return_lse=True, **options)
        assert out.is_nested and out.shape[0] == 3
        out = out.transpose(1, 2) if layout == "bhsd" else out
        return out.values(), lse

    found, wanted = (
        values_and_gradients(f, inputs, causal=True) for f in (attend, packed(lengths))
    )
    assert_equal(found, wanted)


def test_nested_leaves_get_nested_gradients():
    inputs = packed_inputs([(40, 60), (30, 5)])
    rows = [torch.tensor(x) for x in ([0, 40, 70], [0, 60, 65], [0, 60, 65])]
    leaves = [
        torch.nested.nested_tensor_from_jagged(x, offsets).requires_grad_()
        for x, offsets in zip(inputs[:3], rows, strict=True)
    ]
    attention(*leaves, causal=True).values().backward(inputs.dout)
    found = [x.grad.values() for x in leaves]
    zero = inputs._replace(dlse=torch.zeros_like(inputs.dlse))
    want = values_and_gradients(packed([(40, 60), (30, 5)]), zero, causal=True)[2:]
    assert_equal(found, want)


def test_lengths_in_a_buffer_that_an_array_fills():
    """As serving loops have them: nobody tells torch that they changed."""
    inputs, arrays = packed_inputs([(70, 70)]), [int32(0, 40, 70).numpy(), int32(40, 30).numpy()]
    cu, used = map(torch.from_numpy, arrays)
    options = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "seqused_k": used, "causal": True}
    for numbers in (([0, 40, 70], [40, 30]), ([0, 40, 70], [10, 5]), ([0, 35, 50], [33, 2])):
        for array, new in zip(arrays, numbers, strict=True):
            array[:] = new
        want = attention(*inputs[:3], **{**options, "seqused_k": used.clone()})
        got = attention(*inputs[:3], **options)
        assert torch.equal(got, want) and not got[cu[-1] :].any()
    arrays[0][:] = [0, 40, 99]
    with pytest.raises(ValueError, match="cu_seqlens_q ends with 99, but there are 70 rows"):
        attention(*inputs[:3], **options)


def test_lengths_with_strides(monkeypatch):
    """As columns of a table are; read on CPUs, and where nobody reads them."""
    inputs, cu = packed_inputs([(40, 40), (30, 30)]), int32(0, 40, 70)
    column = torch.stack([cu, cu + 1], 1)[:, 0]
    want = attention(*inputs[:3], cu_seqlens_q=cu, cu_seqlens_k=cu)
    options = {"cu_seqlens_q": column, "cu_seqlens_k": column}
    assert torch.equal(attention(*inputs[:3], **options), want)
    monkeypatch.setattr("tvm_flash.frontend.spans.is_readable", lambda x: False)
    monkeypatch.setattr("tvm_flash.frontend.packed_rows.is_readable", lambda x: False)
    assert torch.equal(attention(*inputs[:3], **options, max_seqlen_k=40), want)


def test_gradients_after_the_same_lengths_in_inference_mode():
    cu, used = int32(0, 40, 70), int32(40, 20)
    q, k, v = (x.requires_grad_() for x in packed_inputs([(70, 70)])[:3])
    options = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "seqused_k": used, "causal": True}
    with torch.inference_mode():
        want = attention(q, k, v, **options)
    out = attention(q, k, v, **options)
    assert torch.equal(out, want)
    out.sum().backward()


def test_autocast():
    inputs, cu = packed_inputs([(40, 40), (30, 30)]), int32(0, 40, 70)
    want = attention(
        *(x.bfloat16() for x in inputs[:3]), causal=True, cu_seqlens_q=cu, cu_seqlens_k=cu
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = flash_attn_varlen_func(*inputs[:3], cu, cu, 40, 40, causal=True)
    assert got.dtype == torch.bfloat16 and torch.equal(got, want)
