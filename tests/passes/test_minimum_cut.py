"""Minimum cuts against all cuts of small random networks."""

from __future__ import annotations

import itertools
import random

import pytest

from c2c.passes.minimum_cut import Network


def _cost(arcs: list[tuple[int, int, int]], sink_side: set[int]) -> int:
    return sum(c for a, b, c in arcs if a not in sink_side and b in sink_side)


@pytest.mark.parametrize("seed", range(60))
def test_no_cut_is_smaller_and_no_equal_one_lies_within(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randint(2, 7)
    arcs = [
        (a, b, chance.randint(0, 9))
        for a, b in itertools.permutations(range(count), 2)
        if chance.random() < chance.choice((0.3, 0.8))
    ]
    network = Network(count)
    for arc in arcs:
        network.add(*arc)
    found = network.sink_side(0, 1)
    others = range(2, count)
    cuts = [{1, *some} for n in range(count - 1) for some in itertools.combinations(others, n)]
    assert 1 in found and 0 not in found
    assert _cost(arcs, found) == min(_cost(arcs, cut) for cut in cuts)
    assert found == set.intersection(*(cut for cut in cuts if _cost(arcs, cut) == _cost(arcs, found)))
