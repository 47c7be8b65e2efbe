"""How commands take the problems that they are about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..problem.presets import PRESETS, Preset, all_pairs, preset_named
from ..problem.spec import AttentionSpec
from ..problem.text import text_of
from .spec_text import specs_of

Specs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SPEC",
        help="Specs such as bf16,d=64,causal (`tvm-flash show --help` lists the words), names of "
        "cases (attn_...), or files of them.",
    ),
]
SpecsFile = Annotated[
    list[Path] | None,
    typer.Option("--specs", metavar="FILE", help="File of specs: one a line, or a JSON list."),
]
PresetNames = Annotated[
    list[str] | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help=f"Also the kernels of a list: {', '.join(PRESETS)} (`build --list` prints them).",
    ),
]


def own_specs(
    specs: list[str] | None, files: list[Path] | None, presets: list[str] | None
) -> list[AttentionSpec]:
    """The specs that are named besides ``presets``; SpecTextError where nothing at all is."""
    texts = [*(specs or []), *map(str, files or [])]
    return specs_of(texts) if texts or not presets else []


def grouped(
    specs: Iterable[AttentionSpec], presets: list[str] | None, directions: Iterable[str]
) -> list[tuple[list[AttentionSpec], tuple[str, ...]]]:
    """``specs`` and those of ``presets``, the ones that come in the same directions together.

    Without what is built for them besides.
    """
    found: dict[AttentionSpec, list[str]] = {}
    asked = tuple(directions)
    for spec, direction in all_pairs(specs, presets or [], asked):
        if direction in asked:
            found.setdefault(spec, []).append(direction)
    groups: dict[tuple[str, ...], list[AttentionSpec]] = {}
    for spec, served in found.items():
        groups.setdefault(tuple(served), []).append(spec)
    return [(specs, directions) for directions, specs in groups.items()]


def listed(names: list[str] | None) -> list[dict[str, Any]]:
    """The presets ``names`` (None: all) as a document: who calls which specs."""
    return [
        {
            "preset": preset.name,
            "directions": [*preset.directions],
            "uses": [{"why": use.why, "specs": [*map(text_of, use.specs)]} for use in preset.uses],
        }
        for preset in _presets(names)
    ]


def listing(names: list[str] | None) -> list[str]:
    """Lines of the presets ``names`` (None: of all), which make a file for --specs."""
    lines = []
    for preset in _presets(names):
        alone = "" if "backward" in preset.directions else " (build with --forward-only)"
        lines.append(f"# {preset.name}: {' and '.join(preset.directions)}{alone}")
        for use in preset.uses:
            lines += [f"# {use.why}", *map(text_of, use.specs)]
    return lines


def _presets(names: list[str] | None) -> list[Preset]:
    return [preset_named(name) for name in dict.fromkeys(names or PRESETS)]
