"""Traced functions, as TIR and compiled, give torch's values and torch's gradients."""

import pytest
import torch
import torch.nn.functional as F
from problems import compile_function
from tvm import tirx
from tvm.script import tirx as T

from tvm_flash.definition.score_expressions import (
    Site,
    legalise,
    mask_expr,
    score_expr,
    score_grad_expr,
)
from tvm_flash.definition.signature import Signature
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cpu.vector_math import VectorMath
from tvm_flash.schedules.target import host_target

POINTS = 64
SCALE = 0.5
NUMBERS = {"window_left": 5, "window_right": 3, "softcap": 1.5}
BIAS = torch.linspace(-2, 2, 40)
GRID = torch.arange(24.0).reshape(2, 12).double()
FLAGS = torch.arange(40) % 3 == 0
STEPS = torch.arange(-20, 20)
OFFSET = torch.tensor(0.25)
SMALL = torch.arange(7, dtype=torch.int8)


def evaluate(spec, tables, raw, q_idx, k_idx, math=None):
    """(score or mask, slope) of ``spec`` at points, b = 1 and h = 0, through compiled TIR."""
    sig = Signature(spec)
    sizes = tirx.const(40, "int32"), tirx.const(50, "int32")

    def site(q, k):
        b, h = tirx.const(1, "int32"), tirx.const(0, "int32")
        numbers = {**sig.numbers, "inverse_cap": tirx.const(1 / NUMBERS["softcap"], "float32")}
        return Site(b, h, q, k, *sizes, numbers, sig.tables)

    def legal(expr):
        return expr if math is None else legalise(expr, math)

    def value(x, q, k):
        if spec.mask_mod is None:
            return legal(score_expr(spec, x, site(q, k)))
        return tirx.Cast("float32", mask_expr(spec, site(q, k)))

    def slope(x, q, k):
        return legal(score_grad_expr(spec, x, site(q, k)))

    @T.prim_func(s_tir=True, check_well_formed=False)
    def points(x: T.handle, q: T.handle, k: T.handle, y: T.handle, dy: T.handle):
        X = T.match_buffer(x, (POINTS,), "float32")
        I = T.match_buffer(q, (POINTS,), "int32")
        J = T.match_buffer(k, (POINTS,), "int32")
        Y = T.match_buffer(y, (POINTS,), "float32")
        D = T.match_buffer(dy, (POINTS,), "float32")
        for n in range(POINTS):
            with T.sblock("value"):
                vn = T.axis.spatial(POINTS, n)
                Y[vn] = value(X[vn], I[vn], J[vn])
        for n in range(POINTS):
            with T.sblock("slope"):
                vn = T.axis.spatial(POINTS, n)
                D[vn] = slope(X[vn], I[vn], J[vn])

    kernel = compile_function(sig.finish(points, "points"), host_target().tvm_target())
    y, dy = torch.full((POINTS,), float("nan")), torch.full((POINTS,), float("nan"))
    numbers = [NUMBERS.get(name, SCALE) for name in sig.numbers]
    kernel(raw, q_idx, k_idx, y, dy, *tables, *numbers)
    return y, dy


def sites(seed=0):
    """Raw scores that include 0, and positions below 40 and 50."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(POINTS, generator=generator) * 2
    raw[:4] = torch.tensor([0.0, 2.0, -2.0, 30.0])
    q_idx = torch.randint(0, 40, (POINTS,), generator=generator, dtype=torch.int32)
    k_idx = torch.randint(0, 40, (POINTS,), generator=generator, dtype=torch.int32)
    return raw, q_idx, k_idx


def torch_value(function, raw, q_idx, k_idx):
    """(value, slope) by torch's autograd in float64."""
    leaf = raw.double().requires_grad_()
    one, zero = torch.tensor(1), torch.tensor(0)
    value = function(leaf * SCALE, one, zero, q_idx, k_idx)
    value = torch.as_tensor(value, dtype=torch.float64).expand(POINTS)
    slope = torch.zeros_like(leaf)
    if value.requires_grad:
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def detached(s):
    """``s`` without its slope: torch has none for floor division."""
    return s.detach() if isinstance(s, torch.Tensor) else s


