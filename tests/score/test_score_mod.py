"""Tracing plain torch functions into programs: what is captured, what is refused and how."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvm_flash import capture, cases
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.score.program import ScoreProgram, TableType
from tvm_flash.score.program_size import MAX_TREE_NODES
from tvm_flash.score.trace import trace_mask_mod, trace_score_mod

TABLE = torch.randn(4, 7)
VECTOR = torch.randn(5)


def program_of(function):
    return trace_score_mod(function)[0]


def ops_of(function):
    return [line[0] for line in program_of(function).instructions[5:]]


def test_a_program_is_readable():
    program = program_of(lambda score, b, h, q_idx, k_idx: score + 0.5 * (q_idx - k_idx))
    assert str(program).splitlines()[5:] == [
        "%5 = sub 3 4",
        "%6 = const float32 0.5",
        "%7 = cast float32 5",
        "%8 = mul 6 7",
        "%9 = add 0 8",
    ]


def test_equal_parts_are_recorded_once_and_unused_ones_not_at_all():
    def function(score, b, h, q_idx, k_idx):
        torch.exp(score) + VECTOR[q_idx]
        return (q_idx - k_idx) * score + (q_idx - k_idx)

    assert ops_of(function) == ["sub", "cast", "mul", "add"]
    assert program_of(function).tables == ()


def test_a_changed_closure_gives_another_program_or_table():
    slope, table = 1.0, VECTOR

    def function(score, b, h, q_idx, k_idx):
        return score * slope + table[q_idx]

    first, (first_table,) = trace_score_mod(function)
    slope = 2.0
    second, _ = trace_score_mod(function)
    assert first != second and first.digest != second.digest
    slope, table = 1.0, VECTOR + 1
    third, (third_table,) = trace_score_mod(function)
    assert third == first and torch.equal(third_table, first_table + 1)


def test_tables_are_shared_views_where_the_type_allows():
    (table,) = trace_score_mod(lambda s, b, h, q, k: s + VECTOR[q] + VECTOR[k])[1]
    assert table.data_ptr() == VECTOR.data_ptr()
    flags = torch.ones(3, 5, dtype=torch.bool)
    _, (table,) = trace_mask_mod(lambda b, h, q, k: flags.T[q, k])
    assert table.dtype == torch.bool and table.data_ptr() == flags.data_ptr()
    assert table.stride() == flags.T.stride()


def test_an_expanded_table_stays_small():
    wide = torch.randn(1, 1, 6, dtype=torch.float64).expand(50, 40, 6)
    (table,) = trace_score_mod(lambda s, b, h, q, k: s + wide[b, h, q])[1]
    assert table.shape == (50, 40, 6) and table.stride() == (0, 0, 1)
    assert table.untyped_storage().nbytes() == 6 * 8


@pytest.mark.parametrize(
    ("dtype", "value_dtype"),
    [
        (torch.bool, "bool"),
        *((dtype, "int32") for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)),
        (torch.int64, "int64"),
        (torch.float16, "float32"),
        (torch.bfloat16, "float32"),
        (torch.float32, "float32"),
        (torch.float64, "float32"),
    ],
)
def test_dtypes_of_tables(dtype, value_dtype):
    captured = torch.tensor([0, 1, 2]).to(dtype)
    seen = []

    def function(score, b, h, q_idx, k_idx):
        seen.append(captured[q_idx].dtype)
        return score * captured[q_idx]

    program, (table,) = trace_score_mod(function)
    assert f"torch.{program.tables[0].dtype}" == str(dtype) and program.tables[0].ndim == 1
    assert table.data_ptr() == captured.data_ptr() and seen == [getattr(torch, value_dtype)]


def test_dtypes_of_results_are_torchs():
    def check(score, b, h, q_idx, k_idx):
        assert (q_idx / k_idx).dtype == torch.float32
        assert (q_idx // k_idx).dtype == torch.int32
        assert (q_idx + 1).dtype == torch.int32
        assert (q_idx * 0.5).dtype == torch.float32
        assert (q_idx + True).dtype == torch.int32
        assert (q_idx < 2.5).dtype == torch.bool
        assert (q_idx + torch.tensor(3)).dtype == torch.int64
        assert (q_idx + 2**40).dtype == torch.int64
        assert ((q_idx > 1) + (k_idx > 1)).dtype == torch.bool
        assert torch.where(q_idx > 1, 1, 0).dtype == torch.int32
        assert torch.where(q_idx > 1, 1.0, 0).dtype == torch.float32
        assert torch.exp(q_idx).dtype == torch.float32
        assert torch.floor(q_idx).dtype == torch.int32
        assert torch.logical_not(q_idx).dtype == torch.bool
        assert score.to(torch.float64).dtype == torch.float32 and score.ndim == 0
        return score

    program_of(check)


def test_numbers_of_numpy_and_math():
    assert program_of(lambda s, b, h, q, k: np.float32(2.0) * s + np.int64(3)) == program_of(
        lambda s, b, h, q, k: 2.0 * s + 3
    )
    assert ops_of(lambda s, b, h, q, k: s * math.log(2)) == ["const", "mul"]


def test_partial_indices_and_constant_indices():
    whole, _ = trace_score_mod(lambda s, b, h, q, k: s + TABLE[h, q])
    parts, _ = trace_score_mod(lambda s, b, h, q, k: s + TABLE[h][q])
    assert whole == parts
    program, (row,) = trace_score_mod(lambda s, b, h, q, k: s + TABLE[-1, q])
    assert program.tables == (TableType("float32", 1),) and torch.equal(row, TABLE[-1])
    _, (element,) = trace_score_mod(lambda s, b, h, q, k: s + TABLE[1, 2])
    assert element.ndim == 0 and element == TABLE[1, 2]


def test_scalars_that_are_tensors_are_tables():
    temperature = torch.tensor(0.5)
    program, tables = trace_score_mod(lambda s, b, h, q, k: s * temperature)
    assert program.tables == (TableType("float32", 0),) and tables[0] == temperature
    swapped, _ = trace_score_mod(lambda s, b, h, q, k: temperature * s)
    assert [line[0] for line in swapped.instructions[5:]] == ["load", "mul"]


REFUSED = {
    "if": (lambda s, b, h, q, k: s if q > k else -s, TypeError, "torch.where"),
    "and": (lambda s, b, h, q, k: torch.where(q > 1 and k > 1, s, 0), TypeError, "& | ~"),
    "max": (lambda s, b, h, q, k: max(s, 0), TypeError, "torch.maximum"),
    "math": (lambda s, b, h, q, k: math.exp(s), TypeError, "those of math"),
    "range": (lambda s, b, h, q, k: sum(range(q)), TypeError, "not known"),
    "item": (lambda s, b, h, q, k: s.item(), TypeError, "not known"),
    "loop": (lambda s, b, h, q, k: next(iter(s)), TypeError, "not known"),
    "index_symbol": (lambda s, b, h, q, k: s[0], TypeError, "not known"),
    "chained": (lambda s, b, h, q, k: s * (0 < q < k), TypeError, "not known"),
    "function": (lambda s, b, h, q, k: torch.cumsum(s, 0), UnsupportedSpec, "'cumsum'.*available"),
    "method": (lambda s, b, h, q, k: s.cumsum(0), UnsupportedSpec, "'cumsum'"),
    "in_place": (lambda s, b, h, q, k: s.mul_(2), UnsupportedSpec, "'mul_'"),
    "stack": (lambda s, b, h, q, k: torch.stack([s, s]), UnsupportedSpec, "'stack'"),
    "arguments": (lambda s, b, h, q, k: s.clamp(lower=1), UnsupportedSpec, "lower"),
    "half": (lambda s, b, h, q, k: s.to(torch.float16), UnsupportedSpec, "float16"),
    "rounding": (
        lambda s, b, h, q, k: torch.div(s, 2, rounding_mode="trunc"), UnsupportedSpec, "'trunc'",
    ),
    "vector": (lambda s, b, h, q, k: s + VECTOR, UnsupportedSpec, r"\(5,\).*one symbol"),
    "row": (lambda s, b, h, q, k: s + TABLE[q], UnsupportedSpec, r"\(4, 7\) with 1 ind"),
    "row_compared": (lambda s, b, h, q, k: s * (TABLE[q] > 0), UnsupportedSpec, "with 1 ind"),
    "row_in_function": (lambda s, b, h, q, k: torch.exp(TABLE[q]), UnsupportedSpec, "with 1 ind"),
    "too_many": (lambda s, b, h, q, k: s + VECTOR[q, k], UnsupportedSpec, "with 2 ind"),
    "slice": (lambda s, b, h, q, k: TABLE[:, q], UnsupportedSpec, "slices"),
    "none": (lambda s, b, h, q, k: TABLE[None, q], UnsupportedSpec, "None"),
    "float_index": (lambda s, b, h, q, k: s + VECTOR[s], TypeError, "integers"),
    "bool_index": (lambda s, b, h, q, k: s + VECTOR[q > k], TypeError, "integers"),
    "beyond": (lambda s, b, h, q, k: s + TABLE[9, q], IndexError, "9"),
    "condition": (lambda s, b, h, q, k: torch.where(q, s, 0), TypeError, "int32, not bool"),
    "subtract_bools": (lambda s, b, h, q, k: (q > k) - (k > q), TypeError, "sub"),
    "float_bits": (lambda s, b, h, q, k: s & 1, TypeError, "and takes"),
    "nothing": (lambda s, b, h, q, k: None, UnsupportedSpec, "NoneType"),
    "numpy": (lambda s, b, h, q, k: s + np.ones(3), UnsupportedSpec, "ndarray"),
    "nan": (lambda s, b, h, q, k: s + math.nan, TypeError, "NaN"),
    "empty": (lambda s, b, h, q, k: s + torch.ones(0)[q], UnsupportedSpec, "no elements"),
    "complex": (lambda s, b, h, q, k: s + torch.ones(3).cfloat()[q], UnsupportedSpec, "complex64"),
    "arity": (lambda s, b, h: s, TypeError, "is called as score_mod.score, b, h, q_idx, k_idx"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_line_and_the_way_out(name):
    function, error, words = REFUSED[name]
    with pytest.raises(error, match=words) as caught:
        trace_score_mod(function)
    if error in (UnsupportedSpec, TypeError) and name not in ("arity",):
        assert __file__ in str(caught.value)


def test_users_own_errors_pass_through():
    def function(score, b, h, q_idx, k_idx):
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        trace_score_mod(function)


def test_symbols_of_two_functions_do_not_mix():
    kept = []
    trace_score_mod(lambda s, b, h, q, k: kept.append(s) or s)
    with pytest.raises(UnsupportedSpec, match="another function"):
        trace_score_mod(lambda s, b, h, q, k: s + kept[0])


def test_a_mask_must_be_bool():
    with pytest.raises(TypeError, match="int32, must give bool"):
        trace_mask_mod(lambda b, h, q, k: q - k)
    program, _ = trace_mask_mod(lambda b, h, q, k: True)
    assert program.dtypes[-1] == "bool" and not program.is_score


def test_exponential_growth_is_refused():
    def function(score, b, h, q_idx, k_idx):
        for _ in range(int(math.log2(MAX_TREE_NODES)) + 1):
            score = score * score
        return score

    with pytest.raises(UnsupportedSpec, match=str(MAX_TREE_NODES)):
        trace_score_mod(function)


@pytest.mark.parametrize("case", cases.CORRECTNESS, ids=lambda case: case.name)
def test_listed_functions_through_json(case):
    for program in (case.spec.score_mod, case.spec.mask_mod):
        if program is not None:
            again = ScoreProgram.from_json(json.loads(json.dumps(program.to_json())))
            assert again == program and again.digest == program.digest


@given(st.floats(allow_nan=False, width=32))
def test_constants_through_json(constant):
    program = program_of(lambda s, b, h, q, k: s * constant)
    text = json.dumps(program.to_json(), allow_nan=False)
    assert ScoreProgram.from_json(json.loads(text)) == program


SYMBOLS = [["score"], ["b"], ["h"], ["q_idx"], ["k_idx"]]


@pytest.mark.parametrize(
    ("lines", "tables"),
    [
        ([], []),
        ([["exp", 99]], []),
        ([["exp", -1]], []),
        ([["exp", 0.0]], []),
        ([["exp", True]], []),
        ([["exp"]], []),
        ([["system", 0]], []),
        ([["add", 0, 3]], []),
        ([["cast", "int32", 0]], []),
        ([["cast", "float64", 0]], []),
        ([["const", "float32", 1]], []),
        ([["const", "float32", "nan"]], []),
        ([["const", "int32", 2**31], ["cast", "float32", 5]], []),
        ([["load", 0, 3]], []),
        ([["load", 0, 3]], [["float32", 2]]),
        ([["load", 0, 0]], [["float32", 1]]),
        ([["load", 0, 3]], [["float8", 1]]),
        ([["where", 3, 0, 0]], []),
        ([["score", 0]], []),
        ([[["exp"], 0]], []),
        ([{"op": "exp"}], []),
    ],
)
def test_malformed_programs_are_refused(lines, tables):
    with pytest.raises((ValueError, TypeError)):
        ScoreProgram.from_json(
            {
                "version": 2,
                "instructions": [*SYMBOLS[: 5 if lines else 0], *lines],
                "tables": tables,
            }
        )


def test_programs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        program_of(lambda s, b, h, q, k: s).instructions = ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_mod": lambda s, q, k: s}, "score_mod takes other arguments .*score, b, h, q_idx"),
        ({"mask_mod": lambda s, b, h, q, k: q > k}, "missing a required .* mask_mod.b, h, q_idx"),
        ({"mask_mod": 3}, "mask_mod of int is no function"),
        ({"score_mod": lambda s, b, h, q, k: len(3)}, "object of type 'int' has no len"),
    ],
)
def test_functions_of_other_arguments_are_told_how_they_are_called(options, message):
    with pytest.raises(TypeError, match=message):
        capture(**options)
