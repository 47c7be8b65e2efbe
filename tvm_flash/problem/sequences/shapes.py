"""What a kind of sequences makes of the shapes of a call's tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ..argument import Argument, Padded


@dataclass(frozen=True)
class Shapes:
    """Names of the sizes that the tensors of a kind begin with; head and columns follow.

    queries: of q, out and their gradients. keys: of k, v and theirs. statistic: of lse and delta,
    heads included. sums: of a copy of dq_acc, heads included. own: what a call of this kind is
    given besides, inputs.
    """

    queries: tuple[str, ...]
    keys: tuple[str, ...]
    statistic: tuple[str, ...]
    sums: tuple[str | Padded, ...]
    own: tuple[Argument, ...] = ()

    def rows(self, of: str) -> str:
        """The name of the size that counts rows of queries ("q") or keys ("k")."""
        return (self.queries if of == "q" else self.keys)[-1]


def key_of_run(run: tuple, head, row, column) -> tuple:
    """Index of an element in k and v, ``row`` keys behind the first of ``run``, in which it lies.

    run: what ``run(entry, first)`` of a kind gives.
    """
    *outer, first = run
    return *outer, first + row, head, column


def entry_numbers(name: str) -> Argument:
    """An argument (B,) int32: a number for each entry."""
    return Argument(name, ("B",), "input", "int32", dense=True)
