"""Symbols that record what a plain torch function does to them, as a ScoreProgram."""

from __future__ import annotations

import math
import numbers
from functools import partial

import torch

from ..errors import UnsupportedSpec
from .layouts import check_dense
from .program import (
    DTYPES,
    MAX_FLOAT32,
    SHORTER,
    TABLE_DTYPES,
    ScoreProgram,
    TableType,
    measure,
    operands,
    result_dtype,
)
from .program_size import MAX_INSTRUCTIONS, Size
from .torch_operations import call, user_line

TABLE_NAMES = {getattr(torch, name): name for name in TABLE_DTYPES}


class Recorder:
    """The program under construction; equal instructions are recorded once."""

    def __init__(self, symbols: tuple[str, ...], device: torch.device | None = None):
        self._device = device
        self.instructions: list[tuple] = []
        self.dtypes: list[str] = []
        self.sizes: list[Size] = []
        self.too_large: dict[int, str] = {}
        self.types: list[TableType] = []
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[object, int] = {}
        self._tables: dict[tuple, tuple[int, torch.Tensor]] = {}
        self.symbols = [self.record(name) for name in symbols]

    @property
    def device(self) -> torch.device:
        """Where the inputs are; where torch makes tensors, if nobody said."""
        return torch.get_default_device() if self._device is None else self._device

    def record(self, *instruction) -> Symbol:
        """The value of ``instruction``; TypeError when its operands do not fit."""
        # repr, because 1, 1.0 and True are one key, 0.0 and -0.0 another.
        key = repr(instruction) if instruction[0] == "const" else instruction
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._append(instruction)
        return Symbol(self, number)

    def _append(self, instruction: tuple) -> int:
        number = len(self.instructions)
        if number == MAX_INSTRUCTIONS:
            raise UnsupportedSpec(
                f"score function of more than {number} operations ({user_line()}): {SHORTER}"
            )
        try:
            dtype = result_dtype(instruction, self.dtypes, self.types)
        except ValueError as error:
            raise TypeError(f"{error} ({user_line()})") from None
        size = measure(instruction, self.sizes, self.dtypes, self.instructions)
        # What nothing uses in the end is free; that which is used is refused by its line.
        if size.excess and not any(self.sizes[ref].excess for ref in operands(instruction)):
            self.too_large[number] = f"score function of {size.excess} ({user_line()}): {SHORTER}"
        self.sizes.append(size)
        self.dtypes.append(dtype)
        self.instructions.append(instruction)
        return number

    def apply(self, op: str, *values) -> Symbol:
        """``op`` of values brought to their common type."""
        return self.record(op, *(x._number for x in self.promote(*values)))

    def promote(self, *values, at_least: str = "bool") -> list[Symbol]:
        """Symbols, tensors without dimensions and Python numbers as symbols of one type."""
        values = [self.scalar(x) for x in values]
        strong = [self.dtypes[x._number] for x in values if isinstance(x, Symbol)]
        rank = max(map(DTYPES.index, strong), default=0)
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
        if isinstance(value, PartialLoad):
            value._incomplete()
        if isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, numbers.Real):
            return int(value) if isinstance(value, numbers.Integral) else float(value)
        raise UnsupportedSpec(
            f"{type(value).__name__} in a score function ({user_line()}): use numbers, torch "
            "tensors and torch functions"
        )

    def cast(self, value, dtype: str) -> Symbol:
        """``value`` converted as torch converts: to bool by != 0, to integers toward zero."""
        if not isinstance(value, Symbol):
            kind = bool if dtype == "bool" else as_float32 if dtype == "float32" else int
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
                "per dimension; slices, None, ... and tensors are not available"
            )
        if 0 < len(index) < tensor.ndim:
            return PartialLoad(self, tensor, index)
        if len(index) != tensor.ndim:
            raise UnsupportedSpec(_needs_all_indices(tensor, index))
        return self.record("load", self._table(tensor, fixed), *(i._number for i in moving))

    def _table(self, tensor: torch.Tensor, fixed: tuple) -> int:
        key = (id(tensor), fixed)
        if key not in self._tables:
            # The tensor is kept, or its id could name another one later.
            self._tables[key] = (len(self.tensors), tensor)
            table = _as_table(tensor)[tuple(slice(None) if i is None else i for i in fixed)]
            self.tensors.append(table)
            self.types.append(TableType(TABLE_NAMES[table.dtype], table.ndim))
        return self._tables[key][0]

    def finish(self, value, dtype: str) -> tuple[ScoreProgram, list[torch.Tensor]]:
        """The program that gives ``value`` as ``dtype``, without unused parts, and its tables."""
        (result,) = self.promote(value)
        if dtype == "bool" and result.dtype_name != "bool":
            raise TypeError(f"mask_mod gives {result.dtype_name}, must give bool: use a comparison")
        return self._without_dead_code(self.cast(result, dtype)._number)

    def _without_dead_code(self, result: int) -> tuple[ScoreProgram, list[torch.Tensor]]:
        lines = self.instructions
        live = {*range(len(self.symbols)), result}
        for n in range(result, -1, -1):
            if n in live:
                live.update(operands(lines[n]))
        kept = sorted(live)
        if reasons := [self.too_large[n] for n in kept if n in self.too_large]:
            raise UnsupportedSpec(reasons[0])
        if kept[-1] != result:  # a symbol itself: said once more, in last place
            kept.append(result)
        used = sorted({lines[n][1] for n in kept if lines[n][0] == "load"})
        number = {old: new for new, old in enumerate(kept)}
        instructions = tuple(_renumbered(lines[n], number, used) for n in kept)
        program = ScoreProgram(instructions, tuple(self.types[t] for t in used))
        return program, [self.tensors[t] for t in used]


