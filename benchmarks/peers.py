"""One engine serving one model in a process of its own; `compare.py` starts it and talks to it line by line.

usage: python benchmarks/peers.py ENGINE MODEL.onnx THREADS INPUTS.npz

Requests on standard input: `run N` is answered by N wall times in seconds, `save FILE.npz` by nothing but its success.
Every answer is one line of JSON; the first one says how the engine was loaded. Engines are asked for float32 arithmetic
and their own best layout and graph optimisation.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]
Run = Callable[[], list[Any]]
"""One inference, and its outputs."""


def c2c(model: Path, feeds: Feeds, threads: int) -> Run:
    import c2c as engine

    compiled = engine.compile(model, target="native", threads=threads, shapes={k: v.shape for k, v in feeds.items()})
    return lambda: list(compiled.run(feeds).values())


def onnxruntime(model: Path, feeds: Feeds, threads: int) -> Run:
    import onnxruntime as engine

    options = engine.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = engine.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda: list(session.run(None, feeds))


def openvino(model: Path, feeds: Feeds, threads: int) -> Run:
    import openvino as engine

    core = engine.Core()
    graph = core.read_model(str(model))
    graph.reshape({k: v.shape for k, v in feeds.items()})
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(graph, "CPU", config).create_infer_request()

    def run() -> list[Any]:
        request.infer(feeds, share_inputs=True, share_outputs=True)
        return [request.get_output_tensor(i).data for i in range(len(graph.outputs))]

    return run


def ncnn(model: Path, feeds: Feeds, threads: int) -> Run:
    """Converted by pnnx. ncnn has no batch axis and takes int32."""
    import ncnn as engine

    folder = Path(tempfile.mkdtemp())
    shutil.copy(model, folder / "m.onnx")
    kinds = {np.dtype(np.int64): "i64", np.dtype(np.int32): "i32"}
    shapes = ",".join(f"[{','.join(map(str, v.shape))}]{kinds.get(v.dtype, 'f32')}" for v in feeds.values())
    _convert(["pnnx", "m.onnx", f"inputshape={shapes}", "fp16=0"], folder)
    net = engine.Net()
    net.opt.num_threads = threads
    for half in ("use_fp16_storage", "use_fp16_arithmetic", "use_fp16_packed", "use_bf16_storage"):
        setattr(net.opt, half, False)
    net.load_param(str(folder / "m.ncnn.param"))
    net.load_model(str(folder / "m.ncnn.bin"))
    arrays = [v.astype(np.int32) if v.dtype.kind == "i" else v for v in feeds.values()]
    arrays = [np.ascontiguousarray(v[0] if v.ndim > 1 else v) for v in arrays]
    mats = [engine.Mat(v).clone() for v in arrays]
    inputs, outputs = net.input_names(), net.output_names()

    def run() -> list[Any]:
        extractor = net.create_extractor()
        for name, mat in zip(inputs, mats, strict=True):
            extractor.input(name, mat)
        return [np.array(extractor.extract(name)[1])[None] for name in outputs]

    return run


def mnn(model: Path, feeds: Feeds, threads: int) -> Run:
    import MNN.expr as expr
    import MNN.nn as nn
    import onnx

    folder = Path(tempfile.mkdtemp())
    target = folder / "m.mnn"
    _convert(
        ["mnnconvert", "-f", "ONNX", "--modelFile", str(model), "--MNNModel", str(target), "--bizCode", "x"], folder
    )
    outputs = [o.name for o in onnx.load(model, load_external_data=False).graph.output]
    manager = nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
    net = nn.load_module_from_file(str(target), list(feeds), outputs, runtime_manager=manager)

    def variable(a: np.ndarray) -> Any:
        if a.dtype.kind == "i":
            return expr.const(a.astype(np.int32), list(a.shape), expr.NCHW, expr.int)
        return expr.const(a, list(a.shape), expr.NCHW, expr.float)

    def run() -> list[Any]:
        found = net.forward([variable(a) for a in feeds.values()])
        found = found if isinstance(found, list) else [found]
        return [np.array(expr.convert(o, expr.NCHW).read()) for o in found]

    return run


def iree(model: Path, feeds: Feeds, threads: int) -> Run:
    import iree.compiler as compiler
    import iree.runtime as runtime

    text = Path(tempfile.mkdtemp()) / "m.mlir"
    _convert([sys.executable, "-m", "iree.compiler.tools.import_onnx", str(model), "-o", str(text)], text.parent)
    code = compiler.compile_file(
        str(text),
        target_backends=["llvm-cpu"],
        input_type="onnx",
        extra_args=["--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O3"],
    )
    if threads > 1:
        runtime.flags.parse_flags(f"--task_topology_group_count={threads}")
    config = runtime.Config("local-task" if threads > 1 else "local-sync")
    module = runtime.VmModule.copy_buffer(config.vm_instance, code)
    context = runtime.SystemContext(config=config)
    context.add_vm_module(module)
    names = [n for n in module.function_names if not n.startswith("__") and not n.endswith("$async")]
    entry = context.modules[module.name][names[0]]
    arrays = [runtime.asdevicearray(config.device, v) for v in feeds.values()]

    def run() -> list[Any]:
        found = entry(*arrays)
        return [np.asarray(a) for a in (found if isinstance(found, tuple | list) else (found,))]

    return run


ENGINES: dict[str, tuple[Callable[[Path, Feeds, int], Run], str]] = {
    "c2c": (c2c, "c2c"),
    "onnxruntime": (onnxruntime, "onnxruntime"),
    "openvino": (openvino, "openvino"),
    "ncnn": (ncnn, "ncnn"),
    "mnn": (mnn, "MNN"),
    "iree": (iree, "iree-base-runtime"),
}
"""How each engine is loaded, and the package whose version is quoted."""


def _convert(command: list[str], folder: Path) -> None:
    """Run a converter that lies beside this interpreter; its words are kept for the error."""
    beside = Path(sys.executable).parent / command[0]
    done = subprocess.run([str(beside) if beside.exists() else command[0], *command[1:]], cwd=folder,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {(done.stderr or done.stdout)[-200:]}")


def _resident_mb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    return 0


def main() -> None:
    name, model, threads, inputs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    feeds = dict(np.load(inputs))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines write to standard output by themselves
    load, package = ENGINES[name]
    start = time.perf_counter()
    run = load(model, feeds, threads)
    run()
    loaded = {"load_s": round(time.perf_counter() - start, 2), "mb": _resident_mb(), "version": version(package)}
    print(json.dumps(loaded), file=answers, flush=True)
    for line in sys.stdin:
        request, argument = line.split()
        if request == "save":
            np.savez(argument, *[np.asarray(a) for a in run()])
            print("null", file=answers, flush=True)
            continue
        times = []
        for _ in range(int(argument)):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), file=answers, flush=True)


if __name__ == "__main__":
    main()
