"""``tvm-flash doctor``: versions, CPU, compilers, cache, and what would fail and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import typer
from rich.markup import escape

from ..bench.table import Mark, Table, words
from . import diagnosis
from .console import console, progress
from .json_output import AsJson, print_json
from .show_table import show

PURPOSES = {
    "run": "load artifacts and run their kernels",
    "compile": "compile kernels (build, first use, show)",
    "gpu": "compile and run kernels on a GPU of this machine",
}
# Fields of ``bench.Host`` that are shown, and how they are called.
MACHINE = {
    "cpu": "CPU",
    "cores": "cores usable",
    "threads": "threads of torch",
    "features": "CPU features",
    "memory_gib": "memory, GiB",
    "system": "system",
}


def doctor(
    as_json: AsJson = False,
) -> None:
    """Say what works on this machine, and what to do about what does not.

    Exit status 1: kernels cannot run here.
    """
    facts = _examine()
    if as_json:
        print_json(facts)
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
    for table in (*_inventory(facts), checks_table(facts["findings"]), verdict_table(facts)):
        show(table)
    for finding in facts["findings"]:
        if not finding["ok"]:
            text = f"[bold]{escape(finding['name'])}:[/] {escape(finding['remedy'])}"
            console.print(text, highlight=False, soft_wrap=True)


def _inventory(facts: dict) -> Iterator[Table]:
    """What is installed and what the machine is."""
    versions = facts["versions"].items()
    rows = [(name, found or Mark("missing", "doubtful")) for name, found in versions]
    yield Table("versions", tuple(words("package", "version")), rows)
    if facts["host"]:
        host = {**facts["host"], "features": ", ".join(facts["host"]["features"])}
        rows = [(name, str(host[key])) for key, name in MACHINE.items() if key in host]
        yield Table("machine", tuple(words("what", "value")), rows)
    compilers = facts["compilers"] or {"none found": ""}
    columns = tuple(words("C compiler", "what it says of itself"))
    yield Table("C compilers", columns, list(compilers.items()))


def checks_table(findings: Sequence[dict]) -> Table:
    """A line for each ``diagnosis.Finding``."""
    rows = [
        (
            finding["name"],
            finding["needed_for"],
            Mark("ok", "good") if finding["ok"] else Mark("fails", "bad"),
            finding["detail"],
        )
        for finding in findings
    ]
    return Table("checks", tuple(words("check", "needed to", "result", "found")), rows)


def verdict_table(facts: dict) -> Table:
    """What this machine can do; the checks that stand in the way."""
    rows = []
    for purpose, verdict in facts["verdicts"].items():
        answer, _, missing = verdict.partition(": ")
        mark = Mark(answer, "good" if answer == "yes" else "bad")
        rows.append((purpose, PURPOSES[purpose], mark, missing or "-"))
    return Table(
        "what works here", tuple(words("to", "means", "works", "fails")), rows
    ).without_empty()
