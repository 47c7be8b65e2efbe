"""``tvm-flash cache``: the kernels that were compiled at first use."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from ..bench.table import Table, numbers, words
from .command import App
from .console import PLAIN, console
from .json_output import AsJson, print_json
from .show_table import show

cache = App("cache", "Kernels compiled at first use: list them, take them out.")

_DAY = 24 * 3600
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


@cache.command("path")
def path(as_json: AsJson = False) -> None:
    """Print the cache's folder: $TVM_FLASH_CACHE_DIR, else in the user's cache folder."""
    from ..codegen.cache import cache_dir

    if as_json:
        print_json({"path": str(cache_dir())})
    else:
        print(cache_dir())


@cache.command("size")
def size(as_json: AsJson = False) -> None:
    """Say how many kernels there are and what all takes."""
    found = _entries()
    kernels, total = _sums(found)
    if as_json:
        print_json({"kernels": kernels, "entries": len(found), "bytes": total})
    else:
        text = f"{_counted(kernels)}, {total / 2**20:.1f} MiB with their parts"
        console.print(text, **PLAIN)


@cache.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the kernels, the one used last first."""
    kernels = [entry for entry in _entries() if entry.is_kernel]
    if as_json:
        rows = [{"name": x.name, "bytes": x.size, "used": int(x.used)} for x in kernels]
        print_json(rows)
        return
    columns = (
        *words("kernel"), *numbers("size", unit="KiB"), *numbers("used", unit="days ago"),
    )  # fmt: skip
    rows = [
        (x.name.rpartition("-")[0], f"{x.size / 2**10:.0f}", f"{_days_since(x.used):.1f}")
        for x in kernels
    ]
    show(Table(_counted(len(kernels)), columns, rows))


@cache.command("prune")
def prune(
    older: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Take out what was not used for so many days."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Keep so much, say 500M or 2G: what was used last."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Take out everything.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take kernels out of the cache; what is needed again is compiled again.

    Without --older, --keep or --all: what was not used for 30 days.
    """
    if everything and (older is not None or keep is not None):
        raise ValueError("--all leaves nothing for --older or --keep to choose")
    if older is not None and not older >= 0:
        raise ValueError(f"--older {older} must be 0 or more")
    if older is keep is None and not everything:
        older = 30.0
    room = None if keep is None else _bytes(keep)
    found, gone, held = _entries(), [], 0
    for entry in found:
        held += entry.size
        is_old = older is not None and _days_since(entry.used) > older
        if everything or is_old or (room is not None and held > room):
            gone.append(entry)
    if not dry_run:
        from ..codegen.cache_entries import remove

        gone = [entry for entry in gone if remove(entry)]
    kernels, total = _sums(gone)
    if as_json:
        sizes = {"kernels": kernels, "entries": len(gone), "bytes": total}
        print_json({**sizes, "dry_run": dry_run})
        return
    verb = "would take" if dry_run else "took"
    console.print(f"{verb} out {_counted(kernels)}, {total / 2**20:.1f} MiB", **PLAIN)


def _entries():
    from ..codegen.cache_entries import entries

    return entries()


def _sums(found) -> tuple[int, int]:
    """How many of these entries are kernels, and the bytes of all."""
    return sum(entry.is_kernel for entry in found), sum(entry.size for entry in found)


def _counted(kernels: int) -> str:
    return f"{kernels} kernel{'s' * (kernels != 1)}"


def _days_since(moment: float) -> float:
    return max(time.time() - moment, 0.0) / _DAY


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if not found:
        raise ValueError(f"--keep {text!r} must be a size as 500M or 2G")
    return int(float(found[1]) * _UNITS[found[2]])
