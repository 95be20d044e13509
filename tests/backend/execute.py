"""One node test as compiled native code: passed, refused with a clear error, wrong, or crashed."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

import c2c
from c2c.ir.errors import C2CError, PassError, RunError, VerifyError

from .cases import NodeTest

PASSED, REFUSED, WRONG, CRASHED = "passed", "refused", "wrong", "crashed"

ROUNDING = {"bfloat16": 2**-6, "float16": 2**-9}
"""Two units in the last place: ONNX's own runner grants them to bfloat16; expected values round after every step."""

DEFECTS = (PassError, VerifyError, RunError)
"""Errors that blame the compiler, or this runner, but not the model: no refusal."""

_PIN = re.compile(r"--value (\S+?)=")


@dataclass(frozen=True)
class Result:
    """outcome, the first line of the error or difference, the inputs whose values were made constants, and whether
    these were all of them: then the importer computed the result, and the object only copies it."""

    outcome: str
    detail: str = ""
    pinned: tuple[str, ...] = ()
    folded: bool = False

    def record(self) -> dict[str, Any]:
        return asdict(self)


def execute(test: NodeTest, target: str = "native") -> Result:
    """Compile and run every data set of a test; inputs that must be constants are pinned to the test's values."""
    result = Result(REFUSED, "the test has no data")
    for inputs, outputs in test.data:
        result = _run(test, list(inputs), list(outputs), target)
        if result.outcome != PASSED:
            break
    return result


def _run(test: NodeTest, inputs: list[Any], expected: list[Any], target: str) -> Result:
    feeds = {n: _array(a) for n, a in zip(test.inputs, inputs, strict=False) if a is not None}
    pinned: list[str] = []
    refusal: C2CError | None = None
    while True:
        try:
            model = c2c.compile(test.model, target, values={n: feeds[n] for n in pinned}, name="m")
            got = model.run({n: a for n, a in feeds.items() if n not in pinned})
            break
        except DEFECTS as e:
            return Result(CRASHED, f"{type(e).__name__}: {_line(e)}", tuple(pinned))
        except C2CError as e:
            refusal = refusal if refusal is not None and not _PIN.search(str(refusal)) else e
            more = to_pin(e, feeds, pinned)
            if not more:
                return Result(REFUSED, _line(refusal))
            pinned += more
        except Exception as e:  # anything else is a defect, whatever its class
            return Result(CRASHED, f"{type(e).__name__}: {_line(e)}", tuple(pinned))
    numbers = {p.counted.count for p in model.outputs if p.counted is not None}
    results = [a for n, a in got.items() if n not in numbers]
    difference = compare(results, expected, test.rtol, test.atol)
    outcome = WRONG if difference else PASSED
    return Result(outcome, difference, tuple(pinned), folded=all(n in pinned for n in feeds))


def to_pin(error: C2CError, feeds: dict[str, Any], pinned: list[str]) -> list[str]:
    """Inputs to make constants after a refusal: those it names, else short integer ones, else scalars."""
    left = {n: a for n, a in feeds.items() if n not in pinned and isinstance(a, np.ndarray)}
    named = [n for n in _PIN.findall(str(error)) if n in left]
    short = [n for n, a in left.items() if a.ndim <= 1 and a.dtype.kind in "iub"]
    scalars = [n for n, a in left.items() if a.ndim == 0 and a.dtype.kind != "O"]
    return named or short or scalars


def _array(value: Any) -> Any:
    """A tensor as an array; sequences and optional values as they are."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value if isinstance(value, list | tuple | dict) else np.asarray(value)


def compare(got: list[np.ndarray], expected: list[Any], rtol: float, atol: float) -> str:
    """What differs first, "" for nothing."""
    if len(got) != len(expected):
        return f"{len(got)} outputs, not {len(expected)}"
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        want = _array(b)
        if a.dtype != want.dtype or a.shape != want.shape:
            return f"output {index} is {a.dtype}{list(a.shape)}, not {want.dtype}{list(want.shape)}"
        if want.dtype.kind in "biuO":
            near = np.abs(a.astype(object) - want.astype(object)) <= atol + rtol * np.abs(want.astype(object))
            same = bool(np.all(near)) if want.dtype.kind != "O" else bool(np.all(a == want))
        else:
            relative = max(rtol, ROUNDING.get(want.dtype.name, 0.0))
            left, right = a.astype(np.float64), want.astype(np.float64)
            same = bool(np.allclose(left, right, rtol=relative, atol=atol, equal_nan=True))
        if not same:
            return f"output {index} differs: {_sample(a)}, not {_sample(want)}"
    return ""


def _sample(a: np.ndarray) -> str:
    return ", ".join(str(x) for x in a.reshape(-1)[:4]) or "nothing"


def _line(e: BaseException) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(e).__name__
