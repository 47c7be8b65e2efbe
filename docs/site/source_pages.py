"""Pages of what lies outside docs/ and is linked from there, so that no link leaves the site.

On GitHub a link like ../examples/serving.py opens the file; here it opens a page that shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath, relpath

# Where a page of its own name stands in the site's menu.
NAMED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
_FOLDER = "repository"
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
_LANGUAGES = {".py": "python", ".cpp": "cpp", ".h": "c", ".c": "c"}
_AS_IT_IS = {".json", ".png", ".svg"}


@dataclass(frozen=True)
class Site:
    """The pages of a checkout at ``root``: files are named by their paths in it, with slashes."""

    root: Path

    def place(self, file: str) -> str:
        """Where ``file`` is in the site: "docs/use.md" is "use.md"."""
        if file.startswith("docs/"):
            return file.removeprefix("docs/")
        if file in NAMED:
            return NAMED[file]
        path = self.root / file
        if path.is_dir():
            return f"{_FOLDER}/{file}/index.md"
        if path.name == "README.md":
            return f"{_FOLDER}/{path.parent.relative_to(self.root).as_posix()}/index.md"
        return f"{_FOLDER}/{file}" + ".md" * (path.suffix not in {".md", *_AS_IT_IS})

    def linked(self, file: str, text: str) -> list[str]:
        """The files that ``text``, which stands in ``file``, has links to."""
        return [name for link in _LINK.findall(text) if (name := self._named(file, link))]

    def relinked(self, file: str, text: str) -> str:
        """``text`` with the links as they lead from the page of ``file`` to those of others."""
        here = self.place(file).rpartition("/")[0]

        def moved(found: re.Match) -> str:
            name = self._named(file, found[1])
            return relpath(self.place(name), here or ".") if name else found[1]

        return _LINK.sub(moved, text)

    def reached(self, files: Iterable[str]) -> dict[str, str | None]:
        """By file, the text of its page, of ``files`` and of all that they lead to by any way.

        Links are as in the repository. None: the file is shown as it is.
        """
        found: dict[str, str | None] = {}
        waiting = list(files)
        while waiting:
            file = waiting.pop()
            if file in found:
                continue
            found[file] = text = self.text(file)
            if file.endswith(".md") or (self.root / file).is_dir():
                waiting += self.linked(file, text)
        return found

    def text(self, file: str) -> str | None:
        """What the page of ``file`` says; None where it is shown as it is."""
        path = self.root / file
        if path.suffix in _AS_IT_IS:
            return None
        if path.suffix == ".md":
            return path.read_text(encoding="utf-8")
        if path.is_dir():
            names = sorted(x.name for x in path.iterdir() if x.suffix == ".py")
            listed = "\n".join(f"- [{name}]({path.name}/{name})" for name in names)
            return _page(file, listed)
        code = path.read_text(encoding="utf-8")
        return _page(file, f"~~~~~~{_LANGUAGES.get(path.suffix, 'text')}\n{code}~~~~~~")

    def _named(self, file: str, link: str) -> str | None:
        """The file that ``link`` in ``file`` leads to; None where it is no file of the checkout."""
        if "://" in link:
            return None
        name = normpath(f"{file.rpartition('/')[0]}/{link}".lstrip("/"))
        return name if not name.startswith("..") and (self.root / name).exists() else None


def _page(title: str, body: str) -> str:
    return f"---\nsearch:\n  exclude: true\n---\n# {title}\n\n{body}\n"
