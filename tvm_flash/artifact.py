"""The manifest beside a built library: what it holds, and proof that it is what was built."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ArtifactError
from .lengths import DEFAULT_BUCKET, check_buckets
from .spec import AttentionSpec

FORMAT = 1
MANIFEST = "manifest.json"
PTX = "kernels.ptx.gz"
# The last: the same bits every run. On CPUs every backward is, on GPUs it is a kernel of its own.
DIRECTIONS = {"forward": "fwd", "backward": "bwd", "backward_deterministic": "bwd_det"}


def symbol_name(spec: AttentionSpec, direction: str, bucket: str = DEFAULT_BUCKET) -> str:
    """Name of the kernel's function in a library, for the kernel that serves ``bucket`` first.

    Raises ValueError for an unknown direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"{direction=} must be one of {list(DIRECTIONS)}")
    suffix = "" if bucket == DEFAULT_BUCKET else f"_{bucket}"
    return f"{spec.name}_{DIRECTIONS[direction]}{suffix}"


@dataclass(frozen=True)
class KernelRecord:
    """One kernel of a library: the problem, its direction and the numbers it was scheduled with.

    ``meta`` is what a caller must know besides: block_q, block_k, head_dim_pad. ``launches``, for
    CUDA: name, archs, threads, shared_bytes and resources by arch of each kernel it launches.
    ``buckets``: the lengths it is meant for (tvm_flash.lengths); none named: all of them.
    ``config_source``: the tuning record that the numbers come from, or "default".
    """

    symbol: str
    spec: AttentionSpec
    direction: str
    config: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    launches: tuple[dict[str, Any], ...] = ()
    buckets: tuple[str, ...] = ()
    config_source: str = ""

    def to_json(self) -> dict[str, Any]:
        known = {"symbol": self.symbol, "direction": self.direction, "config": self.config}
        optional = {
            "launches": list(self.launches),
            "buckets": list(self.buckets),
            "config_source": self.config_source,
        }
        given = {name: value for name, value in optional.items() if value}
        return {**self.meta, **known, "spec": self.spec.to_json(), **given}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> KernelRecord:
        meta = dict(data)
        symbol, direction = meta.pop("symbol"), meta.pop("direction")
        config, spec = dict(meta.pop("config")), AttentionSpec.from_json(meta.pop("spec"))
        launches = tuple(dict(launch) for launch in meta.pop("launches", ()))
        buckets, source = check_buckets(meta.pop("buckets", ())), meta.pop("config_source", "")
        return cls(str(symbol), spec, direction, config, meta, launches, buckets, str(source))

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction={self.direction!r} must be one of {list(DIRECTIONS)}")


@dataclass(frozen=True)
class Manifest:
    """Everything a loader must know before it opens the library.

    library: file name beside the manifest. sha256: of that file. target: name, mcpu (or archs, for
    CUDA), system and architecture. cpu_features: all of them are needed to run. versions: what it
    was built with. ptx_sha256: of the PTX beside a CUDA library, which is read only to verify it.
    """

    library: str
    sha256: str
    target: dict[str, Any]
    cpu_features: tuple[str, ...]
    versions: dict[str, str]
    kernels: tuple[KernelRecord, ...]
    ptx_sha256: str = ""

    @property
    def device(self) -> str:
        """What the kernels run on: "cpu" or "cuda"."""
        return "cuda" if self.target.get("name") == "cuda" else "cpu"

    def to_json(self) -> dict[str, Any]:
        ptx = {"ptx_sha256": self.ptx_sha256} if self.ptx_sha256 else {}
        return {
            **ptx,
            "format": FORMAT,
            "library": self.library,
            "sha256": self.sha256,
            "target": self.target,
            "cpu_features": list(self.cpu_features),
            "versions": self.versions,
            "kernels": [record.to_json() for record in self.kernels],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        if data["format"] != FORMAT:
            raise ValueError(f"format={data['format']!r}, this version reads format {FORMAT}")
        kernels = tuple(KernelRecord.from_json(entry) for entry in data["kernels"])
        if not kernels:
            raise ValueError("it lists no kernels")
        return cls(
            library=str(data["library"]),
            sha256=str(data["sha256"]),
            target=dict(data["target"]),
            cpu_features=tuple(data["cpu_features"]),
            versions=dict(data["versions"]),
            kernels=kernels,
            ptx_sha256=str(data.get("ptx_sha256", "")),
        )


def refuse(
    path: Path, reason: str, remedy: str = "build it again with tvm_flash.build"
) -> ArtifactError:
    """The error for ``path``: what is wrong with it and what to do."""
    return ArtifactError(f"{path}: {reason}; {remedy}")


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
    library, manifest = verify(path)
    file = library.with_name(PTX)
    if not manifest.ptx_sha256:
        raise refuse(file, f"an artifact for {manifest.target.get('name')} keeps no PTX")
    try:
        found = sha256_of(file)
    except OSError as error:
        raise refuse(file, f"the PTX cannot be read ({error.strerror})") from error
    if found != manifest.ptx_sha256:
        raise refuse(file, f"sha256 is {found[:16]}, its manifest says {manifest.ptx_sha256[:16]}")
    return json.loads(gzip.decompress(file.read_bytes()))


def verify(path: str | Path) -> tuple[Path, Manifest]:
    """Read the manifest at ``path`` (its directory, or the file) and check the library against it.

    Returns the library's path and the manifest. Nothing is executed. Raises ArtifactError when
    either file is missing, unreadable, of another format or not the one that was built.
    """
    manifest_path = _manifest_path(Path(path))
    manifest = _read_manifest(manifest_path)
    return _verified_library(manifest_path, manifest), manifest


def _manifest_path(path: Path) -> Path:
    manifest = path / MANIFEST if path.is_dir() else path
    if manifest.name != MANIFEST:
        raise refuse(path, f"an artifact is a directory with a {MANIFEST}", "load that")
    return manifest


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise refuse(path, f"cannot be read ({error.strerror})") from error
    # Whatever a foreign file holds ends here: absent keys, wrong types, bad UTF-8, deep nesting,
    # specs of another version.
    except Exception as error:
        raise refuse(path, f"not a manifest ({type(error).__name__}: {error})") from error


def _verified_library(path: Path, manifest: Manifest) -> Path:
    name = manifest.library
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise refuse(path, f"library={name!r} must be the name of a file beside the manifest")
    library = path.parent / name
    try:
        found = sha256_of(library)
    except OSError as error:
        raise refuse(library, f"the library cannot be read ({error.strerror})") from error
    if found != manifest.sha256:
        raise refuse(
            library,
            f"sha256 is {found[:16]}, its manifest says {manifest.sha256[:16]}: changed or cut off",
        )
    return library
