"""What a build depends on besides its spec: package versions and our own sources."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tvm_flash

_PACKAGES = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}

# What turns a spec into machine code. The rest of the package only calls the result.
_FOLDERS = ("definition", "schedules", "codegen", "tuning_logs")
_FILES = (
    "artifact.py",
    "errors.py",
    "machine.py",
    "program.py",
    "score_mod.py",
    "spec.py",
    "torch_operations.py",
    "tracing.py",
    "variants.py",
)
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
    digest = hashlib.sha256()
    for name, path in sorted(_sources()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources() -> list[tuple[str, Path]]:
    roots = [Path(root) for root in tvm_flash.__path__]
    folders = [root / folder for root in roots for folder in _FOLDERS]
    nested = [p for folder in folders for p in folder.rglob("*") if p.suffix in _SUFFIXES]
    single = [root / name for root in roots for name in _FILES]
    return [(_relative(p, roots), p) for p in (*nested, *single) if p.is_file()]


def _relative(path: Path, roots: list[Path]) -> str:
    root = max((r for r in roots if r in path.parents), key=lambda r: len(r.parts))
    return path.relative_to(root).as_posix()
