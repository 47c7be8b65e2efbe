"""Writes the Markdown that the site is built from into a folder: python docs/site/pages.py FOLDER.

The tool that makes HTML of it (mkdocs.yml) knows nothing of this repository, so that another can
take its place.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import reference
from source_pages import NAMED, Site

ROOT = Path(__file__).resolve().parents[2]


def write(root: Path, folder: Path) -> None:
    """All pages of the checkout ``root``, pictures and style, into ``folder``, which is emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    site = Site(root)
    own = [path.relative_to(root).as_posix() for path in sorted((root / "docs").rglob("*.md"))]
    for file, text in site.reached([*NAMED, *own]).items():
        place = _made(folder / site.place(file))
        if text is None:
            shutil.copy(root / file, place)
        else:
            place.write_text(site.relinked(file, text), encoding="utf-8")
    for name, text in reference.pages().items():
        _made(folder / name).write_text(text, encoding="utf-8")
    shutil.copy(root / "docs" / "site" / "style.css", folder)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    write(ROOT, Path(sys.argv[1]))
