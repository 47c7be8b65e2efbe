"""What a block of a definition says that it reads and writes."""

from __future__ import annotations


def along(buffers, *place) -> list:
    """The region of each buffer at ``place``, whole along the axes that follow."""
    return [
        buffer[(*place, *(slice(0, extent) for extent in buffer.shape[len(place) :]))]
        for buffer in buffers
    ]


def whole(buffers) -> list:
    """The whole region of each buffer, once."""
    kept = []
    for buffer in buffers:
        if not any(buffer.same_as(known) for known in kept):
            kept.append(buffer)
    return along(kept)
