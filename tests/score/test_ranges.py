"""Ranges of integers in score functions hold whatever the indices are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvm_flash.score.program import ScoreProgram
from tvm_flash.score.ranges import Range, ranges
from tvm_flash.score.trace import trace_mask_mod

START = [("b",), ("h",), ("q_idx",), ("k_idx",)]


def range_of(function):
    """The range of an integer that ``function`` makes of (h, q_idx, k_idx)."""
    program, _ = trace_mask_mod(lambda b, h, q_idx, k_idx: function(h, q_idx, k_idx) == 0)
    return ranges(program.instructions, program.dtypes)[-3]


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda h, q, k: q // 8, Range(0, 2**27 - 1)),
        (lambda h, q, k: torch.abs(q - k), Range(0, 2**30 - 1)),
        (lambda h, q, k: (q - k) % 7, Range(0, 6)),
        (lambda h, q, k: torch.clamp(q - k, -3, 4), Range(-3, 4)),
        (lambda h, q, k: torch.where(q > k, q % 3, 5), Range(0, 5)),
        (lambda h, q, k: q % 5 - 2 * (k % 3), Range(-4, 4)),
        # They wrap around, or may.
        (lambda h, q, k: q * 3, None),
        (lambda h, q, k: q * 1103515245 + 12345, None),
        (lambda h, q, k: h + h, None),
        (lambda h, q, k: q // (k - 5), None),
        (lambda h, q, k: q << 3, None),
    ],
)
def test_ranges(function, expected):
    assert range_of(function) == expected


@given(st.data())
def test_values_lie_in_their_ranges(data):
    values = [data.draw(st.integers(0, 300)) for _ in START]
    instructions = list(START)
    for _ in range(data.draw(st.integers(1, 12))):
        place = st.integers(0, len(values) - 1)
        op = data.draw(st.sampled_from([*_PYTHON, "const"]))
        if op == "const":
            value = data.draw(st.integers(-20, 20))
            instructions.append(("const", "int32", value))
        else:
            a, b = data.draw(place), data.draw(place)
            if op in ("floordiv", "mod") and values[b] < 1:
                continue
            value = _PYTHON[op](values[a], values[b])
            instructions.append((op, a, b))
        values.append(value)
    last = len(values) - 1
    program = ScoreProgram([*instructions, ("eq", last, last)])
    found = ranges(program.instructions, program.dtypes)
    for value, known in zip(values, found[:-1], strict=True):
        assert known is None or known.low <= value <= known.high


_PYTHON = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "maximum": max,
    "minimum": min,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
}
