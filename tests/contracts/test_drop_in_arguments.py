"""What the implementations of the peers accept as arguments is accepted, the rest named."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tvm_flash
from tvm_flash import attention, flash_attn_func
from tvm_flash import scaled_dot_product_attention as sdpa
from tvm_flash.reference import attention_reference


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = (random(1, 6, 2, 16, seed=n) for n in range(3))
HEADS_FIRST = [x.transpose(1, 2) for x in (Q, K, V)]
QKV, KV = torch.stack((Q, K, V), 2), torch.stack((K, V), 2)

# Every door, of the keywords of FlashAttention.
DOORS = {
    "attention": lambda **options: attention(Q, K, V, **options),
    "flash_attn_func": lambda **options: flash_attn_func(Q, K, V, **options),
    "qkvpacked": lambda **options: tvm_flash.flash_attn_qkvpacked_func(QKV, **options),
    "kvpacked": lambda **options: tvm_flash.flash_attn_kvpacked_func(Q, KV, **options),
}


def exact(**variant):
    return attention_reference(Q, K, V, upcast=torch.float64, **variant)[0]


def assert_exact(got, **variant):
    torch.testing.assert_close(got.double(), exact(**variant), atol=1e-5, rtol=1e-5)


PAIRS = {
    "tuple": (2, 0),
    "list": [2, 0],
    "size": torch.Size([2, 0]),
    "tensor": torch.tensor([2, 0]),
    "int32 tensor": torch.tensor([2, 0], dtype=torch.int32),
    "array": np.array([2, 0]),
    "numpy integers": (np.int64(2), np.int32(0)),
    "tensors without dimensions": (torch.tensor(2), torch.tensor(0)),
    "a tensor and an array of one": [torch.tensor([2]), np.array(0)],
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("pair", PAIRS)
def test_any_pair_of_integers_is_a_window(door, pair):
    assert_exact(DOORS[door](window_size=PAIRS[pair]), window_size=(2, 0))


@pytest.mark.parametrize("open_side", [None, -1, -7, 2**31 - 1, 2**30 + 1], ids=str)
def test_a_side_without_a_bound(open_side):
    assert_exact(attention(Q, K, V, window_size=(open_side, 0)), window_size=(-1, 0))
    assert_exact(attention(Q, K, V, window_size=(2, open_side)), window_size=(2, -1))
    assert_exact(attention(Q, K, V, window_size=(open_side, open_side)))


@pytest.mark.parametrize("window", [None, (None, None), torch.tensor([-1, -1]), [-1, -1]], ids=str)
@pytest.mark.parametrize("door", DOORS)
def test_no_window(door, window):
    assert_exact(DOORS[door](window_size=window))


@pytest.mark.parametrize("one", [True, np.True_, torch.tensor(True)], ids=repr)
def test_a_truth_value_is_an_integer(one):
    assert_exact(attention(Q, K, V, window_size=(one, 0)), window_size=(1, 0))


@pytest.mark.parametrize(
    "window",
    [
        (2.0, 0), (float("nan"), 0), (2, "0"), "20", 2, (2,), (1, 2, 3), {2, 0}, torch.tensor(2),
        torch.tensor([2.0, 0.0]), np.array([2.0, 0.0]), (torch.tensor([2, 2]), 0),
        (np.array([2, 2]), 0), (2, np.float64(0)), [(2, 0)],
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_pair_of_integers(window):
    for before in ((2, 0), None):  # (2.0, 0) equals a window that was seen
        attention(Q, K, V, window_size=before)
        with pytest.raises(TypeError, match=r"window_size=.* must be two integers"):
            attention(Q, K, V, window_size=window)


def test_a_side_beyond_the_integers_of_kernels():
    with pytest.raises(ValueError, match=r"window_size .* 2147483648: limit 2147483647"):
        attention(Q, K, V, window_size=(0, 2**31))


def numbers(value):
    return [
        np.float32(value), np.float64(value), np.array(value), torch.tensor(value),
        torch.tensor([value]), torch.tensor(value, dtype=torch.float64), torch.tensor(value).half(),
    ]  # fmt: skip


@pytest.mark.parametrize("number", [*numbers(1.0), 1, True, np.int64(1), torch.tensor(1)], ids=repr)
@pytest.mark.parametrize("name", ["softmax_scale", "softcap"])
def test_any_number_is_a_number(name, number):
    for call in DOORS.values():
        assert_exact(call(**{name: number}), **{name: float(number)})
    if name == "softmax_scale":
        out = sdpa(*HEADS_FIRST, scale=number).transpose(1, 2)
        assert_exact(out, softmax_scale=float(number))


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, False, *numbers(0.0), torch.tensor(0)], ids=repr)
def test_zero_is_no_dropout_and_no_cap(zero):
    assert_exact(flash_attn_func(Q, K, V, zero, softcap=zero))
    assert_exact(sdpa(*HEADS_FIRST, None, zero).transpose(1, 2))
    assert_exact(attention(Q, K, V, softcap=None))


@pytest.mark.parametrize("name", ["softmax_scale", "softcap", "dropout_p"])
@pytest.mark.parametrize(
    "value", ["0.5", b"1", [0.5], 1j, torch.ones(2), np.ones(2), torch.tensor(1j)], ids=repr
)
def test_what_is_no_number(name, value):
    with pytest.raises(TypeError, match=rf"{name}=.* must be a number"):
        flash_attn_func(Q, K, V, **{name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(torch.nan)], ids=repr)
def test_numbers_that_are_not_finite(value):
    for name in ("softmax_scale", "softcap", "dropout_p"):
        with pytest.raises(ValueError, match=name):
            flash_attn_func(Q, K, V, **{name: value})
    with pytest.raises(ValueError, match=r"scale=.*finite"):
        sdpa(*HEADS_FIRST, scale=value)
    for dropout_p in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            sdpa(*HEADS_FIRST, dropout_p=dropout_p)


@pytest.mark.parametrize(
    "flag", [True, 1, 1.0, np.True_, np.int64(1), np.array(True), torch.tensor(1)], ids=repr
)
def test_what_has_a_truth_value_is_a_flag(flag):
    off = flag * 0
    for call in DOORS.values():
        assert_exact(call(causal=flag, deterministic=flag), causal=True)
        assert_exact(call(causal=off, deterministic=off))
    assert_exact(sdpa(*HEADS_FIRST, is_causal=flag).transpose(1, 2), causal=True)
    assert_exact(sdpa(*HEADS_FIRST, enable_gqa=off).transpose(1, 2))
    _, lse, _ = flash_attn_func(Q, K, V, return_attn_probs=flag)
    assert lse.shape == (1, 2, 6)


@pytest.mark.parametrize("name", ["causal", "deterministic"])
@pytest.mark.parametrize("value", ["False", [0], {}, torch.ones(2), np.ones(2)], ids=repr)
def test_what_is_no_flag(name, value):
    with pytest.raises(TypeError, match=rf"{name}=.* must be True or False"):
        flash_attn_func(Q, K, V, **{name: value})


def test_positions_are_those_of_flash_attention_2():
    """dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
    return_attn_probs."""
    slopes = torch.tensor([0.5, 0.25])
    tail = (0.0, 0.3, True, (4, -1), 2.0, slopes, True, True)
    variant = {"softmax_scale": 0.3, "causal": True, "window_size": (4, -1), "softcap": 2.0}
    for out, _, probs in (
        flash_attn_func(Q, K, V, *tail),
        tvm_flash.flash_attn_qkvpacked_func(QKV, *tail),
        tvm_flash.flash_attn_kvpacked_func(Q, KV, *tail),
    ):
        assert_exact(out, **variant, alibi_slopes=slopes)
        assert probs is None


def heads_first(*shape, seed):
    return random(*shape, 7 if seed else 5, 16, seed=seed)


# Leading dimensions and heads of query, key and value, and enable_gqa.
BROADCAST = [
    ((2, 4), (1, 4), (1, 4), False),
    ((1, 4), (2, 4), (2, 4), False),
    ((2, 4), (4,), (4,), False),
    ((4,), (2, 4), (2, 4), False),
    ((2, 4), (2, 1), (2, 1), False),
    ((2, 4), (2, 4), (2, 1), False),
    ((2, 1), (2, 4), (2, 4), False),
    ((2, 4), (2, 2), (2, 4), True),
    ((3, 1, 4), (2, 2), (2, 2), True),
    ((), (2, 4), (4,), False),
]


@pytest.mark.parametrize(("q", "k", "v", "enable_gqa"), BROADCAST)
@pytest.mark.parametrize("masked", [False, True])
def test_leading_dimensions_broadcast_as_in_torch(q, k, v, enable_gqa, masked):
    leaves = [heads_first(*x, seed=n).requires_grad_() for n, x in enumerate((q, k, v))]
    mask = random(5, 7, seed=9) if masked else None

    def results(function):
        out = function(*leaves, mask, enable_gqa=enable_gqa)
        return out, *torch.autograd.grad(out.sin().sum(), leaves)

    for got, want in zip(results(sdpa), results(F.scaled_dot_product_attention), strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_mask_and_is_causal_hold_both(bias):
    q, k, v = (heads_first(2, 4, seed=n) for n in range(3))
    mask = random(5, 7, seed=9)
    mask = mask if bias else mask > -1
    want = F.scaled_dot_product_attention(q, k, v, mask, is_causal=True)
    torch.testing.assert_close(sdpa(q, k, v, mask, is_causal=True), want, atol=1e-5, rtol=1e-5)
