"""Where CUDA's compiler and disassembler are: $CUDA_HOME, $CUDA_PATH, PATH, or PyPI's wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import BuildError, remedy_for

# 13.0 is the release that the kernels were proven with; older ptxas spill where it does not.
LEAST_VERSION = (12, 8)

_VARIABLES = ("CUDA_HOME", "CUDA_PATH")
_WHEELS = "nvidia/cu13"


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its folder, and the version of its nvcc ("13.0.88")."""

    root: Path
    version: str

    def tool(self, name: str) -> str:
        """The command of nvcc, ptxas or fatbinary."""
        return str(self.root / "bin" / name)

    @property
    def include(self) -> Path:
        """The folder of cuda_runtime.h."""
        return self.root / "include"

    @property
    def library(self) -> Path:
        """The static CUDA runtime."""
        name = "libcudart_static.a"
        folders = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
        found = [self.root / f / name for f in folders if (self.root / f / name).is_file()]
        if not found:
            raise BuildError(f"{self.root} has no {name}; install the CUDA runtime")
        return found[0]


def find_toolkit() -> Toolkit:
    """The first toolkit of $CUDA_HOME, $CUDA_PATH, PATH and PyPI's wheels.

    Raises BuildError, with what was looked at, when there is none or it is too old.
    """
    for nvcc in _places("nvcc"):
        if nvcc.is_file():
            return _toolkit(nvcc)
    named = [f"{variable}={os.environ.get(variable, '')!r}" for variable in _VARIABLES]
    raise BuildError(
        f"no CUDA compiler: no bin/nvcc in {', '.join(named)}, none on PATH, none from PyPI; "
        "`pip install tvm-flash[cuda]` brings one"
    )


def find_nvdisasm() -> str:
    """The command of the disassembler: beside nvcc, else where nvcc is looked for.

    A kernel that keeps no registers in memory is built without it. Raises BuildError, saying what
    to install, where there is none.
    """
    beside = []
    with suppress(BuildError):
        beside.append(Path(find_toolkit().tool("nvdisasm")))
    for tool in (*beside, *_places("nvdisasm")):
        if tool.is_file():
            return str(tool)
    raise BuildError(
        "no nvdisasm, which reads machine code: none in bin/ of $CUDA_HOME or $CUDA_PATH, on PATH "
        "or from PyPI; `pip install nvidia-cuda-nvdisasm` or `tvm-flash[cuda]` brings it"
    ) from FileNotFoundError("nvdisasm")


def _places(tool: str) -> Iterator[Path]:
    """Files that may be the program ``tool``; those of the variables need not exist."""
    for variable in _VARIABLES:
        if root := os.environ.get(variable):
            yield Path(root) / "bin" / tool
    if found := shutil.which(tool):
        yield Path(found)
    for folder in sys.path:
        if (file := Path(folder, _WHEELS, "bin", tool)).is_file():
            yield file


@lru_cache
def _toolkit(nvcc: Path) -> Toolkit:
    version = _output(nvcc, "--version")
    release = re.search(r"release (\d+)\.(\d+), V([\d.]+)", version)
    if not release:
        raise BuildError(f"{nvcc} --version is not understood: {version.strip()[-200:]!r}")
    if (int(release[1]), int(release[2])) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise BuildError(
            f"{nvcc} is release {release[1]}.{release[2]}, {least} is the least that is supported; "
            "install a newer toolkit or `pip install tvm-flash[cuda]`"
        )
    return Toolkit(_root(nvcc), release[3])


def _root(nvcc: Path) -> Path:
    """nvcc on PATH may be a link or a script elsewhere: the compiler itself knows its folder."""
    said = re.search(r"#\$ _HERE_=(.+)", _output(nvcc, "--dryrun", "-x", "cu", "-E", os.devnull))
    folder = Path(said[1].strip()) if said else nvcc.resolve().parent
    return folder.resolve().parent


def _output(*command: str | Path) -> str:
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        remedy = remedy_for(error, "set CUDA_HOME")
        raise BuildError(f"cannot run {command[0]} ({error.strerror}); {remedy}") from error
    return done.stdout + done.stderr
