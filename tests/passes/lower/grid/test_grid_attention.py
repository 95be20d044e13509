"""c2c.Attention by work-groups against numpy in float64, run by the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from c2c.codegen.target import Target
from c2c.compiler.pipeline import pipeline
from c2c.ir.loops import MATRIX, MATRIX_THREADS, Load, MatrixLoad, MatrixStore, Stmt, Store
from c2c.ir.loops_visit import expressions, walk
from c2c.ir.types import DType
from c2c.passes.base import PassContext, run_pipeline
from c2c.passes.loops.count import counted
from c2c.passes.lower import lower_node
from c2c.passes.lower.grid import attention_memory, attention_tile
from c2c.passes.lower.grid.attention import has_tiles
from c2c.passes.lower.grid.attention_tile import AttentionTile, Back
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.build import Net, op_names
from c2c.tests.passes.lower.test_attention import SEED, case

TARGET = "opencl"
EXCHANGING = "opencl-intel"
"""Threads of a row find its maximum and its sum by exchanges."""
MATRICES = "metal-ios"
"""Products by matrices of subgroups."""
MEMORY = "opencl-cpu"
"""Threads with rows of their own."""
TARGETS = (TARGET, EXCHANGING, MATRICES, MEMORY)


@pytest.mark.parametrize(
    "shape", [(1, 1, 4, 1, 1, 1), (1, 2, 5, 7, 3, 9), pytest.param((2, 1, 17, 16, 8, 8), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("target", [TARGET, MATRICES, MEMORY])
def test_against_numpy(shape: tuple[int, ...], joined: bool, target: str) -> None:
    case(*shape, joined=(joined,) * 4).check(target=target)


def tile_name(rows: int, keys: int, subgroups: tuple[int, int], held: bool = False, back: Back = "back") -> str:
    return str(AttentionTile(1, 1, rows, keys, subgroups, DType.F32, held, back))


@pytest.mark.parametrize(
    ("name", "size", "wide"),
    [
        (tile_name(8, 16, (1, 2)), 9, 16), (tile_name(8, 32, (1, 4), True), 20, 29),
        (tile_name(16, 16, (2, 1), True), 8, 5), (tile_name(32, 16, (4, 1)), 12, 3),
        (tile_name(16, 32, (2, 2), False, "near"), 3, 16), (tile_name(16, 16, (2, 2), True), 24, 10),
        ("rows=4 keys=16", 24, 10),
    ],
)  # fmt: skip
def test_every_kind_of_tile(name: str, size: int, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remainders of rows, keys, and elements of a row, whichever form would be chosen."""
    monkeypatch.setattr(attention_tile, "CAN_WIN", np.inf)
    one = case(1, 1, 19, 21, size, wide, joined=(False, True, True, False))
    one.check(target=MATRICES, tuning=Tuning({("grid-attention", f"1 x 19x21x{size}x{wide} f32"): name}))


FROM_MEMORY = (("rows=8 keys=16 columns=16", 37), ("rows=6 keys=16 columns=32", 37), ("rows=4 keys=32 columns=8", 10))


