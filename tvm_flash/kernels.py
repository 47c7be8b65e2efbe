"""The kernel for a problem: one that was loaded, else one compiled now and kept on disk."""

from __future__ import annotations

import threading
from importlib.util import find_spec

from .errors import UnsupportedSpec
from .loader import Kernel, load, registered
from .spec import AttentionSpec

_compiling = threading.Lock()


def resolve(spec: AttentionSpec, direction: str) -> Kernel:
    """The kernel for ``spec`` and ``direction`` ("forward" or "backward").

    Loaded libraries come first, the latest before the others; otherwise the kernel is compiled for
    this machine and cached. Raises UnsupportedSpec when that cannot be done.
    """
    kernel = registered.get((spec, direction))
    return kernel if kernel is not None else _compiled(spec, direction)


def _compiled(spec: AttentionSpec, direction: str) -> Kernel:
    with _compiling:
        if (spec, direction) not in registered:
            load(_compiler().artifact_for(spec, direction))
        return registered[spec, direction]


def _compiler():
    """The JIT, imported at its first use: it needs tvm, which running a built library does not."""
    if find_spec("tvm") is None:
        raise UnsupportedSpec(
            [
                "no loaded library has this kernel, and apache-tvm, which compiles one, is missing",
                "load one with tvm_flash.load(path) or `pip install tvm-flash[compile]`",
            ]
        )
    from .codegen import jit

    return jit
