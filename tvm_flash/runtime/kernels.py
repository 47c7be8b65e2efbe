"""The kernel for a problem: one that was loaded, else one compiled now and kept on disk."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

from ..artifact.library import refuse
from ..errors import BuildError, UnsupportedSpec, remedy_for
from ..import_lock import importing
from ..problem.lengths import DEFAULT_BUCKET
from ..problem.spec import AttentionSpec
from ..problem.spec_words import has_words, text_of
from .loader import Kernel, opened, register, registered

_compiling = threading.Lock()

_OLDER = {
    "append": "build the library of the cache's forward again: tvm-flash build adds append to "
    "paged specs, which older ones did not; "
}
# What ``tvm-flash build`` is to be told of directions whose names end so.
_OPTIONS = {"_split": "--split", "_deterministic": "--deterministic"}


def _renew_locks() -> None:
    """Replace the locks in a forked child, where the threads that held them are gone.

    Those of cached properties too, which lock a whole class before Python 3.12.
    """
    global _compiling
    _compiling = threading.Lock()
    if sys.version_info >= (3, 12):
        return
    ours = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] == "tvm_flash"]
    classes = {x for module in ours for x in vars(module).values() if isinstance(x, type)}
    for member in (member for one in classes for member in vars(one).values()):
        if isinstance(member, cached_property):
            member.lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)

# GPU kernels that were compiled here, each for one compute capability: a machine may have several.
_of_capability: dict[tuple, Kernel] = {}


def resolve(
    spec: AttentionSpec,
    direction: str,
    device_type: str = "cpu",
    capability: tuple[int, int] | None = None,
    bucket: str = DEFAULT_BUCKET,
) -> Kernel:
    """The kernel for ``spec`` and ``direction`` (a name in artifact.DIRECTIONS) on a device.

    Loaded libraries come first, the latest before the others; otherwise the kernel is compiled for
    this machine and cached: for "cpu", the one for the length ``bucket`` (a name of buckets_of);
    for "cuda", for a GPU of ``capability`` (major, minor). Raises UnsupportedSpec when that cannot
    be done.
    """
    kernel = registered.get((spec.name, direction, device_type, bucket))
    if kernel is not None:
        return kernel
    if direction == "forward_split":
        # On CPUs the forward divides keys by itself; a library without this one has that.
        plain = (spec.name, "forward", device_type, bucket)
        if device_type != "cuda" or plain in registered:
            return resolve(spec, "forward", device_type, capability, bucket)
    if device_type == "cuda":
        return _compiled_for_gpu(spec, direction, capability)
    if direction.endswith("_deterministic"):  # on CPUs all give the same bits every run
        return resolve(spec, direction.removesuffix("_deterministic"), "cpu", None, bucket)
    return _compiled_for_cpu(spec, direction, bucket)


def _compiled_for_cpu(spec: AttentionSpec, direction: str, bucket: str) -> Kernel:
    key = (spec.name, direction, "cpu", bucket)
    with _compiling_alone():
        if key not in registered:
            use = partial(_only_kernel, spec, direction, bucket)
            jit = _compiler(spec, direction, "llvm")
            register([jit.artifact_for(spec, direction, bucket=bucket, use=use)])
        return registered[key]


def _compiled_for_gpu(
    spec: AttentionSpec, direction: str, capability: tuple[int, int] | None
) -> Kernel:
    place = (spec, direction, capability)
    if place in _of_capability:
        return _of_capability[place]
    with _compiling_alone():
        if place not in _of_capability:
            use = partial(_only_kernel, spec, direction, "")
            jit = _cuda_compiler(spec, direction)
            _of_capability[place] = jit.cuda_artifact_for(spec, direction, capability, use=use)
        return _of_capability[place]


@contextmanager
def _compiling_alone() -> Iterator[None]:
    """One thread at a time; BuildError where files of the compiler itself cannot be opened."""
    with _compiling:
        try:
            yield
        except OSError as error:
            remedy = remedy_for(error, "make that file readable")
            raise BuildError(f"compiling a kernel failed ({error}); {remedy}") from error


def _only_kernel(spec: AttentionSpec, direction: str, bucket: str, path: Path) -> Kernel:
    """The kernel of the artifact at ``path``; ArtifactError when it is not what was asked for.

    ``bucket``: empty for one that serves all lengths.
    """
    found = opened(path).kernels
    if len(found) == 1:
        (kernel,) = found
        serves = bucket in kernel.buckets if kernel.buckets else True
        if (kernel.spec, kernel.direction) == (spec, direction) and serves:
            return kernel
    held = ", ".join(f"{kernel.spec.name} {kernel.direction}" for kernel in found)
    raise refuse(path, f"it holds {held}, not {spec.name} {direction} {bucket}".rstrip())


def _remedy(spec: AttentionSpec, direction: str, target: str) -> str:
    """How to get the kernel on a machine that cannot compile it."""
    option = next((word for word in _OPTIONS if direction.endswith(word)), "")
    words = [text_of(spec), "--target", target, _OPTIONS.get(option, "")]
    by = "tvm-flash build " + " ".join(filter(None, words))
    if not has_words(spec):
        by = "tvm_flash.build([spec])"
    return (
        f"load one with tvm_flash.load(path), which `{by}` makes where TVM is, or install "
        "tvm-flash[compile]"
    )


def _compiler(spec: AttentionSpec, direction: str, target: str):
    """The JIT, imported at its first use: it needs tvm, which running a built library does not."""
    if find_spec("tvm") is None:
        raise UnsupportedSpec(
            [
                f"no loaded library has this kernel, {direction} of {spec.name}, and apache-tvm, "
                "which compiles one, is missing",
                _OLDER.get(direction, "") + _remedy(spec, direction, target),
            ]
        )
    with importing:
        from ..codegen import jit

    return jit


def _cuda_compiler(spec: AttentionSpec, direction: str):
    """The JIT for GPUs, which needs nvcc too."""
    jit = _compiler(spec, direction, "cuda")
    with importing:
        from ..codegen.toolkit import find_toolkit

    try:
        find_toolkit()
    except BuildError as error:
        raise UnsupportedSpec(
            [
                f"no loaded library has this kernel for CUDA: {_remedy(spec, direction, 'cuda')}",
                f"compiling one needs nvcc: {error}",
            ]
        ) from error
    return jit
