"""The folder of compiled kernels: whose it must be, and what is done about what is found in it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import stat
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small_artifact import SPEC, as_nobody, attends, compiled, copied, edit, in_child

from tvm_flash.artifact.library import MANIFEST, sha256_of
from tvm_flash.codegen import build, cache, jit, staging  # noqa: F401  build: children may not find it
from tvm_flash.codegen.file_lock import locked
from tvm_flash.errors import BuildError
from tvm_flash.runtime import kernels
from tvm_flash.runtime.loader import registered
from tvm_flash.runtime.machine_code import CodeError

KEY = (SPEC.name, "forward", "cpu", "long")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")


@pytest.fixture(autouse=True)
def nothing_in_memory(monkeypatch):
    monkeypatch.delitem(registered, KEY, raising=False)
    yield
    registered.pop(KEY, None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache that holds the kernel and its plan; what it lacks is copied there, not compiled."""
    good = compiled()
    home = tmp_path / "cache"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(home))

    def copy(*known):
        with staging.publishing(known[-1]) as place:
            shutil.copytree(good, place, dirs_exist_ok=True)

    monkeypatch.setattr(jit, "_build", copy)
    jit.artifact_for(SPEC, "forward")
    return home


def resolved():
    registered.pop(KEY, None)
    return kernels.resolve(SPEC, "forward")


def entry_of(folder: Path) -> Path:
    return next(
        path
        for path in folder.iterdir()
        if path.name.startswith(SPEC.name + "_fwd-") and path.is_dir()
    )


def plan_of(folder: Path) -> Path:
    return next(path for path in (folder / "plans").iterdir() if path.suffix != ".lock")


def test_it_is_made_for_this_user_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path / "new" / "cache"))
    before = os.umask(0)
    try:
        assert attends(resolved())
    finally:
        os.umask(before)
    for made in (
        tmp_path / "new",
        tmp_path / "new" / "cache",
        tmp_path / "new" / "cache" / "plans",
    ):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_one_that_others_may_write_to_is_refused(folder, mode):
    folder.chmod(mode)
    with pytest.raises(BuildError, match=r"others may write.*chmod -R go-w.*TVM_FLASH_CACHE_DIR"):
        resolved()
    folder.chmod(0o755)
    assert attends(resolved())


@as_root
def test_one_that_a_group_may_write_to_is_refused(folder):
    folder.chmod(0o770)
    with pytest.raises(BuildError, match="others may write"):
        resolved()


@as_root
def test_one_of_somebody_else_is_refused(folder):
    os.chown(folder, 54321, 54321)
    with pytest.raises(BuildError, match=r"belongs to user 54321.*TVM_FLASH_CACHE_DIR"):
        resolved()


def test_one_below_a_folder_that_is_open_to_all_is_refused(folder):
    folder.parent.chmod(0o777)
    with pytest.raises(BuildError, match=r"anybody may replace.*chmod \+t"):
        resolved()
    folder.parent.chmod(0o1777)
    assert attends(resolved())


@pytest.mark.parametrize("chosen", ["", "~nobody_has_this_name/cache"], ids=["no home", "no user"])
def test_no_home_is_a_build_error(monkeypatch, chosen):
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", chosen)

    def child():
        for name in ("HOME", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)
        as_nobody()
        with pytest.raises(BuildError, match="TVM_FLASH_CACHE_DIR"):
            kernels.resolve(replace(SPEC, softcap=True), "forward")

    assert in_child(child)


@pytest.mark.parametrize("inside", ["", "deeper/cache"])
def test_one_that_may_not_be_searched_is_a_build_error(folder, monkeypatch, inside):
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(folder / inside))
    if os.geteuid() != 0:
        folder.chmod(0)

    def child():
        as_nobody()
        with pytest.raises(BuildError, match="TVM_FLASH_CACHE_DIR"):
            resolved()

    assert in_child(child)
    folder.chmod(0o700)


@as_root
def test_one_that_is_read_only_serves_a_kernel_without_its_plan(folder):
    with tempfile.TemporaryDirectory() as place:
        shared = Path(shutil.copytree(folder, Path(place, "cache")))
        plan_of(shared).unlink()
        Path(place).chmod(0o755)
        for path in (shared, *shared.rglob("*")):
            path.chmod(0o755)

        def child():
            os.environ["TVM_FLASH_CACHE_DIR"] = str(shared)
            as_nobody()
            # Not run: torch's OpenMP has no threads in a child.
            assert resolved().spec == SPEC
            with pytest.raises(BuildError, match="TVM_FLASH_CACHE_DIR"):
                kernels.resolve(replace(SPEC, softcap=True), "forward")

        assert in_child(child)


def _library(entry: Path, data: bytes) -> None:
    (entry / "kernels.so").write_bytes(data)
    edit(entry, sha256=sha256_of(entry / "kernels.so"))


