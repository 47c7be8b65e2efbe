"""Linear attention beside attention, softmax of rows beside torch's: the tables of docs.

    python benchmarks/linear_attention.py [--seqlen 16384] [--threads 1]

Contenders by turns on the same tensors, medians, milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import product

import torch

from tvm_flash import attention, linear_attention, logsumexp, softmax

DTYPES = (torch.float32, torch.bfloat16)


def medians(contenders, rounds: int) -> dict[str, float]:
    """Milliseconds of each function by its name."""
    spent = {name: [] for name in contenders}
    for function in contenders.values():
        function()  # compiles
    for _ in range(rounds):
        for name, function in contenders.items():
            start = time.perf_counter()
            function()
            spent[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in spent.items()}


def of_attention(seqlen: int, dim: int, dtype: torch.dtype, causal: bool) -> dict[str, float]:
    """Times of a head, with features of ``dim`` columns."""
    q, k = torch.rand(2, 1, seqlen, 1, dim).to(dtype)
    v = torch.randn(1, seqlen, 1, dim).to(dtype)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = linear_attention(*leaves, causal=causal)
    upstream = torch.randn_like(out)
    contenders = {
        "linear": lambda: linear_attention(q, k, v, causal=causal),
        "attention": lambda: attention(q, k, v, causal=causal),
        "backward": lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True),
    }
    return medians(contenders, 3)


def of_rows(rows: int, columns: int, dtype: torch.dtype) -> dict[str, float]:
    """Times of softmax and logsumexp, and of a copy."""
    x = (3 * torch.randn(rows, columns)).to(dtype)
    contenders = {
        "copy": x.clone,
        "softmax": lambda: softmax(x),
        "torch": lambda: torch.softmax(x, -1),
        "logsumexp": lambda: logsumexp(x),
        "torch's": lambda: torch.logsumexp(x, -1),
    }
    return medians(contenders, 15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for dim, dtype, causal in product((64, 128), DTYPES, (True, False)):
        show(f"D={dim} {dtype} {causal=}", of_attention(options.seqlen, dim, dtype, causal))
    for dtype, shape in product(DTYPES, ((4096, 64), (1024, 1024), (64, 32768))):
        show(f"{shape} {dtype}", of_rows(*shape, dtype))


def show(what: str, times: dict[str, float]) -> None:
    print(f"{what:36}", *(f"{name} {spent:.3f}" for name, spent in times.items()), flush=True)


if __name__ == "__main__":
    main()
