"""MatMul and Gemm as products of strided matrices."""

from __future__ import annotations

from math import prod

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, cast, const
from ...ir.types import DType
from ..absorb_transposes import permuted
from .block_bytes import lower_block_product
from .book_kernel import book_plan, multiply_by_book
from .context import KernelBuilder, Lowering, Site, lowers, strides
from .dot_kernel import multiply_by_dots, prefers_dots
from .gemm_kernel import multiply_by_panels
from .grid.product import multiply_matrices
from .plane_product import multiply_by_planes, plane_form
from .product import Matrix, Product, unravel

ACCUMULATORS = {DType.F16: DType.F32, DType.BF16: DType.F32}
"""Types whose sums are kept in a wider one."""


@lowers("MatMul", "c2c.MatMul")
def lower_matmul(ctx: Lowering) -> None:
    """numpy.matmul: the last two axes are matrices, the others broadcast; a 1-D operand is a row or a column.

    c2c.MatMul: of operands and with a result whose axes are permuted (`passes/absorb_transposes.py`).
    """
    if ctx.head:
        return lower_block_product(ctx)
    a, b = ctx.node.inputs[:2]
    assert a is not None and b is not None
    perm_a, perm_b, perm_y = (ctx.node.attrs.get(key) for key in ("perm_a", "perm_b", "perm_y"))
    dims_a, dims_b = permuted(a.type.dims, perm_a), permuted(b.type.dims, perm_b)
    steps_a, steps_b = permuted(strides(a.type), perm_a), permuted(strides(b.type), perm_b)
    rows, columns = len(dims_a) > 1, len(dims_b) > 1
    m, k, n = dims_a[-2] if rows else 1, dims_a[-1], dims_b[-1] if columns else 1
    batch = np.broadcast_shapes(dims_a[:-2], dims_b[:-2])
    left = Matrix(a, batch_strides(dims_a, steps_a, batch), steps_a[-2] if rows else 0, 1)
    right = Matrix(
        b, batch_strides(dims_b, steps_b, batch), steps_b[-2] if columns else 1, steps_b[-1] if columns else 0
    )
    folds = prod(batch) > 1 and rows and not any(right.batch) and _is_contiguous(left, batch, m)
    dtype = ctx.node.output.type.dtype

    def finish(kb: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
        *outer, i, j = coords
        if folds:
            outer, i = _unfold_rows(kb, i, batch, m)
        at = (*outer, *((i,) if rows else ()), *((j,) if columns else ()))
        write(ctx, kb, Site(permuted(at, perm_y), -1, lanes), cast(value, dtype))

    acc = ACCUMULATORS.get(dtype, dtype)
    if folds:
        left, right = Matrix(a, (), left.row, left.col), Matrix(b, (), right.row, right.col)
        multiply(ctx, Product((), prod(batch) * m, n, k, left, right, acc, finish), "matmul")
    else:
        multiply(ctx, Product(batch, m, n, k, left, right, acc, finish), "matmul")


@lowers("Gemm")
def lower_gemm(ctx: Lowering) -> None:
    """alpha · A' · B' + beta · C, with C broadcast to the result."""
    if ctx.head:
        return lower_block_product(ctx)
    a, b = ctx.node.inputs[:2]
    assert a is not None and b is not None
    attrs, dtype = ctx.node.attrs, ctx.node.output.type.dtype
    alpha, beta = attrs.get("alpha", 1.0), attrs.get("beta", 1.0)
    m, n = ctx.node.output.type.dims
    k = a.type.dims[0 if attrs.get("transA", 0) else 1]
    acc = ACCUMULATORS.get(dtype, dtype)
    if b.data is not None and alpha != 1.0 and dtype.is_float:
        b, alpha = ctx.pack("scaled", (b.data * np.float64(alpha)).astype(b.data.dtype)), 1.0
    c = ctx.node.input(2)
    if beta == 0.0:
        c = None
    start = None
    if c is not None and c.data is not None and alpha == 1.0 and c.type.dims[-1:] == (n,) and c.type.size == n:
        start, c = _column_start(ctx, c.data, beta, n, acc), None

    def finish(kb: KernelBuilder, coords: tuple[Expr, ...], lanes: int, value: Expr) -> None:
        site = Site(coords, -1, lanes)
        if alpha != 1.0:
            value = value * _scalar(alpha, acc, lanes)
        if c is not None:
            bias = cast(kb.read(c, site), acc)
            value = value + (bias if beta == 1.0 else bias * _scalar(beta, acc, lanes))
        write(ctx, kb, site, cast(value, dtype))

    multiply(
        ctx,
        Product(
            (), m, n, k, _matrix(a, attrs.get("transA", 0)), _matrix(b, attrs.get("transB", 0)), acc, finish, start
        ),
        "gemm",
    )


def multiply(ctx: Lowering, p: Product, family: str) -> None:
    """Append the kernel calls of a product to the node's calls."""
    if p.k == 0 or p.macs == 0:
        _empty(ctx, p, family)
    elif ctx.target.device is not None:
        multiply_matrices(ctx, p, family)
    elif prefers_dots(ctx, p):
        multiply_by_dots(ctx, p, family)
    elif (plan := book_plan(ctx, p)) is not None:
        if plan.tile is None:
            multiply_by_panels(ctx, p, family, plan.book)
        else:
            multiply_by_book(ctx, p, plan.book, plan.tile, family)
    elif (form := plane_form(ctx, p)) is not None:
        multiply_by_planes(ctx, p, form, family)
    else:
        multiply_by_panels(ctx, p, family)


def _empty(ctx: Lowering, p: Product, family: str) -> None:
    """Sums over nothing."""
    if prod(p.batch) * p.m * p.n == 0:
        return
    k = ctx.kernel()
    for t in k.loop("t", prod(p.batch)):
        for m in k.loop("m", p.m):
            for n in k.loop("n", p.n):
                begin = const(0, p.acc) if p.start is None else cast(k.load(k.tensor(p.start), n), p.acc)
                p.finish(k, (*unravel(t, p.batch), m, n), 1, begin)
    k.done(family)


def write(ctx: Lowering, k: KernelBuilder, site: Site, value: Expr) -> None:
    """The fused tail, then the store."""
    k.write(ctx.output, site, ctx.epilogue(k, site, value))


def _matrix(value: Value, transposed: int) -> Matrix:
    columns = value.type.dims[1]
    return Matrix(value, (), 1, columns) if transposed else Matrix(value, (), columns, 1)


def _column_start(ctx: Lowering, bias: np.ndarray, beta: float, n: int, acc: DType) -> Value:
    """beta · bias, padded to whole vectors."""
    lanes = ctx.lanes(acc)
    padded = np.zeros(-(-n // lanes) * lanes, acc.numpy)
    scaled = bias.reshape(-1).astype(acc.numpy)
    padded[:n] = scaled if beta == 1.0 else (scaled * np.float64(beta)).astype(acc.numpy)
    return ctx.pack("start", padded)


def _scalar(value: float, dtype: DType, lanes: int) -> Expr:
    return const(value if dtype.is_float else int(value), dtype, lanes)


def batch_strides(dims: tuple[int, ...], steps: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides over the result's batch dimensions, 0 where the operand is broadcast; of its own dimensions and
    strides."""
    missing = len(batch) - len(dims[:-2])
    return (0,) * missing + tuple(0 if d == 1 else s for d, s in zip(dims[:-2], steps[:-2], strict=True))


def _is_contiguous(a: Matrix, batch: tuple[int, ...], m: int) -> bool:
    """Whether the rows of all batches follow each other at one stride."""
    step = a.row * m
    for d, s in zip(reversed(batch), reversed(a.batch), strict=True):
        if d > 1 and s != step:
            return False
        step *= d
    return True


def _unfold_rows(k: KernelBuilder, row: Expr, batch: tuple[int, ...], m: int) -> tuple[list[Expr], Expr]:
    """Batch coordinates and row of a row counted over all batches."""
    rest, i = (row, const(0)) if m == 1 else (row / m, row % m)
    outer: list[Expr] = []
    left = prod(batch)
    for d in batch:
        left //= d
        outer.append(const(0) if d == 1 else k.let(rest / left % d if left * d < prod(batch) else rest / left, "batch"))
    return outer, k.let(i, "row")
