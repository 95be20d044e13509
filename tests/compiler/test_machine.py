"""Limits of the machine: plausible figures, and the memory that a size comes from."""

from __future__ import annotations

import pytest

from c2c.codegen.target import native
from c2c.compiler.machine import Level, Machine, Peak, measure_machine, parallel_costs

MACHINE = Machine("x", 1, (Peak(32, 8.0), Peak(256, 64.0)), (Level("L1", 100, 50, 9.0), Level("memory", 0, 400, 1.0)))


def test_a_short_measurement_fills_every_field() -> None:
    machine = measure_machine(0.02)
    assert [p.bits for p in machine.peaks][-1] == native().vector_bits
    assert machine.gflops == max(p.gflops for p in machine.peaks) > 0.1
    assert [v.name for v in machine.levels] in (["L1", "L2", "L3", "memory"], ["L1", "L2", "memory"])
    assert all(v.gbs > 0.1 for v in machine.levels)
    assert (machine.barrier_us > 0) == (machine.cores > 1)


def test_a_parallel_step_takes_time() -> None:
    barrier, wake = parallel_costs(2, 0.02)
    assert barrier > 0.01
    assert wake >= 0


@pytest.mark.parametrize(("size", "name"), [(0, "L1"), (100, "L1"), (101, "memory"), (1 << 40, "memory")])
def test_the_level_that_holds_a_size(size: int, name: str) -> None:
    assert MACHINE.level(size).name == name
    assert MACHINE.gflops == 64.0
