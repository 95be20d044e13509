"""Products whose weights lie in planes: every bit of them, odd shapes, rows, targets, factors that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import c2c
from c2c.codegen.target import Target
from c2c.compiler.api import CompiledModel
from c2c.passes.lower import plane_product
from c2c.passes.lower.float_planes import Form, form_of, pack_planes

SEED = 5


def normal(rows: int, columns: int, seed: int = SEED) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, columns)) / 16).astype(np.float32)


def odd(rows: int, columns: int) -> np.ndarray:
    """Normal weights among which are zeros of both signs, large, tiny and subnormal ones."""
    w = normal(rows, columns)
    rare = np.array([0.0, -0.0, 3e5, -7e9, 2e-20, -3e-41], np.float32)
    at = np.random.default_rng(SEED).integers(0, w.size, 60)
    w *= np.exp2(np.random.default_rng(SEED).integers(-5, 1, w.shape)).astype(np.float32)
    w.reshape(-1)[at] = np.resize(rare, 60)
    return w


def bfloat16(w: np.ndarray) -> np.ndarray:
    return (w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def expanded(form: Form, groups: np.ndarray, rows: int, columns: int, width: int, lanes: int) -> np.ndarray:
    """The matrix that planes hold, by definition: a byte of each plane for each element."""
    out = np.zeros((-(-rows // 4) * 4, -(-columns // lanes) * lanes), np.uint32)
    size, at = 4 * lanes, 0
    for begin in range(0, columns, width):
        vectors = -(-min(width, columns - begin) // lanes)
        for g in range(len(out) // 4):
            for v in range(vectors):
                group = groups[at : at + form.group_bytes(lanes)]
                at += form.group_bytes(lanes)
                low, rest = (group[: 2 * size].view("<u2"), group[2 * size :]) if form.halves else (None, group)
                for j in range(4):
                    for lane in range(lanes):
                        byte = lane // 4 * 16 + j * 4 + lane % 4
                        code = rest[size + byte % (2 * lanes)] >> (4 if byte >= 2 * lanes else 0) & 15
                        word = int(form.table[code]) << 24 | int(rest[byte]) << 16
                        if low is not None:
                            word |= int(low[j // 2 * 2 * lanes + lane // 4 * 8 + j % 2 * 4 + lane % 4])
                        out[4 * g + j, begin + v * lanes + lane] = word
    assert at == groups.size
    return out[:rows, :columns].view(np.float32)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_planes_and_list_are_the_matrix(lanes: int, transposed: bool, narrow: bool) -> None:
    rows, columns, width = 303, 219, 4 * lanes
    w = odd(columns, rows).T if transposed else odd(rows, columns)
    w = bfloat16(w) if narrow else w
    form = form_of(w)
    assert form is not None and form.halves is not narrow
    planes = pack_planes(w, form, width, lanes)
    near = expanded(form, planes.groups, rows, columns, width, lanes)
    changed = near.view(np.uint32) != np.ascontiguousarray(w).view(np.uint32)
    assert 0 < changed.sum() == planes.missing.size < w.size / 256
    panel = np.repeat(np.arange(planes.first.size - 1), np.diff(planes.first))
    at = planes.rows, planes.columns + panel * width
    assert changed[at].all() and not (np.signbit(near) != np.signbit(w)).any()
    np.testing.assert_allclose(near[at] + planes.missing.astype(np.float64), w[at], rtol=1e-7, atol=1e-9)
    bytes_ = planes.groups.size / (-(-rows // 4) * 4 * -(-columns // lanes) * lanes)
    assert bytes_ == (1.5 if narrow else 3.5)


def test_what_saves_nothing_has_no_planes() -> None:
    wide = np.random.default_rng(SEED).integers(0, 1 << 32, (300, 300), np.uint64).astype(np.uint32).view(np.float32)
    assert form_of(np.where(np.isfinite(wide), wide, 1).astype(np.float32)) is None
    assert form_of(normal(300, 300).astype(np.float16).astype(np.float32)) is None
    assert form_of(normal(20, 30)) is None


def product(w: np.ndarray, rows: int, bias: np.ndarray | None = None, transposed: bool = False) -> ModelProto:
    k, n = w.shape
    stored = np.ascontiguousarray(w.T) if transposed else w
    constants = [numpy_helper.from_array(stored, "w"), *([] if bias is None else [numpy_helper.from_array(bias, "b")])]
    node = (
        helper.make_node("MatMul", ["x", "w"], ["y"])
        if bias is None
        else helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=int(transposed))
    )
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, size]) for name, size in (("x", k), ("y", n))
    ]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compiled(model: ModelProto, target: str, threads: int = 1) -> CompiledModel:
    made = c2c.compile(model, target, threads=threads)
    assert [c.name for c in made.compiled.schedules if c.family == "planes"][0] != "dense"
    return made


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "native"])
@pytest.mark.parametrize(
    ("shape", "rows", "narrow", "gemm"),
    [
        ((704, 1024), 1, False, False),
        ((703, 1001), 1, False, True),
        ((705, 1030), 2, True, False),
        ((1022, 717), 3, False, True),
        ((700, 1003), 4, True, True),
    ],
)
def test_products(
    monkeypatch: pytest.MonkeyPatch, target: str, shape: tuple[int, int], rows: int, narrow: bool, gemm: bool
) -> None:
    monkeypatch.setattr(plane_product, "_dense_cycles", lambda ctx, p, element_bytes: 1e12)
    if not Target.parse(target).runs_here:
        pytest.skip(f"this processor is no {target}")
    w = bfloat16(normal(*shape)) if narrow else normal(*shape)
    w[3, 5], w[-1, -1], w[17, 300] = 40.0, -2e-20, 0.0
    bias = normal(1, shape[1])[0] if gemm else None
    model = product(w, rows, bias, transposed=gemm)
    x = np.random.default_rng(1).standard_normal((rows, shape[0])).astype(np.float32)
    y = compiled(model, target).run({"x": x})["y"]
    exact = x.astype(np.float64) @ w + (0 if bias is None else bias)
    bound = np.abs(x).astype(np.float64) @ np.abs(w) * shape[0] * 2.0**-24 + 1e-7
    assert (np.abs(y - exact) <= bound).all()
    assert np.array_equal(y, compiled(model, target, threads=2).run({"x": x})["y"])


def test_factors_that_are_not_finite() -> None:
    w = normal(704, 1024)
    w[5, 7], w[5, 8] = 2e-30, -2e-30
    x = np.ones((1, 704), np.float32)
    x[0, 5] = np.inf
    y = compiled(product(w, 1), "native").run({"x": x})["y"][0]
    assert np.isinf(y).all() and (np.sign(y) == np.sign(w[5])).all()
    x[0, 5] = np.nan
    assert np.isnan(compiled(product(w, 1), "native").run({"x": x})["y"]).all()


def test_they_are_for_weights_from_beyond_the_second_cache_and_few_rows() -> None:
    def chosen(shape: tuple[int, int], rows: int, target: str = "x86-64-v4") -> list[str]:
        made = c2c.compile(product(normal(*shape), rows), target).compiled
        return [c.name for c in made.schedules if c.family == "planes"]

    assert chosen((704, 1024), 1) == ["planes"]
    assert not chosen((128, 512), 1)
    assert not chosen((704, 1024), 64)
    assert not chosen((704, 1024), 1, "arm64-neon")
