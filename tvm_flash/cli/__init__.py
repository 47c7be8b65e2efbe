"""The ``tvm-flash`` command line: one file per command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without its libraries, say how to get them and leave with status 2."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"typer", "rich"}:
            raise
        sys.exit(_missing(package))
    app()


def _missing(package: str) -> int:
    print(
        f"tvm-flash: the command line needs {package}, which is not installed.\n"
        "Install it with: pip install 'tvm-flash[compile]'",
        file=sys.stderr,
    )
    return 2
