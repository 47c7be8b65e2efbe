"""Peak memory of one attention call, taken in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from .contenders import CONTENDERS, Contender, Prepared
from .problems import Problem

# The same problem at a length where every array is small: it loads the kernels, starts the threads
# and lets torch allocate what it keeps, so that the measured call shows its own arrays only.
WARM_SEQLEN = 128


def extra_bytes(contender: Contender, problem: Problem) -> dict[str, int | None]:
    """Bytes that forward, and forward plus backward, need above their inputs at the peak.

    Outputs and gradients are counted, inputs are not. None where the system does not say.
    """
    request = json.dumps({"contender": contender.name, "problem": asdict(problem)})
    command = [sys.executable, "-c", f"from {__name__} import answer; answer()"]
    # Every array straight from the system and straight back: what one call freed must not hide
    # what the next one needs (mallopt(3)).
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, input=request, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring {contender.name} at {problem.name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def answer() -> None:
    """The measuring process: a request on stdin, its answer on stdout."""
    print(json.dumps(_measure(json.load(sys.stdin))))


def _measure(request: dict) -> dict[str, int | None]:
    contender = next(c for c in CONTENDERS if c.name == request["contender"])
    problem = Problem(**request["problem"])
    warm = Prepared(contender, Problem(**{**request["problem"], "seqlen": WARM_SEQLEN}))
    warm.forward()
    warm.record()
    warm.backward()
    prepared = Prepared(contender, problem)
    return {
        "forward": _peak_of(prepared.forward),
        "forward_backward": _peak_of(lambda: (prepared.record(), prepared.backward())),
    }


def _peak_of(call) -> int | None:
    if not _reset_peak():
        return None
    before = _status_bytes("VmRSS")
    result = call()  # held until the peak is read
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def _reset_peak() -> bool:
    """Set this process's peak resident size back to its present one (Linux, proc(5))."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
