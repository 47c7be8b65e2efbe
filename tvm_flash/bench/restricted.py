"""Forward on AVX2 alone: our library for x86-64-v3 beside a torch that is restricted to AVX2."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..machine import cpu_features
from ..problem.spec import RETURNS
from .child import ask
from .problems import Problem
from .timing import Patience

TARGET, ISA = "x86-64-v3", "avx2"

# Each library reads its own variable, once, when it is loaded: torch's kernels, MKL, which does its
# float32 products (alone it goes on with AVX-512, which doubles their rate), and oneDNN.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


def refusal() -> str:
    """Why this machine cannot run it; empty: it can."""
    missing = {"avx2", "fma"} - cpu_features()
    return f"this CPU lacks {' '.join(sorted(missing))}" if missing else ""


def library_for(problems: list[Problem], folder: Path) -> Path:
    """A library of the forward kernels of ``problems`` for AVX2, built into ``folder``."""
    from ..codegen.build import build

    specs = [
        replace(p.spec, returns=returns)
        for p in problems
        for returns in RETURNS  # which of them a call needs is the operator's business
    ]
    return build(dict.fromkeys(specs), TARGET, folder / "kernels", directions=("forward",))


def restricted_row(
    problem: Problem, library: Path, threads: int, patience: Patience, names: tuple[str, ...]
) -> dict:
    """What a cell says of the forward of ``problem``, measured under ENVIRONMENT."""
    request = {
        "problem": asdict(problem),
        "library": str(library),
        "threads": threads,
        "patience": asdict(patience),
        "names": names,
    }
    return ask(__name__.rpartition(".")[2], request, ENVIRONMENT)


def restricted_floors(threads: int, quick: bool = False) -> dict:
    """Floors of float32 under ENVIRONMENT."""
    request = {"threads": threads, "floors": True, "quick": quick}
    return ask(__name__.rpartition(".")[2], request, ENVIRONMENT)


def answer(request: dict) -> dict:
    """The row or the floors, in the measuring process."""
    from .floors import measure_floors
    from .rows import timed

    # Nothing may be compiled for the machine as it is: only the library can serve.
    sys.modules["tvm"] = None  # type: ignore[assignment]
    torch.set_num_threads(request["threads"])
    if request.get("floors"):
        return measure_floors(request["threads"], ISA, ("float32",), request["quick"]).to_json()
    from ..runtime.loader import load

    load(request["library"])
    problem, patience = Problem(**request["problem"]), Patience(**request["patience"])
    row = timed(problem, "forward", patience, tuple(request["names"])).to_json()
    return {**row, "torch_capability": torch.backends.cpu.get_cpu_capability()}
