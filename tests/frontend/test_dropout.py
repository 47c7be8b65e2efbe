"""``attention(dropout_p=)`` by every way of calling; accuracy is held by the cases."""

import pytest
import torch
from dropout_bits import assert_same, expected, found
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import tvm_flash
from tvm_flash import attention, flash_attn_func, flash_attn_varlen_func
from tvm_flash.cases import Case, make_inputs
from tvm_flash.problem.dropout import factor_of
from tvm_flash.reference import attention_reference, kept_weights, weights_reference
from tvm_flash.verify.rule import judged

P, RNG = 0.25, torch.tensor([123, -456])
ROWS, KEYS, HEADS, KV_HEADS, DIM = 37, 50, 4, 2, 16


def qkv(batch=2, rows=ROWS, keys=KEYS):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, HEADS), (keys, KV_HEADS), (keys, KV_HEADS)
    drawn = [torch.randn(batch, *shape, DIM, generator=generator) for shape in shapes]
    return [x.requires_grad_() for x in drawn]


def with_gradients(call, inputs):
    """What ``call(*inputs)`` gives, and the gradients of its squares."""
    out = call(*inputs)
    return out.detach(), *torch.autograd.grad(out.square().sum(), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits(dtype):
    """The forward, dV and dQ drop the same weights, on tiles of any size."""
    assert_same(found(dtype), expected())


SHAPES = [
    {"seqlen_q": 1, "seqlen_k": 300}, {"seqlen_q": 200, "seqlen_k": 17}, {"seqlen_k": 0},
    {"seqlen_q": 15, "seqlen_k": 16, "heads": 6, "kv_heads": 3}, {"view": "bhsd", "batch": 3},
    {"seqlen_q": 90, "seqlen_k": 40, "causal": True}, {"softmax": "sigmoid"},
]  # fmt: skip
MORE_SHAPES = [
    {"softmax": "softmax1", "dropout_p": 0.9}, {"softmax": "sink", "dropout_p": 1e-6},
    {"head_dim": 40, "head_dim_v": 24, "mask_mod": "some_rows"},
]  # fmt: skip
SWEEP = [pytest.param(fields, marks=pytest.mark.sweep) for fields in MORE_SHAPES]


@pytest.mark.parametrize("fields", [*SHAPES, *SWEEP], ids=str)
def test_accuracy(fields):
    """Few and many queries, which other kernels serve; rows without keys; every kind of softmax."""
    variant = {name: fields[name] for name in ("causal", "dropout_p") if name in fields}
    sizes = {name: x for name, x in fields.items() if name not in variant}
    case = Case("dropout", head_dim=sizes.pop("head_dim", 16), **sizes)
    case.variant.update({"dropout_p": P, **variant})
    for deviation in judged(attention, make_inputs(case)):
        assert deviation.ok, str(deviation)


def test_seeds():
    """torch's generator says which weights are dropped, and another call drops others."""
    q, k, v = qkv()
    call = lambda: attention(q, k, v, dropout_p=P)  # noqa: E731
    torch.manual_seed(1)
    first, second = call(), call()
    torch.manual_seed(1)
    assert torch.equal(call(), first) and not torch.equal(first, second)
    given = attention(q, k, v, dropout_p=P, rng=RNG)
    assert torch.equal(given, attention(q, k, v, dropout_p=P, rng=RNG.clone()))
    before = torch.get_rng_state()
    assert torch.equal(attention(q, k, v, dropout_p=0), attention(q, k, v))
    assert torch.equal(torch.get_rng_state(), before)


def test_checkpointing_drops_the_same_again():
    inputs, call = qkv(), lambda *x: attention(*x, dropout_p=P, causal=True)
    again = lambda *x: checkpoint(call, *x, use_reentrant=False)  # noqa: E731
    results = []
    for run in (call, again):
        torch.manual_seed(2)
        results.append(with_gradients(run, inputs))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_lse_is_that_of_all_keys():
    q, k, v = qkv()
    out, lse = attention(q, k, v, dropout_p=P, return_lse=True)
    plain, of_all = attention(q, k, v, return_lse=True)
    assert torch.equal(lse, of_all) and not torch.equal(out, plain)


def test_compiled():
    """Drawn inside and given from outside, with gradients, at new lengths."""
    torch._dynamo.reset()
    inside = torch.compile(
        lambda *x: attention(*x, dropout_p=P), fullgraph=True, backend="aot_eager"
    )
    outside = torch.compile(
        lambda q, k, v, rng: attention(q, k, v, dropout_p=P, rng=rng), fullgraph=True,
        dynamic=True, backend="aot_eager",
    )  # fmt: skip
    for rows in (20, 33):
        inputs = qkv(rows=rows)
        want = with_gradients(lambda *x: attention(*x, dropout_p=P, rng=RNG), inputs)
        got = with_gradients(lambda *x: outside(*x, RNG), inputs)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    torch.manual_seed(3)
    got = with_gradients(inside, inputs)
    torch.manual_seed(3)
    want = with_gradients(lambda *x: attention(*x, dropout_p=P), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_mapped():
    """torch.vmap: each entry is a call of its own, with the seeds that it is given."""
    q, k, v = (x.detach() for x in qkv())
    seeds = torch.tensor([[1, 2], [3, 4]])
    call = lambda q, rng: attention(q, k, v, dropout_p=P, rng=rng)  # noqa: E731
    got = torch.vmap(call)(torch.stack([q, q]), seeds)
    assert torch.equal(got, torch.stack([call(q, one) for one in seeds]))


def packed_parts(x, lengths):
    return torch.cat([one[:n] for one, n in zip(x, lengths, strict=True)])


def cumulative(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("deterministic", [False, True])
def test_packed_sequences_are_padded_ones(deterministic):
    """Each entry drops what it drops alone at its place in a padded batch."""
    inputs, rows, keys = qkv(batch=3), (ROWS, 5, 16), (KEYS, 33, 17)
    parts = [packed_parts(x, n) for x, n in zip(inputs, (rows, keys, keys), strict=True)]
    given = [x.detach().requires_grad_() for x in parts]
    spans = (cumulative(rows), cumulative(keys), max(rows), max(keys))
    torch.manual_seed(4)
    options = {"dropout_p": P, "deterministic": deterministic}
    got = with_gradients(lambda *x: flash_attn_varlen_func(*x, *spans, **options), given)
    torch.manual_seed(4)
    rng = torch.randint(2**62, (2,))
    for b, (n, m) in enumerate(zip(rows, keys, strict=True)):
        at_b = slice(spans[0][b], spans[0][b + 1]), slice(spans[1][b], spans[1][b + 1])
        leaves = [x[:, :s] for x, s in zip(inputs, (n, m, m), strict=True)]
        out = attention(*leaves, dropout_p=P, rng=rng)[b]
        want = out, *(x[b, :s] for x, s in zip(
            torch.autograd.grad(out.square().sum(), inputs), (n, m, m), strict=True))  # fmt: skip
        own = [at_b[0], at_b[0], at_b[1], at_b[1]]
        for a, place, c in zip(got, own, want, strict=True):
            assert_close(a[place], c, atol=2e-5, rtol=1e-4)


def test_weights_are_shown():
    """As FlashAttention's S_dmask: normalised, negative where dropped; dense and packed."""
    q, k, v = qkv()
    torch.manual_seed(5)
    out, lse, shown = flash_attn_func(q, k, v, P, causal=True, return_attn_probs=True)
    assert_close(shown.abs(), weights_reference(q, k, causal=True)[0].detach())
    values = v.repeat_interleave(HEADS // KV_HEADS, 2).transpose(1, 2)
    by_hand = shown.clamp(min=0) @ values * factor_of(P)
    assert_close(out, by_hand.transpose(1, 2), atol=1e-5, rtol=1e-4)
    rows, keys = (ROWS, 8), (KEYS, 20)
    parts = [packed_parts(x, n) for x, n in zip((q, k, v), (rows, keys, keys), strict=True)]
    spans = (cumulative(rows), cumulative(keys), ROWS, KEYS)
    torch.manual_seed(5)
    *_, packed = flash_attn_varlen_func(*parts, *spans, P, causal=True, return_attn_probs=True)
    assert_close(packed[0], shown[0])
    assert packed.shape == shown.shape and (packed[1, :, 8:] == 0).all()
    assert (shown < 0).any() and lse.shape == (2, HEADS, ROWS)


def test_every_door():
    """The same weights are dropped through each function, of the same seed."""
    q, k, v = (x.detach() for x in qkv(rows=KEYS))
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    calls = [
        lambda: attention(q, k, v, dropout_p=P),
        lambda: flash_attn_func(q, k, v, P),
        lambda: tvm_flash.flash_attn_kvpacked_func(q, torch.stack([k, v], 2), P),
        lambda: tvm_flash.scaled_dot_product_attention(
            *heads_first, dropout_p=P, enable_gqa=True
        ).transpose(1, 2),
    ]
    results = []
    for call in calls:
        torch.manual_seed(6)
        results.append(call())
    torch.manual_seed(6)
    rng = torch.randint(2**62, (2,))
    want, _ = attention_reference(q, k, v, dropout_p=P, rng=rng)
    for got in results:
        assert_close(got, want, atol=1e-5, rtol=1e-4)
    kept = kept_weights(torch.empty(2, HEADS, KEYS, KEYS), P, rng)
    assert 0.7 < kept.float().mean() < 0.8


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"dropout_p": 1}, ValueError, "dropout_p=1.0 must lie in"),
        ({"dropout_p": -0.5}, ValueError, "dropout_p=-0.5 must lie in"),
        ({"dropout_p": float("nan")}, ValueError, "dropout_p=nan must lie in"),
        ({"dropout_p": "half"}, TypeError, "dropout_p='half' must be a number"),
        ({"dropout_p": P, "rng": (1, 2)}, TypeError, "rng must be a tensor, not tuple"),
        ({"dropout_p": P, "rng": torch.zeros(2)}, ValueError, "must be int64"),
        ({"dropout_p": P, "rng": RNG[:1]}, ValueError, r"\(1,\) must be int64, \(2,\)"),
        ({"dropout_p": P, "rng": RNG.to("meta")}, ValueError, "rng is on meta"),
    ],
)
def test_bad_input(options, error, told):
    with pytest.raises(error, match=told):
        attention(*qkv(), **options)


def test_operators_refuse_what_does_not_fit():
    q, k, v = (x.detach() for x in qkv())
    run = torch.ops.tvm_flash.attention_forward
    spec = tvm_flash.AttentionSpec(dtype="float32", head_dim=DIM, dropout=True)
    text = tvm_flash.frontend.ops.spec_name(spec)
    with pytest.raises(ValueError, match="needs rng"):
        run(q, k, v, [], text, 0.25, dropout=P)
    with pytest.raises(ValueError, match="takes no rng"):
        plain = tvm_flash.AttentionSpec(dtype="float32", head_dim=DIM)
        run(q, k, v, [], tvm_flash.frontend.ops.spec_name(plain), 0.25, rng=RNG)
