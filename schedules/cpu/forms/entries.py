"""Which entry, head and rows a task of a CPU form takes: by division, or by a search of spans."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....definition.arithmetic import TIR, Sequences, sequences_of
from ....definition.signature import Signature
from ....problem.work import Work
from .tasks import chunk_work, tile_work

# Numbers of a place: entry, head, first row; then, where entries differ, the span of the entry;
# then, where keys are split, the part.
_PLACE, _SPAN = 3, 4


class Places:
    """Places of tasks in a buffer (size,) int64.

    Through memory: TVM puts a let's value into every use. A quotient is then divided again in each
    row, and its simplifier's time explodes with nested bounds.
    """

    def __init__(self, sig: Signature, with_part: bool = False):
        self._sig, self._sequences, self._differ = sig, sequences_of(sig), bool(sig.spans)
        self.size = _PLACE + _SPAN * self._differ + with_part

    def sequences(self, place, first_key=None) -> Sequences:
        """The sequences at ``place``, whose entry's span they take from there.

        first_key: what holds ``first_key(place)``.
        """
        if not self._differ:
            return self._sequences
        queries, past_key = (place[3], place[4]), place[6]
        first_key = self.first_key(place) if first_key is None else first_key
        return self._sequences.holding((*queries, first_key, past_key))

    def first_key(self, place):
        """Where the keys of the entry begin, of ``key``'s positions."""
        return place[5] if self._differ else tirx.const(0, "int64")

    @property
    def share_blocks(self) -> bool:
        """Whether rows of a block that lie past the end of an entry are those of another."""
        return self._differ

    def some(self, condition, count):
        """``count``, or 0 where entries differ and ``condition`` does not hold."""
        return tirx.Select(condition, count, 0) if self._differ else count

    def row_tiles(self, rows):
        """How many tiles of ``rows`` rows an entry has; all of them, where entries differ."""
        if self._differ:
            return self._sequences.query_slots(rows).count
        return _tiles(self._sig.seqlen_q, rows)

    def row_work(self, tiles) -> Work:
        """A task for each of ``row_tiles`` of each entry and head."""
        sig = self._sig
        if self._differ:
            return Work({"head": sig.heads, "slot": tiles}, arithmetic=TIR)
        return tile_work(sig.batch, sig.heads, tiles, TIR)

    def find_row_tile(self):
        """An inline function (place, task, work, rows): where a task of ``row_work`` lies.

        The last rows of an entry first. A slot without a tile gets rows past the last one.
        """
        if not self._differ:

            @T.inline
            def find(place, task, work, rows):
                share = T.meta_var(work.place(task))
                place[0] = share["entry"]
                place[1] = share["head"]
                place[2] = share["tile"] * rows

            return find

        search, look_up = self._search(), self.look_up()

        @T.inline
        def find_slot(place, task, work, rows):
            share = T.meta_var(work.place(task))
            slots = T.meta_var(self._sequences.query_slots(rows))
            search(place, slots.begin, share["slot"])
            look_up(place)
            tiles = T.meta_var(_tiles(place[4] - place[3], rows))
            number = T.meta_var(share["slot"] - slots.begin(place[0]))
            place[2] = T.Select(number < tiles, tiles - 1 - number, tiles) * rows
            place[1] = share["head"]

        return find_slot

    @property
    def packed_rows(self):
        """Rows of all entries, with the heads of a key/value head packed: every row of q."""
        return self._sig.batch_rows * self._sig.heads

    def packed_row(self, place):
        """Number of the packed row at ``place``, whose head is a key/value head, among all."""
        sig = self._sig
        if self._differ:
            return place[1] * (sig.group * sig.batch_rows) + sig.group * place[3] + place[2]
        return (place[0] * sig.kv_heads + place[1]) * (sig.group * sig.seqlen_q) + place[2]

    def key_chunks(self, keys: int):
        """Chunks of so many keys that the longest entry has."""
        longest = self._sequences.longest_k if self._differ else self._sig.seqlen_k
        return _tiles(longest, keys)

    def chunks(self, rows: int, keys: int) -> Work:
        """A task for each chunk of ``keys`` keys and tile of ``rows`` packed rows."""
        sig, parts = self._sig, self.key_chunks(keys)
        if self._differ:
            slots = self._sequences.query_slots(rows, each=sig.group)
            axes = {"part": parts, "slot": slots.count, "head": sig.kv_heads}
            return Work(axes, arithmetic=TIR)
        tiles = _tiles(sig.group * sig.seqlen_q, rows)
        return chunk_work(sig.batch, parts, tiles, sig.kv_heads, TIR)

    def find_chunk(self):
        """An inline function (place, task, work, rows): where a task of ``chunks`` lies."""
        if not self._differ:

            @T.inline
            def find(place, task, work, rows):
                share = T.meta_var(work.place(task))
                place[0] = share["entry"]
                place[1] = share["head"]
                place[2] = share["tile"] * rows
                place[3] = share["part"]

            return find

        search, look_up = self._search(), self.look_up()

        @T.inline
        def find_slot(place, task, work, rows):
            share = T.meta_var(work.place(task))
            slots = T.meta_var(self._sequences.query_slots(rows, each=self._sig.group))
            search(place, slots.begin, share["slot"])
            look_up(place)
            place[1] = share["head"]
            place[2] = (share["slot"] - slots.begin(place[0])) * rows
            place[7] = share["part"]

        return find_slot

    def find_packed_row(self):
        """An inline function (place, number): entry, query head and row of a packed row."""
        sig, differ = self._sig, self._differ
        search, look_up = self._search(), self.look_up()
        starts, packed = self._sequences.starts if differ else None, sig.group * sig.batch_rows

        @T.inline
        def find(place, number):
            if differ:
                flat = T.meta_var(T.truncdiv(T.truncmod(number, packed), sig.group))
                search(place, starts, flat)
                look_up(place)
                kv_head = T.meta_var(T.truncdiv(number, packed))
                place[2] = flat - place[3]
                place[1] = kv_head * sig.group + T.truncmod(number, sig.group)
            else:
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
        differ, sequences = self._differ, self._sequences

        @T.inline
        def store(place):
            if differ:
                span = T.meta_var(sequences.span(place[0]))
                place[3] = span[0]
                place[4] = span[1]
                place[5] = span[2]
                place[6] = span[3]

        return store

    def _search(self):
        """An inline function (place, begin, value): stores the last entry that begins at ``value``
        or before."""
        entries = self._sig.batch

        @T.inline
        def search(place, begin, value):
            place[0] = T.int64(0)
            place[1] = entries
            while place[1] - place[0] > T.int64(1):
                place[2] = T.truncdiv(place[0] + place[1], T.int64(2))
                if begin(place[2]) <= value:
                    place[0] = place[2]
                else:
                    place[1] = place[2]

        return search


def _tiles(length, rows):
    return tirx.truncdiv(length + (rows - 1), rows)
