"""``tvm-flash demo``: build attention for this machine, check it, use it, time it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bench.table import Mark, Table, numbers, words
from .console import console, notes, progress
from .show_table import show

if TYPE_CHECKING:
    from ..cases import Case
    from ..verify.rule import Deviation

# Every dtype, both kinds of mask, grouped heads, odd sizes, each variant, user functions.
CHECKED = (
    "f32_full",
    "f32_gqa",
    "f32_dim_59",
    "bf16_full",
    "bf16_gqa",
    "f16_gqa",
    "window_causal",
    "softcap_causal",
    "bf16_alibi_causal",
    "bf16_relative_bias",
    "document",
)
TIMED = [
    (dtype, causal, seqlen)
    for seqlen in (512, 2048)
    for dtype in ("float32", "bfloat16")
    for causal in (False, True)
]


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Two specs, short timings.")] = False,
) -> None:
    """Build kernels for this machine, check each against float64, time them beside torch's SDPA."""
    from .. import bench
    from .show import require_tvm

    require_tvm()
    console.print(bench.sentence(bench.describe().to_json()), highlight=False, soft_wrap=True)
    cases = _cases(CHECKED[:2] if quick else CHECKED)
    with tempfile.TemporaryDirectory(prefix="tvm-flash-demo-") as folder:
        _build_and_load(cases, Path(folder, "kernels"))
        held = _check(cases)
        show(_time(TIMED[:1] if quick else TIMED))
    if not held:
        notes.print("[bold red]a kernel breaks the error rule, see above[/]")
        raise typer.Exit(1)
    console.print("[green]every kernel is within the error rule[/]")


def _cases(names: Iterable[str]) -> list[Case]:
    from ..cases import CORRECTNESS

    return [case for case in CORRECTNESS if case.name in names]


def _build_and_load(cases: list[Case], path: Path) -> None:
    from ..codegen.build import build
    from ..runtime.loader import load

    specs = {case.spec for case in cases}
    started = time.perf_counter()
    with progress("build", 2 * len(specs)) as advance:
        build(specs, path=path, progress=lambda done, total, symbol: advance(symbol))
    seconds = time.perf_counter() - started
    library = load(path)
    target = library.manifest.target["name"]
    console.print(f"{len(library.kernels)} kernels built for {target} in {seconds:.1f} s, loaded")


def _check(cases: list[Case]) -> bool:
    """Print every kernel's largest errors beside their limits; whether all hold."""
    from ..cases import make_inputs
    from ..frontend.functional import attention
    from ..verify.rule import judged

    cells: dict[Case, dict[str, Mark]] = {}
    held = True
    with progress("check", len(cases)) as advance:
        for case in cases:
            found = judged(attention, make_inputs(case))
            held &= all(deviation.ok for deviation in found)
            cells[case] = {deviation.result: _cell(deviation) for deviation in found}
            advance(case.name)
    results = list(dict.fromkeys(name for own in cells.values() for name in own))
    columns = (*words("case"), *words("kernel", rank=1), *numbers(*results))
    rows = [
        (case.name, case.spec.name, *(own.get(name, "") for name in results))
        for case, own in cells.items()
    ]
    show(Table("largest error against float64, and the part of its limit", columns, rows))
    return held


def _cell(deviation: Deviation) -> Mark:
    tone = "good" if deviation.ok else "bad"
    return Mark(f"{deviation.error:.0e} {deviation.share:.0%}", tone)


def _time(problems: list[tuple[str, bool, int]]) -> Table:
    import torch

    from .. import bench
    from ..bench.tables import timing_table

    cells, threads = [], torch.get_num_threads()
    with progress("time", 2 * len(problems)) as advance:
        for dtype, causal, seqlen in problems:
            problem = bench.Problem(dtype, 64, seqlen, causal)
            for row in bench.measure(problem, bench.Patience(seconds=0.5)):
                cell = bench.Cell("time", problem, row.direction, threads)
                cells.append({"key": cell.key, "threads": cell.threads, **row.to_json()})
                advance(f"{problem.name} {row.direction}")
    return timing_table("median times; ratios above 1 mean that we are faster", cells)
