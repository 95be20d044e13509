"""Bundles for graphics processors: files, their C, one error for what is not made, and runs on an OpenCL device."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import c2c
from c2c.codegen.devices import DEVICES
from c2c.codegen.plan import quoted
from c2c.codegen.target import Target
from c2c.compiler.cli import main
from c2c.compiler.driver import compile_file, compile_graph, load_graph
from c2c.compiler.grid_bench import bench_on_grid
from c2c.compiler.options import CompileOptions
from c2c.compiler.tune import Tuner
from c2c.compiler.verify import verify_model
from c2c.ir.errors import OptionsError, RunError

from ..opencl import OPENCL, needs_half, needs_opencl

STRICT = "-std=c99 -D_DEFAULT_SOURCE -Wall -Wextra -Wpedantic -Werror".split()


def save(model: onnx.ModelProto, folder: Path, target: str = "opencl") -> Path:
    c2c.compile(model, target, dims={"N": 1}, name="net").save(folder)
    return folder


@pytest.mark.needs("gcc", "g++")
def test_a_bundle_builds_without_a_warning(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    folder = save(small_cnn, tmp_path)
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "net.cl", "net.h", "net.c", "net_plan.h", "net.weights", "example.c", "manifest.json", "c2c_plan.h",
        "c2c_opencl.h", "c2c_opencl.c", "c2c_gpu.h", "c2c_gpu.c",
    }  # fmt: skip
    sources = ["example.c", "net.c", "c2c_opencl.c", "c2c_gpu.c"]
    subprocess.run(["gcc", *STRICT, *sources, "-ldl", "-o", "example"], cwd=folder, check=True)
    (folder / "app.cpp").write_text(
        '#include "net.h"\nint main() { net_args a = net_args(); return net_run(&a) == 0; }\n'
    )
    subprocess.run(["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-c", "app.cpp"], cwd=folder, check=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["options"]["target"] == "opencl"
        and manifest["bytes"]["weights"] == (folder / "net.weights").stat().st_size
    )


def test_equal_layers_share_kernels_and_the_plan_names_every_kernel(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    folder = save(small_cnn, tmp_path)
    kernels = re.findall(r"__kernel void (\w+)\(", (folder / "net.cl").read_text())
    assert len(set(kernels)) == len(kernels) > 0
    plan = (folder / "net_plan.h").read_text()
    assert re.findall(r'^    \{"(net__\w+)", \{', plan, re.M) == kernels


def test_two_compiles_are_equal(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    one, two = save(small_cnn, tmp_path / "one"), save(small_cnn, tmp_path / "two")
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


@pytest.mark.parametrize(("emit", "weights"), [(("llvm",), "embed"), (("obj",), "packed")])
def test_other_forms_are_one_error(
    small_cnn: onnx.ModelProto, tmp_path: Path, emit: tuple[str, ...], weights: str
) -> None:
    model = c2c.compile(small_cnn, "opencl", dims={"N": 1})
    with pytest.raises(OptionsError, match="graphics processor"):
        model.save(tmp_path / "out", emit=emit, weights=weights)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["plain", 'a "quote"\n', "back\\slash", "??/ trigraph", "Größe", "\t\x01"])
def test_c_strings_are_read_back(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.c"
    path.write_text(f"#include <stdio.h>\nint main(void) {{ fputs({quoted(text)}, stdout); return 0; }}\n")
    subprocess.run(["gcc", "-std=c99", path, "-o", tmp_path / "a"], check=True)
    assert subprocess.run([tmp_path / "a"], capture_output=True, check=True).stdout.decode() == text


@needs_opencl
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("target", OPENCL)
def test_computes_what_onnx_says(small_cnn: onnx.ModelProto, target: str) -> None:
    options = CompileOptions(Target.parse(target), name="net", dims={"N": 1})
    report = verify_model(small_cnn.SerializeToString(), options, tolerance=1e-5)
    assert report.ok and len(report.nodes) >= 5, str(report)


@needs_opencl
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("target", ["opencl", "opencl-cpu"])
def test_halves_are_stored_and_floats_computed(small_cnn: onnx.ModelProto, target: str) -> None:
    """Each tensor between convolutions is rounded once, by 2^-11 of its elements at most."""
    x = np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)
    found, expected = (
        next(iter(c2c.compile(small_cnn, t, dims={"N": 1}, precision=p).run({"x": x}).values()))
        for t, p in ((target, "f16"), ("native", "f32"))
    )
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-6 < error < 4 * 2**-11


@needs_half
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("target", ["opencl-mali", "opencl-adreno", "opencl-intel"])
def test_arithmetic_in_halves_runs_on_a_device(small_cnn: onnx.ModelProto, target: str) -> None:
    x = np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)
    found, expected = (
        next(iter(c2c.compile(small_cnn, t, dims={"N": 1}, precision=p).run({"x": x}).values()))
        for t, p in ((target, "f16"), ("native", "f32"))
    )
    assert 1e-6 < np.abs(found - expected).max() / np.abs(expected).max() < 3e-3


@needs_opencl
@pytest.mark.needs("gcc")
def test_the_example_runs_on_raw_files(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    folder = save(small_cnn, tmp_path)
    subprocess.run(
        ["gcc", *STRICT, "example.c", "net.c", "c2c_opencl.c", "c2c_gpu.c", "-ldl", "-o", "example"],
        cwd=folder,
        check=True,
    )
    x = np.random.default_rng(3).standard_normal((1, 3, 16, 16)).astype(np.float32)
    x.tofile(folder / "x.raw")
    subprocess.run(["./example", "x.raw", "y.raw"], cwd=folder, check=True, capture_output=True)
    (expected,) = c2c.compile(small_cnn, dims={"N": 1}).run({"x": x}).values()
    np.testing.assert_allclose(np.fromfile(folder / "y.raw", np.float32).reshape(1, 10), expected, rtol=1e-4, atol=1e-6)
    weights = bytearray((folder / "net.weights").read_bytes())
    weights[40] ^= 1
    (folder / "net.weights").write_bytes(weights)
    done = subprocess.run(["./example"], cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and "checksum" in done.stderr


IN_PLACE = """
#include "net.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static char weights[NET_WEIGHTS_BYTES];
int main(void)
{
    static float x[NET_X_BYTES / 4], copied[NET_Y_BYTES / 4];
    net_args args = {0};
    c2c_opencl *device;
    void *in, *out;
    FILE *f = fopen("net.weights", "rb");
    int i, round, error;
    if (!f || fread(weights, 1, sizeof weights, f) != sizeof weights)
        return 2;
    error = c2c_opencl_open(NULL, &device) || net_open(device, weights, &args.model);
    for (round = 0; !error && round < 3; round++) {
        for (i = 0; i < (int)(NET_X_BYTES / 4); i++)
            x[i] = (float)((i * 37 + round) % 101) / 101.0f;
        args.x = x;
        args.y = copied;
        error = net_run(&args) || c2c_opencl_map(args.model, NET_X_PORT, &in);
        if (!error)
            memset(in, 0, NET_X_BYTES); /* the run before has read it */
        error = error || c2c_opencl_map(args.model, NET_X_PORT, &in);
        if (!error)
            memcpy(in, x, NET_X_BYTES);
        args.x = (const float *)C2C_GPU_IN_PLACE;
        args.y = (float *)C2C_GPU_IN_PLACE;
        error = error || net_run(&args) || c2c_opencl_map(args.model, NET_Y_PORT, &out);
        if (!error && memcmp(out, copied, NET_Y_BYTES))
            return 3;
    }
    c2c_opencl_unload(args.model);
    c2c_opencl_close(device);
    return error;
}
"""


@needs_opencl
@pytest.mark.needs("gcc")
def test_memory_of_the_device_takes_the_place_of_copies(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    folder = save(small_cnn, tmp_path)
    (folder / "app.c").write_text(IN_PLACE)
    subprocess.run(
        ["gcc", *STRICT, "app.c", "net.c", "c2c_opencl.c", "c2c_gpu.c", "-ldl", "-o", "app"], cwd=folder, check=True
    )
    subprocess.run(["./app"], cwd=folder, check=True)


@needs_opencl
@pytest.mark.needs("gcc")
def test_bench_names_nodes_by_the_clock_of_the_device(small_cnn: onnx.ModelProto) -> None:
    options = CompileOptions(Target.parse("opencl"), name="net", dims={"N": 1})
    report = bench_on_grid(compile_file(small_cnn.SerializeToString(), options), 0.05)
    assert report.device and sum(n.milliseconds for n in report.nodes) > 0
    assert abs(sum(n.share for n in report.nodes) - 1) < 1e-6
    assert report.nodes[0].ops[0] == "Conv" and report.nodes[0].launches[0].groups > 0


@needs_opencl
@pytest.mark.needs("gcc")
def test_a_bundle_is_loaded_again(small_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    folder = save(small_cnn, tmp_path)
    before = {p.name for p in folder.iterdir()}
    x = np.random.default_rng(4).standard_normal((1, 3, 16, 16)).astype(np.float32)
    (expected,) = c2c.compile(small_cnn, dims={"N": 1}).run({"x": x}).values()
    (found,) = c2c.load(folder).run({"x": x}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert {p.name for p in folder.iterdir()} == before
    (folder / "net_plan.h").write_text("/* another plan */\n")
    with pytest.raises(RunError, match="net_plan.h is not the file"):
        c2c.load(folder)


@needs_opencl
@pytest.mark.needs("gcc")
def test_schedules_are_tuned_on_the_device(small_cnn: onnx.ModelProto) -> None:
    options = CompileOptions(Target.parse("opencl"), name="net", dims={"N": 1})
    source = load_graph(small_cnn.SerializeToString(), options)
    report = Tuner(source, options, seconds=2).run()
    assert report.rounds > 0 and report.before > 0
    assert all(m.us > 0 for (family, _), m in report.measured.items() if family == "grid-product")
    again = compile_graph(source, replace(options, tuning=report.tuning))
    assert {c.key: c.name for c in again.schedules if len(c.candidates) > 1} == dict(report.tuning.names)


@needs_opencl
@pytest.mark.needs("gcc")
def test_a_device_that_is_not_there_is_one_error(small_cnn: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("C2C_OPENCL_DEVICE", "Quantum")
    with pytest.raises(RunError, match="Quantum"):
        c2c.compile(small_cnn, "opencl", dims={"N": 1}).run({"x": np.zeros((1, 3, 16, 16), np.float32)})


def test_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    listed = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert listed >= set(DEVICES)
