"""One small kernel, compiled once, to be copied and spoiled; and forked children."""

from __future__ import annotations

import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from tvm_flash.artifact.library import MANIFEST
from tvm_flash.codegen import jit
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.runtime.loader import Kernel

SPEC = AttentionSpec(dtype="float32", head_dim=16)


@lru_cache(maxsize=1)
def compiled() -> Path:
    return jit.artifact_for(SPEC, "forward")


def copied(path: Path) -> Path:
    return Path(shutil.copytree(compiled(), path))


def edit(path: Path, **changes) -> Path:
    """Change fields of the manifest in ``path``."""
    file = path / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


def attends(kernel: Kernel) -> bool:
    """Whether ``kernel`` is the kernel for SPEC."""
    q, k, v = torch.randn(3, 1, 20, 2, 16)
    out, lse = torch.empty_like(q), torch.empty(1, 2, 20)
    kernel(q, k, v, out, lse, 0.25)
    exact, _ = attention_reference(q, k, v, softmax_scale=0.25, upcast=torch.float64)
    return bool((out - exact).abs().max() < 1e-5)


def in_child(run: Callable[[], object]) -> bool:
    """Whether ``run`` ends well, and in time, in a forked child."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    signal.alarm(20)
    try:
        run()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def as_nobody() -> None:
    """Give up root, to whom every file is open; for a child."""
    if os.geteuid() == 0:
        os.setgid(54321)
        os.setuid(54321)
