"""Compilers and linkers as subprocesses whose failures become BuildErrors."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..errors import BuildError, remedy_for

_SHOWN_LINES = 20


def run(command: Sequence[str], *, what: str, choose: str, folder: Path | None = None) -> str:
    """What ``command`` printed. BuildError says that ``what`` failed, with its last lines.

    choose: the variable that names another program, for when this one cannot be started.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder)
    except OSError as error:
        remedy = remedy_for(error, f"set {choose}")
        raise BuildError(
            f"cannot run {command[0]!r} for {what} ({error.strerror}); {remedy}"
        ) from error
    output = done.stdout + done.stderr
    if done.returncode:
        tail = "\n".join(output.strip().splitlines()[-_SHOWN_LINES:])
        raise BuildError(
            f"{what} failed with status {done.returncode}: {shlex.join(command)}\n{tail}"
        )
    return output
