"""ScoreProgram: a user's score_mod or mask_mod as frozen, printable straight-line code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import UnsupportedSpec
from .program_size import MAX_INSTRUCTIONS, Size, size_of
from .ranges import ranges

SCORE_SYMBOLS = ("score", "b", "h", "q_idx", "k_idx")
MASK_SYMBOLS = SCORE_SYMBOLS[1:]

# Promotion order, as in torch: the later of two operand types is the type of the result.
DTYPES = ("bool", "int32", "int64", "float32")
INTEGERS = ("int32", "int64")
NUMBERS = (*INTEGERS, "float32")
MAX_FLOAT32 = (2 - 2.0**-23) * 2.0**127
# Elements of a captured table are read as they are stored: dtype -> type of the value in a program.
TABLE_DTYPES = {
    "bool": "bool", "int64": "int64",
    **dict.fromkeys(("uint8", "int8", "int16", "int32"), "int32"),
    **dict.fromkeys(("float16", "bfloat16", "float32", "float64"), "float32"),
}  # fmt: skip
# Version 1 called bool tables "uint8".
JSON_VERSION = 2

# What each operation accepts and gives: op -> (number of operands, operand types, result type).
# Operands of one operation have one type; None as a result means "the same type".
OPERATIONS: dict[str, tuple[int, tuple[str, ...], str | None]] = {
    **dict.fromkeys(
        "exp exp2 log log2 log1p sqrt rsqrt tanh sigmoid sin cos tan atan erf "
        "floor ceil round trunc".split(),
        (1, ("float32",), None),
    ),
    **dict.fromkeys(("neg", "abs"), (1, NUMBERS, None)),
    **dict.fromkeys(("add", "sub", "mul", "maximum", "minimum", "mod"), (2, NUMBERS, None)),
    **dict.fromkeys(("div", "pow", "fmod"), (2, ("float32",), None)),
    **dict.fromkeys(("floordiv", "shift_left", "shift_right"), (2, INTEGERS, None)),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), (2, DTYPES, "bool")),
    **dict.fromkeys(("and", "or", "xor"), (2, ("bool", *INTEGERS), None)),
    "not": (1, ("bool", *INTEGERS), None),
}


class TableType(NamedTuple):
    """Element type and rank of a captured tensor; its shape and strides are run-time values."""

    dtype: str
    ndim: int


@dataclass(frozen=True)
class ScoreProgram:
    """Instructions in static single assignment form; the last one is the result.

    An instruction is (op, operand, ...) with operands the numbers of earlier instructions, except
    ("const", dtype, value), ("cast", dtype, operand), ("load", table, index, ...) and the symbols
    ("score",), ("b",), ("h",), ("q_idx",), ("k_idx",), which come first. A score program gives
    float32, a mask program bool. ``trace_score_mod`` and ``trace_mask_mod`` make programs.

    Raises ValueError for anything else, so that a program read from a file is safe to build.
    """

    instructions: tuple[tuple, ...]
    tables: tuple[TableType, ...] = ()

    def __post_init__(self):
        check_length(self.instructions)
        object.__setattr__(self, "instructions", tuple(map(tuple, self.instructions)))
        object.__setattr__(self, "tables", tuple(TableType(*t) for t in self.tables))
        for dtype, ndim in self.tables:
            if dtype not in TABLE_DTYPES or not isinstance(ndim, int) or ndim < 0:
                raise ValueError(f"captured table of {dtype=} {ndim=}: not one of {TABLE_DTYPES}")
        self._check_symbols()
        dtypes = self.dtypes
        expected = "float32" if self.is_score else "bool"
        if dtypes[-1] != expected:
            raise ValueError(f"result has type {dtypes[-1]!r}, must be {expected!r}")

    def _check_symbols(self) -> None:
        symbols = SCORE_SYMBOLS if self.is_score else MASK_SYMBOLS
        if self.instructions[: len(symbols)] != tuple((s,) for s in symbols):
            raise ValueError(f"a program must begin with its symbols {symbols}")

    @property
    def is_score(self) -> bool:
        """Whether this is a score_mod (it may use the score) and not a mask_mod."""
        return self.instructions[:1] == (("score",),)

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """Type of the value of each instruction."""
        dtypes: list[str] = []
        sizes: list[Size] = []
        for number, instruction in enumerate(self.instructions):
            try:
                dtype = result_dtype(instruction, dtypes, self.tables)
            except (ValueError, TypeError, IndexError) as error:
                raise ValueError(f"instruction {number} {instruction!r}: {error}") from error
            sizes.append(measure(instruction, sizes, dtypes, self.instructions))
            dtypes.append(dtype)
        if excess := sizes[-1].excess:
            raise UnsupportedSpec(f"score function of {excess}: {SHORTER}")
        return tuple(dtypes)

    @cached_property
    def is_natural(self) -> tuple[bool, ...]:
        """Whether each value is an integer of at least 0, for indices from 0 to below 2^30."""
        found = ranges(self.instructions, self.dtypes)
        return tuple(known is not None and known.low >= 0 for known in found)

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that identify the program, equal on every machine."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, strings and numbers; infinities as strings, since JSON has none."""
        return {
            "version": JSON_VERSION,
            "instructions": [
                [_encode(x) for x in instruction] for instruction in self.instructions
            ],
            "tables": [list(t) for t in self.tables],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ScoreProgram:
        """The program that ``to_json`` gave; ValueError when it is malformed."""
        try:
            if data["version"] != JSON_VERSION:
                raise ValueError(
                    f"score program of version {data['version']!r}: must be {JSON_VERSION}"
                )
            check_length(data["instructions"])
            instructions = tuple(tuple(map(_decode, line)) for line in data["instructions"])
            tables = tuple(TableType(dtype, ndim) for dtype, ndim in data["tables"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"malformed score program: {error!r}") from error
        return cls(instructions, tables)

    def __str__(self) -> str:
        return "\n".join(
            f"%{n} = {op} {' '.join(map(str, rest))}".rstrip()
            for n, (op, *rest) in enumerate(self.instructions)
        )


SHORTER = "make it shorter, or put what it computes into a captured table"


def check_length(instructions: Sequence) -> None:
    """UnsupportedSpec for more instructions than MAX_INSTRUCTIONS."""
    if len(instructions) > MAX_INSTRUCTIONS:
        raise UnsupportedSpec(
            f"score function of {len(instructions)} operations, limit {MAX_INSTRUCTIONS}: {SHORTER}"
        )


def measure(
    instruction: tuple, sizes: Sequence[Size], dtypes: Sequence[str], lines: Sequence[tuple]
) -> Size:
    """The size of ``instruction``, given sizes and types of the earlier ``lines``."""
    refs = operands(instruction)
    constant = bool(refs) and lines[refs[-1]][0] == "const"
    return size_of(instruction, [sizes[r] for r in refs], [dtypes[r] for r in refs], constant)


def operands(instruction: tuple) -> tuple[int, ...]:
    """The instruction numbers that ``instruction`` reads."""
    op = instruction[0]
    if op == "const":
        return ()
    return instruction[2:] if op in ("cast", "load") else instruction[1:]


def result_dtype(instruction: tuple, dtypes: list[str], tables: tuple[TableType, ...]) -> str:
    """Type of the value of ``instruction``, where ``dtypes`` are those of the earlier ones.

    Raises ValueError, saying what is wrong, when the instruction is not well formed.
    """
    op, *rest = instruction
    refs = operands(instruction)
    for ref in refs:
        if type(ref) is not int or not 0 <= ref < len(dtypes):
            raise ValueError(f"operand {ref!r} is not an earlier instruction")
    types = [dtypes[ref] for ref in refs]
    if op in SCORE_SYMBOLS and not rest:
        return "float32" if op == "score" else "int32"
    if op == "const":
        return _const_dtype(*rest)
    if op == "cast" and len(refs) == 1 and rest[0] in DTYPES:
        return rest[0]
    if op == "load":
        return _load_dtype(rest[0], types, tables)
    if op == "where" and len(types) == 3 and types[0] == "bool" and types[1] == types[2]:
        return types[1]
    return _operation_dtype(op, types)


def _const_dtype(dtype: str, value) -> str:
    kinds = {"bool": bool, "int32": int, "int64": int, "float32": float}
    if dtype not in kinds or type(value) is not kinds[dtype]:
        raise ValueError(f"constant {value!r} is not a {dtype}")
    if dtype in INTEGERS and not -(2 ** (bits := int(dtype[3:]) - 1)) <= value < 2**bits:
        raise ValueError(f"constant {value} does not fit {dtype}")
    if value != value:
        raise ValueError("constant is NaN")
    if dtype == "float32" and MAX_FLOAT32 < abs(value) < math.inf:
        raise ValueError(f"constant {value} does not fit float32")
    return dtype


def _load_dtype(table: int, index_types: list[str], tables: tuple[TableType, ...]) -> str:
    if type(table) is not int or not 0 <= table < len(tables):
        raise ValueError(f"no captured table {table!r}")
    if len(index_types) != tables[table].ndim:
        raise ValueError(f"{len(index_types)} indices for a table of rank {tables[table].ndim}")
    if not set(index_types) <= set(INTEGERS):
        raise ValueError(f"indices must be integers, not {index_types}")
    return TABLE_DTYPES[tables[table].dtype]


def _operation_dtype(op: str, types: list[str]) -> str:
    if op not in OPERATIONS:
        raise ValueError(f"unknown operation {op!r} of {types}")
    count, accepted, result = OPERATIONS[op]
    if len(types) != count or len(set(types)) != 1 or types[0] not in accepted:
        raise ValueError(f"{op} takes {count} operand(s) of one type in {accepted}, not {types}")
    return result or types[0]


def _encode(value):
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _decode(value):
    return float(value) if value in ("inf", "-inf") else value
