"""A kernels repository, loaded by Hugging Face's library alone; try_wheels.sh runs it.

Its kernels are those of float32, head_dim 64, causal.
"""

import sys
from pathlib import Path

import torch
from kernels import get_local_kernel


def main() -> None:
    module = get_local_kernel(Path(sys.argv[1]))
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 300, 3, 64)
    out = module.flash_attn_func(q, k, v, causal=True).double()
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    error = ((out - exact.transpose(1, 2)).abs().max() / exact.abs().max()).item()
    if not error <= 2e-6:
        raise SystemExit(f"{module.__name__} is wrong: error {error}")
    print(f"{module.__name__}, loaded by kernels: right (largest error {error:.1e})")


if __name__ == "__main__":
    main()
