"""Groups of processes, which all tests of a file share."""

import pytest
from process_group import Processes


def _group(world):
    group = Processes(world)
    yield group
    group.close()


@pytest.fixture(scope="session")
def pair():
    """Two ranks."""
    yield from _group(2)


@pytest.fixture(scope="session")
def four():
    """Four ranks."""
    yield from _group(4)
