"""``tvm-flash demo``: build attention for this machine, check it, use it, time it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .console import console, notes, progress
from .tables import timing_table

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
        console.print(_time(TIMED[:1] if quick else TIMED))
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
    from ..verify.rule import FACTORS, judged

    table = Table(title="largest error against float64 (limit)", title_justify="left")
    table.add_column("case")
    table.add_column("kernel")
    for result in FACTORS:
        table.add_column(result, justify="right")
    held = True
    with progress("check", len(cases)) as advance:
        for case in cases:
            found = judged(attention, make_inputs(case))
            held &= all(deviation.ok for deviation in found)
            table.add_row(case.name, case.spec.name, *map(_cell, found))
            advance(case.name)
    console.print(table)
    return held


def _cell(deviation: Deviation) -> str:
    colour = "green" if deviation.ok else "red"
    return f"[{colour}]{deviation.error:.1e}[/] ({deviation.allowed:.1e})"


def _time(problems: list[tuple[str, bool, int]]) -> Table:
    from .. import bench

    rows = []
    with progress("time", 2 * len(problems)) as advance:
        for dtype, causal, seqlen in problems:
            problem = bench.Problem(dtype, 64, seqlen, causal)
            for row in bench.measure(problem, bench.Patience(seconds=0.5)):
                rows.append(row)
                advance(f"{problem.name} {row.direction}")
    return timing_table(rows)
