"""Rotary embedding against complex numbers in float64, dense and packed, at any offset."""

import pytest
import torch

from tvm_flash import apply_rotary
from tvm_flash.verify.rule import largest_error

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = (3, 0, 5, 1)
CU_SEQLENS = torch.tensor([0, 3, 3, 8, 9], dtype=torch.int32)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def table(rows, rotary_dim, dtype=torch.float32):
    """cos and sin (rows, rotary_dim / 2) of the usual angles."""
    angles = torch.outer(torch.arange(rows), 1e4 ** -torch.linspace(0, 1, rotary_dim // 2))
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotated(x, cos, sin, positions, interleaved):
    """x (B, S, H, D) turned as complex numbers, in float64; positions (B, S)."""
    rotary_dim = 2 * cos.shape[1]
    turn = torch.complex(cos.double(), sin.double())[positions][:, :, None]
    turned, rest = x.double().split((rotary_dim, x.shape[-1] - rotary_dim), -1)
    order = (-1, 2) if interleaved else (2, -1)
    pairs = turned.unflatten(-1, order)
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    pairs = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    return torch.cat((pairs.flatten(-2), rest), -1)


def assert_right(got, want):
    """To the rounding of the result, which is all a 16-bit dtype loses."""
    assert got.shape == want.shape
    rounding = torch.finfo(got.dtype).eps * (0.51 if got.dtype.itemsize == 2 else 2)
    assert largest_error(got, want) <= rounding * want.abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [16, 10])
def test_dense_at_offsets(dtype, interleaved, rotary_dim):
    x, (cos, sin) = random(4, 7, 3, 16, dtype=dtype), table(20, rotary_dim)
    offsets = torch.tensor([0, 13, 4, 2])
    for given in (5, 0, offsets, offsets.int()):
        got = apply_rotary(x, cos, sin, interleaved=interleaved, seqlen_offsets=given)
        starts = given if isinstance(given, torch.Tensor) else torch.full((4,), given)
        positions = starts[:, None] + torch.arange(7)
        assert got.dtype == dtype
        assert_right(got, rotated(x, cos, sin, positions, interleaved))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("offsets", [2, torch.tensor([4, 19, 0, 7], dtype=torch.int32)])
def test_packed_is_each_sequence_alone(interleaved, offsets):
    x, (cos, sin) = random(11, 2, 8), table(9, 8)
    got = apply_rotary(
        x, cos, sin, interleaved=interleaved, seqlen_offsets=offsets, cu_seqlens=CU_SEQLENS,
        max_seqlen=5,
    )  # fmt: skip
    starts = offsets if isinstance(offsets, torch.Tensor) else torch.full((4,), offsets)
    for part, start, rows in zip(x[:9].split(LENGTHS), starts, got[:9].split(LENGTHS), strict=True):
        if len(part):
            positions = (start + torch.arange(len(part)))[None]
            assert_right(rows[None], rotated(part[None], cos, sin, positions, interleaved))
    assert torch.equal(got[9:], x[9:])  # rows of no sequence


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_gives_the_same_bits(interleaved, dtype):
    heads = random(2, 3, 7, 16, dtype=dtype)
    x, (cos, sin) = heads.transpose(1, 2), table(7, 12)
    want = apply_rotary(x, cos, sin, interleaved=interleaved)
    got = apply_rotary(x, cos, sin, interleaved=interleaved, inplace=True)
    assert got is x and torch.equal(x, want)


def test_low_precision_tables():
    x, (cos, sin) = random(1, 7, 2, 16, dtype=torch.bfloat16), table(7, 16, torch.bfloat16)
    positions = torch.arange(7)[None]
    assert_right(apply_rotary(x, cos, sin), rotated(x, cos, sin, positions, False))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients(interleaved, packed):
    x = random(*((9, 1, 8) if packed else (4, 3, 1, 8)), dtype=torch.float64).requires_grad_()
    cos, sin = (y.requires_grad_() for y in table(9, 6, torch.float64))
    options = {"interleaved": interleaved, "seqlen_offsets": torch.tensor([1, 0, 2, 1])}
    if packed:
        options["cu_seqlens"] = CU_SEQLENS

    def function(x, cos, sin):
        return apply_rotary(x, cos, sin, **options)

    def in_place(x):
        return apply_rotary(x.clone(), cos.detach(), sin.detach(), inplace=True, **options)

    assert torch.autograd.gradcheck(function, (x, cos, sin))
    assert torch.autograd.gradgradcheck(function, (x, cos, sin), fast_mode=True)
    assert torch.autograd.gradcheck(in_place, x)


def test_compiles_as_one_graph():
    x, (cos, sin) = random(4, 3, 2, 8), table(9, 6)
    offsets = torch.tensor([1, 0, 2, 1])
    compiled = torch.compile(apply_rotary, fullgraph=True, backend="aot_eager", dynamic=True)
    for options in (
        {"seqlen_offsets": 2},
        {"seqlen_offsets": offsets, "interleaved": True},
        {"seqlen_offsets": offsets, "cu_seqlens": CU_SEQLENS, "max_seqlen": 5},
    ):
        given = x.flatten(0, 1)[:9] if "cu_seqlens" in options else x
        want = apply_rotary(given, cos, sin, **options)
        torch.testing.assert_close(compiled(given, cos, sin, **options), want)


def test_what_is_compiled_does_not_read_outside_the_table():
    """As on GPUs, where positions are not read back: such rows are not rotated."""
    x, (cos, sin) = random(2, 3, 1, 4), table(4, 4)
    compiled = torch.compile(apply_rotary, fullgraph=True, backend="aot_eager")
    got = compiled(x, cos, sin, seqlen_offsets=torch.tensor([2, -1]))
    assert torch.equal(got[0, 2], x[0, 2]) and torch.equal(got[1, 0], x[1, 0])
    torch.testing.assert_close(got[1, 1:], apply_rotary(x[1:, 1:], cos, sin)[0])


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8)])
def test_nothing_to_rotate(shape):
    x = torch.zeros(shape)
    assert apply_rotary(x, *table(3, 8)).shape == shape
    assert apply_rotary(x, *table(3, 8), seqlen_offsets=torch.zeros(shape[0]).long()).shape == shape


