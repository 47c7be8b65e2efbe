"""Attention forward and backward on one batch, compared with torch's own attention."""

import torch
import torch.nn.functional as F

import tvm_flash

# (batch, seqlen, heads, head_dim); two query heads share one key/value head.
q = torch.randn(2, 1000, 8, 64, dtype=torch.bfloat16, requires_grad=True)
k, v = (torch.randn(2, 1000, 4, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))

out = tvm_flash.flash_attn_func(q, k, v, causal=True)
out.sum().backward()

bhsd = [x.detach().transpose(1, 2) for x in (q, k, v)]
expected = F.scaled_dot_product_attention(*bhsd, is_causal=True, enable_gqa=True).transpose(1, 2)
print(f"out {tuple(out.shape)}, dq {tuple(q.grad.shape)}, dk {tuple(k.grad.shape)}")
print(f"largest difference from torch's SDPA: {(out - expected).abs().max().item():.1e}")
torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
