"""What a kernel of warp groups does while its products run, read from machine code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .flow import steady_round
from .listing import Instruction


@dataclass(frozen=True)
class Overlap:
    """A steady round of a main loop. products: HGMMA in a row before the first exponential of a
    tile; exponentials: of the round; beside: those of them that are issued while the last products
    are not waited for.
    """

    products: int
    exponentials: int
    beside: int


def overlap(code: Sequence[Instruction]) -> Overlap:
    """What overlaps in ``code``; ValueError without a loop of HGMMA that ends with a wait."""
    executed = steady_round(code)
    products = [n for n, at in enumerate(executed) if at.starts("HGMMA")]
    waits = [n for n, at in enumerate(executed) if at.opcode.startswith("WARPGROUP.DEPBAR")]
    if not products or not waits or waits[-1] < products[-1]:
        raise ValueError("no main loop of HGMMA whose last products are waited for")
    exponentials = [n for n, at in enumerate(executed) if at.opcode.startswith("MUFU.EX2")]
    first = exponentials[0] if exponentials else len(executed)
    beside = sum(products[-1] < n < waits[-1] for n in exponentials)
    return Overlap(sum(n < first for n in products), len(exponentials), beside)
