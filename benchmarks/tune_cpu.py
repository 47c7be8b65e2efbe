"""Search a config for one problem on this CPU by coordinate descent; every trial is recorded.

    python benchmarks/tune_cpu.py --dtype float32 --head-dim 64 --direction forward --bucket long
    python benchmarks/tune_cpu.py --dtype bfloat16 --head-dim 128 --bucket decode --threads 2

Records go to tuning_logs/, whose README says what is in a line and which line a build takes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tune.measure import Checker, interleaved, timed_call  # noqa: E402
from tune.search import Trial, search  # noqa: E402

from tvm_flash.bench import host  # noqa: E402
from tvm_flash.codegen import jit  # noqa: E402
from tvm_flash.codegen.versions import build_versions  # noqa: E402
from tvm_flash.lengths import FORWARD_BUCKETS, bucket_of  # noqa: E402
from tvm_flash.loader import opened  # noqa: E402
from tvm_flash.schedules import record_format  # noqa: E402
from tvm_flash.schedules.select import Config, choose  # noqa: E402
from tvm_flash.schedules.target import host_target  # noqa: E402
from tvm_flash.spec import DTYPES, AttentionSpec  # noqa: E402

STRATEGY = "coordinate"

# batch, num_heads, num_kv_heads, seqlen_q, seqlen_k of what is timed for a bucket.
SIZES = {
    "tiny": (1, 8, 8, 16, 16),
    "decode": (1, 32, 8, 1, 8192),
    "short": (1, 8, 8, 256, 256),
    "medium": (1, 8, 8, 512, 512),
    "long": (1, 8, 8, 2048, 2048),
}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--dtype", choices=DTYPES, default="float32")
    p.add_argument("--head-dim", type=int, default=64)
    p.add_argument("--direction", choices=("forward", "backward"), default="forward")
    p.add_argument("--bucket", choices=FORWARD_BUCKETS, default="long")
    p.add_argument("--causal", action="store_true")
    p.add_argument("--seqlen", type=int, help="keys, and queries but for decode, of what is timed")
    p.add_argument("--trials", type=int, default=50)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seconds", type=float, default=1.0, help="of measuring per trial")
    p.add_argument("--timeout", type=float, default=120.0, help="of compiling and checking one")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--logs", type=Path, default=ROOT / "tuning_logs", help="folder of the records")
    return p


def sizes_of(options: argparse.Namespace) -> tuple[int, ...]:
    """batch, num_heads, num_kv_heads, seqlen_q, seqlen_k; they must lie in the bucket."""
    *heads, seqlen_q, seqlen_k = SIZES[options.bucket]
    if options.seqlen:
        seqlen_q = seqlen_q if options.bucket == "decode" else options.seqlen
        seqlen_k = options.seqlen
    bucket = bucket_of(options.direction, seqlen_q, seqlen_k)
    if bucket != options.bucket:
        sys.exit(f"Sq={seqlen_q}, Sk={seqlen_k} {options.direction} is in bucket {bucket}")
    return (*heads, seqlen_q, seqlen_k)


def main(arguments: list[str] | None = None) -> None:
    """Search, and print what was found."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    spec = AttentionSpec(options.dtype, options.head_dim, causal=options.causal)
    target, sizes, direction = host_target(), sizes_of(options), options.direction
    start = choose(spec, direction, target, options.bucket)
    checker = Checker(options.timeout)
    constant = {
        "format": record_format.FORMAT,
        "target": target.name,
        "cpu": host.cpu_name(),
        "spec": spec.to_json(),
        "direction": direction,
        "bucket": options.bucket,
        "problem": dict(zip(record_format.SIZES, (*sizes, options.threads), strict=True)),
        "strategy": STRATEGY,
        "seed": options.seed,
        "versions": {**build_versions(), "torch": str(torch.__version__)},
        "machine": host.describe().to_json(),
    }

    def call(config: Config) -> Callable[[], None]:
        (kernel,) = opened(jit.artifact_for(spec, direction, config)).kernels
        return timed_call(kernel, sizes, options.seed)

    def attempt(config: Config, incumbent: Config, again: bool) -> Trial:
        trial = checker(spec, direction, config, options.threads)
        if trial.outcome != "ok":
            return trial
        budget = options.seconds * (2 if again else 1)
        ours, theirs = interleaved(call(config), call(incumbent), budget)
        return replace(trial, seconds=ours, incumbent_seconds=theirs)

    def record(number: int, config: Config, trial: Trial, best: bool) -> None:
        line = {
            **constant,
            "config": config.to_json(),
            "outcome": trial.outcome,
            "seconds": list(trial.seconds),
            "incumbent_seconds": list(trial.incumbent_seconds),
            "error": trial.error,
            "allowed": trial.allowed,
            "trial": number,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "best": best,
        }
        record_format.append(options.logs, line)
        print(_summary(number, config, trial, best), flush=True)

    print(f"{spec.name} {direction} {options.bucket} from {start.source}: {start.config}")
    try:
        best = search(start.config, spec, options.trials, options.seed, attempt, record)
        if best == start.config:
            # Beside itself: that nothing was faster is a result too.
            record(0, best, attempt(best, best, True), True)
    finally:
        checker.close()
    print(f"best: {best}")


def _summary(number: int, config: Config, trial: Trial, best: bool) -> str:
    if trial.outcome != "ok":
        return f"{number:4} {trial.outcome:8} {config}"
    time_ms = statistics.median(trial.seconds) * 1e3
    marks = f"{time_ms:10.4f} ms  {trial.ratio:.3f} of the incumbent's, +- {trial.spread:.3f}"
    return f"{number:4} {marks} {'BEST' if best else '    '} {config}"


if __name__ == "__main__":
    main()
