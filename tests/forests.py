"""Random ensembles of trees as nodes of ai.onnx.ml, and rows that meet their splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

Array = np.ndarray[Any, Any]
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
_NODES = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids",
          "missing_value_tracks_true")  # fmt: skip


def forest(
    seed: int,
    trees: int,
    leaves: int,
    features: int,
    *,
    of: str = "target",
    modes: Sequence[str] = MODES,
    targets: int = 1,
    every_target: bool = False,
    missing: bool = True,
    balanced: bool = False,
    oblivious: bool = False,
) -> dict[str, Any]:
    """Attributes of a TreeEnsembleRegressor (`of` target) or Classifier (class) of trees grown leaf by leaf.

    Tree t gives to target t modulo targets, or each leaf to every target. missing: some NaN count as true. balanced:
    the oldest leaf grows, else a random one; oblivious: then all nodes of a level ask the same.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {f"nodes_{n}": [] for n in _NODES}
    found |= {f"{of}_{n}": [] for n in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(trees):
        arms: dict[int, tuple[int, int]] = {}
        growing = [0]
        while len(growing) < leaves:
            at = growing.pop(0 if balanced else int(rng.integers(len(growing))))
            arms[at] = (2 * len(arms) + 1, 2 * len(arms) + 2)
            growing += arms[at]
        level: dict[int, tuple[int, str, float, int]] = {}
        for node in range(2 * len(arms) + 1):
            mode = str(rng.choice(modes)) if node in arms else "LEAF"
            split = rng.integers(-2, 3) if mode in ("BRANCH_EQ", "BRANCH_NEQ") else np.float32(rng.normal())
            true, false = arms.get(node, (0, 0))
            question = int(rng.integers(features)), mode, float(split), int(rng.integers(2))
            if oblivious and node in arms:
                question = level.setdefault((node + 1).bit_length(), question)
            row = (tree, node, *question[:3], true, false, question[3])
            for name, value in zip(_NODES, row, strict=True):
                found[f"nodes_{name}"].append(value if name != "missing_value_tracks_true" or missing else 0)
            for target in (range(targets) if every_target else [tree % targets]) if node not in arms else ():
                entry = (tree, node, target, float(np.float32(rng.normal())))
                for name, value in zip(("treeids", "nodeids", "ids", "weights"), entry, strict=True):
                    found[f"{of}_{name}"].append(value)
    return found


def rows(seed: int, count: int, features: int, dtype: type = np.float32) -> Array:
    """Normal numbers, small integers and NaN."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, features))
    x = np.where(rng.random(x.shape) < 0.4, rng.integers(-2, 3, x.shape), x)
    return np.asarray(np.where(rng.random(x.shape) < 0.1, np.nan, x).astype(dtype))


def ml_model(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Array], outputs: Mapping[str, int], version: int = 3
) -> onnx.ModelProto:
    """A model of nodes of any domain. inputs: arrays of their shapes; outputs: element types (0: of none)."""
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in inputs.items()
    ]
    made = [helper.make_tensor_value_info(n, t, None) if t else onnx.ValueInfoProto(name=n) for n, t in outputs.items()]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(helper.make_graph(nodes, "g", given, made), opset_imports=imports, ir_version=9)


def ml_node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, f"{op}_{outputs[0]}", domain="ai.onnx.ml", **attrs)


def regressor(attrs: Mapping[str, Any], x: Array, targets: int = 1) -> onnx.ModelProto:
    """TreeEnsembleRegressor of version 3."""
    node = ml_node("TreeEnsembleRegressor", ["x"], ["y"], **{"n_targets": targets, **attrs})
    return ml_model([node], {"x": x}, {"y": TensorProto.FLOAT})


def classifier(attrs: Mapping[str, Any], x: Array) -> onnx.ModelProto:
    """TreeEnsembleClassifier of version 3."""
    node = ml_node("TreeEnsembleClassifier", ["x"], ["label", "scores"], **attrs)
    label = TensorProto.STRING if attrs.get("classlabels_strings") else TensorProto.INT64
    return ml_model([node], {"x": x}, {"label": label, "scores": TensorProto.FLOAT})
