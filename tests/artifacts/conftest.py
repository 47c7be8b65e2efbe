"""An artifact of toy kernels, built once, and copies of it that a test may spoil."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from tvm_flash.artifact.library import MANIFEST, symbol_name
from tvm_flash.problem.spec import AttentionSpec

# Specs stand in as names for the toys.
REVERSE = AttentionSpec(dtype="float32", head_dim=64)
THREADS = AttentionSpec(dtype="float32", head_dim=65)
MEMORY = AttentionSpec(dtype="float32", head_dim=66)


@pytest.fixture(scope="session")
def toys_source():
    """The module toy_kernels, which needs tvm."""
    path = Path(__file__).with_name("toy_kernels.py")
    found = importlib.util.spec_from_file_location("toy_kernels", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy_jobs(toys_source):
    """Build jobs for the toys: REVERSE in both directions, THREADS and MEMORY forward."""
    from tvm_flash.codegen.build import Job
    from tvm_flash.schedules.select import Scheduled

    toys = toys_source

    def job(spec, direction, func):
        symbol = symbol_name(spec, direction)
        meta = {"block_q": 64, "block_k": 32, "head_dim_pad": 16}
        plan = Scheduled(toys.module(func, symbol), {"toy": 1}, meta)
        return Job(symbol, spec, direction, lambda: plan)

    return [
        job(REVERSE, "forward", toys.reverse_scaled),
        job(REVERSE, "backward", toys.reverse_scaled),
        job(THREADS, "forward", toys.thread_ids),
        job(MEMORY, "forward", toys.ask_for_memory),
    ]


@pytest.fixture(scope="session")
def toy_artifact(toy_jobs, tmp_path_factory) -> Path:
    """Directory of the toys' artifact: read only."""
    from tvm_flash.codegen.build import build_jobs, find_target

    return build_jobs(toy_jobs, find_target("llvm"), tmp_path_factory.mktemp("built") / "toys")


@pytest.fixture
def spoilable(toy_artifact, tmp_path) -> Path:
    """A copy of the toys' artifact."""
    return Path(shutil.copytree(toy_artifact, tmp_path / "copy"))


@pytest.fixture
def edit_manifest(spoilable):
    """Call with changes to make to the copy's manifest; gives the copy."""

    def edit(**changes) -> Path:
        path = spoilable / MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return spoilable

    return edit
