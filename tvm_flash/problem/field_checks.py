"""What a field of an AttentionSpec may hold."""

from __future__ import annotations

from ..score.program import ScoreProgram

HEAD_DIM_RANGE = (8, 512)
# Queries or keys of a block that is visited: multiples of the first.
BLOCK_RANGE = (16, 65536)


def check_choice(field: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r} must be one of {', '.join(choices)}")


def check_head_dim(field: str, value) -> None:
    """ValueError or TypeError unless ``value`` is a head dimension that kernels are made for."""
    low, high = HEAD_DIM_RANGE
    if type(value) is not int:
        raise TypeError(f"{field}={value!r} must be an int")
    if not low <= value <= high:
        raise ValueError(f"{field}={value} must lie in {low}..{high}; pad or split the heads")


def check_block(field: str, value) -> tuple[int, int]:
    """``value`` as (queries, keys) of a block; TypeError, ValueError for what is none."""
    low, high = BLOCK_RANGE
    if not isinstance(value, (tuple, list)) or [type(n) for n in value] != [int, int]:
        raise TypeError(f"{field}={value!r:.60} must be a pair of ints (queries, keys)")
    if any(n % low or not low <= n <= high for n in value):
        raise ValueError(f"{field}={value!r} must be multiples of {low}, from {low} to {high}")
    return tuple(value)


def check_tables(field: str, value) -> tuple[int, ...]:
    """``value`` as the numbers of tables, each once, in order; TypeError for what is no such."""
    if not isinstance(value, (tuple, list)) or any(type(n) is not int for n in value):
        raise TypeError(f"{field}={value!r:.60} must be numbers of tables, as (0, 2)")
    return tuple(sorted(set(value)))


def check_flag(field: str, value) -> None:
    if isinstance(value, bool):
        return
    number = "" if field in ("causal", "alibi") else ": the number itself is given in a call"
    raise TypeError(f"{field}={value!r:.60} must be True or False{number}")


def check_program(field: str, program, *, is_score: bool) -> None:
    if program is None:
        return
    if not isinstance(program, ScoreProgram):
        raise TypeError(
            f"{field} must be a ScoreProgram, not {type(program).__name__}: pass the function to "
            "AttentionSpec.capture"
        )
    if program.is_score != is_score:
        raise ValueError(f"{field} is a {'score' if program.is_score else 'mask'} program")
