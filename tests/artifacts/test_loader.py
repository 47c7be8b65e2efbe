"""Loaded kernels run on torch's threads, report errors of any thread and need tvm_ffi alone."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tvm_flash.artifact.library import sha256_of
from tvm_flash.errors import ArtifactError
from tvm_flash.runtime.loader import load, registered
from tvm_flash.runtime.openmp import torch_openmp

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc or calls gettid")


@pytest.fixture(autouse=True)
def registry_and_threads():
    """Leave the process as it was."""
    before, threads = dict(registered), torch.get_num_threads()
    yield
    registered.clear()
    registered.update(before)
    torch.set_num_threads(threads)


@pytest.fixture
def toys(toy_artifact):
    """Loaded toys by name."""
    reverse, backward, threads, memory = load(toy_artifact).kernels
    return {"reverse": reverse, "backward": backward, "threads": threads, "memory": memory}


def threads_that_ran(kernel, iterations: int = 64) -> set[int]:
    ids = torch.zeros(iterations, dtype=torch.int32)
    kernel(ids)
    assert (ids != 0).all()
    return set(ids.tolist())


@pytest.mark.parametrize("rows", [1, 3, 127, 1000])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_iteration_runs_once(toys, rows, threads):
    torch.set_num_threads(threads)
    a = torch.randn(rows, 64)
    b = torch.full_like(a, float("nan"))
    toys["reverse"](a, b, 2.0)
    assert torch.equal(b, a.flip(1) * 2)


def test_both_directions_are_there(toys, toy_artifact):
    a = torch.randn(4, 64)
    b = torch.empty_like(a)
    toys["backward"](a, b, 1.0)
    assert torch.equal(b, a.flip(1))
    assert (toys["reverse"].direction, toys["backward"].direction) == ("forward", "backward")


@linux
def test_one_thread_is_the_callers(toys):
    torch.set_num_threads(1)
    assert threads_that_ran(toys["threads"]) == {os.getpid()}


@linux
def test_uses_as_many_threads_as_torch_may(toys):
    torch.set_num_threads(3)
    assert 1 < len(threads_that_ran(toys["threads"])) <= 3


@linux
def test_threads_are_those_of_torchs_pool(toys):
    torch.set_num_threads(3)
    torch.ones(1 << 20).exp().sum()  # wakes the pool
    before = set(map(int, os.listdir("/proc/self/task")))
    assert threads_that_ran(toys["threads"]) <= before
    assert set(map(int, os.listdir("/proc/self/task"))) <= before


@linux
def test_inside_a_parallel_region_it_runs_on_that_thread(toys):
    torch.set_num_threads(2)
    ran: list[set[int]] = []
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
        lambda _: ran.append(threads_that_ran(toys["threads"], 8))
    )
    run_team = ctypes.CFUNCTYPE(None, type(body), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    run_team(torch_openmp().run_team)(body, None, 2, 0)
    assert len(ran) == 2
    assert all(len(ids) == 1 for ids in ran)


@linux
def test_without_openmp_it_runs_on_the_calling_thread(toy_artifact, monkeypatch):
    from tvm_flash.runtime import loader, machine_code

    monkeypatch.setattr(machine_code, "_mapped", {})
    monkeypatch.setattr(loader, "torch_openmp", lambda: None)
    torch.set_num_threads(2)
    assert threads_that_ran(load(toy_artifact).kernels[2]) == {os.getpid()}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("elements", [2**61, 2**50])
def test_error_of_any_thread_reaches_the_caller(toys, threads, elements):
    torch.set_num_threads(threads)
    values = torch.zeros(50)
    with pytest.raises(MemoryError, match="workspace"):
        toys["memory"](values, elements)
    toys["memory"](values, 100)
    assert torch.equal(values, torch.arange(50.0))


def test_workspaces_grow_and_stay_apart(toys):
    for elements in (1, 7, 20_000, 3, 300_000, 16):
        values = torch.zeros(100)
        toys["memory"](values, elements)
        assert torch.equal(values, torch.arange(100.0)), elements


def test_python_threads_may_call_at_once(toys):
    from concurrent.futures import ThreadPoolExecutor

    def call(seed: int) -> bool:
        a = torch.randn(500, 64, generator=torch.Generator().manual_seed(seed))
        b = torch.empty_like(a)
        toys["reverse"](a, b, 2.0)
        return torch.equal(b, a.flip(1) * 2)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(40)))


def test_wrong_argument_is_an_error_not_a_crash(toys):
    with pytest.raises(Exception, match="float32"):
        toys["reverse"](torch.zeros(2, 64, dtype=torch.float64), torch.zeros(2, 64), 1.0)


def test_kernels_are_registered_latest_first(toy_artifact, spoilable):
    first = load(toy_artifact).kernels[0]
    second = load(spoilable).kernels[0]
    assert registered[first.spec.name, "forward", "cpu", "long"] is second


def test_workspace_shapes_of_backward(toys):
    kernel = toys["backward"]  # block_q 64, block_k 32, head_dim_pad 16
    shapes = kernel.shapes((1, 2, 1, 65, 1000), threads=2)
    assert (shapes["delta"], shapes["dq_acc"]) == ((1, 2, 65), (4, 1, 2, 128, 16))

    def copies(*sizes):
        return kernel.shapes(sizes, threads=2)["dq_acc"][0]

    assert copies(1, 2, 1, 65, 33) == 2, "no more copies than key tiles"
    assert copies(4, 4, 2, 65, 1000) == 1, "enough heads"


def test_nothing_can_rebind_the_hooks(toy_artifact):
    """tvm_ffi sets such pointers, where it finds them, to libtvm's own thread pool."""
    load(toy_artifact)
    library = ctypes.CDLL(str(toy_artifact / "kernels.so"))
    for name in ("ParallelLaunch", "ParallelBarrier", "AllocWorkspace", "FreeWorkspace"):
        assert not hasattr(library, f"__TVMBackend{name}")


