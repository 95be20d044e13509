"""Which tensors hold levels, and which share a scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from c2c.codegen.target import Target
from c2c.compiler.driver import load_graph
from c2c.compiler.options import CompileOptions
from c2c.compression.layers import find_layers
from c2c.ir.graph import Graph
from c2c.quantization.onnx_qdq import prepared
from c2c.quantization.places import find_places
from c2c.tests.quantization.networks import model, normal, residual_network


def imported(proto: Any, shape: tuple[int, ...]) -> Graph:
    data = prepared(proto).SerializeToString()
    return load_graph(data, CompileOptions(Target.parse("native"), shapes={"x": shape}))


def places(graph: Graph, without: tuple[str, ...] = ()) -> set[frozenset[str]]:
    layers = [v for v in find_layers(graph, 1) if v.name not in without]
    return {frozenset(v.name for v in p.values) for p in find_places(graph, layers)}


def test_levels_lie_between_the_layers_of_a_network() -> None:
    found = places(imported(residual_network(), (1, 3, 12, 12)))
    assert found == {
        frozenset(names) for names in
        (["x"], ["r1"], ["r2"], ["a3", "p3", "h4", "k4"], ["q4", "f4"], ["r5"])
    }  # fmt: skip


def test_what_only_floats_read_has_no_levels() -> None:
    found = places(imported(residual_network(), (1, 3, 12, 12)), without=("w5", "w6"))
    assert {"q4", "r5", "h4", "k4"}.isdisjoint(set().union(*found))
    assert frozenset(["a3", "p3"]) in found


def test_a_sum_takes_levels_of_its_shortcut() -> None:
    found = places(imported(residual_network(), (1, 3, 12, 12)), without=("w3",))
    assert frozenset(["r1"]) in found and frozenset(["r2"]) not in found


def test_what_is_computed_last_before_a_sum_or_gate_stays_in_floats() -> None:
    r = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["a"]),
        node("Conv", ["x", "w2"], ["b"]),
        node("Sigmoid", ["b"], ["g"]),
        node("Mul", ["a", "g"], ["m"]),
        node("GlobalAveragePool", ["m"], ["p"]),
        node("Sigmoid", ["p"], ["s"]),
        node("Mul", ["m", "s"], ["e"]),
        node("Conv", ["e", "w3"], ["y"]),
    ]
    weights = {"w1": normal(r, 4, 3, 1, 1), "w2": normal(r, 4, 3, 1, 1), "w3": normal(r, 4, 4, 1, 1)}
    graph = imported(model(nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 4, 6, 6]}, weights), (1, 3, 6, 6))
    found = set().union(*places(graph))
    assert {"x", "a", "m", "e"} == found
