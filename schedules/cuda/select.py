"""The door to CUDA schedules: (spec, direction, architectures) -> programs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...artifact.library import DIRECTIONS, symbol_name
from ...errors import UnsupportedSpec
from ...problem.arguments import arguments
from ...problem.lengths import DEFAULT_BUCKET
from ...problem.spec import AttentionSpec
from ..records import best_config
from .arch import CudaArch
from .backward import key_gradient_launch
from .backward_config import BackwardConfig
from .backward_dq import ordered_query_gradient_launch
from .defaults import backward_configs, forward_configs, ordered_configs
from .forward import ForwardConfig, forward_launch
from .program import CudaProgram, Launch
from .row_kernels import delta_launch, query_gradient_launch

Config = ForwardConfig | BackwardConfig

# float32 is multiplied in three parts, whose fragments do not all fit beyond this head_dim.
_FLOAT32_FITS = 128


def cuda_programs(
    spec: AttentionSpec,
    direction: str,
    archs: Sequence[CudaArch],
    config: Mapping[str, Any] | None = None,
    choice: int = 0,
) -> list[tuple[tuple[CudaArch, ...], CudaProgram]]:
    """Programs of ``spec``, each with the architectures that it serves.

    config: the fields of a config, for all architectures; None takes what was measured for each
    (``measured_config``), else the default. choice: not the best of these but one further down,
    where the best spilled; the last where there are not so many. Raises UnsupportedSpec with every
    reason.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"{direction=} must be one of {sorted(DIRECTIONS)}")
    groups: dict[str, tuple[list[CudaArch], tuple, dict[str, str]]] = {}
    for arch in archs:
        configs, source = _configs(spec, direction, arch, config, choice)
        key = json.dumps([*(c.to_json() for c in configs), arch.asynchronous_copy])
        served, _, sources = groups.setdefault(key, ([], configs, {}))
        served.append(arch)
        sources[arch.name] = source
    return [
        (
            tuple(served),
            replace(_program(spec, direction, configs, served[0], key), sources=sources),
        )
        for key, (served, configs, sources) in groups.items()
    ]


def measured_config(
    spec: AttentionSpec,
    direction: str,
    arch: CudaArch,
    bucket: str = DEFAULT_BUCKET,
    folders: Sequence[Path] | None = None,
) -> tuple[Config | None, str]:
    """(config, source) of the record of ``arch`` that serves, see records.best_config; else None.

    A kernel is for all lengths, so it is built with the numbers for ``bucket``.
    """

    def reasons(config: Mapping[str, Any], exact: bool) -> list[str]:
        return as_config(config, direction).reasons(spec, arch)

    found = best_config(spec, direction, arch.name, bucket, reasons, folders)
    config = None if found.config is None else as_config(found.config, direction)
    return config, found.source


def as_config(config: Mapping[str, Any], direction: str) -> Config:
    """The config with these fields.

    Raises ValueError for another schedule, and for a knob that does not exist or is out of its
    limits.
    """
    kind: type[Config] = ForwardConfig if direction == "forward" else BackwardConfig
    own = kind().to_json()["schedule"]
    if (named := config.get("schedule", own)) != own:
        raise ValueError(f"schedule={named!r} must be {own!r}")
    return kind.from_json(config)


def _configs(spec, direction: str, arch: CudaArch, config, choice: int) -> tuple[tuple, str]:
    """The configs of a program's kernels and where the first comes from."""

    def pick(configs):
        return configs[min(choice, len(configs) - 1)]

    forward = direction == "forward"
    if config is not None:
        chosen, source = as_config(config, direction), "given"
        if unfit := chosen.reasons(spec, arch):
            raise UnsupportedSpec([f"{arch.name}: {reason}" for reason in unfit])
    else:
        defaults = (forward_configs if forward else backward_configs)(spec, arch)
        candidates = [(default, "default") for default in defaults]
        measured, place = measured_config(spec, direction, arch)
        if measured is not None:
            others = [entry for entry in candidates if entry[0] != measured]
            candidates = [(measured, place), *others]
        chosen, source = pick(candidates)
    if direction == "backward_deterministic":
        return (chosen, pick(ordered_configs(spec, arch))), source
    return (chosen,), source


def _program(
    spec: AttentionSpec, direction: str, configs: tuple, arch: CudaArch, key: str
) -> CudaProgram:
    public = symbol_name(spec, direction)
    # Variants of one function stand side by side in a library.
    symbol = f"{public}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if direction == "forward":
        (config,) = configs
        launches = [forward_launch(spec, config, arch, symbol)]
        meta = {"block_q": config.block_q, "block_k": config.block_k}
    else:
        launches, meta = _backward(spec, configs, arch, symbol)
    if spec.dtype == "float32" and max(spec.head_dim, spec.head_dim_v) > _FLOAT32_FITS:
        launches = [replace(launch, may_spill=True) for launch in launches]
    parameters = tuple(argument.name for argument in arguments(spec, direction))
    shown = {
        **configs[0].to_json(),
        **({"ordered_dq": configs[1].to_json()} if configs[1:] else {}),
    }
    return CudaProgram(public, parameters, tuple(launches), shown, meta)


def _backward(
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str
) -> tuple[list[Launch], dict[str, int]]:
    """delta of the rows; dK and dV by key tile; dQ out of their sums, or by itself in order."""
    config, *ordered = configs
    launches = [
        delta_launch(spec, f"{symbol}_delta"),
        key_gradient_launch(spec, config, arch, f"{symbol}_dkdv", with_dq=not ordered),
    ]
    meta = {"block_q": config.block_q, "block_k": config.block_k}
    if ordered:
        name = f"{symbol}_dq"
        launches.append(ordered_query_gradient_launch(spec, ordered[0], arch, name))
    else:
        depth = config.depth(spec.head_dim)
        launches.append(query_gradient_launch(spec, f"{symbol}_dq", config.block_q, depth))
        meta["head_dim_pad"] = depth
    return launches, meta
