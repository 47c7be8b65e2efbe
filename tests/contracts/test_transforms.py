"""torch.func and torch.vmap of attention: the values of torch's own attention under them."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._pytree import tree_leaves

from tvm_flash import AttentionSpec, attention, capture, scaled_dot_product_attention
from tvm_flash.frontend.vmap import table_axes

N, B, H, S, D = 3, 2, 2, 16, 16
Q, K, V = torch.randn(3, N, B, H, S, D, generator=torch.Generator().manual_seed(0)).double()
ONE = (Q[0], K[0], V[0])
FIRST = (0, None, None)


def ours(q, k, v, **options):
    out = scaled_dot_product_attention(q.float(), k.float(), v.float(), **options)
    return out.to(q.dtype)


def exact(q, k, v, **options):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)


def loss(attend):
    return lambda *x: attend(*x, is_causal=True).sin().sum()


TRANSFORMS = {
    "grad": lambda f: grad(loss(f), (0, 1, 2))(*ONE),
    "vjp": lambda f: vjp(f, *ONE)[1](V[1]),
    "jacrev": lambda f: jacrev(lambda *x: f(*x).sum((0, 1, 3)), (0, 1, 2))(*ONE),
    "vmap": lambda f: vmap(f)(Q, K, V),
    "vmap of some": lambda f: vmap(f, (None, 0, None))(Q[0], K, V[0]),
    "vmap along another dimension": lambda f: vmap(f, (1, 2, 3), 1)(
        Q.movedim(0, 1), K.movedim(0, 2), V.movedim(0, 3)
    ),
    "vmap of vmap": lambda f: vmap(vmap(f))(Q.unsqueeze(2), K.unsqueeze(2), V.unsqueeze(2)),
    "vmap of grad": lambda f: vmap(grad(loss(f), (0, 1, 2)))(Q, K, V),
    "vmap of grad of some": lambda f: vmap(grad(loss(f), (0, 1, 2)), FIRST)(Q, K[0], V[0]),
    "grad of vmap": lambda f: grad(
        lambda *x: vmap(lambda *y: f(*y, is_causal=True))(*x).sin().sum(), (0, 1, 2)
    )(Q, K, V),
    "grad of vmap of some": lambda f: grad(
        lambda *x: vmap(f, FIRST)(*x).sin().sum(), (0, 1, 2)
    )(Q, K[0], V[0]),
    "grad without gradients inside": lambda f: grad(lambda q: (frozen(f, q) * q).sum())(Q[0]),
    "autograd of vmap": lambda f: autograd(lambda q: vmap(f)(q, K, V).sin().sum(), Q),
    "autograd of vjp": lambda f: autograd(lambda q: vjp(f, q, K[0], V[0])[0].sin().sum(), Q[0]),
    "checkpoint in grad": lambda f: grad(lambda q: (f(q, K[0], V[0]) * f(q, q, q)).sum())(Q[0]),
}  # fmt: skip


def frozen(f, q):
    with torch.no_grad():
        return f(q, K[0], V[0])


def autograd(function, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_values_are_those_of_torch(name):
    got, want = (tree_leaves(TRANSFORMS[name](f)) for f in (ours, exact))
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


SECOND = {
    "grad of grad": lambda f: grad(lambda q: grad(f)(q).sum())(Q[0]),
    "jacrev of grad": lambda f: jacrev(grad(f))(Q[0]),
    "autograd of grad": lambda f: autograd(lambda q: grad(f)(q).sum(), Q[0]),
}
FORWARD_MODE = {
    "jvp": lambda f: jvp(f, (Q[0],), (Q[0],)),
    "jacfwd": lambda f: jacfwd(f)(Q[0]),
    "linearize": lambda f: linearize(f, Q[0]),
    "hessian": lambda f: hessian(f)(Q[0]),
    "jvp of grad": lambda f: jvp(grad(f), (Q[0],), (Q[0],)),
    "jvp of vmap": lambda f: jvp(vmap(f), (Q,), (Q,)),
    "vmap of jvp": lambda f: vmap(lambda q: jvp(f, (q,), (q,)))(Q),
}


@pytest.mark.parametrize("name", [*SECOND, *FORWARD_MODE])
def test_derivatives_that_are_not_computed_are_refused_not_zero(name):
    message = "attention's gradient" if name in SECOND else "use reverse mode"
    with pytest.raises(NotImplementedError, match=message):
        {**SECOND, **FORWARD_MODE}[name](lambda q: loss(ours)(q, K[0], V[0]))


POSITIONS = torch.linspace(-1, 1, S).expand(B, S).contiguous()
WEIGHTS = torch.linspace(0.5, 1.5, N * B * H).reshape(N, B, H)
ROWS, HEADS = WEIGHTS[0], WEIGHTS[0, 0]
BY_HEAD = capture(lambda s, b, h, i, j: s * HEADS[h])
BY_BATCH = capture(lambda s, b, h, i, j: s * ROWS[b, h])
CLAMPED = BY_BATCH.with_tables(torch.cat([ROWS, ROWS + 1]))
MIXED = capture(
    lambda s, b, h, i, j: s + POSITIONS[b, j], lambda b, h, i, j: POSITIONS[b, i] >= POSITIONS[b, j]
)
ARITHMETIC = capture(lambda s, b, h, i, j: s * (b + 1))
BY_BOTH = capture(lambda s, b, h, i, j: s * ROWS[b, h] + ROWS[h, h])
SLOPES = torch.linspace(0.1, 0.4, N * H).reshape(N, H)
MASK = torch.rand(N, B, 1, S, S, generator=torch.Generator().manual_seed(1)) > 0.3


def with_weights(program):
    return lambda q, k, v, w: attention(q, k, v, layout="bhsd", score_mod=program.with_tables(w))


def with_alibi(q, k, v, slopes):
    return attention(q, k, v, layout="bhsd", alibi_slopes=slopes)


def with_program(program):
    return lambda q, k, v, _: attention(q, k, v, layout="bhsd", score_mod=program)


# The function, its fourth argument (one for each entry), and how many calls of a kernel N take.
PROBLEMS = {
    "table of heads, one for all": (with_program(BY_HEAD), WEIGHTS, 1),
    "table of heads, one each": (with_weights(BY_HEAD), WEIGHTS[:, 0], N),
    "table of the batch, one for all": (with_program(BY_BATCH), WEIGHTS, 1),
    "table of the batch, one each": (with_weights(BY_BATCH), WEIGHTS, 1),
    "score_mod and mask_mod": (with_program(MIXED), WEIGHTS, 1),
    "table longer than the batch": (with_program(CLAMPED), WEIGHTS, N),
    "arithmetic with b": (with_program(ARITHMETIC), WEIGHTS, N),
    "a table by b and by h": (with_program(BY_BOTH), WEIGHTS, N),
    "alibi, one for all": (lambda q, k, v, _: with_alibi(q, k, v, SLOPES[0]), WEIGHTS, 1),
    "alibi, one each": (with_alibi, SLOPES, 1),
    "mask, one for all": (lambda q, k, v, _: ours(q, k, v, attn_mask=MASK[0]), MASK, 1),
    "mask, one each": (scaled_dot_product_attention, MASK, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_call_where_b_only_selects_and_the_right_values_always(name, asked):
    function, fourth, calls = PROBLEMS[name]
    arguments = (Q.float(), K.float(), V.float(), fourth)
    want = torch.stack([function(*entry) for entry in zip(*arguments, strict=True)])
    asked.clear()
    assert torch.equal(vmap(function)(*arguments), want)
    assert asked == ["forward"] * calls


@pytest.mark.parametrize("name", ["mask, one each", "arithmetic with b"])
def test_gradients_of_each_entry_in_as_many_calls(name, asked):
    function, fourth, calls = PROBLEMS[name]
    arguments = (Q.float(), K.float(), V.float(), fourth)
    want = [gradients(function, *entry) for entry in zip(*arguments, strict=True)]
    asked.clear()
    got = vmap(lambda *x: gradients(function, *x))(*arguments)
    assert sorted(asked) == ["backward"] * calls + ["forward"] * calls
    for x, y in zip(got, map(torch.stack, zip(*want, strict=True)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)


def gradients(function, q, k, v, fourth):
    return grad(lambda *x: function(*x, fourth).sin().sum(), (0, 1, 2))(q, k, v)


def test_mapping_nothing_gives_nothing():
    assert vmap(ours)(Q[:0], K[:0], V[:0]).shape == (0, B, H, S, D)


def test_the_axis_along_which_b_selects_from_each_table():
    def axes(mods, **fields):
        fields |= {"score_mod": mods.score_mod, "mask_mod": mods.mask_mod}
        return table_axes(AttentionSpec(dtype="float32", head_dim=D, **fields))

    assert axes(MIXED) == [0, 0]
    assert axes(BY_BATCH, alibi=True) == [0, 0]
    assert axes(ARITHMETIC) is axes(BY_BOTH) is None
    table = torch.zeros(H, B)
    assert axes(capture(lambda s, b, h, i, j: s + table[h, b])) == [1]
