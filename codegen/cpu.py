"""Scheduled functions to LLVM objects for a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import tvm
from tvm.target.codegen import llvm_version_major

from ..errors import BuildError
from .iteration_counts import with_iteration_counts

if TYPE_CHECKING:
    from ..schedules.target import CpuTarget

# What `tvm-flash show` calls the two texts, and what TVM calls them.
TEXTS = {"llvm": "ll", "asm": "asm"}


def llvm_version() -> str:
    """Major version of the LLVM inside TVM."""
    return str(llvm_version_major())


# LLVM eliminates common subexpressions itself; TVM's pass moves some out of the branch that
# computes them (LLVM then refuses the module) and takes minutes on long score functions.
PASS_OPTIONS = {"tirx.disable_cse_tir": True}


def compile_module(mod: tvm.IRModule, target: CpuTarget) -> tvm.runtime.Module:
    """Lower ``mod`` for ``target`` and generate its machine code in memory."""
    tvm_target = target.tvm_target()
    names = ", ".join(var.name_hint for var in mod.get_global_vars())
    try:
        with tvm_target, tvm.transform.PassContext(opt_level=3, config=PASS_OPTIONS):
            return tvm.compile(with_iteration_counts(mod), target=tvm_target).mod
    except Exception as error:
        raise BuildError(f"{names}: code generation for {target.name} failed: {error}") from error


def write_object(mod: tvm.IRModule, target: CpuTarget, path: Path) -> Path:
    """Compile ``mod`` into the object file ``path``."""
    compile_module(mod, target).write_to_file(str(path), "o")
    return path


def text(mod: tvm.IRModule, target: CpuTarget, stage: str) -> str:
    """LLVM IR (``stage`` "llvm") or assembly ("asm") of ``mod``."""
    return compile_module(mod, target).inspect_source(TEXTS[stage])