class PartialLoad:
    """A captured tensor with some of its indices given: ``table[h]`` in ``table[h][q_idx]``."""

    def __init__(self, recorder: Recorder, tensor: torch.Tensor, index: tuple):
        self._recorder, self._tensor, self._index = recorder, tensor, index

    def __getitem__(self, index):
        return self._recorder.load(self._tensor, (*self._index, *_as_tuple(index)))

    def _incomplete(self, *args, **kwargs):
        raise UnsupportedSpec(_needs_all_indices(self._tensor, self._index))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        next(x for x in args if isinstance(x, cls))._incomplete()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = __invert__ = (
        _incomplete
    )
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __and__ = __or__ = _incomplete
    __hash__ = None


class Symbol:
    """A scalar that is known when the kernel runs; arithmetic and torch functions record it."""

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
        return getattr(torch, self.dtype_name)

    ndim, shape, layout, requires_grad = 0, torch.Size(), torch.strided, False

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return self._recorder.device

    def size(self) -> torch.Size:
        """Every symbol is a scalar."""
        return self.shape

    def dim(self) -> int:
        """0: no dimensions."""
        return self.ndim

    def numel(self) -> int:
        """1: a scalar."""
        return 1

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        recorder = _recorder((*args, *(kwargs or {}).values()), func.__name__)
        return call(recorder, func.__name__, args, kwargs or {})

    def __getattr__(self, name: str):
        if name.startswith("__") or not hasattr(torch.Tensor, name):
            raise AttributeError(f"torch tensors have no attribute {name!r} ({user_line()})")
        if name in ("item", "tolist", "numpy"):
            self._no_value()
        if not callable(getattr(torch.Tensor, name)):
            raise UnsupportedSpec(f"attribute {name!r} in a score function ({user_line()})")
        return partial(_method, self._recorder, name, self)

    def __repr__(self) -> str:
        return f"<{' '.join(map(str, self._recorder.instructions[self._number]))}>"

    def _no_value(self, *args):
        raise TypeError(
            "the value of a score function's symbol is not known when it is traced "
            f"({user_line()}): write torch.where(condition, a, b) for if, & | ~ for and, or, not, "
            "torch.maximum/minimum for max/min, torch functions for those of math"
        )

    __bool__ = __int__ = __float__ = __index__ = __complex__ = __len__ = __iter__ = _no_value
    __contains__ = __getitem__ = __setitem__ = _no_value


def _operator(name: str):
    return lambda self, *args: call(self._recorder, name, (self, *args), {})


def _reflected(name: str):
    return lambda self, other: call(self._recorder, name, (other, self), {})


for _name in "neg pos abs invert round eq ne lt le gt ge".split():
    setattr(Symbol, f"__{_name}__", _operator(_name))
for _name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split():
    setattr(Symbol, f"__{_name}__", _operator(_name))
    setattr(Symbol, f"__r{_name}__", _reflected(_name))


def _method(recorder: Recorder, name: str, *args, **kwargs):
    return call(recorder, name, args, kwargs)


def as_float32(value) -> float:
    """A Python number as torch reads it beside float32: infinite beyond its range."""
    try:
        value = float(value)
    except OverflowError:
        raise TypeError(f"an integer beyond float64 ({user_line()})") from None
    if abs(value) <= MAX_FLOAT32 or not math.isfinite(value):
        return value
    # Half a step beyond the largest number still rounds to it.
    largest = MAX_FLOAT32 if abs(value) < MAX_FLOAT32 + 2.0**103 else math.inf
    return math.copysign(largest, value)


def _as_tuple(index) -> tuple:
    return index if isinstance(index, tuple) else (index,)


def _recorder(values, name: str) -> Recorder:
    for value in values:
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, Symbol):
                return item._recorder
    raise UnsupportedSpec(f"arguments of torch function {name!r} ({user_line()})")


def _literal_rank(value, rank: int) -> int:
    """Rank in DTYPES that a Python number asks for beside a symbol of rank ``rank``."""
    if isinstance(value, bool):
        return DTYPES.index("bool")
    if isinstance(value, float):
        return DTYPES.index("float32")
    fits = -(2**31) <= value < 2**31 or DTYPES[rank] == "float32"
    return DTYPES.index("int32" if fits else "int64")


def _as_table(tensor: torch.Tensor) -> torch.Tensor:
    check_dense(f"captured tensor ({user_line()})", tensor)
    shape = tuple(tensor.shape)
    if tensor.dtype not in TABLE_NAMES:
        raise UnsupportedSpec(
            f"captured tensor of {tensor.dtype} ({user_line()}): convert it to one of "
            + ", ".join(TABLE_NAMES.values())
        )
    if tensor.numel() == 0:
        raise UnsupportedSpec(f"captured tensor of {shape=} has no elements ({user_line()})")
    return tensor


def _needs_all_indices(tensor: torch.Tensor, index: tuple) -> str:
    return (
        f"captured tensor of shape {tuple(tensor.shape)} with {len(index)} indices "
        f"({user_line()}): index it with one symbol or integer per dimension"
    )


def _renumbered(line: tuple, number: dict[int, int], used: list[int]) -> tuple:
    op, *rest = line
    if op == "const":
        return line
    head = {"cast": rest[:1], "load": [used.index(rest[0])] if op == "load" else []}.get(op, [])
    return (op, *head, *(number[ref] for ref in operands(line)))
