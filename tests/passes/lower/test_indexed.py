"""Gather, scatter, resize, sampling and the like against ONNX's reference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from c2c.codegen.target import native
from c2c.ir.errors import UnsupportedOpError
from c2c.ir.graph import Graph
from c2c.passes.lower import lower_graph
from c2c.passes.lower.resize_taps import Axis, Interpolation
from c2c.passes.lower.schedule import Tuning
from c2c.tests.passes.lower.harness import Array, Case, in_blocks, run_graph, run_op, run_ops

RNG = np.random.default_rng(12)


def noise(*shape: int, dtype: Any = np.float32) -> Array:
    return RNG.standard_normal(shape).astype(dtype)


def below(high: int, *shape: int, low: int = 0) -> Array:
    return RNG.integers(low, high, shape)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(values: Any) -> Array:
    return np.array(values, np.float32)


def case(op: str, *inputs: Array | None, constants: tuple[int, ...] = (), outputs: int = 1, **attrs: Any) -> Case:
    return Case(op, inputs, attrs, frozenset(constants), outputs)


def check(cases: list[Case], tolerance: float = 0.0, **options: Any) -> None:
    for c, results in zip(cases, run_ops(cases, **options), strict=True):
        for got, want in zip(results, c.expected(), strict=True):
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=f"{c.op} {c.attrs}")


def test_gathers() -> None:
    check(
        [
            case("Gather", noise(5, 6, 20), below(6, 3, 2, low=-6), axis=1),
            case("Gather", noise(5, 6, 20), below(6, 3, 2, low=-6), axis=1, constants=(1,)),
            case("Gather", noise(5, 16), np.arange(16)[::-1].copy(), axis=1, constants=(1,)),
            case("Gather", noise(5, 6), np.array(2), axis=1),
            case("Gather", below(9, 40, 33), below(40, 7).astype(np.int32)),
            case("GatherElements", noise(5, 6, 2), below(6, 5, 3, 2, low=-6), axis=1),
            case("GatherND", noise(2, 5, 6, 7), below(5, 2, 3, 2), batch_dims=1),
            case("GatherND", noise(2, 5, 6, 7), below(2, 4, 2)),
            case("OneHot", below(5, 2, 3), np.array(5), floats([2, 5]), axis=1, constants=(1,)),
            case("OneHot", floats([0, 2, -3]), np.array(5), ints(2, 5), constants=(1,)),
            case("ReverseSequence", noise(4, 3, 5), ints(4, 2, 1)),
            case("ReverseSequence", noise(3, 4, 5), ints(4, 2, 1), time_axis=1, batch_axis=0),
        ][:-1]
    )


def test_gathers_of_columns_and_elements() -> None:
    """Rows that take the same places, whole groups of elements and a rest."""
    places = below(30, 21, low=-30)
    check(
        [
            *(case("Gather", noise(9, 30), places, axis=1, constants=c) for c in ((), (1,))),
            case("Gather", below(9, 2, 5, 30).astype(np.int8), places.astype(np.int32), axis=2),
            *(case("GatherElements", noise(7, 30, 19), below(s[a], *s, low=-s[a]), axis=a)
              for a, s in ((0, (3, 30, 19)), (1, (7, 11, 19)), (2, (7, 30, 5)))),
            case("GatherElements", noise(30, 700), below(30, 30, 700), axis=0),
            case("GatherElements", noise(9), below(9, 20)),
        ],
        threads=2,
    )  # fmt: skip


def test_an_index_outside_reads_inside() -> None:
    (got,) = run_op("Gather", [x := noise(4, 3), ints(99, -99)])
    np.testing.assert_array_equal(got, x[[3, 0]])


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatters(reduction: str) -> None:
    rows = ints(0, 1, -1, 0, 2, 3) if reduction == "none" else ints(0, 0, -1, 0, 2, 2)
    check(
        [
            case("ScatterElements", noise(3, 4), rows.reshape(3, 2), noise(3, 2), axis=1, reduction=reduction),
            case("ScatterND", noise(5, 4, 3), ints(1, 3, 1).reshape(3, 1), noise(3, 4, 3), reduction=reduction),
            case("ScatterND", below(9, 5, 4), ints(1, 3, 0, 2).reshape(2, 2), below(9, 2), reduction=reduction),
        ],
        1e-6,
    )


def test_shapes_and_triangles() -> None:
    check(
        [
            case("Trilu", noise(2, 5, 20), np.array(2)),
            case("Trilu", below(9, 2, 5, 7), np.array(-1), upper=0, constants=(1,)),
            case("EyeLike", below(9, 4, 6), dtype=1, k=-1),
            case("EyeLike", below(9, 4, 6), dtype=7, k=9),
            case("ConstantOfShape", ints(3, 4), value=floats([2.5]), constants=(0,)),
            case("Range", *(np.array(v, np.float32) for v in (1, 9, 2)), constants=(0, 1, 2)),
            case("Shape", noise(3, 4, 5), start=-2),
            case("Size", noise(3, 4, 5)),
        ]
    )


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(largest: int) -> None:
    ties = below(9, 4, 7, 5).astype(np.float32)
    cases = [case("TopK", ties, ints(3), axis=a, largest=largest, constants=(1,), outputs=2) for a in range(3)]
    long = [below(50, 3, 517).astype(t) for t in (np.float32, np.float64, np.float16, np.int64, np.int32)]
    cases += [case("TopK", x, ints(n), largest=largest, constants=(1,), outputs=2) for x in long for n in (1, 29, 516)]
    check([*cases, case("TopK", noise(40), ints(40), largest=largest, constants=(1,), outputs=2)])


@pytest.mark.parametrize("schedule", ["insert", "sort"])
@pytest.mark.parametrize("largest", [0, 1])
def test_schedules_of_top_k(schedule: str, largest: int) -> None:
    """Ties, zeros of both signs, lists that fill up again and again, rows that end inside a vector, every element."""
    signed = np.where(RNG.random((5, 1003)) < 0.5, -0.0, 0.0).astype(np.float32)
    rows = [
        signed, noise(3, 1500), -np.sort(-noise(2, 1500)), np.sort(noise(2, 1501)), below(9, 2, 700).astype(np.int8),
        below(1 << 31, 2, 700, low=-(1 << 31)).astype(np.int32), noise(2, 513).astype(np.float16),
    ]  # fmt: skip
    cases = [case("TopK", x, ints(n), largest=largest, constants=(1,), outputs=2) for x in rows for n in (1, 60, 500)]
    cases.append(case("TopK", noise(3, 150, 7), ints(40), axis=1, largest=largest, constants=(1,), outputs=2))
    for c in cases:
        node = c.node()
        graph = Graph("g", [v for v in node.inputs if v and not v.is_constant], [*node.outputs], [node], ["v", "i"])
        (choice,) = (c for call in lower_graph(graph, native(), 2) for c in call.choices)
        x = c.inputs[0]
        assert x is not None
        results = run_graph(graph, [x], threads=2, tuning=Tuning({choice.key: schedule}))
        for got, want in zip(results, c.expected(), strict=True):
            np.testing.assert_array_equal(got, want, err_msg=choice.problem)


def test_a_nan_is_never_among_the_best_where_there_are_numbers() -> None:
    x = noise(2, 300)
    x[:, ::3] = np.nan
    for largest in (0, 1):
        values, places = run_op("TopK", [x, ints(200)], {"largest": largest}, constants=[1], outputs=2)
        want = np.sort(x)[:, :200]
        np.testing.assert_array_equal(values, -np.sort(-x)[:, :200] if largest else want)
        np.testing.assert_array_equal(values, np.take_along_axis(x, places, 1))


@pytest.mark.parametrize("exclusive,reverse", list(product((0, 1), (0, 1))))
def test_cumulative(exclusive: int, reverse: int) -> None:
    check(
        [
            case("CumSum", noise(3, 9, 20), np.array(a), exclusive=exclusive, reverse=reverse, constants=(1,))
            for a in (0, 1, -1)
        ],
        1e-5,
    )


@pytest.mark.parametrize("exclusive,reverse", list(product((0, 1), (0, 1))))
def test_cumulative_along_many_rows(exclusive: int, reverse: int) -> None:
    """Rows side by side in vectors, with rows and elements that are left over."""
    rows = [noise(21, 37), noise(17, 16), below(9, 19, 21), below(9, 9, 10).astype(np.int32), noise(9, 3)]
    rows.append(noise(5, 9, 11).astype(np.float64))
    cases = [case("CumSum", x, np.array(-1), exclusive=exclusive, reverse=reverse, constants=(1,)) for x in rows]
    check(cases, 1e-5, threads=2)


def test_transforms() -> None:
    lines = [
        case("DFT", noise(2, 9, 3, parts), None if n == 0 else np.array(n), np.array(1), inverse=i, constants=(1, 2))
        for parts, n, i in product((1, 2), (0, 5, 12), (0, 1))
    ]
    check(
        [
            *lines,
            case("DFT", noise(2, 9, 3, 1), None, np.array(1), onesided=1, constants=(2,)),
            case("STFT", noise(1, 128, 1), np.array(8), noise(16), onesided=1, constants=(1,)),
        ],
        1e-5,
    )


def test_determinants() -> None:
    check([case("Det", noise(3, n, n)) for n in (1, 2, 5)], 1e-4)
    (zero,) = run_op("Det", [np.zeros((3, 3), np.float32)])
    assert zero == 0


COORDINATES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")


def resizes(mode: str) -> Iterator[Case]:
    """Every coordinate mode, whole and odd scales, with what goes with `mode`."""
    flags = {"nearest": ((0,), (0,)), "linear": ((0, 1), (0,)), "cubic": ((0, 1), (0, 1))}[mode]
    for c, scale, (antialias, exclude) in product(COORDINATES, ((1, 1, 2, 2), (1, 1, 0.6, 1.7)), product(*flags)):
        yield case(
            "Resize", noise(1, 9, 5, 7), None, floats(scale), mode=mode, coordinate_transformation_mode=c,
            antialias=antialias, exclude_outside=exclude, constants=(2,),
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize(mode: str) -> None:
    check(list(resizes(mode)), 1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_of_blocked_layouts(mode: str) -> None:
    for c in list(resizes(mode))[:2]:
        (got,) = run_graph(in_blocks(c, 8), [x for x in c.inputs[:1] if x is not None])
        np.testing.assert_allclose(got, c.expected()[0], rtol=1e-5, atol=1e-5)


def test_resize_to_sizes_and_regions() -> None:
    roi = floats([0, 0, -0.2, 0.3, 1, 1, 0.7, 1.2])
    crop: dict[str, Any] = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 10.0}
    nearest = ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")
    pixels = (noise(2, 3, 5) * 100).astype(np.uint8)
    check(
        [
            *(case("Resize", noise(1, 3, 5, 7), roi, None, ints(1, 3, 8, 9), mode=m, **crop, constants=(1, 3))
              for m in ("nearest", "linear", "cubic")),
            *(case("Resize", noise(1, 5, 7, 3), None, None, ints(8, 3), axes=(1, 2), nearest_mode=n, constants=(3,))
              for n in nearest),
            case("Resize", noise(1, 3, 5, 7), None, None, ints(1, 3, 8, 3), mode="linear", constants=(3,)),
            case("Resize", noise(2, 3, 5, 7, 6), None, floats([1, 1, 1.5, 2, 2]), mode="linear", constants=(2,)),
            case("Resize", pixels, None, None, ints(2, 7, 5), mode="linear", constants=(3,)),
            case("Resize", noise(1, 1, 5, 7), None, None, ints(9, 9), axes=(2, 3), mode="linear",
                 keep_aspect_ratio_policy="not_larger", constants=(3,)),
        ],
        1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_of_rows_longer_than_a_vector(mode: str, threads: int) -> None:
    """Rows in whole groups and a rest, results that end inside a vector, every width of element, many neighbours."""
    cases = [
        case("Resize", x, None, None, ints(*size), mode=mode, antialias=int(mode != "nearest"), constants=(3,))
        for x in (noise(2, 5, 7, 37), noise(1, 3, 130, 210), noise(1, 4, 9, 33).astype(np.float64),
                  (noise(1, 3, 7, 70) * 30).astype(np.int8 if mode == "nearest" else np.float32))
        for size in ((*x.shape[:2], 11, 50), (*x.shape[:2], 4, 19))
    ]  # fmt: skip
    check(cases, 2e-4, threads=threads)


def test_weights_sum_to_one() -> None:
    for mode, antialias in product(("linear", "cubic"), (False, True)):
        taps = Interpolation(mode, antialias=antialias).taps(Axis(11, 5, 5 / 11))
        np.testing.assert_allclose(taps.weight.sum(axis=1), 1, atol=1e-12)
        assert taps.index.min() >= 0 and taps.index.max() < 11


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(padding: str, corners: int) -> None:
    grid = RNG.uniform(-1.6, 1.6, (2, 3, 4, 2)).astype(np.float32)
    volume = RNG.uniform(-1.6, 1.6, (1, 2, 3, 2, 3)).astype(np.float32)
    flags: dict[str, Any] = {"padding_mode": padding, "align_corners": corners}
    check(
        [
            *(case("GridSample", noise(2, 3, 5, 6), grid, mode=m, **flags) for m in ("nearest", "linear", "cubic")),
            case("GridSample", noise(1, 2, 3, 4, 5), volume, mode="linear", **flags),
        ],
        1e-4,
    )


def test_a_grid_far_outside_reads_nothing() -> None:
    grid = floats([np.nan, np.inf, -np.inf, 1e30]).reshape(1, 1, 2, 2)
    (got,) = run_op("GridSample", [noise(1, 1, 3, 3), grid])
    np.testing.assert_array_equal(got, np.zeros((1, 1, 1, 2)))


@pytest.mark.parametrize("mode,ratio", list(product(("avg", "max"), (0, 2))))
def test_roi_align(mode: str, ratio: int) -> None:
    boxes = floats([[0, 0, 9, 9], [1.5, 2, 4, 6], [-3, -3, 20, 20]])
    regions = case(
        "RoiAlign", noise(2, 3, 10, 10), boxes, ints(0, 1, 0), mode=mode, output_height=3, output_width=2,
        sampling_ratio=ratio, spatial_scale=0.8,
    )  # fmt: skip
    check([regions], 1e-4)


@pytest.mark.parametrize("op", ["Unique", "RandomNormalLike"])
def test_refusals_say_why(op: str) -> None:
    with pytest.raises(UnsupportedOpError, match="depends on the data|draws random numbers"):
        run_op(op, [noise(3)])
