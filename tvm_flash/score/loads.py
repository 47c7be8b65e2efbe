"""Where a program reads its captured tables, and which of them its result can be derived by."""

from __future__ import annotations

from typing import NamedTuple

from .program import SCORE_SYMBOLS, ScoreProgram, operands


class Load(NamedTuple):
    """A read of a table.

    axes: by dimension the symbol that is its index, "" for a computed one. symbols: all that the
    indices follow from, "score" among them.
    """

    table: int
    axes: tuple[str, ...]
    symbols: frozenset[str]


def loads(program: ScoreProgram) -> list[Load]:
    """Every read of a table, in order."""
    lines, symbols, found = program.instructions, [], []
    for line in lines:
        own = {line[0]} if line[0] in SCORE_SYMBOLS else set()
        symbols.append(own.union(*(symbols[ref] for ref in operands(line))))
        if line[0] == "load":
            index = [lines[ref][0] for ref in line[2:]]
            axes = tuple(name if name in SCORE_SYMBOLS else "" for name in index)
            found.append(Load(line[1], axes, frozenset(symbols[-1])))
    return found


def differentiable_tables(program: ScoreProgram) -> set[int]:
    """The tables that a score follows from by floating-point numbers alone.

    No integer, index or condition has a derivative.
    """
    lines, dtypes = program.instructions, program.dtypes
    if not program.is_score:
        return set()
    reached, found = [len(lines) - 1], set()
    seen = set(reached)
    while reached:
        line = lines[reached.pop()]
        if line[0] == "load":
            found.add(line[1])
        new = {ref for ref in operands(line) if dtypes[ref] == "float32"} - seen
        seen |= new
        reached += new
    return found
