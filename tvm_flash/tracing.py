"""Symbols that record what a plain torch function does to them."""

from __future__ import annotations

import numbers
import sys

import torch

from .errors import UnsupportedSpec
from .program import DTYPES, INTEGERS, ScoreProgram, TableType, operands, result_dtype

_TORCH_DTYPES = {
    "bool": torch.bool,
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
}
# Everything is computed in float32: float64 asks for more precision than there is, harmlessly;
# half precision asks for a rounding that would not happen.
_CASTS = {dtype: name for name, dtype in _TORCH_DTYPES.items()} | {torch.float64: "float32"}
_TABLE_CASTS = {
    torch.bool: torch.uint8,
    **dict.fromkeys((torch.uint8, torch.int8, torch.int16, torch.int32), torch.int32),
    torch.int64: torch.int64,
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32, torch.float64), torch.float32),
}


class Recorder:
    """The program under construction; equal instructions are recorded once."""

    def __init__(self, symbols: tuple[str, ...]):
        self.instructions: list[tuple] = []
        self.dtypes: list[str] = []
        self.types: list[TableType] = []
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[tuple, int] = {}
        self._tables: dict[tuple, tuple[int, torch.Tensor]] = {}
        self.symbols = [self.record(name) for name in symbols]

    def record(self, *instruction) -> Symbol:
        """The value of ``instruction``."""
        # repr, because 1, 1.0 and True are one key and 0.0 and -0.0 too.
        key = repr(instruction) if instruction[0] == "const" else instruction
        number = self._numbers.get(key)
        if number is None:
            try:
                dtype = result_dtype(instruction, self.dtypes, self.types)
            except ValueError as error:
                raise TypeError(f"{error} ({user_line()})") from None
            number = self._numbers[key] = len(self.instructions)
            self.instructions.append(instruction)
            self.dtypes.append(dtype)
        return Symbol(self, number)

    def apply(self, op: str, *values) -> Symbol:
        """``op`` of values brought to their common type."""
        return self.record(op, *(x._number for x in self.promote(*values)))

    def promote(self, *values, at_least: str = "bool") -> list[Symbol]:
        """Symbols, tensors without dimensions and Python numbers as symbols of one type."""
        values = [self.scalar(x) for x in values]
        strong = [DTYPES.index(x.dtype_name) for x in values if isinstance(x, Symbol)]
        rank = max(strong, default=0)
        for x in values:
            if not isinstance(x, Symbol):
                rank = max(rank, _literal_rank(x, rank))
        dtype = DTYPES[max(rank, DTYPES.index(at_least))]
        return [self.cast(x, dtype) for x in values]

    def scalar(self, value):
        """``value`` as a Symbol of this recorder or a Python number."""
        if isinstance(value, Symbol):
            if value._recorder is not self:
                raise UnsupportedSpec(f"a symbol of another function was used ({user_line()})")
            return value
        if isinstance(value, torch.Tensor):
            return self.load(value, ())
        if isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, numbers.Real):
            return float(value)
        raise UnsupportedSpec(
            f"{type(value).__name__} in a score function ({user_line()}): use numbers, torch "
            "tensors and torch functions"
        )

    def cast(self, value, dtype: str) -> Symbol:
        """``value`` converted as torch converts: to bool by != 0, to integers toward zero."""
        if not isinstance(value, Symbol):
            kind = bool if dtype == "bool" else float if dtype == "float32" else int
            return self.record("const", dtype, kind(value))
        if value.dtype_name == dtype:
            return value
        if dtype == "bool":
            return self.apply("ne", value, 0)
        return self.record("cast", dtype, value._number)

    def load(self, tensor: torch.Tensor, index: tuple) -> Symbol | PartialLoad:
        """One element of a captured tensor; fewer indices than dimensions wait for the rest."""
        fixed = tuple(int(i) if isinstance(i, numbers.Integral) else None for i in index)
        moving = tuple(i for i in index if isinstance(i, Symbol))
        if len(moving) + sum(i is not None for i in fixed) != len(index):
            raise UnsupportedSpec(
                f"index {index!r} of a captured tensor ({user_line()}): use one symbol or integer "
                "per dimension, no slices, None, ... or tensors"
            )
        if len(index) < tensor.ndim and index:
            return PartialLoad(self, tensor, index)
        if len(index) != tensor.ndim:
            raise UnsupportedSpec(
                f"captured tensor of shape {tuple(tensor.shape)} with {len(index)} indices "
                f"({user_line()}): index it with one symbol per dimension"
            )
        return self.record("load", self._table(tensor, fixed), *(i._number for i in moving))

    def _table(self, tensor: torch.Tensor, fixed: tuple) -> int:
        key = (id(tensor), fixed)
        if key not in self._tables:
            # The tensor is kept, or its id could name another one later.
            self._tables[key] = (len(self.tensors), tensor)
            table = _as_table(tensor[tuple(slice(None) if i is None else i for i in fixed)])
            self.tensors.append(table)
            self.types.append(TableType(str(table.dtype).removeprefix("torch."), table.ndim))
        return self._tables[key][0]

    def finish(self, value, dtype: str) -> tuple[ScoreProgram, list[torch.Tensor]]:
        """The program of ``value`` (as ``dtype``), without what it does not use, and its tables."""
        result = self.promote(value)[0]
        if dtype == "bool" and result.dtype_name != "bool":
            raise TypeError(f"a mask_mod must give a bool, not {result.dtype_name}: use a comparison")
        result = self.cast(result, dtype)
        return _without_dead_code(self, result._number)


