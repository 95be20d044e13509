"""ONNX's own node tests: models with inputs and expected outputs."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

NOISE = {"test_dft_inverse": 1e-6, "test_dft_inverse_opset19": 1e-6}
"""Absolute tolerance of tests whose expected values are single-precision noise (1.9e-7) where the result is zero."""


@dataclass(frozen=True)
class NodeTest:
    """One test: the operator it is about, its model, data sets of (inputs, outputs), tolerances."""

    name: str
    operator: str
    model: onnx.ModelProto
    data: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [v.name for v in self.model.graph.input]


@functools.cache
def node_tests() -> dict[str, NodeTest]:
    """All of them by name, sorted (takes seconds: ONNX computes them)."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = {t.name: t for t in load_model_tests(kind="node")}
    tests = {}
    for name in sorted(found):
        t = found[name]
        whole = found.get(name.split("_expanded")[0], t)
        assert t.model is not None and whole.model is not None and t.data_sets is not None
        atol = NOISE.get(name, t.atol)
        tests[name] = NodeTest(name, _operator(name, whole.model), t.model, t.data_sets, t.rtol, atol)
    return tests


def _operator(name: str, model: onnx.ModelProto) -> str:
    """The operator that a test is about: the one whose name begins the test's, else the last node's."""
    plain = name.removeprefix("test_").replace("_", "").lower()
    ops = [f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in model.graph.node]
    named = [o for o in ops if plain.startswith(o.rpartition(".")[2].lower())]
    return max(named, key=len) if named else ops[-1]
