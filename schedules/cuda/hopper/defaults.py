"""Default configs of kernels for sm_90a: by head dimensions, the best first."""

from __future__ import annotations

from ....problem.spec import AttentionSpec
from ..arch import CudaArch
from .backward_config import HopperBackwardConfig as Backward
from .backward_dq import hopper_ordered_reasons
from .forward_config import HopperForwardConfig as Forward

# Rows: head_dim and head_dim_v up to. Tiles as FlashAttention-3 takes them where they fit without
# a spill; a build takes the next one where a kernel's spills are refused.
FORWARD = {
    (64, 64): (Forward(192, 128), Forward(128, 128), Forward(128, 64)),
    (96, 96): (Forward(192, 96), Forward(128, 128), Forward(128, 64)),
    (128, 128): (Forward(128, 176), Forward(128, 128), Forward(128, 96), Forward(128, 64)),
    (192, 128): (Forward(128, 128), Forward(128, 96), Forward(128, 64)),
    (256, 192): (Forward(128, 96), Forward(128, 80), Forward(128, 64)),
    (256, 256): (Forward(128, 80), Forward(128, 64), Forward(128, 48)),
}
# Keys of a tile, at most, where causal masks or windows cut tiles: of wider ones the diagonal
# wastes more than the loop gains.
_WIDEST_AT_AN_END = 128
# Bulk reductions first: no time says yet which way of dQ is better.
BACKWARD = (Backward(64), Backward(64, sums="red"), Backward(128), Backward(128, sums="red"))
# dQ alone, in order; read as forward configs.
ORDERED = {
    64: (Forward(128, 128), Forward(128, 64)),
    128: (Forward(128, 112), Forward(128, 96), Forward(128, 64)),
    256: (Forward(128, 32), Forward(128, 16)),
}


def hopper_forward_configs(spec: AttentionSpec, arch: CudaArch, bucket: str = "") -> list[Forward]:
    """Configs that serve ``spec`` on ``arch``, the best first; none where others must.

    A kernel serves all lengths: ``bucket`` changes nothing.
    """
    widths = (spec.head_dim, spec.head_dim_v)
    rows = [row for row in FORWARD if all(w <= most for w, most in zip(widths, row, strict=True))]
    if not rows:
        return []
    fitting = [config for config in FORWARD[rows[0]] if not config.reasons(spec, arch)]
    return sorted(fitting, key=lambda c: spec.is_bounded and c.block_k > _WIDEST_AT_AN_END)


def hopper_backward_configs(
    spec: AttentionSpec, arch: CudaArch, bucket: str = ""
) -> list[Backward]:
    """The same for the backward kernel of key tiles."""
    return [config for config in BACKWARD if not config.reasons(spec, arch)]


def hopper_ordered_configs(spec: AttentionSpec, arch: CudaArch) -> list[Forward]:
    """The same for the ordered dQ."""
    width = max(spec.head_dim, spec.head_dim_v)
    rows = [row for row in ORDERED if width <= row]
    if not rows:
        return []
    configs = ORDERED[min(rows)]
    return [config for config in configs if not hopper_ordered_reasons(spec, config, arch)]
