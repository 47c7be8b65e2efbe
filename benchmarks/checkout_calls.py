"""Times attention of one checkout for before_after.py, which asks on stdin and reads stdout.

A line of JSON asks for a problem (``Problem.to_json``), whose kernels are compiled and run once, or
for a direction and how often to call it; a line with seconds answers. Only what every checkout has
is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import torch

import tvm_flash


def main(root: str) -> None:
    """Answer until there are no more questions."""
    if not Path(tvm_flash.__file__).is_relative_to(root):
        raise SystemExit(f"{tvm_flash.__file__} does not belong to {root}")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    calls = {}
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, dict):
            calls = calls_of(question)
            print(sum(seconds_of(call, 1) for call in calls.values()), flush=True)
        else:
            direction, repeats = question
            print(seconds_of(calls[direction], repeats), flush=True)


def seconds_of(call, repeats: int) -> float:
    """Seconds of a call, of so many in a row."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def calls_of(problem: dict) -> dict:
    """forward and backward of ``Problem.to_json``, through what users call."""
    torch.manual_seed(0)
    dtype, p = getattr(torch, problem["dtype"]), problem
    rows = (p["batch"], p["seqlen_q"], p["heads"], p["head_dim"])
    keys = (p["batch"], p["seqlen_k"], p["kv_heads"], p["head_dim"])
    q, k, v, dout = (torch.randn(shape).to(dtype) for shape in (rows, keys, keys, rows))
    window = (-1, -1) if p["window"] is None else (p["window"], 0)
    forward = partial(tvm_flash.attention, causal=p["causal"], window_size=window)
    inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    out = forward(*inputs)
    return {
        "forward": torch.no_grad()(partial(forward, q, k, v)),
        "backward": partial(torch.autograd.grad, out, inputs, dout, retain_graph=True),
    }


if __name__ == "__main__":
    main(sys.argv[1])
