"""Declarations of variables in PTX text (PTX ISA 5.4)."""

import re

from .errors import UnsupportedInstruction
from .kernel import Variable
from .syntax import type_size

VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(shared|global|const|local|param)\s+"
    r"(?:\.attribute\([^)]*\)\s*)?(?:\.align\s+(\d+)\s+)?(?:\.v[24]\s+)?(\.\w+)\s+([\w$%]+)"
    r"\s*((?:\[[^\]]*\])*)\s*(?:=\s*(.*))?$"
)


def variable(text):
    """The Variable that a declaration declares, or None."""
    match = VARIABLE.match(text)
    if not match:
        return None
    space, align, kind, name, dims, initial = match.groups()
    size = type_size(kind)
    for dim in re.findall(r"\[\s*([^\]]*)\s*\]", dims):
        size *= int(dim, 0) if dim.strip() else 0
    return Variable(name, space, size, int(align or type_size(kind)), _initial(initial, kind))


def _initial(text, kind):
    if not text:
        return b""
    width = type_size(kind)
    numbers = re.findall(r"-?0[fFdD][0-9a-fA-F]+|-?\w+", text.strip("{} "))
    data = b""
    for word in numbers:
        try:
            value = int(word[2:], 16) if word[:2].lower() in ("0f", "0d") else int(word, 0)
        except ValueError:
            raise UnsupportedInstruction(f"the initial value {word!r} is no number") from None
        data += (value % (1 << 8 * width)).to_bytes(width, "little")
    return data
