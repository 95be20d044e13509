"""One form for each thing that exporters write in several ways: the rule tables `rules_*.py`, until nothing changes.

Before: Flatten, Gemm, x * sigmoid(x), SAME_UPPER, Conv(Pad(x)), … After: Reshape, MatMul + Add, Swish, explicit pads, …
Preserves: results but for a rounding. Needs: static shapes (values with symbolic ones are left alone).
"""

from __future__ import annotations

from ..ir.graph import Graph
from .base import Pass, PassContext, Rule, apply_rules, register_pass
from .rules_arithmetic import ARITHMETIC_RULES
from .rules_idioms import IDIOM_RULES
from .rules_movement import MOVEMENT_RULES
from .rules_parts import PART_RULES
from .rules_windows import WINDOW_RULES

RULES: tuple[Rule, ...] = (*MOVEMENT_RULES, *PART_RULES, *ARITHMETIC_RULES, *IDIOM_RULES, *WINDOW_RULES)


@register_pass
class Canonicalize(Pass):
    name = "canonicalize"

    def run(self, graph: Graph, context: PassContext) -> bool:
        return apply_rules(graph, RULES, context)
