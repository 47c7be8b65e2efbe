"""Speed and memory of our kernels beside torch's SDPA and naive attention.

``SUITES`` says what is measured, ``Runner`` measures it into a ``Document``; ``measure`` times one
``Problem``.
"""

from .contenders import CONTENDERS, Contender, contenders_for
from .document import FORMAT, Document, read
from .floors import Floors, measure_floors
from .host import Host, describe, sentence
from .memory import extra_bytes
from .problems import MEMORY_SEQLENS, Problem, memory_problems
from .rows import Row, measure, timed
from .run import Runner, described_host, kernels_digest, pending
from .suite import SUITES, Cell, Section, Suite, Target
from .timing import Patience, Timing, interleaved

__all__ = [
    "CONTENDERS",
    "FORMAT",
    "MEMORY_SEQLENS",
    "SUITES",
    "Cell",
    "Contender",
    "Document",
    "Floors",
    "Host",
    "Patience",
    "Problem",
    "Row",
    "Runner",
    "Section",
    "Suite",
    "Target",
    "Timing",
    "contenders_for",
    "describe",
    "described_host",
    "extra_bytes",
    "interleaved",
    "kernels_digest",
    "measure",
    "measure_floors",
    "memory_problems",
    "pending",
    "read",
    "sentence",
    "timed",
]
