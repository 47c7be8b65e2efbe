"""What does not fit together is refused at every door, the operators themselves too."""

import pytest
import torch

from tvm_flash import AttentionSpec, attention, flash_attn_func, scaled_dot_product_attention
from tvm_flash.frontend.ops import spec_name

B, S, H, D = 2, 50, 2, 16
FORWARD = torch.ops.tvm_flash.attention_forward
BACKWARD = torch.ops.tvm_flash.attention_backward
PLAIN, ALIBI = (AttentionSpec(dtype="float32", head_dim=D, alibi=alibi) for alibi in (False, True))
SLOPES = torch.full((B, H), 0.25)


def forward(q, k, v, *tables):
    return FORWARD(q, k, v, tables, spec_name(ALIBI if tables else PLAIN), 0.25)


def backward(dout, dlse, q, k, v, out, lse, *tables):
    spec = spec_name(ALIBI if tables else PLAIN)
    saved = (q, k, v, out, dout, lse)
    return BACKWARD(*saved, tables, spec, 0.25, lse_low=LOW.to(lse.device), dlse=dlse)


def heads_first(*tensors):
    return [x.transpose(1, 2) for x in tensors]


def masked(q, k, v, mask):
    return scaled_dot_product_attention(*heads_first(q, k, v), mask)


def biased(q, k, v, table):
    return attention(q, k, v, score_mod=lambda score, b, h, q_idx, k_idx: score + table[b, h])


# Each with the arguments it takes: tensors on one device.
Q = torch.randn(B, S, H, D, generator=torch.Generator().manual_seed(0))
LOW = torch.zeros(B, 0)  # of a spec without a score_mod
LSE, MASK = torch.zeros(B, H, S), torch.zeros(B, H, S, S)
DOORS = {
    "attention": (attention, (Q, Q, Q)),
    "flash_attn_func": (flash_attn_func, (Q, Q, Q)),
    "scaled_dot_product_attention": (scaled_dot_product_attention, heads_first(Q, Q, Q)),
    "attn_mask": (masked, (Q, Q, Q, MASK)),
    "bool attn_mask": (masked, (Q, Q, Q, MASK == 0)),
    "alibi_slopes": (lambda *x: attention(*x[:3], alibi_slopes=x[3]), (Q, Q, Q, SLOPES)),
    "captured tensor": (biased, (Q, Q, Q, SLOPES)),
    "forward operator": (forward, (Q, Q, Q)),
    "forward operator with a table": (forward, (Q, Q, Q, SLOPES)),
    "backward operator": (backward, (Q, LSE, Q, Q, Q, Q, LSE)),
    "backward operator with a table": (backward, (Q, LSE, Q, Q, Q, Q, LSE, SLOPES)),
}  # fmt: skip


@pytest.mark.parametrize("wants_gradients", [False, True], ids=["plain", "with gradients"])
@pytest.mark.parametrize("name", DOORS)
def test_a_tensor_on_another_device_is_refused_whichever_it_is(name, wants_gradients):
    door, arguments = DOORS[name]
    for position, argument in enumerate(arguments):
        given = list(arguments)
        given[0] = given[0].clone().requires_grad_(wants_gradients)
        given[position] = argument.to("meta")
        with pytest.raises(ValueError, match=r"meta.*(cpu|differs)|cpu.*(meta|differs)"):
            door(*given)


@pytest.mark.parametrize("name", DOORS)
def test_a_tensor_on_another_device_is_refused_beside_tensors_without_elements(name):
    door, arguments = DOORS[name]
    for position, argument in enumerate(arguments):
        given = [x.to("meta") for x in arguments]
        given[position] = argument
        with pytest.raises(ValueError, match=r"meta.*(cpu|differs)|cpu.*(meta|differs)"):
            door(*given)


def changed(position, change):
    def arguments(given):
        return [change(x) if n == position else x for n, x in enumerate(given)]

    return arguments


MISFITS = {
    "v without rows": (changed(2, lambda v: v[:, :0]), ValueError, "k has 50 rows, v has 0"),
    "k without rows": (changed(1, lambda k: k[:, :0]), ValueError, "k has 0 rows, v has 50"),
    "another batch": (changed(1, lambda k: k[:1]), ValueError, "batch of q, k, v is 2, 1, 2"),
    "no batch": (changed(0, lambda q: q[:0]), ValueError, "batch of q, k, v is 0, 2, 2"),
    "heads of v": (changed(2, lambda v: v[:, :, :1]), ValueError, "k has 2 heads, v has 1"),
    "head_dim of k": (changed(1, lambda k: k[..., :8]), ValueError, "head_dim of q is 16, of k 8"),
    "dtype": (changed(1, torch.Tensor.bfloat16), TypeError, "k.dtype"),
    "rank": (changed(2, lambda v: v[0]), ValueError, "v of shape .* must have 4"),
    "no heads": (
        lambda x: [x[0], x[1][:, :, :0], x[2][:, :, :0]], ValueError, "multiple of num_kv_heads=0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", MISFITS)
def test_tensors_that_do_not_fit_are_an_error_of_the_operators_not_zeros(name, device):
    change, error, message = MISFITS[name]
    q, k, v = change([Q.to(device)] * 3)
    with pytest.raises(error, match=message):
        forward(q, k, v)
    with pytest.raises(error, match=message):
        backward(Q.to(device), None, q, k, v, Q.to(device), LSE.to(device))


RESULTS = {
    "dout rows": (0, lambda x: x[:, 1:], ValueError, "dout of shape"),
    "dout dtype": (0, torch.Tensor.double, TypeError, "dout.dtype"),
    "dlse heads": (1, lambda x: x[:, :1], ValueError, "dlse of shape"),
    "out head_dim": (5, lambda x: x[..., 1:], ValueError, "out of shape"),
    "lse rows": (6, lambda x: x[..., 1:], ValueError, "lse of shape"),
    "lse dtype": (6, torch.Tensor.double, TypeError, "lse.dtype"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", RESULTS)
def test_the_backward_operator_wants_the_sizes_of_a_result(name, device):
    position, change, error, message = RESULTS[name]
    given = [x.to(device) for x in (Q, LSE, Q, Q, Q, Q, LSE)]
    given[position] = change(given[position])
    with pytest.raises(error, match=message):
        backward(*given)
