"""Default configs: by head_dim, the best first of those that an architecture can hold."""

from __future__ import annotations

from ...errors import UnsupportedSpec
from ...problem.spec import AttentionSpec
from .arch import SCHEDULERS, CudaArch
from .backward_config import BackwardConfig as Backward
from .backward_dq import ordered_reasons
from .forward import ForwardConfig as Forward
from .linear_config import LinearConfig as Linear
from .split_forward import SplitForwardConfig as Split

# Rows: head_dim up to. In a row the fastest first by the simulation of docs/analytical-models.md,
# then what needs less shared memory (sm_86, 89 and 120 have 99 KiB a block, sm_75 64) or fewer
# registers: a build takes the next one where a kernel's spills are refused, as those of long score
# functions are. min_blocks=1 with 4 warps in 4 column groups: left to itself ptxas keeps to the
# registers of three blocks, and spills.
FORWARD = {
    64: (
        Forward(128, 64, stages=2, q_in_registers=True),
        Forward(128, 64),
        Forward(64, 64),
        Forward(64, 32),
    ),
    128: (
        Forward(128, 64),
        Forward(128, 32, stages=2),
        Forward(128, 32),
        Forward(64, 64),
        Forward(64, 32),
    ),
    256: (
        Forward(128, 80, num_warps=8),
        Forward(64, 32),
        Forward(64, 16),
        Forward(32, 16, num_warps=2),
    ),
}
FORWARD_TF32 = {
    64: (Forward(64, 32),),
    128: (Forward(64, 32), Forward(64, 16)),
    256: (Forward(64, 16), Forward(32, 16, num_warps=2)),
}
# A tile of a group's rows is mostly empty where one query meets many keys: loads are what counts,
# two stages of them in two blocks. min_blocks=2: left to itself ptxas keeps to the registers of
# three, for which there is no shared memory, and spills.
SPLIT = {
    64: (Split(64, 64, min_blocks=2), Split(64, 32)),
    128: (
        Split(64, 64, min_blocks=2), Split(64, 32), Split(64, 64, stages=1),
        Split(64, 32, stages=1),
    ),
    256: (
        Split(64, 32), Split(64, 32, stages=1), Split(64, 16, stages=1),
        Split(32, 16, num_warps=2, stages=1),
    ),
}  # fmt: skip
SPLIT_TF32 = {
    64: (Split(64, 32), Split(64, 32, stages=1)),
    128: (Split(64, 32, stages=1), Split(64, 16, stages=1)),
    256: (Split(64, 16, stages=1), Split(32, 16, num_warps=2, stages=1)),
}
BACKWARD = {
    64: (
        Backward(32, 128, min_blocks=2),
        Backward(64, 128, num_warps=8, column_groups=2, stages=2),
        Backward(64, 64),
        Backward(32, 64),
    ),
    96: (
        Backward(64, 128, num_warps=8, column_groups=2),
        Backward(64, 128, num_warps=8),
        Backward(64, 64, num_warps=8, column_groups=2),
        Backward(32, 64),
    ),
    128: (
        Backward(64, 128, num_warps=8, column_groups=2, stages=2),
        Backward(64, 128, num_warps=8, column_groups=2),
        Backward(32, 128, num_warps=8, column_groups=2),
        Backward(64, 64, num_warps=8, column_groups=2),
        Backward(32, 64),
        Backward(64, 32, num_warps=8, column_groups=4),
    ),
    192: (
        Backward(64, 64, num_warps=8, column_groups=4),
        Backward(32, 64, num_warps=8, column_groups=2),
        Backward(64, 32, num_warps=8, column_groups=4),
        Backward(64, 16, num_warps=4, column_groups=4, min_blocks=1),
    ),
    256: (
        Backward(64, 64, num_warps=8, column_groups=4, stages=2),
        Backward(64, 64, num_warps=8, column_groups=4),
        Backward(64, 32, num_warps=8, column_groups=4),
        Backward(32, 32, column_groups=2),
        Backward(64, 16, num_warps=4, column_groups=4, min_blocks=1),
    ),
}
BACKWARD_TF32 = {
    64: (Backward(32, 64),),
    128: (
        Backward(32, 32, column_groups=2),
        Backward(32, 32, column_groups=2, dq_parts=2),
        Backward(32, 16, num_warps=2, column_groups=2),
        Backward(32, 16, num_warps=2, column_groups=2, dq_parts=2),
    ),
    256: (Backward(32, 16, num_warps=2, column_groups=2, dq_parts=2),),
}
# dQ alone, in order (deterministic=True); read as forward configs.
ORDERED = {
    64: (Forward(64, 64), Forward(64, 32)),
    128: (Forward(64, 32), Forward(64, 16)),
    256: (Forward(64, 16), Forward(32, 16, num_warps=2)),
}
ORDERED_TF32 = {
    128: (Forward(64, 16), Forward(32, 16, num_warps=2)),
    256: (Forward(32, 16, num_warps=2), Forward(16, 16, num_warps=1)),
}
# Half a chunk in two warps: what shared memory of 64 or 99 KiB holds.
_SHORT = Linear(chunk=32, columns=16, num_warps=2)
LINEAR = {
    128: (Linear(stages=2), Linear(), Linear(columns=32), Linear(columns=16), _SHORT),
    256: (Linear(columns=32), Linear(columns=16), _SHORT),
}
# A product in three parts takes twice the registers of fragments.
LINEAR_TF32 = {128: (Linear(columns=32), Linear(columns=16)), 256: (Linear(columns=16),)}


