"""JAX arrays on our kernels, beside the definition in JAX's own operations, in two precisions.

Needs jax and jax-tvm-ffi (`pip install -e .[jax]`). `pytest -m sweep` runs most options.
"""

import math

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
pytest.importorskip("jax_tvm_ffi")

import jax.numpy as jnp  # noqa: E402

import tvm_flash  # noqa: E402
from tvm_flash.integrations.jax import attention  # noqa: E402
from tvm_flash.verify.rule import allowed_error, largest_error  # noqa: E402


def random(*shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.RandomState(seed).randn(*shape), dtype)


def as_torch(x):
    return torch.from_numpy(np.array(x, np.float64 if x.dtype == np.float64 else np.float32))


def plain(
    q, k, v, *, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    alibi_slopes=None, bias=None, alignment="bottom_right", softmax="softmax", sink=None,
):  # fmt: skip
    """(out, lse), by the definition; rows that see no key are 0."""
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, 2) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    shift = k.shape[1] - q.shape[1] if alignment == "bottom_right" else 0
    distance = jnp.arange(q.shape[1])[:, None] + shift - jnp.arange(k.shape[1])
    if alibi_slopes is not None:
        scores -= alibi_slopes[..., None, None] * abs(distance)
    scores = scores if bias is None else scores + bias
    left, right = window_size
    seen = (distance >= 0) | (not causal)
    seen &= (distance <= left) | (left < 0)
    seen &= (distance >= -right) | (right < 0)
    if softmax == "sigmoid":
        weights, lse = jnp.where(seen, jax.nn.sigmoid(scores), 0), None
    else:
        has_key = seen.any(-1)[..., None]
        scores = jnp.where(seen, scores, -jnp.inf)
        more = {"softmax1": jnp.zeros(1), "softmax": jnp.full(1, -jnp.inf)}[softmax]
        more = (more if sink is None else sink)[None, :, None, None].astype(scores.dtype)
        more = jnp.broadcast_to(more, (*scores.shape[:2], scores.shape[2], 1))
        # Finite where nothing is seen, for gradients that are.
        safe = jnp.where(has_key | jnp.isfinite(more), more, 0)
        lse = jax.nn.logsumexp(jnp.concatenate([scores, safe], -1), -1)
        weights = jnp.where(has_key, jnp.exp(scores - lse[..., None]), 0)
        lse = jnp.where((safe == more)[..., 0], lse, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v), lse


def compared(function, arrays, options, names, dtype="float32", with_lse=True):
    """out, lse and gradients by the arrays called ``names``, of a loss over both."""

    def loss(learned, others):
        out, lse = function(**learned, **others, **options)
        douts = (random(*x.shape, seed=20 + n).astype(x.dtype) for n, x in enumerate((out,)))
        total = (out * next(douts)).sum()
        if with_lse:
            total += (jnp.where(jnp.isfinite(lse), lse, 0) * random(*lse.shape, seed=30)).sum()
        return total, (out, lse)

    learned = {name: arrays[name] for name in names}
    others = {name: x for name, x in arrays.items() if name not in names}
    found, (out, lse) = jax.jit(jax.grad(loss, has_aux=True))(learned, others)
    results = {"out": out, **({"lse": lse} if with_lse else {})}
    return results | {f"d{name}": x for name, x in found.items()}


def check(arrays, options, dtype="float32", with_lse=True):
    """The error rule, for results and the gradients by all ``arrays``."""
    names = list(arrays)
    got = compared(
        lambda **given: attention(**given, return_lse=True)
        if with_lse
        else (attention(**given), None),
        arrays, options, names, with_lse=with_lse,
    )  # fmt: skip
    pytorchs = compared(plain, arrays, options, names, with_lse=with_lse)
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(np.asarray(x, np.float64)) for name, x in arrays.items()}
        exact = compared(plain, wide, options, names, with_lse=with_lse)
        exact = {name: as_torch(x) for name, x in exact.items()}
    for name, x in got.items():
        right, theirs = exact[name], as_torch(pytorchs[name])
        if name == "lse":
            seen = torch.isfinite(as_torch(x))
            assert torch.equal(seen, torch.isfinite(right))
            right, theirs, x = right[seen], theirs[seen], np.asarray(x)[seen.numpy()]
        kind = name if name in ("out", "lse", "dq", "dk", "dv") else "dq"
        error = largest_error(as_torch(jnp.asarray(x)), right)
        assert error <= allowed_error(kind, dtype, right, theirs), (name, error)


def qkv(dtype="float32", head_dim_v=32, heads_k=2, rows=(40, 70)):
    return {
        name: random(2, length, heads, columns, dtype=dtype, seed=n)
        for n, (name, length, heads, columns) in enumerate(
            (
                ("q", rows[0], 4, 32),
                ("k", rows[1], heads_k, 32),
                ("v", rows[1], heads_k, head_dim_v),
            )
        )
    }


