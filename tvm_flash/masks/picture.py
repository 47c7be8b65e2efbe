"""Pictures of mask_mods: which keys (columns) each query (row) sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..errors import TvmFlashError

# A square of pairs: none visible, some, all.
_SHADES = (" ", "░", "█")
_INK = "#0072B2"


def visible_pairs(
    mask_mod: Callable, seqlen_q: int, seqlen_k: int | None = None, *, b: int = 0, h: int = 0
) -> torch.Tensor:
    """``mask_mod`` of entry ``b`` and head ``h`` as bool (seqlen_q, seqlen_k), on the CPU.

    For short sequences: attention itself never makes this array. seqlen_k None: seqlen_q.
    """
    rows = torch.arange(seqlen_q)[:, None]
    keys = torch.arange(seqlen_q if seqlen_k is None else seqlen_k)
    seen = mask_mod(torch.tensor(b), torch.tensor(h), rows, keys)
    return seen.expand(len(rows), len(keys))


def in_characters(seen: torch.Tensor, width: int = 40) -> str:
    """Visible pairs as text, two characters a square of pairs: "██" all of it, "░░" some.

    width: squares a line, of one pair each where there are not more keys.
    """
    side = max(-(-max(seen.shape) // width), 1)
    lines = []
    for rows in seen.split(side):
        squares = [bool(x.any()) + bool(x.all()) for x in rows.split(side, dim=1)]
        lines.append("".join(_SHADES[shade] * 2 for shade in squares).rstrip())
    return "\n".join(lines)


def save(pictures: Mapping[str, torch.Tensor], path: Path | str, columns: int = 4) -> None:
    """Write visible pairs, by what is said above each, to ``path`` (its suffix is the format).

    Raises TvmFlashError without matplotlib.
    """
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise TvmFlashError(
            "a picture needs matplotlib, which is missing: pip install 'tvm-flash[plot]'"
        ) from error
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, seen) in zip(places, pictures.items(), strict=False):
        axes.imshow(
            seen, cmap=ListedColormap(["white", _INK]), vmin=0, vmax=1, interpolation="nearest"
        )
        axes.set_title(f"{title}\n{seen.float().mean():.0%} visible", fontsize=9)
        axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for axes in places[len(pictures) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)
