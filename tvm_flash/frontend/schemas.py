"""The operators' schemas, in torch's words, made from the table of arguments."""

from __future__ import annotations

from collections.abc import Sequence

from ..problem.arguments import NUMBERS, Argument, names

# Numbers of the tables that want gradients.
LEARNED = "int[] learned=[]"


def schema(
    name: str,
    table: Sequence[Argument],
    numbers: Sequence[Argument] = NUMBERS,
    choices: Sequence[str] = (),
    results: Sequence[str] = (),
) -> str:
    """The operator ``name`` in torch's words, for the arguments of ``table``.

    Its parameters by name: tensors, captured tables and the spec as text where there are scores,
    numbers, then what is optional, the numbers that not all specs have, ``choices`` of the operator
    itself. Results are the outputs, or ``results`` where no table has those; workspaces are the
    operator's own.
    """
    has_scores = NUMBERS[0] in numbers
    given = [a for a in table if a.role in ("input", "saved", "updated")]
    letters = dict(zip(names(given, "updated"), "abcdefgh", strict=False))
    kinds = {a.name: f"Tensor({letters[a.name]}!)" if a.name in letters else "Tensor"
             for a in given}  # fmt: skip
    parameters = [
        *(f"{kinds[a.name]} {a.name}" for a in given if not a.optional),
        *["Tensor[] tables", "str spec"] * has_scores,
        *(_number_parameter(a) for a in numbers if a.absent is None),
        *(f"{kinds[a.name]}? {a.name}=None" for a in given if a.optional),
        *["bool deterministic=False"] * has_scores,
        *(_number_parameter(a) for a in numbers if a.absent is not None),
        *choices,
    ]
    outputs = names(table, "output") or results
    outputs = ", ".join(f"Tensor {name}" for name in outputs)
    return f"{name}({', '.join(parameters)}) -> ({outputs})"


def _number_parameter(number: Argument) -> str:
    """Integers may be computed of symbolic lengths."""
    kind = {"int32": "SymInt", "float32": "float"}[number.dtype]
    default = "" if number.absent is None else f"={number.absent}"
    return f"{kind} {number.name}{default}"
