"""Linear attention: the error rule against every product, states, what torch asks, bad input."""

from dataclasses import replace

import pytest
import torch
from pairwise import grid

from tvm_flash import AttentionSpec, feature_maps, linear_attention
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.frontend import linear_kernel, linear_ops
from tvm_flash.problem.arguments import arguments, direction_reasons
from tvm_flash.reference import attention_reference, linear_reference
from tvm_flash.runtime.kernels import resolve
from tvm_flash.verify.rule import deviations

H = 4


def given(dtype=torch.float32, sq=70, sk=None, hk=H, dims=(16, 16), seed=0):
    """q, k (positive, as features are) and v, views whose heads lie apart."""
    generator = torch.Generator().manual_seed(seed)
    sk = sq if sk is None else sk

    def rows(length, heads, width):
        return torch.randn(2, heads, length, width, generator=generator).transpose(1, 2)

    q, k = rows(sq, H, dims[0]).abs() + 0.1, rows(sk, hk, dims[0]).abs() + 0.1
    return [x.to(dtype) for x in (q, k, rows(sk, hk, dims[1]))]


def with_gradients(function, tensors, state, dtype=None, **options):
    """Results and gradients by name; upstream gradients are the same in every dtype."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]
    names = ["dq", "dk", "dv"]
    if state is not None:
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        leaves.append(state.detach().to(kept).requires_grad_())
        options["initial_state"] = leaves[-1]
        names.append("dstate")
    results = function(*leaves[:3], **options)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in results]
    found = torch.autograd.grad(results, leaves, upstream)
    return dict(
        zip(("out", "state", *names), (*(x.detach() for x in results), *found), strict=True)
    )


@grid(
    "dtype, causal, normalize, sq, hk, dims, has_state",
    ("float32", "float16"),
    (True, False),
    (True, False),
    (1, 63, 130, 0),
    (H, 2),
    ((16, 16),),
    (True, False),
)
def test_results_and_gradients_keep_the_error_rule(
    dtype, causal, normalize, sq, hk, dims, has_state
):
    sk = sq if causal else sq + 15
    tensors = given(getattr(torch, dtype), sq, sk, hk, dims)
    state = torch.rand(2, H, dims[0], dims[1] + 1) if has_state else None
    options = {"causal": causal, "normalize": normalize, "scale": 0.5}
    if causal:
        options["decay"] = torch.tensor([1.0, 0.95, 0.5, 1e-38])
    found = with_gradients(linear_attention, tensors, state, return_state=True, **options)
    exact = with_gradients(linear_reference, tensors, state, torch.float64, **options)
    plain = with_gradients(linear_reference, tensors, state, **options)
    for deviation in deviations(dtype, found, exact, plain):
        assert deviation.ok, str(deviation)


WIDTHS = [
    (24, 40),
    *(pytest.param(x, marks=pytest.mark.sweep) for x in ((256, 256), (8, 512), (65, 64))),
]


@pytest.mark.parametrize("dims", WIDTHS, ids=str)
@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.sweep)])
def test_widths_that_fill_no_tile(dims, causal):
    tensors = given(torch.bfloat16, 100, dims=dims)
    found = with_gradients(linear_attention, tensors, None, return_state=True, causal=causal)
    exact = with_gradients(linear_reference, tensors, None, torch.float64, causal=causal)
    plain = with_gradients(linear_reference, tensors, None, causal=causal)
    for deviation in deviations("bfloat16", found, exact, plain):
        assert deviation.ok, str(deviation)


@pytest.mark.parametrize("causal", [True, False])
def test_parts_that_run_at_once_change_nothing(monkeypatch, causal):
    tensors = given(sq=300)
    decay = torch.tensor([1.0, 0.99, 0.9, 0.5]) if causal else None
    options = {"causal": causal, "decay": decay, "return_state": True}
    whole = linear_attention(*tensors, **options)
    monkeypatch.setattr(linear_kernel, "_parts", lambda *_: 3)
    for got, want in zip(linear_attention(*tensors, **options), whole, strict=True):
        torch.testing.assert_close(got, want)


def test_tokens_one_by_one_from_a_state():
    q, k, v = given(sq=20)
    decay = torch.tensor([1.0, 0.9, 0.8, 0.7])
    options = {"causal": True, "decay": decay, "return_state": True}
    want, last = linear_attention(q, k, v, **options)
    outs, state = [], None
    for part in (slice(0, 17), slice(17, 18), slice(18, 19), slice(19, 20)):
        out, state = linear_attention(
            q[:, part], k[:, part], v[:, part], initial_state=state, **options
        )
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), want)
    torch.testing.assert_close(state, last)


def test_rows_do_not_see_what_is_not_finite_behind_them():
    q, k, v = given(sq=70)
    want = linear_attention(q, k, v, causal=True)
    k[:, 50] = float("inf")
    assert torch.equal(linear_attention(q, k, v, causal=True)[:, :50], want[:, :50])


def test_retention_is_linear_attention_without_a_normaliser():
    q, k, v = given(sq=70)
    decay = 1 - 2.0 ** (-5 - torch.arange(H))
    steps = torch.arange(70)[:, None] - torch.arange(70)
    powers = torch.where(steps >= 0, decay[:, None, None] ** steps, 0.0)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * 16**-0.5
    want = torch.einsum("bhij,bjhd->bihd", scores * powers, v)
    got = linear_attention(q, k, v, causal=True, decay=decay, normalize=False, scale=16**-0.5)
    torch.testing.assert_close(got, want)


def test_random_features_estimate_softmax_attention():
    q, k, v = given(sq=64)
    q, k = q / 2, k / 2
    want, _ = attention_reference(q, k, v)
    errors = []
    for features in (16, 512):
        phi = feature_maps.positive_random_features(16, features)
        errors.append((linear_attention(q, k, v, feature_map=phi) - want).abs().mean().item())
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.05, errors


def test_feature_maps_are_differentiated_by_torch():
    q, k, v = (x.requires_grad_() for x in given(sq=10))
    named = torch.autograd.grad(linear_attention(q, k, v, feature_map="elu1").sum(), (q, k, v))
    own = linear_attention(feature_maps.elu1(q), feature_maps.elu1(k), v)
    for got, want in zip(named, torch.autograd.grad(own.sum(), (q, k, v)), strict=True):
        assert torch.equal(got, want)


def test_random_features_are_of_float32_under_autocast():
    phi, (x, *_) = feature_maps.positive_random_features(16), given()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = phi(x)
    assert torch.equal(got, phi(x))


@pytest.mark.parametrize("phi", ["elu1", feature_maps.softmax_features], ids=["elu1", "softmax"])
def test_autocast_casts_what_is_given_and_its_features(phi):
    q, k, v = (x.bfloat16().float() for x in given())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear_attention(q, k.bfloat16(), v, feature_map=phi)
    expected = linear_attention(*(x.bfloat16() for x in (q, k, v)), feature_map=phi)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)


def test_torch_compile():
    q, k, v = (x.requires_grad_() for x in given(sq=10))

    def loss(q, k, v):
        return linear_attention(q, k, v, feature_map="elu1", causal=True).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for got, want in zip(
        torch.autograd.grad(compiled(q, k, v), (q, k, v)),
        torch.autograd.grad(loss(q, k, v), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_opcheck():
    q, k, v = (x.requires_grad_() for x in given(sq=10))
    zeros, ones = (linear_ops.filled(value, q, H) for value in (0.0, 1.0))
    state = torch.zeros(2, H, 17, 17, requires_grad=True)
    call = (q, k, v, zeros, zeros, ones, ones, ones, torch.ones(H), state, 0, 1, True)
    torch.library.opcheck(linear_ops.linear, call)


def test_there_are_no_second_gradients():
    q, k, v = (x.requires_grad_() for x in given(sq=10))
    (dq,) = torch.autograd.grad(linear_attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second"):
        torch.autograd.grad(dq.sum(), q)


def test_the_order_of_the_kernels_arguments():
    """``linear_kernel.run`` calls it by place."""
    spec = AttentionSpec(dtype="float32", head_dim=16, computes="linear")
    assert [a.name for a in arguments(spec, "linear")] == [
        "q", "k", "v", "q_extra", "k_extra", "v_extra", "key_weight", "out_weight", "decay",
        "state", "out", "out_extra", "state_out", "parts", "reverse", "normalize", "state_age",
    ]  # fmt: skip


def test_specs_of_other_attention_have_none():
    spec = AttentionSpec(dtype="float32", head_dim=16, softcap=True)
    assert direction_reasons(spec, "linear")
    with pytest.raises(UnsupportedSpec, match="'linear' is of specs with computes='linear'"):
        resolve(spec, "linear")
    with pytest.raises(ValueError, match=r"computes='linear' has dtype, .* not softcap=True"):
        replace(spec, computes="linear")


DECAY = torch.full((H,), 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_map": "relu"}, "feature_map='relu' must be one of None, 'elu1'"),
        ({"decay": DECAY}, "decay needs causal=True"),
        ({"decay": DECAY * 3, "causal": True}, r"decay=1.5 must lie in \(0, 1\]"),
        ({"decay": DECAY[:2], "causal": True}, "decay"),
        ({"initial_state": torch.zeros(2, H, 16, 16)}, "initial_state"),
        ({"v": torch.zeros(2, 71, H, 16)}, "v"),
        ({"k": torch.zeros(2, 71, H, 16), "v": torch.zeros(2, 71, H, 16), "causal": True},
         "as many queries as keys, not 70 and 71"),
        ({"q": torch.zeros(2, 70, 3, 16)}, "heads"),
        ({"v": torch.zeros(2, 70, H, 16, dtype=torch.float16)}, "dtype"),
        ({"feature_map": ["elu1"]}, "must be one of None, 'elu1'"),
        ({"decay": 0.5, "causal": True}, "decay must be a tensor, not float"),
        ({"initial_state": 1}, "initial_state must be a tensor, not int"),
        ({"causal": "yes"}, "causal='yes' must be True or False"),
        ({"normalize": "no"}, "normalize='no' must be True or False"),
        ({"scale": "a"}, "scale='a' must be a number"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_bad_input(change, message):
    call = dict(zip("qkv", given(), strict=True)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        linear_attention(**call)
