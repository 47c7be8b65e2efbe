"""``tvm-flash doctor``: versions, CPU, compilers, cache, and what would fail and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from . import diagnosis
from .console import console, progress

PURPOSES = {
    "run": "load artifacts and run their kernels",
    "compile": "compile kernels (build, first use, show)",
    "gpu": "compile and run kernels on a GPU of this machine",
}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what works on this machine, and what to do about what does not."""
    facts = _examine()
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    if facts["verdicts"]["run"] != "yes":
        raise typer.Exit(1)


def _examine() -> dict:
    with progress("examine", 3) as advance:
        advance("versions")
        versions, compilers = diagnosis.versions(), diagnosis.compilers()
        advance("imports, linker, cache")
        found = diagnosis.findings()
        advance("processor")
        host = _host()
    return {
        "versions": versions,
        "host": host,
        "compilers": compilers,
        "findings": [asdict(finding) for finding in found],
        "verdicts": diagnosis.verdicts(found),
    }


def _host() -> dict | None:
    """The machine, which is described with torch's help; None without torch."""
    try:
        from ..bench import describe
    except ImportError:
        return None
    return describe().to_json()


def _print(facts: dict) -> None:
    console.print(_pairs("versions", {k: v or "missing" for k, v in facts["versions"].items()}))
    if facts["host"]:
        host = {k: ", ".join(v) if isinstance(v, list) else v for k, v in facts["host"].items()}
        console.print(_pairs("machine", host))
    console.print(_pairs("C compilers", facts["compilers"] or {"none": "found"}))
    console.print(_findings_table(facts["findings"]))
    for purpose, verdict in facts["verdicts"].items():
        colour = "green" if verdict == "yes" else "red"
        console.print(f"[{colour}]{escape(verdict)}[/]: {PURPOSES[purpose]}", highlight=False)


def _pairs(title: str, pairs: dict) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(escape(str(name)), escape(str(value)))
    return table


def _findings_table(findings: list[dict]) -> Table:
    table = Table(title="what was tried", title_justify="left", box=None, padding=(0, 2))
    for heading in ("", "needed to", "", "result"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding["ok"] else "[red]fails[/]"
        text = escape(finding["detail"])
        if not finding["ok"]:
            text += f"\n[bold]→ {escape(finding['remedy'])}[/]"
        table.add_row(finding["name"], finding["needed_for"], mark, text)
    return table
