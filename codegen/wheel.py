"""Libraries in a wheel, which tvm_flash finds once it is installed."""

from __future__ import annotations

import base64
import hashlib
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import __version__
from ..artifact.folder import replacing
from ..artifact.library import ENTRY_POINTS
from ..errors import BuildError
from ..machine import architecture
from .portable import PLATFORM
from .shipped import shipped_files

NAME = "tvm-flash-kernels"

# PEP 508's names.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# The first date that a zip file can say: the same libraries give the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def write_wheel(artifacts: Sequence[Path], folder: Path, name: str = NAME) -> Path:
    """The wheel in ``folder`` of the libraries at ``artifacts``, of which the best is loaded.

    name: of the distribution; several can be installed beside each other. Its version is that of
    tvm_flash, and it asks for that. Raises BuildError for a library that is not manylinux_2_28,
    ArtifactError for one that is no artifact, ValueError for a name that pip would not take.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name=} must be letters and digits, with . - _ between them")
    package = re.sub(r"[-_.]+", "_", name).lower()
    files = {f"{package}/{path}": data for path, data in shipped_files(artifacts).items()}
    files[f"{package}/__init__.py"] = b'"""Attention kernels, which tvm_flash loads."""\n'
    platform = f"{PLATFORM}_{architecture()}"
    files |= _described(name, package, f"py3-none-{platform}")
    path = folder / f"{package}-{__version__}-py3-none-{platform}.whl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            _write(files, f"{package}-{__version__}.dist-info/RECORD", draft)
    except OSError as error:
        raise BuildError(f"{path} cannot be written ({error}); choose another folder") from error
    return path


def _described(name: str, package: str, tag: str) -> dict[str, bytes]:
    """The files by which pip knows the wheel, but for the list of all (PEP 427, core metadata)."""
    metadata = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {__version__}",
        "Summary: Compiled attention kernels for tvm-flash",
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.10",
        f"Requires-Dist: tvm-flash=={__version__}",
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: tvm-flash", "Root-Is-Purelib: false", f"Tag: {tag}"]
    entry = [f"[{ENTRY_POINTS}]", f"{package} = {package}"]
    texts = {"METADATA": metadata, "WHEEL": wheel, "entry_points.txt": entry}
    folder = f"{package}-{__version__}.dist-info"
    return {f"{folder}/{file}": "\n".join([*text, ""]).encode() for file, text in texts.items()}


def _write(files: Mapping[str, bytes], record: str, path: Path) -> None:
    """A zip file of ``files`` and then ``record``, which lists them."""
    rows = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in sorted(files.items())]
    listed = {record: "\n".join([*rows, f"{record},,", ""]).encode()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in (*sorted(files.items()), *listed.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            mode = 0o755 if name.endswith(".so") else 0o644
            entry.external_attr = (stat.S_IFREG | mode) << 16
            entry.create_system = 3  # Unix, whose modes these are
            wheel.writestr(entry, data, zipfile.ZIP_DEFLATED)


def _digest(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
