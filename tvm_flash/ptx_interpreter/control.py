"""Branches, exits, and instructions that only take time (PTX ISA 9.7.12)."""

import numpy as np

from . import kernel as k
from .errors import InterpreterError, OutOfBounds, fault
from .opcodes import opcode


def move(c, target):
    """Send all lanes of a context to a basic block."""
    if c.lanes is not None:
        c.run.scheduler.goto(c.lanes, target)
    else:
        c.run.scheduler.goto_index(c.index, target)


@opcode("bra", ends=True)
def branch(ins, bind):
    """bra: lanes whose predicate holds go to the label."""
    target, following = bind.block_of_label[ins.operands[0].name], ins.block + 1
    if ins.predicate is None:
        return lambda c: move(c, target)
    negated = isinstance(ins.predicate, k.Not)
    row = bind.src(ins.predicate.operand if negated else ins.predicate, "pred")
    yes, no = (following, target) if negated else (target, following)

    def run(c):
        p = c.v["pred"][row]
        count = np.count_nonzero(p)
        if count == c.n:
            move(c, yes)
        elif count == 0:
            move(c, no)
        else:
            p = p.reshape(-1)
            scheduler = c.run.scheduler
            scheduler.goto_index(c.index[p], yes)
            scheduler.goto_index(c.index[~p], no)

    run.takes_predicate = True
    return run


@opcode("brx.idx", ends=True)
def branch_indexed(ins, bind):
    """brx.idx: a jump through a table of labels."""
    row = bind.src(ins.operands[0], "u32")
    names = bind.kernel.branch_targets[ins.operands[1].name]
    targets = np.array([bind.block_of_label[n] for n in names])

    def run(c):
        at = c.v["u32"][row].reshape(-1)
        if at.max() >= len(targets):
            lane = int(np.argmax(at))
            raise fault(OutOfBounds, ins, c, lane, f"jump table index {at[lane]}")
        for value in np.unique(at):
            c.run.scheduler.goto_index(c.index[at == value], int(targets[value]))

    return run


@opcode("ret", "exit", ends=True)
def leave(ins, bind):
    """ret, exit: the lanes are done."""
    return lambda c: move(c, len(c.run.program.blocks))


@opcode("trap")
def trap(ins, bind):
    """trap: the kernel itself says that something is wrong."""

    def run(c):
        raise fault(InterpreterError, ins, c, 0, "the kernel trapped")

    return run


@opcode("nanosleep", "pmevent", "brkpt", "griddepcontrol", "membar", "fence")
def nothing(ins, bind):
    """No effect on values: memory here is sequentially consistent."""
    return lambda c: None
