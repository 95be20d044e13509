"""Exchanges within subgroups in OpenCL C: extensions of two makers, and shared memory where a driver has neither."""

from __future__ import annotations

from .devices import Device

_EXTENSIONS = {
    "intel": (
        ("cl_intel_required_subgroup_size", "cl_intel_subgroups"),
        ("cl_intel_subgroups",),
        "intel_reqd_sub_group_size({size})",
        "intel_sub_group_shuffle_xor(x, mask)",
    ),
    "qcom": (
        ("cl_qcom_reqd_sub_group_size", "cl_qcom_subgroup_shuffle"),
        ("cl_qcom_reqd_sub_group_size", "cl_qcom_subgroup_shuffle"),
        'qcom_reqd_sub_group_size("half")',
        "qcom_sub_group_shuffle_xor(x, mask, CLK_SUB_GROUP_SHUFFLE_WIDTH_WAVE_SIZE_QCOM, 0u)",
    ),
}
"""Of what `Device.shuffles` names: extensions, those that a text enables, the attribute that fixes the size of
subgroups, the exchange of words.

Khronos, OpenCL extensions cl_intel_required_subgroup_size and cl_intel_subgroups; Qualcomm, Snapdragon Mobile Platform
OpenCL General Programming and Optimization, 9.2 (waves of "half" size have 64 threads)."""

_SUBGROUPS = """\
#if {defined}
{enabled}
#define C2C_SUBGROUPS __attribute__(({attribute}))
#define c2c_thread(width, height) ((int)(get_sub_group_id() * {size} + get_sub_group_local_id()))
#define C2C_NEAR(threads)
#define c2c_shuffle_xor(near, thread, x, mask) {function}
#else /* a driver without subgroups of a size that is certain: the same through shared memory */
#define C2C_SUBGROUPS
#define C2C_NEAR(threads) __local uint c2c_near[threads];
#define c2c_thread(width, height) \\
    ((int)((get_local_id(2) * (height) + get_local_id(1)) * (width) + get_local_id(0)))
static inline uint c2c_shuffle_xor(__local uint *near, uint thread, uint x, uint mask)
{{
    uint y;
    near[thread] = x;
    barrier(CLK_LOCAL_MEM_FENCE);
    y = near[thread ^ mask];
    barrier(CLK_LOCAL_MEM_FENCE);
    return y;
}}
#endif
"""


def subgroups(device: Device) -> str:
    """Text in front of kernels that exchange values."""
    extensions, pragmas, attribute, function = _EXTENSIONS[device.shuffles]
    return _SUBGROUPS.format(
        defined=" && ".join(f"defined({e})" for e in extensions),
        enabled="\n".join(f"#pragma OPENCL EXTENSION {e} : enable" for e in pragmas),
        attribute=attribute.format(size=device.subgroup), function=function, size=device.subgroup,
    )  # fmt: skip
