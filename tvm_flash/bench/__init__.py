"""Speed and memory of our kernels beside others: torch's SDPA, naive attention, GPU libraries.

``SUITES`` says what is measured, ``Runner`` measures it into a ``Document``; ``measure`` times one
``Problem``.
"""

from __future__ import annotations

import importlib

# Found at first use: most need torch, which `tvm-flash doctor` may be asked about.
_EXPORTS = {
    "cells": ("Built", "Cell", "Section", "Suite", "Target"),
    "contender": ("Contender",),
    "contenders": ("CONTENDERS", "EVERYBODY", "contenders_for"),
    "document": ("FORMAT", "Document", "read"),
    "floors": ("Floors", "measure_floors"),
    "host": ("Host", "describe", "sentence"),
    "memory": ("extra_bytes",),
    "problems": ("MEMORY_SEQLENS", "Problem", "memory_problems"),
    "rows": ("Row", "measure", "timed"),
    "run": ("Runner", "described_host", "kernels_digest", "pending"),
    "suite": ("SUITES",),
    "timing": ("Patience", "Timing", "interleaved"),
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [*_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
