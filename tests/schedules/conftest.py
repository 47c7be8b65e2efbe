"""Fixtures of the tests of schedules."""

import pytest

from tvm_flash.schedules.record_format import append


@pytest.fixture
def logs(tmp_path):
    """An empty folder of logs, and a function that adds lines to it."""

    def add(*lines):
        for one in lines:
            append(tmp_path, one)
        return tmp_path

    add.folder = tmp_path
    return add
