"""The kernel cache: built once, even by racing processes; corrupt entries are built again."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap

import pytest
import torch

from tvm_flash.artifact.library import verify
from tvm_flash.codegen import cache, jit, versions
from tvm_flash.errors import BuildError, UnsupportedSpec
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime import kernels
from tvm_flash.runtime.loader import load, registered


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """An empty cache directory and no kernel in memory; gives the directory."""
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path / "cache"))
    before = dict(registered)
    registered.clear()
    yield tmp_path / "cache"
    registered.clear()
    registered.update(before)


@pytest.fixture
def scheduled(toy_jobs, monkeypatch):
    """The toys take the place of schedules; gives the list of what was compiled."""
    from tvm_flash.codegen import build

    plans = {(job.spec, job.direction): job for job in toy_jobs}
    asked = []

    def scheduled_module(spec, direction, target, config, *, bucket):
        asked.append((spec, direction))
        return plans[spec, direction].schedule()

    monkeypatch.setattr(build, "scheduled_module", scheduled_module)
    return asked


@pytest.fixture
def spec(toy_jobs):
    return toy_jobs[0].spec


def runs(kernel) -> bool:
    a = torch.randn(5, 64)
    b = torch.empty_like(a)
    kernel(a, b, 3.0)
    return torch.equal(b, a.flip(1) * 3)


def entries(folder) -> list:
    return [path for path in folder.iterdir() if path.is_dir() and path.name != "plans"]


def test_compiled_once_then_from_memory_then_from_disk(scheduled, spec, fresh):
    first = kernels.resolve(spec, "forward")
    assert runs(first)
    assert kernels.resolve(spec, "forward") is first
    registered.clear()
    again = kernels.resolve(spec, "forward")
    assert again is not first
    assert runs(again)
    assert scheduled == [(spec, "forward")]
    assert len(entries(fresh)) == 1


def test_directions_are_separate_entries(scheduled, spec, fresh):
    assert runs(kernels.resolve(spec, "forward"))
    assert runs(kernels.resolve(spec, "backward"))
    assert len(entries(fresh)) == 2


def test_loaded_library_comes_before_the_compiler(scheduled, spec, toy_artifact):
    library = load(toy_artifact)
    assert kernels.resolve(spec, "forward") is library.kernels[0]
    assert scheduled == []


@pytest.mark.parametrize("damage", ["changed", "empty library", "no library", "manifest", "file"])
def test_corrupt_entry_is_built_again_with_a_warning(scheduled, spec, fresh, caplog, damage):
    path = jit.artifact_for(spec, "forward")
    spoil(path, damage)
    with caplog.at_level(logging.WARNING, logger="tvm_flash"):
        assert runs(kernels.resolve(spec, "forward"))
    assert "cannot be used" in caplog.text
    assert str(path) in caplog.text
    assert len(scheduled) == 2
    verify(path)


def spoil(path, damage: str) -> None:
    library, manifest = path / "kernels.so", path / "manifest.json"
    if damage == "changed":
        library.write_bytes(library.read_bytes()[:-1] + b"?")
    elif damage == "empty library":
        library.write_bytes(b"")
    elif damage == "no library":
        library.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        library.unlink()
        manifest.unlink()
        path.rmdir()
        path.write_text("not even a directory")


def test_unknown_direction(spec):
    with pytest.raises(ValueError, match="sideways"):
        kernels.resolve(spec, "sideways")


def test_without_tvm_the_error_says_what_to_do(spec, monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if name == "tvm" else name)
    with pytest.raises(UnsupportedSpec, match=r"tvm-flash\[compile\]"):
        kernels.resolve(spec, "forward")
    pages = AttentionSpec(dtype="float32", head_dim=24, sequences="paged")
    with pytest.raises(UnsupportedSpec, match=r"append of fp32,d=24,paged .*older versions"):
        kernels.resolve(pages, "append")


def test_failed_build_leaves_no_entry(scheduled, spec, fresh, monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(BuildError, match="/nowhere/cc"):
        kernels.resolve(spec, "forward")
    assert entries(fresh) == []
    monkeypatch.delenv("CC")
    assert runs(kernels.resolve(spec, "forward"))


def test_cache_directory_that_cannot_be_written(scheduled, spec, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="TVM_FLASH_CACHE_DIR"):
        kernels.resolve(spec, "forward")


def test_place_of_the_cache(monkeypatch, tmp_path):
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("TVM_FLASH_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(cache.sys, "platform", "linux")
    assert cache.cache_dir() == tmp_path / "xdg" / "tvm_flash"


PLAN = {"config": {"block_q": 64}, "source": "default", "buckets": ["long"]}


def test_key_follows_everything_that_decides_the_code(spec, monkeypatch):
    from dataclasses import replace

    target = jit.host_target()
    base = jit._key(spec, "forward", target, PLAN)
    assert base == jit._key(spec, "forward", target, dict(PLAN))
    others = [
        jit._key(replace(spec, causal=True), "forward", target, PLAN),
        jit._key(spec, "backward", target, PLAN),
        jit._key(spec, "forward", replace(target, mcpu="other"), PLAN),
        jit._key(spec, "forward", replace(target, features=frozenset()), PLAN),
        jit._key(spec, "forward", target, {**PLAN, "config": {"block_q": 32}}),
        jit._key(spec, "forward", target, {**PLAN, "buckets": ["short", "long"]}),
    ]
    monkeypatch.setattr(jit, "source_digest", lambda: "other")
    others.append(jit._key(spec, "forward", target, PLAN))
    monkeypatch.setattr(jit, "build_versions", lambda: {"tvm": "other"})
    others.append(jit._key(spec, "forward", target, PLAN))
    assert len({base, *others}) == 9


def test_digest_covers_every_module_that_building_imports():
    program = """
        import sys, tvm_flash.codegen.jit, tvm_flash.codegen.build
        roots = ("tvm_flash.cli", "tvm_flash.bench")
        for name, module in sorted(sys.modules.items()):
            if name.startswith("tvm_flash") and not name.startswith(roots):
                print(module.__file__ or "")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    covered = {str(path) for _, path in versions.building_sources()}
    assert [line for line in done.stdout.split() if line not in covered] == []


