"""Output that files, pipes and terminals take, whatever their encoding, and while they do."""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from typing import TextIO

# As shells have it for a program that nobody listens to: 128 and the number of SIGPIPE.
NOBODY_READS = 141
# 128 and the number of SIGINT: Ctrl-C.
INTERRUPTED = 130

_HANDLER = "tvm_flash.plain"
# What tables and progress bars are drawn with where rich does not do it itself.
_PLAIN = {"→": "->", "±": "+-", "×": "x", "°": "*", "—": "-", "–": "-", "…": "~", "•": "*"}


def any_encoding() -> None:
    """Let stdout and stderr write what their encoding lacks in other characters."""
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # closed streams are None
            stream.reconfigure(errors=_HANDLER)


def finished(status: int) -> int:
    """``status``, or that of output which could not be written; afterwards nothing is left to be.

    Python itself would complain of it after the last statement.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            status = NOBODY_READS
            discard(stream)
        except OSError as error:
            status = status or 2
            discard(stream)
            if stream is sys.stdout and sys.stderr is not None:
                print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
    return status


def discard(stream: TextIO) -> None:
    """Let what is written to ``stream``, and what waits in it, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """A handler of codec errors: what is written for characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        return "|" if name.endswith("VERTICAL") else "-" if name.endswith("HORIZONTAL") else "+"
    parts = unicodedata.normalize("NFKD", character)  # e and its accent, for one
    return "".join(part for part in parts if part.isascii()) or "?"
