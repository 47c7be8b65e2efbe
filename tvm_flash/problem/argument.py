"""One argument of a kernel: its name, shape, dtype and what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# input: of the caller. saved: what the forward gave. output: written whole. workspace: of any
# content, or of zeros. updated: read and written in place. number: passed by value.
ROLES = ("input", "saved", "output", "workspace", "updated", "number")
WRITTEN = ("output", "workspace", "updated")


@dataclass(frozen=True)
class Padded:
    """The size ``size`` and as much more as the size ``block`` says; larger is allowed.

    of(size, block): its value, of ints or of a compiler's expressions. said(block): how it exceeds
    ``size``, for people.
    """

    size: str
    block: str

    def of(self, size, block):
        raise NotImplementedError

    def said(self, block: int) -> str:
        raise NotImplementedError


class Up(Padded):
    """``size`` rounded up to a multiple of ``block``."""

    def __str__(self) -> str:
        return f"Up({self.size}, {self.block})"

    def of(self, size, block):
        return (size + (block - 1)) // block * block

    def said(self, block: int) -> str:
        return f"rounded up to a multiple of {block}"


class Past(Padded):
    """``size`` and a whole ``block`` more."""

    def __str__(self) -> str:
        return f"{self.size} + {self.block}"

    def of(self, size, block):
        return size + block

    def said(self, block: int) -> str:
        return f"and {block} more"


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel.

    shape: its sizes, by name or as they always are; () for a number. dtype: "" where the table
    leaves it to the spec. dense: contiguous; all others have run-time strides, the last of which is
    1. zeroed: it must hold zeros. optional: operators may be called without it. like: the argument
    that it has the strides of where kernels can write these. limits: least and most that launchers
    accept. absent: what operators take for a number that the spec has not; None: every spec has it.
    is_table: a score function captured it.
    """

    name: str
    shape: tuple[str | int | Padded, ...]
    role: str
    dtype: str = ""
    dense: bool = False
    zeroed: bool = False
    optional: bool = False
    like: str = ""
    limits: tuple[float, float] | None = None
    absent: float | None = None
    is_table: bool = False

    @property
    def is_tensor(self) -> bool:
        return self.role != "number"

    @property
    def holds_values(self) -> bool:
        """Whether it is read before it is written: zeros to add to, rows beside those written."""
        return self.zeroed or self.role == "updated"

    @property
    def in_parts(self) -> bool:
        """Whether it is copies of a sum, which are to be added."""
        return self.shape[:1] == ("parts",)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest; ``dense`` and ``zeroed`` are in it where they are true."""
        fields = {"name": self.name, "dtype": self.dtype, "role": self.role}
        shape = {"shape": [str(size) for size in self.shape]} if self.is_tensor else {}
        flags = {name: True for name in ("dense", "zeroed") if getattr(self, name)}
        return {**fields, **shape, **flags}
