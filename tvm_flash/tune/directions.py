"""Directions whose kernels are searched, and why others' are not."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UnsupportedSpec

DIRECTIONS = ("forward", "backward")
_REASONS = {
    "forward_split": "no call with few queries is timed on GPUs; on CPUs tune forward, for decode",
    "backward_deterministic": "its second kernel has no space of its own: tune backward",
    "append": "it has no numbers, rows are moved one by one",
}


def check_directions(directions: Sequence[str]) -> None:
    """UnsupportedSpec with the reasons of all that are not searched."""
    known = ", ".join(DIRECTIONS)
    if reasons := [
        f"{direction!r} is not searched: {_REASONS.get(direction, f'it must be of {known}')}"
        for direction in directions
        if direction not in DIRECTIONS
    ]:
        raise UnsupportedSpec(reasons)
