"""Mistakes made on purpose in a PTX kernel, to see whether its tests would notice them.

``mutants`` lists the kernel with one change each; ``evaluate`` runs one against problems, and says
what noticed it; ``survivors`` are those that nothing noticed. Which change makes which mistake:

    barrier        a bar.sync deleted                      (a forgotten __syncthreads)
    async          a wait, commit or arrive deleted, or a wait that lets one more group fly
    fence          a fence deleted; an mbarrier wait that does not wait
    fragment       two registers of an mma or wgmma A or B fragment exchanged
    convert        the two halves of a packed conversion exchanged
    bound          a limit one higher; < for <=, > for >=
    guard          the predicate of an instruction (not of a branch) deleted, or that of a copy's
                   size: bytes past the end are copied, not filled with zeros
    shuffle        the partner of a butterfly exchanged with the neighbouring distance
    atomic         an atomic addition that is a plain store
    transpose      ldmatrix without .trans
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tvm_flash.ptx_interpreter import parse
from tvm_flash.ptx_interpreter.errors import InterpreterError


@dataclass(frozen=True)
class Statement:
    """One instruction of a kernel: text[start:end], guard and semicolon included."""

    start: int
    end: int
    line: int
    text: str  # in one line, single spaces

    @property
    def guard(self) -> str:
        """ "@%p1 " or nothing."""
        match = re.match(r"@!?[%\w$]+ ", self.text)
        return match[0] if match else ""

    @property
    def opcode(self) -> str:
        """The dotted name."""
        return self.text[len(self.guard) :].partition(" ")[0].rstrip(";")

    @property
    def operands(self) -> str:
        """What follows the opcode, without the semicolon."""
        return self.text[len(self.guard) :].partition(" ")[2].rstrip(";")


@dataclass(frozen=True)
class Mutant:
    """The whole module with one change: ``statement`` (line ``line``) became ``becomes``.

    ``nth`` counts equal statements of the kernel from 0, so that kind, statement, becomes and nth
    name a mutant when line numbers have moved.
    """

    kind: str
    line: int
    statement: str
    becomes: str  # "" when deleted
    nth: int
    text: str = field(repr=False, compare=False)

    @property
    def description(self) -> str:
        """One line for people."""
        return f"line {self.line}, {self.kind}: {self.statement} -> {self.becomes or 'deleted'}"

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names it in survivors.json."""
        return self.kind, self.statement, self.becomes, self.nth

    @property
    def shape(self) -> tuple[str, str, str]:
        """What is left of the key when a compiler has given out registers anew."""
        return shape(self.key)


Problem = Callable[[object], None]


def shape(key: tuple[str, str, str, int]) -> tuple[str, str, str]:
    """A mutant's key without the numbers of registers, and without its own."""
    kind, statement, becomes, _ = key
    return kind, *(re.sub(r"(%[a-z]+)\d+", r"\1", text) for text in (statement, becomes))


def mutants(text: str, kernel: str) -> list[Mutant]:
    """Every mutant of ``kernel`` in the PTX ``text``, in the order of the text."""
    listed = statements(text, kernel)
    facts = Facts(_compared_registers(listed), _constants(listed))
    seen: Counter[str] = Counter()
    found = []
    for statement in listed:
        nth = seen[statement.text]
        seen[statement.text] += 1
        for kind, becomes in _changes(statement, facts):
            changed = text[: statement.start] + becomes + text[statement.end :]
            new = (kind, statement.line, statement.text, becomes, nth, changed)
            found.append(Mutant(*new))
    return found


def sample(found: list[Mutant], count: int, first: int = 0) -> list[Mutant]:
    """At most ``count`` of them, every kind in turn, in the order of the text.

    ``first`` says which kind begins: so that few of each of several kernels are of every kind.
    """
    generator = random.Random(0)
    by_kind: dict[str, list[Mutant]] = {}
    for mutant in generator.sample(found, len(found)):
        by_kind.setdefault(mutant.kind, []).append(mutant)
    chosen: list[Mutant] = []
    kinds = sorted(by_kind)
    start = first % max(1, len(kinds))
    while len(chosen) < min(count, len(found)):
        for kind in kinds[start:] + kinds[:start]:
            if by_kind[kind]:
                chosen.append(by_kind[kind].pop())
    kept = {id(mutant) for mutant in chosen[:count]}
    return [mutant for mutant in found if id(mutant) in kept]


