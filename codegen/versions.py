"""What a build depends on besides its spec: package versions and our own sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tvm_flash

_PACKAGES = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}

# What turns a spec into machine code, with the package's own files. The rest only calls the result.
_FOLDERS = ("score", "problem", "artifact", "definition", "schedules", "codegen")
# What decides a kernel's numbers: they are part of what is compiled.
_RECORDS = "tuning_logs"
_SUFFIXES = {".py", ".c", ".cpp", ".h", ".json", ".jsonl"}


def build_versions() -> dict[str, str]:
    """Versions of tvm, tvm_ffi and tvm_flash, not imported; "unknown" when not installed."""
    installed = {name: _version(package) for name, package in _PACKAGES.items()}
    return {**installed, "tvm_flash": tvm_flash.__version__}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


@lru_cache(maxsize=1)
def source_digest() -> str:
    """sha256 over the names and bytes of every source file that influences a kernel's code."""
    return _digest(building_sources())


def building_sources() -> list[tuple[str, Path]]:
    """(name within the package, path) of every source file that influences a kernel's code."""
    own = [(path.name, path) for path in Path(tvm_flash.__file__).parent.glob("*.py")]
    return [*own, *_sources(_FOLDERS)]


def records_digest(target: str) -> str:
    """sha256 over the names and bytes of the tuning records for ``target``, as they are now.

    Static rankings, which lie beside them, decide nothing.
    """
    found = _sources([f"{_RECORDS}/{target}"])
    return _digest([(name, path) for name, path in found if path.suffix == ".jsonl"])


def _digest(files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources(folders: Sequence[str]) -> list[tuple[str, Path]]:
    roots = [Path(root) for root in tvm_flash.__path__]
    found = [p for root in roots for folder in folders for p in (root / folder).rglob("*")]
    return [(_relative(p, roots), p) for p in found if p.suffix in _SUFFIXES and p.is_file()]


def _relative(path: Path, roots: list[Path]) -> str:
    root = max((r for r in roots if r in path.parents), key=lambda r: len(r.parts))
    return path.relative_to(root).as_posix()
