"""What fields of records and tables hold: predicates for tvm_flash.json_fields."""

from __future__ import annotations

import math
import re
from typing import Any

_NAME = re.compile(r"\w[\w.+-]*")
_MOST = 2**31 - 1
SIZES = ("batch", "num_heads", "num_kv_heads", "seqlen_q", "seqlen_k", "threads")


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def is_number_or_null(value: Any) -> bool:
    return value is None or is_number(value)


def are_times(value: Any) -> bool:
    # Quotients and sums of times stay finite.
    return type(value) is list and all(is_number(x) and 1e-15 < x < 1e15 for x in value)


def are_sizes(value: Any) -> bool:
    return all(type(value[name]) is int and 0 < value[name] <= _MOST for name in SIZES)


def is_text(value: Any) -> bool:
    return type(value) is str and value != ""


def is_name(value: Any) -> bool:
    """Whether ``value`` can name a folder, and leads nowhere else."""
    return is_text(value) and _NAME.fullmatch(value) is not None


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_value(value: Any) -> bool:
    """Whether a knob can hold it."""
    return type(value) in (int, str, bool)
