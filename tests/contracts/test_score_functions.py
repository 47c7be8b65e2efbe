"""Score functions: tables are read as they are stored, published masks trace, costs are bounded."""

import functools
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import and_masks, or_masks

import tvm_flash
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.frontend import functional, sdpa
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.score.program import ScoreProgram
from tvm_flash.score.program_size import MAX_DEPTH, MAX_INSTRUCTIONS, MAX_TREE_NODES
from tvm_flash.score.trace import trace_mask_mod, trace_score_mod
from tvm_flash.verify.rule import allowed_error, largest_error
from tvm_flash.verify.score_function import as_function

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool)
SIZE = 18


def tensors(dtype=torch.float32, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, size, 2, 16, generator=generator).to(dtype) for _ in range(3)]


def holds(q, k, v, exact_options, found):
    """FlashAttention's rule, against float64."""
    exact, _ = attention_reference(q, k, v, **exact_options, upcast=torch.float64)
    plain, _ = attention_reference(q, k, v, **exact_options)
    dtype = str(q.dtype).removeprefix("torch.")
    assert largest_error(found, exact) <= allowed_error("out", dtype, exact, plain)


def numbers(dtype, seed):
    values = torch.randint(0, 5, (SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    return (values > 2 if dtype == torch.bool else values / (2 if dtype in FLOATS else 1)).to(dtype)


def test_captured_tensors_are_read_when_a_kernel_runs(device):
    """Tensors of every dtype; transposed, strided, expanded and partly indexed ones too."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    tables = [numbers(kind, 0) for kind in DTYPES]

    def score_mod(s, b, h, q_idx, k_idx):
        for n, table in enumerate(tables):
            half = q_idx // 2
            read = (
                table.T[k_idx, q_idx] if n % 4 == 0
                else table[::2][half, k_idx] if n % 4 == 1
                else table[:1].expand(7, SIZE)[h, k_idx] if n % 4 == 2
                else table[3, k_idx]
            )  # fmt: skip
            s = s + read * 0.25
        return s

    captured = tvm_flash.capture(score_mod)
    storages = {table.untyped_storage().data_ptr() for table in tables}
    assert {table.untyped_storage().data_ptr() for table in captured.tables} == storages
    q, k, v = tensors(dtype)
    for seed in (0, 1):
        for table in tables:
            table.copy_(numbers(table.dtype, seed))
        found = tvm_flash.attention(q, k, v, score_mod=captured)
        holds(q, k, v, {"score_mod": score_mod}, found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_tables_given_later_are_read_as_they_are_stored(dtype):
    captured = tvm_flash.capture(lambda s, b, h, q, k: s + numbers(torch.float32, 0)[q, k])
    if not dtype.is_floating_point:
        captured = tvm_flash.capture(lambda s, b, h, q, k: s + numbers(torch.int32, 0)[q, k])
    table = numbers(dtype, 0)
    given = captured.with_tables(table)
    assert given.tables[0] is table
    q, k, v = tensors()
    for seed in (0, 1):
        table.copy_(numbers(dtype, seed))
        found = tvm_flash.attention(q, k, v, score_mod=given)
        holds(q, k, v, {"score_mod": lambda s, b, h, i, j: s + table[i, j].float()}, found)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (2, 1, 1, SIZE), (SIZE, 1), (1, 1, 1, SIZE, 1)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16], ids=str)
def test_a_broadcast_mask_is_not_stored_in_full(dtype, shape, monkeypatch):
    q, k, v = (x.transpose(1, 2) for x in tensors(torch.bfloat16))
    if len(shape) > 4:
        q, k, v = (x.expand(3, *x.shape) for x in (q, k, v))
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    read = []
    operator = functional.attention_operator

    def seen(q, k, v, tables, *rest):
        read.extend(tables)
        return operator(q, k, v, tables, *rest)

    monkeypatch.setattr(functional, "attention_operator", seen)
    found = tvm_flash.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert read[0].untyped_storage().data_ptr() == mask.untyped_storage().data_ptr()
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), mask if dtype == torch.bool else mask.double()
    )
    assert largest_error(found, exact.nan_to_num(0.0)) < 0.03


def test_broadcast_heads_under_unlike_leading_dimensions_are_not_stored():
    """(3, 1, 1, S, S) over (3, 2, H, S, S): 3 * 2 masks are brought together, not heads."""
    q, k, v = (x.transpose(1, 2)[None].expand(3, 2, 2, SIZE, 16) for x in tensors())
    mask = torch.rand(3, 1, 1, SIZE, SIZE) < 0.7
    mods = sdpa.as_mods(mask, (3, 2, 2, SIZE, SIZE))
    assert mods.tables[0].untyped_storage().nbytes() == 3 * 2 * SIZE * SIZE
    found = tvm_flash.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert (
        largest_error(found, F.scaled_dot_product_attention(q, k, v, mask).nan_to_num(0.0)) < 1e-5
    )


DOCUMENT = torch.arange(SIZE).div(5, rounding_mode="floor")[None].expand(2, -1)
PADDING = torch.arange(SIZE)[None] < torch.tensor([[SIZE - 5], [SIZE]])


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def padding(b, h, q_idx, kv_idx):
    return PADDING[b, kv_idx]


def on_the_device(b, h, q_idx, kv_idx):
    """As transformers joins masks."""
    result = q_idx.new_ones((), dtype=torch.bool)
    for mask in (causal, padding):
        result = result & mask(b, h, q_idx, kv_idx).to(result.device)
    return result


def made_of_nothing(b, h, q_idx, kv_idx):
    zero, one = torch.zeros_like(q_idx, dtype=torch.bool), q_idx.new_full((), 1, dtype=torch.bool)
    return (zero | one) & (q_idx.new_zeros(()) + torch.full_like(kv_idx, 3) <= q_idx.new_tensor(3))


MASKS = {
    "and_masks": and_masks(causal, lambda b, h, q, k: q - k <= 4),
    "or_masks": or_masks(causal, lambda b, h, q, k: k < 5),
    "on_the_device": on_the_device,
    "made_of_nothing": made_of_nothing,
    "documents": lambda b, h, q, k: (DOCUMENT[b, q] == DOCUMENT[b, k]) & (q >= k),
    "chunks": lambda b, h, q, k: (k - 3) // 4 == (q - 3) // 4,
    "dilated": lambda b, h, q, k: (torch.abs(q - k) <= 6) & (torch.abs(q - k) % 2 == 0),
    "neighbours": lambda b, h, q, k: (
        (q // 4).clamp(1, 3) - k // 4
    ).abs().le(1).logical_and(((q % 4) - (k % 4)).abs() <= 1),
    "bits": lambda b, h, q, k: ((q | (q << 2)) & 0x33) >= ((k | (k >> 1)) & 0x33),
    "kwargs": functools.partial(lambda b, h, q, k, offset: k <= q + offset, offset=3),
    "filled": lambda b, h, q, k: (q > k).masked_fill(k == 0, True).contiguous().any(),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_published_masks_trace(name):
    program, tables = trace_mask_mod(MASKS[name])
    indices = torch.meshgrid(*map(torch.arange, (2, 2, SIZE, SIZE)), indexing="ij")
    expected = torch.tensor(
        [bool(MASKS[name](*index)) for index in torch.stack(indices, -1).reshape(-1, 4)]
    )
    found = as_function(program, tables)(*indices)
    assert torch.equal(found.broadcast_to(indices[0].shape).reshape(-1), expected)


SCORES = {
    "masked_fill": lambda s, b, h, q, k: s.masked_fill(q < k, -math.inf),
    "clone": lambda s, b, h, q, k: s.clone().to(s.device).to(torch.float32).type_as(s),
    "alpha": lambda s, b, h, q, k: torch.add(s, q - k, alpha=2) - torch.sub(s, k, alpha=0.5),
    "keywords": lambda s, b, h, q, k: torch.clamp(input=s, min=0) + torch.mul(s, other=2.0),
    "lerp": lambda s, b, h, q, k: torch.lerp(s, s * 2, 0.3) + torch.addcmul(s, s, s, value=0.5),
    "hyperbolic": lambda s, b, h, q, k: torch.sinh(s) + torch.cosh(s) + torch.expm1(s * 1e-3),
    "nan_to_num": lambda s, b, h, q, k: torch.where(q > k, s, math.inf).nan_to_num(1, 2, 3),
    "isfinite": lambda s, b, h, q, k: s + torch.isfinite(s) + torch.isneginf(s),
    "hypot": lambda s, b, h, q, k: torch.hypot(s, s + 1) + torch.erfc(s) + torch.frac(s),
}  # fmt: skip
ACTIVATIONS = """elu selu celu leaky_relu relu6 hardtanh hardsigmoid hardswish mish softsign
    tanhshrink relu silu gelu softplus logsigmoid""".split()
SCORES |= {
    name: lambda s, b, h, q, k, name=name: torch.log(getattr(F, name)(s) + 9)
    for name in ACTIVATIONS
}


@pytest.mark.parametrize("name", SCORES)
def test_published_score_functions_trace(name):
    """The program means what torch computes, its slope too."""
    program, tables = trace_score_mod(SCORES[name])
    score = torch.linspace(-4, 4, 81, dtype=torch.float64)[1::2].requires_grad_()
    q_idx = torch.arange(score.numel()) % 7
    index = (torch.zeros_like(q_idx), torch.zeros_like(q_idx), q_idx, q_idx.flip(0))
    expected = SCORES[name](score, *index)
    found = as_function(program, tables)(score, *index)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    slopes = [
        torch.autograd.grad(x[x.isfinite()].sum(), score, retain_graph=True)[0]
        for x in (found, expected)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-6)


def line_of(function):
    return f"{__file__}:{function.__code__.co_firstlineno}"


REFUSED = {
    "unknown": lambda s, b, h, q, k: torch.cumsum(s, 0),
    "no_tensor_has_it": lambda s, b, h, q, k: s.cumulated(),
    "property": lambda s, b, h, q, k: s + q.T,
    "size": lambda s, b, h, q, k: s + q.new_ones((2,)),
    "detach": lambda s, b, h, q, k: s.detach(),
    "half": lambda s, b, h, q, k: s.to(torch.bfloat16),
    "division": lambda s, b, h, q, k: s + q // 0,
    "modulo": lambda s, b, h, q, k: s + q % 0,
    "huge": lambda s, b, h, q, k: s + 10**400,
    "quantised": lambda s, b, h, q, k: s + torch.zeros(3, dtype=torch.complex64)[q],
    "deep": lambda s, b, h, q, k: functools.reduce(lambda x, n: x + q, range(MAX_DEPTH), s),
    "long": lambda s, b, h, q, k: sum((q + n for n in range(MAX_INSTRUCTIONS)), s),
    "wide": lambda s, b, h, q, k: functools.reduce(lambda x, n: x * x, range(12), s),
    "chain": lambda s, b, h, q, k: functools.reduce(lambda i, n: DOCUMENT[0, i], range(60), q),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_users_line(name):
    function = REFUSED[name]
    with pytest.raises((UnsupportedSpec, TypeError, ValueError, AttributeError)) as caught:
        tvm_flash.attention(*tensors(), score_mod=function)
    assert line_of(function) in str(caught.value)


def test_refusals_inside_and_masks_name_the_users_line():
    wrong = and_masks(causal, lambda b, h, q, k: torch.cumsum(q, 0) > k)
    with pytest.raises(UnsupportedSpec, match=re.escape(__file__)):
        tvm_flash.attention(*tensors(), mask_mod=wrong)


def program_of(lines, tables=()):
    symbols = [["score"], ["b"], ["h"], ["q_idx"], ["k_idx"]]
    return {"version": 2, "instructions": [*symbols, *lines], "tables": [list(t) for t in tables]}


@pytest.mark.parametrize(
    ("lines", "limit"),
    [
        ([["add", 0, 0]] * 10**6, MAX_INSTRUCTIONS),
        ([["add", 4 + n if n else 0, 0] for n in range(MAX_DEPTH)], MAX_DEPTH),
        ([["mul", 4 + n if n else 0, 4 + n if n else 0] for n in range(40)], MAX_TREE_NODES),
        ([["tanh", 4 + n if n else 0] for n in range(40)], MAX_TREE_NODES),
    ],
    ids=["long", "deep", "wide", "steep"],
)
def test_programs_that_are_read_have_the_same_budget(lines, limit):
    with pytest.raises(UnsupportedSpec, match=str(limit)):
        ScoreProgram.from_json(program_of(lines))
    spec = {**AttentionSpec(dtype="float32", head_dim=64).to_json(), "score_mod": program_of(lines)}
    with pytest.raises(UnsupportedSpec, match=str(limit)):
        AttentionSpec.from_json(spec)


def test_programs_of_another_version_are_refused():
    """Version 1 meant a table of bools by uint8."""
    old = {**program_of([["load", 0, 3], ["cast", "float32", 5]], [("uint8", 1)]), "version": 1}
    with pytest.raises(ValueError, match="version 1"):
        ScoreProgram.from_json(old)


LOWEST = {torch.int32: -(2**31), torch.int64: -(2**63)}


@pytest.mark.parametrize("dtype", LOWEST, ids=str)
def test_integer_division_is_torchs_and_never_traps(dtype):
    """The smallest integer by -1 wraps around (a trap of the processor ended the process)."""
    above = torch.full((SIZE,), LOWEST[dtype], dtype=dtype)
    above[1::2] = torch.arange(1, SIZE, 2) - 8
    below = torch.tensor([-1, 3, -5, 1, -1, 7]).to(dtype).repeat(SIZE // 6)

    def score_mod(s, b, h, q, k):
        quotients = above[q] // below[k], above[q] // -1, above[k] // -3
        rests = above[q] % below[k], above[q] % -1, above[k] % -3
        for x in (*quotients, *rests):
            s = s + (x % 1009) * 1e-3
        return s

    def exact(s, b, h, q, k):
        wrapped = torch.where(above[q] == LOWEST[dtype], above[q], -above[q])
        divisor = torch.where(below[k] == -1, 1, below[k])
        quotient = torch.where(below[k] == -1, wrapped, above[q] // divisor)
        rests = above[q] % divisor, 0 * q, above[k] % -3
        for x in (quotient, wrapped, above[k] // -3, *rests):
            s = s + (x % 1009) * 1e-3
        return s

    q, k, v = tensors()
    holds(q, k, v, {"score_mod": exact}, tvm_flash.attention(q, k, v, score_mod=score_mod))


def test_division_by_zero_and_literals_beyond_float32_are_torchs():
    def score_mod(s, b, h, q, k):
        odd = torch.isinf(q / 0.0) + torch.isnan(s % 0.0) + torch.isnan(torch.fmod(s, 0.0))
        odd = odd * (torch.isinf(s + 1e300) + (q * 0.0 - 1e39 < -3e38) * (s + 3.4028235e38 > 0))
        return torch.where((q > 0) & (s + 3.4028235e38 < math.inf), s + 0.1 * odd * k, s - s / -0.0)

    q, k, v = tensors()
    found = tvm_flash.attention(q, k, v, score_mod=score_mod)[:, 1:]
    expected, _ = attention_reference(q[:, 1:], k, v, score_mod=lambda s, *i: s + 0.1 * i[3])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tables_longer_than_int32_are_read_at_the_index():
    """Their pages are never touched, but for those that are read."""
    table = torch.from_numpy(np.zeros(2**31 + 64, np.int8))
    table[:SIZE] = torch.arange(SIZE, dtype=torch.int8)
    table[2**31 : 2**31 + SIZE] = 2 * torch.arange(SIZE, dtype=torch.int8)

    def score_mod(s, b, h, q_idx, k_idx):
        near, far = table[None].expand(3, -1)[h, k_idx], table[k_idx.long() + 2**31]
        return s + near * 0.1 + far * 0.05

    q, k, v = tensors()
    found = tvm_flash.attention(q, k, v, score_mod=score_mod)
    holds(q, k, v, {"score_mod": lambda s, b, h, i, j: s + j * 0.2}, found)
