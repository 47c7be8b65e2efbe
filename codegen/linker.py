"""Link kernel objects and the runtime shim into one library, with whatever C compiler there is."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from tvm_ffi import libinfo

from ..errors import BuildError
from ..machine import system
from .process import run
from .room import writing

RUNTIME = Path(__file__).parent / "runtime"

# tvm_ffi finds a function by this prefix.
_FUNCTION_PREFIX = "__tvm_ffi_"
_BIND = "tvm_flash_bind_threads"
# Puts a kernel behind another order of arguments (runtime/arrange.c).
ARRANGED = f"{_FUNCTION_PREFIX}tvm_flash_arranged"


def find_compiler() -> list[str]:
    """The C compiler's command: $CC, else cc, gcc or clang, else the one in the ziglang package."""
    if command := compiler_command("CC", ("cc", "gcc", "clang"), "cc"):
        return command
    raise BuildError(
        "no C compiler to link kernels with: $CC is not set, cc, gcc and clang are not on PATH; "
        "install one, or `pip install ziglang`, which brings one"
    )


def compiler_command(variable: str, names: Iterable[str], zig: str) -> list[str]:
    """$``variable``, else the first of ``names`` on PATH, else ziglang's ``zig``, else nothing."""
    if os.environ.get(variable):
        return shlex.split(os.environ[variable])
    for name in names:
        if path := shutil.which(name):
            return [path]
    if find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", zig]
    return []


def link(objects: Sequence[Path], functions: Iterable[str], library: Path) -> Path:
    """Link ``objects`` and the shim into ``library``, which exports ``functions`` and what the
    loader asks for.

    It needs libtvm_ffi and parts of libc only; an undefined symbol fails here, not at a user's
    load. Raises BuildError with the linker's own words.
    """
    exports = [_BIND, ARRANGED, *(_FUNCTION_PREFIX + name for name in functions)]
    sources = sorted(RUNTIME.glob("*.c"))
    with writing(f"linking {library.name}"):
        export_list = write_exports(exports, library.with_suffix(".exports"))
        # Whole paths: a name may begin with a dash.
        files = [str(path.absolute()) for path in (*sources, *objects)]
        output = str(library.absolute())
    command = [*find_compiler(), *_compile_flags(), *files]
    command += [*library_flags(export_list), "-lm", "-ldl", "-o", output]
    run(command, what="linking", choose="$CC")
    export_list.unlink()
    return library


def _compile_flags() -> list[str]:
    includes = [f"-I{path}" for path in libinfo.include_paths()]
    return ["-std=c11", "-O2", "-fPIC", "-shared", "-pthread", "-Wall", *includes]


def library_flags(export_list: Path) -> list[str]:
    """Flags of a library that needs libtvm_ffi and exports what ``export_list`` says."""
    folder = Path(libinfo.find_libtvm_ffi()).parent
    flags = [f"-L{folder}", "-ltvm_ffi"]
    if system() == "darwin":
        exported = ["-exported_symbols_list", str(export_list.absolute())]
        return [*flags, *_to_linker(exported)]
    exported = [f"--version-script={export_list.absolute()}"]
    options = [
        "--build-id=none",  # with --strip-debug: the same kernels give the same bytes
        "--strip-debug",
        "--as-needed",
    ]
    # defs: nothing undefined. nodelete: a thread that ends may still free its scratch memory.
    keywords = ["defs", "nodelete"]
    words = [*(f"-Wl,{o}" for o in options), *(f"-Wl,-z,{k}" for k in keywords)]
    return [*_to_linker(exported), *words, *flags]


def _to_linker(words: Iterable[str]) -> list[str]:
    """Not -Wl, which parts a path at its commas."""
    return [part for word in words for part in ("-Xlinker", word)]


def write_exports(names: Sequence[str], path: Path) -> Path:
    """Write the export list: the objects define helpers and __tvm_ffi_main besides."""
    if system() == "darwin":
        text = "\n".join(f"_{name}" for name in names)
    else:
        text = f"{{ global: {'; '.join(names)}; local: *; }};"
    path.write_text(text + "\n", encoding="utf-8")
    return path
