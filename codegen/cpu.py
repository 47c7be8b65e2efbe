"""Scheduled functions to LLVM objects for a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import tvm
from tvm.target.codegen import llvm_version_major

from ..errors import BuildError
from .cpu_pipeline import PIPELINE
from .iteration_counts import with_iteration_counts
from .room import compiling, failure, file_size_limit, writing, written_bytes
from .shape_checks import with_shape_checks

if TYPE_CHECKING:
    from ..schedules.select import Scheduled
    from ..schedules.target import CpuTarget

# What `tvm-flash show` calls the two texts, and what TVM calls them.
TEXTS = {"llvm": "ll", "asm": "asm"}


def llvm_version() -> str:
    """Major version of the LLVM inside TVM."""
    return str(llvm_version_major())


def prepared(plan: Scheduled) -> tvm.IRModule:
    """The functions of ``plan`` as they ship: they check shapes, and announce what is to do."""
    checked = {var: with_shape_checks(f, plan.meta) for var, f in plan.mod.functions.items()}
    # A tile of packed rows goes only through the blocks of rows that it has.
    rows = plan.config.get("row_block", plan.meta["block_q"])
    tile = (rows, plan.meta["block_k"])
    return with_iteration_counts(tvm.IRModule(checked, attrs=plan.mod.attrs), tile)


def compile_module(mod: tvm.IRModule, target: CpuTarget) -> tvm.runtime.Module:
    """Lower ``mod`` for ``target`` and generate its machine code in memory."""
    tvm_target = target.tvm_target()
    try:
        with tvm_target, tvm.transform.PassContext(opt_level=3):
            return tvm.compile(mod, target=tvm_target, tir_pipeline=PIPELINE).mod
    except Exception as error:
        raise BuildError(
            f"{_names(mod)}: code generation for {target.name} failed: {error}"
        ) from error


def write_object(mod: tvm.IRModule, target: CpuTarget, path: Path) -> Path:
    """Compile ``mod`` into the object file ``path``; BuildError when there is no room for it."""
    names = _names(mod)
    with compiling(f"compiling {names}"):
        code = _object_code(compile_module(mod, target), names)
    with writing(f"writing the object of {names}"):
        path.write_bytes(code)
    return path


def _object_code(module: tvm.runtime.Module, names: str) -> bytes:
    """LLVM's object, which it can only write to a file: where that fails, it ends the process."""
    limit = file_size_limit()
    # A file in memory is full at the limit too. Objects are a third of their assembly.
    if limit is not None and len(module.inspect_source(TEXTS["asm"])) > limit:
        raise BuildError(
            f"{names}: files of this process may have {limit} bytes, too few for its object; "
            "raise the limit (ulimit -f)"
        )
    try:
        return written_bytes(lambda path: module.write_to_file(path, "o"))
    except Exception as error:
        raise failure(f"{names}: its object cannot be written: {error}", error) from error


def text(mod: tvm.IRModule, target: CpuTarget, stage: str) -> str:
    """LLVM IR (``stage`` "llvm") or assembly ("asm") of ``mod``."""
    with compiling(f"compiling {_names(mod)}"):
        return compile_module(mod, target).inspect_source(TEXTS[stage])


def _names(mod: tvm.IRModule) -> str:
    return ", ".join(var.name_hint for var in mod.get_global_vars())
