"""nvcc is found wherever it may be, and its absence is explained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tvm_flash.codegen import toolkit
from tvm_flash.errors import BuildError

NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  --dryrun) echo '#$ _HERE_={here}' >&2 ;;
esac
"""


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """No variable, no PATH and no wheel names a toolkit."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin" if not shutil.which("nvcc", path="/usr/bin") else "")
    monkeypatch.setattr(toolkit.sys, "path", [str(tmp_path / "empty")])
    toolkit._toolkit.cache_clear()
    yield
    toolkit._toolkit.cache_clear()


def install(root: Path, release: str = "13.0", here: Path | None = None) -> Path:
    """A toolkit that answers questions and compiles nothing."""
    (root / "bin").mkdir(parents=True)
    (root / "lib").mkdir()
    (root / "lib" / "libcudart_static.a").touch()
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(release=release, here=here or root / "bin"))
    nvcc.chmod(0o755)
    return root


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_variables(monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, str(install(tmp_path / "cuda")))
    found = toolkit.find_toolkit()
    assert (found.root, found.version) == (tmp_path / "cuda", "13.0.88")
    assert found.tool("ptxas") == str(tmp_path / "cuda" / "bin" / "ptxas")
    assert found.library == tmp_path / "cuda" / "lib" / "libcudart_static.a"


def test_path_may_hold_a_script_that_calls_the_compiler(monkeypatch, tmp_path):
    real = install(tmp_path / "real")
    script = install(tmp_path / "wrapper", here=real / "bin")
    monkeypatch.setenv("PATH", f"{script / 'bin'}:/usr/bin:/bin")
    assert toolkit.find_toolkit().root == real


def test_wheels_of_pypi(monkeypatch, tmp_path):
    root = install(tmp_path / "site" / "nvidia" / "cu13")
    monkeypatch.setattr(toolkit.sys, "path", ["", str(tmp_path / "site")])
    assert toolkit.find_toolkit().root == root


def test_a_variable_comes_before_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(install(tmp_path / "chosen")))
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'other') / 'bin'}:/usr/bin:/bin")
    assert toolkit.find_toolkit().root == tmp_path / "chosen"


def test_none_at_all(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(BuildError, match=r"nowhere.*pip install tvm-flash\[cuda\]"):
        toolkit.find_toolkit()


def test_one_that_is_too_old(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(install(tmp_path / "cuda", release="11.8")))
    with pytest.raises(BuildError, match=r"11\.8.*12\.8"):
        toolkit.find_toolkit()


def test_without_the_static_runtime(monkeypatch, tmp_path):
    root = install(tmp_path / "cuda")
    (root / "lib" / "libcudart_static.a").unlink()
    monkeypatch.setenv("CUDA_HOME", str(root))
    with pytest.raises(BuildError, match=r"libcudart_static\.a"):
        _ = toolkit.find_toolkit().library


def test_the_disassembler_is_beside_the_compiler(monkeypatch, tmp_path):
    root = install(tmp_path / "cuda")
    monkeypatch.setenv("PATH", f"{root / 'bin'}:/usr/bin:/bin")
    (root / "bin" / "nvdisasm").touch()
    assert toolkit.find_nvdisasm() == str(root / "bin" / "nvdisasm")


def test_the_disassembler_of_pypi(monkeypatch, tmp_path):
    tool = tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvdisasm"
    tool.parent.mkdir(parents=True)
    tool.touch()
    monkeypatch.setattr(toolkit.sys, "path", [str(tmp_path / "site")])
    assert toolkit.find_nvdisasm() == str(tool)


def test_no_disassembler(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(install(tmp_path / "cuda")))
    with pytest.raises(BuildError, match=r"pip install nvidia-cuda-nvdisasm") as caught:
        toolkit.find_nvdisasm()
    assert isinstance(caught.value.__cause__, OSError), "this machine's fault, not a config's"
