"""GPU kernels that are studied, not shipped: standard attention and FlashAttention-1."""