@pytest.mark.parametrize(("name", "wide"), FROM_MEMORY)
def test_every_kind_of_tile_from_memory(name: str, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of columns that end with the last one, and beyond it."""
    monkeypatch.setattr(attention_memory, "CAN_WIN", np.inf)
    one = case(1, 1, 19, 45, 5, wide, joined=(False, True, True, False))
    one.check(target=MEMORY, tuning=Tuning({("grid-attention", f"1 x 19x45x5x{wide} f32"): name}))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("masked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_halves(target: str, masked: bool) -> None:
    """Products of halves in sums of f32, where a device has them."""
    steps = (("Add", (None, np.linspace(-1, 1, 21, dtype=np.float16))),) if masked else ()
    case(1, 2, 4, 21, 9, 6, kv=1, dtype=np.float16, scores=steps, joined=(False, True, False, True)).check(
        target=target
    )


def near_accesses(stmt: Stmt) -> float:
    """Elements of memory that a work-group shares which a thread reads or writes; of a matrix its share."""
    if isinstance(stmt, MatrixLoad | MatrixStore):
        share: float = MATRIX * MATRIX / MATRIX_THREADS
        return share
    loads = [x for e in expressions(stmt) for x in walk(e) if isinstance(x, Load) and x.buffer.space == "shared"]
    stores = isinstance(stmt, Store) and stmt.buffer.space == "shared"
    lanes: float = sum(x.lanes for x in loads) + stores
    return lanes


def accesses_a_multiply_add(size: int, rows: int, form: str) -> float:
    """Counted from the loops, of heads of that size and so many rows and keys; the best form whose name begins so."""
    net = Net()
    q, k, v = (net.input(1, 12, rows, size) for _ in range(3))
    y = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1), v)
    graph, target = net.done(y), Target.parse(MATRICES)
    run_pipeline(graph, pipeline(2, grid=True), PassContext(target))
    (node,) = graph.nodes
    (choice,) = lower_node(node, target)[0].choices
    name = next(n for n, _ in choice.candidates if n.startswith(form))
    (call,) = lower_node(node, target, tuning=Tuning({choice.key: name}))
    total: float = counted(call.kernel, near_accesses).total
    return total / (12 * rows * rows * 2 * size)


@pytest.mark.parametrize(("size", "threads", "matrices"), [(32, 1.71, 0.21), (64, 1.64, 0.20), (128, 1.60, 0.25)])
def test_matrices_need_less_of_shared_memory(size: int, threads: float, matrices: float) -> None:
    """In accesses for a multiply-add, of 128 rows and keys."""
    before, after = (accesses_a_multiply_add(size, 128, form) for form in ("rows", "simdgroup"))
    assert (round(before, 2), round(after, 2)) == (threads, matrices)


def test_values_beyond_the_last_key_are_nobodys() -> None:
    """An infinity of the last key, which may be read again in place of keys beyond it, and one of a key that a last
    block brings again."""
    one = case(1, 1, 4, 20, 4, 4)
    one.v[0, 0, 19, 2] = one.v[0, 0, 5, 1] = np.inf
    for target in TARGETS:
        assert np.isposinf(one.run(target=target)[..., 1:3]).all(), target


@pytest.mark.parametrize("target", TARGETS)
def test_heads_that_share_keys(target: str) -> None:
    case(1, 2, 5, 19, 4, 4, kv=1, joined=(True, False, True, False)).check(target=target)


@pytest.mark.parametrize("mask", [(5, 35), pytest.param((1, 2, 1, 35), marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", TARGETS)
def test_blocks_and_rows_without_a_key(mask: tuple[int, ...], target: str) -> None:
    """A maximum that grows from block to block, blocks of -inf first and last, and rows of nothing else: NaN."""
    added = np.linspace(-3, 3, 35, dtype=np.float32) * np.ones(mask, np.float32)
    added[..., :17], added[..., 33:] = -np.inf, -np.inf
    if len(mask) == 2:
        added[3] = -np.inf
    with np.errstate(invalid="ignore"):
        case(1, 2, 5, 35, 4, 6, scores=(("Add", (None, added)),)).check(target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_nan_stays_in_its_row(target: str) -> None:
    """A row of q that has one, and a single score that is one."""
    added = np.zeros((4, 20), np.float32)
    added[3, 17] = np.nan
    one = case(1, 1, 4, 20, 4, 4, scores=(("Add", (None, added)),))
    one.q[0, 0, 1, 2] = np.nan
    with np.errstate(invalid="ignore"):
        one.check(target=target)


@pytest.mark.parametrize(("target", "size", "fused"), [(TARGET, 32, True), (TARGET, 512, False), (MEMORY, 128, True)])
def test_it_is_fused_where_a_tile_fits(target: str, size: int, fused: bool) -> None:
    net = Net()
    q, k, v = (net.input(1, 2, 8, size) for _ in range(3))
    weights = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    graph = net.done(net.op("MatMul", weights, v))
    run_pipeline(graph, pipeline(2, grid=True), PassContext(Target.parse(target)))
    assert (op_names(graph) == ["c2c.Attention"]) == fused, f"{op_names(graph)}, seed {SEED}"
    assert has_tiles(Target.parse(target), *graph.inputs) == fused
    assert graph.outputs[0].type.dtype is DType.F32
