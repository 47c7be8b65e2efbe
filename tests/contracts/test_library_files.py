"""What is loaded is what was checked, whatever happens to the files; they are replaced whole."""

from __future__ import annotations

import ctypes
import gzip
import json
import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from small_artifact import as_nobody, attends, compiled, copied, edit, in_child

from tvm_flash.artifact import library as artifact
from tvm_flash.artifact.library import MANIFEST, PTX, read_ptx, sha256_of, verify
from tvm_flash.codegen import staging
from tvm_flash.codegen.linker import find_compiler, link
from tvm_flash.codegen.staging import publishing
from tvm_flash.errors import ArtifactError, BuildError
from tvm_flash.runtime import loader
from tvm_flash.runtime.loader import load, opened, registered


@pytest.fixture(autouse=True)
def registry():
    before = dict(registered)
    yield
    registered.clear()
    registered.update(before)


@pytest.fixture
def kernels(tmp_path) -> Path:
    return copied(tmp_path / "kernels")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> bytes:
    """A library whose code, once loaded, says so."""
    folder = tmp_path_factory.mktemp("foreign")
    source = "#include <stdlib.h>\n__attribute__((constructor)) void run(void)"
    (folder / "a.c").write_text(source + '{ setenv("TVM_FLASH_TEST_FOREIGN", "ran", 1); }\n')
    command = [*find_compiler(), "-shared", "-fPIC", str(folder / "a.c"), "-o"]
    subprocess.run([*command, str(folder / "a.so")], check=True)
    return (folder / "a.so").read_bytes()


def exchange(library: Path, data: bytes) -> None:
    (library.parent / "new").write_bytes(data)
    (library.parent / "new").replace(library)


def overwrite(library: Path, data: bytes) -> None:
    with library.open("r+b") as file:
        file.truncate()
        file.write(data)


@pytest.mark.parametrize("change", [exchange, overwrite])
def test_a_library_that_changes_after_the_check_is_not_what_runs(
    kernels, foreign, monkeypatch, change
):
    monkeypatch.setattr(loader, "mapped", _after(lambda: change(kernels / "kernels.so", foreign)))
    assert attends(load(kernels).kernels[0])
    assert not _foreign_ran()


def _foreign_ran() -> bool:
    return bool(ctypes.CDLL(None).getenv(b"TVM_FLASH_TEST_FOREIGN"))


def test_code_that_runs_when_it_is_loaded_would_be_seen(foreign, tmp_path):
    (tmp_path / "a.so").write_bytes(foreign)

    def child():
        ctypes.CDLL(str(tmp_path / "a.so"))
        assert _foreign_ran()

    assert in_child(child)


def _after(happens):
    real = loader.mapped

    def mapped(*known):
        happens()
        return real(*known)

    return mapped


def test_a_library_that_is_cut_off_while_it_is_used_still_runs(kernels, monkeypatch):
    """Pages of a mapped file that are gone end the process."""
    kernel = load(kernels).kernels[0]
    os.truncate(kernels / "kernels.so", 0)
    assert attends(kernel)


def test_a_library_built_anew_at_its_old_path_is_the_new_one(kernels):
    first = opened(kernels)
    assert first.symbols.tvm_flash_bind_threads
    data = (kernels / "kernels.so").read_bytes() + b"\0"
    exchange(kernels / "kernels.so", data)
    second = opened(edit(kernels, sha256=sha256_of(kernels / "kernels.so")))
    assert attends(second.kernels[0])
    assert second.symbols._handle != first.symbols._handle
    assert opened(kernels).symbols is second.symbols, "the same bytes are mapped once"


def test_where_memory_holds_no_code_a_private_file_does(kernels, monkeypatch):
    from tvm_flash.runtime import machine_code

    monkeypatch.setattr(machine_code, "_mapped", {})
    monkeypatch.delattr(os, "memfd_create")
    assert attends(opened(kernels).kernels[0])


def _folder(file: Path) -> None:
    file.mkdir()


def _device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _huge(file: Path) -> None:
    with file.open("wb") as sparse:
        sparse.truncate(2**40)


@pytest.mark.parametrize("put", [os.mkfifo, _device, _folder, _huge])
@pytest.mark.parametrize("name", [MANIFEST, "kernels.so", PTX])
def test_only_regular_files_of_bounded_size_are_read(kernels, name, put):
    edit(kernels, ptx_sha256="0" * 64)
    (kernels / name).unlink(missing_ok=True)
    put(kernels / name)
    before = os.listdir("/dev/fd")
    with pytest.raises(ArtifactError, match=f"{name}.*cannot be read"):
        read_ptx(kernels)
    assert os.listdir("/dev/fd") == before, "nothing is left open"


@pytest.mark.parametrize(
    "text",
    [b"\x1f\x8bgarbage", b"no gzip", gzip.compress(b"[1]")],
    ids=["cut off", "no gzip", "a list"],
)
def test_ptx_that_is_none_is_an_artifact_error(kernels, text):
    (kernels / PTX).write_bytes(text)
    with pytest.raises(ArtifactError, match="not PTX"):
        read_ptx(edit(kernels, ptx_sha256=sha256_of(kernels / PTX)))


