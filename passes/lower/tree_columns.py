"""The columns of trees, brought together from rows of features: one kernel before the trees'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, Operand, binary, cast, const, minimum, ramp, select
from ...ir.types import DType
from .context import KernelBuilder, Lowering
from .packing import spans
from .strided import PARALLEL_WORK
from .tree_tests import Column, Kind


def are_features(columns: Sequence[Column], features: int) -> bool:
    """Whether the columns are the row as it is."""
    return list(columns) == [(Kind.SAME, f) for f in range(features)]


def rows_of_columns(ctx: Lowering, x: Value, columns: Sequence[Column]) -> Value:
    """[rows, columns], each row by itself."""
    rows, features = x.type.dims
    out = ctx.scratch("columns", x.type.dtype, rows, len(columns))
    k = ctx.kernel()
    data, to = k.tensor(x), k.tensor(out)
    for row in _each(k, rows, len(columns)):
        of, at = k.let(row * features, "of"), k.let(row * len(columns), "at")
        for kind, first, places in _runs(columns):
            if _is_run(places):
                for i, lanes in spans(k, len(places), ctx.lanes(x.type.dtype)):
                    value = k.load(data, of + i + places[0], lanes)
                    k.store(to, at + i + first, _changed(k, kind, value))
                continue
            table = k.tensor(ctx.pack("features", np.asarray(places, np.int32)))
            for i in k.loop("i", len(places)):
                value = k.load(data, of + cast(k.load(table, i), DType.I64))
                k.store(to, at + i + first, _changed(k, kind, value))
    k.done("tree_columns")
    return out


def lanes_of_columns(ctx: Lowering, x: Value, columns: Sequence[Column], width: int) -> Value:
    """[blocks, columns, width]: `width` rows side by side; behind the last row it stands again."""
    rows, features = x.type.dims
    blocks = -(-rows // width)
    out = ctx.scratch("columns", x.type.dtype, blocks, len(columns), width)
    lanes = min(width, ctx.lanes(x.type.dtype))
    k = ctx.kernel()
    data, to = k.tensor(x), k.tensor(out)
    for block in _each(k, blocks, len(columns) * width):
        at = k.let(block * (len(columns) * width), "at")
        for first in range(0, width, lanes):
            row = minimum(ramp(block * width + first, 1, lanes), const(rows - 1, DType.I64, lanes))
            begin = k.let(row * features, "begin")
            for kind, place, places in _runs(columns):
                table: Buffer | None = None
                if not _is_run(places):
                    table = k.tensor(ctx.pack("features", np.asarray(places, np.int32)))
                for i in k.loop("i", len(places)):
                    feature: Operand = i + places[0] if table is None else cast(k.load(table, i), DType.I64)
                    value = k.load(data, begin + feature, lanes)
                    k.store(to, at + (i + place) * width + first, _changed(k, kind, value))
    k.done("tree_columns")
    return out


def _each(k: KernelBuilder, count: int, work: int) -> Iterator[Expr]:
    spread = k.ctx.threads > 1 and count > 1 and count * work >= PARALLEL_WORK
    return k.parallel("t", count) if spread else k.loop("t", count)


def _runs(columns: Sequence[Column]) -> list[tuple[Kind, int, list[int]]]:
    """Neighbours of one kind: the kind, the first column, features."""
    found, at = [], 0
    for kind, group in groupby(columns, key=lambda c: c[0]):
        places = [f for _, f in group]
        found.append((kind, at, places))
        at += len(places)
    return found


def _is_run(places: Sequence[int]) -> bool:
    return list(places) == list(range(places[0], places[0] + len(places)))


def _changed(k: KernelBuilder, kind: Kind, value: Expr) -> Expr:
    x = k.let(value, "x")
    dtype, lanes = x.dtype, x.lanes
    is_nan = binary("ne", x, x)
    if kind is Kind.IS_NAN:
        return select(is_nan, const(1, dtype, lanes), const(0, dtype, lanes))
    result = -x if kind in (Kind.NEGATED, Kind.NEGATED_OR_INF) else x
    if kind in (Kind.SAME_OR_INF, Kind.NEGATED_OR_INF):
        return select(is_nan, const(float("inf"), dtype, lanes), result)
    return result
