"""The gradient of linear attention's decay: differences, the error rule, runs, what torch asks."""

from functools import partial

import pytest
import torch
from pairwise import grid

from tvm_flash import linear_attention
from tvm_flash.frontend import linear_decay
from tvm_flash.reference import linear_reference
from tvm_flash.verify.rule import deviations

DECAYS = (1e-20, 1e-6, 1e-3, 0.1, 0.9, 1.0)
H, D = len(DECAYS), 16
# Heads of a decay where rounding is compared: of one number it may be 0 by luck.
MANY = 8


def given(rows=70, heads=H, kv_heads=None):
    """q and k, as features are, v and a state: float64, of float16's numbers."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    of_keys = (2, rows, kv_heads or heads, D)
    shapes = (2, rows, heads, D), of_keys, of_keys, (2, heads, D, D + 1)
    q, k, v, state = (draw(shape).half().double() for shape in shapes)
    return q.abs() + 0.125, k.abs() + 0.125, v, state.abs()


def loss(function, tensors, decay, upstream=(True, True), **options):
    """Random sums of the rows and of the state behind them, each with upstream numbers or none."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    *rows, state = tensors
    results = function(*rows, causal=True, decay=decay, initial_state=state, **options)
    return sum(
        (is_there * draw(y.shape).half().to(y.dtype) * y).double().sum()
        for y, is_there in zip(results, upstream, strict=True)
    )


def gradients(function, tensors, dtype, decays=DECAYS, **options):
    """dL/dg of each head, computed in ``dtype``."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    decay = torch.tensor(decays, dtype=wide, requires_grad=True)
    tensors = *(x.to(dtype) for x in tensors[:3]), tensors[3].to(wide)
    return torch.autograd.grad(loss(function, tensors, decay, **options), decay)[0]


own = partial(linear_attention, return_state=True)


@pytest.mark.parametrize("upstream", [(True, False), (False, True)], ids=["rows", "state"])
@pytest.mark.parametrize("normalize", [True, False])
def test_differences_of_a_polynomial(normalize, upstream):
    """By five points: a step greater than g is none too many, negative g have powers too."""
    tensors, step = given(rows=20), 1e-4
    found = gradients(own, tensors, torch.float32, normalize=normalize, upstream=upstream)
    for head, decay in enumerate(DECAYS):
        near = []
        for steps in (-2, -1, 1, 2):
            rates = torch.tensor(DECAYS, dtype=torch.float64)
            rates[head] = decay + steps * step
            options = {"normalize": normalize, "upstream": upstream}
            near.append(loss(linear_reference, tensors, rates, **options))
        slope = (near[0] - 8 * near[1] + 8 * near[2] - near[3]) / (12 * step)
        torch.testing.assert_close(found[head].double(), slope, rtol=2e-5, atol=1e-5)


@grid("dtype, normalize, group", ("float32", "float16"), (True, False), (1, 4))
def test_every_decay_keeps_the_error_rule(dtype, normalize, group):
    """Heads of each decay by themselves: a small gradient is not hidden by a large one."""
    kind, decays = getattr(torch, dtype), DECAYS * MANY
    tensors = given(heads=len(decays), kv_heads=len(decays) // group)
    call = partial(gradients, tensors=tensors, decays=decays, normalize=normalize)
    found, plain = call(own, dtype=kind), call(linear_reference, dtype=kind)
    exact = call(linear_reference, dtype=torch.float64)
    results = [
        {f"d{g}": x[n :: len(DECAYS)] for n, g in enumerate(DECAYS)} for x in (found, exact, plain)
    ]
    for deviation in deviations(dtype, *results):
        assert deviation.ok, str(deviation)


def test_keys_that_only_far_rows_see():
    """Row 2 of keys 0: 2 g a, of which nothing is left where a sum is divided by g = 1e-20."""
    q, k, v, state = given(rows=3)
    q, k = (x * torch.tensor(rows).view(-1, 1, 1) for x, rows in ((q, [0, 0, 1]), (k, [1, 0, 0])))
    tensors, options = (q, k, v, 0 * state), {"normalize": False, "upstream": (True, False)}
    found = gradients(own, tensors, torch.float32, **options).double()
    exact = gradients(linear_reference, tensors, torch.float64, **options)
    assert exact[0].abs() < 1e-18
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rows", [0, 1, 64, 65, 300])
def test_runs_of_chunks_join(rows, monkeypatch):
    monkeypatch.setattr(linear_decay, "_RUN", 2)
    tensors = given(rows=rows)
    found = gradients(own, tensors, torch.float32).double()
    exact = gradients(linear_reference, tensors, torch.float64)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("age", [0, 1])
def test_rows_from_the_last_and_states_of_both_ages(age):
    """Against float64 through every pair."""
    q, k, v, dout = (torch.randn(1, H, 7, D, dtype=torch.float64) for _ in range(4))
    state, dstate = torch.randn(2, 1, H, D - 1, D, dtype=torch.float64)
    decay = torch.tensor(DECAYS, dtype=torch.float64, requires_grad=True)
    row = torch.arange(7)
    seen = (row[:, None] - row).clamp(min=0)
    rate = decay[:, None, None]
    pairs = (q @ k.mT) * (dout @ v.mT) * (row[:, None] >= row) * rate**seen
    asked = ((q[..., :-1] @ state) * dout).sum(-1) * decay[:, None] ** (row + age)
    left = ((k[..., :-1] @ dstate) * v).sum(-1) * decay[:, None] ** (6 - row)
    total = pairs.sum() + asked.sum() + left.sum()
    total = total + (state * dstate * rate ** (6 + age)).sum()
    (exact,) = torch.autograd.grad(total, decay)
    rows = [x.float() for x in (q, k, v, dout)]
    others = [x.detach().float() for x in (decay, state, dstate)]
    turned = [x.flip(2) for x in rows]
    for reverse, x in ((0, rows), (1, turned)):
        found = linear_decay.decay_gradient(*x, *others, reverse, age).double()
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.sweep
def test_opcheck():
    rows = [torch.randn(1, 2, 5, 3) for _ in range(4)]
    states = [torch.randn(1, 2, 3, 3) for _ in range(2)]
    call = (*rows, torch.tensor([0.5, 1.0]), *states, 0, 1)
    torch.library.opcheck(linear_decay.decay_gradient, call)


def test_compiled_for_any_number_of_rows():
    def slope(q, k, v, decay):
        out = linear_attention(q, k, v, causal=True, decay=decay)
        return out.square().sum()

    compiled = torch.compile(slope, backend="aot_eager", fullgraph=True, dynamic=True)
    decay = torch.tensor(DECAYS, requires_grad=True)
    for rows in (70, 130):
        q, k, v = (x.float() for x in given(rows=rows)[:3])
        for x in (q, k, v):
            torch._dynamo.mark_dynamic(x, 1)
        (got,) = torch.autograd.grad(compiled(q, k, v, decay), decay)
        (want,) = torch.autograd.grad(slope(q, k, v, decay), decay)
        torch.testing.assert_close(got, want)
