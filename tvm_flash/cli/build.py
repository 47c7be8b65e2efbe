"""``tvm-flash build``: kernels ahead of time, as one library or to be shipped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import typer

from ..problem.lengths import check_buckets
from ..problem.presets import all_pairs
from . import build_options as options
from .answer import Answer
from .console import console, counted_progress
from .cost_table import cost_summary, cost_tables
from .json_output import AsJson, print_json
from .ship import Pairs, ship_repository, ship_wheel
from .show_table import show
from .spec_options import PresetNames, Specs, SpecsFile, listed, listing, own_specs
from .unread import refuse_unread


def build(
    context: typer.Context,
    specs: Specs = None,
    specs_file: SpecsFile = None,
    preset: PresetNames = None,
    target: options.Targets = None,
    out: options.Out = None,
    forward_only: options.ForwardOnly = False,
    split: options.Split = False,
    deterministic: options.Deterministic = False,
    directions: options.Directions = None,
    buckets: options.Buckets = options.ALL_BUCKETS,
    logs: options.Logs = None,
    wheel: options.Wheel = False,
    name: options.Name = None,
    kernels_repo: options.KernelsRepo = False,
    repo_version: options.RepoVersion = 1,
    show_list: options.ShowList = False,
    verbose: options.Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Compile each SPEC into a library that tvm_flash.load reads without TVM or a compiler."""
    if show_list:
        refuse_unread(context, "--list", ("show_list", "preset", "as_json"))
        if as_json:
            print_json(listed(preset))
        else:
            print("\n".join(listing(preset)))
        return
    form = "--wheel" if wheel else "--kernels-repo" if kernels_repo else options.ONE
    targets = target or ["llvm" if form == options.ONE else "cpu"]
    _refuse_unread(context, form, targets)
    problems = own_specs(specs, specs_file, preset)
    asked = options.directions_of(directions, forward_only, split, deterministic)
    pairs = all_pairs(problems, preset or (), asked)
    wanted = {
        "buckets": check_buckets(word.strip() for word in buckets.split(",")),
        "logs": logs,
    }
    if wheel:
        ship_wheel(pairs, targets, out or Path("dist"), name, wanted).tell(Answer(as_json))
    elif kernels_repo:
        folder = out or Path("kernels-repo")
        ship_repository(pairs, targets, folder, repo_version, wanted).tell(Answer(as_json))
    else:
        path, seconds = _build(pairs, targets[0], out or Path("kernels"), wanted)
        _report(path, seconds, verbose, as_json)


def _refuse_unread(context: typer.Context, form: str, targets: list[str]) -> None:
    """Raise ValueError for options that change nothing of what is made in ``form``."""
    if form == options.ONE and len(targets) > 1:
        raise ValueError(f"--target {' and '.join(targets)}: one library is for one of them")
    ways = {form: options.UNREAD[form], f"--target {' '.join(targets)}": options.unread_by(targets)}
    for way, unread in ways.items():
        refuse_unread(context, way, context.params.keys() - unread)


def _build(pairs: Pairs, target: str, out: Path, wanted: dict[str, Any]) -> tuple[Path, float]:
    from ..codegen.build import build_pairs

    started = time.perf_counter()
    with counted_progress("build") as step:
        path = build_pairs(pairs, target, out, progress=step, **wanted)
    return path, time.perf_counter() - started


def _report(path: Path, seconds: float, verbose: bool, as_json: bool) -> None:
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


def _target_text(manifest: dict[str, Any]) -> str:
    target = manifest["target"]
    return " ".join([target["name"], *target.get("archs", [])])


def _costs(path: Path) -> list:
    from ..codegen.report import reports

    return reports(path)
