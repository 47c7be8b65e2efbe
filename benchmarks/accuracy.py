"""Errors of our float32, bfloat16 and float16 beside torch's in the same dtype, against float64.

python benchmarks/accuracy.py --dtype float32 --head-dims 64,512 --lengths 257x257,17x65536
"""

from __future__ import annotations

import argparse

import torch

import tvm_flash
from tvm_flash.cases import Case, make_inputs
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import largest_error, results

RESULTS = ("out", "lse", "dq", "dk", "dv")


def main() -> None:
    """Print a row for each head dimension, pair of lengths and size of the logits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--head-dims", default="64,128,256,512")
    parser.add_argument("--lengths", default="257x257")
    parser.add_argument("--logits", default="1,6.8,24")
    given = parser.parse_args()
    print("ours over torch: largest error (root mean square)")
    print(f"{'D':>4} {'lengths':>10} {'logits':>6}", *(f"{name:>13}" for name in RESULTS))
    for head_dim in map(int, given.head_dims.split(",")):
        for lengths in given.lengths.split(","):
            for logits in map(float, given.logits.split(",")):
                row = ratios(given.dtype, head_dim, lengths, logits)
                print(f"{head_dim:>4} {lengths:>10} {logits:>6}", *row, flush=True)


def ratios(dtype: str, head_dim: int, lengths: str, logits: float) -> list[str]:
    """How many times torch's error ours is, for each result."""
    seqlen_q, seqlen_k = map(int, lengths.split("x"))
    sizes = {"batch": 1, "seqlen_q": seqlen_q, "seqlen_k": seqlen_k}
    inputs = make_inputs(Case("accuracy", dtype, head_dim, logits_scale=logits, **sizes))
    ours = results(tvm_flash.attention, inputs, return_lse=True)
    exact, plain = (results(attention_reference, inputs, d) for d in (torch.float64, None))
    found = []
    for name in RESULTS:
        want = exact[name]
        largest, mean = (
            error(ours[name], want) / max(error(plain[name], want), 1e-30)
            for error in (largest_error, rms)
        )
        found.append(f"{largest:6.2f} ({mean:.2f})"[:13].rjust(13))
    return found


def rms(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the error."""
    return (found.double() - exact.double()).square().mean().sqrt().item()


if __name__ == "__main__":
    main()
