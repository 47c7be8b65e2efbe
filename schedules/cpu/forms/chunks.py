"""The tasks of the split forward: the chunks of keys that there are, whatever the lengths."""

from __future__ import annotations

from tvm.script import tirx as T

from ....definition.arithmetic import TIR, sequences_of
from ....definition.signature import Signature
from .entries import entry_search, places_of
from .equal_entries import tiles_of
from .tasks import chunk_work


class Chunks:
    """The chunks of ``keys`` keys of all entries, each once for every tile of ``rows`` packed rows.

    They are numbered entry by entry, so that a short one has few; in an entry those of a chunk go
    side by side. Every row leaves a result for each chunk of its entry, of which the heads of a
    chunk lie together. A table (entries + 1, 2) int64 of what comes before an entry: chunks of
    tiles, and chunks of rows.

    The place of a task is one of ``places`` (its head the first of the task's key/value heads)
    with the number of the chunk, last.
    """

    def __init__(self, sig: Signature, rows: int, keys: int):
        self._sig, self._rows, self.keys = sig, rows, keys
        self.places, self._sequences = places_of(sig), sequences_of(sig)
        self.size = self.places.size + 1
        self.table = (sig.batch + 1, 2)
        self.run_width = len(self._sequences.shapes.keys)

    def results(self, table):
        """How many results all entries leave, of a ``table`` that is filled."""
        return table[self._sig.batch, 1] * self._sig.heads

    def work(self, count, heads):
        """``count`` tasks, times the blocks of so many key/value ``heads``."""
        return chunk_work(count, tiles_of(self._sig.kv_heads, heads), TIR)

    def count(self):
        """An inline function (table): fills it."""

        @T.inline
        def fill(table):
            table[0, 0] = T.int64(0)
            table[0, 1] = T.int64(0)
            for entry in T.serial(self._sig.batch):
                lengths = T.meta_var(self._sequences.lengths(entry))
                longest = T.meta_var(T.min(lengths[1], self._sequences.longest_k))
                chunks = T.meta_var(tiles_of(longest, self.keys))
                tiles = T.meta_var(tiles_of(self._sig.group * lengths[0], self._rows))
                table[entry + 1, 0] = table[entry, 0] + chunks * tiles
                table[entry + 1, 1] = table[entry, 1] + chunks * lengths[0]

        return fill

    def find(self):
        """An inline function (place, task, table, work, heads): where a task of ``work`` lies."""
        search, look_up = entry_search(self._sig.batch), self.places.look_up()

        @T.inline
        def find(place, task, table, work, heads):
            share = T.meta_var(work.place(task))
            search(place, lambda entry: table[entry, 0], share["slot"])
            look_up(place)
            queries = T.meta_var(self.places.sequences(place).lengths(place[0])[0])
            tiles = T.meta_var(tiles_of(self._sig.group * queries, self._rows))
            own = T.meta_var(share["slot"] - table[place[0], 0])
            place[1] = share["head"] * heads
            place[2] = T.truncmod(own, tiles) * self._rows
            place[self.size - 1] = T.truncdiv(own, tiles)

        return find

    def of(self, table, entry, queries):
        """How many chunks an entry of so many ``queries`` has."""
        return T.truncdiv(table[entry + 1, 1] - table[entry, 1], T.max(queries, 1))

    def result(self, table, entry, queries, head, row, chunk):
        """Number of the result of a packed row and chunk, among those of all entries.

        queries: of the entry. head: the key/value head.
        """
        rows = (table[entry, 1] + chunk * queries) * self._sig.heads
        return rows + head * (self._sig.group * queries) + row
