"""Padded batches packed and padded again, with FlashAttention-2.7's names and values."""

import inspect

import pytest
import torch

import tvm_flash
from tvm_flash.bert_padding import index_first_axis, pad_input, unpad_input

MASK = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]])
UNUSED = torch.tensor([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]])


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_names_and_orders_are_those_of_flash_attention():
    assert tvm_flash.bert_padding.unpad_input is unpad_input
    expected = {
        unpad_input: ["hidden_states", "attention_mask", "unused_mask"],
        pad_input: ["hidden_states", "indices", "batch", "seqlen"],
        index_first_axis: ["input", "indices"],
    }
    for function, names in expected.items():
        assert list(inspect.signature(function).parameters) == names


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.int64])
def test_rows_of_a_mask(kind):
    x = random(3, 4, 2, 5)
    packed, indices, cu_seqlens, max_seqlen, seqused = unpad_input(x, MASK.to(kind))
    assert torch.equal(packed, x[MASK.bool()])
    assert indices.tolist() == [0, 1, 8, 10, 11] and indices.dtype == torch.int64
    assert cu_seqlens.tolist() == [0, 2, 2, 5] and cu_seqlens.dtype == torch.int32
    assert max_seqlen == 3 and type(max_seqlen) is int
    assert seqused.tolist() == [2, 0, 3] and seqused.dtype == torch.int32


def test_unused_rows_are_kept_but_not_counted():
    x = random(3, 4, 5)
    packed, indices, cu_seqlens, max_seqlen, seqused = unpad_input(x, MASK, UNUSED)
    # A row that both masks name is one row.
    assert indices.tolist() == [0, 1, 2, 5, 8, 10, 11]
    assert torch.equal(packed, x.flatten(0, 1)[indices])
    assert cu_seqlens.tolist() == [0, 3, 4, 7] and max_seqlen == 3
    assert seqused.tolist() == [2, 0, 3]


def test_padding_again_gives_zeros_elsewhere():
    x = random(3, 4, 2, 5)
    packed, indices, *_ = unpad_input(x, MASK)
    assert torch.equal(pad_input(packed, indices, 3, 4), x * MASK[..., None, None])


def test_of_strided_heads_only_the_rows_are_copied():
    x = random(3, 2, 4, 5).transpose(1, 2)
    assert torch.equal(unpad_input(x, MASK)[0], x[MASK.bool()])


@pytest.mark.parametrize("strided", [False, True])
def test_gradients_there_and_back(strided):
    x = random(3, 2, 4, 5, dtype=torch.float64).transpose(1, 2)
    x = (x if strided else x.contiguous()).requires_grad_()
    indices = unpad_input(x, MASK)[1]
    assert torch.autograd.gradcheck(lambda x: unpad_input(x, MASK)[0], x)
    packed = x.detach().flatten(0, 1)[indices].requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: pad_input(rows, indices, 3, 4), packed)
    assert torch.autograd.gradgradcheck(lambda rows: pad_input(rows, indices, 3, 4), packed)


def test_rows_that_repeat_sum_their_gradients():
    x = random(4, 3).requires_grad_()
    index_first_axis(x, torch.tensor([2, 2, 0])).sum().backward()
    assert x.grad[:, 0].tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_to_pack(shape):
    x = random(*shape, 5)
    packed, indices, cu_seqlens, max_seqlen, _ = unpad_input(x, torch.ones(shape, dtype=torch.bool))
    assert packed.shape == (0, 5) and max_seqlen == 0
    assert cu_seqlens.tolist() == [0] * (shape[0] + 1)
    assert pad_input(packed, indices, *shape).shape == x.shape


X = torch.zeros(3, 4, 5)


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: unpad_input(X[0, 0], MASK), ValueError, ["(5,)", "(batch, seqlen, ...)"]),
        (lambda: unpad_input([1], MASK), TypeError, ["list"]),
        (lambda: unpad_input(X, MASK[:2]), ValueError, ["attention_mask", "(2, 4)", "(3, 4)"]),
        (lambda: unpad_input(X, MASK.float()), TypeError, ["float32", "attention_mask != 0"]),
        (lambda: unpad_input(X, MASK, UNUSED[0]), ValueError, ["unused_mask", "(4,)"]),
        (lambda: unpad_input(X, MASK.to("meta")), ValueError, ["meta", "cpu"]),
        (lambda: pad_input(X[0], torch.tensor([0, 1]), 3, 4), ValueError, ["4 rows", "2 indices"]),
        (lambda: pad_input(X[0], torch.arange(4) + 9, 3, 4), ValueError, ["9..12", "0..11"]),
        (lambda: pad_input(X[0], torch.arange(4) - 1, 3, 4), ValueError, ["-1..2", "0..11"]),
        (lambda: pad_input(X[0], torch.ones(4), 3, 4), TypeError, ["float32", "int64"]),
        (lambda: pad_input(X[0], MASK, 3, 4), ValueError, ["(3, 4)", "(n,)"]),
        (lambda: index_first_axis(X[0], torch.tensor([4])), ValueError, ["4..4", "0..3"]),
    ],
)
def test_wrong_arguments(call, error, parts):
    with pytest.raises(error) as raised:
        call()
    assert all(part in str(raised.value) for part in parts), raised.value