def test_results_and_gradients_with_groups_of_heads():
    check(qkv(), {"causal": True})


OPTIONS = {
    "window": ({}, {"window_size": (9, 3), "softmax_scale": 0.3}),
    "left, from the first": ({}, {"window_size": (20, -1), "alignment": "top_left"}),
    "softcap": ({}, {"softcap": 1.5, "causal": True}),
    "alibi": ({"alibi_slopes": jnp.asarray([0.5, 0.2, 0.1, 0.05])}, {"causal": True}),
    "alibi of entries": ({"alibi_slopes": abs(random(2, 4, seed=7))}, {}),
    "bias": ({"bias": random(2, 4, 40, 70, seed=8)}, {}),
    "bias of heads": ({"bias": random(4, 1, 70, seed=8)}, {"causal": True}),
    "alibi, bias": ({"alibi_slopes": abs(random(4)), "bias": random(40, 70)}, {}),
    "sink": ({"sink": random(4, seed=9)}, {"window_size": (5, 0)}),
    "softmax1": ({}, {"softmax": "softmax1", "causal": True}),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    more, options = OPTIONS[name]
    check(qkv() | more, options)


@pytest.mark.sweep
def test_sigmoid_has_no_lse():
    check(qkv(), {"softmax": "sigmoid"}, with_lse=False)


@pytest.mark.sweep
def test_rows_without_keys_and_columns_of_values():
    check(qkv(head_dim_v=48, heads_k=4, rows=(70, 40)), {"causal": True})


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(dtype):
    check(qkv(dtype), {"causal": True}, dtype)


@pytest.mark.sweep
def test_packed_sequences_are_those_alone():
    """Rows past the last sequence are 0, their gradients too."""
    lengths = (5, 0, 33), (9, 4, 40)
    cu_q, cu_k = (jnp.asarray(np.cumsum([0, *x]), jnp.int32) for x in lengths)
    q, k, v = random(45, 4, 32), random(60, 2, 32, seed=1), random(60, 2, 32, seed=2)
    dout = random(45, 4, 32, seed=3)

    @jax.jit
    def packed(q, k, v, cu_q, cu_k):
        out, lse = attention(
            q, k, v, causal=True, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=33,
            max_seqlen_k=40, return_lse=True,
        )  # fmt: skip
        return (out * dout).sum(), (out, lse)

    def alone(q, k, v):
        parts = [
            plain(q[None, a:b], k[None, c:d], v[None, c:d], causal=True)[0][0]
            for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False)
        ]
        out = jnp.concatenate([*parts, jnp.zeros((7, 4, 32))])
        return (out * dout).sum(), out

    (_, (out, lse)), grads = jax.value_and_grad(packed, (0, 1, 2), has_aux=True)(
        q, k, v, cu_q, cu_k
    )
    (_, wanted), expected = jax.value_and_grad(alone, (0, 1, 2), has_aux=True)(q, k, v)
    for x, right in zip((out, *grads), (wanted, *expected), strict=True):
        np.testing.assert_allclose(x, right, atol=2e-5, rtol=1e-4)
    assert not np.isfinite(lse[:, 38:]).any() and np.isfinite(lse[:, :38]).all()


@pytest.mark.sweep
def test_dropout_drops_what_torch_calls_drop():
    given = qkv()
    key = jax.random.key(3)
    out = attention(**given, dropout_p=0.3, rng=key)
    words = np.array(jax.random.bits(key, (4,), jnp.uint32)).view(np.int64)
    q, k, v = (as_torch(x) for x in given.values())
    wanted = tvm_flash.attention(q, k, v, dropout_p=0.3, rng=torch.from_numpy(words))
    assert torch.equal(as_torch(out), wanted)
    with pytest.raises(ValueError, match="needs rng"):
        attention(**given, dropout_p=0.3)
    stacked = jnp.stack([given["q"], given["q"] * 2])
    mapped = jax.vmap(lambda q: attention(q, given["k"], given["v"], dropout_p=0.3, rng=key))(
        stacked
    )
    np.testing.assert_array_equal(mapped[0], out)


def test_vmap_is_one_call_of_all_entries():
    """Nested, of arrays of which some are shared, and of gradients."""
    q = random(3, 2, 1, 40, 4, 32)
    k, v = random(3, 1, 70, 2, 32, seed=1), random(1, 70, 2, 32, seed=2)

    def loss(q, k, v):
        return (attention(q, k, v, causal=True) ** 2).sum()

    def each(function):
        return jax.vmap(jax.vmap(function, (0, None, None)), (0, 0, None))

    gradients = jax.grad(loss, (0, 1, 2))
    mapped = jax.jit(each(gradients))
    calls = [line for line in mapped.lower(q, k, v).as_text().splitlines() if "@tvm_flash" in line]
    assert len(calls) == 2 and all("tensor<6x40x4x32xf32>" in call for call in calls)
    got = mapped(q, k, v)
    wanted = [gradients(q[n, m], k[n], v) for n in range(3) for m in range(2)]
    for x, right in zip(got, zip(*wanted, strict=True), strict=True):
        right = jnp.stack(right)
        np.testing.assert_allclose(x.reshape(right.shape), right, atol=1e-5, rtol=1e-5)


