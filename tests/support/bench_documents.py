"""A suite of two cells, and cells and documents that nobody measured, for tests of benchmarks."""

from tvm_flash import bench
from tvm_flash.bench.run import cell_head, verdict

HOST = {
    "cpu": "Some CPU",
    "cores": 2,
    "features": ["avx2"],
    "memory_gib": 8.0,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "torch": "2.13.0",
    "date": "2026-01-02",
    "tvm": "0.27",
    "tvm_ffi": "0.1",
    "tvm_flash": "0.1.0",
}
FLOORS = {
    "threads": 2,
    "isa": "host",
    "matmul_gflops": {"float32": 200.0, "bfloat16": 50.0},
    "copy_gbytes": 10.0,
    "spread": 0.01,
    "others": 0.0,
}

HASTE = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0, steady=1e9)


def _two_cells(threads):
    problem = bench.Problem("float32", 64, 256, causal=True, heads=2)
    for direction in ("forward", "backward"):
        yield bench.Cell("main", problem, direction, threads, bench.Target(1e-6))


# A suite that is measured in a moment, and its cells on one thread.
TINY = bench.Suite("tiny", (bench.Section("main", "two cells", _two_cells),), HASTE)
CELLS = TINY.cells([1])


def timed_cell(cell, ratio, spread=0.01, patience=None):
    """``cell`` as if ours had taken a millisecond and the first other ``ratio`` of them."""
    other = cell.names[1]
    seconds = {"tvm_flash": 1e-3, other: 1e-3 * ratio}
    flops = cell.problem.flops(cell.direction)
    found = {
        "seconds": seconds,
        "spread": {"tvm_flash": spread, other: 0.01},
        "rounds": 5,
        "gflops": {name: flops / s / 1e9 for name, s in seconds.items()},
        "ratio": {other: ratio},
        "max_difference": 1e-6,
    }
    judged = verdict(cell, found, patience or bench.Patience(steady=0.05))
    return {**cell_head(cell), **found, "others": 0.0, **judged}


def memory_cell(cell):
    """``cell`` with some bytes in it."""
    peaks = {"forward": 3 * 2**20, "forward_backward": 5 * 2**20}
    found = {"bytes": {"tvm_flash": peaks, "sdpa": peaks}, "others": 0.0}
    return {**cell_head(cell), **found, "output_bytes": peaks, "scratch_bytes": peaks}


def whole_document(name="cpu"):
    """Every cell of a suite, each just at its target, as a document."""
    suite = bench.SUITES[name]
    document = bench.Document(suite, dict(HOST))
    document.runs.append({"started": "now", "load_average": [0.1, 0.2, 0.3], "cores": 2})
    document.floors[2, "host"] = FLOORS
    for cell in suite.cells([1, 2]):
        ratio = cell.target.ratio if cell.target else 1.25
        memory = cell.kind == "memory"
        document.cells[cell.key] = memory_cell(cell) if memory else timed_cell(cell, ratio)
    return document.to_json()
