"""A small Llama of transformers on our kernels, torch's SDPA and eager attention: tokens a second.

    python benchmarks/language_model.py    # 20 minutes; results/language-model.json

update_readme.py writes the tables of docs/performance-cpu.md. The model has random weights; its
shape is ``SHAPE``. All three compute the same steps in turns, on as many threads as torch takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch

from tvm_flash.artifact.folder import replacing
from tvm_flash.bench.host import describe
from tvm_flash.bench.memory import ENVIRONMENT, peak_of
from tvm_flash.bench.table import Table, numbers, words
from tvm_flash.bench.timing import Patience, Timing, four_digits, interleaved

RESULTS = Path(__file__).resolve().parent / "results" / "language-model.json"
ATTENTIONS = ("tvm", "sdpa", "eager")
DTYPES = ("float32", "bfloat16")
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 8192,
}
PATIENCE = Patience(min_rounds=3, max_rounds=15, seconds=10.0)

# Processes of their own, each of which prints seconds.
IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
IMPORTS = ("import tvm_flash", "import torch", "from tvm_flash import attention")
FIRST_CALL = """
import time, torch, tvm_flash
q, k, v = (torch.randn(1, 512, 8, 64) for _ in range(3))
start = time.perf_counter()
tvm_flash.attention(q, k, v, causal=True)
print(time.perf_counter() - start)
"""


def language_model(attention: str, dtype: str):
    """The model, with the same weights for each ``attention``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tvm_flash.integrations.transformers import register

    register("tvm")
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, attn_implementation=attention, dtype=dtype)
    return LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()


def tokens(batch: int, length: int) -> torch.Tensor:
    """Random tokens (batch, length), the same in each process."""
    draw = torch.Generator().manual_seed(1)
    return torch.randint(SHAPE["vocab_size"], (batch, length), generator=draw)


def prefill(model, batch: int, length: int) -> Callable[[], torch.Tensor]:
    """A call that reads ``length`` tokens of each sequence, and gives the last one's logits."""
    given = tokens(batch, length)

    @torch.no_grad()
    def call():
        return model(given, use_cache=False, logits_to_keep=1).logits

    return call


def decode(model, batch: int, length: int) -> Callable[[], torch.Tensor]:
    """A call that adds a token to each of ``batch`` sequences of ``length``, in a dynamic cache."""
    from transformers import DynamicCache

    cache, given = DynamicCache(config=model.config), tokens(batch, length)
    with torch.no_grad():
        model(given, cache=cache, logits_to_keep=1)

    @torch.no_grad()
    def call():
        logits = model(given[:, :1], cache=cache).logits
        cache.crop(-1)  # the next call finds the same lengths
        return logits

    return call


def training(model, batch: int, length: int) -> Callable[[], torch.Tensor]:
    """A call that makes the gradients of a batch."""
    given = tokens(batch, length)
    model.train()

    def call():
        model.zero_grad()
        loss = model(given, labels=given, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return call


# What is timed: (its call, sequences, their length, tokens of a call).
STEPS = {
    "prefill": (prefill, 1, 4096, 4096),
    "decode": (decode, 8, 4096, 8),
    "training step": (training, 2, 2048, 4096),
}


def main() -> None:
    """Measure everything, and write it; with arguments, one peak of memory."""
    if sys.argv[1:]:
        print(peak(*sys.argv[1:]))
        return
    rows = [measured(dtype, name) for dtype, name in product(DTYPES, STEPS)]
    found = {"machine": describe().to_json(), "rows": rows, "start": start()}
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(dtype: str, name: str) -> dict:
    """Tokens a second, and bytes at the peak above the model, of each attention."""
    prepare, batch, length, count = STEPS[name]
    calls = {a: prepare(language_model(a, dtype), batch, length) for a in ATTENTIONS}
    agree({a: call() for a, call in calls.items()})
    seconds = {a: timing.median for a, timing in interleaved(calls, PATIENCE).items()}
    peaks = {a: int(child(__file__, a, dtype, name, **ENVIRONMENT)) for a in ATTENTIONS}
    return {
        "step": name,
        "batch": batch,
        "length": length,
        "dtype": dtype,
        "tokens_per_second": {a: four_digits(count / spent) for a, spent in seconds.items()},
        "peak_bytes": peaks,
    }


def agree(results: dict[str, torch.Tensor]) -> None:
    """Raise unless all computed the same, but for rounding."""
    exact = results["eager"].double()
    bound = 1e-4 if results["eager"].dtype == torch.float32 else 0.05
    for name, result in results.items():
        torch.testing.assert_close(
            result.double(), exact, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}"
        )


def peak(attention: str, dtype: str, name: str) -> int | None:
    """Bytes that a step needs at its peak above the model and its inputs, in this process."""
    prepare, batch, length, _ = STEPS[name]
    model = language_model(attention, dtype)
    prepare(model, 1, 64)()  # loads kernels, makes gradients
    return peak_of(prepare(model, batch, length))


def start() -> dict[str, float]:
    """Seconds of imports and of the first call, each in new processes."""
    timings = {
        f"`{line}`": Timing.of([float(child("-c", IMPORT.format(line))) for _ in range(5)]).median
        for line in IMPORTS
    }
    with tempfile.TemporaryDirectory() as folder:
        first, second = (
            float(child("-c", FIRST_CALL, TVM_FLASH_CACHE_DIR=folder)) for _ in range(2)
        )
    timings |= {"first call, compiled": first, "first call, in the cache": second}
    return {name: four_digits(spent) for name, spent in timings.items()}


def child(*arguments: str, **environment: str) -> str:
    """The last line that Python prints when run with ``arguments``."""
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()[-1]


def table(found: dict) -> Table:
    """Tokens a second and peaks of memory, for people."""
    columns = words("step", "dtype")
    columns += numbers(*ATTENTIONS, "over sdpa", *(f"{name}, MiB" for name in ATTENTIONS))
    rows = [
        (
            f"{row['step']}, {row['batch']} x {row['length']}",
            row["dtype"],
            *(f"{row['tokens_per_second'][name]:.0f}" for name in ATTENTIONS),
            f"{row['tokens_per_second']['tvm'] / row['tokens_per_second']['sdpa']:.2f}",
            *(f"{row['peak_bytes'][name] / 2**20:.0f}" for name in ATTENTIONS),
        )
        for row in found["rows"]
    ]
    return Table("", tuple(columns), rows)


def start_table(found: dict) -> Table:
    """Seconds before the first result, for people."""
    rows = [(name, f"{spent:.2f}") for name, spent in found["start"].items()]
    return Table("", (*words("what"), *numbers("seconds")), rows)


if __name__ == "__main__":
    main()
