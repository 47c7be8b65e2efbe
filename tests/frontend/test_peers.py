"""What users of the peers rely on, one test each."""

import threading

import pytest
import torch

import tvm_flash
from tvm_flash import attention, flash_attn_func
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import allowed_error, largest_error


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(sq=20, sk=20, h=2, hk=2, d=32, dtype=torch.float32):
    return (
        random(1, sq, h, d, seed=1, dtype=dtype),
        random(1, sk, hk, d, seed=2, dtype=dtype),
        random(1, sk, hk, d, seed=3, dtype=dtype),
    )


def assert_matches_reference(q, k, v, **variant):
    out, lse = attention(q, k, v, return_lse=True, **variant)
    want_out, want_lse = attention_reference(q, k, v, upcast=torch.float64, **variant)
    torch.testing.assert_close(out.double(), want_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-5, rtol=1e-5)


def test_both_layouts_by_strides_alone():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(sq=70, sk=70))
    assert not q.is_contiguous()
    assert_matches_reference(q, k, v)


def test_causal_is_bottom_right_and_top_left_can_be_chosen():
    for sizes in ((10, 30), (30, 10)):
        assert_matches_reference(*qkv(*sizes), causal=True)
        assert_matches_reference(*qkv(*sizes), causal=True, alignment="top_left")


def test_window_ends_are_inclusive_and_minus_one_is_open():
    for window in ((3, 0), (2, 5), (-1, 4), (0, 0)):
        assert_matches_reference(*qkv(15, 25), window_size=window)
    q, k, v = qkv(15, 25)
    want = attention(q, k, v, window_size=(-1, 4))
    assert torch.equal(attention(q, k, v, window_size=(None, 4)), want)
    assert torch.equal(attention(q, k, v, window_size=(-7, 4)), want)


def test_rows_without_a_key_give_zero_and_minus_infinity():
    q, k, v = (x.requires_grad_() for x in qkv(30, 10))
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    assert torch.equal(out[:, :20], torch.zeros_like(out[:, :20]))
    assert (lse[..., :20] == -torch.inf).all()
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert torch.equal(q.grad[:, :20], torch.zeros_like(q.grad[:, :20]))


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)])
def test_zero_lengths(sizes):
    q, k, v = (x.requires_grad_() for x in qkv(*sizes))
    out, lse = attention(q, k, v, return_lse=True)
    assert torch.equal(out, torch.zeros(1, sizes[0], 2, 32))
    assert (lse == -torch.inf).all()
    out.sum().backward()
    assert all((x.grad == 0).all() for x in (q, k, v))


def test_zero_batch():
    q = torch.randn(0, 5, 2, 32)
    assert flash_attn_func(q, q, q).shape == (0, 5, 2, 32)


def test_strided_expanded_and_misaligned_views():
    wide = random(1, 40, 2, 96)
    assert_matches_reference(wide[:, ::2, :, :32], wide[:, 1::2, :, 32:64], wide[:, :20, :, 64:])
    one_head = random(1, 20, 1, 32).expand(1, 20, 2, 32)
    assert_matches_reference(one_head, one_head, one_head)
    shifted = random(1 + 20 * 2 * 32)[1:].view(1, 20, 2, 32)
    assert_matches_reference(shifted, shifted, shifted)


def test_a_last_dimension_with_a_stride_is_copied():
    q = random(1, 20, 2, 64)[..., ::2]
    assert q.stride(-1) == 2
    assert_matches_reference(q, q, q)


def test_head_dims_of_any_size():
    for dim in (9, 33, 59):
        assert_matches_reference(*qkv(d=dim))


def test_lse_is_natural_log_float32_and_merges_partial_results():
    q, k, v = qkv(20, 40)
    want, whole = attention(q, k, v, return_lse=True)
    parts = [attention(q, k[:, s], v[:, s], return_lse=True) for s in (slice(0, 25), slice(25, 40))]
    weights = [(lse - whole).exp().transpose(1, 2).unsqueeze(-1) for _, lse in parts]
    merged = sum(weight * out for weight, (out, _) in zip(weights, parts, strict=True))
    torch.testing.assert_close(merged, want, atol=1e-5, rtol=1e-5)
    half = attention(*qkv(dtype=torch.bfloat16), return_lse=True)[1]
    assert half.dtype == torch.float32


def test_softcap_comes_after_the_scale_and_before_the_mask():
    assert_matches_reference(*qkv(), softcap=1.5, softmax_scale=0.7, causal=True)


def test_grouped_heads_read_head_over_group():
    q, k, v = qkv(h=6, hk=2)
    repeated = [x.repeat_interleave(3, dim=2) for x in (k, v)]
    torch.testing.assert_close(flash_attn_func(q, k, v), flash_attn_func(q, *repeated))


def test_alibi_slopes_per_head_and_per_batch():
    for slopes in (torch.tensor([0.5, 0.1]), torch.tensor([[0.3, 0.2]])):
        assert_matches_reference(*qkv(15, 30), alibi_slopes=slopes, causal=True)


def test_results_are_bit_equal_from_run_to_run():
    q, k, v = (x.requires_grad_() for x in qkv(200, 300))
    runs = []
    for _ in range(5):
        out = flash_attn_func(q, k, v, causal=True, deterministic=True)
        runs.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_large_logits_do_not_overflow():
    q, k, v = qkv(50, 50)
    q = q * 96
    want, _ = attention_reference(q, k, v, upcast=torch.float64)
    plain, _ = attention_reference(q, k, v)
    assert largest_error(attention(q, k, v), want) <= allowed_error("out", "float32", want, plain)


def test_nan_in_one_row_stays_in_its_row():
    q, k, v = qkv()
    q[0, 3, 0, 0] = torch.nan
    out = flash_attn_func(q, k, v)
    assert out[0, 3, 0].isnan().all()
    assert out.isnan().sum() == 32


def test_set_num_threads_changes_no_result():
    q, k, v = qkv(200, 200)
    threads, outs = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            outs.append(flash_attn_func(q, k, v, causal=True))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*outs)


def test_calls_from_many_python_threads():
    q, k, v = qkv(100, 100)
    want, results = flash_attn_func(q, k, v), {}

    def call(n):
        results[n] = flash_attn_func(q, k, v)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[n], want) for n in range(4))


def test_document_mask_with_a_captured_tensor():
    document = torch.tensor([0] * 12 + [1] * 5 + [2] * 13)
    same = lambda b, h, q_idx, k_idx: document[q_idx] == document[k_idx]  # noqa: E731
    assert_matches_reference(*qkv(30, 30), mask_mod=same, causal=True)


def test_equal_functions_share_one_kernel_and_changed_closures_do_not():
    specs = []
    for shift in (1.0, 1.0, 2.0):
        spec, _ = tvm_flash.AttentionSpec.capture(
            dtype="float32",
            head_dim=32,
            score_mod=lambda s, b, h, q, k, shift=shift: s + shift * (q - k),
        )
        specs.append(spec)
    assert specs[0] == specs[1]
    assert specs[0].name == specs[1].name != specs[2].name


def test_inputs_are_left_as_they_were():
    tensors = qkv(30, 30)
    copies = [x.clone() for x in tensors]
    flash_attn_func(*(x.requires_grad_() for x in tensors)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
