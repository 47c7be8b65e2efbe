"""An artifact is made in a scratch folder and put in its place in one step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Lock

from ..artifact import MANIFEST, PTX
from ..errors import BuildError

LIBRARY = "kernels.so"

Progress = Callable[[int, int, str], None]


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """An empty folder that becomes ``path`` when the block ends without an error.

    Its parent is scratch space. Raises BuildError when something else than an artifact is there.
    """
    _refuse_to_replace(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        staging = Path(scratch, "artifact")
        staging.mkdir()
        yield staging
        _publish(staging, path, Path(scratch, "replaced"))


def counting(total: int, progress: Progress | None) -> Callable[[str], None]:
    """A function that reports one more of ``total`` as done, one call at a time."""
    done = count(1)
    lock = Lock()

    def finished(symbol: str) -> None:
        with lock:
            number = next(done)
            if progress:
                progress(number, total, symbol)

    return finished


def _refuse_to_replace(path: Path) -> None:
    """Only an artifact, or nothing, may be at ``path``: a typing error must not cost a folder."""
    files = {MANIFEST, LIBRARY, PTX}
    if path.is_dir() and {entry.name for entry in path.iterdir()} <= files:
        return
    if path.exists():
        raise BuildError(f"path={str(path)!r} exists and is not an artifact; choose another path")


def _publish(staging: Path, path: Path, aside: Path) -> None:
    """Rename ``staging`` to ``path``; what was there goes away with the scratch folder."""
    if path.exists():
        path.rename(aside)
    staging.rename(path)
