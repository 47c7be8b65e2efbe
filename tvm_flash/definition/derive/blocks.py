"""The named blocks of a plain definition, each as a formula over scalars of one row and one key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm.ir import TensorLoad

from .formula import Expr, children, constant, is_choice, is_named, named, rewrite, write

# What every plain definition has; the others are its statistics and what is made of them.
REQUIRED = ("scores", "score_mod", "mask", "exp", "pv", "out")

_REDUCE = 2  # IterVar::kCommReduce
_OPERATIONS = {tirx.Add: "sum", tirx.Max: "max", tirx.Min: "min"}


class Rejected(ValueError):
    """A definition without a streaming form: the block, what is left over, and why that matters."""

    def __init__(self, block: str, reason: str):
        super().__init__(f"block {block}: {reason}")
        self.block = block


@dataclass(frozen=True)
class Block:
    """One block: ``value`` of each element, or the term of the reduction ``op`` over keys.

    Named values: ``x`` the masked score, ``p`` the weight of a key, ``v`` its value, ``z`` what
    dropout multiplies that by, in the block "drop", whatever it is; a reduction's
    result and an input that is read at no key (a number of the row) by the names of their buffers,
    another block's result by the name of the block. Casts between float types are left out.
    """

    name: str
    result: str
    value: Expr
    op: str | None = None
    start: Expr | None = None


@dataclass(frozen=True)
class Blocks:
    """A definition as read: the blocks after the mask in order; a hidden key's score; all names."""

    after_mask: tuple[Block, ...]
    hidden: float
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Block:
        return next(block for block in self.after_mask if block.name == name)

    def __contains__(self, name: str) -> bool:
        return any(block.name == name for block in self.after_mask)


def read(func: tirx.PrimFunc) -> Blocks:
    """The blocks of ``func``; Rejected where one is missing or is not of the expected form."""
    found = {block.name_hint: block for block in _leaves(func.body)}
    for name in REQUIRED:
        if name not in found:
            raise Rejected(name, "is missing: a definition names each of its steps")
    names = tuple(found)
    hidden = _hidden_score(found["mask"], found["score_mod"])
    reader = _Reader(found)
    after = [reader.block(found[name]) for name in names[names.index("mask") + 1 :]]
    return Blocks(tuple(after), hidden, names)


def _leaves(stmt) -> Iterator[s_tir.SBlock]:
    """Blocks that store something, in program order."""
    if isinstance(stmt, tirx.SeqStmt):
        for part in stmt.seq:
            yield from _leaves(part)
    elif isinstance(stmt, tirx.For):
        yield from _leaves(stmt.body)
    elif isinstance(stmt.block.body, tirx.BufferStore):
        yield stmt.block
    else:
        yield from _leaves(stmt.block.body)


def _hidden_score(mask: s_tir.SBlock, score: s_tir.SBlock) -> float:
    """What the mask writes for a key that is not seen; keys past the last one are among these."""
    store = mask.body
    value, key = store.value, store.indices[-1]
    if not is_choice(value) or (hidden := constant(children(value)[2])) is None:
        raise Rejected("mask", f"{write(value)} is not a score or else a constant")
    condition, seen, _ = children(value)
    own = isinstance(seen, TensorLoad) and seen.source.same_as(score.body.buffer)
    if not own or not all(a.same_as(b) for a, b in zip(seen.indices, store.indices, strict=True)):
        raise Rejected("mask", f"{write(seen)} is not the score of its own row and key")
    extent = next(axis.dom.extent for axis in mask.iter_vars if axis.var.same_as(key))
    if not any(_is_bound(part, key, extent) for part in _conjuncts(condition)):
        raise Rejected("mask", f"{write(condition)} holds for keys past the last one")
    return hidden


def _conjuncts(condition) -> list:
    if isinstance(condition, tirx.And):
        return [*_conjuncts(condition.a), *_conjuncts(condition.b)]
    return [condition]


