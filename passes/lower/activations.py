"""Activation functions of recurrent operators, named in their `activations` attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from ...ir.loops import Expr, maximum, minimum, select, unary
from .context import KernelBuilder, Lowering
from .math_functions import exp, sigmoid, softplus, tanh

Activation: TypeAlias = Callable[[KernelBuilder, Expr], Expr]


def activations(ctx: Lowering, defaults: tuple[str, ...]) -> tuple[tuple[Activation, ...], ...]:
    """The functions of each direction; `activation_alpha` and `activation_beta` go in order to those that take them."""
    attrs = ctx.node.attrs
    directions = 2 if attrs.get("direction", "forward") == "bidirectional" else 1
    names = attrs.get("activations") or list(defaults) * directions
    alphas, betas = iter(attrs.get("activation_alpha") or ()), iter(attrs.get("activation_beta") or ())
    found: list[Activation] = []
    for name in names:
        key = str(name).lower()
        if key not in _FUNCTIONS:
            raise ctx.unsupported(f"activation {name} is not supported", f"one of {', '.join(_FUNCTIONS)}")
        function, alpha, beta = _FUNCTIONS[key]
        found.append(function(*([next(alphas, alpha)] if alpha is not None else ()), *_second(betas, beta)))
    count = len(defaults)
    if len(found) != count * directions:
        raise ctx.unsupported(f"{len(found)} activations for {directions} directions of {count} functions")
    return tuple(tuple(found[d * count : (d + 1) * count]) for d in range(directions))


def _second(betas: Iterator[float], default: float | None) -> tuple[float, ...]:
    return () if default is None else (next(betas, default),)


def _plain(function: Activation) -> Callable[..., Activation]:
    return lambda: function


def _affine(alpha: float, beta: float) -> Activation:
    return lambda k, x: x * alpha + beta


def _scaled_tanh(alpha: float, beta: float) -> Activation:
    return lambda k, x: tanh(k, k.let(x * beta, "x")) * alpha


def _hard_sigmoid(alpha: float, beta: float) -> Activation:
    return lambda k, x: minimum(maximum(x * alpha + beta, 0.0), 1.0)


def _leaky_relu(alpha: float) -> Activation:
    return _shared(lambda x: select(x < 0.0, x * alpha, x))


def _thresholded_relu(alpha: float) -> Activation:
    return _shared(lambda x: select(x > alpha, x, 0.0))


def _elu(alpha: float) -> Activation:
    def elu(k: KernelBuilder, x: Expr) -> Expr:
        x = k.let(x, "x")
        return select(x < 0.0, (exp(k, x) - 1.0) * alpha, x)

    return elu


def _named(function: Activation) -> Activation:
    """A mathematical function, of a named argument."""
    return lambda k, x: function(k, k.let(x, "x"))


def _shared(function: Callable[[Expr], Expr]) -> Activation:
    """A function that reads its argument more than once."""
    return lambda k, x: function(k.let(x, "x"))


_FUNCTIONS: dict[str, tuple[Callable[..., Activation], float | None, float | None]] = {
    "relu": (_plain(lambda k, x: maximum(x, 0.0)), None, None),
    "tanh": (_plain(_named(tanh)), None, None),
    "sigmoid": (_plain(_named(sigmoid)), None, None),
    "affine": (_affine, 1.0, 0.0),
    "leakyrelu": (_leaky_relu, 0.01, None),
    "thresholdedrelu": (_thresholded_relu, 1.0, None),
    "scaledtanh": (_scaled_tanh, 1.0, 1.0),
    "hardsigmoid": (_hard_sigmoid, 0.2, 0.5),
    "elu": (_elu, 1.0, None),
    "softsign": (_plain(_shared(lambda x: x / (1.0 + unary("abs", x)))), None, None),
    "softplus": (_plain(_named(softplus)), None, None),
}
"""Lower-case name -> (maker, default alpha, default beta); None where the function takes no such argument."""
