"""Measurements that need a process of their own: for a clean memory, or another environment."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping

from ..errors import TvmFlashError

# Modules here whose function ``answer(request)`` may be asked.
QUESTIONS = ("memory", "restricted")


def ask(question: str, request: dict, environment: Mapping[str, str]) -> dict:
    """What ``answer(request)`` of module ``question`` returns in a process of its own.

    environment: variables besides this process's. Raises TvmFlashError with the complaint of a
    process that fails.
    """
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        input=json.dumps({"question": question, **request}),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env={**os.environ, **environment},
    )
    if done.returncode != 0:
        raise TvmFlashError(f"a measuring process ({question}) failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The measuring process: a request on stdin, its answer on stdout."""
    request = json.load(sys.stdin)
    question = request.pop("question")
    if question not in QUESTIONS:
        raise ValueError(f"{question=} must be one of {QUESTIONS}")
    module = importlib.import_module(f"{__package__}.{question}")
    print(json.dumps(module.answer(request)))
