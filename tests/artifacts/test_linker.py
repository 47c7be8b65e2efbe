"""Any C compiler will do; without one, and when linking fails, the error says what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tvm_flash.codegen import linker
from tvm_flash.codegen.build import build_jobs, find_target
from tvm_flash.errors import BuildError
from tvm_flash.runtime.loader import load, registered


@pytest.fixture
def no_compilers(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(linker.shutil, "which", lambda name: None)
    monkeypatch.setattr(linker, "find_spec", lambda name: None)


def test_cc_variable_comes_first(monkeypatch):
    monkeypatch.setenv("CC", "ccache 'my gcc' -m64")
    assert linker.find_compiler() == ["ccache", "my gcc", "-m64"]


@pytest.mark.parametrize("name", ["cc", "gcc", "clang"])
def test_compilers_on_the_path(no_compilers, monkeypatch, name):
    monkeypatch.setattr(linker.shutil, "which", lambda n: f"/bin/{n}" if n == name else None)
    assert linker.find_compiler() == [f"/bin/{name}"]


def test_ziglang_package(no_compilers, monkeypatch):
    monkeypatch.setattr(linker, "find_spec", lambda name: object())
    assert linker.find_compiler() == [sys.executable, "-m", "ziglang", "cc"]


def test_no_compiler(no_compilers):
    with pytest.raises(BuildError, match="pip install ziglang"):
        linker.find_compiler()


def test_compiler_that_does_not_start(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(BuildError, match="/nowhere/cc"):
        linker.link([], ["f"], tmp_path / "k.so")


def test_undefined_symbol_fails_at_the_link(tmp_path):
    source = tmp_path / "k.c"
    source.write_text("int somewhere_else(void); int f(void) { return somewhere_else(); }\n")
    with pytest.raises(BuildError, match="somewhere_else"):
        linker.link([source], ["f"], tmp_path / "k.so")


def test_shim_compiles_without_warnings(tmp_path, monkeypatch):
    flags = linker._compile_flags()
    monkeypatch.setattr(linker, "_compile_flags", lambda: [*flags, "-Wall", "-Wextra", "-Werror"])
    assert linker.link([], [], tmp_path / "k.so").is_file()


def test_kernels_linked_by_zig(toy_jobs, tmp_path, monkeypatch):
    pytest.importorskip("ziglang")
    monkeypatch.setenv("CC", f"{sys.executable} -m ziglang cc")
    before = dict(registered)
    library = load(build_jobs(toy_jobs, find_target("llvm"), tmp_path / "zig"))
    registered.clear()
    registered.update(before)
    assert len(library.kernels) == len(toy_jobs)
    assert Path(library.path).stat().st_size < 1 << 20
