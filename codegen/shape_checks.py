"""Launchers refuse shapes that do not fit one another, whoever calls them, before anything runs.

TVM's own checks compare extents of the same name, and what is constant. These are the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tvm import tirx
from tvm.ir.expr import StringImm

from ..problem.lengths import MAX_SEQLEN
from ..schedules.cuda.program import Grid, Sizes

# Blocks of a CUDA grid along x, y and z.
_GRID_LIMITS = (2**31 - 1, 65535, 65535)

# Extents of dq_acc (C, B, H, Sq_pad, D_pad), as its definitions call them.
_COPIES, _ROWS = "C", ("Sq_pad", "rows_pad")

Check = tuple[tirx.Expr, str]


def with_shape_checks(
    func: tirx.PrimFunc, meta: Mapping[str, int], grid: Grid | None = None
) -> tirx.PrimFunc:
    """``func`` with an error before its body for each relation of its arguments that fails.

    meta: "block_q", rows that the kernel adds to dq_acc at once. grid: of a CUDA kernel.
    """
    sizes = {
        extent.name: extent
        for param in func.params
        for extent in getattr(param, "shape", ())
        if isinstance(extent, tirx.Var)
    }
    checks = [*_heads(sizes), *_lengths(sizes), *_workspace(sizes, meta), *_tables(sizes)]
    checks += _grid(sizes, grid) if grid else ()
    name = func.attrs["global_symbol"]
    asserts = [_assert(condition, f"{name}: {message}") for condition, message in checks]
    return func.with_body(tirx.SeqStmt([*asserts, func.body])) if asserts else func


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
    for name, tensors in (("Sq", "q"), ("Sk", "k and v")):
        if name in sizes:
            limit = f"{MAX_SEQLEN} rows (axis 1) are the most that {tensors} may have"
            yield sizes[name] <= MAX_SEQLEN, f"{limit}: split the sequence"


def _workspace(sizes: Mapping[str, tirx.Var], meta: Mapping[str, int]) -> Iterator[Check]:
    if _COPIES in sizes:
        yield sizes[_COPIES] > 0, "dq_acc must have at least one copy (axis 0)"
    for rows in (sizes[name] for name in _ROWS if name in sizes):
        block = meta["block_q"]
        needed = tirx.truncdiv(sizes["Sq"] + (block - 1), block) * block
        yield (
            rows >= needed,
            f"dq_acc must have as many rows (axis 3) as q, rounded up to a multiple of {block}",
        )


def _tables(sizes: Mapping[str, tirx.Var]) -> Iterator[Check]:
    names = dict.fromkeys(name.partition("_")[0] for name in sizes if name.startswith("table"))
    for table in names:
        extents = [size for name, size in sizes.items() if name.startswith(f"{table}_")]
        filled = extents[0] > 0
        for extent in extents[1:]:
            filled = tirx.And(filled, extent > 0)
        yield filled, f"{table} must have elements: a clamped index would read outside it"


def _grid(sizes: Mapping[str, tirx.Var], grid: Grid) -> Iterator[Check]:
    blocks = grid(Sizes(*(sizes.get(name) for name in ("B", "H", "Hk", "Sq", "Sk"))))
    for axis, extent, limit in zip("xyz", blocks, _GRID_LIMITS, strict=True):
        if not isinstance(extent, int):
            yield (
                extent <= limit,
                f"a launch has at most {limit} blocks in {axis}: split the batch",
            )


def _assert(condition: tirx.Expr, message: str) -> tirx.AssertStmt:
    # The wrapper names its first two parameters the other way round.
    return tirx.AssertStmt(condition, StringImm("ValueError"), [StringImm(message)])
