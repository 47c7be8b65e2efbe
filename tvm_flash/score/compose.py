"""Score programs one after the other."""

from __future__ import annotations

from functools import lru_cache

from .program import SCORE_SYMBOLS, ScoreProgram, operands


@lru_cache(maxsize=256)
def after(first: ScoreProgram, second: ScoreProgram) -> ScoreProgram:
    """second(first(score)), with the tables of ``first`` before those of ``second``."""
    lines = list(first.instructions)
    # What each instruction of ``second`` is now; its symbols but the score are those of ``first``.
    number = {0: len(lines) - 1, **{n: n for n in range(1, len(SCORE_SYMBOLS))}}
    for n, line in enumerate(second.instructions[len(SCORE_SYMBOLS) :], len(SCORE_SYMBOLS)):
        if line[0] in SCORE_SYMBOLS:  # a symbol that is the result, said once more
            lines.append(("cast", "float32", number[SCORE_SYMBOLS.index(line[0])]))
        else:
            lines.append(_moved(line, number, len(first.tables)))
        number[n] = len(lines) - 1
    return ScoreProgram(tuple(lines), (*first.tables, *second.tables))


def _moved(line: tuple, number: dict[int, int], tables: int) -> tuple:
    op, *rest = line
    if op == "const":
        return line
    head = [rest[0]] if op == "cast" else [rest[0] + tables] if op == "load" else []
    return (op, *head, *(number[ref] for ref in operands(line)))
