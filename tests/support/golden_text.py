"""Recorded texts that a test compares with: a change shows as a diff."""

import difflib
from pathlib import Path

# Lines of a diff that are shown.
SHOWN = 60


def compare(path: Path, text: str, update: bool) -> None:
    """Assert that the file ``path`` holds ``text``, or write it there."""
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path.name} is missing: run with --update-golden"
    recorded = path.read_text(encoding="utf-8")
    diff = difflib.unified_diff(recorded.splitlines(), text.splitlines(), path.name, "now", n=2)
    changes = [*list(diff)[:SHOWN], "run with --update-golden if this is meant"]
    assert recorded == text, "\n".join(changes)
