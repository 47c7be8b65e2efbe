"""Configs, the numbers of schedules: what a field may hold, wherever a config comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, TypeVar

from ..json_fields import shown
from .line_fields import is_value

C = TypeVar("C", bound="Config")

_EDGE, _WIDTH = range(1, 4097), range(1, 513)
_FEW = range(1, 33)

# What any schedule can be asked for, by the name of the number: beyond these nothing was ever fast,
# and TVM, LLVM or ptxas would fail or never end. What fits a spec is for the configs' ``reasons``.
LIMITS: Mapping[str, range | tuple] = {
    **dict.fromkeys(("block_q", "block_k", "group", "step_k"), _EDGE),
    **dict.fromkeys(("lanes", "head_lanes", "columns"), _WIDTH),
    # A product of one row is none that its micro-kernel could be put in the place of.
    **dict.fromkeys(("rows_s", "rows_o", "key_rows"), range(2, 257)),
    **dict.fromkeys(("rows", "row_block"), range(1, 257)),
    "step": range(1, 65),
    "unroll": range(1, 17),
    "vector": (4, 8, 16),
    **dict.fromkeys(("num_warps", "column_groups", "dp_parts", "dq_parts"), _FEW),
    "chunk": range(1, 2**14 + 1),
    "tasks_per_thread": range(1, 257),
    "ahead": range(65),
    "heads": range(1, 65),
    "exp2_degree": range(1, 9),
    "stages": range(1, 9),
    "min_blocks": range(33),
    "unit": ("fma", "dot", "amx"),
    "sums": ("bulk", "red"),
    "q_in_registers": (False, True),
}


class Config:
    """Base of the dataclasses that hold a schedule's numbers.

    schedule: its name, which records and manifests keep beside the numbers.
    """

    schedule: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The numbers and the name of their schedule, as plain data."""
        return {"schedule": self.schedule, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls: type[C], config: Mapping[str, Any]) -> C:
        """The config of what ``to_json`` wrote, or of some fields; raises as ``config_from``."""
        return config_from(cls, config)


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """Which knobs of ``config`` hold what no schedule takes (empty: none): value and limit.

    A number that this release does not know may be any scalar.
    """
    return [
        f"{name}={shown(value, 40)} must be {_text(name)}"
        for name, value in config.items()
        if not _allowed(name, value)
    ]


def config_from(kind: type[C], config: Mapping[str, Any]) -> C:
    """The config of class ``kind`` with the fields of ``config``, the others being the defaults.

    Raises ValueError that names every knob which does not exist or is out of its limits.
    """
    given = {name: value for name, value in config.items() if name != "schedule"}
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = [
        f"{name!s:.60} is no knob: there are {', '.join(sorted(known))}"
        for name in given
        if name not in known
    ]
    if problems := unknown + config_problems(given):
        raise ValueError("; ".join(problems))
    return kind(**given)


def checked(config: C) -> C:
    """``config``, an instance of a config's class; ValueError as ``config_from`` raises it."""
    if problems := config_problems(asdict(config)):  # type: ignore[call-overload]
        raise ValueError("; ".join(problems))
    return config


def _allowed(name: str, value: Any) -> bool:
    limit = LIMITS.get(name)
    if limit is None:
        return is_value(value)
    # A bool is an int to Python, and 1.0 equals 1.
    return type(value) is type(limit[0]) and value in limit


def _text(name: str) -> str:
    limit = LIMITS.get(name)
    if isinstance(limit, range):
        return f"a whole number from {limit[0]} to {limit[-1]}"
    return "a number, text or true or false" if limit is None else f"one of {limit}"
