"""Dot products of the four bytes of two words, added to a 32-bit sum that wraps: one helper a language, which takes the
device's instruction where the compiler knows one and is written out elsewhere.

A helper is `c2c_dot_ss` for signed by signed bytes, with `u` for unsigned ones. OpenCL: cl_khr_integer_dot_product (The
OpenCL Extension Specification), cl_arm_integer_dot_product_accumulate_int8 (Khronos registry); CUDA: __dp4a from
compute capability 6.1 on (CUDA Math API).
"""

from __future__ import annotations

from .devices import Dialect

_HEAD = "static inline int32_t c2c_{name}(int32_t a, int32_t b, int32_t c)\n{{\n{body}}}\n"
_ARM = "cl_arm_integer_dot_product_accumulate_int8"


def dot_helper(name: str, dialect: Dialect, *, arm: bool = False) -> str:
    """The text of helper `c2c_<name>`; `arm`: for a device that may have Arm's extension."""
    left, right = name[-2], name[-1]
    forms = {"opencl": _khronos, "cuda": _cuda}.get(dialect, _none)(left, right)
    arm = arm and left == right
    text = _HEAD.format(name=name, body=_body(left, right, [*forms, *(_arm(left) if arm else ())]))
    return text if not arm else f"#ifdef {_ARM}\n#pragma OPENCL EXTENSION {_ARM} : enable\n#endif\n{text}"


def _body(left: str, right: str, forms: list[tuple[str, str]]) -> str:
    written_out = f"    return {_wrapped(_products(left, right))};\n"
    if not forms:
        return written_out
    tests = "".join(f"#{'el' if i else ''}if {test}\n    return {value};\n" for i, (test, value) in enumerate(forms))
    return f"{tests}#else\n{written_out}#endif\n"


def _products(left: str, right: str) -> str:
    types = [{"s": "int8_t", "u": "uint8_t"}[sign] for sign in (left, right)]
    return " + ".join(f"({types[0]}){_byte('a', s)} * ({types[1]}){_byte('b', s)}" for s in (0, 8, 16, 24))


def _byte(word: str, shift: int) -> str:
    return f"({word} >> {shift})" if shift else word


def _wrapped(total: str) -> str:
    return f"(int32_t)((uint32_t)c + (uint32_t)({total}))"


def _khronos(left: str, right: str) -> list[tuple[str, str]]:
    result = "uint" if left == right == "u" else "int"
    packed = _wrapped(f"dot_4x8packed_{left}{right}_{result}(as_uint(a), as_uint(b))")
    return [("defined(__opencl_c_integer_dot_product_input_4x8bit_packed)", packed)]


def _arm(sign: str) -> list[tuple[str, str]]:
    vector, total = ("uchar4", "as_uint(c)") if sign == "u" else ("char4", "c")
    return [(f"defined({_ARM})", f"as_int(arm_dot_acc(as_{vector}(a), as_{vector}(b), {total}))")]


def _cuda(left: str, right: str) -> list[tuple[str, str]]:
    if left != right:
        return []
    words = ("a", "b", "c") if left == "s" else ("(uint32_t)a", "(uint32_t)b", "(uint32_t)c")
    return [("__CUDA_ARCH__ >= 610", f"(int32_t)__dp4a({', '.join(words)})")]


def _none(left: str, right: str) -> list[tuple[str, str]]:
    return []
