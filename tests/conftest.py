"""Options and settings that every test shares."""

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Kernels that tests compile stay between runs, but out of the user's own cache. In the environment,
# because many tests start a process of their own.
os.environ.setdefault("TVM_FLASH_CACHE_DIR", str(ROOT / ".pytest_cache" / "kernels"))
# What torch.compile kept of another release of the operators would be called with their arguments.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="tvm_flash_inductor_"))
# Workers share the cores: an OpenMP thread that spins while it waits keeps another test from
# running. Read when torch is imported, so it stands before that.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/schedules/golden/*.txt from the present code instead of comparing",
    )


@pytest.fixture
def update_golden(request):
    """Whether golden files are to be written."""
    return request.config.getoption("--update-golden")
