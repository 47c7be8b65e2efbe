"""A missing, cut off, changed or foreign artifact is refused, and never opened."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tvm_ffi

from tvm_flash.artifact.library import (
    MANIFEST,
    KernelRecord,
    Manifest,
    sha256_of,
    verify,
    write_manifest,
)
from tvm_flash.errors import ArtifactError
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime import loader
from tvm_flash.runtime.loader import load


@pytest.fixture(autouse=True)
def nothing_is_opened(monkeypatch):
    """Every refusal here comes before the dynamic linker sees the library."""

    def mapped(data, sha256, name):
        raise AssertionError(f"opened {name}")

    monkeypatch.setattr(loader, "mapped", mapped)


def assert_refused(path, *words: str):
    with pytest.raises(ArtifactError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert ";" in message, "says what to do"
    for word in words:
        assert word in message


def test_manifest_survives_the_disk(tmp_path):
    record = KernelRecord(
        "f", AttentionSpec(dtype="bfloat16", head_dim=80), "backward", {"x": 1}, {"block_q": 64}
    )
    (tmp_path / "k.so").write_bytes(b"code")
    manifest = Manifest(
        library="k.so",
        sha256=sha256_of(tmp_path / "k.so"),
        target={"name": "t"},
        cpu_features=("avx2",),
        versions={"tvm": "0"},
        kernels=(record,),
    )
    write_manifest(tmp_path, manifest)
    assert verify(tmp_path) == (tmp_path / "k.so", manifest)
    assert verify(tmp_path / MANIFEST)[1] == manifest


def test_block_sizes_stand_beside_the_symbol(toy_artifact):
    entry = json.loads((toy_artifact / MANIFEST).read_text())["kernels"][0]
    assert {"symbol", "spec", "direction", "config", "block_q", "block_k"} <= set(entry)


def test_missing_directory(tmp_path):
    assert_refused(tmp_path / "absent")


def test_directory_without_manifest(tmp_path):
    assert_refused(tmp_path, "No such file")


def test_library_instead_of_its_directory(spoilable):
    assert_refused(spoilable / "kernels.so", MANIFEST)


def test_missing_library(spoilable):
    (spoilable / "kernels.so").unlink()
    assert_refused(spoilable, "kernels.so", "No such file")


def test_changed_byte(spoilable):
    library = spoilable / "kernels.so"
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)
    assert_refused(spoilable, "sha256")


@pytest.mark.parametrize("length", [0, 100])
def test_cut_off_library(spoilable, length):
    library = spoilable / "kernels.so"
    library.write_bytes(library.read_bytes()[:length])
    assert_refused(spoilable, "sha256")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'"kernels"',
        b"\xff\xfe\x00",
        b'{"format": 1}',
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "null", "list", "object", "string", "binary", "partial", "deep"],
)
def test_garbage_manifest(spoilable, text):
    (spoilable / MANIFEST).write_bytes(text)
    assert_refused(spoilable, "not a manifest")


@pytest.mark.parametrize("name", ["../kernels.so", "/lib/libc.so.6", "..", "", "a\\b", "x\0y"])
def test_library_outside_the_directory(edit_manifest, name):
    assert_refused(edit_manifest(library=name), "library=")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 4},
        {"format": "1"},
        {"kernels": []},
        {"kernels": [{}]},
        {"kernels": 3},
        {"kernels": [{"symbol": "f", "spec": {}, "direction": "forward", "config": {}}]},
        {"target": 5},
        {"cpu_features": None},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_wrong_fields(edit_manifest, changes):
    assert_refused(edit_manifest(**changes), "not a manifest")


def test_unknown_direction(edit_manifest, toy_artifact):
    entry = json.loads((toy_artifact / MANIFEST).read_text())["kernels"][0]
    assert_refused(
        edit_manifest(kernels=[{**entry, "direction": "sideways"}]), "direction='sideways'"
    )


def test_another_machine(edit_manifest):
    target = {"name": "x", "mcpu": "x", "system": "plan9", "architecture": "vax"}
    assert_refused(edit_manifest(target=target), "system='plan9'", "architecture='vax'")


def test_cpu_without_a_feature(edit_manifest):
    assert_refused(edit_manifest(cpu_features=["avx9000"]), "lacks avx9000")


@pytest.mark.parametrize("version", ["0.0.1", "99.1.0"])
def test_another_tvm_ffi(edit_manifest, version):
    assert_refused(edit_manifest(versions={"tvm_ffi": version}), version, tvm_ffi.__version__)


def test_patch_releases_of_tvm_ffi_are_alike(edit_manifest):
    from tvm_flash.runtime.loader import unfit_reasons

    major, minor = tvm_ffi.__version__.split(".")[:2]
    manifest = verify(edit_manifest(versions={"tvm_ffi": f"{major}.{minor}.999"}))[1]
    assert unfit_reasons(manifest) == []


def test_amx_that_the_kernel_refuses(toy_artifact, monkeypatch):
    from tvm_flash.runtime import loader

    manifest = dataclasses.replace(verify(toy_artifact)[1], cpu_features=("amx_bf16",))
    monkeypatch.setattr(loader, "cpu_features", lambda: frozenset({"amx_bf16"}))
    monkeypatch.setattr(loader, "amx_refusal", lambda: "Operation not permitted")
    assert any("Operation not permitted" in reason for reason in loader.unfit_reasons(manifest))
    monkeypatch.setattr(loader, "amx_refusal", lambda: "")
    assert loader.unfit_reasons(manifest) == []
