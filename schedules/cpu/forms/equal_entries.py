"""Which entry, head and rows a task of a CPU form takes, where entries are equal: by division."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....definition.arithmetic import TIR, Sequences, sequences_of
from ....definition.signature import Signature
from ....problem.work import Work
from .tasks import tile_work


class Places:
    """Places of tasks in a buffer (size,) int64, where entries are equal: found by division.

    The numbers are the entry, the head and the first row.
    Through memory: TVM puts a let's value into every use. A quotient is then divided again in each
    row, and its simplifier's time explodes with nested bounds.
    """

    # Whether rows of a block that lie past the end of an entry are those of another.
    share_blocks = False
    size = 3

    def __init__(self, sig: Signature):
        self._sig, self._sequences = sig, sequences_of(sig)

    def sequences(self, place) -> Sequences:
        """The sequences at ``place``, whose entry's span they take from there."""
        return self._sequences

    def some(self, condition, count):
        """``count``, or 0 where a task may have no rows and ``condition`` does not hold."""
        return count

    def row_tiles(self, rows):
        """How many tiles of ``rows`` rows each entry has; all of them, where entries differ."""
        return tiles_of(self._sig.seqlen_q, rows)

    def row_work(self, tiles) -> Work:
        """A task for each of ``row_tiles`` of each entry and head."""
        return tile_work(self._sig.batch, self._sig.heads, tiles, TIR)

    def find_row_tile(self):
        """An inline function (place, task, work, rows): where a task of ``row_work`` lies.

        The last rows of an entry first. A slot without a tile gets rows past the last one.
        """

        @T.inline
        def find(place, task, work, rows):
            share = T.meta_var(work.place(task))
            place[0] = share["entry"]
            place[1] = share["head"]
            place[2] = share["tile"] * rows

        return find

    @property
    def packed_rows(self):
        """Rows of all entries, with the heads of a key/value head packed: every row of q."""
        return self._sig.batch_rows * self._sig.heads

    def find_packed_row(self):
        """An inline function (place, number): entry, query head and row of a packed row."""
        sig = self._sig

        @T.inline
        def find(place, number):
            own = T.meta_var(sig.group * sig.seqlen_q)
            heads = T.meta_var(T.truncmod(T.truncdiv(number, own), sig.kv_heads))
            place[0] = T.truncdiv(number, own * sig.kv_heads)
            place[1] = heads * sig.group + T.truncmod(number, sig.group)
            place[2] = T.truncdiv(T.truncmod(number, own), sig.group)

        return find

    def in_place(self, sequences: Sequences, entry, block: int, blocks):
        """How many of ``blocks`` blocks of keys are read where they lie: all or none."""
        is_run = sequences.is_run(entry, block)
        return blocks if is_run is True else tirx.Select(is_run, blocks, 0)

    def look_up(self):
        """An inline function (place): stores the span of the entry there, where entries differ."""

        @T.inline
        def store(place):
            pass

        return store


def tiles_of(length, rows):
    """How many tiles of ``rows`` rows cover ``length``, expressions."""
    return tirx.truncdiv(length + (rows - 1), rows)
