"""``tvm-flash build``: kernels ahead of time, into one library and its manifest."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..problem.lengths import FORWARD_BUCKETS, check_buckets
from .console import console, counted_progress
from .cost_table import cost_summary, cost_tables
from .json_output import AsJson, print_json
from .show_table import show
from .spec_options import PresetNames, Specs, SpecsFile, listing, own_specs
from .unread import refuse_unread


def build(
    context: typer.Context,
    specs: Specs = None,
    specs_file: SpecsFile = None,
    preset: PresetNames = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET", help="llvm (this machine), a CPU level, cuda or cuda:sm_80,sm_90."
        ),
    ] = "llvm",
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the library.")
    ] = Path("kernels"),
    forward_only: Annotated[bool, typer.Option("--forward-only", help="No backward.")] = False,
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="GPUs: also the forward that divides keys, for few queries and many keys.",
        ),
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="GPUs: also the backward whose gradients have the same bits every run.",
        ),
    ] = False,
    buckets: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help=f"CPUs: length buckets to make kernels for, of {', '.join(FORWARD_BUCKETS)}. "
            "Those with equal configs share one, and the nearest kernel serves other lengths. "
            "Default: all.",
            show_default=False,
        ),
    ] = ",".join(FORWARD_BUCKETS),
    logs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of tuning records that come before the package's own."
        ),
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="Only print the kernels of the presets, for --specs.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="GPUs: what each kernel costs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile each SPEC into a library that tvm_flash.load reads without TVM or a compiler."""
    if show_list:
        refuse_unread(context, "--list", ("show_list", "preset"))
        print("\n".join(listing(preset)))
        return
    unread = {"buckets"} if target.startswith("cuda") else {"split", "deterministic", "verbose"}
    refuse_unread(context, f"--target {target}", context.params.keys() - unread)
    problems = own_specs(specs, specs_file, preset)
    wanted = {
        "presets": preset or (),
        "directions": _directions(forward_only, split, deterministic),
        "buckets": check_buckets(word.strip() for word in buckets.split(",")),
        "logs": logs,
    }
    path, seconds = _build(problems, target, out, wanted)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    costs = _costs(path) if manifest["target"]["name"] == "cuda" else []
    if as_json:
        report = {"report": [cost.to_json() for cost in costs]} if costs else {}
        print_json({**manifest, **report})
        return
    if costs:
        for table in cost_tables(costs) if verbose else [cost_summary(costs)]:
            show(table)
    count = len(manifest["kernels"])
    size = (path / manifest["library"]).stat().st_size
    console.print(
        f"{count} kernel{'s' * (count != 1)} for {_target_text(manifest)} in {seconds:.1f} s: "
        f"{path / manifest['library']} ({size / 1024:.0f} KiB)",
        soft_wrap=True,
    )


def _directions(forward_only: bool, split: bool, deterministic: bool) -> tuple[str, ...]:
    forwards = ("forward", *["forward_split"] * split)
    if forward_only:
        return forwards
    return (*forwards, "backward", *["backward_deterministic"] * deterministic)


def _target_text(manifest: dict[str, Any]) -> str:
    target = manifest["target"]
    return " ".join([target["name"], *target.get("archs", [])])


def _costs(path: Path) -> list:
    from ..codegen.report import reports

    return reports(path)


def _build(problems: list, target: str, out: Path, wanted: dict[str, Any]) -> tuple[Path, float]:
    from ..codegen.build import build as build_artifact

    started = time.perf_counter()
    with counted_progress("build") as step:
        path = build_artifact(problems, target, out, progress=step, **wanted)
    return path, time.perf_counter() - started
