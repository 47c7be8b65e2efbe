"""Every opcode of the interpreter against an oracle, and a proof that none was left out."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from ptx import (
    snippet,
    table_barriers,
    table_bits,
    table_compare,
    table_convert,
    table_copies,
    table_floating,
    table_integer,
    table_matrix,
    table_memory,
    table_warp,
    table_wgmma,
    values,
)

from tvm_flash.ptx_interpreter.opcodes import TABLE, key_of

TABLES = (table_integer, table_bits, table_floating, table_convert, table_compare)
CASE_TABLES = (table_memory, table_warp, table_barriers, table_matrix, table_copies, table_wgmma)
ROWS = [row for table in TABLES for row in table.ROWS]
FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


def ids(rows):
    return [f"{i}-{row.text.split(';')[0]}" for i, row in enumerate(rows)]


@pytest.mark.parametrize("row", ROWS, ids=ids(ROWS))
def test_row(row):
    sources, result, report = result_of(row)
    lanes = zip(*(array.tolist() for array in sources.values()), strict=True)
    compare(row, result, [row.oracle(*lane) for lane in lanes])
    assert row.opcode in report.coverage[0]


def result_of(row):
    """(sources by name, result, report) of the kernel of a row."""
    sources = {}
    for i, (name, kind) in enumerate(zip(snippet.SOURCES, row.sources, strict=False)):
        given = (row.values or {}).get(name)
        sources[name] = values.sample(kind, snippet.LANES, i + 1) if given is None else given
    dtype = np.dtype(snippet.DTYPES[row.result])
    result, report = snippet.run(
        row.ptx(), list(sources.values()), snippet.LANES, dtype, threads=snippet.LANES
    )
    return sources, result, report


def compare(row, result, expected):
    if row.result not in FLOATS:
        bits = result.dtype.itemsize * 8
        wanted = np.array([int(x) % (1 << bits) for x in expected], f"u{bits // 8}")
        np.testing.assert_array_equal(result.view(wanted.dtype), wanted)
        return
    wanted = np.array([rounded(x, FLOATS[row.result]) for x in expected])
    if row.tolerance:
        np.testing.assert_allclose(result, wanted, rtol=row.tolerance, atol=1e-30)
    else:
        np.testing.assert_array_equal(result, wanted)


def rounded(x, dtype):
    """A float or Fraction to nearest even, with one rounding."""
    with np.errstate(over="ignore", under="ignore"):
        if not isinstance(x, Fraction):
            return dtype(x)
        near = dtype(float(x))
        if not np.isfinite(near):
            return near
        around = [np.nextafter(near, dtype(-np.inf)), near, np.nextafter(near, dtype(np.inf))]

    def distance(y):
        odd = int(y.view(f"u{y.itemsize}")) & 1
        return abs(Fraction(float(y)) - x) if np.isfinite(y) else abs(x), odd

    return min(around, key=distance)


@pytest.mark.parametrize("item", snippet.CASES, ids=[c.name for c in snippet.CASES])
def test_case(item):
    item.check(item.text)


def test_every_opcode_is_executed():
    """The keys of the dispatch table, against what the rows and cases execute."""
    snippet.EXECUTED.clear()
    for row in ROWS:
        result_of(row)
    for item in snippet.CASES:
        item.check(item.text)
    keys = {key_of(SimpleNamespace(opcode=name)) for name in snippet.EXECUTED}
    assert set(TABLE) - keys == {"trap"}  # it ends a launch: test_checks.py
    assert {item.check.__module__ for item in snippet.CASES} == {t.__name__ for t in CASE_TABLES}
