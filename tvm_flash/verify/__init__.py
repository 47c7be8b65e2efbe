"""Proof without a GPU: CUDA kernels run in the PTX interpreter, alone or from their library."""

from __future__ import annotations

import importlib

# Found at first use: each needs torch, and a module of this package may not.
_EXPORTS = {"verify_library": "library", "verify_spec": "compiled", "Verification": "verdict"}

__all__ = [*_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