class PartialLoad:
    """A captured tensor with some of its indices given: ``table[h]`` in ``table[h][q_idx]``."""

    def __init__(self, recorder: Recorder, tensor: torch.Tensor, index: tuple):
        self._recorder, self._tensor, self._index = recorder, tensor, index

    def __getitem__(self, index):
        return self._recorder.load(self._tensor, self._index + as_index(index))

    def _incomplete(self, *args, **kwargs):
        raise UnsupportedSpec(
            f"captured tensor of shape {tuple(self._tensor.shape)} with {len(self._index)} "
            f"index(es) ({user_line()}): index it with one symbol per dimension"
        )

    __torch_function__ = classmethod(lambda cls, func, types, args=(), kwargs=None: next(
        x for x in args if isinstance(x, PartialLoad))._incomplete())  # fmt: skip
    __getattr__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _incomplete


class Symbol:
    """A scalar that is known when the kernel runs. Arithmetic and torch functions record it."""

    __slots__ = ("_number", "_recorder")
    # numpy scalars leave the operation to us instead of making object arrays.
    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, recorder: Recorder, number: int):
        self._recorder, self._number = recorder, number

    @property
    def dtype_name(self) -> str:
        """Type of the value in a program."""
        return self._recorder.dtypes[self._number]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the value in torch."""
        return _TORCH_DTYPES[self.dtype_name]

    @property
    def ndim(self) -> int:
        """0: every symbol is a scalar."""
        return 0

    shape = property(lambda self: torch.Size(()))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        from .torch_operations import call

        if any(isinstance(x, PartialLoad) for x in args):
            PartialLoad.__torch_function__(func, types, args)
        return call(_recorder(args, kwargs or {}), func.__name__, args, kwargs or {})

    def __getattr__(self, name: str):
        from .torch_operations import method

        return method(self._recorder, self, name)

    def __repr__(self) -> str:
        return f"<{self._recorder.instructions[self._number]!r}>"

    def _no_value(self, *args):
        raise TypeError(
            "the value of a score function's symbol is not known while it is traced "
            f"({user_line()}): write torch.where(condition, a, b) for if/else, & | ~ for "
            "and/or/not, torch.maximum/minimum for max/min, torch functions for those of math"
        )

    __bool__ = __int__ = __float__ = __index__ = __complex__ = __len__ = __iter__ = _no_value
    __contains__ = __setitem__ = __getitem__ = _no_value


def as_index(index) -> tuple:
    """What stands between the brackets, as a tuple."""
    return index if isinstance(index, tuple) else (index,)


def user_line() -> str:
    """file:line of the user's code that is being traced."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("tvm_flash.", "torch.")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _recorder(args, kwargs) -> Recorder:
    for x in (*args, *kwargs.values()):
        for item in as_index(x):
            if isinstance(item, Symbol):
                return item._recorder
    raise UnsupportedSpec(f"a list of symbols was passed to torch ({user_line()})")


def _literal_rank(value, rank: int) -> int:
    """Rank in DTYPES that a Python number asks for beside a symbol of rank ``rank``."""
    if isinstance(value, bool):
        return DTYPES.index("bool")
    if isinstance(value, float):
        return DTYPES.index("float32")
    fits = -(2**31) <= value < 2**31 or DTYPES[rank] == "float32"
    return DTYPES.index("int32" if fits else "int64")


def _as_table(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.requires_grad:
        raise UnsupportedSpec(
            f"captured tensor of shape {tuple(tensor.shape)} requires grad ({user_line()}): "
            "gradients of captured tensors are not computed, pass tensor.detach()"
        )
    if tensor.dtype not in _TABLE_CASTS:
        raise UnsupportedSpec(f"captured tensor of {tensor.dtype=} ({user_line()})")
    if tensor.numel() == 0:
        raise UnsupportedSpec(f"captured tensor of shape {tuple(tensor.shape)} is empty")
    return tensor.to(_TABLE_CASTS[tensor.dtype])


def _without_dead_code(recorder: Recorder, result: int):
    lines = recorder.instructions
    live = {result}
    for number in range(len(lines) - 1, -1, -1):
        if number in live:
            live.update(operands(lines[number]))
    kept = [n for n in range(len(lines)) if n in live or n < len(recorder.symbols)]
    if kept[-1] != result:
        kept.append(result)
    used = sorted({lines[n][1] for n in kept if lines[n][0] == "load"})
    number = {old: new for new, old in enumerate(kept)}
    instructions = tuple(_renumber(lines[n], number, used) for n in kept)
    program = ScoreProgram(instructions, tuple(recorder.types[t] for t in used))
    return program, [recorder.tensors[t] for t in used]


def _renumber(line: tuple, number: dict[int, int], used: list[int]) -> tuple:
    op = line[0]
    if op == "const":
        return line
    head = {"cast": line[1:2], "load": (used.index(line[1]),)}.get(op, ()) if line[1:] else ()
    return (op, *head, *(number[ref] for ref in operands(line)))


__all__ = ["INTEGERS", "PartialLoad", "Recorder", "Symbol", "as_index", "user_line"]
