"""All kernels of small networks under Oclgrind: no race, no access outside of a buffer."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto

import c2c
from c2c.tests.oclgrind import faults, needs_oclgrind, simulate
from c2c.tests.passes.test_integer_arithmetic import residual_net

from .small_networks import NETWORKS

pytestmark = [needs_oclgrind, pytest.mark.needs("gcc"), pytest.mark.slow]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", ["opencl", "opencl-cpu"])
def test_there_is_no_race_and_no_access_outside(target: str, name: str, tmp_path: Path) -> None:
    c2c.compile(NETWORKS[name](), target, name="net", host_steps=False).save(tmp_path)
    assert faults(simulate(tmp_path, timeout=1200, DATA_RACES="1")) == []


@pytest.mark.parametrize("target", ["opencl", "opencl+dots", "opencl-cpu"])
def test_quantised_networks_have_none_either(target: str, tmp_path: Path) -> None:
    net, result = residual_net()
    c2c.compile(net.model([result], TensorProto.FLOAT), target, name="net", host_steps=False).save(tmp_path)
    assert faults(simulate(tmp_path, timeout=1200, DATA_RACES="1")) == []
