"""Recorded texts that a test compares with: a change shows as a diff."""

import difflib
from pathlib import Path


def compare(path: Path, text: str, update: bool) -> None:
    """Assert that the file ``path`` holds ``text``, or write it there."""
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    recorded = path.read_text(encoding="utf-8") if path.exists() else ""
    changes = difflib.unified_diff(recorded.splitlines(), text.splitlines(), path.name, "now")
    assert recorded == text, "\n".join(changes)
