"""What a block of a definition says that it reads and writes."""

from __future__ import annotations


def whole(buffers) -> list:
    """The whole region of each buffer, once."""
    kept = []
    for buffer in buffers:
        if not any(buffer.same_as(known) for known in kept):
            kept.append(buffer)
    return [buffer[tuple(slice(0, extent) for extent in buffer.shape)] for buffer in kept]
