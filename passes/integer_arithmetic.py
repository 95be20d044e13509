"""Integer arithmetic between quantised convolutions.

Before: Conv or Gemm of DequantizeLinear nodes, activations with one scale and constant weights; QLinearConv;
ConvInteger whose sums are cast to f32.
After: `c2c.IntegerConv` of levels with the bias in its exact sums; then the scale, and where a QuantizeLinear follows
Clip, Round and Cast (of bytes Round, Cast, Clip, Cast) to the next levels: no tensor of floats between convolutions.
Levels are bytes of the type that products of the target take (`Target.byte_levels`), else i16 from which their zero
point is taken away; so are levels of 16 bits where a Clip before their QuantizeLinear proves that no sum leaves an i32.
Scales fold into one factor a channel, (x scale · w scale) / y scale in f32 as QLinearConv has it; sums of dequantised
tensors are scaled by x scale / y scale. QuantizeLinear moves up through operators that only move or pick elements.
Rounding is to the nearest even level, and no result depends on the target.
Preserves: other operators, which read dequantised values. Needs: constants not folded yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..ir.graph import Graph, Node, Value
from ..ir.reference import element_type
from ..ir.types import DType, TensorType
from .base import GraphRewriter, Pass, PassContext, apply_rules, register_pass
from .pattern import made_by, required
from .quantization import (
    BYTES,
    MOVING,
    PARTS,
    WIDEST,
    Scale,
    bias_of,
    cut_off,
    dequantized,
    level_bounds,
    level_range,
    scale_of,
    shift_between,
    sums_are_exact,
    weights_of,
)
from .rules_quantize import RULES, RULES_OF_GRIDS

WHOLE = 1 << 30
"""Numbers below are rounded to an i32 whatever rounding came before."""

EXACT = 1 << 24
"""Whole numbers below are exact in f32, and so are their sums in any order."""


@register_pass
class IntegerArithmetic(Pass):
    name = "integer-arithmetic"

    def run(self, graph: Graph, context: PassContext) -> bool:
        if not any(n.op in ("DequantizeLinear", "QLinearConv", "ConvInteger") for n in graph.nodes):
            return False
        rules = RULES if context.target.device is None else RULES_OF_GRIDS
        changed = apply_rules(graph, rules, context)
        work = _Rewriting(context.rewriter(graph), context.target.byte_levels)
        for node in list(graph.nodes):
            work.visit(node)
        work.finish()
        return work.rewriter.finish() or changed


@dataclass(frozen=True, slots=True)
class _Sums:
    """A float value as sums · scale + bias, both of [1, K, 1…] or a number, of magnitudes up to `most`."""

    sums: Value
    scale: np.ndarray
    bias: np.ndarray | None
    most: float = float("inf")


@dataclass(frozen=True, slots=True)
class Levels:
    """A tensor of levels whose values are scale · (level - zero)."""

    value: Value
    zero: int


@dataclass(eq=False)
class _Rewriting:
    """levels: of quantised values, by their zero point and the type they are kept in; floats: levels less zero before
    their Cast; sums: what values are. bytes: the type of levels that the target multiplies as bytes."""

    rewriter: GraphRewriter
    bytes: DType | None = None
    levels: dict[tuple[Value, int, DType], Levels] = field(default_factory=dict)
    floats: dict[Value, Value] = field(default_factory=dict)
    sums: dict[Value, _Sums] = field(default_factory=dict)
    place: dict[Value, int] = field(default_factory=dict)
    """Order of the convolutions that values come from."""

    def visit(self, node: Node) -> None:
        node.inputs = tuple(None if v is None else self.rewriter.resolve(v) for v in node.inputs)
        if node.op == "Conv":
            self._convolution(node)
        elif node.op in ("Gemm", "MatMul"):
            self._product(node)
        elif node.op in ("GlobalAveragePool", "ReduceMean", "AveragePool"):
            self._mean(node)

    def _emit(self, op: str, inputs: list[Value | None], type_: TensorType, node: Node, **attrs: object) -> Value:
        new = self.rewriter.emit(op, inputs, [type_], attrs, origin=node.origin, hint=node.output.name)
        return new.output

    def _resolved(self, value: Value) -> Value:
        return self.rewriter.resolve(value)

    def _dequantized(self, value: Value | None) -> tuple[Value, Scale] | None:
        """Levels that can be computed with, of one scale, and that scale."""
        found = dequantized(value)
        if found is None or not found[1].is_single:
            return None
        if found[0].type.dtype in BYTES:
            return found
        low, high = level_bounds(*found)
        small = max(abs(low), abs(high), high - found[1].offset, found[1].offset - low) <= WIDEST
        return found if small else None

    def _largest_level(self, q: Value, scale: Scale) -> int:
        """The largest magnitude of a level less its zero point."""
        low, high = level_bounds(q, scale)
        return max(high - scale.offset, scale.offset - low)

    def _convolution(self, node: Node) -> None:
        found, weights = self._dequantized(node.input(0)), weights_of(node.input(1))
        if found is None or weights is None or not node.output.type.is_static:
            return
        (x, scale), (w, w_scale) = found, weights
        bias = bias_of(node, scale.step * w_scale)
        if bias is None:
            return
        if x.type.dtype not in BYTES or w.dtype != np.int8:
            depthwise = node.attrs.get("group", 1) > 1 and w.shape[1] == 1
            if not sums_are_exact(w, bias[0], self._largest_level(x, scale), depthwise=depthwise):
                return
        if not self.rewriter.allow("integer-arithmetic", node):
            return
        self._replace(node, x, scale, w, w_scale, bias, node.attrs)

    def _product(self, node: Node) -> None:
        """A product with constant weights: of one row as a convolution of one pixel, of several as MatMulInteger."""
        found, weights = self._dequantized(node.input(0)), weights_of(node.input(1), axis=None)
        attrs = node.attrs
        if found is None or weights is None or not node.output.type.is_static:
            return
        (x, scale), (w, w_scale) = found, weights
        single, narrow = required(node).type.shape[:-1] == (1,), x.type.dtype in BYTES and w.dtype == np.int8
        if not single and (not narrow or required(node).type.rank < 2 or node.output.type.size == 0):
            return
        if w.ndim != 2 or attrs.get("transA", 0) or attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0:
            return
        along = 0 if attrs.get("transB", 0) else 1
        if w_scale.ndim and w_scale.size > 1 and w_scale.shape[1 - along] != 1:
            return
        w = w if along == 0 else w.T
        w_scale = w_scale.reshape(-1)
        bias = bias_of(node, scale.step * w_scale)
        if bias is None:
            return
        if not narrow and not sums_are_exact(w, bias[0], self._largest_level(x, scale), depthwise=False):
            return
        if not self.rewriter.allow("integer-arithmetic", node):
            return
        if single:
            return self._replace(node, x, scale, w[:, :, None, None], w_scale, bias, {})
        return self._replace_rows(node, (x, scale), w.T, w_scale, bias)

    def _replace_rows(
        self,
        node: Node,
        found: tuple[Value, Scale],
        w: np.ndarray,
        w_scale: np.ndarray,
        bias: tuple[np.ndarray | None, np.ndarray | None],
    ) -> None:
        """x · w by MatMulInteger, w [K, N]."""
        rw, (x, scale), type_ = self.rewriter, found, node.output.type
        levels = self._levels(x, scale.offset, node, self.bytes or x.type.dtype)
        inputs: list[Value | None] = [levels.value, rw.constant(f"{node.output.name}.weights", np.ascontiguousarray(w))]
        if levels.zero:
            inputs.append(self._number(levels.zero, levels.value.type.dtype.numpy))
        sums = self._emit("MatMulInteger", inputs, type_.with_dtype(DType.I32), node)
        if bias[0] is not None:
            sums = self._emit("Add", [sums, rw.constant(f"{node.output.name}.bias", bias[0])], sums.type, node)
        wide = self._cast(sums, DType.F32, node)
        factor = scale.step * w_scale.astype(np.float32)
        self._scaled(node, _Sums(wide, factor if factor.size > 1 else factor.reshape(()), bias[1]))

    def _scaled(self, node: Node, found: _Sums) -> None:
        """`found` in place of the node's result."""
        result = self._scaled_sums(found, np.float32(1), node)
        self.sums[result] = found
        self.place[result] = len(self.place)
        self.rewriter.replace(node.output, result)

    def _replace(
        self,
        node: Node,
        x: Value,
        scale: Scale,
        w: np.ndarray,
        w_scale: np.ndarray,
        bias: tuple[np.ndarray | None, np.ndarray | None],
        attrs: dict[str, object],
    ) -> None:
        rw, rank = self.rewriter, w.ndim
        narrow = self.bytes is not None and w.dtype == np.int8 and x.type.dtype in BYTES
        form = self.bytes if narrow else DType.I16
        levels = self._levels(x, scale.offset, node, form)
        data, type_ = levels.value, node.output.type
        if data.type.rank != rank:
            shape = rw.constant("shape", np.asarray([1, w.shape[1], 1, 1], np.int64))
            data = self._emit("Reshape", [data, shape], data.type.with_shape((1, w.shape[1], 1, 1)), node)
            type_ = type_.with_shape((1, w.shape[0], 1, 1))
        low, high = level_bounds(x, scale)
        largest = max(high - scale.offset, scale.offset - low)
        attrs = {**attrs, "largest": largest, "least": low - scale.offset}
        inputs: list[Value | None] = [data, rw.constant(f"{node.output.name}.weights", w)]
        if bias[0] is not None or levels.zero:
            inputs.append(None if bias[0] is None else rw.constant(f"{node.output.name}.bias", bias[0]))
        if levels.zero:
            inputs.append(self._number(levels.zero, data.type.dtype.numpy))
        sums = self._emit("c2c.IntegerConv", inputs, type_, node, **attrs)
        across = (1, -1, *(1,) * (rank - 2)) if w_scale.size > 1 else ()
        factor = (scale.step * w_scale.astype(np.float32)).reshape(across)
        most = _most(w, largest, bias, factor)
        found = _Sums(sums, factor, None if bias[1] is None else bias[1].reshape(1, -1, *(1,) * (rank - 2)), most)
        if type_.shape != node.output.type.shape:
            shape = rw.constant("shape", np.asarray(node.output.type.dims, np.int64))
            found = _Sums(
                self._emit("Reshape", [sums, shape], node.output.type, node),
                factor.reshape(1, -1) if factor.size > 1 else factor,
                None if found.bias is None else found.bias.reshape(1, -1),
                most,
            )
        self._scaled(node, found)

    def _scaled_sums(self, found: _Sums, step: np.float32, node: Node) -> Value:
        """sums · (scale / step) + bias / step."""
        rw, type_ = self.rewriter, found.sums.type
        factor = rw.constant("scale", (found.scale / step).astype(np.float32))
        value = self._emit("Mul", [found.sums, factor], type_, node)
        if found.bias is not None:
            shift = rw.constant("bias", (found.bias / step).astype(np.float32))
            value = self._emit("Add", [value, shift], type_, node)
        return value

    def _mean(self, node: Node) -> None:
        """The mean of levels, whose sum f32 holds exactly, before their scale."""
        found = self._dequantized(node.input(0))
        if found is None or not node.output.type.is_static:
            return
        x, scale = found
        if required(node).type.size * self._largest_level(x, scale) >= EXACT * x.type.dims[0]:
            return
        if not self.rewriter.allow("integer-arithmetic", node):
            return
        levels = self._levels(x, scale.offset, node)
        type_ = levels.value.type.with_dtype(DType.F32)
        wide = self._emit("Cast", [levels.value], type_, node, to=element_type(DType.F32))
        if levels.zero:
            wide = self._emit("Sub", [wide, self._number(levels.zero, np.float32)], type_, node)
        mean = self._emit(node.op, [wide, *node.inputs[1:]], node.output.type, node, **node.attrs)
        found_sums = _Sums(mean, np.asarray(scale.step), None)
        result = self._scaled_sums(found_sums, np.float32(1), node)
        self.sums[result] = found_sums
        self.rewriter.replace(node.output, result)

    # ---- levels

    def _number(self, value: float | np.floating[Any], dtype: DTypeLike) -> Value:
        return self.rewriter.constant("number", np.asarray(value, dtype))

    def _levels(self, q: Value, zero: int, reader: Node, form: DType | None = None) -> Levels:
        """Levels in a type, by default one that is there: bytes, or less `zero` in i16 where the target does not
        multiply bytes or they have more bits."""
        q = self.rewriter.resolve(q)
        own = self._own_form(q)
        if form is None:
            form = next((f for f in (own, q.type.dtype) if (q, zero, f) in self.levels), own)
        if (q, zero, form) not in self.levels:
            self.levels[q, zero, form] = self._made_levels(q, zero, reader, form)
        return self.levels[q, zero, form]

    def _own_form(self, q: Value) -> DType:
        return self.bytes or DType.I16 if q.type.dtype in BYTES else DType.I16

    def _made_levels(self, q: Value, zero: int, reader: Node, form: DType) -> Levels:
        is_byte = q.type.dtype in BYTES
        if form is DType.I16 and is_byte and (self.bytes is not None or (q, zero, q.type.dtype) in self.levels):
            narrow = self._levels(q, zero, reader, self.bytes or q.type.dtype)
            return Levels(self._shifted(narrow.value, -narrow.zero, form, reader), 0)
        node = q.producer
        scale = scale_of(node) if node is not None and node.op == "QuantizeLinear" else None
        shift = shift_between(q.type.dtype, zero, form)
        if node is not None and scale is not None and scale.is_single and scale.offset == zero:
            return Levels(self._quantized(node, scale, form, zero + shift), zero + shift)
        if node is not None and node.op in MOVING and len(node.outputs) == 1:
            count = len(node.inputs) if node.op in PARTS else 1
            parts: list[Value | None] = [self._levels(required(node, i), zero, node, form).value for i in range(count)]
            type_ = q.type.with_dtype(form)
            return Levels(self._emit(node.op, [*parts, *node.inputs[count:]], type_, node, **node.attrs), zero + shift)
        return Levels(self._shifted(q, shift, form, reader), zero + shift)

    def _shifted(self, levels: Value, shift: int, form: DType, reader: Node) -> Value:
        """Whole numbers + shift, which fits `form`."""
        if shift:
            levels = self._cast(levels, DType.I16, reader)
            levels = self._emit("Add", [levels, self._number(shift, np.int16)], levels.type, reader)
        return self._cast(levels, form, reader)

    def _cast(self, value: Value, dtype: DType, reader: Node) -> Value:
        if value.type.dtype is dtype:
            return value
        return self._emit("Cast", [value], value.type.with_dtype(dtype), reader, to=element_type(dtype))

    def _quantized(self, node: Node, scale: Scale, form: DType, zero: int) -> Value:
        """Round(x / scale) in the range of the levels less their zero point, then `zero` more."""
        x = self._resolved(required(node))
        low, high = level_range(node.output.type.dtype)
        low, high = low - scale.offset, high - scale.offset
        x, low, high = cut_off(x, scale.step, low, high, self._resolved)
        ends: list[Value | None] = [self._number(e, np.float32) for e in (low, high)]
        divided = self._divided(x, scale.step, node)
        clipped = self._emit("Clip", [divided, *ends], x.type, node)
        rounded = self._emit("Round", [clipped], x.type, node)
        if form is self.bytes and self._largest(x) / scale.step < WHOLE:
            levels = self._saturated(divided, zero, (low, high), form, node)
        else:
            levels = self._shifted(rounded, zero, form, node)
        self.floats[levels] = rounded
        if x in self.place:
            self.place[levels] = self.place[x]
        return levels

    def _largest(self, x: Value) -> float:
        """The largest magnitude of a value as far as it is known."""
        if x in self.sums:
            return self.sums[x].most
        add = made_by(x, "Add")
        parts = [] if add is None else [self._dequantized(self._resolved(v)) for v in add.inputs if v is not None]
        known = [float(p[1].step) * self._largest_level(*p) for p in parts if p is not None]
        return sum(known) if add is not None and len(known) == 2 else float("inf")

    def _saturated(self, x: Value, zero: int, ends: tuple[int, int], form: DType, node: Node) -> Value:
        """The same of numbers that i32 holds, cut off as whole numbers: conversions to bytes do that."""
        whole = self._cast(self._emit("Round", [x], x.type, node), DType.I32, node)
        if zero:
            whole = self._emit("Add", [whole, self._number(zero, np.int32)], whole.type, node)
        limits: list[Value | None] = [self._number(e + zero, np.int32) for e in ends]
        return self._cast(self._emit("Clip", [whole, *limits], whole.type, node), form, node)

    def _divided(self, x: Value, step: np.float32, node: Node) -> Value:
        """x / step, the division folded into constants where there are some."""
        if x in self.sums:
            return self._scaled_sums(self.sums[x], step, node)
        if (found := self._dequantized(x)) is not None:
            return self._rescaled(found, step, node, inside=False)
        add = made_by(x, "Add")
        if add is not None and (terms := self._terms(add, step, node)) is not None:
            return self._emit("Add", terms, x.type, node)
        return self._emit("Div", [x, self.rewriter.constant("step", np.asarray(step))], x.type, node)

    def _terms(self, add: Node, step: np.float32, node: Node) -> list[Value | None] | None:
        """Both sides of a sum over `step`: two dequantised tensors of its size, or one and a convolution's sums."""
        operands = [self._resolved(required(add, i)) for i in range(2)]
        if any(v.type.shape != add.output.type.shape for v in operands):
            return None
        a, b = (self._dequantized(v) for v in operands)
        if a is None or b is None:
            part, other = (b, operands[0]) if a is None else (a, operands[1])
            if part is None or other not in self.sums:
                return None
            return [self._scaled_sums(self.sums[other], step, node), self._rescaled(part, step, node, inside=False)]
        order = [self.place.get(self._levels(p[0], p[1].offset, node).value, -1) for p in (a, b)]
        inside = [order[0] > order[1], order[1] > order[0]]
        return [self._rescaled(p, step, node, inside=i) for p, i in zip((a, b), inside, strict=True)]

    def _rescaled(self, found: tuple[Value, Scale], step: np.float32, node: Node, *, inside: bool) -> Value:
        """A dequantised value over `step`; `inside`: of the levels before their Cast, where nobody else needs those."""
        q, scale = found
        levels = self._levels(q, scale.offset, node)
        factor = self._number(np.float32(scale.step / step), np.float32)
        type_ = levels.value.type.with_dtype(DType.F32)
        if inside and levels.value in self.floats and self.rewriter.has_one_reader(q):
            return self._emit("Mul", [self.floats[levels.value], factor], type_, node)
        return self._from_levels(levels, factor, type_, node)

    def _from_levels(self, levels: Levels, factor: Value, type_: TensorType, node: Node) -> Value:
        inputs: list[Value | None] = [levels.value, factor]
        if levels.zero:
            inputs.append(self._number(levels.zero, levels.value.type.dtype.numpy))
        return self._emit("DequantizeLinear", inputs, type_, node)

    # ---- what still reads dequantised values

    def finish(self) -> None:
        """Values dequantised from levels that are there are made of those."""
        for node in list(self.rewriter.graph.nodes):
            scale = scale_of(node) if node.op == "DequantizeLinear" else None
            if scale is None or not scale.is_single:
                continue
            q = self.rewriter.resolve(required(node))
            forms = (self._own_form(q), q.type.dtype)
            if any((q, scale.offset, f) in self.levels for f in forms):
                levels = self._levels(q, scale.offset, node)
                factor = self._number(scale.step, np.float32)
                self.rewriter.replace(node.output, self._from_levels(levels, factor, node.output.type, node))


def _most(w: np.ndarray, largest: int, bias: tuple[np.ndarray | None, np.ndarray | None], factor: np.ndarray) -> float:
    """The largest magnitude of (Σ x w + bias[0]) · factor + bias[1] for magnitudes of x of up to `largest`."""
    sums = np.abs(w.astype(np.float64)).reshape(len(w), -1).sum(1) * largest
    sums = (sums + (0 if bias[0] is None else np.abs(bias[0].astype(np.float64)))) * factor.reshape(-1).astype(
        np.float64
    )
    return float((sums + (0 if bias[1] is None else np.abs(bias[1].astype(np.float64)))).max(initial=0))
