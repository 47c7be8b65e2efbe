"""A recurrence written down: starts, repairs, finish, merge, proofs, the backward's formulas."""

from __future__ import annotations

from .formula import fill, named, number, write
from .gradient import Gradient
from .recurrence import Recurrence
from .states import State

_COMBINED = {"sum": "{0} + {1}", "max": "max({0}, {1})", "min": "min({0}, {1})"}


def describe(recurrence: Recurrence, gradient: Gradient | None = None) -> str:
    """The recurrence as lines of text; with ``gradient``, what the backward recomputes too."""
    sections = {
        "start": [f"{s.name} = {write(s.start)}" for s in recurrence.states],
        "each key": _step(recurrence),
        "finish": _finish(recurrence),
        "merge of parts": [_merged(s) for s in recurrence.states],
        "proven": _proven(recurrence),
    }
    if gradient is not None:
        sections["backward"] = _backward(gradient)
    return "\n".join(
        line for title, lines in sections.items() for line in (f"{title}:", *_indented(lines))
    )


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _step(recurrence: Recurrence) -> list[str]:
    """What a key does: maxima first, then the weight by the new ones, then the sums, repaired."""
    moving = [s for s in recurrence.states if s.op != "sum"]
    sums = [s for s in recurrence.states if s.op == "sum"]
    new = {s.name: named(f"{s.name}_new") for s in moving}
    lines = [f"{s.name}_new = {_COMBINED[s.op].format(s.name, write(s.term))}" for s in moving]
    lines.append(f"p = {write(fill(recurrence.weight, new))}")
    old = {f"{s.name}_old": named(s.name) for s in recurrence.states}
    for s in sums:
        kept = write(fill(s.repaired, old))
        lines.append(f"{s.name} = {_COMBINED[s.op].format(kept, write(fill(s.term, new)))}")
    return lines


def _finish(recurrence: Recurrence) -> list[str]:
    product, inverse = recurrence.product.name, recurrence.inverse
    out = product if inverse is None else f"{product} * ({write(inverse)})"
    others = [f"{name} = {write(e)}" for name, e in recurrence.statistics.items()]
    return [f"out = {out}", *others]


def _merged(s: State) -> str:
    """``s`` of all keys from that of parts; the start counts once."""
    names = {f"{s.name}_old": named(f"{s.name}_part")}
    for name in s.reads:
        names |= {f"{name}_old": named(f"{name}_part"), f"{name}_new": named(name)}
    share = f"{s.op} over parts of {write(fill(s.repaired, names))}"
    if s.starts_with_nothing:
        return f"{s.name} = {share}"
    combined = _COMBINED[s.op].format(write(s.start), share)
    return f"{s.name} = {combined}; a part starts with {write(number(s.nothing))}"


def _proven(recurrence: Recurrence) -> list[str]:
    lines = ["a hidden key adds nothing: tiles of hidden keys are skipped"]
    for s in recurrence.rows:
        if s.op != "sum" and s.name in recurrence.exact:
            lines.append(f"{s.name} must be exact: {recurrence.exact[s.name]}")
        elif s.op != "sum":
            lines.append(f"{s.name} may lag behind: no result depends on it")
    return lines


def _backward(gradient: Gradient) -> list[str]:
    weight = gradient.weight if gradient.lowered is None else gradient.weight_low
    row = [] if gradient.row is None else [f"row = {write(gradient.row)}"]
    total = f"delta = rowsum({write(gradient.delta_term)}) + {write(gradient.delta_start)}"
    delta = [total] if gradient.reads_delta else []
    return [*row, f"p = {write(weight)}", *delta, f"dx = {write(gradient.derivative)}"]
