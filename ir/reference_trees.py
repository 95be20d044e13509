"""`c2c.TreeEnsemble` as ONNX's tools take an operator: its schema, and its evaluation for the reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.defs import OpSchema
from onnx.reference.op_run import OpRun

from .tree_ensemble import TREES
from .tree_ensemble import TreeEnsemble as Operands

_FLOATS = ["tensor(float)", "tensor(double)"]
_OPERANDS = (
    ("features", "tensor(int32)"), ("modes", "tensor(uint8)"), ("missing", "tensor(bool)"), ("splits", "T"),
    ("children", "tensor(int32)"), ("roots", "tensor(int32)"), ("weights", "T"), ("targets", "tensor(int32)"),
    ("ends", "tensor(int32)"), ("members", "T"),
)  # fmt: skip


def _schema() -> OpSchema:
    domain, _, name = TREES.partition(".")
    kinds = OpSchema.AttrType
    return OpSchema(
        name,
        domain,
        1,
        inputs=[OpSchema.FormalParameter(n, t) for n, t in (("x", "T"), *_OPERANDS)],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", _FLOATS, "")],
        attributes=[
            OpSchema.Attribute("n_targets", kinds.INT, required=True),
            OpSchema.Attribute("aggregate", kinds.STRING, required=True),
        ],
    )


SCHEMA = _schema()


class TreeEnsemble(OpRun):
    """Evaluates the operator."""

    op_domain, op_schema = SCHEMA.domain, SCHEMA

    def _run(self, x: np.ndarray, *operands: Any, n_targets: int, aggregate: str) -> tuple[np.ndarray]:
        return (Operands(*operands).evaluate(x, n_targets, aggregate),)
