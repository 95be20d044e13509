"""Ensembles of trees, on this machine, one thread: this compiler, each of its ways through trees, and onnxruntime.

    python benchmarks/trees.py [--only "100 x 31"] [--rounds 30] [--ways] [--target x86-64-v3]

Trees are grown leaf by leaf at random (as LightGBM's are uneven) or, "depth", completely. Engines take turns; a figure
is the least of all rounds, in microseconds a call: of own code by the loaded object's C function, of onnxruntime by
`run_with_iobinding`. One row is another one at every call, of so many that branches are not learnt by heart.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from c2c.codegen.llvm_program import emit_object
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_graph
from c2c.compiler.onnx_import import import_model
from c2c.compiler.options import CompileOptions
from c2c.passes.lower import lower_graph
from c2c.passes.lower.schedule import Choice, Tuning
from c2c.runtime_stub.loader import Bound, Loaded

FEATURES = 30
DIFFERENT = 500
"""Rows, one at each call."""


@dataclass(frozen=True)
class Case:
    """depth: complete trees of it, in place of leaves. oblivious: the nodes of a level ask the same, as in CatBoost."""

    trees: int
    leaves: int
    rows: int
    depth: int = 0
    oblivious: bool = False

    def __str__(self) -> str:
        size = f"depth {self.depth}" if self.depth else f"{self.leaves} leaves"
        size = f"oblivious {size}" if self.oblivious else size
        return f"{self.trees} x {size}, {self.rows} rows"


CASES = [
    *(Case(trees, 31, rows) for trees in (100, 500) for rows in (1, 100, 10_000)),
    *(Case(100, 1024, rows, 10) for rows in (1, 100, 10_000)),
    *(Case(300, 64, rows, 6) for rows in (1, 100, 10_000)),
    *(Case(500, 64, rows, 6, oblivious=True) for rows in (1, 100, 10_000)),
]


def model_of(case: Case) -> onnx.ModelProto:
    """A regressor of version 3."""
    rng = np.random.default_rng(0)
    inner, leaves = case.leaves - 1, case.leaves
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    found: dict[str, list[Any]] = {f"nodes_{n}": [] for n in names}
    found |= {f"target_{n}": [] for n in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(case.trees):
        true, false = np.zeros(2 * leaves - 1, int), np.zeros(2 * leaves - 1, int)
        growing = [0]
        for made in range(inner):
            at = growing.pop(0 if case.depth else int(rng.integers(len(growing))))
            true[at], false[at] = 2 * made + 1, 2 * made + 2
            growing += [2 * made + 1, 2 * made + 2]
        split, feature = rng.normal(size=2 * leaves - 1).astype(np.float32), rng.integers(0, FEATURES, 2 * leaves - 1)
        if case.oblivious:
            level = np.floor(np.log2(np.arange(1, 2 * leaves))).astype(int)
            split, feature = split[level], feature[level]
        for values, name in zip(
            ([tree] * (2 * leaves - 1), range(2 * leaves - 1), feature.tolist(),
             ["BRANCH_LEQ" if t else "LEAF" for t in true], split.tolist(), true.tolist(), false.tolist()),
            names, strict=True,
        ):  # fmt: skip
            found[f"nodes_{name}"] += values
        ends = np.flatnonzero(true == 0).tolist()
        found["target_treeids"] += [tree] * leaves
        found["target_nodeids"] += ends
        found["target_ids"] += [0] * leaves
        found["target_weights"] += (rng.normal(size=leaves) * 0.1).astype(np.float32).tolist()
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, **found)
    graph = helper.make_graph(
        [node], "trees", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.rows, FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.rows, 1])],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


Runs = tuple[Sequence[Callable[[], Any]], np.ndarray]
"""A call for each batch of rows, and their results together."""


def by_onnxruntime(model: onnx.ModelProto, batches: Sequence[np.ndarray]) -> Runs:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = [onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((len(x), 1), np.float32)) for x in batches]
    runs = []
    for x, y in zip(batches, results, strict=True):
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_ortvalue_output("y", y)
        runs.append(partial(session.run_with_iobinding, binding))
        runs[-1]()
    return runs, np.concatenate([y.numpy() for y in results])


def by_c2c(model: onnx.ModelProto, batches: Sequence[np.ndarray], target: Target, tuning: Tuning) -> Runs:
    compiled = compile_graph(import_model(model), CompileOptions(target, name="trees", tuning=tuning))
    program, results = compiled.program, [np.zeros((len(x), 1), np.float32) for x in batches]
    code = emit_object(program, compiled.options.target, embed_weights=False)
    loaded = Loaded(code, program.name, arena_bytes=program.arena_bytes, weights=program.weights)
    runs = []
    for x, y in zip(batches, results, strict=True):
        bound = loaded.bind([x], [y])
        runs.append(partial(_call, ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(bound.function), bound))
        runs[-1]()
    return runs, np.concatenate(results)


def _call(function: Callable[[int], int], bound: Bound) -> None:
    function(bound.arguments)


def choices_of(model: onnx.ModelProto, target: Target) -> Choice:
    """What the cost model says of the ensemble."""
    return next(c for call in lower_graph(import_model(model), target, 1) for c in call.choices)


def microseconds(engines: dict[str, Sequence[Callable[[], Any]]], rounds: int) -> dict[str, float]:
    """The least of a call of each engine, which take turns; a round is all its calls, once or as often as 2 ms hold."""
    best = dict.fromkeys(engines, float("inf"))
    repeat = {}
    for name, runs in engines.items():
        begin = time.perf_counter()
        for run in runs:
            run()
        repeat[name] = max(1, int(2e-3 / (time.perf_counter() - begin)))
    for _ in range(rounds):
        for name, runs in engines.items():
            begin = time.perf_counter()
            for _ in range(repeat[name]):
                for run in runs:
                    run()
            best[name] = min(best[name], (time.perf_counter() - begin) / (repeat[name] * len(runs)))
    return {name: t * 1e6 for name, t in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--ways", action="store_true", help="time every way, not only the chosen one")
    parser.add_argument("--target", default="native")
    args = parser.parse_args()
    target = Target.parse(args.target)
    print(f"load {os.getloadavg()[0]:.1f}; microseconds a call")
    for case in (c for c in CASES if args.only in str(c)):
        model = model_of(case)
        count = DIFFERENT if case.rows == 1 else 1
        batches = [*np.random.default_rng(1).normal(size=(count, case.rows, FEATURES)).astype(np.float32)]
        runs, expected = by_onnxruntime(model, batches)
        engines, choice = {"onnxruntime": runs}, choices_of(model, target)
        names = [name for name, _ in choice.candidates] if args.ways else [choice.name]
        for name in names:
            engines[name], got = by_c2c(model, batches, target, Tuning({choice.key: name}))
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        times, cycles = microseconds(engines, args.rounds), dict(choice.candidates)
        print(f"{case}: onnxruntime {times['onnxruntime']:.1f}")
        for name in names:
            ratio = times["onnxruntime"] / times[name]
            print(f"    {name:24} {times[name]:10.1f}  {ratio:5.1f}x  {cycles[name]:12.0f} cycles by estimate")


if __name__ == "__main__":
    main()
