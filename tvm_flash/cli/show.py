"""``tvm-flash show``: a kernel at any stage between the definition and machine code."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Annotated

import typer
from rich.syntax import Syntax

from ..errors import UnsupportedSpec
from ..problem.arguments import direction_reasons
from ..problem.lengths import is_forward
from ..problem.presets import served_pairs
from ..problem.spec import AttentionSpec
from ..schedules.cuda.arch import cuda_archs
from ..schedules.target import cpu_target
from .console import console
from .direction import LISTED, Direction
from .json_output import AsJson, print_json
from .spec_text import parse_spec


class Stage(str, Enum):
    """What can be looked at, in the order it comes into being."""

    definition = "definition"
    recurrence = "recurrence"
    scheduled = "scheduled"
    llvm = "llvm"
    asm = "asm"
    cuda = "cuda"
    ptx = "ptx"
    sass = "sass"


OF_GPUS = (Stage.cuda, Stage.ptx, Stage.sass)
LEXERS = {
    Stage.definition: "python", Stage.recurrence: "text", Stage.scheduled: "python",
    Stage.llvm: "llvm", Stage.cuda: "cuda",
}  # fmt: skip


def show(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="As below: bf16,d=64,causal.")],
    stage: Annotated[
        Stage,
        typer.Option(
            metavar="STAGE",
            help="definition, recurrence, scheduled; llvm or asm of a CPU; cuda, ptx or sass of a "
            "GPU.",
        ),
    ] = Stage.definition,
    direction: Annotated[
        Direction | None,
        typer.Option(
            metavar="DIRECTION",
            help=f"{LISTED}. Default: forward, or what the spec has.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="llvm (this machine), a CPU level such as x86-64-v3, or cuda:sm_90. Default: "
            "llvm; for the stages cuda, ptx and sass cuda:sm_80.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print the TensorIR definition, the recurrence, the scheduled function or machine code.

    For a CPU: LLVM IR or assembly. For a GPU (--target cuda:sm_80; of several the first): the
    scheduled kernels, their CUDA C++ or PTX, or their machine code with its control words decoded
    and the main loop marked (sass).
    """
    target = target or ("cuda:sm_80" if stage in OF_GPUS else "llvm")
    _check_target(target)
    problem = parse_spec(spec)
    (_, first), *_ = served_pairs(problem, ("forward", "backward"))
    name = direction.value if direction else first
    text = stage_text(problem, stage, name, target)
    if as_json:
        asked = {"stage": stage.value, "direction": name, "target": target}
        print_json({"spec": problem.to_json(), **asked, "text": text})
    elif console.is_terminal:
        lexer = LEXERS.get(stage, "gas")
        console.print(Syntax(text, lexer, theme="ansi_dark", word_wrap=True))
    else:
        print(text)


def _check_target(target: str) -> None:
    """ValueError, UnsupportedSpec for a target that there is not, read by the stage or not."""
    if target.startswith("cuda"):
        cuda_archs(target)
    elif target != "llvm":
        cpu_target(target)


def stage_text(spec: AttentionSpec, stage: Stage, direction: str, target: str) -> str:
    """The text of one stage; needs tvm."""
    require_tvm()
    if reasons := direction_reasons(spec, direction):
        raise UnsupportedSpec(reasons)
    if stage is Stage.definition:
        return _note(spec) + _definition(spec, direction)
    if stage is Stage.recurrence:
        return _note(spec) + _recurrence(spec)
    if target.startswith("cuda"):
        return _cuda_text(spec, stage, direction, target)
    if stage in OF_GPUS:
        raise ValueError(f"stage={stage.value} is a GPU's: pass --target cuda:sm_80")
    from ..codegen import cpu
    from ..codegen.build import find_target
    from ..schedules.select import scheduled_module

    cpu_target = find_target(target)
    plan = scheduled_module(spec, direction, cpu_target)
    if stage is Stage.scheduled:
        return plan.mod.script()
    return cpu.text(cpu.prepared(plan), cpu_target, stage.value)


def _cuda_text(spec: AttentionSpec, stage: Stage, direction: str, target: str) -> str:
    """The kernels for the first architecture of ``target``, one after the other."""
    from ..codegen.cuda import kernel_sources, ptx_of, ptx_version
    from ..schedules.cuda.select import cuda_programs

    arch = cuda_archs(target)[:1]
    ((_, program),) = cuda_programs(spec, direction, arch)
    compute = ptx_version(arch)
    if stage is Stage.scheduled:
        return "\n".join(launch.func.script() for launch in program.launches)
    if stage is Stage.cuda:
        return "\n".join(source.device for source in kernel_sources(program, compute))
    if stage is Stage.ptx:
        return "\n".join(ptx_of(program, compute))
    if stage is Stage.sass:
        names = [launch.name for launch in program.launches]
        texts = zip(names, ptx_of(program, compute), strict=True)
        return "\n\n".join(_sass_text(name, ptx, arch[0].name) for name, ptx in texts)
    raise ValueError(
        f"stage={stage.value} is a CPU's: for {target} take scheduled, cuda, ptx or sass"
    )


def _sass_text(name: str, ptx: str, arch: str) -> str:
    from ..codegen.nvcc import assemble
    from ..codegen.sass.listing import disassemble
    from ..codegen.sass.show import annotated

    code = disassemble(assemble(ptx, name, arch).code, name)
    return f"// {name} for {arch}\n{annotated(code)}"


def require_tvm() -> None:
    """Raise UnsupportedSpec, saying what to install, where tvm is missing."""
    from importlib.util import find_spec

    if find_spec("tvm") is None:
        raise UnsupportedSpec(
            "kernels are made by apache-tvm, which is missing: pip install 'tvm-flash[compile]'"
        )


def _note(spec: AttentionSpec) -> str:
    """A line on top of what is printed of one sequence where a spec is of more."""
    if spec.sequences == "dense":
        return ""
    return (
        f"# Of one sequence, as for sequences=dense: how those that are {spec.sequences} lie is a "
        "matter of the\n# schedule (--stage scheduled).\n"
    )


def _definition(spec: AttentionSpec, direction: str) -> str:
    if direction == "append":  # its only order: of rows, each by itself
        from ..schedules.cpu.forms.append import append

        return append(spec).script()
    if direction == "linear":
        from ..definition.linear import plain_linear

        return plain_linear(spec).script()
    if direction == "softmax":
        raise UnsupportedSpec(
            "the softmax of rows has the recurrence of attention's and no other definition: "
            "--stage recurrence or scheduled"
        )
    if is_forward(direction):
        from ..definition.plain import plain_forward as plain
    else:
        from ..definition.plain_backward import plain_backward as plain
    return plain(_of_one_length(spec)).script()


def _recurrence(spec: AttentionSpec) -> str:
    """What is derived of the spec's own definition, as one would write it on paper."""
    if spec.computes == "linear":
        raise UnsupportedSpec("linear attention has no recurrence of rows: --stage definition")
    from ..definition.derive import derive, derive_gradient
    from ..definition.derive.paper import describe
    from ..definition.plain import plain_forward

    one = _of_one_length(spec)
    recurrence = derive(plain_forward(one, statistics=one.saved_statistics))
    return describe(recurrence, derive_gradient(recurrence))


def _of_one_length(spec: AttentionSpec) -> AttentionSpec:
    """What is computed of a sequence: where it lies is a matter of the schedule."""
    return replace(spec, sequences="dense", computes="attention")
