"""Options and settings that every test shares."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Kernels that tests compile stay between runs, but out of the user's own cache. In the environment,
# because many tests start a process of their own.
os.environ.setdefault("TVM_FLASH_CACHE_DIR", str(ROOT / ".pytest_cache" / "kernels"))


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden/*.txt from the present code instead of comparing",
    )


@pytest.fixture
def update_golden(request):
    """Whether golden files are to be written."""
    return request.config.getoption("--update-golden")
