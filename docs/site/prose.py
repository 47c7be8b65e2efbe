"""Docstrings, which are prose here, as Markdown with an item for each parameter.

A docstring says in sentences what parameters are: "softcap: cap * tanh(s / cap), 0 is off." On a
page each such sentence begins an item of a list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

_NAMES = re.compile(r"((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*)(?=:| ?\()")
_SENTENCE = re.compile(r"(?<=[.;:)])\s+(?=\S)")
_CODE = re.compile(r"(``.+?``)")
_PAGE = re.compile(r"\bdocs/(\w[\w-]*)\.md")
_ENDINGS = ("Returns ", "Raises ")


def markdown(text: str, names: Collection[str]) -> str:
    """Prose with a sentence or more for each of ``names`` as Markdown with an item for each.

    The first sentence, which says what is described, is none.
    """
    first, *blocks = text.split("\n\n")
    parts = [*_parts(first, names, has_summary=True)]
    return "\n\n".join([*parts, *(part for block in blocks for part in _parts(block, names))])


def _parts(block: str, names: Collection[str], has_summary: bool = False) -> Iterator[str]:
    if block.lstrip().startswith(("- ", "```", ">>>")):
        yield _escaped(block)
        return
    parts = [""]
    for number, sentence in enumerate(_sentences(block)):
        found = None if has_summary and number == 0 else _NAMES.match(sentence)
        if found and {name.strip("* ") for name in found[1].split(",")} <= set(names):
            parts.append(f"- **{_escaped(found[1])}**{_escaped(sentence[found.end() :])}")
        elif sentence.startswith(_ENDINGS):
            word, rest = sentence.split(" ", 1)
            parts.append(f"**{word}** {_escaped(rest)}")
        else:
            parts[-1] = f"{parts[-1]} {_escaped(sentence)}".lstrip()
    yield from filter(None, parts)


def _sentences(block: str) -> list[str]:
    """Split also behind ";" and ")", where no name follows it makes no difference."""
    return _SENTENCE.split(" ".join(block.split()))


def _escaped(text: str) -> str:
    """``text`` with what Markdown takes for marks as it is, except code; pages become links."""
    parts = _CODE.split(text)
    parts[::2] = [_plain(part) for part in parts[::2]]
    return "".join(parts)


def _plain(text: str) -> str:
    text = re.sub(r"([*\[\]])", r"\\\1", text).replace("<", "&lt;")
    return _PAGE.sub(r'<a href="../\1.html">docs/\1.md</a>', text)
