"""Mathematical functions on this machine, one thread: nanoseconds and cycles of a vector, and the largest error.

    python benchmarks/functions.py [--seconds 0.3] [NAME...]

A function runs over 4096 elements in the first-level cache, in [-8, 8] (positive ones for the logarithm). The clock is
taken from a chain of additions, each `--add-cycles` long. Errors are in units in the last place of f32, and absolute,
against the C library in f64; tests sweep all exponents.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from c2c.codegen.target import native
from c2c.compiler.machine import least, load_kernel
from c2c.ir.loops import Expr, const
from c2c.ir.loops_builder import Builder
from c2c.ir.types import DType
from c2c.passes.lower import math_functions as mathf
from c2c.runtime_stub.loader import Loaded

SIZE, ROUNDS = 4096, 20
Array = np.ndarray[Any, Any]
Exact = Callable[[float], float]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


FUNCTIONS: dict[str, tuple[Callable[[Builder, Expr], Expr], Exact]] = {
    "exp": (mathf.exp, math.exp),
    "exp_clamped": (mathf.exp_clamped, math.exp),
    "expm1": (mathf.expm1, math.expm1),
    "log": (mathf.log, math.log),
    "sigmoid": (mathf.sigmoid, _sigmoid),
    "tanh": (mathf.tanh, math.tanh),
    "erf": (mathf.erf, math.erf),
    "gelu": (mathf.gelu, lambda x: x * math.erfc(-x / math.sqrt(2)) / 2),
    "softplus": (mathf.softplus, lambda x: math.log1p(math.exp(x))),
    "sin": (mathf.sin, math.sin),
    "cos": (mathf.cos, math.cos),
}


def looped(function: Callable[[Builder, Expr], Expr], lanes: int) -> Loaded:
    k = Builder()
    x, y = k.param("x", DType.F32, SIZE), k.param("y", DType.F32, SIZE)
    for _ in k.loop("round", ROUNDS):
        for i in k.loop("i", SIZE, step=lanes):
            k.store(y, i, function(k, k.let(k.load(x, i, lanes))))
    return load_kernel(k.kernel("function"), [SIZE], [SIZE])


def chain() -> Loaded:
    """Additions that wait for each other."""
    k = Builder()
    x, y = k.param("x", DType.F32, 1), k.param("y", DType.F32, 1)
    acc = k.registers("acc", DType.F32, 1, 1)
    k.store(acc, 0, const(0.0, DType.F32))
    for _ in k.loop("i", 100_000):
        k.store(acc, 0, k.load(acc, 0) + k.load(x, 0))
    k.store(y, 0, k.load(acc, 0))
    return load_kernel(k.kernel("chain"), [1], [1])


def fastest(loaded: Loaded, x: Array, y: Array, seconds: float) -> float:
    """Nanoseconds of one call."""
    return least(lambda: float(loaded.trace([x], [y], 1)[0]), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FUNCTIONS))
    parser.add_argument("--seconds", type=float, default=0.3, help="a function")
    parser.add_argument("--vectors", type=int, default=1, help="registers that one operation works on")
    parser.add_argument("--add-cycles", type=float, default=3.0, help="latency of an addition: 3 on Zen 3, 4 elsewhere")
    args = parser.parse_args()
    one = np.ones(1, np.float32)
    nanoseconds = fastest(chain(), one, one.copy(), args.seconds) / 100_000 / args.add_cycles
    lanes = native().lanes(DType.F32)
    print(f"{native().name}: {1 / nanoseconds:.2f} GHz, vectors of {lanes}")
    for name, (function, exact) in FUNCTIONS.items():
        if args.names and name not in args.names:
            continue
        x = np.random.default_rng(0).uniform(-8, 8, SIZE).astype(np.float32)
        x = np.abs(x) if name.startswith("log") else x
        y = np.zeros(SIZE, np.float32)
        time_ns = fastest(looped(function, lanes * args.vectors), x, y, args.seconds) / (ROUNDS * SIZE / lanes)
        want = np.array([exact(v) for v in x.tolist()])
        off = np.abs(y - want)
        ulp = (off / np.spacing(np.maximum(np.abs(want), 1e-30).astype(np.float32)))[np.abs(want) > 1e-30].max()
        print(f"{name:12} {time_ns:6.2f} ns {time_ns / nanoseconds:6.1f} cycles {ulp:8.2f} ulp {off.max():8.1e}")


if __name__ == "__main__":
    main()
