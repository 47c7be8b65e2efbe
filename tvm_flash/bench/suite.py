"""The suites: what is measured, and the targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..cases import BENCH
from ..problem.dtype import DTYPES
from . import gpu_sections as gpu
from .cells import MASKS, Cell, Section, Suite, Target
from .contenders import EVERYBODY
from .problems import Problem, memory_problems
from .rows import DIRECTIONS
from .sequences.sections import SECTIONS as SEQUENCES
from .timing import Patience

# (full, causal). bfloat16's numbers are for CPUs whose matrix unit multiplies it.
_AMX = "amx_bf16"
_TARGETS = {
    ("float32", "forward"): (Target(1.15), Target(1.30)),
    ("bfloat16", "forward"): (Target(1.70, _AMX), Target(2.00, _AMX)),
    ("float16", "forward"): (Target(1.3), Target(1.5)),
    ("float32", "backward"): (Target(1.10), Target(1.30)),
    ("bfloat16", "backward"): (Target(1.50, _AMX), Target(2.00, _AMX)),
    ("float16", "backward"): (Target(1.3), Target(1.5)),
}
NEVER_SLOWER = Target(1.0)


def main_target(problem: Problem, direction: str) -> Target:
    """The target at batch x heads = 8, head_dim 64 or 128; short problems shall not be slower."""
    if problem.seqlen < 2048:
        return NEVER_SLOWER
    return _TARGETS[problem.dtype, direction][problem.causal]


def _main(threads: int) -> Iterator[Cell]:
    for dtype in DTYPES:
        for direction in DIRECTIONS:
            for head_dim in (64, 128):
                for causal in MASKS:
                    for seqlen in (512, 2048, 8192):
                        problem = Problem(dtype, head_dim, seqlen, causal)
                        target = main_target(problem, direction)
                        yield Cell("main", problem, direction, threads, target)


def _single_head(threads: int) -> Iterator[Cell]:
    for head_dim in (64, 128):
        for causal in MASKS:
            problem = Problem("float32", head_dim, 4096, causal, heads=1)
            # torch works on one core here; that is no handicap where there is one.
            target = Target(1.8) if threads > 1 else None
            yield Cell("single head", problem, "backward", threads, target)


def _head_dims(threads: int) -> Iterator[Cell]:
    for head_dim in (80, 96, 192, 256):
        for direction in DIRECTIONS:
            for causal in MASKS:
                problem = Problem("float32", head_dim, 2048, causal)
                yield Cell("head dims", problem, direction, threads, NEVER_SLOWER)


def _decode(threads: int) -> Iterator[Cell]:
    for dtype in ("bfloat16", "float32"):
        problem = Problem(dtype, 128, 8192, False, heads=32, kv_heads=8, seqlen_q=1)
        # Reached by splitting the keys over cores: one core has nothing to split.
        target = Target(1.5) if threads > 1 else None
        yield Cell("decode", problem, "forward", threads, target)


WINDOWS = (128, 256, 512, 1024, 2048)


def _window(threads: int) -> Iterator[Cell]:
    for window in WINDOWS:
        problem = Problem("float32", 64, 8192, True, window=window)
        target = Target(6.0) if window == 512 else None
        yield Cell("window", problem, "forward", threads, target)
    problem = Problem("float32", 64, 8192, True, window=512)
    yield Cell("window", problem, "backward", threads)


def _gqa(threads: int) -> Iterator[Cell]:
    for dtype in ("float32", "bfloat16"):
        for direction in DIRECTIONS:
            for causal in MASKS:
                problem = Problem(dtype, 128, 2048, causal, heads=32, kv_heads=8)
                yield Cell("gqa", problem, direction, threads)


def _tiny(threads: int) -> Iterator[Cell]:
    # At most twice SDPA's time.
    yield Cell("tiny", Problem("float32", 64, 16, False, heads=1), "forward", threads, Target(0.5))


def _avx2(threads: int) -> Iterator[Cell]:
    for head_dim in (64, 128):
        for causal in MASKS:
            for seqlen in (2048, 8192):
                problem = Problem("float32", head_dim, seqlen, causal)
                yield Cell("avx2", problem, "forward", threads, Target(0.9), kind="avx2")


def _memory(threads: int) -> Iterator[Cell]:
    shared = Problem("float32", 128, 2048, False, heads=32, kv_heads=8)
    for problem in (*memory_problems(), shared):
        yield _memory_cell(problem, threads)


def _memory_cell(problem: Problem, threads: int) -> Cell:
    return Cell("memory", problem, "forward_backward", threads, names=EVERYBODY, kind="memory")


def _listed(threads: int) -> Iterator[Cell]:
    for problem in map(Problem.of, BENCH):
        if problem.seqlen <= 2048:
            for direction in DIRECTIONS:
                target = main_target(problem, direction)
                yield Cell("main", problem, direction, threads, target, EVERYBODY)


def _few(threads: int) -> Iterator[Cell]:
    for causal in MASKS:
        problem = Problem("float32", 64, 512, causal)
        for direction in DIRECTIONS:
            yield Cell("main", problem, direction, threads, NEVER_SLOWER, EVERYBODY)


def _few_memory(threads: int) -> Iterator[Cell]:
    for problem in memory_problems((512, 1024)):
        yield _memory_cell(problem, threads)


_FULL = Patience(3, 30, 2.0, steady=0.05, budget=12.0, shortest=1e-3)

SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "cpu",
            (
                Section("main", "batch x heads = 8, self attention", _main),
                Section("single head", "batch x heads = 1", _single_head, only_most=True),
                Section("head dims", "other head dimensions", _head_dims, only_most=True),
                Section("decode", "one query, 32 heads on 8 key heads", _decode),
                Section("window", "sliding window; SDPA with a boolean mask", _window, True),
                Section("gqa", "32 heads on 8 key heads", _gqa, only_most=True),
                Section("tiny", "a whole call on 16 positions", _tiny),
                Section("avx2", "both restricted to AVX2", _avx2),
                Section("memory", "peak bytes above the inputs", _memory),
            ),
            _FULL,
        ),
        Suite(
            "short",
            (
                Section("main", "batch x heads = 8, self attention", _listed, only_most=True),
                Section("decode", "one query, 32 heads on 8 key heads", _decode, only_most=True),
                Section("tiny", "a whole call on 16 positions", _tiny, only_most=True),
                Section("memory", "peak bytes above the inputs", _memory, only_most=True),
            ),
            replace(_FULL, seconds=1.0, budget=4.0),
        ),
        Suite(
            "quick",
            (
                Section("main", "a few short problems", _few, only_most=True),
                Section("memory", "peak bytes above the inputs", _few_memory, only_most=True),
            ),
            Patience(3, 5, 0.2, shortest=1e-3),
        ),
        Suite("sequences", SEQUENCES, replace(_FULL, seconds=1.0, budget=4.0)),
        Suite("gpu", gpu.SECTIONS, Patience(10, 50, 1.0), device="cuda"),
        Suite("gpu-quick", gpu.QUICK_SECTIONS, Patience(3, 5, 0.2), device="cuda"),
    )
}
