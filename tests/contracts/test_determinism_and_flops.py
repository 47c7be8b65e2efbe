"""torch.use_deterministic_algorithms, and torch's counter of floating-point operations."""

import contextlib

import pytest
import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from tvm_flash import attention, flash_attn_func, scaled_dot_product_attention

B, S, H, D = 2, 24, 2, 16


@contextlib.contextmanager
def deterministic(on: bool):
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def traced(q, k, v):
    return torch.jit.trace(attention, (q.detach(), k, v))(q, k, v)


DOORS = {
    "attention": attention,
    "flash_attn_func": flash_attn_func,
    "scaled_dot_product_attention": lambda *x: scaled_dot_product_attention(
        *(y.transpose(1, 2) for y in x)
    ),
    "torch.compile": torch.compile(attention, backend="aot_eager"),
    "torch.jit.trace": traced,
    "torch.func.vjp": lambda q, k, v: torch.func.vjp(lambda x: attention(x, k, v), q)[0],
    "torch.vmap": torch.vmap(attention),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "when"),
    [
        (name, when)
        for name in DOORS
        for when in ("forward", "backward", "both", "neither")
        # torch refuses to compile the two differently.
        if (name, when) != ("torch.compile", "backward")
    ],
)
def test_deterministic_algorithms_are_used_at_every_door(name, when, asked):
    q, k, v = torch.randn(3, B, S, H, D)
    if name == "torch.vmap":
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    q.requires_grad_()
    torch._dynamo.reset()
    with deterministic(when in ("forward", "both")):
        out = DOORS[name](q, k, v).sum()
    with deterministic(when in ("backward", "both")):
        out.backward()
    assert asked[-1] == ("backward" if when == "neither" else "backward_deterministic")


@pytest.mark.parametrize("masked", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kv_heads", [H, 1])
def test_flops_are_counted_as_torch_counts_its_own_attention(kv_heads, masked):
    """With grouped heads, which torch's formula knows, and whatever a mask leaves out."""
    q, (k, v) = torch.randn(B, S, H, D), torch.randn(2, B, S + 5, kv_heads, D)
    with FlopCounterMode(display=False) as counter:
        attention(q.requires_grad_(), k, v, causal=masked).sum().backward()
    shapes = [x.transpose(1, 2).shape for x in (q, k, v)]
    want = sdpa_flop_count(*shapes) + sdpa_backward_flop_count(shapes[0], *shapes)
    assert counter.get_total_flops() == want
    assert len(counter.get_flop_counts()["Global"]) == 2
