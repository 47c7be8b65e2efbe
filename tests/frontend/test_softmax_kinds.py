"""``attention(sink=, softmax=)`` by every way of calling; accuracy is held by the cases."""

import pytest
import torch
from torch.testing import assert_close

from tvm_flash import attention, flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from tvm_flash.frontend.ops import spec_name
from tvm_flash.problem.spec import SOFTMAXES, AttentionSpec
from tvm_flash.reference import attention_reference

ROWS, KEYS, HEADS, KV_HEADS, DIM = 20, 30, 4, 2, 16
SINK = torch.tensor([-1.0, 0.5, 2.0, 40.0])


def qkv(rows=ROWS, keys=KEYS, batch=2, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = (rows, HEADS), (keys, KV_HEADS), (keys, KV_HEADS)
    return [torch.randn(batch, *shape, DIM).to(dtype).requires_grad_() for shape in shapes]


def test_names_of_kinds():
    from tvm_flash.definition.rows import KINDS

    assert tuple(KINDS) == SOFTMAXES


def test_a_sink_scales_plain_attention():
    """exp(sink) in the denominator: out * sigmoid(lse - sink), lse of both."""
    q, k, v = qkv()
    plain, lse = attention(q, k, v, causal=True, return_lse=True)
    out, with_sink = attention(q, k, v, causal=True, sink=SINK, return_lse=True)
    share = torch.sigmoid(lse - SINK[:, None]).transpose(1, 2)[..., None]
    assert_close(out, plain * share, atol=1e-6, rtol=1e-5)
    assert_close(with_sink, torch.logaddexp(lse, SINK[:, None].expand_as(lse)))
    one, lse_of_one = attention(q, k, v, softmax="softmax1", return_lse=True)
    zero, lse_of_zero = attention(q, k, v, sink=torch.zeros(HEADS), return_lse=True)
    assert_close(one, zero)
    assert_close(lse_of_one, lse_of_zero)
    none = attention(q, k, v, causal=True, sink=torch.full((HEADS,), -torch.inf))
    assert_close(none, plain)
    infinite = attention(q, k, v, sink=torch.full((HEADS,), torch.inf))
    assert infinite.isnan().all(), "as torch.softmax of a row with a score of +inf"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_in_the_dtype_of_the_sink(dtype):
    sink = SINK.clone().to(dtype).requires_grad_()
    q, k, v = qkv(dtype=dtype)
    attention(q, k, v, causal=True, sink=sink).sum().backward()
    exact = SINK.double().requires_grad_()
    leaves = [x.detach().double() for x in (q, k, v)]
    attention_reference(*leaves, causal=True, sink=exact)[0].sum().backward()
    assert sink.grad.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert_close(sink.grad.double(), exact.grad, atol=tolerance, rtol=tolerance)


def test_only_the_sink_wants_a_gradient():
    sink = SINK.clone().requires_grad_()
    q, k, v = (x.detach() for x in qkv())
    attention(q, k, v, sink=sink).sum().backward()
    assert sink.grad.isfinite().all() and sink.grad.abs().max() > 0


def packed(x, lengths):
    """The first rows of each entry, one behind the other, with three rows of no entry after."""
    rows = torch.cat([one[:n] for one, n in zip(x, lengths, strict=True)])
    return torch.cat([rows, torch.full_like(rows[:3], 7.0)]).detach().requires_grad_()


def cumulative(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@pytest.mark.parametrize(
    "options",
    [
        {"sink": SINK},
        {"softmax": "sigmoid"},
        pytest.param({"softmax": "softmax1"}, marks=pytest.mark.sweep),
    ],
)
def test_packed_sequences_are_those_alone(options):
    q, k, v = qkv()
    rows, keys = (ROWS, 13), (KEYS, 0)  # the second sees no key
    parts = packed(q, rows), packed(k, keys), packed(v, keys)
    sink = options.get("sink")
    own = {**options} if sink is None else {"sink": sink.clone().requires_grad_()}
    found = attention(
        *parts, cu_seqlens_q=cumulative(rows), cu_seqlens_k=cumulative(keys), causal=True, **own
    )
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    other = {**options} if sink is None else {"sink": sink.clone().requires_grad_()}
    alone = [
        attention(
            leaves[0][b : b + 1, :n], *(x[b : b + 1, :m] for x in leaves[1:]), causal=True, **other
        )[0]
        for b, (n, m) in enumerate(zip(rows, keys, strict=True))
    ]
    expected = torch.cat(alone)
    assert_close(found[: sum(rows)], expected, atol=1e-5, rtol=1e-5)
    assert (found[sum(rows) :] == 0).all()
    upstream = torch.randn(found.shape)
    wanted = [*leaves, *([other["sink"]] if sink is not None else [])]
    given = [*parts, *([own["sink"]] if sink is not None else [])]
    exact = torch.autograd.grad(expected, wanted, upstream[: sum(rows)])
    got = torch.autograd.grad(found, given, upstream)
    for name, x, y, lengths in zip(("q", "k", "v"), got, exact, (rows, keys, keys), strict=False):
        y = torch.cat([one[:n] for one, n in zip(y, lengths, strict=True)])
        assert_close(x[: len(y)], y, atol=1e-4, rtol=1e-4, msg=name)
    if sink is not None:
        assert_close(got[3], exact[3], atol=1e-4, rtol=1e-4)


def test_no_keys_at_all():
    q, k, v = qkv(keys=0)
    sink = SINK.clone().requires_grad_()
    out, lse = attention(q, k, v, sink=sink, return_lse=True)
    assert (out == 0).all() and torch.equal(lse, SINK[:, None].expand_as(lse))
    assert torch.equal(torch.autograd.grad(lse.sum(), sink)[0], torch.full((HEADS,), 2.0 * ROWS))
    _, lse = attention(q, k, v, softmax="softmax1", return_lse=True)
    assert (lse == 0).all()
    rows, cu = q.detach().flatten(0, 1), cumulative([ROWS, ROWS])
    nothing = k.detach().flatten(0, 1)
    out, lse = attention(
        rows, nothing, nothing, cu_seqlens_q=cu, cu_seqlens_k=cu * 0, sink=sink, return_lse=True
    )
    assert (out == 0).all()
    assert_close(lse, SINK[:, None].expand_as(lse))
    assert_close(torch.autograd.grad(lse.sum(), sink)[0], torch.full((HEADS,), 2.0 * ROWS))


@pytest.mark.parametrize("pages", [0, 3])
@pytest.mark.parametrize("columns", [0, 1])
def test_no_keys_in_pages(pages, columns):
    """A table without columns, a cache without pages: the rows have what a sink gives them."""
    q, k, _ = (x.detach().flatten(0, 1)[:8] for x in qkv())
    cache = k[: 2 * pages].view(pages, 2, KV_HEADS, DIM)
    lengths = {
        "cu_seqlens_q": cumulative([2, 4]),
        "seqused_k": torch.zeros(2, dtype=torch.int32),
        "block_table": torch.zeros(2, columns, dtype=torch.int32),
    }
    for options, want in (
        ({}, torch.full((HEADS,), -torch.inf)),
        ({"sink": SINK}, SINK),
        ({"softmax": "softmax1"}, torch.zeros(HEADS)),
    ):
        out, lse = attention(q, cache, cache, return_lse=True, **lengths, **options)
        assert (out == 0).all() and (lse[:, 6:] == -torch.inf).all()
        assert_close(lse[:, :6], want[:, None].expand(-1, 6))


@pytest.mark.parametrize("name", ["s_aux", "sinks", "learnable_sink"])
def test_names_that_others_have(name):
    q, k, v = (x.detach() for x in qkv())
    expected = attention(q, k, v, causal=True, sink=SINK)
    assert torch.equal(flash_attn_func(q, k, v, causal=True, **{name: SINK}), expected)
    rows, keys = cumulative([ROWS, ROWS]), cumulative([KEYS, KEYS])
    flat = (x.flatten(0, 1) for x in (q, k, v))
    found = flash_attn_varlen_func(*flat, rows, keys, ROWS, KEYS, causal=True, **{name: SINK})
    assert_close(found, expected.flatten(0, 1), atol=1e-6, rtol=1e-5)
    found = flash_attn_with_kvcache(q, k, v, causal=True, **{name: SINK})
    assert_close(found, expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(TypeError, match="are one thing"):
        flash_attn_func(q, k, v, s_aux=SINK, sinks=SINK)


def test_compiled_mapped_and_checked():
    q, k, v = qkv()
    sink = SINK.clone().requires_grad_()
    compiled = torch.compile(lambda *x: attention(*x[:3], causal=True, sink=x[3]), fullgraph=True)
    outs = [
        run(q, k, v, sink)
        for run in (compiled, lambda *x: attention(*x[:3], causal=True, sink=x[3]))
    ]
    assert torch.equal(*outs)
    grads = [torch.autograd.grad(out.sum(), sink)[0] for out in outs]
    assert_close(*grads)
    plain = [x.detach() for x in (q, k, v)]
    sinks = torch.stack([SINK, SINK - 1])
    mapped = torch.vmap(lambda one: attention(*plain, sink=one))(sinks)
    assert_close(mapped, torch.stack([attention(*plain, sink=one) for one in sinks]))
    name = spec_name(AttentionSpec(dtype="float32", head_dim=DIM, softmax="sink"))
    operator = torch.ops.tvm_flash.attention_forward.default
    torch.library.opcheck(operator, (q, k, v, [], name, 0.25, sink))
    with pytest.raises(ValueError, match="needs sink"):
        operator(*plain, [], name, 0.25)
    with pytest.raises(ValueError, match="takes no sink"):
        operator(*plain, [], spec_name(AttentionSpec(dtype="float32", head_dim=DIM)), 0.25, SINK)


@pytest.mark.parametrize(
    "options, error, told",
    [
        ({"sink": torch.zeros(3)}, ValueError, r"\(num_heads,\) = \(4,\)"),
        ({"sink": torch.zeros(HEADS, dtype=torch.int32)}, TypeError, "floating point"),
        ({"sink": 1.0}, TypeError, "must be a tensor, not float"),
        ({"sink": SINK, "softmax": "softmax1"}, ValueError, "sink is of softmax='softmax'"),
        ({"softmax": "sink"}, ValueError, "for a sink give sink"),
        ({"softmax": "entmax"}, ValueError, "must be one of softmax, softmax1, sigmoid"),
        ({"softmax": "sigmoid", "return_lse": True}, ValueError, "has no lse"),
    ],
)
def test_bad_input(options, error, told):
    with pytest.raises(error, match=told):
        attention(*qkv(), **options)
