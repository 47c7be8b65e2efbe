"""A parsed PTX module: kernels, their parameters, variables and instructions."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

ACQUIRE, RELEASE = {"acquire", "acq_rel"}, {"release", "acq_rel"}
# Strong accesses do not race with each other (PTX ISA 8.7).
STRONG = ACQUIRE | RELEASE | {"relaxed", "volatile"}


class Register(NamedTuple):
    """A register; `name` is unique in its kernel, `type` is as declared (b32, f32, pred...)."""

    name: str
    type: str


class Special(NamedTuple):
    """A read-only register of the machine, such as %tid.x."""

    name: str


class Immediate(NamedTuple):
    """A literal; `value` is an int, or a float with its bits where PTX gave bits."""

    value: int | float
    kind: str  # "int", "f32" (value holds the bits), "f64" (value holds the bits)


class Symbol(NamedTuple):
    """The address of a variable or parameter."""

    name: str


class Address(NamedTuple):
    """[base + offset], or [base, {coordinates}] for tensors."""

    base: object
    offset: int = 0
    coordinates: tuple = ()


class Vector(NamedTuple):
    """{a, b, ...}."""

    items: tuple


class Pair(NamedTuple):
    """a|b, two destinations."""

    first: object
    second: object


class Not(NamedTuple):
    """!predicate."""

    operand: Register


class Sink(NamedTuple):
    """The destination _ that keeps nothing."""


class Label(NamedTuple):
    """A branch target, unique in its kernel."""

    name: str


@dataclass(frozen=True, eq=False)
class Variable:
    """A .shared, .local, .const or .global variable; size in bytes, 0 for extern [] arrays."""

    name: str
    space: str
    size: int
    align: int
    initial: bytes = b""


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter; size and offset in bytes, type "bytes" for structures."""

    name: str
    type: str
    size: int
    offset: int
    align: int


@dataclass(eq=False)
class Instruction:
    """One instruction: `opcode` is its full dotted name, `line` counts from 1 in the PTX text."""

    opcode: str
    operands: tuple
    predicate: Register | Not | None
    line: int
    text: str
    kernel: str

    @cached_property
    def mods(self):
        """The dotted parts of the opcode after the first."""
        return self.opcode.split(".")[1:]

    @cached_property
    def ordering(self):
        """Which of ORDERING and STRONG the opcode names (PTX ISA 8.4)."""
        return STRONG & set(self.mods)

    @property
    def type(self):
        """The last dotted part: the operation type of most instructions."""
        return self.opcode.rsplit(".", 1)[1]

    def where(self):
        """Kernel, line and text, for messages."""
        return f"{self.kernel}, PTX line {self.line}: `{self.text}`"


@dataclass(eq=False)
class Kernel:
    """One .entry: what it takes, what it declares and what it executes."""

    name: str
    params: tuple[Parameter, ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    variables: dict[str, Variable]
    branch_targets: dict[str, tuple[str, ...]]
    maxntid: tuple[int, int, int] | None = None
    reqntid: tuple[int, int, int] | None = None
    minnctapersm: int | None = None
    maxnreg: int | None = None
    target: str = ""
    shared_granule: int = 4
    programs: dict = field(default_factory=dict, repr=False)

    @property
    def static_shared(self):
        """Bytes of shared memory that the kernel declares itself."""
        sized = {name: v for name, v in self.variables.items() if v.size}
        return layout(sized, "shared")[1]


@dataclass(eq=False)
class Module:
    """One PTX text."""

    version: str
    target: str
    kernels: dict[str, Kernel]


def layout(variables, space):
    """({name: offset}, bytes) of the variables of one space; extern arrays share the end."""
    offsets, end = {}, 0
    chosen = [v for v in variables.values() if v.space == space]
    for variable in sorted(chosen, key=lambda v: v.size == 0):
        end = -(-end // variable.align) * variable.align
        offsets[variable.name] = end
        end += variable.size
    return offsets, end
