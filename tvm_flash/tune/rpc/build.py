"""What is uploaded to a TVM RPC server: a kernel as it ships, and the library that calls it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tvm_ffi import libinfo

from ...artifact.library import symbol_name, verify
from ...codegen import cache
from ...codegen.linker import find_compiler, library_flags, write_exports
from ...codegen.process import run
from ...codegen.versions import build_versions, source_digest
from ...problem.spec import AttentionSpec
from ...verify.trial import tile_of
from ..trial import SearchTask, Sizes

if TYPE_CHECKING:
    from ...schedules.target import CpuTarget

CALLER = Path(__file__).with_name("caller.c")
_CALLER_FUNCTIONS = ("open_kernel", "call", "copy_cpuinfo", "fill")


@dataclass(frozen=True)
class RemoteTask:
    """A SearchTask for a process that measures: without the space, which does not pickle."""

    spec: AttentionSpec
    direction: str
    target: str
    sizes: Sizes
    threads: int

    @classmethod
    def of(cls, task: SearchTask) -> RemoteTask:
        """``task`` without its space."""
        return cls(task.spec, task.direction, task.target, task.sizes, task.threads)


@dataclass(frozen=True)
class Built:
    """A kernel to upload. meta: block_q, block_k, head_dim_pad, as in its manifest."""

    library: Path
    spec: AttentionSpec
    symbol: str
    meta: dict[str, Any]

    @property
    def tile(self) -> tuple[int, int]:
        """Query rows and keys, which decide what problems it is checked on."""
        return tile_of(self.meta)


def build_kernel(spec: AttentionSpec, direction: str, config: Any, target: CpuTarget) -> Built:
    """The kernel of ``config`` for ``target``, from the disk cache or compiled into it.

    Raises UnsupportedSpec and BuildError as ``codegen.build`` does.
    """

    def make(path: Path) -> None:
        # Not at the top: importing tvm takes seconds, and a kernel from the cache needs none of it.
        from ...codegen.build import build_jobs, scheduling
        from ...schedules.select import Chosen

        build_jobs([scheduling(spec, direction, target, Chosen(config, "given", ()))], target, path)

    path = cache.entry(entry_name(spec, direction, config, target), make)
    library, manifest = verify(path)
    (record,) = manifest.kernels
    return Built(library, record.spec, record.symbol, record.meta)


def entry_name(spec: AttentionSpec, direction: str, config: Any, target: CpuTarget) -> str:
    """The kernel's name in the disk cache: all that decides its code."""
    parts = {
        "spec": spec.to_json(),
        "direction": direction,
        "target": [target.name, target.mcpu, *target.mattr, *sorted(target.features)],
        "config": config.to_json(),
        "sources": source_digest(),
        "versions": build_versions(),
    }
    return f"{symbol_name(spec, direction)}-{target.name}-{cache.digest(parts)[:32]}"


def caller() -> bytes:
    """The library of caller.c, compiled once."""
    parts = {"source": CALLER.read_text(encoding="utf-8"), **build_versions()}
    parts["compiler"] = " ".join(find_compiler())
    return cache.content(cache.digest(parts), _compile_caller, "rpc")


def _compile_caller() -> bytes:
    names = [f"__tvm_ffi_{name}" for name in _CALLER_FUNCTIONS]
    flags = ["-std=c11", "-O2", "-fPIC", "-shared", "-pthread", "-Wall"]
    flags += [f"-I{path}" for path in libinfo.include_paths()]
    with TemporaryDirectory() as folder:
        exports, library = Path(folder, "exports"), Path(folder, "caller.so")
        command = [*find_compiler(), *flags, str(CALLER)]
        command += [*library_flags(write_exports(names, exports)), "-ldl", "-o", str(library)]
        run(command, what="linking", choose="$CC")
        return library.read_bytes()