def forward_configs(spec: AttentionSpec, arch: CudaArch, bucket: str = "") -> list[Forward]:
    """Configs that serve ``spec`` on ``arch``, the best first. Raises UnsupportedSpec.

    A kernel serves all lengths: ``bucket`` changes nothing.
    """
    table = FORWARD_TF32 if spec.element.operand == "tf32" else FORWARD
    configs = _fitting(spec, arch, table, lambda config: config.reasons(spec, arch))
    # Two warps on a scheduler hide each other's waits: what leaves room for one alone comes later.
    return sorted(configs, key=lambda c: _resident_warps(c, spec, arch) < 2 * SCHEDULERS)


def split_configs(spec: AttentionSpec, arch: CudaArch, bucket: str = "") -> list[Split]:
    """The same for the forward by parts of the keys."""
    table = SPLIT_TF32 if spec.element.operand == "tf32" else SPLIT
    return _fitting(spec, arch, table, lambda config: config.reasons(spec, arch))


def linear_configs(spec: AttentionSpec, arch: CudaArch, bucket: str = "") -> list[Linear]:
    """The same for linear attention."""
    table = LINEAR_TF32 if spec.element.operand == "tf32" else LINEAR
    configs = _fitting(spec, arch, table, lambda config: config.reasons(spec, arch))
    if not arch.bf16:  # products of columns beside V's cost as much as its own: few blocks
        return configs
    return sorted(configs, key=lambda c: _resident_warps(c, spec, arch) < 2 * SCHEDULERS)


def _resident_warps(config: Forward | Linear, spec: AttentionSpec, arch: CudaArch) -> int:
    """Warps of the blocks whose shared memory an SM holds."""
    return arch.shared_bytes_per_sm // config.shared_bytes(spec) * config.num_warps


def backward_configs(spec: AttentionSpec, arch: CudaArch, bucket: str = "") -> list[Backward]:
    """The same for the backward kernel of key tiles."""
    table = BACKWARD_TF32 if spec.element.operand == "tf32" else BACKWARD
    return _fitting(spec, arch, table, lambda config: config.reasons(spec, arch))


def ordered_configs(spec: AttentionSpec, arch: CudaArch, bucket: str = "") -> list[Forward]:
    """The same for the ordered dQ."""
    table = ORDERED_TF32 if spec.element.operand == "tf32" else ORDERED
    return _fitting(spec, arch, table, lambda config: ordered_reasons(spec, config, arch))


def _fitting(spec: AttentionSpec, arch: CudaArch, table: dict, reasons_of) -> list:
    width = max(spec.head_dim, spec.head_dim_v)
    rows = [limit for limit in table if width <= limit]
    if not rows:
        limit = max(table)
        raise UnsupportedSpec(
            [f"{arch.name}: head_dim={spec.head_dim}, head_dim_v={spec.head_dim_v} exceed {limit}"]
        )
    judged = [(config, reasons_of(config)) for config in table[min(rows)]]
    fitting = [config for config, reasons in judged if not reasons]
    if not fitting:
        reasons = dict.fromkeys(text for _, reasons in judged for text in reasons)
        raise UnsupportedSpec([f"{arch.name}: {text}" for text in reasons])
    return fitting
