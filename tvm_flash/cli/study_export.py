"""``tvm-flash study export``: the data set that cost models learn from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import TvmFlashError
from .console import PLAIN, console, notes, progress, refuse_unwritable
from .json_output import AsJson, print_json
from .show import require_tvm

if TYPE_CHECKING:
    from ..study.models.samples import Sample


def export(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="File to write.")],
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE",
            help="A replay table, a file or one of the package's; may be repeated.",
        ),
    ] = None,
    logs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder of tuning logs, as tuning_logs."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="npz or parquet.")
    ] = "npz",
    stores: Annotated[
        bool,
        typer.Option("--stores", help="TVM's features of every store: a second for each config."),
    ] = False,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes, for --stores.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Features, labels, groups and splits of measured configs, for cost models."""
    require_tvm()
    from ..study.models.export import FORMATS, data_set, refuse, write
    from ..study.models.stores import store_features

    if form not in FORMATS:
        raise ValueError(f"--format {form!r} must be one of {', '.join(FORMATS)}")
    refuse(form)
    refuse_unwritable(out)
    samples = _samples(table or [], logs)
    rows = None
    if stores:
        with progress("stores", len(samples)) as advance:
            rows = store_features(samples, jobs, advance)
    data = data_set(samples, rows)
    try:
        write(data, out, form)
    except OSError as error:
        raise TvmFlashError(f"{out} cannot be written: {error}") from error
    counts = Counter(data.arrays["split"].tolist())
    parts = {name: counts[name] for name in ("train", "valid", "test")}
    failed = sum(sample.seconds is None for sample in samples)
    if as_json:
        print_json({"file": str(out), "samples": len(data), **parts, "failed": failed})
    else:
        text = ", ".join(f"{count} {name}" for name, count in parts.items())
        console.print(f"{out}: {len(data)} samples ({text}; {failed} failed)", **PLAIN)
    if counts["train"] == len(data):
        notes.print(
            "all samples are of one spec, so there is nothing to test on: give more tables", **PLAIN
        )


def _samples(tables: list[str], logs: Path | None) -> list[Sample]:
    from ..study.models.samples import of_logs, of_table
    from ..study.replay import table as replay_table

    if not tables and logs is None:
        raise ValueError("give --table or --logs, or both")
    found = [sample for place in tables for sample in of_table(replay_table.read(place))]
    if logs is not None:
        found += of_logs(logs)
    return found
