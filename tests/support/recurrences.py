"""A derived recurrence interpreted by numpy, in float32: streamed over tiles, split and merged."""

from __future__ import annotations

import numpy as np

from tvm_flash.definition.derive.formula import evaluate, fill

SLACK = 8 * np.log(2)
_COMBINE = {
    "sum": (np.add, np.sum),
    "max": (np.maximum, np.max),
    "min": (np.minimum, np.min),
}


class Stream:
    """States of rows that have seen some keys of x (rows, keys) and v (keys, columns).

    row: numbers of each row by name. whole: whether it starts as the definition does, or with
    nothing, as a part that is merged later. lags: whether maxima stay while they grow by less than
    SLACK, where that is proven to be harmless.
    """

    def __init__(self, recurrence, rows: int, columns: int, row: dict, *, whole=True, lags=False):
        self.recurrence, self.lags = recurrence, lags
        self.row = {name: np.asarray(value, "float32") for name, value in row.items()}
        self.state: dict = {}
        for s in recurrence.states:
            shape = (rows, columns) if s is recurrence.product else (rows,)
            start = s.nothing
            if whole:
                start = evaluate(s.start, {**self.row, **self.state})
            self.state[s.name] = np.broadcast_to(np.asarray(start, "float32"), shape).copy()

    def visit(self, x: np.ndarray, v: np.ndarray) -> None:
        """The next tile of keys."""
        before, new = dict(self.state), dict(self.state)
        keys = {"x": x.astype("float32")}
        for s in self.recurrence.rows:
            if s.op != "sum":
                combine, over = _COMBINE[s.op]
                term = self._broadcast(s.term, keys, new)
                moved = combine(before[s.name], over(term, axis=1))
                if self.lags and s.name not in self.recurrence.exact:
                    moved = np.where(abs(moved - before[s.name]) > SLACK, moved, before[s.name])
                new[s.name] = moved.astype("float32")
        keys["p"] = self._broadcast(self.recurrence.weight, keys, new)
        for s in self.recurrence.states:
            if s.op == "sum":
                kept = self._repaired(s, before, new)
                new[s.name] = kept + self._summed(s, keys, v, new)
        self.state = new

    def merge(self, parts: list[Stream]) -> None:
        """Parts of the keys, each started with nothing, join."""
        total = dict(self.state)
        for s in self.recurrence.states:
            if s.op != "sum":
                combine, _ = _COMBINE[s.op]
                for part in parts:
                    total[s.name] = combine(total[s.name], part.state[s.name])
        for s in self.recurrence.states:
            if s.op == "sum":
                total[s.name] = self._repaired(s, self.state, total)
                for part in parts:
                    total[s.name] = total[s.name] + self._repaired(s, part.state, total)
        self.state = total

    def finish(self):
        """(out, statistics by name)."""
        at = {**self.row, **self.state}
        out = self.state[self.recurrence.product.name]
        if self.recurrence.inverse is not None:
            out = out * evaluate(self.recurrence.inverse, at)[:, None]
        for name, formula in self.recurrence.statistics.items():
            at[name] = evaluate(formula, at)
        return out, {name: at[name] for name in self.recurrence.statistics}

    def _broadcast(self, formula, keys, states):
        rows = {**self.row, **states}
        wide = {n: a[:, None] if np.ndim(a) == 1 else a for n, a in rows.items()}
        return evaluate(formula, {**wide, **keys})

    def _summed(self, s, keys, v, states):
        if s is self.recurrence.product:
            return keys["p"] @ v.astype("float32")
        return self._broadcast(s.term, keys, states).sum(1)

    def _repaired(self, s, before, after):
        at = {f"{n}_old": a for n, a in before.items()} | {f"{n}_new": a for n, a in after.items()}
        if s is self.recurrence.product:
            at = {n: a[:, None] if a.ndim == 1 else a for n, a in at.items()}
        return evaluate(fill(s.repaired, {}), at)


def streamed(recurrence, x, v, row, *, tile=16, lags=False, order=None):
    """(out, statistics) of one pass over tiles of keys, in any ``order`` of the tiles."""
    stream = Stream(recurrence, len(x), v.shape[1], row, lags=lags)
    for n in order if order is not None else range(-(-x.shape[1] // tile)):
        keys = slice(n * tile, (n + 1) * tile)
        stream.visit(x[:, keys], v[keys])
    return stream.finish()


def split(recurrence, x, v, row, *, parts=3, lags=False):
    """(out, statistics) of parts of the keys, each streamed by itself, merged at the end."""
    streams = []
    for keys in np.array_split(np.arange(x.shape[1]), parts):
        part = Stream(recurrence, len(x), v.shape[1], row, whole=False, lags=lags)
        for n in range(0, len(keys), 16):
            part.visit(x[:, keys[n : n + 16]], v[keys[n : n + 16]])
        streams.append(part)
    whole = Stream(recurrence, len(x), v.shape[1], row)
    whole.merge(streams)
    return whole.finish()
