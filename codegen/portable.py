"""Libraries for other Linux machines: linked against an old glibc, and proven to need no newer one.

manylinux_2_28 (PEP 600) is what torch and tvm-ffi are built for: RHEL 8, Debian 10, Ubuntu 18.10
and all that is newer.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ..errors import BuildError
from ..machine import architecture, system
from .elf import needs_of

GLIBC = "2.28"
PLATFORM = f"manylinux_{GLIBC.replace('.', '_')}"

# The newest versions of symbols, and the libraries, that every such system has: auditwheel's
# policy manylinux_2_28. libtvm_ffi.so is loaded by tvm_ffi, before kernels are.
_NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
_LIBRARIES = {
    *("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"),
    *("libgcc_s.so.1", "libstdc++.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
    "libtvm_ffi.so",
}
_REMEDY = f"`pip install ziglang`, by which libraries are linked for glibc {GLIBC}"


@contextmanager
def for_old_glibc() -> Iterator[None]:
    """In the block ziglang, where it is installed, compiles and links for glibc 2.28.

    $CC and $CXX, where they are set, are asked as ever: ``require_portable`` judges what they made.
    """
    given = {name: os.environ.get(name) for name in ("CC", "CXX")}
    if find_spec("ziglang") is not None:
        target = f"-target {architecture()}-linux-gnu.{GLIBC}"
        for name, command in (("CC", "cc"), ("CXX", "c++")):
            os.environ.setdefault(name, f"'{sys.executable}' -m ziglang {command} {target}")
    try:
        yield
    finally:
        for name, value in given.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def require_linux() -> None:
    """Raise BuildError unless libraries that are built here are Linux's."""
    if system() != "linux":
        raise BuildError(f"wheels and kernels repositories are made on Linux, this is {system()}")


def require_portable(data: bytes, name: str) -> None:
    """Raise BuildError, with what to do, for a library that not every manylinux_2_28 can load."""
    if problems := portability_problems(data):
        given = " and ".join(f"${name}" for name in ("CC", "CXX") if os.environ.get(name))
        remedy = f"{_REMEDY}, and unset {given}" if given else _REMEDY
        raise BuildError(f"{name} is not {PLATFORM}: it needs {', '.join(problems)}; {remedy}")


def portability_problems(data: bytes) -> list[str]:
    """What the library with these bytes needs that systems of manylinux_2_28 may lack."""
    needs = needs_of(data)
    libraries = [name for name in needs.libraries if name not in _LIBRARIES]
    versions = {version for found in needs.versions.values() for version in found}
    return [*libraries, *sorted(version for version in versions if not _is_old(version))]


def _is_old(version: str) -> bool:
    """Whether a symbol version, such as GLIBC_2.17, is one of the policy's."""
    found = re.fullmatch(r"([A-Z]+)_([\d.]+)", version)
    if not found or found[1] not in _NEWEST:
        return False
    return tuple(map(int, found[2].split("."))) <= _NEWEST[found[1]]
