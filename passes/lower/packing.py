"""Operands rearranged into the order in which a kernel reads them: at compile time where constant, else by a call."""

from __future__ import annotations

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Expr, cast, const
from ...ir.types import DType
from .context import Lowering
from .gemm_kernel import multiply_add


def gathered(ctx: Lowering, hint: str, source: Value, index: np.ndarray, dtype: DType | None = None) -> Value:
    """out[i] = Σ_j source[index[j, i]] as `dtype` (the source's own by default), with -1 for nothing.

    `index` is [terms, n] with n a multiple of the lanes; the source lies in plain layout.
    """
    dtype = dtype or source.type.dtype
    if source.data is not None:
        flat = np.append(source.data.reshape(-1), source.data.dtype.type(0))
        return ctx.pack(hint, flat[index].astype(dtype.numpy).sum(0, dtype=dtype.numpy))
    terms, n = index.shape
    lanes = ctx.lanes(dtype)
    assert n % lanes == 0, "whole vectors"
    table = ctx.pack(f"{hint}.index", np.maximum(index, 0).reshape(-1).astype(np.int64))
    used = ctx.pack(f"{hint}.used", (index >= 0).reshape(-1).astype(dtype.numpy))
    out = ctx.scratch(hint, dtype, n)
    k = ctx.kernel()
    for i in k.loop("i", n, step=lanes):
        total: Expr = const(0, dtype, lanes)
        for j in range(terms):
            at, mask = (k.load(k.tensor(v), i + j * n, lanes) for v in (table, used))
            total = multiply_add(cast(k.load(k.tensor(source), at, lanes), dtype), mask, total)
        k.store(k.tensor(out), i, total)
    k.done("gather")
    return out


def to_whole_vectors(index: np.ndarray, lanes: int) -> np.ndarray:
    """[terms, n] with -1 appended until n is a multiple of `lanes`."""
    terms, n = index.shape
    return np.pad(index, ((0, 0), (0, -n % lanes)), constant_values=-1)
