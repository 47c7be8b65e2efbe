"""What commands print for programs: one JSON document, described in docs/command-line.md."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document in place of text and tables.")
]


def print_json(document: Any) -> None:
    """Print ``document`` on stdout; ValueError for numbers that JSON has no word for."""
    print(json.dumps(document, indent=2, allow_nan=False))
