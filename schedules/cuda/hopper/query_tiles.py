"""A block for each tile of queries, as the forward and the ordered dQ for sm_90a have them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from ..builder import CudaKernel
from ..listed import visited_keys
from ..program import Launch
from ..tiling import QueryTile
from .forward_config import HopperForwardConfig
from .ring import Landing, Ring, initialised
from .roles import Roles


class QueryTileBlocks(ABC):
    """A kernel being written: its tile, what it visits, who does what.

    ``allocate`` makes ``queries``, where a tile's rows of queries land, and the rings of its keys.
    """

    kernel: CudaKernel
    config: HopperForwardConfig
    queries: Landing
    keys: Ring
    values: Ring

    def launch(self) -> Launch:
        """The kernel, written and checked."""
        with self.kernel as kernel:
            self.tile = QueryTile(kernel, self.config.block_q)
            self.visits = visited_keys(kernel, self.tile.key_visits(self.config.block_k))
            self.roles = Roles(kernel, self.config.consumers)
            self.allocate()
            initialised(kernel, self.queries, self.keys, self.values)
            self.roles.run(self.produce, self.consume)
        self.check()
        return replace(kernel.launch(), only=90)

    @abstractmethod
    def allocate(self) -> None:
        """Tiles and barriers in shared memory."""

    @abstractmethod
    def produce(self) -> None:
        """What the producer's thread does."""

    @abstractmethod
    def consume(self) -> None:
        """What a consumer does."""

    @abstractmethod
    def check(self) -> None:
        """Raise AssertionError unless the kernel used all that its direction is made of."""
