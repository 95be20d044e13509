"""The constructs of our Metal text against those that SPIRV-Cross writes for compute shaders that do the same, which
runs on Apple's devices wherever Vulkan does (Khronos, MoltenVK)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from c2c.codegen.devices import DEVICES
from c2c.codegen.metal import emit_metal
from c2c.codegen.target import Target
from c2c.compiler.driver import compile_file
from c2c.compiler.options import CompileOptions

from .test_opencl_races import network

pytestmark = pytest.mark.needs("glslangValidator", "spirv-cross")

TILED = """#version 450
layout(local_size_x = 16, local_size_y = 8) in;
layout(binding = 0) readonly buffer A { float a[]; };
layout(binding = 1) buffer Y { float y[]; };
shared float tile[128];
void main() {
    uint t = gl_LocalInvocationID.y * 16 + gl_LocalInvocationID.x;
    tile[t] = a[gl_WorkGroupID.x * 128 + t];
    memoryBarrierShared();
    barrier();
    float sum = 0.0;
    for (int i = 0; i < 128; i++)
        sum = fma(tile[i], uintBitsToFloat(t), sum);
    y[gl_WorkGroupID.z * 128 + t] = min(floor(sum), intBitsToFloat(floatBitsToInt(max(sum, 1.0)) << 2));
}
"""
ELEMENTS = """#version 450
layout(local_size_x = 64) in;
layout(binding = 0) readonly buffer A { float a[]; };
layout(binding = 1) buffer Y { float y[]; };
void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= 100) return;
    y[i] = sqrt(abs(a[i]));
}
"""

EXCHANGING = """#version 450
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
layout(local_size_x = 64) in;
layout(binding = 0) readonly buffer A { float a[]; };
layout(binding = 1) buffer Y { float y[]; };
void main() {
    uint t = gl_SubgroupID * 32 + gl_SubgroupInvocationID;
    y[gl_WorkGroupID.x * 64 + t] = subgroupShuffleXor(a[gl_WorkGroupID.x * 64 + t], 4u);
}
"""

HALVES = """#version 450
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
layout(local_size_x = 16) in;
layout(binding = 0) readonly buffer A { float16_t a[]; };
layout(binding = 1) buffer Y { float16_t y[]; };
shared float16_t tile[16];
void main() {
    uint t = gl_LocalInvocationID.x;
    tile[t] = a[t];
    barrier();
    float sum = fma(float(tile[t ^ 1]), float(a[t]), float(tile[t]));
    y[t] = float16_t(sum) * float16_t(0.5) + a[t];
}
"""

OURS_ALONE = {"max_total_threads_per_threadgroup"}
"""Attributes that SPIRV-Cross never writes: Metal Shading Language Specification, section 5.1.3 (kernel functions)."""


def spirv_cross(shader: str, folder: Path) -> str:
    (folder / "k.comp").write_text(shader)
    for command in (
        "glslangValidator -V --target-env vulkan1.1 k.comp -o k.spv",
        "spirv-cross k.spv --msl --msl-version 20200 --output k.msl",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return (folder / "k.msl").read_text()


def attributes(text: str) -> set[str]:
    return set(re.findall(r"\[\[(\w+)", text))


def parameters(text: str) -> set[tuple[str, str]]:
    """Types of what Metal gives a thread, with their attributes."""
    return set(re.findall(r"\b(\w+) \w+ (\[\[\w+_in_\w+\]\])", text))


@pytest.fixture(scope="module")
def ours() -> str:
    program = compile_file(network().SerializeToString(), CompileOptions(Target.parse("metal"), name="net")).program
    text: str = emit_metal(program, DEVICES["metal"][0])
    return text


def test_attributes_and_built_ins_are_spelt_as_spirv_cross_spells_them(ours: str, tmp_path: Path) -> None:
    theirs = spirv_cross(TILED, tmp_path) + spirv_cross(ELEMENTS, tmp_path)
    assert attributes(ours) - attributes(theirs) == OURS_ALONE
    assert {"buffer", "thread_position_in_grid", "threadgroup_position_in_grid"} <= attributes(ours)
    assert parameters(ours) and parameters(ours) <= parameters(theirs)


@pytest.mark.parametrize(
    "construct",
    [
        r"#include <metal_stdlib>", r"using namespace metal;", r"kernel void \w+\(", r"threadgroup float \w+\[\d+\];",
        r"threadgroup_barrier\(mem_flags::mem_threadgroup\);", r"as_type<\w+>\(", r"\bfma\(", r"\bsqrt\(",
        r"const device|device const", r"\[\[buffer\(0\)\]\]", r"\[\[buffer\(1\)\]\]",
    ],
)  # fmt: skip
def test_constructs_are_those_of_spirv_cross(ours: str, construct: str, tmp_path: Path) -> None:
    assert re.search(construct, ours), "our text does not have it"
    assert re.search(construct, spirv_cross(TILED, tmp_path) + spirv_cross(ELEMENTS, tmp_path))


def test_exchanges_are_spelt_as_spirv_cross_spells_them(tmp_path: Path) -> None:
    program = compile_file(network().SerializeToString(), CompileOptions(Target.parse("metal-ios"), name="net")).program
    ours, theirs = emit_metal(program, DEVICES["metal-ios"][0]), spirv_cross(EXCHANGING, tmp_path)
    new = {"thread_index_in_simdgroup", "simdgroup_index_in_threadgroup"}
    assert new <= attributes(ours) & attributes(theirs)
    assert parameters(theirs) <= parameters(ours)
    construct = r"[= ]simd_shuffle_xor\(\w+, \w+\);"
    assert re.search(construct, ours) and re.search(construct, theirs)


@pytest.fixture(scope="module")
def in_halves() -> str:
    options = CompileOptions(Target.parse("metal"), name="net", precision="f16")
    program = compile_file(network().SerializeToString(), options).program
    text: str = emit_metal(program, DEVICES["metal"][0])
    return text


@pytest.mark.parametrize(
    "construct",
    [
        r"device half\b|half \w+\[1\];", r"threadgroup half \w+\[\d+\];", r"\bhalf\([\d.]+f?\)",
        r"fma\(float\(tile|fma\(\(float\)a\[",
    ],
)  # fmt: skip
def test_halves_are_spelt_as_spirv_cross_spells_them(in_halves: str, construct: str, tmp_path: Path) -> None:
    assert re.search(construct, in_halves), "our text does not have it"
    assert re.search(construct, spirv_cross(HALVES, tmp_path))
