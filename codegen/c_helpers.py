"""C helper functions that generated code calls: each in portable C99, without undefined behaviour, by name.

A name is `c2c_<function>_<type>`; `helper` gives its text and the helpers that it calls itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.errors import CodegenError
from ..ir.types import DType

SMALL_FLOATS = (DType.F16, DType.BF16)
"""Kept as their bits in a uint16_t; computed in float."""

C_TYPES = {
    DType.F32: "float", DType.F64: "double", DType.F16: "uint16_t", DType.BF16: "uint16_t", DType.BOOL: "uint8_t",
    DType.I8: "int8_t", DType.I16: "int16_t", DType.I32: "int32_t", DType.I64: "int64_t",
    DType.U8: "uint8_t", DType.U16: "uint16_t", DType.U32: "uint32_t", DType.U64: "uint64_t",
}  # fmt: skip

_NARROW = """\
/* The bits of x in a 16-bit float with `mantissa` bits and exponent bias `bias`, rounded to nearest even. */
static inline uint16_t c2c_narrow(double x, int mantissa, int bias)
{
    uint64_t bits, fraction, kept, rest, half;
    int exponent, shift = 52 - mantissa;
    uint16_t sign, inf = (uint16_t)((2 * bias + 1) << mantissa);
    memcpy(&bits, &x, sizeof bits);
    sign = (uint16_t)(bits >> 48 & 0x8000);
    exponent = (int)(bits >> 52 & 0x7ff);
    fraction = bits & 0xfffffffffffff;
    if (exponent == 0x7ff)
        return (uint16_t)(sign | inf | (fraction ? 1u << (mantissa - 1) | (unsigned)(fraction >> shift) : 0u));
    exponent += bias - 1023;
    if (exponent > 2 * bias)
        return (uint16_t)(sign | inf);
    if (exponent <= 0) {
        if (exponent < -mantissa)
            return sign;
        fraction |= (uint64_t)1 << 52;
        shift += 1 - exponent;
        exponent = 0;
    }
    kept = (fraction >> shift) + ((uint64_t)exponent << mantissa);
    rest = fraction & (((uint64_t)1 << shift) - 1);
    half = (uint64_t)1 << (shift - 1);
    return (uint16_t)(sign | (kept + (rest > half || (rest == half && (kept & 1)))));
}
"""

_F16_TO_FLOAT = """\
static inline float c2c_float_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff, bits;
    float x = (float)fraction * 5.9604644775390625e-8f; /* 2^-24: subnormal and zero */
    memcpy(&bits, &x, sizeof bits);
    if (exponent)
        bits = (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    bits |= sign;
    memcpy(&x, &bits, sizeof x);
    return x;
}
"""

_BF16_TO_FLOAT = """\
static inline float c2c_float_bf16(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
"""

_BITS = """\
static inline {to} {name}({source} x)
{{
    {to} y;
    memcpy(&y, &x, sizeof y);
    return y;
}}
"""

_FIXED = {
    "narrow": _NARROW,
    "float_f16": _F16_TO_FLOAT,
    "float_bf16": _BF16_TO_FLOAT,
    "f16": "static inline uint16_t c2c_f16(double x) { return c2c_narrow(x, 10, 15); }\n",
    "bf16": "static inline uint16_t c2c_bf16(double x) { return c2c_narrow(x, 7, 127); }\n",
}
_NEEDS = {"f16": ("narrow",), "bf16": ("narrow",)}

_PAIRS = {"min": "<", "max": ">"}
_BIT_CASTS = {
    f"{to}_of_{source}": (to, source)
    for to, source in (("f32", "u32"), ("u32", "f32"), ("f64", "u64"), ("u64", "f64"))
}  # fmt: skip


def unsigned(dtype: DType) -> str:
    """The unsigned C type in which integer arithmetic of `dtype` wraps; at least 32 bits, past C's promotions."""
    return "uint64_t" if dtype.bits == 64 else "uint32_t"


def helper(
    name: str, types: Mapping[DType, str] = C_TYPES, as_bits: tuple[DType, ...] = SMALL_FLOATS
) -> tuple[str, tuple[str, ...]]:
    """Text of helper `c2c_<name>` and the names of the helpers that it needs; raises CodegenError. types: by the names
    of the language; as_bits: which of them are kept as their bits."""
    if name in _FIXED:
        return _FIXED[name], _NEEDS.get(name, ())
    if name in _BIT_CASTS:
        to, source = (C_TYPES[DType(t)] for t in _BIT_CASTS[name])
        return _BITS.format(to=to, source=source, name=f"c2c_{name}"), ()
    function, _, spelled = name.partition("_")
    dtype = DType(spelled)
    c, u, n = types[dtype], unsigned(dtype), f"c2c_{name}"
    if function in _PAIRS and dtype in as_bits:
        wide = f"c2c_float_{dtype}"
        body = f"return {wide}(a) {_PAIRS[function]} {wide}(b) ? a : b;"
        return f"static inline {c} {n}({c} a, {c} b) {{ {body} }}\n", (f"float_{dtype}",)
    if function in _PAIRS:
        return f"static inline {c} {n}({c} a, {c} b) {{ return a {_PAIRS[function]} b ? a : b; }}\n", ()
    negated = f"({c})(({u})0 - ({u})a)"  # wraps for the least number, as does dividing it by -1
    if function == "abs":
        return f"static inline {c} {n}({c} a) {{ return a < 0 ? {negated} : a; }}\n", ()
    if function == "div":
        return f"static inline {c} {n}({c} a, {c} b) {{ return b == -1 ? {negated} : ({c})(a / b); }}\n", ()
    if function == "mod":
        return f"static inline {c} {n}({c} a, {c} b) {{ return b == -1 ? 0 : ({c})(a % b); }}\n", ()
    raise CodegenError(f"there is no C helper {name}")
