"""Names of targets, their facts, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from c2c.codegen.cores import CORES, Core
from c2c.codegen.devices import DEVICES
from c2c.codegen.target import FEATURES, OSES, TARGETS, Target, native
from c2c.ir.errors import TargetError
from c2c.ir.types import DType

NAMES = [n for n, t in TARGETS.items() if n != "native" and t.device is None]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("os", OSES)
def test_every_name_round_trips(name: str, os: str) -> None:
    if os == "ios" and TARGETS[name].arch != "aarch64":
        pytest.skip("no such machine")
    edit = "+dotprod" if TARGETS[name].arch == "aarch64" else "+avxvnni-f16c"
    for text in (f"{name}-{os}", f"{name}{edit}-{os}"):
        target = Target.parse(text)
        assert str(target) == text.removesuffix("-linux")
        assert Target.parse(str(target)) == target
        assert target.os == os


def test_facts() -> None:
    facts = {n: (t.vector_bits, t.registers, t.has_fma, t.has_dot_prod) for n, t in TARGETS.items() if n in NAMES}
    assert facts == {
        "x86-64": (128, 16, False, False),
        "x86-64-v3": (256, 16, True, False),
        "x86-64-v4": (512, 32, True, False),
        "arm64-neon": (128, 32, True, False),
        "arm64-dotprod": (128, 32, True, True),
    }
    assert Target.parse("x86-64-v4").lanes(DType.F32) == 16
    assert Target.parse("x86-64-v4").lanes(DType.F64) == 8
    assert "-prefer-256-bit" in Target.parse("x86-64-v4").features


@pytest.mark.parametrize("name", DEVICES)
def test_graphics_processors_are_threads_of_scalars(name: str) -> None:
    target = Target.parse(name)
    assert str(target) == name and target.device is DEVICES[name][0] and not target.runs_here
    assert target.lanes(DType.F32) == target.lanes(DType.F64) == target.lanes(DType.I8) == 1
    rows, columns = target.device.threads
    assert rows * columns <= target.device.work_group
    with pytest.raises(TargetError, match="any operating system"):
        Target.parse(f"{name}-android")
    with pytest.raises(TargetError, match="unknown feature"):
        Target.parse(f"{name}+avx2")


def test_cores_differ_in_what_no_feature_tells() -> None:
    v3, v4 = Target.parse("x86-64-v3"), Target.parse("x86-64-v4")
    zen4 = replace(v4, core=CORES["znver4"], l3_bytes=32 << 20)
    assert [t.fma_per_cycle for t in (v3, v4, zen4, replace(v3, core=CORES["znver4"]))] == [2, 2, 1, 2]
    assert zen4.stream_bytes_per_cycle(4 << 20) > zen4.stream_bytes_per_cycle(8 << 20) == zen4.core.memory_bytes
    assert native().core == CORES.get(native().cpu, Core())


def test_features_bring_and_take_what_hangs_on_them() -> None:
    wide = Target.parse("x86-64+avx512f")
    assert (wide.vector_bits, wide.has_fma, wide.converts_f16) == (512, True, True)
    narrow = Target.parse("x86-64-v4-avx2")
    assert (narrow.vector_bits, narrow.registers) == (128, 16)
    assert "avx512f" not in narrow.has and "-avx512f" in narrow.features
    assert Target.parse("arm64-neon+fp16").has_fp16 and "+fullfp16" in Target.parse("arm64-neon+fp16").features
    vnni = Target.parse("x86-64-v4+avx512vnni")
    assert vnni.has_dot_prod and "+fast-dpwssd" in vnni.features
    assert "+fast-dpwssd" not in Target.parse("x86-64-v4").features


def test_triples_formats_and_prefixes() -> None:
    rows = {
        "x86-64": ("x86_64-unknown-linux-gnu", "elf", ""),
        "arm64-neon": ("aarch64-unknown-linux-gnu", "elf", ""),
        "arm64-neon-android": ("aarch64-unknown-linux-android21", "elf", ""),
        "arm64-neon-macos": ("arm64-apple-macosx11.0.0", "macho", "_"),
        "arm64-dotprod-ios": ("arm64-apple-ios13.0.0", "macho", "_"),
        "x86-64-v3-windows": ("x86_64-pc-windows-msvc", "coff", ""),
    }
    assert {n: (t.triple, t.object_format, t.symbol_prefix) for n in rows for t in [Target.parse(n)]} == rows


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("x86_64", "x86-64"),
        ("x86-64-v5", "x86-64-v3"),
        ("arm64-neon+dotprd", "dotprod"),
        ("arm64-neon-macs", "macos"),
        ("arm64-neon-macos-linux", "linux"),
        ("arm64-neon+avx2", "known:"),
        ("x86-64-ios", "arm64"),
        ("arm64-neonx", "arm64-neon"),
        ("arm64-neon macos", "arm64-neon"),
        ("x86-64+", "x86-64"),
        ("", "known:"),
        ("arm64-neon+qqqqqqqqqqq", "known:"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(TargetError) as error:
        Target.parse(text)
    assert hint in str(error.value)


def test_native_is_this_machine() -> None:
    here = Target.parse("native")
    assert here.runs_here and here == native() and str(here) == "native"
    assert here.cpu and here.l1_bytes >= 16 << 10
    foreign = "x86-64" if here.arch == "aarch64" else "arm64-neon"
    assert not Target.parse(foreign).runs_here


def test_features_need_known_features() -> None:
    for arch, table in FEATURES.items():
        for feature in table.values():
            assert all(n in table for n in feature.needs), (arch, feature)


def test_devices_compute_in_halves_where_told() -> None:
    assert Target.parse("opencl-mali").has_fp16 and not Target.parse("opencl-mali-fp16").has_fp16
    assert not Target.parse("opencl").has_fp16 and Target.parse("opencl+fp16").has_fp16
    some = Target.parse("opencl+fp16+dots")
    assert some.device is not None and some.device.fp16 and some.device.dots == 1.0 and some.has == ("fp16", "dots")


def test_other_spellings() -> None:
    assert str(Target.parse("arm64-neon+fullfp16-macos")) == "arm64-neon+fp16-macos"
    assert Target.parse("arm64-neon+fullfp16").has_fp16


def test_dot_products_of_graphics_processors_are_a_feature() -> None:
    with_dots, without = Target.parse("opencl-intel+dots"), Target.parse("cuda-dots")
    assert str(with_dots) == "opencl-intel+dots" and with_dots.device is not None and with_dots.device.dots == 1.0
    assert str(without) == "cuda-dots" and without.device is not None and without.device.dots is None
    assert Target.parse("opencl").device == Target.parse("opencl+dots-dots").device
    assert "dots" in Target.parse("opencl-mali").has and "dots" not in Target.parse("opencl").has
    with pytest.raises(TargetError, match="Metal has no dot products of bytes"):
        Target.parse("metal-ios+dots")
