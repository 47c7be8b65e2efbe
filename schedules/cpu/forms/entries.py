"""Which entry, head and rows a task of a CPU form takes: by division, or by a search of spans."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....definition.arithmetic import TIR, Sequences
from ....definition.signature import Signature
from ....problem.work import Work
from .equal_entries import Places, tiles_of


def places_of(sig: Signature, with_part: bool = False) -> Places:
    """Places of the tasks of a call of ``sig``; with_part: of tasks among which keys are split."""
    return (SearchedPlaces if sig.spans else Places)(sig, with_part)


class SearchedPlaces(Places):
    """Places where entries differ: found by a search among the slots of their tiles.

    The first row is followed by the span of the entry: first query, past the last one, first key,
    past the last one.
    """

    share_blocks = True
    _own = 7

    def sequences(self, place, first_key=None) -> Sequences:
        first_key = self.first_key(place) if first_key is None else first_key
        return self._sequences.holding((place[3], place[4], first_key, place[6]))

    def first_key(self, place):
        return place[5]

    def some(self, condition, count):
        return tirx.Select(condition, count, 0)

    def row_tiles(self, rows):
        return self._sequences.query_slots(rows).count

    def row_work(self, tiles) -> Work:
        return Work({"head": self._sig.heads, "slot": tiles}, arithmetic=TIR)

    def find_row_tile(self):
        search, look_up = self._search(), self.look_up()

        @T.inline
        def find(place, task, work, rows):
            share = T.meta_var(work.place(task))
            slots = T.meta_var(self._sequences.query_slots(rows))
            search(place, slots.begin, share["slot"])
            look_up(place)
            tiles = T.meta_var(tiles_of(place[4] - place[3], rows))
            number = T.meta_var(share["slot"] - slots.begin(place[0]))
            place[2] = T.Select(number < tiles, tiles - 1 - number, tiles) * rows
            place[1] = share["head"]

        return find

    def packed_row(self, place):
        sig = self._sig
        return place[1] * (sig.group * sig.batch_rows) + sig.group * place[3] + place[2]

    def key_chunks(self, keys: int):
        return tiles_of(self._sequences.longest_k, keys)

    def chunks(self, rows: int, keys: int) -> Work:
        slots = self._sequences.query_slots(rows, each=self._sig.group).count
        axes = {"part": self.key_chunks(keys), "slot": slots, "head": self._sig.kv_heads}
        return Work(axes, arithmetic=TIR)

    def find_chunk(self):
        search, look_up, part = self._search(), self.look_up(), self.size - 1

        @T.inline
        def find(place, task, work, rows):
            share = T.meta_var(work.place(task))
            slots = T.meta_var(self._sequences.query_slots(rows, each=self._sig.group))
            search(place, slots.begin, share["slot"])
            look_up(place)
            place[1] = share["head"]
            place[2] = (share["slot"] - slots.begin(place[0])) * rows
            place[part] = share["part"]

        return find

    def find_row(self):
        """An inline function (place, number): entry and row of a row of q, whatever the head."""
        search, look_up, starts = self._search(), self.look_up(), self._sequences.starts

        @T.inline
        def find(place, number):
            search(place, starts, number)
            look_up(place)
            place[2] = number - place[3]

        return find

    def find_packed_row(self):
        sig, starts = self._sig, self._sequences.starts
        search, look_up, packed = self._search(), self.look_up(), sig.group * sig.batch_rows

        @T.inline
        def find(place, number):
            flat = T.meta_var(T.truncdiv(T.truncmod(number, packed), sig.group))
            search(place, starts, flat)
            look_up(place)
            kv_head = T.meta_var(T.truncdiv(number, packed))
            place[2] = flat - place[3]
            place[1] = kv_head * sig.group + T.truncmod(number, sig.group)

        return find

    def look_up(self):
        sequences = self._sequences

        @T.inline
        def store(place):
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