# One expression a row: s is the score, q and k the positions.
EXPRESSIONS = {
    "neg": lambda s, b, h, q, k: -s,
    "abs": lambda s, b, h, q, k: torch.abs(s) + abs(q - k),
    "arithmetic": lambda s, b, h, q, k: 2 - (s + 1) * (s - q) / 3 + k / (q + 1),
    "integer_division": lambda s, b, h, q, k: s + (q - k) // 5 + (q - 7) % 4 + q / 3,
    "table_divisor": lambda s, b, h, q, k: s + (q - k) // (STEPS[q] * 2 + 1),
    "float_division": lambda s, b, h, q, k: detached(s) // 0.75 + s * 0.5,
    "remainder": lambda s, b, h, q, k: torch.remainder(s, 1.7) + s % (k + 1),
    "fmod": lambda s, b, h, q, k: torch.fmod(s, 1.7),
    "square": lambda s, b, h, q, k: torch.square(s) + s**3 + s**0,
    "fractional_power": lambda s, b, h, q, k: (s * s + 1) ** 1.5,
    "reciprocal_power": lambda s, b, h, q, k: (s * s + 1) ** -1 + (s * s + 2) ** -2,
    "power_of_score": lambda s, b, h, q, k: 1.5**s,
    "sqrt": lambda s, b, h, q, k: torch.sqrt(s * s + 1) + (s * s + 2) ** 0.5,
    "rsqrt": lambda s, b, h, q, k: torch.rsqrt(s * s + 1),
    "reciprocal": lambda s, b, h, q, k: torch.reciprocal(s * s + 1),
    "exp": lambda s, b, h, q, k: torch.exp(s * 0.5),
    "exp2": lambda s, b, h, q, k: torch.exp2(s),
    "log": lambda s, b, h, q, k: torch.log(s * s + 1) + torch.log1p(torch.abs(s) + 0.5),
    "log2": lambda s, b, h, q, k: torch.log2(s * s + 1) + torch.log10(s * s + 1),
    "tanh": lambda s, b, h, q, k: torch.tanh(s) + s.tanh(),
    "sigmoid": lambda s, b, h, q, k: torch.sigmoid(s) + torch.special.expit(-2 * s),
    "trigonometry": lambda s, b, h, q, k: torch.sin(s) + torch.cos(2 * s) + torch.atan(s),
    "tan": lambda s, b, h, q, k: torch.tan(s * 0.04),
    "erf": lambda s, b, h, q, k: torch.erf(s),
    "rounding": lambda s, b, h, q, k: torch.floor(s) + torch.ceil(s * 3) + torch.trunc(s) + s,
    "round": lambda s, b, h, q, k: torch.round(s * 2) + torch.round(q / 2),
    "maximum": lambda s, b, h, q, k: torch.maximum(s, torch.minimum(-s, OFFSET)),
    "clamp": lambda s, b, h, q, k: torch.clamp(s, -1.0, 1.0) + s.clamp(min=0) + s.clamp_max(2),
    "relu": lambda s, b, h, q, k: F.relu(s) + F.relu(-s + 1) * 2,
    "activations": lambda s, b, h, q, k: F.silu(s) + F.softplus(s) + F.gelu(s) + F.logsigmoid(s),
    "gelu_tanh": lambda s, b, h, q, k: F.gelu(s, approximate="tanh"),
    "logaddexp": lambda s, b, h, q, k: torch.logaddexp(s, 0.5 * s + 0.1),
    "where": lambda s, b, h, q, k: torch.where(q >= k, s * 2, -s),
    "where_of_score": lambda s, b, h, q, k: torch.where(s > 0.3, s * s, 0.0),
    "minus_infinity": lambda s, b, h, q, k: torch.where((q - k) % 3 != 0, s, -float("inf")),
    "comparisons": lambda s, b, h, q, k: s + (q < k) + 2 * (q <= k) + 4 * (q == k) + 8 * (s != 0),
    "logic": lambda s, b, h, q, k: torch.where(((q > 3) & (k > 5)) | ~(q < 9) ^ (k == 2), s, 2 * s),
    "logical_functions": lambda s, b, h, q, k: s * torch.logical_or(
        torch.logical_and(q > 3, k), torch.logical_not(torch.logical_xor(q, k > 7))
    ),
    "bits": lambda s, b, h, q, k: s + (q & 5) + (q | 8) + (q ^ k) + (~q) + (q << 2) + (k >> 1),
    "bool_arithmetic": lambda s, b, h, q, k: s * ((q > 3) * (k > 5)) + ((q > 9) + (k > 9)),
    "sign": lambda s, b, h, q, k: torch.sign(s) + s * torch.sign(q - k),
    "casts": lambda s, b, h, q, k: s * q.float() + s.int() + q.to(torch.float32).long() + k.bool(),
    "unsafe_cast": lambda s, b, h, q, k: s + BIAS[torch.clamp((s * 1e0).int(), 0, 5)],
    "likes": lambda s, b, h, q, k: torch.zeros_like(s) + torch.full_like(s, 2.0) * s,
    "nan_test": lambda s, b, h, q, k: torch.where(torch.isnan(s) | torch.isinf(s), 0.0, s),
    "b_and_h": lambda s, b, h, q, k: s * (b + 1) + h,
    "table": lambda s, b, h, q, k: s * BIAS[q] + BIAS[39 - k],
    "table_2d": lambda s, b, h, q, k: s + GRID[b, q % 12] * GRID[b][k % 12] + GRID[-1, q % 12],
    "table_bool": lambda s, b, h, q, k: torch.where(FLAGS[q] & FLAGS[k], s, s * 0.5) + FLAGS[k],
    "table_int": lambda s, b, h, q, k: s + STEPS[q] * 2 + BIAS[STEPS[q] + 20] + SMALL[q % 7],
    "table_scalar": lambda s, b, h, q, k: s * OFFSET - OFFSET,
    "nested_tables": lambda s, b, h, q, k: s + BIAS[torch.abs(STEPS[39 - q])],
    "constant": lambda s, b, h, q, k: 0.5,
    "identity": lambda s, b, h, q, k: s,
    "alibi_like": lambda s, b, h, q, k: s - torch.exp2(-((h + 1) * 8.0 / 4)) * (q - k),
}  # fmt: skip


