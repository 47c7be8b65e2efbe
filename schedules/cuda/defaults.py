"""Default configs per architecture class, head dimension and direction."""

from __future__ import annotations

from ...definition.pipeline import is_linear
from ...spec import AttentionSpec
from .arch import CudaArch
from .backward import BackwardConfig
from .forward import ForwardConfig

# head_dim up to -> config; the first whose reasons are empty serves. "large": 163 KiB of shared
# memory a block and more (sm_80, 90, 100); "small": 99 KiB (sm_86, 89, 120) and sm_75's 64.
_F, _B = ForwardConfig, BackwardConfig
FORWARD = {
    64: [_F(128, 64, q_in_registers=True), _F(128, 64), _F(64, 64)],
    96: [_F(128, 64), _F(128, 32), _F(64, 64)],
    128: [_F(128, 64, num_warps=8), _F(64, 64), _F(64, 32)],
    192: [_F(128, 64, num_warps=8), _F(64, 32), _F(64, 16)],
    256: [_F(128, 64, num_warps=8), _F(64, 32), _F(64, 16), _F(32, 16, num_warps=2)],
}