def _is_bound(condition, key, extent) -> bool:
    bare = [e.value if isinstance(e, tirx.Cast) else e for e in children(condition)]
    return isinstance(condition, tirx.LT) and bare[0].same_as(key) and bare[1].same_as(extent)


class _Reader:
    """Blocks to formulas, in order: a block may read those before it, at its own row and key."""

    def __init__(self, found: dict[str, s_tir.SBlock]):
        self.score, self.weight = (found[name].body.buffer for name in ("mask", "exp"))
        self.factor = found["drop"].body.buffer if "drop" in found else None
        self.written = [block.body.buffer for block in found.values()]
        self.made: list[tuple[tirx.Buffer, str]] = []  # what blocks after the mask wrote, its name

    def block(self, block: s_tir.SBlock) -> Block:
        store, value = block.body, block.body.value
        name, buffer = block.name_hint, store.buffer
        reduced = [axis.var for axis in block.iter_vars if axis.iter_type == _REDUCE]
        self.row, self.keys = None, reduced
        if not reduced:
            if buffer.same_as(self.weight):
                self.keys = [store.indices[-1]]
            formula = self._formula(name, value)
            self.made.append((buffer, name))
            return Block(name, name, formula)
        op, term = _reduction(name, buffer, value)
        if len(reduced) != 1 or block.init is None:
            raise Rejected(name, f"reduces over {len(reduced)} axes, or has no start")
        self.row = list(store.indices[: len(self.score.shape) - 1])
        formula = self._formula(name, term)
        start = self._formula(name, block.init.value)
        self.made.append((buffer, buffer.name))
        return Block(name, buffer.name, formula, op, start)

    def _formula(self, name: str, value) -> Expr:
        def replace(node):
            if isinstance(node, tirx.Cast) and "float" in str(node.ty.dtype):  # bfloat16 too
                return self._formula(name, node.value)
            return self._scalar(name, node) if isinstance(node, TensorLoad) else None

        return rewrite(value, replace)

    def _scalar(self, name: str, load: TensorLoad) -> Expr:
        """The named value that ``load`` is."""
        at_key = any(index.same_as(key) for index in load.indices for key in self.keys)
        of_keys = {"x": self.score, "p": self.weight, "z": self.factor}
        for letter, buffer in of_keys.items():
            if load.source.same_as(buffer):
                self._same_row(name, load, load.indices[:-1])
                if not any(load.indices[-1].same_as(key) for key in self.keys):
                    raise Rejected(name, f"reads {write(load)}: not its own key")
                return named(letter)
        for buffer, result in self.made:
            if load.source.same_as(buffer):
                self._same_row(name, load, load.indices[: len(self.score.shape) - 1])
                return named(result)
        if any(load.source.same_as(buffer) for buffer in self.written):
            raise Rejected(name, f"reads {write(load)}, which is no masked score or known state")
        return named("v" if at_key else load.source.name)

    def _same_row(self, name: str, load: TensorLoad, indices) -> None:
        """All that is read is of one row: the one that is written, in its order of axes."""
        indices = list(indices)
        if self.row is None and all(map(is_named, indices)):
            self.row = indices
        same = self.row is not None and len(self.row) == len(indices)
        if not same or not all(a.same_as(b) for a, b in zip(self.row, indices, strict=True)):
            raise Rejected(name, f"reads {write(load)}: not its own row")


def _reduction(name: str, buffer: tirx.Buffer, value) -> tuple[str, Expr]:
    """(operation, term) of ``buffer`` = operation(``buffer``, term)."""
    op = _OPERATIONS.get(type(value))
    if op is not None:
        for own, term in ((value.a, value.b), (value.b, value.a)):
            if isinstance(own, TensorLoad) and own.source.same_as(buffer):
                return op, term
    raise Rejected(name, f"{write(value)} is no sum, max or min of its own value and a term")