def test_digest_sees_content_not_place(tmp_path, monkeypatch):
    def digest(text: str, folder: str) -> str:
        root = tmp_path / folder
        (root / "schedules").mkdir(parents=True)
        (root / "schedules" / "a.py").write_text(text)
        monkeypatch.setattr(versions.tvm_flash, "__path__", [str(root)])
        versions.source_digest.cache_clear()
        return versions.source_digest()

    one, two, three = digest("x = 1", "one"), digest("x = 1", "two"), digest("x = 2", "three")
    versions.source_digest.cache_clear()
    assert one == two != three


def test_four_processes_build_it_once(toy_artifact, fresh):
    log = fresh.parent / "log"
    program = f"""
        import shutil, time
        from tvm_flash.codegen import cache

        def make(path):
            with open({str(log)!r}, "a") as log:
                log.write("made\\n")
            time.sleep(0.5)
            shutil.copytree({str(toy_artifact)!r}, path)

        print(cache.entry("race", make))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [racer.communicate(timeout=600)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert set(outputs) == {str(fresh / "race")}
    assert log.read_text() == "made\n"
    verify(fresh / "race")


def test_threads_build_it_once(scheduled, spec):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: kernels.resolve(spec, "forward"), range(8)))
    assert len(set(map(id, found))) == 1
    assert scheduled == [(spec, "forward")]


def test_a_kernel_from_the_cache_needs_no_tvm_import(scheduled, spec, fresh):
    """Importing tvm takes seconds; the second process must not pay them."""
    jit.artifact_for(spec, "forward")
    program = f"""
        import sys
        from tvm_flash.codegen import jit
        from tvm_flash.problem.spec import AttentionSpec
        spec = AttentionSpec.from_json({spec.to_json()!r})
        print(jit.artifact_for(spec, "forward"))
        assert "tvm" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(fresh) in done.stdout