def _record(entry: Path, **changes) -> None:
    (record,) = json.loads((entry / MANIFEST).read_text())["kernels"]
    edit(entry, kernels=[{**record, **changes}])


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _given_away(file: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("gives files to others")
    os.chown(file, 54321, 54321)


def _with_a_file_more(entry: Path) -> None:
    (entry / "more").touch()
    (entry / MANIFEST).write_text("{}")


_SPOILT = {
    "another architecture": lambda entry: edit(entry, target={"name": "x", "architecture": "vax"}),
    "another tvm_ffi": lambda entry: edit(entry, versions={"tvm_ffi": "99.0"}),
    "another spec": lambda entry: _record(entry, spec=replace(SPEC, causal=True).to_json()),
    "another direction": lambda entry: _record(entry, direction="backward"),
    "another length": lambda entry: _record(entry, buckets=["tiny"]),
    "another symbol": lambda entry: _record(entry, symbol="absent"),
    "no library": lambda entry: _library(entry, b"#!/bin/sh\n"),
    "a cut library": lambda entry: _library(entry, (entry / "kernels.so").read_bytes()[:5000]),
    "a folder that others may write to": lambda entry: entry.chmod(0o777),
    "a library that others may write to": lambda entry: (entry / "kernels.so").chmod(0o666),
    "a manifest of somebody else": lambda entry: _given_away(entry / MANIFEST),
    "a file more": lambda entry: _with_a_file_more(entry),
    "a pipe for a manifest": lambda entry: _pipe(entry / MANIFEST),
    "a pipe for a library": lambda entry: _pipe(entry / "kernels.so"),
}


@pytest.mark.parametrize("what", _SPOILT)
def test_an_entry_that_will_not_do_is_built_again_with_one_warning(folder, caplog, what):
    _SPOILT[what](entry_of(folder))
    with caplog.at_level(logging.WARNING, logger="tvm_flash"):
        assert attends(resolved())
    (warning,) = caplog.messages
    assert str(entry_of(folder)) in warning and "building it again" in warning
    assert attends(resolved()) and len(caplog.messages) == 1


def test_an_entry_stays_until_another_is_built(folder, monkeypatch):
    """It may be good: a process without descriptors or memory cannot use it."""
    before = entry_of(folder)

    def refused(*_):
        raise CodeError("failed to map segment: Cannot allocate memory")

    def no_room(*_):
        raise BuildError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("tvm_flash.runtime.loader.mapped", refused)
        patch.setattr(jit, "_build", no_room)
        with pytest.raises(BuildError, match="no memory"):
            resolved()
    monkeypatch.setattr(jit, "_build", no_room)
    assert attends(resolved()) and entry_of(folder) == before


def test_nobody_else_may_write_to_what_is_kept_whatever_the_umask(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(folder))
    before = os.umask(0)
    try:
        made = jit.artifact_for(SPEC, "forward")
    finally:
        os.umask(before)
    for path in (made, *made.iterdir(), plan_of(folder)):
        assert not path.stat().st_mode & 0o022, path


def _stamped(data: bytes) -> bytes:
    return cache._stamp(data) + b"\n" + data


_PLANS = {
    "garbage": b"\x00garbage",
    "stamped garbage": _stamped(b"\xff{"),
    "no object": _stamped(b"[]"),
    "other fields": _stamped(b'{"config": {}}'),
    "deep": _stamped(b"[" * 100_000),
    "hostile": _stamped(b'{"config": {"block_q": -64}, "source": "x", "buckets": ["long"]}'),
    "of other lengths": _stamped(b'{"config": {}, "source": "x", "buckets": ["tiny"]}'),
}


def test_a_plan_that_others_may_write_to_is_made_again(folder, caplog):
    plan_of(folder).chmod(0o666)
    with caplog.at_level(logging.WARNING, logger="tvm_flash"):
        assert attends(resolved())
    (warning,) = caplog.messages
    assert "others may write to it" in warning and attends(resolved())


def test_a_folder_of_plans_that_others_may_write_to_is_refused(folder):
    (folder / "plans").chmod(0o777)
    with pytest.raises(BuildError, match=r"plans is not safe: others may write to it"):
        resolved()


def test_a_device_is_no_folder(monkeypatch):
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", "/dev/null")
    with pytest.raises(BuildError, match="Not a directory"):
        resolved()


@pytest.mark.parametrize("what", _PLANS)
def test_a_plan_that_will_not_do_is_made_again_with_one_warning(folder, caplog, what):
    plan, entry = plan_of(folder), entry_of(folder)
    plan.write_bytes(_PLANS[what])
    with caplog.at_level(logging.WARNING, logger="tvm_flash"):
        assert attends(resolved())
    (warning,) = caplog.messages
    assert str(plan) in warning
    assert attends(resolved()) and len(caplog.messages) == 1
    assert [path for path in folder.iterdir() if path.is_dir()].count(entry) == 1


def _killed_while_it_builds(folder: Path) -> Path:
    """What a child leaves in ``folder`` that is killed in the middle of a build."""
    before = set(folder.iterdir())

    def child():
        with staging.publishing(folder / "attn_of_the_killed"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert not in_child(child)
    (left,) = set(folder.iterdir()) - before
    return left


def test_scratch_of_the_killed_goes_by_age(folder):
    old, young, in_use = (_killed_while_it_builds(folder) for _ in range(3))
    file = folder / ".half"
    file.write_text("written")
    long_ago = time.time() - 2 * staging._DEAD_AFTER_SECONDS
    for left in (old, in_use, file):
        os.utime(left, (0, long_ago))
    shutil.rmtree(entry_of(folder))
    with locked(in_use / staging._LOCK):
        assert attends(resolved())
    assert not old.exists() and not file.exists()
    assert young.exists() and in_use.exists()


def test_a_build_clears_its_own_scratch_and_nothing_of_the_users(tmp_path):
    ours, theirs = tmp_path / ".kernels.abc", tmp_path / ".kernels.swp"
    ours.mkdir()
    (ours / staging._LOCK).touch()
    theirs.write_text("a letter")
    for path in (ours, theirs):
        os.utime(path, (0, 0))
    with staging.publishing(tmp_path / "kernels") as place:
        copied(place / "all")
        shutil.copytree(place / "all", place, dirs_exist_ok=True)
        shutil.rmtree(place / "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kernels.swp", "kernels"]
