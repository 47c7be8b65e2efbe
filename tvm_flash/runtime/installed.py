"""Libraries that installed packages bring: looked for when a kernel is missing, not before.

A package names, by an entry point of the group "tvm_flash.kernels", a package of its own whose
folders are artifacts: the same kernels for several machines (`tvm-flash build --wheel`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from importlib.util import find_spec
from pathlib import Path

from .. import __version__
from ..artifact.library import ENTRY_POINTS, MANIFEST, read_manifest
from ..artifact.manifest import Manifest
from ..errors import ArtifactError
from .loader import load_beside, unfit_reasons

logger = logging.getLogger("tvm_flash")


@dataclass(frozen=True)
class Bundle:
    """A folder of artifacts, one a subfolder, and what users know it by ("kernels 0.1.0")."""

    name: str
    folder: Path


# Which libraries of installed packages are used, and why others are not, in words.
in_use: list[str] = []
refusals: list[str] = []
# Bundles that no entry point names.
_named: list[Bundle] = []
# Devices ("cpu", "cuda") that were looked for.
_looked_for: set[str] = set()
_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def use(name: str, folder: Path) -> None:
    """Let missing kernels be looked for in ``folder`` too, whose subfolders are artifacts."""
    _named.append(Bundle(name, folder))
    _looked_for.clear()


def load_installed(device: str) -> bool:
    """Load, once, what is installed for ``device`` ("cpu" or "cuda"); whether it was now.

    Of a bundle the library that uses most of this CPU. What was loaded or compiled before stays.
    One that cannot be used is a line of ``refusals`` and a warning, and does not keep others out.
    """
    if device in _looked_for:
        return False
    with _lock:
        if device in _looked_for:
            return True  # by another thread, meanwhile
        for bundle in [*_named, *_installed(device)]:
            if problem := _load_best(bundle, device):
                _refuse(bundle.name, device, problem)
        _looked_for.add(device)
    return True


def _installed(device: str) -> Iterator[Bundle]:
    """What entry points name; for whatever a foreign package does wrong it alone is refused."""
    found = {}
    for distribution in distributions():
        try:
            own = distribution.entry_points.select(group=ENTRY_POINTS)
            for point in own:
                found.setdefault((point.name, point.value), (distribution, point))
        except Exception as error:
            problem = f"its entry points cannot be read ({type(error).__name__}: {error})"
            _refuse(_title(distribution), device, problem)
    for distribution, point in map(found.get, sorted(found)):
        try:
            folders = _folders(point)
        except Exception as error:
            problem = f"{point.value} is not found ({type(error).__name__}: {error})"
            _refuse(_title(distribution), device, problem)
            continue
        for folder in folders:
            yield Bundle(_title(distribution), Path(folder))


def _title(distribution: Distribution) -> str:
    """Name and version, or the folder of one that says none."""
    try:
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
    except Exception:
        name = version = None
    return f"{name} {version}" if name else str(distribution.locate_file(""))


def _folders(point: EntryPoint) -> list[str]:
    """Where the package lies, which is found and not run; those above it are."""
    found = find_spec(point.module)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("there is no such package")
    return list(found.submodule_search_locations)


def _refuse(name: str, device: str, problem: str) -> None:
    refusals.append(f"{name} is installed and not used for {device}: {problem}")
    logger.warning("%s", refusals[-1])


def _load_best(bundle: Bundle, device: str) -> str:
    """Load the best library for ``device``; why there is none, empty where none was meant to be."""
    problems = []
    for path, manifest in _ranked(bundle.folder, device, problems):
        if reasons := [*_version_reasons(manifest), *unfit_reasons(manifest)]:
            problems.append(f"{path.name}: {', '.join(reasons)}")
            continue
        try:
            load_beside(path)
        except ArtifactError as error:
            problems.append(str(error))
            logger.warning("%s; another library of it is tried", error)
            continue
        in_use.append(f"{bundle.name}: {path.name}")
        return ""
    return "; ".join(problems)


def _ranked(folder: Path, device: str, problems: list[str]) -> list[tuple[Path, Manifest]]:
    """The artifacts for ``device`` in ``folder``, those that ask most of a CPU first."""
    found = []
    for path in sorted(part.parent for part in folder.glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(path)
        except ArtifactError as error:
            problems.append(str(error))
            continue
        if manifest.device == device:
            found.append((path, manifest))
    return sorted(found, key=lambda pair: -len(pair[1].cpu_features))


def _version_reasons(manifest: Manifest) -> list[str]:
    """Kernels and what calls them are of one version: a newer one may ask other things of them."""
    built = manifest.versions.get("tvm_flash", "unknown")
    if built == __version__:
        return []
    return [
        f"it was built by tvm_flash {built}, this is {__version__}: install that of one version"
    ]
