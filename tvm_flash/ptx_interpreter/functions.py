"""Transcendental functions (PTX ISA 9.7.3), computed exactly and rounded to nearest.

The machine's .approx results differ from these in the last bits."""

import numpy as np

from . import formats
from .decode import VIEW_OF
from .floating import HALF, finish, half_operation, rounding
from .formats import flush
from .opcodes import opcode

FUNCTIONS = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@opcode(*FUNCTIONS)
def function(ins, bind):
    """ex2, lg2, rcp, sqrt, rsqrt, sin, cos, tanh of f32, f64 and 16-bit floats."""
    compute = FUNCTIONS[ins.opcode.split(".")[0]]
    if ins.type in HALF:
        return half_operation(ins, bind, lambda x: compute(x.astype(np.float64)), 1)
    view = VIEW_OF[ins.type]
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)
    if view == "f64":
        return lambda c: np.copyto(c.v[view][d], compute(c.v[view][a]))
    mode, end = rounding(ins), finish(ins)
    start = flush if "ftz" in ins.mods else (lambda x: x)

    def run(c):
        v = c.v["f32"]
        value = compute(start(v[a]).astype(np.float64))
        if mode == "rn":
            v[d][...] = end(value.astype(np.float32))
        else:
            v[d][...] = end(formats.round_f32(value, mode))

    return run
