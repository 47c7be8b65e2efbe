"""Loops in which lanes wait for a value that other threads write to memory."""

from .kernel import STRONG, Address

# What such a loop may consist of besides the read: nothing that others could wait for.
_HARMLESS = frozenset(
    "add and bra cvt cvta fence ld membar mov nanosleep not or selp setp shl shr sub xor".split()
)


def polling_blocks(kernel, blocks, block_of_label):
    """The numbers of the basic blocks of loops that read by strong accesses and do nothing else.

    A loop is what lies, in the order of the text, between a branch back and its target. atom
    counts as a read: a lock that is taken by compare and swap is waited for in the same way."""
    found = set()
    for block in blocks:
        last = kernel.instructions[block.last - 1]
        if not last.opcode.startswith("bra"):
            continue
        first = block_of_label[last.operands[0].name]
        if first <= block.number:
            body = kernel.instructions[blocks[first].first : block.last]
            if _only_waits(body):
                found.update(range(first, block.number + 1))
    return frozenset(found)


def _only_waits(body):
    reads = [ins for ins in body if ins.opcode.startswith(("ld.", "atom.")) and _is_strong(ins)]
    others = {ins.opcode.split(".")[0] for ins in body} - {"atom"}
    return bool(reads) and others <= _HARMLESS and not _walks(body)


def _walks(body):
    """Whether an address moves on, as in a sum over an array: it ends without anybody else."""
    bases = {x.base for ins in body for x in ins.operands if isinstance(x, Address)}
    moved = (ins.operands for ins in body if ins.operands and ins.operands[0] in bases)
    return any(operands[0] in operands[1:] for operands in moved)


def _is_strong(ins):
    return ins.opcode.startswith("atom.") or bool(STRONG & set(ins.mods))
