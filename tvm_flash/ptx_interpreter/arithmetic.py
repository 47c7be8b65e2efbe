"""Opcodes that serve integers and floats alike (PTX ISA 9.7.1, 9.7.3)."""

from . import floating, integer
from .opcodes import opcode

BUILDERS = {
    "add": (integer.build_integer, floating.build_float),
    "sub": (integer.build_integer, floating.build_float),
    "mul": (integer.build_multiply, floating.build_float),
    "mad": (integer.build_multiply_add, floating.build_fma_mad),
    "div": (integer.build_divide, floating.build_float),
    "min": (integer.build_extreme, floating.build_float_extreme),
    "max": (integer.build_extreme, floating.build_float_extreme),
    "abs": (integer.build_sign, floating.build_float_sign),
    "neg": (integer.build_sign, floating.build_float_sign),
}


@opcode(*BUILDERS)
def arithmetic(ins, bind):
    """Pick the integer or the floating builder by the type."""
    return BUILDERS[ins.opcode.split(".")[0]][integer.is_float(ins)](ins, bind)
