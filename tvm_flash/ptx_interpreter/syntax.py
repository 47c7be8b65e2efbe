"""The surface of PTX text: statements with their line numbers, and operands."""

import re
import struct
from bisect import bisect_right
from typing import NamedTuple

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
LABEL = re.compile(r"([A-Za-z_$%][\w$]*)\s*:(?!:)")
LINE_DIRECTIVE = re.compile(r"\.(version|target|address_size|file|loc)\b[^\n]*")
HEADER = re.compile(r"(\.(visible|weak|extern|common|noreturn)\s+)*\.(entry|func)\b")
SECTION = re.compile(r"\.section\b[^{]*\{[^}]*\}", re.S)
SIZES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}


class Statement(NamedTuple):
    """kind is one of open, close, label, line, header, code."""

    kind: str
    text: str
    line: int


def statements(text):
    """Split a PTX text into statements; braces of operands stay inside theirs."""
    clean = COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    newlines = [m.start() for m in re.finditer("\n", clean)]
    found, at = [], 0
    while at < len(clean):
        if clean[at].isspace():
            at += 1
            continue
        kind, stop, body = _next(clean, at)
        found.append(Statement(kind, body, bisect_right(newlines, at) + 1))
        at = stop
    return found


def _next(text, at):
    if text[at] in "{}":
        return ("open" if text[at] == "{" else "close"), at + 1, text[at]
    if match := LABEL.match(text, at):
        return "label", match.end(), match.group(1)
    for pattern, kind in ((LINE_DIRECTIVE, "line"), (SECTION, "line")):
        if match := pattern.match(text, at):
            return kind, match.end(), match.group()
    if HEADER.match(text, at):
        stop = re.compile("[{;]").search(text, at).start()
        stop += text[stop] == ";"
        return "header", stop, " ".join(text[at:stop].split())
    stop = text.find(";", at)
    stop = len(text) if stop < 0 else stop
    return "code", stop + 1, " ".join(text[at:stop].split())


def split_commas(text):
    """Split at the commas outside all brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    tail = text[start:].strip()
    return [*parts, tail] if tail else parts


def number(text):
    """(value, kind) of a literal, or None; floats given as bits keep their bits."""
    sign, body = (-1, text[1:].strip()) if text.startswith("-") else (1, text)
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", body):
        return int(body[2:], 16) ^ (0x80000000 if sign < 0 else 0), "f32"
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", body):
        return int(body[2:], 16) ^ ((1 << 63) if sign < 0 else 0), "f64"
    if re.fullmatch(r"0[xX][0-9a-fA-F]+U?|0[bB][01]+U?", body):
        return sign * int(body.rstrip("U"), 0), "int"
    if re.fullmatch(r"0[0-7]+U?", body):
        return sign * int(body.rstrip("U"), 8), "int"
    if re.fullmatch(r"\d+U?", body):
        return sign * int(body.rstrip("U")), "int"
    if re.fullmatch(r"(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?", body):
        return struct.unpack("<Q", struct.pack("<d", sign * float(body)))[0], "f64"
    return None


def type_size(name):
    """Bytes of a fundamental type such as u32 or .b8."""
    return SIZES[re.sub(r"\D", "", name.lstrip(".").split("x")[0])]