def has_polynomials(name):
    """Whether the function uses one that VectorMath has."""
    spec, _ = AttentionSpec.capture(dtype="float32", head_dim=64, score_mod=EXPRESSIONS[name])
    names = {line[0] for line in spec.score_mod.instructions}
    return bool(names & {"exp", "exp2", "tanh", "sigmoid", "erf"})


@pytest.mark.parametrize(
    ("name", "math"),
    [(name, None) for name in EXPRESSIONS]
    + [(name, VectorMath()) for name in EXPRESSIONS if has_polynomials(name)],
)
def test_value_and_slope(name, math):
    spec, tables = AttentionSpec.capture(dtype="float32", head_dim=64, score_mod=EXPRESSIONS[name])
    points = sites()
    value, slope = evaluate(spec, tables, *points, math)
    expected, expected_slope = torch_value(EXPRESSIONS[name], *points)
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=5e-5, atol=5e-5)


def test_where_stops_what_the_other_branch_would_make_nan():
    """Unlike autograd, which multiplies the infinite slope of the branch not taken by zero."""
    spec, _ = AttentionSpec.capture(
        dtype="float32",
        head_dim=64,
        score_mod=lambda s, b, h, q, k: torch.where(s > 0, torch.sqrt(s), s),
    )
    raw, q_idx, k_idx = sites()
    value, slope = evaluate(spec, [], raw, q_idx, k_idx)
    assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize(
    "index",
    [
        lambda s, q, k: q * 1000,
        lambda s, q, k: -1 - q,
        lambda s, q, k: (s * 1e30).int(),
        lambda s, q, k: (s * -1e30).long(),
        lambda s, q, k: torch.log(s * 0 - 1).int(),
        lambda s, q, k: q * 10_000_000_000,
    ],
    ids=["beyond", "negative", "huge", "huge_negative", "nan", "int64"],
)
def test_any_index_stays_in_its_table(index):
    table = torch.arange(1.0, 5.0)
    surrounded = torch.full((12,), float("nan"))
    surrounded[4:8] = table
    spec, _ = AttentionSpec.capture(
        dtype="float32", head_dim=64, score_mod=lambda s, b, h, q, k: s * 0 + table[index(s, q, k)]
    )
    value, _ = evaluate(spec, [surrounded[4:8]], *sites())
    assert set(value.tolist()) <= {1.0, 2.0, 3.0, 4.0}


def test_division_by_zero_of_integers_does_not_trap():
    zeros = torch.zeros(40, dtype=torch.int32)
    spec, tables = AttentionSpec.capture(
        dtype="float32",
        head_dim=64,
        score_mod=lambda s, b, h, q, k: s + q // zeros[q] + q % zeros[k],
    )
    value, _ = evaluate(spec, tables, *sites())
    assert value.isfinite().all()


@pytest.mark.parametrize("alignment", ["bottom_right", "top_left"])
def test_the_whole_pipeline(alignment):
    """scale, softcap, ALiBi on the aligned row, user function on the plain row, in this order."""
    slopes = torch.rand(2, 1)
    shift = 10 if alignment == "bottom_right" else 0
    spec, tables = AttentionSpec.capture(
        dtype="float32", head_dim=64, softcap=True, alibi=True, alignment=alignment,
        score_mod=lambda s, b, h, q, k: s * BIAS[q],
    )  # fmt: skip

    def pipeline(s, b, h, q, k):
        s = torch.tanh(s / 1.5) * 1.5 - slopes[b, h] * (q + shift - k).abs()
        return s * BIAS[q]

    points = sites()
    value, slope = evaluate(spec, [slopes, *tables], *points)
    expected, expected_slope = torch_value(pipeline, *points)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-5, atol=1e-5)


MASKS = {
    "causal": (lambda b, h, q, k: q + 10 >= k, {"causal": True}),
    "window": (
        lambda b, h, q, k: (k >= q + 10 - 5) & (k <= q + 10 + 3),
        {"window_left": True, "window_right": True},
    ),
    "document": (lambda b, h, q, k: FLAGS[q] == FLAGS[k], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    oracle, fields = MASKS[name]
    user = oracle if not fields else lambda b, h, q, k: k >= 0
    spec, tables = AttentionSpec.capture(dtype="float32", head_dim=64, mask_mod=user, **fields)
    raw, q_idx, k_idx = sites()
    value, _ = evaluate(spec, tables, raw, q_idx, k_idx)
    assert torch.equal(value.bool(), oracle(1, 0, q_idx, k_idx))


def test_nothing_masks():
    spec = AttentionSpec(dtype="float32", head_dim=64)
    index = tirx.const(0, "int32")
    site = Site(*[index] * 6, {})
    assert mask_expr(spec, site) is None


def test_unknown_derivative_says_so():
    from tvm_flash.definition.derivative import differentiate

    x = tirx.Var("x", "float32")
    with pytest.raises(UnsupportedSpec, match="acosh"):
        differentiate(tirx.acosh(x), x)