@pytest.mark.sweep
def test_vmap_of_what_entries_share_goes_in_turn():
    """A mapped sink and a gradient by it; a bias of entries that is mapped with them."""
    given = qkv()
    sinks = random(3, 4, seed=5)
    mapped = jax.vmap(jax.grad(lambda sink: attention(**given, sink=sink).sum()))(sinks)
    alone = [jax.grad(lambda sink: attention(**given, sink=sink).sum())(sink) for sink in sinks]
    np.testing.assert_allclose(mapped, jnp.stack(alone), atol=1e-5, rtol=1e-5)
    bias, q = random(2, 4, 40, 70, seed=6), random(3, 2, 40, 4, 32)
    shared = jax.vmap(lambda q: attention(q, given["k"], given["v"], bias=bias))(q)
    for n in range(3):
        one = attention(q[n], given["k"], given["v"], bias=bias)
        np.testing.assert_allclose(shared[n], one, atol=1e-6)


def test_second_derivatives_are_refused():
    given = qkv()

    def slope(q):
        return jax.grad(lambda q: attention(q, given["k"], given["v"], causal=True).sum())(q).sum()

    with pytest.raises(NotImplementedError, match="second derivatives"):
        jax.grad(slope)(given["q"])


def test_bad_input_is_named():
    q = random(2, 9, 4, 32)
    starts, ends = jnp.asarray([0, 9, 20], jnp.int32), jnp.asarray([0, 4, 9], jnp.int32)

    def packed(longest):
        known = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_k": longest}
        return dict.fromkeys("qkv", q[0]) | known

    for error, match, given in (
        (ValueError, "4 dimensions", {"k": q[0]}),
        (TypeError, "must all be one of float32", {"k": q.astype(jnp.bfloat16)}),
        (TypeError, "int32, int32, int32", dict.fromkeys("qkv", q.astype(jnp.int32))),
        (ValueError, "num_kv_heads=3", dict.fromkeys("kv", q[:, :, :3])),
        (ValueError, "head_dim", dict.fromkeys("qkv", q[..., :4])),
        (ValueError, "softcap=-1", {"softcap": -1.0}),
        (ValueError, "softcap=nan", {"softcap": float("nan")}),
        (TypeError, "softcap='2' must be a number", {"softcap": "2"}),
        (TypeError, "causal='no' must be True or False", {"causal": "no"}),
        (ValueError, "softmax_scale=5000", {"softmax_scale": 5000.0}),
        (TypeError, "two integers", {"window_size": (1, 2, 3)}),
        (TypeError, "window_size=5 must be two integers", {"window_size": 5}),
        (TypeError, "two integers", {"window_size": (1.5, 2)}),
        (ValueError, r"sink of shape \(3,\)", {"sink": jnp.ones(3)}),
        (TypeError, "sink of int32 must be floating", {"sink": jnp.ones(4, jnp.int32)}),
        (ValueError, "alibi_slopes of shape", {"alibi_slopes": jnp.ones(3)}),
        (ValueError, r"broadcast to \(B, H, Sq, Sk\) = \(2, 4, 9, 9\)", {"bias": jnp.ones((8, 9))}),
        (ValueError, "end within the 9 rows", dict.fromkeys("qkv", q[0]) | {
            "cu_seqlens_q": starts, "cu_seqlens_k": starts}),
        (ValueError, "need both", dict.fromkeys("qkv", q[0]) | {"cu_seqlens_q": starts}),
        (ValueError, "max_seqlen_k=3 is too small: there is a sequence of 5", packed(3)),
        (TypeError, "max_seqlen_k='9' must be an integer", packed("9")),
        (ValueError, "platform='tpu'", {"platform": "tpu"}),
        (ValueError, "has no lse", {"softmax": "sigmoid", "return_lse": True}),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            attention(**{"q": q, "k": q, "v": q} | given)


def test_calls_without_keys_or_rows():
    given = qkv()
    out, lse = attention(given["q"], given["k"][:, :0], given["v"][:, :0], return_lse=True)
    assert not out.any() and (lse == -math.inf).all() and lse.shape == (2, 4, 40)
    assert attention(given["q"][:, :0], given["k"], given["v"]).shape == (2, 0, 4, 32)
