"""``tvm-flash demo``: build attention for this machine, check it, use it, time it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..bench.table import Mark, Table, numbers, words
from .answer import Answer
from .console import PLAIN, console, notes, progress
from .json_output import AsJson

if TYPE_CHECKING:
    from ..bench import Problem
    from ..cases import Case
    from ..problem.spec import AttentionSpec
    from ..verify.rule import Deviation

    Kernels = Sequence[tuple[AttentionSpec, str, str]]

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
    as_json: AsJson = False,
) -> None:
    """Make attention for this machine, check it against float64, time it beside torch's SDPA.

    The first run compiles its kernels, in a minute or two; later ones find them in the cache.

    Exit status 1: a kernel breaks the error rule.
    """
    from .. import bench
    from .show import require_tvm

    require_tvm()
    machine = bench.describe().to_json()
    answer, told = Answer(as_json), notes if as_json else console
    told.print(bench.sentence(machine), **PLAIN)
    cases, problems = _cases(CHECKED[:2] if quick else CHECKED), _problems(quick)
    kernels = _make(kernels_of(cases, problems))
    told.print(_made_text(kernels), **PLAIN)
    checked = _check(cases)
    held = all(deviation.ok for found in checked.values() for deviation in found)
    answer.table(check_table(checked))
    cells = _time(problems)
    answer.table(_timing_table(cells))
    checks = [
        {"case": case.name, **asdict(deviation), "ok": deviation.ok}
        for case, found in checked.items()
        for deviation in found
    ]
    found = {"machine": machine, "kernels": kernels, "checks": checks, "times": cells}
    answer.document({"ok": held, **found})
    if not held:
        notes.print("[bold red]a kernel breaks the error rule, see above[/]")
        raise typer.Exit(1)
    answer.line("every kernel is within the error rule", "green")


def _cases(names: Iterable[str]) -> list[Case]:
    from ..cases import CORRECTNESS

    return [case for case in CORRECTNESS if case.name in names]


def _problems(quick: bool) -> list[Problem]:
    from .. import bench

    chosen = TIMED[:1] if quick else TIMED
    return [bench.Problem(dtype, 64, seqlen, causal) for dtype, causal, seqlen in chosen]


def kernels_of(cases: Iterable[Case], problems: Iterable[Problem]) -> Kernels:
    """Spec, direction and length bucket of each kernel that these call."""
    from ..problem.lengths import bucket_of

    called = [(case.spec, case.seqlen_q, case.seqlen_k) for case in cases]
    called += [(problem.spec, problem.queries, problem.seqlen) for problem in problems]
    needed = [
        (spec, direction, bucket_of(direction, *sizes))
        for spec, *sizes in called
        for direction in ("forward", "backward")
    ]
    return list(dict.fromkeys(needed))


def _make(kernels: Kernels) -> dict[str, Any]:
    """Take ``kernels`` from the cache, or compile them into it; how many, in which time."""
    from ..codegen.cache_entries import entries
    from ..runtime.kernels import resolve
    from ..schedules.target import host_target

    before = len([entry for entry in entries() if entry.is_kernel])
    if not before:
        notes.print("the first run compiles its kernels: a minute or two", **PLAIN)
    started = time.perf_counter()
    with progress("kernels", len(kernels)) as advance:
        for spec, direction, bucket in kernels:
            resolve(spec, direction, bucket=bucket)
            advance(f"{spec.name} {direction} {bucket}")
    return {
        "used": len(kernels),
        "compiled": len([entry for entry in entries() if entry.is_kernel]) - before,
        "seconds": time.perf_counter() - started,
        "target": host_target().name,
    }


def _made_text(kernels: Mapping[str, Any]) -> str:
    found = kernels["used"] - kernels["compiled"]
    return (
        f"{kernels['used']} kernels for {kernels['target']} in {kernels['seconds']:.1f} s: "
        f"{kernels['compiled']} compiled, {found} from the cache"
    )


def _check(cases: Sequence[Case]) -> dict[Case, list[Deviation]]:
    """Every result's largest error beside its limit."""
    from ..cases import make_inputs
    from ..frontend.functional import attention
    from ..verify.rule import judged

    found = {}
    with progress("check", len(cases)) as advance:
        for case in cases:
            found[case] = judged(attention, make_inputs(case))
            advance(case.name)
    return found


def check_table(checked: Mapping[Case, Sequence[Deviation]]) -> Table:
    """A line for each case: the largest error of each result, and the part of its limit."""

    cells = {case: {one.result: _cell(one) for one in found} for case, found in checked.items()}
    results = list(dict.fromkeys(name for own in cells.values() for name in own))
    columns = (*words("case"), *words("kernel", rank=1), *numbers(*results))
    rows = [
        (case.name, case.spec.name, *(own.get(name, "") for name in results))
        for case, own in cells.items()
    ]
    return Table("largest error against float64, and the part of its limit", columns, rows)


def _cell(deviation: Deviation) -> Mark:
    tone = "good" if deviation.ok else "bad"
    return Mark(f"{deviation.error:.0e} {deviation.share:.0%}", tone)


def _time(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Timed cells, as documents of benchmarks have them."""
    import torch

    from .. import bench
    from ..bench.contender import OURS
    from ..bench.rows import DIRECTIONS

    cells, threads = [], torch.get_num_threads()
    patience = bench.Patience(min_rounds=3, seconds=0.3)
    pairs = [(problem, direction) for problem in problems for direction in DIRECTIONS]
    with progress("time", len(pairs)) as advance:
        for problem, direction in pairs:
            row = bench.timed(problem, direction, patience, (OURS, "sdpa"))
            cell = bench.Cell("time", problem, direction, threads)
            cells.append({"key": cell.key, "threads": cell.threads, **row.to_json()})
            advance(f"{problem.name} {direction}")
    return cells


def _timing_table(cells: Sequence[dict[str, Any]]) -> Table:
    from ..bench.tables import timing_table

    return timing_table("median times; ratios above 1 mean that we are faster", cells)
