"""Small Triton kernels beside attention: a matrix product and two operations on rows."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    a, b, c, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """c (m, n) = a (m, k) @ b (k, n), contiguous; grid (m tiles, n tiles)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        mask_a = (rows[:, None] < m) & (inner[None, :] < k)
        mask_b = (inner[:, None] < k) & (columns[None, :] < n)
        a_tile = tl.load(a + rows[:, None] * k + inner[None, :], mask=mask_a, other=0.0)
        b_tile = tl.load(b + inner[:, None] * n + columns[None, :], mask=mask_b, other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision="tf32")
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c + rows[:, None] * n + columns[None, :], total.to(c.dtype.element_ty), mask=mask)


@triton.jit
def matmul_tma(
    a, b, c, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """``matmul`` with tensor map descriptors a, b and c."""
    row, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, k, BLOCK_K):
        total = tl.dot(a.load([row, start]), b.load([start, column]), total)
    c.store([row, column], total.to(tl.float16))


@triton.jit
def softmax(x, y, columns, BLOCK: tl.constexpr):
    """softmax of one row of at most BLOCK columns; grid (rows,)."""
    index = tl.arange(0, BLOCK)
    offsets = tl.program_id(0) * columns + index
    row = tl.load(x + offsets, mask=index < columns, other=float("-inf")).to(tl.float32)
    powers = tl.exp(row - tl.max(row, 0))
    y_row = (powers / tl.sum(powers, 0)).to(y.dtype.element_ty)
    tl.store(y + offsets, y_row, mask=index < columns)


@triton.jit
def layer_norm(x, weight, bias, y, columns, epsilon, BLOCK: tl.constexpr):
    """Layer norm of one row, in pieces of BLOCK columns; grid (rows,)."""
    first = tl.program_id(0) * columns
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        index = start + tl.arange(0, BLOCK)
        sums += tl.load(x + first + index, mask=index < columns, other=0.0).to(tl.float32)
    mean = tl.sum(sums, 0) / columns
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        index = start + tl.arange(0, BLOCK)
        value = tl.load(x + first + index, mask=index < columns, other=0.0).to(tl.float32)
        difference = tl.where(index < columns, value - mean, 0.0)
        squares += difference * difference
    factor = 1.0 / tl.sqrt(tl.sum(squares, 0) / columns + epsilon)
    for start in range(0, columns, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < columns
        value = tl.load(x + first + index, mask=inside, other=0.0).to(tl.float32)
        scaled = (value - mean) * factor * tl.load(weight + index, mask=inside, other=0.0)
        result = scaled + tl.load(bias + index, mask=inside, other=0.0)
        tl.store(y + first + index, result.to(y.dtype.element_ty), mask=inside)
