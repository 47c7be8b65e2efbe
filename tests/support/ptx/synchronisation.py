"""Each synchronisation of a kernel deleted once: what nothing notices, by its opcode."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .mutation import Mutant, evaluate, mutants
from .own_kernels import Own, Problem

_KINDS = ("barrier", "async", "fence")


def surviving(kernel: Own, problems: Sequence[Problem]) -> tuple[list[Mutant], list[Mutant]]:
    """All such mutants of ``kernel``, and those that none of ``problems`` notices."""
    found, name = synchronisations(kernel), _name(kernel)
    return found, [m for m in found if evaluate(m.text, name, problems) is None]


def synchronisations(kernel: Own) -> list[Mutant]:
    """``kernel`` without one wait, commit, arrival, fence or barrier."""
    return [m for m in mutants(kernel.ptx, _name(kernel)) if m.kind in _KINDS]


def opcodes(found: Iterable[Mutant]) -> Counter[str]:
    """How many there are of each opcode, a guard before it left out."""
    return Counter(re.sub(r"^@\S+ ", "", m.statement).rstrip(";").split(" ")[0] for m in found)


def _name(kernel: Own) -> str:
    return f"{kernel.step.name}_kernel"
