"""``tvm-flash build``: kernels ahead of time, into one library and its manifest."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from .console import console, progress
from .spec_text import SpecTextError, parse_specs


def build(
    specs: Annotated[
        list[str] | None, typer.Argument(help="bf16,d=64,causal or a case name or a file of them")
    ] = None,
    specs_file: Annotated[
        list[Path] | None,
        typer.Option("--specs", help="JSON or text file with one spec per entry or line."),
    ] = None,
    target: Annotated[str, typer.Option(help="Target name; llvm is this machine.")] = "llvm",
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory of the artifact.")] = Path(
        "kernels"
    ),
    forward_only: Annotated[bool, typer.Option("--forward-only", help="No backward.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Compile SPECS into an artifact that tvm_flash.load reads without TVM or a compiler."""
    problems = [
        spec for text in [*(specs or []), *map(str, specs_file or [])] for spec in parse_specs(text)
    ]
    if not problems:
        raise SpecTextError(
            "no specs: name some, for example bf16,d=64,causal, or give --specs FILE"
        )
    path, seconds = _build(problems, target, out, forward_only)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(manifest, indent=2, sort_keys=True))
        return
    size = (path / manifest["library"]).stat().st_size
    console.print(
        f"{len(manifest['kernels'])} kernels for {manifest['target']['name']} in {seconds:.1f} s: "
        f"{path / manifest['library']} ({size / 1024:.0f} KiB)",
        soft_wrap=True,
    )


def _build(problems: list, target: str, out: Path, forward_only: bool) -> tuple[Path, float]:
    from ..codegen.build import build as build_artifact

    directions = ("forward",) if forward_only else ("forward", "backward")
    started = time.perf_counter()
    with progress("build", len(set(problems)) * len(directions)) as advance:
        path = build_artifact(
            problems,
            target,
            out,
            directions=directions,
            progress=lambda done, total, symbol: advance(symbol),
        )
    return path, time.perf_counter() - started
