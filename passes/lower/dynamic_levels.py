"""Levels of 8 bits by a range that is found when the kernel runs, as DynamicQuantizeLinear has it.

scale = (max - min) / 255 over values and zero, zero point = round(-min / scale) from 0 to 255, level = round(x / scale)
+ zero point; a tensor of zeros has scale 1 / 255.
"""

from __future__ import annotations

from ...ir.loops import Buffer, Expr, binary, broadcast, cast, const, maximum, minimum, reduce, select, unary
from ...ir.types import DType
from .context import KernelBuilder
from .packing import spans


def found_range(k: KernelBuilder, source: Buffer, first: Expr, size: int) -> tuple[Expr, Expr]:
    """Scale and zero point (both f32) of `size` elements from `first` on."""
    lanes = k.ctx.lanes()
    ends = k.registers("ends", DType.F32, 2, lanes)
    low, high = k.registers("low", DType.F32, 1, 1), k.registers("high", DType.F32, 1, 1)
    for i in range(2):
        k.store(ends, i, const(0.0, DType.F32, lanes))
    for buffer in (low, high):
        k.store(buffer, 0, const(0.0, DType.F32))
    for at, width in spans(k, size, lanes):
        v = k.let(k.load(source, first + at, width), "v")
        if width == lanes:
            k.store(ends, 0, minimum(k.load(ends, 0), v))
            k.store(ends, 1, maximum(k.load(ends, 1), v))
        else:
            k.store(low, 0, minimum(k.load(low, 0), reduce("min", v)))
            k.store(high, 0, maximum(k.load(high, 0), reduce("max", v)))
    least = k.let(minimum(k.load(low, 0), reduce("min", k.load(ends, 0))), "least")
    most = k.let(maximum(k.load(high, 0), reduce("max", k.load(ends, 1))), "most")
    return scale_and_zero(k, least, most)


def scale_and_zero(k: KernelBuilder, least: Expr, most: Expr) -> tuple[Expr, Expr]:
    """Scale and zero point (both f32) of a range that holds zero."""
    extent = k.let(most - least, "extent")
    scale = k.let(select(extent > 0.0, extent, 1.0) / 255.0, "scale")
    return scale, k.let(unary("round", minimum(maximum(0.0 - least / scale, 0.0), 255.0)), "zero")


def level(value: Expr, scale: Expr, zero: Expr, form: DType) -> Expr:
    """Levels of a vector: u8, i8 (less 128), or i16 less their zero point."""
    width = value.lanes
    found = unary("round", value / broadcast(scale, width)) + broadcast(zero, width)
    found = minimum(maximum(found, 0.0), 255.0)
    if form is DType.I16:
        return cast(found - broadcast(zero, width), DType.I16)
    found = cast(found, DType.U8)
    return found if form is DType.U8 else binary("xor", cast(found, DType.I8), const(-128, DType.I8, width))
