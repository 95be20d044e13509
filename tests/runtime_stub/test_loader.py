"""The loader in this process."""

from __future__ import annotations

import subprocess
import sys

import pytest

CROWDED = """
import ctypes
import numpy as np
from onnx import TensorProto, helper
import c2c

PAGE, APART, NONE, FIXED = 4096, 3 << 30, 0x4022, 0x10  # NONE: private, anonymous, no memory reserved
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

def reserve(at, size, flags=NONE):
    made = libc.mmap(at, size, 0, flags, -1, 0)
    assert made != ctypes.c_void_p(-1).value, ctypes.get_errno()
    return made

x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [64]) for n in "xy")
graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", [x], [y])
model = c2c.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
start = np.arange(64, dtype=np.float32)

with open("/proc/self/maps") as file:
    lines = file.read().split("[stack]")[0].splitlines()[:-1]
used = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines]
libraries = [u for u in used if u[0] >> 40 == used[-1][0] >> 40]
for (_, low), (high, _) in zip(libraries, libraries[1:]):
    if high > low:
        reserve(low, high - low, NONE | FIXED)
for _ in range(16):
    libc.munmap(reserve(None, APART + PAGE) + APART, PAGE)
result = model.run({"x": start})["y"]
np.testing.assert_allclose(result, 1 / (1 + np.exp(-start)), 1e-6)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mappings")
def test_sections_lie_within_reach_of_each_other() -> None:
    """Where free pages lie gigabytes apart, code and the constants that it addresses by 32 bits stay together."""
    done = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