def evaluate(text: str, kernel: str, problems: Iterable[Problem]) -> str | None:
    """What notices that ``kernel`` of ``text`` is wrong: the first complaint; None: nothing does.

    A problem is a callable that takes the parsed kernel, launches it on data of its own under all
    checks, and raises InterpreterError (as the interpreter does) or AssertionError (wrong numbers,
    outputs not written). It must pass on the unchanged kernel, draw the same data each time, and
    bound how many instructions may run, or a mutant could loop for ever. Any other exception goes
    through: a crash of the interpreter is a defect, not a mutant that was noticed.
    """
    parsed = parse(text).kernels[kernel]
    for problem in problems:
        try:
            problem(parsed)
        except (AssertionError, InterpreterError) as error:
            return f"{type(error).__name__}: {error}"
    return None


def survivors(found: Iterable[Mutant], check: Callable[[str], None]) -> list[Mutant]:
    """The mutants for whose text ``check`` raises neither AssertionError nor InterpreterError."""
    alive = []
    for mutant in found:
        try:
            check(mutant.text)
        except (AssertionError, InterpreterError):
            continue
        alive.append(mutant)
    return alive


def statements(text: str, kernel: str) -> list[Statement]:
    """The instructions of ``kernel``; declarations, labels and comments are none."""
    blank = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
    code = blank.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    entry = re.search(rf"\.entry\s+{re.escape(kernel)}\b", code)
    if entry is None:
        raise ValueError(f"no .entry {kernel} in the text")
    at = code.index("{", entry.end()) + 1
    found, depth = [], 1
    # A scope's braces stand where a statement may begin; a vector's braces are inside of one.
    token = re.compile(r"\s*(?:(?P<brace>[{}])|(?P<label>[\w$%]+\s*:(?!:))|(?P<code>[^;]*;))")
    while depth:
        match = token.match(code, at)
        at = match.end()
        if match["brace"]:
            depth += 1 if match["brace"] == "{" else -1
        elif match["code"] and not match["code"].startswith("."):
            start = match.start("code")
            line = code.count("\n", 0, start) + 1
            found.append(Statement(start, at, line, " ".join(match["code"].split())))
    return found


@dataclass(frozen=True)
class Facts:
    """What rules know of the whole kernel: registers compared, and those that hold a number."""

    compared: set[str]
    constants: dict[str, str]


def _changes(statement: Statement, facts: Facts) -> Iterator[tuple[str, str]]:
    """(kind, new text) of every change that fits the statement."""
    for rule in (_deletions, _waits, _fragments, _halves, _bounds, _guards, _lanes, _atomics):
        yield from rule(statement, facts)


_DELETED = {
    "barrier": ("bar.sync", "barrier.sync", "barrier.cta.sync", "bar.warp.sync", "bar.arrive"),
    "async": (
        "cp.async.wait", "cp.async.commit_group",
        "cp.async.bulk.wait", "cp.async.bulk.commit_group",
        "wgmma.wait_group", "wgmma.commit_group", "mbarrier.arrive", "cp.async.mbarrier.arrive",
    ),
    "fence": ("fence.", "membar.", "wgmma.fence"),
}  # fmt: skip


def _deletions(statement: Statement, facts: Facts):
    for kind, prefixes in _DELETED.items():
        if statement.opcode.startswith(prefixes):
            yield kind, ""


def _waits(statement: Statement, facts: Facts):
    groups = ("cp.async.wait_group", "cp.async.bulk.wait_group", "wgmma.wait_group")
    if statement.opcode.startswith(groups):
        count = int(statement.operands) + 1
        yield "async", f"{statement.guard}{statement.opcode} {count};"
    if statement.opcode.startswith(("mbarrier.try_wait", "mbarrier.test_wait")):
        done = statement.operands.partition(",")[0].strip()
        yield "fence", f"setp.eq.u32 {done}, 0, 0;"


