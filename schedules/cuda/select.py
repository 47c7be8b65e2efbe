"""Programs for GPUs: (spec, direction, architectures) -> a program for each group of those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...artifact.library import symbol_name
from ...errors import UnsupportedSpec
from ...problem.arguments import WRITTEN, arguments, names, values_before
from ...problem.spec import AttentionSpec
from ..config_fields import Config
from ..table import Candidate
from .arch import CudaArch
from .kernels import ORDERED_DIRECTIONS, SCHEDULES, ordered_dq_configs
from .program import CudaProgram

as_config = SCHEDULES.as_config

# float32 is multiplied in three parts, whose fragments do not all fit beyond this head_dim.
_FLOAT32_FITS = 128


@dataclass(frozen=True)
class _Group:
    """Architectures that one program serves: the configs of its kernels, which they share.

    sources: by architecture, where the first config comes from.
    """

    configs: tuple[Config, ...]
    archs: list[CudaArch] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


def cuda_programs(
    spec: AttentionSpec,
    direction: str,
    archs: Sequence[CudaArch],
    config: Mapping[str, Any] | None = None,
    choice: int = 0,
    folders: Sequence[Path] | None = None,
) -> list[tuple[tuple[CudaArch, ...], CudaProgram]]:
    """Programs of ``spec``, each with the architectures that it serves.

    config: the fields of a config, for all architectures; None takes what was measured for each
    (``ScheduleTable.measured``), else the default. choice: not the best of these but one further
    down, where the best spilled; the last where there are not so many. folders: of records, the
    package's own unless given. Raises UnsupportedSpec with every reason.
    """
    groups: dict[str, _Group] = {}
    for arch in archs:
        candidates = _candidates(spec, direction, arch, config, folders)
        configs, source = _configs(spec, direction, arch, candidates, choice)
        key = json.dumps([*(c.to_json() for c in configs), arch.asynchronous_copy])
        group = groups.setdefault(key, _Group(configs))
        group.archs.append(arch)
        group.sources[arch.name] = source
    return [
        (tuple(group.archs), _program(spec, direction, group, key)) for key, group in groups.items()
    ]


def _configs(
    spec: AttentionSpec,
    direction: str,
    arch: CudaArch,
    candidates: Sequence[Candidate],
    choice: int,
) -> tuple[tuple[Config, ...], str]:
    """The configs of the program's kernels, and where the first comes from."""
    best = candidates[min(choice, len(candidates) - 1)]
    if direction not in ORDERED_DIRECTIONS:
        return (best.config,), best.source
    ordered = ordered_dq_configs(spec, arch)
    return (best.config, ordered[min(choice, len(ordered) - 1)]), best.source


def _candidates(
    spec: AttentionSpec,
    direction: str,
    arch: CudaArch,
    given: Mapping[str, Any] | None,
    folders: Sequence[Path] | None,
) -> list[Candidate]:
    """The first config's candidates: the given one alone, else the measured and the defaults."""
    if given is None:
        return SCHEDULES.candidates(spec, direction, arch, folders=folders)
    config = as_config(given, direction)
    if reasons := config.reasons(spec, arch):
        raise UnsupportedSpec([f"{arch.name}: {reason}" for reason in reasons])
    return [Candidate(config, "given")]


def _program(spec: AttentionSpec, direction: str, group: _Group, key: str) -> CudaProgram:
    configs, arch = group.configs, group.archs[0]
    public = symbol_name(spec, direction)
    # Variants of one function stand side by side in a library.
    symbol = f"{public}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    launches, meta = SCHEDULES.of(configs[0]).function(spec, configs, arch, symbol)
    if spec.element.operand == "tf32" and max(spec.head_dim, spec.head_dim_v) > _FLOAT32_FITS:
        launches = [replace(launch, may_spill=True) for launch in launches]
    found = arguments(spec, direction)
    parameters = tuple(argument.name for argument in found)
    shown = {
        **configs[0].to_json(),
        **({"ordered_dq": configs[1].to_json()} if configs[1:] else {}),
    }
    places = names(found, *WRITTEN), values_before(found)
    return CudaProgram(public, parameters, tuple(launches), shown, meta, group.sources, *places)