@linux
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")
def test_library_needs_tvm_ffi_and_libc_alone(toy_artifact):
    command = ["readelf", "-d", str(toy_artifact / "kernels.so")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*?)\]", text))
    assert "libtvm_ffi.so" in needed
    allowed = re.compile(r"libtvm_ffi\.so|libc\.so|libm\.so|libpthread\.so|ld-linux")
    assert [name for name in needed if not allowed.match(name)] == []


def test_missing_symbol(edit_manifest, toy_artifact):
    from tvm_flash.artifact.library import verify

    entry = verify(toy_artifact)[1].kernels[0].to_json()
    with pytest.raises(ArtifactError, match="no kernel 'absent'"):
        load(edit_manifest(kernels=[{**entry, "symbol": "absent"}]))


def test_file_that_is_no_library(edit_manifest, spoilable):
    library = spoilable / "kernels.so"
    library.write_bytes(b"#!/bin/sh\n")
    with pytest.raises(ArtifactError, match=re.escape(str(library))):
        load(edit_manifest(sha256=sha256_of(library)))


@linux
def test_library_of_somebody_else(edit_manifest, spoilable):
    """It has a function of the right name and its manifest is right, but we did not link it."""
    from tvm_flash.artifact.library import verify
    from tvm_flash.codegen.linker import find_compiler

    symbol = verify(spoilable)[1].kernels[0].symbol
    source, library = spoilable / "other.c", spoilable / "kernels.so"
    source.write_text(f"int __tvm_ffi_{symbol}(void) {{ return 0; }}\n")
    subprocess.run(
        [*find_compiler(), "-shared", "-fPIC", str(source), "-o", str(library)], check=True
    )
    entry = verify_entry(edit_manifest, library)
    with pytest.raises(ArtifactError, match="did not link it"):
        load(entry)


def verify_entry(edit_manifest, library: Path) -> Path:
    import json

    entries = json.loads(library.with_name("manifest.json").read_text())["kernels"]
    return edit_manifest(sha256=sha256_of(library), kernels=entries[:1])


def resident() -> int:
    """Bytes of memory that this process uses (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@linux
def test_thread_keeps_64_mib_of_workspace_at_most(toys):
    torch.set_num_threads(1)
    toys["memory"](torch.zeros(1), 16)
    before = resident()
    for elements in (10_000_000, 30_000_000, 60_000_000):
        toys["memory"](torch.zeros(1), elements)
        assert resident() - before < 80 << 20, elements


@linux
def test_thread_that_ends_gives_its_workspace_back(toys):
    import threading

    torch.set_num_threads(1)
    elements = 4_000_000  # 16 MB

    def once():
        thread = threading.Thread(target=lambda: toys["memory"](torch.zeros(1), elements))
        thread.start()
        thread.join()

    once()
    before = resident()
    for _ in range(8):
        once()
    assert resident() - before < 3 * 4 * elements
