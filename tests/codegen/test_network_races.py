"""All kernels of small networks under Oclgrind: no race, no access outside of a buffer."""

from __future__ import annotations

from pathlib import Path

import pytest

import c2c
from c2c.tests.oclgrind import faults, needs_oclgrind, simulate

from .small_networks import NETWORKS

pytestmark = [needs_oclgrind, pytest.mark.needs("gcc"), pytest.mark.slow]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", ["opencl", "opencl-cpu"])
def test_there_is_no_race_and_no_access_outside(target: str, name: str, tmp_path: Path) -> None:
    c2c.compile(NETWORKS[name](), target, name="net", host_steps=False).save(tmp_path)
    assert faults(simulate(tmp_path, timeout=1200, DATA_RACES="1")) == []
