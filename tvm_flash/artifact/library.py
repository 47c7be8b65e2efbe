"""An artifact on disk: a manifest, the library beside it, and proof that this is what was built."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, remedy_for
from .folder import Folder
from .manifest import DIRECTIONS, FORMAT, KernelRecord, Manifest, symbol_name

__all__ = [
    "DIRECTIONS",
    "ENTRY_POINTS",
    "FORMAT",
    "MANIFEST",
    "PTX",
    "Artifact",
    "KernelRecord",
    "Manifest",
    "read",
    "read_manifest",
    "read_ptx",
    "refuse",
    "sha256_of",
    "symbol_name",
    "verify",
    "write_manifest",
    "write_ptx",
]

MANIFEST = "manifest.json"
PTX = "kernels.ptx.gz"
# The group by which installed packages name theirs, whose folders are artifacts.
ENTRY_POINTS = "tvm_flash.kernels"

# Bytes that are read of a manifest, and of a library or PTX (packed and not). docs/artifacts.md.
MANIFEST_LIMIT = 16 * 2**20
LIBRARY_LIMIT = 2**30

# How often a reader looks again because a folder was replaced between two of its reads.
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Artifact:
    """What was read, once: ``library``'s path, its bytes and its manifest, which agree."""

    library: Path
    manifest: Manifest
    code: bytes
    ptx: bytes = b""


def refuse(
    path: Path,
    reason: str,
    remedy: str = "build it again with tvm_flash.build",
    error: Exception | None = None,
) -> ArtifactError:
    """The error for ``path``: what is wrong with it and what to do; ``error``: what failed."""
    return ArtifactError(f"{path}: {reason}; {remedy_for(error, remedy)}")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest`` as ``directory``/manifest.json."""
    text = json.dumps(manifest.to_json(), indent=2, sort_keys=True)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def write_ptx(directory: Path, texts: Mapping[str, str]) -> str:
    """Write the PTX of kernels, by name, as ``directory``/kernels.ptx.gz; gives its sha256."""
    file = directory / PTX
    file.write_bytes(gzip.compress(json.dumps(texts, sort_keys=True).encode(), mtime=0))
    return sha256_of(file)


def read_ptx(path: str | Path) -> dict[str, str]:
    """PTX of every kernel of the CUDA artifact at ``path``, by the kernel's name.

    Raises ArtifactError when there is none or it is not what the library was built from.
    """
    artifact = read(path, with_ptx=True)
    file = artifact.library.with_name(PTX)
    try:
        with gzip.open(io.BytesIO(artifact.ptx)) as packed:
            text = packed.read(LIBRARY_LIMIT + 1)
        if len(text) > LIBRARY_LIMIT:
            raise ValueError(f"more than the {LIBRARY_LIMIT} bytes that are read")
        texts = json.loads(text)
        if not isinstance(texts, dict) or not all(isinstance(x, str) for x in texts.values()):
            raise TypeError("it is not an object of texts")
    except Exception as error:
        raise refuse(file, f"not PTX ({type(error).__name__}: {error})") from error
    return texts


def verify(path: str | Path) -> tuple[Path, Manifest]:
    """Read the manifest at ``path`` (its directory, or the file) and check the library against it.

    Returns the library's path and the manifest. Nothing is executed. Raises ArtifactError when
    either file is missing, unreadable, of another format or not the one that was built.
    """
    artifact = read(path)
    return artifact.library, artifact.manifest


def read(path: str | Path, *, with_ptx: bool = False) -> Artifact:
    """The artifact at ``path``, all of it from one folder, though another may take its place.

    Raises as ``verify`` does.
    """
    path = Path(path)
    place = path.parent if path.name == MANIFEST else path
    for _ in range(_ATTEMPTS):
        with _opened(place) as folder:
            try:
                return _read(folder, with_ptx)
            except _Vanished:
                if not folder.was_replaced():
                    raise
    raise refuse(place, "it is replaced faster than it can be read", "load it later")


def read_manifest(path: Path) -> Manifest:
    """What the manifest in the folder ``path`` says; the library beside it is not looked at.

    Raises ArtifactError.
    """
    with _opened(path) as folder:
        return _manifest(path / MANIFEST, _bytes(folder, MANIFEST, MANIFEST_LIMIT))


class _Vanished(ArtifactError):
    """A file is not there: the artifact lacks it, or its folder is just being deleted."""


def _opened(place: Path) -> Folder:
    try:
        return Folder(place)
    except NotADirectoryError:
        reason = f"an artifact is a directory with a {MANIFEST}"
        raise refuse(place, reason, "load that") from None
    except FileNotFoundError:
        raise refuse(place, "there is no such folder", "give that of a built library") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise refuse(place / MANIFEST, reason, error=error) from error


def _read(folder: Folder, with_ptx: bool) -> Artifact:
    manifest = _manifest(folder.path / MANIFEST, _bytes(folder, MANIFEST, MANIFEST_LIMIT))
    library = folder.path / _file_name(folder.path, manifest)
    code = _bytes(folder, library.name, LIBRARY_LIMIT, manifest.sha256, "the library ")
    if not with_ptx:
        return Artifact(library, manifest, code)
    if not manifest.ptx_sha256:
        raise refuse(
            folder.path / PTX, f"an artifact for {manifest.target.get('name')} keeps no PTX"
        )
    ptx = _bytes(folder, PTX, LIBRARY_LIMIT, manifest.ptx_sha256, "the PTX ")
    return Artifact(library, manifest, code, ptx)


def _bytes(folder: Folder, name: str, limit: int, sha256: str = "", what: str = "") -> bytes:
    """The file ``name``; of this ``sha256``, where one is given."""
    path = folder.path / name
    try:
        data = folder.read(name, limit)
    except OSError as error:
        refusal = refuse(path, f"{what}cannot be read ({error.strerror})", error=error)
        gone = error.errno in (errno.ENOENT, errno.ESTALE)
        raise (_Vanished(*refusal.args) if gone else refusal) from error
    if sha256 and (found := hashlib.sha256(data).hexdigest()) != sha256:
        reason = f"sha256 is {found[:16]}, its manifest says {sha256[:16]}: changed or cut off"
        raise refuse(path, reason)
    return data


def _manifest(path: Path, data: bytes) -> Manifest:
    try:
        return Manifest.from_json(json.loads(data.decode(), parse_constant=_refuse_constant))
    # Whatever a foreign file holds ends here: absent keys, wrong types, bad UTF-8, deep nesting,
    # specs of another version.
    except Exception as error:
        raise refuse(path, f"not a manifest ({type(error).__name__}: {error})") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _file_name(folder: Path, manifest: Manifest) -> str:
    name = manifest.library
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        reason = f"library={name!r} must be the name of a file beside the manifest"
        raise refuse(folder / MANIFEST, reason)
    return name
