"""Time and size of the libraries that presets make for all GPUs, each built with an empty cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tvm_flash.bench.host import cpu_name
from tvm_flash.bench.table import Table, words
from tvm_flash.problem.presets import PRESETS

RESULTS = Path(__file__).resolve().parent / "results" / "presets.json"


def main() -> None:
    """Build every preset, minutes each, and write what it took."""
    rows = [measured(name) for name in PRESETS]
    machine = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))}
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def measured(name: str) -> dict:
    """The row of one preset."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels")
        command = ["build", "--preset", name, "--target", "cuda", "-o", str(path), "--json"]
        environment = {**os.environ, "TVM_FLASH_CACHE_DIR": str(Path(folder, "cache"))}
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "tvm_flash", *command], env=environment, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        return row(name, json.loads(done.stdout), path, time.perf_counter() - started)


def row(name: str, built: dict, path: Path, seconds: float) -> dict:
    """What ``--json`` and the files say of a library that took ``seconds``."""
    resources = [kernel["resources"] for kernel in built["report"]]
    return {
        "preset": name,
        "archs": built["target"]["archs"],
        "functions": len(built["kernels"]),
        "images": len(resources),
        "in_local_memory": sum(one["stack"] > 0 for one in resources),
        "seconds": round(seconds),
        "library_bytes": (path / built["library"]).stat().st_size,
        "ptx_bytes": (path / "kernels.ptx.gz").stat().st_size,
    }


def table(kept: dict) -> Table:
    """The rows for people; an image is a kernel for one GPU."""
    columns = words("preset", "functions", "images", "with local memory", "time", "size", "PTX")
    rows = [
        (
            f"`{one['preset']}`",
            *(str(one[name]) for name in ("functions", "images", "in_local_memory")),
            f"{one['seconds']} s",
            *(f"{one[name] / 2**20:.1f} MiB" for name in ("library_bytes", "ptx_bytes")),
        )
        for one in kept["rows"]
    ]
    return Table("", columns, rows)


if __name__ == "__main__":
    main()