def test_ptx_that_grows_without_end_is_an_artifact_error(kernels, monkeypatch):
    (kernels / PTX).write_bytes(gzip.compress(b" " * 2**20))
    monkeypatch.setattr(artifact, "LIBRARY_LIMIT", 2**19)
    with pytest.raises(ArtifactError, match="more than"):
        read_ptx(edit(kernels, ptx_sha256=sha256_of(kernels / PTX)))


@pytest.mark.parametrize("part", ["kernels.so", ".", ".."])
def test_files_that_anybody_may_change_are_loaded_with_a_warning(kernels, caplog, part):
    load(kernels)
    assert caplog.messages == []
    path = Path(os.path.realpath(kernels / part))
    path.chmod(path.stat().st_mode | 0o1002)
    if path.is_dir():
        load(kernels)
        assert caplog.messages == [], "the sticky bit keeps others away"
    path.chmod(path.stat().st_mode & ~0o1000)
    with caplog.at_level(logging.WARNING, logger="tvm_flash"):
        assert attends(load(kernels).kernels[0])
    (warning,) = caplog.messages
    assert f"chmod o-w {path}" in warning


def test_a_folder_that_may_not_be_searched_is_an_artifact_error(kernels):
    kernels.chmod(0)

    def child():
        as_nobody()
        with pytest.raises(ArtifactError, match="Permission denied"):
            load(kernels)

    assert in_child(child)
    kernels.chmod(0o700)


def published(path: Path, mark: str) -> None:
    with publishing(path) as place:
        for file in compiled().iterdir():
            shutil.copy(file, place)
        edit(
            place, versions={**json.loads((place / MANIFEST).read_text())["versions"], "mark": mark}
        )
        data = (place / "kernels.so").read_bytes() + mark.encode()
        (place / "kernels.so").write_bytes(data)
        edit(place, sha256=sha256_of(place / "kernels.so"))


def _not_in_one_step(*_):
    raise NotImplementedError


def _replacing(path: Path, builders: int, failures: list) -> list[threading.Thread]:
    """Threads, started, that each publish 20 artifacts at ``path``."""

    def replace_again(builder: int):
        try:
            for number in range(20):
                published(path, f"{builder}.{number}")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=replace_again, args=(n,)) for n in range(builders)]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("builders", [1, 3])
def test_readers_never_fail_while_builders_replace(tmp_path, builders):
    """Every read is of one build: its library is its manifest's."""
    path, failures, seen = tmp_path / "kernels", [], set()
    published(path, "0")
    threads = _replacing(path, builders, failures)
    while any(thread.is_alive() for thread in threads):
        seen.add(verify(path)[1].versions["mark"])
    assert not failures and seen
    assert [entry.name for entry in tmp_path.iterdir()] == ["kernels"]


def test_builders_do_not_fail_where_folders_cannot_change_places(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_exchange_in_one_step", _not_in_one_step)
    path, failures = tmp_path / "kernels", []
    for thread in _replacing(path, 3, failures):
        thread.join()
    assert not failures
    verify(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kernels"]


@pytest.mark.parametrize("one_step", [True, False])
def test_a_folder_of_the_users_that_appears_during_a_build_stays(tmp_path, monkeypatch, one_step):
    if not one_step:
        monkeypatch.setattr(staging, "_exchange_in_one_step", _not_in_one_step)
    path = tmp_path / "kernels"
    with pytest.raises(BuildError, match="not an artifact"), publishing(path) as place:
        (place / MANIFEST).write_text("built")
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    assert (path / "thesis.tex").read_text() == "years of work"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kernels"]


@pytest.mark.parametrize("name", ["a,b", "-x", "@x", "a b", "a\nb", "é", "%s$HOME"])
def test_a_library_is_linked_wherever_it_lies(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    ctypes.CDLL(str(link([], [], Path(name, "kernels.so")).absolute()))


def test_a_place_that_cannot_be_written_is_a_build_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot be written"), publishing(tmp_path / "file" / "x"):
        pass


def linked_names() -> list[str]:
    """Paths of all that the dynamic linker has mapped, as it knows them."""

    class Info(ctypes.Structure):
        _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]

    names = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
    def look(info, _size, _data):
        names.append(os.fsdecode(info.contents.name or b""))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(look, None)
    return names


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory")
def test_the_path_of_mapped_code_leads_to_no_other_file(kernels, tmp_path):
    """libbacktrace opens it to print a stack; an empty file found there ended the process."""
    opened(kernels)
    (tmp_path / "empty").touch()
    files = [(tmp_path / "empty").open() for _ in range(64)]
    try:
        paths = [name for name in linked_names() if name.startswith("/proc/self/fd")]
        assert paths and not any(map(os.path.exists, paths))
    finally:
        for file in files:
            file.close()
