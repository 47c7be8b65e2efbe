"""build: one library for many kernels, whole or not at all, the same bytes every time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tvm_flash.artifact.library import verify
from tvm_flash.codegen import build as build_module
from tvm_flash.codegen.build import Job, build, build_jobs, find_target
from tvm_flash.errors import BuildError
from tvm_flash.machine import architecture
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.target import cpu_target


def test_same_kernels_give_the_same_bytes(toy_jobs, toy_artifact, tmp_path):
    again = build_jobs(toy_jobs, find_target("llvm"), tmp_path / "again")
    for name in ("kernels.so", "manifest.json"):
        assert (again / name).read_bytes() == (toy_artifact / name).read_bytes()


def test_replaces_an_artifact_and_leaves_nothing_beside_it(toy_jobs, spoilable):
    (spoilable / "kernels.so").write_bytes(b"old")
    build_jobs(toy_jobs[:1], find_target("llvm"), spoilable)
    assert len(verify(spoilable)[1].kernels) == 1
    assert [entry.name for entry in spoilable.parent.iterdir()] == [spoilable.name]


def test_does_not_replace_anything_else(toy_jobs, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BuildError, match="not an artifact"):
        build_jobs(toy_jobs, find_target("llvm"), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_failure_leaves_nothing(toy_jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(BuildError):
        build_jobs(toy_jobs, find_target("llvm"), tmp_path / "toys")
    assert list(tmp_path.iterdir()) == []


def test_code_that_does_not_compile_names_its_kernel(toy_jobs, toys_source, tmp_path):
    plan = toy_jobs[0].schedule()
    mod = toys_source.module(toys_source.on_gpu_threads, toy_jobs[0].symbol)
    broken = replace(toy_jobs[0], schedule=lambda: replace(plan, mod=mod))

    with pytest.raises(BuildError, match=broken.symbol):
        build_jobs([broken], find_target("llvm"), tmp_path / "toys")


def test_another_architecture_is_refused_before_any_work(toy_jobs, tmp_path):
    other = cpu_target("aarch64" if architecture() == "x86_64" else "x86-64-v3")
    with pytest.raises(BuildError, match=other.name):
        build_jobs(toy_jobs, other, tmp_path / "toys")


def test_reports_progress(toy_jobs, tmp_path):
    seen = []
    build_jobs(toy_jobs, find_target("llvm"), tmp_path / "toys", lambda *step: seen.append(step))
    assert [(done, total) for done, total, _ in seen] == [(n, 4) for n in (1, 2, 3, 4)]
    assert {symbol for *_, symbol in seen} == {job.symbol for job in toy_jobs}


def test_a_spec_named_twice_is_built_once(toy_jobs, tmp_path, monkeypatch):
    asked = []

    def scheduled_module(spec, direction, target, config, *, bucket):
        asked.append((spec, direction))
        return toy_jobs[0].schedule()

    monkeypatch.setattr(build_module, "scheduled_module", scheduled_module)
    spec: AttentionSpec = toy_jobs[0].spec
    build([spec, spec], "llvm", tmp_path / "one", directions=["forward"], buckets=["long"])
    assert asked == [(spec, "forward")]


@pytest.mark.parametrize("directions", [(), ("forward",)])
def test_nothing_to_build(tmp_path, directions):
    with pytest.raises(BuildError, match="no kernels"):
        build([], "llvm", tmp_path / "none", directions=directions)


def test_unknown_direction(toy_jobs, tmp_path):
    with pytest.raises(ValueError, match="sideways"):
        build([toy_jobs[0].spec], "llvm", tmp_path / "none", directions=["sideways"])


def test_job_is_scheduled_when_its_turn_comes(toy_jobs, tmp_path):
    def refuse():
        raise BuildError("scheduled")

    jobs = [toy_jobs[0], Job("later", toy_jobs[2].spec, "forward", refuse)]
    with pytest.raises(BuildError, match="scheduled"):
        build_jobs(jobs, find_target("llvm"), tmp_path / "toys")
    assert list(tmp_path.iterdir()) == []
