"""Kernels of installed packages are found when one is missing, and the best of them are used."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from tvm_flash.artifact.library import MANIFEST
from tvm_flash.codegen import shipped
from tvm_flash.codegen.wheel import write_wheel
from tvm_flash.machine import cpu_features
from tvm_flash.runtime import installed, kernels
from tvm_flash.runtime.kernels import resolve
from tvm_flash.runtime.loader import load, registered
from tvm_flash.runtime.missing import missing_kernel


@pytest.fixture(autouse=True)
def as_if_nothing_was_loaded(monkeypatch):
    """A process that has looked for nothing yet, and compiles nothing; afterwards as before."""
    before = dict(registered)
    registered.clear()
    for name in ("in_use", "refusals", "_named"):
        monkeypatch.setattr(installed, name, [])
    monkeypatch.setattr("tvm_flash.runtime.missing.refusals", installed.refusals)
    monkeypatch.setattr(installed, "_looked_for", set())
    monkeypatch.setattr(kernels, "cannot_compile", lambda: "nothing compiles here")
    yield
    registered.clear()
    registered.update(before)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Call with a name and artifacts: their wheel is unpacked where packages are found."""
    # The toys were linked by whatever compiler there is.
    monkeypatch.setattr(shipped, "require_portable", lambda *_: None)
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def put(name: str, *artifacts: Path) -> Path:
        with zipfile.ZipFile(write_wheel(artifacts, tmp_path, name)) as wheel:
            wheel.extractall(site)
        return site / name.replace("-", "_")

    return put


def level(artifact: Path, folder: Path, name: str, features: list[str], **changes) -> Path:
    """A copy of ``artifact`` that says it is for the CPUs called ``name``."""
    copy = Path(shutil.copytree(artifact, folder / name))
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest |= {"cpu_features": features, "target": {**manifest["target"], "name": name}}
    (copy / MANIFEST).write_text(json.dumps(manifest | changes))
    return copy


@pytest.fixture
def spec(toy_jobs):
    return toy_jobs[0].spec


def test_nothing_is_looked_for_before_a_kernel_is_missing(install, toy_artifact, spec):
    install("some-kernels", toy_artifact)
    load(toy_artifact)
    mine = resolve(spec, "forward")
    assert not installed.in_use
    with pytest.raises(NotImplementedError):
        resolve(spec.append_spec, "append")
    assert installed.in_use
    assert resolve(spec, "forward") is mine  # what was loaded before stays


def test_the_library_that_uses_most_of_this_cpu_is_taken(install, toy_artifact, tmp_path, spec):
    has = sorted(cpu_features())[:2]
    levels = {"few": has[:1], "most": has, "none": [], "foreign": [*has, "of_another_cpu"]}
    made = [level(toy_artifact, tmp_path, name, found) for name, found in levels.items()]
    install("some-kernels", *made)
    assert resolve(spec, "forward").spec == spec
    assert installed.in_use == ["some-kernels 0.1.0: most"] and not installed.refusals


def test_a_broken_library_keeps_none_from_being_used(install, toy_artifact, tmp_path, spec):
    broken = install("a-broken", toy_artifact)
    library = next(broken.glob("*/kernels.so"))
    library.write_bytes(library.read_bytes()[:-100])
    (broken / "without").mkdir()
    (broken / "without" / MANIFEST).write_text("{")
    install("b-older", level(toy_artifact, tmp_path, "x", [], versions={"tvm_flash": "0.0.9"}))
    install("c-good", toy_artifact)
    assert resolve(spec, "forward").spec == spec
    assert [name.split()[0] for name in installed.in_use] == ["c-good"]
    said = str(missing_kernel(spec, "backward", "cpu", "why"))
    assert "changed or cut off" in said and "not a manifest" in said
    assert "b-older 0.1.0 is installed and not used for cpu: x: it was built by tvm_flash" in said


def test_a_second_library_is_tried_where_the_best_is_broken(install, toy_artifact, tmp_path, spec):
    best = level(toy_artifact, tmp_path, "best", sorted(cpu_features())[:1])
    folder = install("some-kernels", best, level(toy_artifact, tmp_path, "plain", []))
    (folder / "best" / "kernels.so").write_bytes(b"")
    assert resolve(spec, "forward").spec == spec
    assert installed.in_use == ["some-kernels 0.1.0: plain"]


def test_no_library_for_this_machine(install, toy_artifact, tmp_path, spec):
    install("some-kernels", level(toy_artifact, tmp_path, "foreign", ["of_another_cpu"]))
    with pytest.raises(NotImplementedError, match=r"foreign: this CPU lacks of_another_cpu"):
        resolve(spec, "forward")


def test_an_entry_point_that_leads_nowhere(install, toy_artifact, spec):
    package = install("some-kernels", toy_artifact)
    shutil.rmtree(package)
    with pytest.raises(NotImplementedError, match="loaded: none"):
        resolve(spec, "forward")


@pytest.mark.parametrize(
    "entry, words",
    [
        (b"k = no_such_package_here", "no such package"),
        (b"k = raises_when_imported.kernels", "RuntimeError: I am broken"),
        (b"k = !", "! is not found"),
        (b"k", "entry points cannot be read"),
        (b"k = \xff", "entry points cannot be read (UnicodeDecodeError"),
    ],
    ids=str,
)
def test_a_foreign_package_is_refused_alone(install, toy_artifact, spec, entry, words):
    site = install("some-kernels", toy_artifact).parent
    (site / "raises_when_imported").mkdir()
    (site / "raises_when_imported" / "__init__.py").write_text("raise RuntimeError('I am broken')")
    info = site / "a_broken_one-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(b"[tvm_flash.kernels]\n" + entry)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-broken-one\nVersion: 1.0\n")
    assert resolve(spec, "forward")
    (refusal,) = installed.refusals
    assert (
        refusal.startswith("a-broken-one 1.0 is installed and not used for cpu")
        and words in refusal
    )


def test_two_packages_with_the_same_kernels(install, toy_artifact, spec):
    install("a-kernels", toy_artifact)
    install("b-kernels", toy_artifact)
    assert resolve(spec, "forward").spec == spec
    assert [name.split()[0] for name in installed.in_use] == ["a-kernels", "b-kernels"]
    assert not installed.refusals
