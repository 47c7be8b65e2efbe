"""Peak memory of one attention call, taken in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from .child import ask
from .contender import Contender, Prepared
from .contenders import CONTENDERS
from .problems import Problem

# Every array straight from the system and straight back: what one call freed must not hide what the
# next one needs (mallopt(3)).
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def extra_bytes(
    contender: Contender, problem: Problem, threads: int | None = None
) -> dict[str, int | None]:
    """Bytes that forward, and forward plus backward, need above their inputs at the peak.

    Outputs and gradients are counted, inputs are not. threads: torch's, None is as many as here.
    None where the system does not say.
    """
    threads = threads or torch.get_num_threads()
    request = {"contender": contender.name, "problem": asdict(problem), "threads": threads}
    return ask("memory", request, ENVIRONMENT)


def memory_row(problem: Problem, threads: int, names: tuple[str, ...]) -> dict:
    """Peaks of the contenders ``names``, what of them are outputs, and what ours needs besides.

    Scratch is that of all threads. The system counts pages in batches: a few tenths of a MiB are
    below its resolution.
    """
    peaks = {c.name: extra_bytes(c, problem, threads) for c in CONTENDERS if c.name in names}
    outputs = {
        "forward": problem.output_bytes("forward"),
        "forward_backward": problem.output_bytes("backward"),
    }
    scratch = {
        call: None if peak is None else max(0, peak - outputs[call])
        for call, peak in peaks["tvm_flash"].items()
    }
    return {"bytes": peaks, "output_bytes": outputs, "scratch_bytes": scratch}


def answer(request: dict) -> dict[str, int | None]:
    """The peaks, in the measuring process."""
    torch.set_num_threads(request["threads"])
    contender = next(c for c in CONTENDERS if c.name == request["contender"])
    problem = Problem(**request["problem"])
    # One key head of the same lengths: it loads the kernels of that length and what torch keeps, so
    # that the measured call shows its own arrays only.
    warm = Prepared(contender, replace(problem, heads=problem.group, kv_heads=1))
    for call in (_forward, _forward_backward):
        call(warm)
    prepared = Prepared(contender, problem)
    return {
        "forward": peak_of(lambda: _forward(prepared)),
        "forward_backward": peak_of(lambda: _forward_backward(prepared)),
    }


def _forward(prepared: Prepared):
    with torch.no_grad():
        return prepared.forward()


def _forward_backward(prepared: Prepared):
    prepared.record()
    return prepared.backward()


def peak_of(call: Callable[[], object]) -> int | None:
    """Bytes that ``call`` adds at most, in a new thread with new OpenMP workers.

    Scratch that a library keeps for each thread would be there already in threads that have worked.
    """
    threads = torch.get_num_threads()
    results: list = []

    def run() -> None:
        torch.set_num_threads(threads)  # OpenMP keeps it for each thread
        results.append(call())  # held until the peak is read

    worker = threading.Thread(target=run)
    if not _reset_peak():
        return None
    before = _status_bytes("VmRSS")
    worker.start()
    worker.join()
    peak = _status_bytes("VmHWM")
    if not results:
        raise RuntimeError("the measured call failed, see above")
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
