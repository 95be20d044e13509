"""c2c.Attention by work-groups against numpy in float64, run by the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.pipeline import pipeline
from c2c.ir.types import DType
from c2c.passes.base import PassContext, run_pipeline
from c2c.passes.lower.grid.attention import tile_for
from c2c.tests.passes.build import Net, op_names
from c2c.tests.passes.lower.test_attention import SEED, case

TARGET = "opencl"
EXCHANGING = "opencl-intel"
"""Threads of a row find its maximum and its sum by exchanges."""


@pytest.mark.parametrize("shape", [(1, 1, 4, 1, 1, 1), (1, 2, 5, 7, 3, 9), (2, 1, 17, 16, 8, 8)])
@pytest.mark.parametrize("joined", [False, True])
def test_against_numpy(shape: tuple[int, ...], joined: bool) -> None:
    case(*shape, joined=(joined,) * 4).check(target=TARGET)


@pytest.mark.parametrize("target", [TARGET, EXCHANGING])
def test_heads_that_share_keys(target: str) -> None:
    case(1, 2, 5, 19, 4, 4, kv=1, joined=(True, False, True, False)).check(target=target)


@pytest.mark.parametrize("mask", [(5, 35), (1, 2, 1, 35)])
@pytest.mark.parametrize("target", [TARGET, EXCHANGING])
def test_blocks_and_rows_without_a_key(mask: tuple[int, ...], target: str) -> None:
    """A maximum that grows from block to block, blocks of -inf first and last, and rows of nothing else: NaN."""
    added = np.linspace(-3, 3, 35, dtype=np.float32) * np.ones(mask, np.float32)
    added[..., :17], added[..., 33:] = -np.inf, -np.inf
    if len(mask) == 2:
        added[3] = -np.inf
    with np.errstate(invalid="ignore"):
        case(1, 2, 5, 35, 4, 6, scores=(("Add", (None, added)),)).check(target=target)


@pytest.mark.parametrize("target", [TARGET, EXCHANGING])
def test_nan_stays_in_its_row(target: str) -> None:
    """A row of q that has one, and a single score that is one."""
    added = np.zeros((4, 20), np.float32)
    added[3, 17] = np.nan
    one = case(1, 1, 4, 20, 4, 4, scores=(("Add", (None, added)),))
    one.q[0, 0, 1, 2] = np.nan
    with np.errstate(invalid="ignore"):
        one.check(target=target)


@pytest.mark.parametrize(
    ("target", "size", "fused"), [(TARGET, 32, True), (TARGET, 512, False), ("opencl-cpu", 32, False)]
)
def test_it_is_fused_where_a_tile_fits(target: str, size: int, fused: bool) -> None:
    net = Net()
    q, k, v = (net.input(1, 2, 8, size) for _ in range(3))
    weights = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    graph = net.done(net.op("MatMul", weights, v))
    run_pipeline(graph, pipeline(2, grid=True), PassContext(Target.parse(target)))
    assert (op_names(graph) == ["c2c.Attention"]) == fused, f"{op_names(graph)}, seed {SEED}"
    assert (tile_for(Target.parse(target), size, size) is not None) == fused
    assert graph.outputs[0].type.dtype is DType.F32
