"""Wheels of kernels: what pip asks of them, the same bytes every time, and glibc's versions."""

from __future__ import annotations

import base64
import csv
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tvm_ffi import libinfo

from tvm_flash.cli.ship import ship_wheel
from tvm_flash.codegen import portable, shipped
from tvm_flash.codegen.elf import needs_of
from tvm_flash.codegen.portable import portability_problems, require_portable
from tvm_flash.codegen.wheel import write_wheel
from tvm_flash.errors import BuildError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="wheels are made on Linux")


@pytest.fixture
def wheel(toy_artifact, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(shipped, "require_portable", lambda *_: None)
    return write_wheel([toy_artifact], tmp_path / "dist")


def test_it_lists_what_it_holds(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        record = next(name for name in names if name.endswith("RECORD"))
        rows = {row[0]: row[1:] for row in csv.reader(file.read(record).decode().splitlines())}
        assert rows.keys() == set(names) and rows.pop(record) == ["", ""]
        for name, (digest, size) in rows.items():
            data = file.read(name)
            encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            assert digest == f"sha256={encoded.decode()}" and int(size) == len(data)


def test_pip_takes_it(wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(tmp_path / "site"), str(wheel)], check=True)
    (library,) = (tmp_path / "site" / "tvm_flash_kernels").glob("*/kernels.so")
    assert library.stat().st_mode & 0o111


def test_the_same_libraries_give_the_same_bytes(wheel, toy_artifact, tmp_path):
    again = write_wheel([toy_artifact], tmp_path / "again")
    assert again.name == wheel.name and again.read_bytes() == wheel.read_bytes()


def test_names_and_libraries_that_are_refused(wheel, toy_artifact, tmp_path):
    with pytest.raises(ValueError, match="name='no spaces'"):
        write_wheel([toy_artifact], tmp_path, "no spaces")
    with pytest.raises(BuildError, match="another library is for"):
        write_wheel([toy_artifact, toy_artifact], tmp_path)
    with pytest.raises(BuildError, match="no libraries"):
        write_wheel([], tmp_path)


def test_what_a_library_needs_is_what_readelf_says(toy_artifact):
    if not shutil.which("readelf"):
        pytest.skip("no readelf")
    for library in (toy_artifact / "kernels.so", libinfo.find_libtvm_ffi()):
        command = ["readelf", "--dynamic", "--version-info", "--wide", str(library)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = needs_of(Path(library).read_bytes())
        assert list(found.libraries) == re.findall(r"\(NEEDED\).*\[(.*)\]", text)
        expected = sorted(re.findall(r"Name: (\S+)\s+Flags", text))
        assert sorted(v for versions in found.versions.values() for v in versions) == expected


@pytest.mark.parametrize(
    "version, old",
    [("GLIBC_2.28", True), ("GLIBC_2.29", False), ("GLIBC_2.2.5", True), ("GLIBC_2.3", True),
     ("GLIBCXX_3.4.24", True), ("GLIBCXX_3.4.25", False), ("GLIBC_ABI_DT_RELR", False),
     ("GLIBC_PRIVATE", False), ("SOMETHING_1.0", False)],
)  # fmt: skip
def test_versions_of_symbols(version, old):
    assert portable._is_old(version) == old


def test_a_library_that_needs_more_is_refused(tmp_path, monkeypatch):
    """One of a C library that other systems lack, linked by the compiler at hand."""
    (tmp_path / "other.c").write_text("int f(void) { return 0; }\n")
    (tmp_path / "k.c").write_text("int f(void);\nint g(void) { return f(); }\n")
    compiler = [*portable_compiler(), "-shared", "-fPIC"]
    other, library = tmp_path / "libother.so.1", tmp_path / "kernels.so"
    subprocess.run([*compiler, str(tmp_path / "other.c"), "-Wl,-soname,libother.so.1", "-o", other])
    subprocess.run([*compiler, str(tmp_path / "k.c"), str(other), "-o", library], check=True)
    assert portability_problems(library.read_bytes()) == ["libother.so.1"]
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("CC", "other-cc")
    with pytest.raises(
        BuildError, match=r"needs libother.so.1; `pip install ziglang`.* unset \$CC$"
    ):
        require_portable(library.read_bytes(), "kernels.so")


def test_a_build_ends_at_the_first_library_that_is_refused(toy_artifact, tmp_path, monkeypatch):
    built = []

    def build(pairs, target, path, **_):
        built.append(target)
        return toy_artifact

    monkeypatch.setattr("tvm_flash.codegen.build.build_pairs", build)
    monkeypatch.setattr(portable, "_LIBRARIES", set())
    first = shipped.levels()[0]
    with pytest.raises(BuildError, match=f"the library for {re.escape(first)} is not manylinux"):
        ship_wheel([], ["cpu"], tmp_path / "dist", None, {})
    assert built == [first]


def portable_compiler() -> list[str]:
    from tvm_flash.codegen.linker import find_compiler

    return find_compiler()


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"MZ" + data[2:]])
def test_damaged_files_are_refused(toy_artifact, damage):
    with pytest.raises(BuildError, match="ELF file"):
        needs_of(damage((toy_artifact / "kernels.so").read_bytes()))


@pytest.mark.slow
@pytest.mark.sweep
def test_the_command_makes_a_wheel_that_auditwheel_takes(tmp_path):
    """For two levels of this architecture, linked for an old glibc, bit for bit the same twice."""
    for package in ("ziglang", "auditwheel"):
        pytest.importorskip(package)
    targets = [word for name in shipped.levels()[:2] for word in ("--target", name)]
    command = [sys.executable, "-m", "tvm_flash", "build", "fp32,d=16", "--forward-only", *targets]
    made = []
    for out in (tmp_path / "one", tmp_path / "two"):
        subprocess.run([*command, "--buckets", "long", "--wheel", "-o", str(out)], check=True)
        made += out.glob("*.whl")
    assert made[0].read_bytes() == made[1].read_bytes()
    show = [sys.executable, "-m", "auditwheel", "show", str(made[0])]
    text = " ".join(subprocess.run(show, capture_output=True, text=True, check=True).stdout.split())
    found = re.search(r'constrains the platform tag to "manylinux_2_(\d+)_', text)
    assert found and int(found[1]) <= 28


def test_ziglang_links_for_an_old_glibc(toy_jobs, tmp_path, monkeypatch):
    pytest.importorskip("ziglang")
    from tvm_flash.codegen.build import build_jobs, find_target

    monkeypatch.delenv("CC", raising=False)
    with portable.for_old_glibc():
        path = build_jobs(toy_jobs[:2], find_target("llvm"), tmp_path / "zig")
    assert portability_problems((path / "kernels.so").read_bytes()) == []


def test_targets_by_name():
    levels = shipped.levels()
    assert shipped.expanded(["cpu", levels[0], "llvm", "cuda:sm_80"]) == [*levels, "cuda:sm_80"]
    with pytest.raises(ValueError, match="name all GPUs in one"):
        shipped.expanded(["cuda:sm_80", "cuda:sm_90"])
