"""Libraries for other machines, built one after the other and packed: wheels, repositories."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ..problem.spec import AttentionSpec
from .answer import Answer
from .console import counted_progress

Pairs = Sequence[tuple[AttentionSpec, str]]
# Makes files of artifacts, and gives them.
Pack = Callable[[Sequence[Path]], Sequence[Path]]


class Shipped(NamedTuple):
    """What was made: of how many libraries, in which time; bytes of each wheel or variant."""

    libraries: int
    seconds: float
    bytes: dict[str, int]

    def tell(self, answer: Answer) -> None:
        """Print it."""
        made = f"{self.libraries} libraries in {self.seconds:.1f} s"
        for path, size in self.bytes.items():
            answer.line(f"{made}: {path} ({size / 1024:.0f} KiB)")
        answer.document(self._asdict())


def ship_wheel(
    pairs: Pairs, targets: Sequence[str], out: Path, name: str | None, options: dict[str, Any]
) -> Shipped:
    """Build ``pairs`` for ``targets``, and a wheel of them in the folder ``out``."""
    from ..codegen.wheel import NAME, write_wheel

    return _ship(pairs, targets, lambda built: [write_wheel(built, out, name or NAME)], options)


def ship_repository(
    pairs: Pairs, targets: Sequence[str], out: Path, version: int, options: dict[str, Any]
) -> Shipped:
    """Build ``pairs`` for ``targets``, and variants of a kernels repository at ``out``."""
    from ..codegen.kernels_repo import write_kernels_repo

    return _ship(pairs, targets, lambda built: write_kernels_repo(built, out, version), options)


def _ship(pairs: Pairs, targets: Sequence[str], pack: Pack, options: dict[str, Any]) -> Shipped:
    from ..artifact.library import read
    from ..codegen.build import build_pairs
    from ..codegen.portable import for_old_glibc, require_linux, require_portable
    from ..codegen.shipped import expanded

    require_linux()
    started = time.perf_counter()
    with TemporaryDirectory() as scratch, for_old_glibc():
        built = []
        for target in expanded(targets):
            with counted_progress(f"build {target}") as step:
                path = Path(scratch, str(len(built)))
                built.append(build_pairs(pairs, target, path, progress=step, **options))
            # Asked of each at once: a linker whose first library is refused makes no better ones.
            require_portable(read(built[-1]).code, f"the library for {target}")
        made = pack(built)
    sizes = {str(path): _bytes(path) for path in made}
    return Shipped(len(built), time.perf_counter() - started, sizes)


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
