"""Speed, memory and accuracy of our kernels beside torch's SDPA and naive attention.

``Problem`` says what is measured, ``measure`` yields its rows, ``Report`` collects them.
"""

from .accuracy import Accuracy, accuracies
from .contenders import CONTENDERS, Contender, contenders_for
from .host import Host, describe, sentence
from .problems import MEMORY_SEQLENS, Problem, listed_problems, memory_problems
from .report import MemoryRow, Report, Row, measure, measure_memory
from .timing import Patience, Timing, interleaved

__all__ = [
    "CONTENDERS",
    "MEMORY_SEQLENS",
    "Accuracy",
    "Contender",
    "Host",
    "MemoryRow",
    "Patience",
    "Problem",
    "Report",
    "Row",
    "Timing",
    "accuracies",
    "contenders_for",
    "describe",
    "interleaved",
    "listed_problems",
    "measure",
    "measure_memory",
    "memory_problems",
    "sentence",
]
