"""Fixtures of the tests of studies: made-up replay tables."""

import pytest
from replay_tables import write_table

SMALL = {"block_q": (64, 128, 256), "rows_s": (2, 4), "rows_o": (2, 4)}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of some hundred points, of which about one in twenty fails."""
    return write_table(tmp_path_factory.mktemp("table") / "t.jsonl.gz")


@pytest.fixture
def small(tmp_path):
    """A table at "small.jsonl" of ``tmp_path``: 12 points, of which about one in five fails."""
    return write_table(tmp_path / "small.jsonl", knobs=SMALL, failing=0.2)
