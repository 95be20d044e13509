"""Operations and bytes of nodes, against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.compiler.bench import limit_seconds
from c2c.compiler.machine import Level, Machine, Peak
from c2c.compiler.work import NO_ARITHMETIC, Work, flops, is_counted, stored, work_of
from c2c.ir.graph import Graph, Node, Value, constant
from c2c.ir.types import DType, TensorType
from c2c.passes.lower import is_lowered, is_refused
from c2c.passes.lower.context import LOWERINGS


def _value(name: str, *shape: int) -> Value:
    return Value(name, TensorType(DType.F32, shape))


def _weights(*shape: int) -> Value:
    return constant("w", np.zeros(shape, np.float32))


CONV = Node("Conv", (_value("x", 1, 8, 10, 10), _weights(16, 4, 3, 3)), (_value("y", 1, 16, 8, 8),), {"group": 2})


@pytest.mark.parametrize(
    ("node", "count"),
    [
        (CONV, 2 * 16 * 8 * 8 * 4 * 9),
        (Node("ConvTranspose", (_value("x", 1, 8, 5, 5), _weights(8, 4, 2, 2)), (_value("y", 1, 4, 10, 10),)),
         2 * 8 * 25 * 4 * 4),
        (Node("MatMul", (_value("a", 3, 5, 7), _weights(7, 2)), (_value("y", 3, 5, 2),)), 2 * 3 * 5 * 7 * 2),
        (Node("Gemm", (_value("a", 7, 5), _weights(7, 2)), (_value("y", 5, 2),), {"transA": 1}), 2 * 5 * 7 * 2),
        (Node("Einsum", (_value("a", 3, 5, 7), _value("b", 3, 7, 2)), (_value("y", 3, 5, 2),),
              {"equation": "bik, bkj -> bij"}), 2 * 3 * 5 * 7 * 2),
        (Node("LSTM", (_value("x", 9, 1, 4), _weights(1, 24, 4), _weights(1, 24, 6)), (_value("y", 9, 1, 1, 6),)),
         2 * 9 * 24 * (4 + 6)),
        (Node("c2c.Attention", (_value("q", 2, 5, 12), _value("k", 2, 7, 12), _value("v", 2, 7, 18)),
              (_value("y", 2, 5, 18),), {"q_num_heads": 3}), 2 * 2 * 5 * 7 * (12 + 18)),
        (Node("MaxPool", (_value("x", 1, 2, 8, 8),), (_value("y", 1, 2, 4, 4),), {"kernel_shape": [2, 2]}), 32 * 4),
        (Node("Softmax", (_value("x", 3, 4),), (_value("y", 3, 4),)), 5 * 12),
        (Node("ReduceMean", (_value("x", 3, 4),), (_value("y", 3, 1),)), 12),
        (Node("Add", (_value("a", 3, 4), _value("b", 4)), (_value("y", 3, 4),)), 12),
        (Node("Sum", (_value("a", 4), _value("b", 4), _value("c", 4)), (_value("y", 4),)), 8),
        (Node("ReduceL2", (_value("x", 3, 4),), (_value("y", 3, 1),)), 24),
        (Node("CumSum", (_value("x", 3, 4), _value("axis")), (_value("y", 3, 4),)), 12),
        (Node("Resize", (_value("x", 1, 2, 4, 4),), (_value("y", 1, 2, 8, 8),), {"mode": "linear"}), 2 * 128 * 4),
        (Node("Resize", (_value("x", 1, 2, 4, 4),), (_value("y", 1, 2, 4, 8),), {"mode": "cubic"}), 2 * 64 * 4),
        (Node("Resize", (_value("x", 1, 2, 4, 4),), (_value("y", 1, 2, 8, 8),)), 0),
        (Node("GridSample", (_value("x", 1, 2, 4, 4), _value("g", 1, 3, 3, 2)), (_value("y", 1, 2, 3, 3),)), 18 * 8),
        (Node("RoiAlign", (_value("x", 1, 2, 8, 8), _value("r", 5, 4), _value("b", 5)), (_value("y", 5, 2, 3, 3),),
              {"sampling_ratio": 2}), 8 * 90 * 4),
        (Node("ScatterND", (_value("x", 9), _value("i", 4, 1), _value("u", 4)), (_value("y", 9),)), 0),
        (Node("ScatterND", (_value("x", 9), _value("i", 4, 1), _value("u", 4)), (_value("y", 9),),
              {"reduction": "add"}), 4),
        (Node("DFT", (_value("x", 2, 16, 1),), (_value("y", 2, 16, 2),)), 2 * 64 * 16),
        (Node("STFT", (_value("x", 1, 32, 1), _value("s"), _value("w", 8)), (_value("y", 1, 7, 5, 2),)), 2 * 70 * 8),
        (Node("Det", (_value("x", 2, 3, 3),), (_value("y", 2),)), 2 * 18),
        (Node("Transpose", (_value("a", 3, 4),), (_value("y", 4, 3),)), 0),
    ],
    ids=lambda x: x.op if isinstance(x, Node) else "",
)  # fmt: skip
def test_operations(node: Node, count: int) -> None:
    assert work_of(node).flops == count


def test_every_lowered_operator_is_counted_or_said_to_have_none() -> None:
    assert is_lowered("Conv")
    left = [name for name in LOWERINGS if not is_refused(name) and not is_counted(name)]
    assert not left, f"compiler/work.py has no row for {', '.join(left)}"
    assert not any(name in NO_ARITHMETIC and flops(Node(name, (), ())) for name in LOWERINGS)


def test_bytes_are_operands_once_and_results() -> None:
    x = _value("x", 4, 4)
    assert work_of(Node("MatMul", (x, x), (_value("y", 4, 4),))).bytes == 2 * 64
    work = work_of(CONV)
    assert work.weight_bytes == 16 * 4 * 9 * 4
    assert work.bytes == work.weight_bytes + 4 * (800 + 1024)
    assert work.intensity == work.flops / work.bytes


def test_data_that_moves_counts_what_is_read_of_it() -> None:
    gather = Node("Gather", (_weights(30000, 8), _value("i", 5)), (_value("y", 5, 8),))
    assert work_of(gather).bytes == 160 + 20 + 160


def test_a_group_sums_its_nodes_and_moves_its_border_only() -> None:
    outer = [_value("x", 1, 8, 10, 10), _weights(16, 8, 3, 3), _value("r", 1, 16, 10, 10)]
    inner = [Value(v.name, v.type, v.data) for v in outer]
    middle, end = _value("m", 1, 16, 10, 10), _value("e", 1, 16, 10, 10)
    nodes = [
        Node("c2c.WinogradConv", (inner[0], inner[1]), (middle,), {"m": 2}),
        Node("Add", (middle, inner[2]), (end,)),
    ]
    group = Node(
        "c2c.Fused", tuple(outer), (_value("y", 1, 16, 10, 10),), {"body": Graph("b", inner, [end], nodes, [])}
    )
    work = work_of(group)
    assert work.flops == 2 * 1600 * 8 * 9 + 1600
    assert 2 * 25 * 16 * 16 * 8 < work.own_flops < work.flops
    assert work.weight_bytes == 16 * 8 * 16 * 4, "transformed weights are what a run reads"
    assert work.bytes == work.weight_bytes + 4 * (800 + 1600 + 1600)


def test_the_roofline_is_the_slower_of_both_limits() -> None:
    machine = Machine("m", 1, (Peak(256, 10.0),), (Level("L1", 1000, 500, 100.0), Level("memory", 0, 9000, 2.0)))
    assert limit_seconds(Work(1e6, 1e6, 0, 100), machine, 0) == pytest.approx(1e6 / 10e9)
    assert limit_seconds(Work(10, 10, 0, 500), machine, 0) == pytest.approx(500 / 100e9)
    assert limit_seconds(Work(10, 10, 400, 900), machine, 5000) == pytest.approx(500 / 100e9 + 400 / 2e9)
    assert limit_seconds(Work(4e6, 1e6, 0, 100), machine, 0) == pytest.approx(1e6 / 10e9)


def test_weights_may_lie_in_fewer_bytes() -> None:
    work = Work(10.0, 10.0, 4000, 5000)
    assert stored(work, 500) == Work(10.0, 10.0, 500, 1500)
    assert stored(work, 9000) == work
