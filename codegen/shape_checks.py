"""Checks of launchers, before anything runs: shapes that fit one another, numbers within limits.

TVM's own checks compare extents of the same name, and what is constant. These are the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tvm import tirx
from tvm.ir.expr import StringImm

from ..definition.signature import argument_of
from ..problem.argument import Padded
from ..problem.arguments import INTERLEAVED, LONGEST, NUMBERS
from ..problem.lengths import MAX_SEQLEN
from ..problem.linear import LINEAR_NUMBERS
from ..schedules.cuda.program import Grid

# Blocks of a CUDA grid along x, y and z.
_GRID_LIMITS = (2**31 - 1, 65535, 65535)

# Sizes that are lengths: their tensors, the axis of these, and what to split.
_ROWS = (
    ("Sq", "q", 1, "sequence"),
    ("Sk", "k and v", 1, "sequence"),
    ("total_q", "q", 0, "batch"),
    ("total_k", "k and v", 0, "batch"),
)
# Sizes that a caller chooses for workspaces, and what one of them is.
_COUNTED = {"copies": "copy", "splits": "part"}
# Their numbers are int32.
_MOST_PAGES = 2**31 - 1
# Rows of a group and tiles of them are numbered in int32.
_MOST_ROWS = 2**30

Check = tuple[tirx.Expr, str]


def with_shape_checks(
    func: tirx.PrimFunc, meta: Mapping[str, int], grid: Grid | None = None
) -> tirx.PrimFunc:
    """``func`` with an error before its body for each relation of its arguments that fails.

    meta: the sizes of a kernel's tile, by which workspaces are rounded. grid: of a CUDA kernel.
    """
    sizes = {
        extent.name: extent
        for param in func.params
        for extent in getattr(param, "shape", ())
        if isinstance(extent, tirx.Var)
    }
    checks = [*_heads(sizes), *_lengths(sizes), *_groups(sizes), *_pages(sizes)]
    checks += [*_workspaces(func, sizes, meta), *_tables(sizes), *_angles(func.params, sizes)]
    wide = {p: tirx.Var(p.name, "int64") for p in func.params if _is_narrow_integer(p)}
    params = [wide.get(param, param) for param in func.params]
    checks += _numbers(params)
    checks += _grid(sizes, grid) if grid else ()
    name = func.attrs["global_symbol"]
    asserts = [_assert(condition, f"{name}: {message}") for condition, message in checks]
    if not asserts:
        return func
    narrowed = [tirx.Bind(narrow, tirx.Cast("int32", given)) for narrow, given in wide.items()]
    body = tirx.SeqStmt([*asserts, *narrowed, func.body])
    return tirx.PrimFunc(params, body, func.ret_type, func.attrs)


def _heads(sizes: Mapping[str, tirx.Var]) -> Iterator[Check]:
    if "H" in sizes and "Hk" in sizes:
        heads, kv_heads = sizes["H"], sizes["Hk"]
        rest = tirx.truncmod(heads, tirx.max(kv_heads, 1))
        yield (
            tirx.And(kv_heads > 0, rest == 0),
            "num_heads (axis 2 of q) must be a multiple of num_kv_heads (axis 2 of k and v), and "
            "that at least 1: repeat or drop heads",
        )


def _lengths(sizes: Mapping[str, tirx.Var]) -> Iterator[Check]:
    for name, tensors, axis, what in _ROWS:
        if name in sizes:
            limit = f"{MAX_SEQLEN} rows (axis {axis}) are the most that {tensors} may have"
            yield sizes[name] <= MAX_SEQLEN, f"{limit}: split the {what}"


def _groups(sizes: Mapping[str, tirx.Var]) -> Iterator[Check]:
    queries = sizes.get("Sq", sizes.get("total_q"))
    if "splits" not in sizes or queries is None:
        return
    rows = sizes["H"] * queries
    limit = f"{_MOST_ROWS} rows of all heads are the most that q may have where keys are divided"
    yield rows <= _MOST_ROWS, f"{limit}: split the batch"


def _pages(sizes: Mapping[str, tirx.Var]) -> Iterator[Check]:
    if "pages" not in sizes:
        return
    pages, positions = sizes["pages"], sizes["most_pages"] * sizes["page_size"]
    yield (
        tirx.And(pages > 0, pages <= _MOST_PAGES),
        f"k and v must have 1 to {_MOST_PAGES} pages (axis 0): a clamped page number would read "
        "outside them",
    )
    yield (
        positions <= MAX_SEQLEN,
        f"{MAX_SEQLEN} keys are the most that the pages of a row of page_table may hold: give it "
        "fewer columns",
    )


def _angles(params: Sequence[tirx.Var], sizes: Mapping[str, tirx.Var]) -> Iterator[Check]:
    for name in ("pairs", "rounded_pairs"):
        if name in sizes:
            head_dim = int(params[0].shape[-1])
            said = f"cos and sin may have {head_dim // 2} columns (axis 1), half of the head_dim"
            yield sizes[name] <= head_dim // 2, f"{said}={head_dim}: give fewer"


def _workspaces(
    func: tirx.PrimFunc, sizes: Mapping[str, tirx.Var], meta: Mapping[str, int]
) -> Iterator[Check]:
    for param in func.params:
        argument = argument_of(func, param)
        for axis, size in enumerate(argument.shape if argument else ()):
            extent = param.shape[axis]
            if size in _COUNTED and isinstance(extent, tirx.Var):
                least = f"at least one {_COUNTED[size]} (axis {axis})"
                yield extent > 0, f"{argument.name} must have {least}"
            if isinstance(size, Padded):
                block = meta[size.block]
                said = f"as many rows (axis {axis}) as q, {size.said(block)}"
                yield (
                    extent >= size.of(sizes[size.size], block),
                    f"{argument.name} must have {said}",
                )


def _tables(sizes: Mapping[str, tirx.Var]) -> Iterator[Check]:
    names = dict.fromkeys(name.partition("_")[0] for name in sizes if name.startswith("table"))
    for table in names:
        extents = [size for name, size in sizes.items() if name.startswith(f"{table}_")]
        filled = extents[0] > 0
        for extent in extents[1:]:
            filled = tirx.And(filled, extent > 0)
        yield filled, f"{table} must have elements: a clamped index would read outside it"


def _is_narrow_integer(param: tirx.Var) -> bool:
    """Whether it is an int32, which callers pass as int64: 2**32 + 3 would arrive as 3."""
    return not hasattr(param, "shape") and param.ty.dtype == "int32"


def _numbers(params: Sequence[tirx.Var]) -> Iterator[Check]:
    known = (*NUMBERS, LONGEST, INTERLEAVED, *LINEAR_NUMBERS)
    limits = {a.name: a.limits for a in known if a.limits}
    for param in params:
        if param.name in limits:
            least, most = limits[param.name]
            bounds = [tirx.const(bound, param.ty.dtype) for bound in (least, most)]
            inside = tirx.And(param >= bounds[0], param <= bounds[1])
            allowed = f"{least}..{most}" if isinstance(most, int) else f"{least:.3g}..{most:.3g}"
            yield inside, f"{param.name} must lie in {allowed}: a spec without it has none"


def _grid(sizes: Mapping[str, tirx.Var], grid: Grid) -> Iterator[Check]:
    for axis, extent, limit in zip("xyz", grid(sizes), _GRID_LIMITS, strict=True):
        if not isinstance(extent, int):
            yield (
                extent <= limit,
                f"a launch has at most {limit} blocks in {axis}: split the batch",
            )


def _assert(condition: tirx.Expr, message: str) -> tirx.AssertStmt:
    # The wrapper names its first two parameters the other way round.
    return tirx.AssertStmt(condition, StringImm("ValueError"), [StringImm(message)])
