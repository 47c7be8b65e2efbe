"""FlashAttention generated from one TensorIR definition, forward and backward, for every target."""

from __future__ import annotations

import importlib
from pathlib import Path

__version__ = "0.1.0"

# In a checkout schedules/, codegen/ and tuning_logs/ lie beside this folder, not in it.
if not Path(__path__[0], "schedules").is_dir():
    __path__.append(str(Path(__path__[0]).parent))

_EXPORTS = {
    "AttentionSpec": "problem.spec",
    "attention": "frontend.functional",
    "capture": "frontend.captured",
    "block_mask": "problem.block_maker",
    "BlockMask": "problem.block_mask",
    "top_blocks": "frontend.top_blocks",
    "scaled_dot_product_attention": "frontend.sdpa",
    "flex_attention": "frontend.flex",
    "sdpa": "integrations.sdpa",
    "flash_attn_func": "frontend.flash_attn",
    "flash_attn_qkvpacked_func": "frontend.flash_attn",
    "flash_attn_kvpacked_func": "frontend.flash_attn",
    "flash_attn_varlen_func": "frontend.flash_varlen",
    "flash_attn_varlen_qkvpacked_func": "frontend.flash_varlen",
    "flash_attn_varlen_kvpacked_func": "frontend.flash_varlen",
    "flash_attn_with_kvcache": "frontend.kvcache",
    "varlen_attention": "frontend.flash_varlen",
    "apply_rotary": "frontend.rotary",
    "apply_rotary_emb": "flash_attn_interface",
    "merge_states": "frontend.merging",
    "linear_attention": "frontend.linear_attention",
    "softmax": "frontend.row_softmax",
    "logsumexp": "frontend.row_softmax",
    "PagedCache": "frontend.paged_cache",
    "load": "runtime.loader",
    "build": "codegen.build",
    "TvmFlashError": "errors",
    "UnsupportedSpec": "errors",
    "ArtifactError": "errors",
    "BuildError": "errors",
    "CacheFull": "errors",
}
# Modules that users know as a whole.
_MODULES = ("bert_padding", "distributed", "feature_maps", "flash_attn_interface", "masks")

# All but `build`: a star import imports every name here, and TVM is no part of running.
__all__ = [*(x for x in _EXPORTS if x != "build"), *_MODULES, "__version__"]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tvm_flash' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_MODULES})
