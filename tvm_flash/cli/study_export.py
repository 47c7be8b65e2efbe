"""``tvm-flash study export``: the data set that cost models learn from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import TvmFlashError
from .console import console, notes, progress, refuse_unwritable, reporting_errors
from .show import require_tvm

if TYPE_CHECKING:
    from ..study.models.samples import Sample


@reporting_errors
def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    table: Annotated[
        list[str] | None, typer.Option(help="A replay table: a file, or one of the package's.")
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="A folder of tuning logs, e.g. tuning_logs.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="npz or parquet.")] = "npz",
    stores: Annotated[
        bool, typer.Option(help="TVM's features of every store: a second for each config.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, for --stores.")] = 2,
) -> None:
    """Features, labels, groups and splits of measured configs, for cost models."""
    require_tvm()
    from ..study.models.export import FORMATS, data_set, refuse, write
    from ..study.models.stores import store_features

    if form not in FORMATS:
        raise typer.BadParameter(f"--format {form!r} must be one of {', '.join(FORMATS)}")
    refuse(form)
    refuse_unwritable(output)
    samples = _samples(table or [], logs)
    rows = None
    if stores:
        with progress("stores", len(samples)) as advance:
            rows = store_features(samples, jobs, advance)
    data = data_set(samples, rows)
    try:
        write(data, output, form)
    except OSError as error:
        raise TvmFlashError(f"{output} cannot be written: {error}") from error
    counts = Counter(data.arrays["split"].tolist())
    parts = ", ".join(f"{counts[name]} {name}" for name in ("train", "valid", "test"))
    failed = sum(sample.seconds is None for sample in samples)
    console.print(f"{output}: {len(data)} samples ({parts}; {failed} failed)")
    if counts["train"] == len(data):
        notes.print("all samples are of one spec, so there is nothing to test on: give more tables")


def _samples(tables: list[str], logs: Path | None) -> list[Sample]:
    from ..study.models.samples import of_logs, of_table
    from ..study.replay import table as replay_table

    if not tables and logs is None:
        raise typer.BadParameter("give --table or --logs, or both")
    found = [sample for place in tables for sample in of_table(replay_table.read(place))]
    if logs is not None:
        try:
            found += of_logs(logs)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    return found
