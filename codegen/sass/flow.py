"""Where a kernel spends its time: its main loop, and the way through it that most rounds take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .listing import Instruction

# Products on tensor cores: of a warp (HMMA), of a warp group (HGMMA, sm_90), of a block (UTCHMMA,
# sm_100).
PRODUCTS = ("HMMA", "IMMA", "DMMA", "HGMMA", "UTCHMMA")
# From device memory to shared memory or back, and sums into device memory.
_COPIES = ("LDGSTS", "UBLKCP", "UTMALDG", "RED", "REDG", "ATOMG")
# What every round does too; a branch around these only is not about masks.
_MOVES = ("LDSM", "LDS", "STS", "LDG", "STG", "BAR")


@dataclass(frozen=True)
class Loop:
    """A loop by its back edge: indices of its first instruction, of the jump back, and of all.

    products: how many of them multiply matrices.
    """

    head: int
    tail: int
    body: frozenset[int]
    products: int


def successors(code: Sequence[Instruction], index: int) -> tuple[int, ...]:
    """Indices of the instructions that may come after ``index``, the next one first.

    A call is taken to return; ``BRA.DIV``, for warps whose lanes have parted, to go on.
    """
    at, after = code[index], index + 1
    rest = (after,) if after < len(code) else ()
    if at.starts("EXIT", "RET"):
        return rest if at.predicate else ()
    if not at.starts("BRA", "JMP", "BRX") or at.opcode.startswith("BRA.DIV") or at.never:
        return rest
    if at.target is None:
        return ()
    # "@P0 BRA L" and "BRA UP0, L" depend on something, "BRA L" does not.
    conditional = at.predicate or not at.operands.startswith("`")
    return (*rest, at.target) if conditional else (at.target,)


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """Every natural loop, in the order of the jumps back: to what every way there passes."""
    before = _predecessors(code)
    found = []
    for tail, at in enumerate(code):
        head = at.target
        if head is None or head > tail or head not in successors(code, tail):
            continue
        # Code may lie out of line, so that the body is what leads to the jump back, wherever it is.
        body = _leading(before, tail, head)
        if 0 not in body or head == 0:
            products = sum(code[index].starts(*PRODUCTS) for index in body)
            found.append(Loop(head, tail, body, products))
    return found


def main_loop(code: Sequence[Instruction]) -> Loop | None:
    """The innermost of the loops with the most matrix products; None without such a loop."""
    with_products = [loop for loop in loops(code) if loop.products]
    most = max((loop.products for loop in with_products), default=0)
    fullest = [loop for loop in with_products if loop.products == most]
    return min(fullest, key=lambda loop: len(loop.body), default=None)


def steady_round(code: Sequence[Instruction]) -> list[Instruction]:
    """A steady round of the main loop; nothing without one. Raises as ``steady_path``."""
    loop = main_loop(code)
    return [] if loop is None else [code[index] for index in steady_path(code, loop)]


def steady_path(code: Sequence[Instruction], loop: Loop) -> list[int]:
    """Indices of the instructions of one round of ``loop``, as most rounds execute them.

    A kernel does some things in few rounds only: it masks a tile that the diagonal cuts, rescales
    the output when a maximum has grown, asks for no further tile in the last. So of all ways from
    the head to the jump back it is the one that multiplies most, then the one that copies most,
    then moves most, then the shortest. Inner loops are run through once. Raises ValueError where no
    way leads back.
    """
    best: dict[int, tuple[int, int, int, int]] = {loop.tail: (0, 0, 0, 0)}
    onward: dict[int, int] = {}
    for index in _ordered(code, loop):
        ways = [n for n in successors(code, index) if n in best and index != loop.tail]
        if ways:
            onward[index] = max(ways, key=lambda n: best[n])
            own = _worth(code[index])
            there = best[onward[index]]
            best[index] = tuple(a + b for a, b in zip(own, there, strict=True))
    if loop.head not in best:
        raise ValueError(f"no way through the loop at {code[loop.head].address:#x}")
    path = [loop.head]
    while path[-1] != loop.tail:
        path.append(onward[path[-1]])
    return path


def _worth(at: Instruction) -> tuple[int, int, int, int]:
    return at.starts(*PRODUCTS), at.starts(*_COPIES), at.starts(*_MOVES), -1


def _predecessors(code: Sequence[Instruction]) -> dict[int, list[int]]:
    before: dict[int, list[int]] = {}
    for index in range(len(code)):
        for after in successors(code, index):
            before.setdefault(after, []).append(index)
    return before


def _leading(before: Mapping[int, Sequence[int]], tail: int, head: int) -> frozenset[int]:
    """What leads to ``tail`` without passing ``head``, both included."""
    body, waiting = {head, tail}, [tail]
    while waiting:
        for index in before.get(waiting.pop(), ()):
            if index not in body:
                body.add(index)
                waiting.append(index)
    return frozenset(body)


def _ordered(code: Sequence[Instruction], loop: Loop) -> list[int]:
    """The loop's instructions, each after all that may follow it in the same round."""
    done: list[int] = []
    seen = {loop.head}
    stack = [(loop.head, iter(successors(code, loop.head)))]
    while stack:
        index, after = stack[-1]
        step = next((n for n in after if n in loop.body and n not in seen), None)
        if step is None:
            done.append(index)
            stack.pop()
        else:
            seen.add(step)
            stack.append((step, iter(successors(code, step))))
    return done
