"""Which libraries are made to be shipped together, and the files that they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..artifact.library import MANIFEST, PTX, read, read_manifest
from ..errors import BuildError
from ..machine import architecture
from ..schedules.target import TARGETS, host_target
from .portable import require_linux, require_portable

# The target that stands for every level of this machine's architecture.
ALL_LEVELS = "cpu"


def levels() -> list[str]:
    """Names of the CPU targets that can be linked here, the least demanding first."""
    x86 = architecture() == "x86_64"
    return [target.name for target in TARGETS if target.name.startswith("x86") == x86][::-1]


def expanded(targets: Sequence[str]) -> list[str]:
    """``targets``, each once, by the names of levels where they are "cpu" or "llvm".

    Raises ValueError for GPUs named twice: one library serves all that are named in one target.
    """
    found = [name for target in targets for name in _levels_of(target)]
    if len(cuda := [target for target in targets if target.startswith("cuda")]) > 1:
        raise ValueError(f"targets {', '.join(cuda)}: name all GPUs in one, as cuda:sm_80,sm_90")
    return list(dict.fromkeys(found))


def _levels_of(target: str) -> list[str]:
    if target == "llvm":
        return [host_target().name]
    return levels() if target == ALL_LEVELS else [target]


def shipped_files(artifacts: Sequence[Path]) -> dict[str, bytes]:
    """The files of the artifacts at ``artifacts``, by path: a folder for each.

    Raises BuildError where there is none, and for a library that other machines could not load.
    """
    require_linux()
    if not artifacts:
        raise BuildError("no libraries to ship: name targets")
    files: dict[str, bytes] = {}
    for path in artifacts:
        found = _files(path)
        if twice := files.keys() & found.keys():
            raise BuildError(f"{path}: another library is for {min(twice).partition('/')[0]} too")
        files |= found
    return files


def _files(path: Path) -> dict[str, bytes]:
    """Those of one artifact, in a folder that has the name of its target."""
    artifact = read(path, with_ptx=bool(read_manifest(path).ptx_sha256))
    require_portable(artifact.code, str(artifact.library))
    found = {artifact.library.name: artifact.code, MANIFEST: (path / MANIFEST).read_bytes()}
    if artifact.ptx:
        found[PTX] = artifact.ptx
    return {f"{artifact.manifest.target['name']}/{name}": data for name, data in found.items()}
