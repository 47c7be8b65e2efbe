"""Masks, slopes and captured tensors that torch watches or maps, beside q, k and v that it does
not."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from tvm_flash import attention
from tvm_flash import scaled_dot_product_attention as sdpa
from tvm_flash.reference import attention_reference

B, H, S, D, N = 2, 2, 20, 16, 3
Q, K, V = torch.randn(3, B, S, H, D, generator=torch.Generator().manual_seed(0))
TABLES = {
    "attn_mask": torch.linspace(-2, 2, N * S * S).sin().view(N, S, S),
    "bool attn_mask": torch.linspace(-2, 40, N * S * S).sin().view(N, S, S) > -0.5,
    "alibi_slopes": torch.linspace(-1, 1, N * H).view(N, H),
    "captured tensor": torch.linspace(-2, 2, N * S * S).cos().view(N, S, S),
}


def call(name, table, function=None, q=Q):
    """Attention with ``table`` in its place; ``function`` in place of ours."""
    if "mask" in name:
        heads_first = (x.transpose(1, 2) for x in (q, K, V))
        return (function or sdpa)(*heads_first, table).transpose(1, 2)
    return attention(q, K, V, **options(name, table))


def options(name, table):
    if name == "alibi_slopes":
        return {name: table}
    return {"score_mod": lambda score, b, h, q_idx, k_idx: score + table[q_idx, k_idx]}


def exact(name, table, q=Q):
    if "mask" in name:
        return call(name, table, F.scaled_dot_product_attention, q)
    return attention_reference(q, K, V, **options(name, table))[0]


def close(got, want):
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TABLES)
def test_a_mapped_table(name):
    tables = TABLES[name]
    close(
        torch.vmap(lambda x: call(name, x))(tables), torch.stack([exact(name, x) for x in tables])
    )

    def slope(function, x):
        return torch.func.grad(lambda q: function(name, x, q=q).sin().sum())(Q)

    want = torch.stack([slope(exact, x) for x in tables])
    close(torch.vmap(lambda x: slope(call, x))(tables), want)


STAND_INS = {
    "negated": (torch._neg_view, torch.neg),
    "zero": (lambda x: torch._efficientzerotensor(x.shape), torch.zeros_like),
    "functional wrapper": (torch._to_functional_tensor, torch.clone),
}


@pytest.mark.parametrize("wants_gradients", [False, True], ids=["plain", "with gradients"])
@pytest.mark.parametrize("name", [name for name in TABLES if "bool" not in name])
@pytest.mark.parametrize("kind", STAND_INS)
def test_a_table_that_is_not_simply_memory(kind, name, wants_gradients):
    stand_in, meaning = STAND_INS[kind]
    table, given = TABLES[name][0], Q.clone().requires_grad_(wants_gradients)
    out = call(name, stand_in(table), q=given)
    twin = Q.clone().requires_grad_(wants_gradients)
    want = exact(name, meaning(table), q=twin)
    close(torch._from_functional_tensor(out) if kind.startswith("functional") else out, want)
    if wants_gradients and not kind.startswith("functional"):
        close(*(torch.autograd.grad(x.sin().sum(), y)[0] for x, y in ((out, given), (want, twin))))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_a_subclass_makes_the_result_of_its_kind(name):
    first, second = (x.clone() for x in TABLES[name][:2])
    out = call(name, TwoTensor(first, second))
    close(out.a, exact(name, first))
    close(out.b, exact(name, second))


@pytest.mark.parametrize("name", TABLES)
def test_a_fake_table_makes_a_fake_result(name):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        table = mode.from_tensor(TABLES[name][0])
    assert isinstance(call(name, table), FakeTensor)
