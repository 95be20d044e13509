"""Activations rounded to bytes: which products, that their error is as stated, and that every target gives the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.bundle import write_bundle
from c2c.compiler.driver import Compiled, compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.tables import print_rounded
from c2c.compiler.verify import run_compiled
from c2c.ir.errors import OptionsError
from c2c.ir.graph import Graph
from c2c.ir.reference import evaluate
from c2c.passes.base import PassContext, find_pass
from c2c.passes.rounding import rounded_book
from c2c.tests.passes.build import CONTEXT, Array, Net, check

NAME = "round-activations"
ROUNDING = replace(CONTEXT, activations="int8")


def coded(*shape: int, levels: int = 16, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    book = rng.standard_normal(levels).astype(np.float32)
    indices = np.concatenate([np.arange(levels), rng.integers(0, levels, np.prod(shape) - levels)])
    return np.take(book, indices).reshape(shape)


def network(rows: int = 1) -> Graph:
    """Products with activations of both signs and of one, by books and by whole numbers with a scale a column."""
    net = Net(4)
    x = net.op("Gemm", net.input(rows, 300), coded(520, 300), net.random(520), transB=1)
    x = net.op("MatMul", net.op("Relu", x), coded(520, 260, levels=5, seed=1))
    levels = net.rng.integers(-8, 8, (260, 300)).astype(np.int8)
    w = net.op("DequantizeLinear", levels, net.positive(300), np.zeros(300, np.int8), axis=1)
    return net.done(net.op("MatMul", x, w))


def rounded(graph: Graph, target: str = "x86-64-v4") -> PassContext:
    context = replace(ROUNDING, target=Target.parse(target), rounded=[], choices=[])
    find_pass(NAME).run(graph, context)
    return context


@pytest.mark.parametrize("rows", [1, 3])
def test_errors_are_those_that_are_stated(rows: int) -> None:
    for positive in (False, True):
        net = Net(5)
        x = net.input(rows, 600)
        graph = net.done(net.op("MatMul", net.op("Relu", x) if positive else x, coded(600, 400)))
        feeds = {x.name: net.random(rows, 600)}
        before, (found,) = evaluate(graph, feeds)["out0"], rounded(graph).rounded
        error = np.abs(evaluate(graph, feeds)["out0"] - before)
        assert 0.5 < np.sqrt(np.square(error).mean() / np.square(before).mean()) / found.expected < 1.3
        assert 0 < error.max() <= found.largest * np.abs(feeds[x.name]).max()
        assert (found.activations, found.length, found.columns) == ("int8", 600, 400)


def test_every_form_of_product() -> None:
    graph = network(2)
    assert check(graph, NAME, tolerance=3e-2, context=ROUNDING)
    assert [n.op for n in graph.nodes].count("MatMulInteger") == 3
    assert not any(n.op in ("Gemm", "MatMul") for n in graph.nodes)


def test_whole_numbers_lose_nothing() -> None:
    whole = np.random.default_rng(2).integers(-100, 101, (40, 60)).astype(np.float32) * np.float32(0.037)
    found = rounded_book(whole)
    assert found is not None and found.error < 1e-6
    np.testing.assert_allclose(found.levels * found.scale, whole, rtol=1e-6)
    assert rounded_book(Net(1).random(40, 60)) is None


def test_only_when_asked_and_where_it_pays() -> None:
    assert not check(network(), NAME)
    net = Net(6)
    dense = net.done(net.op("MatMul", net.input(1, 300), net.random(300, 520)))
    assert not rounded(dense).rounded, "weights without a book"
    net = Net(6)
    few = net.done(net.op("MatMul", net.input(1, 8), coded(8, 64)))
    assert [c.name for c in rounded(few).choices] == ["f32"], "rounding takes longer than the product"
    with pytest.raises(OptionsError, match="cannot be rounded to 'int4'"):
        CompileOptions(Target.parse("native"), activations="int4")


def compiled(target: str, rows: int = 1) -> Compiled:
    return compile_graph(network(rows), CompileOptions(Target.parse(target), name="model", activations="int8"))


@pytest.mark.parametrize("rows", [1, 3])
def test_targets_agree_to_the_bit(rows: int) -> None:
    x = np.random.default_rng(3).standard_normal((rows, 300)).astype(np.float32)
    results = []
    for name in ("native", "x86-64-v3", "x86-64-v4", "x86-64-v4+avx512vnni"):
        if Target.parse(name).runs_here:
            made = compiled(name, rows)
            assert len(made.program.rounded) == 3
            results.append(run_compiled(made, {made.graph.inputs[0].name: x})["out0"])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("target", ["arm64-neon", "arm64-dotprod", "arm64-neon+i8mm"])
def test_arm_agrees_to_the_bit(target: str) -> None:
    x = np.random.default_rng(3).standard_normal((1, 300)).astype(np.float32)
    here, there = (compiled(name) for name in ("native", target))
    expected, found = (run_compiled(c, {c.graph.inputs[0].name: x})["out0"] for c in (here, there))
    assert len(there.program.rounded) == 3
    np.testing.assert_array_equal(found, expected)


def test_manifest_and_report_say_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = compiled("x86-64-v4")
    write_bundle(made.program, made.options, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"]["activations"] == "int8"
    assert [r["origin"] for r in manifest["rounded"]] == [list(r.origin) for r in made.program.rounded]
    assert all(0 < r["expected"] < 0.05 and r["largest"] > 0 for r in manifest["rounded"])
    print_rounded(made.program.rounded)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "activations of 3 products are rounded to int8:" and "300x520: error" in lines[1]
