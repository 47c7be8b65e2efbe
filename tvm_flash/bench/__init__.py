"""Speed and memory of our kernels beside torch's SDPA and naive attention.

``Problem`` says what is measured, ``measure`` yields its rows, ``Report`` collects them.
"""

from .contenders import CONTENDERS, Contender, Problem, contenders_for
from .host import Host, describe, sentence
from .report import (
    MEMORY_SEQLENS,
    MemoryRow,
    Report,
    Row,
    measure,
    measure_memory,
    memory_problems,
)
from .timing import Patience, Timing, interleaved

__all__ = [
    "CONTENDERS",
    "MEMORY_SEQLENS",
    "Contender",
    "Host",
    "MemoryRow",
    "Patience",
    "Problem",
    "Report",
    "Row",
    "Timing",
    "contenders_for",
    "describe",
    "interleaved",
    "measure",
    "measure_memory",
    "memory_problems",
    "sentence",
]