def _fragments(statement: Statement, facts: Facts):
    """A is the second vector of mma (d, a, b, c), and of wgmma (d, a) where it is no descriptor."""
    if not statement.opcode.startswith(("mma.sync", "wgmma.mma_async")):
        return
    vectors = list(re.finditer(r"\{([^{}]*)\}", statement.text))
    chosen = vectors[1:3] if statement.opcode.startswith("mma") else vectors[1:2]
    for vector in chosen:
        registers = [register.strip() for register in vector[1].split(",")]
        if len(registers) > 1:
            # A has rows in registers 0 and 1, columns in 0 and 2: exchanging the middle two is
            # the mistake of a transposed fragment.
            i = 1 if len(registers) > 2 else 0
            registers[i], registers[i + 1] = registers[i + 1], registers[i]
            if registers[i] != registers[i + 1]:
                joined = "{" + ", ".join(registers) + "}"
                yield (
                    "fragment",
                    statement.text[: vector.start()] + joined + (statement.text[vector.end() :]),
                )


def _halves(statement: Statement, facts: Facts):
    if re.match(r"cvt\.rn\S*\.(b?f16|tf32|e\dm\d)x2", statement.opcode):
        target, low, high = (operand.strip() for operand in statement.operands.split(","))
        if low != high:
            yield "convert", f"{statement.guard}{statement.opcode} {target}, {high}, {low};"


_INTEGER = r"\.[subSUB](16|32|64)$"
_NEIGHBOUR = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"} | {
    "lo": "ls", "ls": "lo", "hi": "hs", "hs": "hi"
}  # fmt: skip


def _bounds(statement: Statement, facts: Facts):
    parts = statement.opcode.split(".")
    if not re.search(_INTEGER, statement.opcode):
        return
    head = statement.guard
    if parts[0] == "setp" and parts[1] in _NEIGHBOUR:
        opcode = ".".join([parts[0], _NEIGHBOUR[parts[1]], *parts[2:]])
        yield "bound", f"{head}{opcode} {statement.operands};"
    match = re.fullmatch(r"(.*), (-?\d+)", statement.operands)
    target = statement.operands.partition(",")[0].strip()
    if match and (parts[0] == "setp" or (parts[0] == "add" and target in facts.compared)):
        yield "bound", f"{head}{statement.opcode} {match[1]}, {int(match[2]) + 1};"


def _constants(listed: list[Statement]) -> dict[str, str]:
    """Numbers by the register that holds only them."""
    targets = Counter(s.operands.partition(",")[0].strip() for s in listed)
    moved = (re.fullmatch(r"(%\w+), (-?\d+)", s.operands) for s in listed if s.opcode[:4] == "mov.")
    return {match[1]: match[2] for match in moved if match and targets[match[1]] == 1}


def _compared_registers(listed: list[Statement]) -> set[str]:
    """Registers that integer comparisons read."""
    compared = (s.operands for s in listed if re.match(r"setp\..*" + _INTEGER, s.opcode))
    return {word for operands in compared for word in re.findall(r"%\w+", operands)[1:]}


def _guards(statement: Statement, facts: Facts):
    # Not those of branches: most would loop for ever or skip the whole kernel.
    if statement.guard and not statement.opcode.startswith(("bra", "ret", "exit")):
        yield "guard", statement.text[len(statement.guard) :]
    match = re.fullmatch(r"(%\w+), (4|8|16), 0, %\w+", statement.operands)
    if match and statement.opcode == "selp.b32":
        yield "guard", f"{statement.guard}mov.b32 {match[1]}, {match[2]};"


_OTHER_DISTANCE = {"1": "2", "2": "1", "4": "8", "8": "16", "16": "8"}


def _lanes(statement: Statement, facts: Facts):
    if statement.opcode.startswith("shfl.sync.bfly"):
        operands = [operand.strip() for operand in statement.operands.split(",")]
        distance = facts.constants.get(operands[2], operands[2])
        if distance in _OTHER_DISTANCE:
            operands[2] = _OTHER_DISTANCE[distance]
            yield "shuffle", f"{statement.guard}{statement.opcode} {', '.join(operands)};"
    if statement.opcode.startswith("ldmatrix") and ".trans" in statement.opcode:
        yield "transpose", statement.text.replace(".trans", "", 1)


def _atomics(statement: Statement, facts: Facts):
    match = re.match(r"red(?:\.\w+)?\.global(?:\.\w+)?\.add\.(\w+)$", statement.opcode)
    if match:
        yield "atomic", f"{statement.guard}st.global.{match[1]} {statement.operands};"
