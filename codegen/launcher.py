"""C++ of a CUDA library's public functions: TVM's launchers, and tables that choose among them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BuildError
from ..schedules.cuda.arch import CudaArch
from .cuda import KernelSource

# TVM's text is a preamble, whose part runtime/cuda_host.h plays here, then two exported functions:
# the launcher and a main that calls it. This stands before each of them.
_EXPORTED = '#ifdef __cplusplus\nextern "C"\n#endif\nTVM_DLL '
_MAIN = "__tvm_ffi_main("
_MAX_ARGUMENTS = 64

# TVM's launcher makes one block of a grid that has none, "if (n == 0) n = 1;": it would read the
# tensors, which are empty. Here it returns.
_EMPTY_GRID = re.compile(r"if \((\w+) == 0\) \1 = 1;")
_RETURNING = r"if (\1 == 0) return 0;"


@dataclass(frozen=True)
class Step:
    """One launch of a variant: its source, its image's symbol, indices of its arguments."""

    source: KernelSource
    image: str
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """The launches that serve ``archs``, and by PTX all devices from ``compute`` on, 0 being none.

    shared_bytes: the most dynamic shared memory that a block of any of them takes. narrowed: the
    index of a workspace that other variants want wider, and the columns that these launches take;
    None where all are alike.
    """

    archs: tuple[CudaArch, ...]
    compute: int
    shared_bytes: int
    steps: tuple[Step, ...]
    narrowed: tuple[int, int] | None = None


def image_symbol(source: KernelSource, archs: Sequence[str]) -> str:
    """Name of the image of ``source`` for ``archs``: equal images are one."""
    parts = "\0".join((source.device, source.version, *archs))
    return f"tvm_flash_image_{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def function_text(symbol: str, parameters: Sequence[str], variants: Sequence[Variant]) -> str:
    """The translation unit of the public function ``symbol``."""
    if len(parameters) > _MAX_ARGUMENTS:
        raise BuildError(
            f"{symbol} has {len(parameters)} arguments, a launch takes {_MAX_ARGUMENTS}: "
            "let the score_mod capture fewer tensors"
        )
    steps = [step for variant in variants for step in variant.steps]
    images = dict.fromkeys(step.image for step in steps)
    parts = [
        '#include "cuda_host.h"',
        *(f'extern "C" __attribute__((visibility("hidden"))) const unsigned char {image}[];'
          for image in images),
        *map(_launcher, steps),
        *(_variant_tables(number, variant) for number, variant in enumerate(variants)),
        _function(symbol, len(parameters), variants),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _launcher(step: Step) -> str:
    """TVM's launcher made static, under a name of its own, and the kernel it launches."""
    source, name = step.source, step.source.name
    _, *functions = source.host.partition(_MAIN)[0].split(_EXPORTED)
    if len(functions) < 2 or _MAIN not in source.host:
        raise BuildError(f"{name}: TVM's launcher looks new; is apache-tvm the pinned one?")
    *launchers, _main_type = functions  # the text of the last ends where its name begins
    text = "".join(f"static {launcher}" for launcher in launchers)
    text = text.replace(f"__tvm_ffi_{name}(", f"launch_{name}(")
    text = _EMPTY_GRID.sub(_RETURNING, text)
    types = ", ".join(declaration.rpartition(" ")[0] for declaration in source.parameters)
    kernel = (
        f'static tvm_flash::TypedKernel<{types}> {name}_kernel{{"{name}_kernel", {step.image}}};'
    )
    return f"{kernel}\n{text}"


def _variant_tables(number: int, variant: Variant) -> str:
    lines = [f"static const int archs_{number}[] = {{{_list([a.rank for a in variant.archs])}}};"]
    rows = []
    for place, step in enumerate(variant.steps):
        table = f"arguments_{number}_{place}"
        lines.append(f"static const uint8_t {table}[] = {{{_list(step.arguments)}}};")
        rows.append(f"{{launch_{step.source.name}, {table}, {len(step.arguments)}}}")
    lines.append(f"static const tvm_flash::Step steps_{number}[] = {{{_list(rows)}}};")
    return "\n".join(lines)


def _function(symbol: str, num_parameters: int, variants: Sequence[Variant]) -> str:
    rows = [
        f"{{archs_{n}, {len(v.archs)}, {v.compute}, {v.shared_bytes}, steps_{n}, {len(v.steps)}, "
        f"{_list(v.narrowed or (-1, 0))}}}"
        for n, v in enumerate(variants)
    ]
    fields = f'"{symbol}", "{built_for(variants)}", {num_parameters}, variants, {len(variants)}'
    return f"""static const tvm_flash::Variant variants[] = {{{_list(rows)}}};
static const tvm_flash::Function function = {{{fields}}};
extern "C" __attribute__((visibility("default"))) int32_t __tvm_ffi_{symbol}(
    void *, void *args, int32_t num_args, void *result) {{
  return tvm_flash::call(function, args, num_args, result);
}}"""


def built_for(variants: Sequence[Variant]) -> str:
    """The architectures and PTX versions of ``variants``, for people."""
    archs = sorted({arch for v in variants for arch in v.archs}, key=lambda arch: arch.rank)
    ptx = sorted({variant.compute for variant in variants if variant.compute})
    return ", ".join([*(arch.name for arch in archs), *(f"PTX of compute_{n}" for n in ptx)])


def _list(items: Sequence) -> str:
    return ", ".join(map(str, items))
