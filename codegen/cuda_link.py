"""Host code and images of CUDA kernels into one library that carries its own CUDA runtime."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from tvm_ffi import __version__ as tvm_ffi_version
from tvm_ffi import libinfo

from ..errors import BuildError
from .cache import content, digest
from .linker import ARRANGED, RUNTIME, compiler_command, library_flags, write_exports
from .process import run
from .room import scratch_folder
from .toolkit import find_toolkit

_HOOK = "tvm_flash_set_launch_hook"
_RUNTIME = ("cuda_runtime_hook.cpp", "tensor_map.cpp", "arrange.c")
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread")
# Parts of libc where that is glibc before 2.34, which the static CUDA runtime calls.
_SYSTEM = ("-ldl", "-lrt", "-lpthread")


def find_cxx_compiler() -> list[str]:
    """The C++ compiler's command: $CXX, else c++, g++ or clang++, else the ziglang package's."""
    if command := compiler_command("CXX", ("c++", "g++", "clang++"), "c++"):
        return command
    raise BuildError(
        "no C++ compiler for the host part of CUDA kernels: $CXX is not set, c++, g++ and clang++ "
        "are not on PATH; install one, or `pip install ziglang`, which brings one"
    )


def compile_host(text: str) -> bytes:
    """The object code of generated or hand-written host C++, kept by content."""
    compiler = find_cxx_compiler()
    headers = {path.name: path.read_text() for path in sorted(RUNTIME.glob("*.h"))}
    key = {
        "text": text,
        "headers": headers,
        "command": [*compiler, *_FLAGS, _version(tuple(compiler))],
        "versions": [find_toolkit().version, tvm_ffi_version],
    }
    return content(f"{digest(key)}.o", lambda: _compile(compiler, text))


def link_cuda(
    objects: Sequence[bytes], images: Mapping[str, bytes], functions: Iterable[str], library: Path
) -> Path:
    """Link ``objects``, the runtime and ``images`` by symbol into ``library``.

    It exports ``functions``, the launch hook and what arranges arguments alone, and needs
    libtvm_ffi, libstdc++ and libc.
    """
    exports = [_HOOK, ARRANGED, *(f"__tvm_ffi_{name}" for name in functions)]
    runtime = [compile_host((RUNTIME / name).read_text()) for name in _RUNTIME]
    with scratch_folder("linking") as folder:
        inputs = _write_inputs([*runtime, *objects], images, folder)
        flags = library_flags(write_exports(exports, folder / "library.exports"))
        command = [*find_cxx_compiler(), "-shared", "-fPIC", *inputs]
        command += [str(find_toolkit().library), *flags, *_SYSTEM, "-o", str(library.absolute())]
        run(command, what="linking", choose="$CXX", folder=folder)
    return library


def _write_inputs(objects: Sequence[bytes], images: Mapping[str, bytes], folder: Path) -> list[str]:
    names = [f"{number}.o" for number in range(len(objects))]
    for name, code in zip(names, objects, strict=True):
        (folder / name).write_bytes(code)
    for symbol, image in images.items():
        (folder / f"{symbol}.fatbin").write_bytes(image)
    (folder / "images.S").write_text(_assembly(images))
    return [*names, "images.S"]


def _assembly(images: Iterable[str]) -> str:
    """Assembly that includes each file {symbol}.fatbin as read-only data called symbol."""
    lines = [".section .rodata"]
    for symbol in images:
        lines += [".balign 64", f".globl {symbol}", f".hidden {symbol}", f"{symbol}:"]
        lines += [f'.incbin "{symbol}.fatbin"']
    return "\n".join([*lines, '.section .note.GNU-stack,"",%progbits', ""])


def _compile(compiler: Sequence[str], text: str) -> bytes:
    includes = [RUNTIME, *libinfo.include_paths(), find_toolkit().include]
    with scratch_folder("compiling host code") as folder:
        (folder / "host.cpp").write_text(text)
        paths = [f"-I{path}" for path in includes]
        command = [*compiler, *_FLAGS, "-w", *paths, "-c", "host.cpp", "-o", "host.o"]
        run(command, what="compiling host code", choose="$CXX", folder=folder)
        return (folder / "host.o").read_bytes()


@lru_cache
def _version(compiler: tuple[str, ...]) -> str:
    """First line of --version; empty when it cannot be started, which compiling will report."""
    try:
        done = subprocess.run(
            [*compiler, "--version"], capture_output=True, text=True, errors="replace"
        )
    except OSError:
        return ""
    return done.stdout.partition("\n")[0]