def test_no_dimension_rotated():
    x = random(2, 3, 1, 8)
    assert torch.equal(apply_rotary(x, torch.zeros(3, 0), torch.zeros(3, 0)), x)


X, COS = torch.zeros(2, 6, 4, 16), torch.zeros(8, 8)
PACKED = X.flatten(0, 1)


def cumulative(*numbers, dtype=torch.int32):
    return torch.tensor(numbers, dtype=dtype)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "parts"),
    [
        (([1], COS, COS), {}, TypeError, ["x", "list"]),
        ((X.int(), COS, COS), {}, TypeError, ["x.dtype", "int32"]),
        ((X, COS, COS.int()), {}, TypeError, ["sin.dtype", "int32"]),
        ((X[0], COS, COS), {}, ValueError, ["(6, 4, 16)", "cu_seqlens"]),
        ((X, COS[0], COS[0]), {}, ValueError, ["(8,)", "rotary_dim / 2"]),
        ((X, COS, COS[1:]), {}, ValueError, ["(8, 8)", "(7, 8)"]),
        ((X[..., :12], COS, COS), {}, ValueError, ["rotary_dim=16", "head_dim=12"]),
        ((X, COS.to("meta"), COS), {}, ValueError, ["cos is on meta", "cpu"]),
        ((X, COS, COS), {"interleaved": "yes"}, TypeError, ["interleaved"]),
        ((X, COS, COS), {"seqlen_offsets": 3}, ValueError, ["up to 8", "8 rows"]),
        ((X, COS, COS), {"seqlen_offsets": -1}, ValueError, ["position of -1"]),
        ((X, COS, COS), {"seqlen_offsets": 1.0}, TypeError, ["1.0", "int"]),
        ((X, COS, COS), {"seqlen_offsets": torch.zeros(2)}, TypeError, ["float32", "int64"]),
        ((X, COS, COS), {"seqlen_offsets": cumulative(1)}, ValueError, ["(1,)", "(2,)"]),
        ((X, COS, COS), {"seqlen_offsets": cumulative(0, 3)}, ValueError, ["up to 8", "8 rows"]),
        ((X, COS, COS), {"seqlen_offsets": cumulative(0, -2)}, ValueError, ["position of -2"]),
        ((X, COS, COS), {"max_seqlen": 6}, ValueError, ["max_seqlen=6", "cu_seqlens"]),
        ((X, COS, COS), {"cu_seqlens": cumulative(0, 6)}, ValueError, ["(total, H, D)"]),
        ((PACKED, COS, COS), {"cu_seqlens": [0, 6]}, TypeError, ["cu_seqlens", "list"]),
        (
            (PACKED, COS, COS),
            {"cu_seqlens": cumulative(0, 6, dtype=torch.int64)},
            TypeError,
            ["int64", "int32"],
        ),
        ((PACKED, COS, COS), {"cu_seqlens": CU_SEQLENS[None]}, ValueError, ["(1, 5)", "batch + 1"]),
        ((PACKED, COS, COS), {"cu_seqlens": cumulative(1, 6)}, ValueError, ["begins with 1"]),
        ((PACKED, COS, COS), {"cu_seqlens": cumulative(0, 13)}, ValueError, ["13", "12 rows"]),
        ((PACKED, COS, COS), {"cu_seqlens": cumulative(0, 8, 5)}, ValueError, ["decreases, by 3"]),
        ((PACKED, COS, COS), {"cu_seqlens": cumulative(0, 9)}, ValueError, ["up to 8", "8 rows"]),
        (
            (PACKED, COS, COS),
            {"cu_seqlens": cumulative(0, 6), "max_seqlen": 5},
            ValueError,
            ["max_seqlen=5", "6 rows"],
        ),
    ],
)
def test_wrong_arguments(arguments, options, error, parts):
    with pytest.raises(error) as raised:
        apply_rotary(*arguments, **options)
    assert all(part in str(raised.value) for part in parts), raised.value
