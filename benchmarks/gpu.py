"""Check a built library on this machine's CUDA device, and time it beside PyTorch and Triton.

    pip install torch apache-tvm-ffi matplotlib     # torch's CUDA build, which brings triton
    python benchmarks/gpu.py --library kernels --out results.json
    python benchmarks/gpu.py --library kernels --out smoke.json --quick

No TVM and no compiler are needed: tvm_flash is imported from this checkout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from gpu import clock, correctness, grid, machine, report, rows  # noqa: E402
from gpu.contenders import CONTENDERS  # noqa: E402

import tvm_flash  # noqa: E402
from tvm_flash.cases import CORRECTNESS  # noqa: E402

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--library", type=Path, required=True, help="directory that was built")
    p.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON document")
    p.add_argument("--plot", type=Path, help="default: --out with .svg")
    p.add_argument("--only", choices=("correctness", "timing"))
    p.add_argument(
        "--quick", action="store_true", help="every eighth case, few problems and rounds"
    )
    p.add_argument("--dtype", choices=DTYPES, default="bf16", help="of what is timed")
    p.add_argument("--contenders", nargs="*", default=[c.name for c in CONTENDERS])
    p.add_argument("--tf32", action="store_true", help="let PyTorch's float32 products use TF32")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the script")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run; 1 if a case failed."""
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: torch.cuda.is_available() is False")
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    library = tvm_flash.load(options.library)
    chosen = {name: str(value) for name, value in vars(options).items()}
    found = report.Report(machine.describe(options.device), chosen)
    if options.only != "timing":
        check_cases(options, library, found)
    if options.only != "correctness":
        time_problems(options, found)
    found.machine["after"] = machine.clocks()
    found.write(options.out)
    draw(found, options.plot or options.out.with_suffix(".svg"))
    return 1 if found.failures else 0


def check_cases(options, library, found: report.Report) -> None:
    """Every case that the library serves."""
    cases = CORRECTNESS[::8] if options.quick else CORRECTNESS
    listed = correctness.served(cases, library.kernels)
    found.checked = [case.name for case, _ in listed]
    found.missing_cases = [case.name for case in cases if case.name not in set(found.checked)]
    with correctness.poisoned_memory():
        for case, backward in listed:
            new = correctness.check(case, backward, options.device, tvm_flash.attention)
            found.failures += new
            print(f"{'FAILED' if new else 'ok':6} {case.name}", flush=True)
    print(f"{len(listed)} cases, {len(found.missing_cases)} not in this library")
    print("\n".join(report.failure_table(found.failures)) or "no failures")
    found.write(options.out)


def time_problems(options, found: report.Report) -> None:
    """The grid, the document written after every problem."""
    on_gpu = options.device == "cuda"
    stopwatch = clock.DeviceStopwatch() if on_gpu else clock.host_stopwatch
    patience = clock.HASTE if options.quick else clock.PATIENCE
    contenders = tuple(c for c in CONTENDERS if c.name in options.contenders)
    sizes = grid.QUICK if options.quick else {}
    for problem in grid.problems(DTYPES[options.dtype], **sizes):
        for row in rows.measure(problem, contenders, stopwatch, patience, options.device):
            found.rows.append(row)
            print(report.row_line(row), flush=True)
        found.write(options.out)


def draw(found: report.Report, path: Path) -> None:
    """The plot, where matplotlib is installed."""
    try:
        written = report.plot(found.to_json(), path)
    except ImportError as error:
        print(f"no plot: {error}")
    else:
        print(*written, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
