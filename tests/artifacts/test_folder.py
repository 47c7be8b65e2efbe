"""Files that are replaced whole or not at all."""

import pytest

from tvm_flash.artifact.folder import replacing


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as one, replacing(path) as other:  # as threads of a process may
        one.write_text("new")
        other.write_text("newer")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
