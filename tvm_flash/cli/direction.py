"""Which of the kernels of a spec a command is about."""

from __future__ import annotations

from enum import Enum

from ..artifact.manifest import DIRECTIONS

Direction = Enum("Direction", {name: name for name in DIRECTIONS}, type=str)
LISTED = " | ".join(DIRECTIONS)
