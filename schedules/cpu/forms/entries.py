"""Which entry, head and rows a task of a CPU form takes: by division, or by a search of spans."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....definition.arithmetic import TIR, Sequences
from ....definition.signature import Signature
from ....problem.work import Work
from .equal_entries import Places, tiles_of


def places_of(sig: Signature) -> Places:
    """Places of the tasks of a call of ``sig``."""
    return (SearchedPlaces if sig.spans else Places)(sig)


class SearchedPlaces(Places):
    """Places where entries differ: found by a search among the slots of their tiles.

    The first row is followed by the span of the entry: first query, past the last one, first key,
    past the last one.
    """

    share_blocks = True
    size = 7

    def sequences(self, place) -> Sequences:
        return self._sequences.holding((place[3], place[4], place[5], place[6]))

    def some(self, condition, count):
        return tirx.Select(condition, count, 0)

    def row_tiles(self, rows):
        return self._sequences.query_slots(rows).count

    def row_work(self, tiles) -> Work:
        return Work({"slot": tiles, "head": self._sig.heads}, arithmetic=TIR)

    def find_row_tile(self):
        search, look_up = entry_search(self._sig.batch), self.look_up()

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

    def find_row(self):
        """An inline function (place, number): entry and row of a row of q, whatever the head."""
        search, look_up, starts = (
            entry_search(self._sig.batch),
            self.look_up(),
            self._sequences.starts,
        )

        @T.inline
        def find(place, number):
            search(place, starts, number)
            look_up(place)
            place[2] = number - place[3]

        return find

    def find_packed_row(self):
        sig, starts = self._sig, self._sequences.starts
        search, look_up = entry_search(sig.batch), self.look_up()
        packed = sig.group * sig.batch_rows

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


def entry_search(entries):
    """An inline function (place, begin, value): stores the last of ``entries`` that begins at
    ``value`` or before."""

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
