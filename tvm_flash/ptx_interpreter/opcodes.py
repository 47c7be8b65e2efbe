"""The dispatch table: opcode to the function that builds an instruction's closure."""

from .errors import UnsupportedInstruction

TABLE = {}
# Opcodes after which control may leave or wait: they end a basic block.
ENDS = set()
# Opcodes that wait by being executed again: they start a basic block too.
STARTS = set()


def opcode(*names, ends=False, starts=False):
    """Register a builder(ins, bind) -> closure(context) for opcodes given by dotted prefix."""

    def register(builder):
        for name in names:
            TABLE[name] = builder
            if ends:
                ENDS.add(name)
            if starts:
                STARTS.add(name)
        return builder

    return register


def key_of(ins):
    """The longest dotted prefix of the opcode that is in the table, or None."""
    name = ins.opcode
    while name not in TABLE:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


def builder_of(ins):
    """The builder of an instruction; raises UnsupportedInstruction."""
    key = key_of(ins)
    if key is None:
        raise UnsupportedInstruction(f"{ins.where()}: the opcode {ins.opcode} is not supported")
    return TABLE[key]
