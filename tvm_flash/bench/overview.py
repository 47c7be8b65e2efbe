"""A GPU's run at a glance: our rates, and how many times faster we are than each of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..problem.dtype import DTYPES
from .contender import OURS
from .table import Mark, Table, numbers, words
from .tables import section_tables

# Sections that are one table.
_JOINED = {"more lengths": "lengths"}
_SHORT = {
    "sdpa_cudnn": "cudnn", "sdpa_flash": "flash", "sdpa_efficient": "efficient",
    "sdpa_padded": "padded", "torch_varlen": "varlen", "triton_tma": "tma",
}  # fmt: skip


def overview_tables(cells: Sequence[dict], titles: dict[str, str]) -> Iterator[Table]:
    """One table for each section that has cells: of those that were timed, by ``peer_table``."""
    untimed = [cell for cell in cells if cell["kind"] != "time"]
    yield from section_tables(untimed, titles)
    for name, title in titles.items():
        joined = {name, *(other for other, first in _JOINED.items() if first == name)}
        found = [c for c in cells if c["section"] in joined and "gflops" in c]
        if found and name not in _JOINED:
            yield peer_table(f"{name}: {title}; other's time over ours", found)


def peer_table(title: str, cells: Sequence[dict]) -> Table:
    """A line for each timed cell: our rate, and everybody's time over ours; above 1 we are faster.

    Rates are operations a second; where few queries read many keys, bytes a second.
    """
    reads = all(cell["seqlen_q"] < cell["seqlen_k"] for cell in cells)
    names = list(dict.fromkeys(name for cell in cells for name in _others(cell)))
    columns = [
        *words("problem", ""),
        *numbers("GB/s" if reads else "TFLOP/s"),
        *numbers("floor", rank=1),
        *numbers(*(_SHORT.get(name, name) for name in names)),
    ]
    rows = [
        (_label(c), c["direction"], _rate(c, reads), _share(c), *(_ratio(c, n) for n in names))
        for c in sorted(cells, key=_order)
    ]
    return Table(title, tuple(columns), rows)


def _others(cell: dict) -> list[str]:
    return [*cell["ratio"], *cell["missing"]]


def _order(cell: dict) -> tuple:
    sizes = (cell["head_dim"], not cell["causal"], cell["seqlen_k"], -cell["batch"])
    return cell["direction"] == "backward", cell["dtype"] != "bfloat16", cell["dtype"], *sizes


def _label(cell: dict) -> str:
    """What tells a problem from others of its section."""
    few = cell["seqlen_q"] < cell["seqlen_k"]
    parts = [
        DTYPES[cell["dtype"]].written * (cell["dtype"] != "bfloat16"),
        f"D={cell['head_dim']}",
        "" if few else "causal" if cell["causal"] else "full",
        cell.get("lengths") or f"S={cell['seqlen_k']}",
        f"B={cell['batch']}" * (few and "lengths" not in cell),
        f"page={cell['page_size']}" if "page_size" in cell else "",
    ]
    return " ".join(filter(None, parts))


def _rate(cell: dict, reads: bool) -> str:
    if OURS not in cell["seconds"]:
        return "-"
    if reads:
        return f"{cell['least_bytes'] / cell['seconds'][OURS] / 1e9:.0f}"
    return f"{cell['gflops'][OURS] / 1e3:.1f}"


def _share(cell: dict) -> str:
    return f"{cell['of_floor']:.0%}" if "of_floor" in cell else "-"


def _ratio(cell: dict, name: str) -> str | Mark:
    ratio = cell["ratio"].get(name)
    if ratio is None:
        return "-"
    return Mark(f"{ratio:.2f}", "good" if ratio >= 1 else "bad")
