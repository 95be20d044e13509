"""The command line as a user meets it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from c2c.compiler.cli import main, parser
from c2c.compiler.diagnostics import read_graph, relative_error
from c2c.ir.graph_text import print_graph

Save = Callable[..., Path]


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().out
    for verb in "compile tune run check verify targets dump opt bench".split():
        assert f"    {verb} " in text


def test_every_option_has_help() -> None:
    for verb in "compile tune run check verify targets dump opt bench".split():
        with pytest.raises(SystemExit) as stop:
            parser().parse_args([verb, "--help"])
        assert stop.value.code == 0


def test_compile_writes_a_bundle(
    small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "o")
    code = main(["compile", str(save(small_cnn)), "--dim", "N=1", "--target", "arm64-neon", "-o", out, "--json"])
    assert code == 0
    manifest = json.loads(capsys.readouterr().out)
    assert {"model.o", "model.h", "example.c", "manifest.json"} <= {p.name for p in (tmp_path / "o").iterdir()}
    assert manifest["inputs"] == [{"name": "x", "dtype": "f32", "shape": [1, 3, 16, 16], "layout": "row-major"}]
    assert manifest["options"]["target"] == "arm64-neon"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compile", "missing.onnx"], "missing.onnx"),
        (["compile", "MODEL"], "N"),
        (["compile", "MODEL", "--dim", "N"], "--dim NAME=N"),
        (["compile", "MODEL", "--dim", "N=-1"], "positive"),
        (["compile", "MODEL", "--dim", "N=1", "--target", "arm64-noen"], "arm64-neon"),
        (["compile", "MODEL", "--dim", "N=1", "--emit", "exe"], "obj"),
        (["compile", "MODEL", "--dim", "N=1", "--stop-after", "fold"], "no pass"),
        (["compile", "MODEL", "--dim", "N=1", "--emit", ""], "no output kind"),
        (["compile", "MODEL", "--dim", "N=1", "-o", "model.onnx"], "cannot write model.onnx"),
        (["compile", "MODEL", "--dim", "N=1", "-o", "model.onnx/deeper"], "cannot write model.onnx/deeper"),
        (["compile", "MODEL", "--dim", "N=1", "--threads", "0"], "0 threads"),
        (["dump", "MODEL", "--dim", "N=1", "--print-after", "fold"], "no pass"),
        (["dump", "MODEL", "--dim", "N=1", "-O", "0", "--print-after", "fuse"], "does not run at -O0"),
        (["dump", "MODEL", "--dim", "N=1", "--dump-dir", "model.onnx"], "cannot write model.onnx"),
        (["dump", "MODEL", "--dim", "N=1", "--rewrite-limit", "-1"], "rewrites"),
        (["run", "MODEL", "--dim", "N=1", "--output", "nowhere/y.npz"], "cannot write nowhere/y.npz"),
        (["run", "MODEL", "--dim", "1=1", "--target", "arm64-neon-macos", "--shape", "x=1,3,16,16"], "'1'"),
        (["bench", "MODEL", "--dim", "N=1", "--target", "arm64-neon"], "cannot run"),
        (["run", "MODEL", "--dim", "N=1", "--input", "z=nothing.npy"], "nothing.npy"),
        (["verify", "MODEL", "--shape", "q=1"], "q"),
    ],
)
def test_a_mistake_is_one_clear_error(
    small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = save(small_cnn)
    code = main([str(path) if a == "MODEL" else a for a in arguments])
    error = capsys.readouterr().err
    assert code == 1 and error.startswith("c2c: error: ") and message in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*.o")) and not list(tmp_path.rglob("*.h")), "partial output"


def test_run_and_verify(
    small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save(small_cnn))
    np.save(tmp_path / "x.npy", np.ones((1, 3, 16, 16), np.float32))
    out = tmp_path / "y.npz"
    assert main(["run", path, "--dim", "N=1", "--input", f"x={tmp_path / 'x.npy'}", "--output", str(out)]) == 0
    assert abs(np.load(out)["y"].sum() - 1) < 1e-5
    assert main(["verify", path, "--dim", "N=1"]) == 0
    assert capsys.readouterr().out.endswith("right\n")


def test_check_lists_problems_as_json(
    small_cnn: onnx.ModelProto, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    small_cnn.graph.node[2].op_type = "Nonsense"
    small_cnn.graph.node[5].op_type = "AlsoNonsense"
    assert main(["check", str(save(small_cnn)), "--dim", "N=1", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)
    assert {p["op"] for p in problems} >= {"Nonsense", "AlsoNonsense"}


def test_dumps_parse_back_and_continue(
    small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dump"
    assert main(["dump", str(save(small_cnn)), "--dim", "N=1", "--dump-dir", str(folder), "--verify-each"]) == 0
    capsys.readouterr()
    texts = sorted(folder.glob("*.c2c"))
    assert len(texts) > 5
    for file in texts:
        text = file.read_text().rstrip("\n")
        assert print_graph(read_graph(file)).rstrip("\n") == text, file.name
    assert main(["opt", str(texts[2]), "--passes", "fold-batch-norm,fuse"]) == 0
    assert "c2c.Fused" in capsys.readouterr().out


def test_bisect_limits_rewrites_and_check_each_passes(
    small_cnn: onnx.ModelProto, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save(small_cnn))
    assert main(["dump", path, "--dim", "N=1", "--rewrite-limit", "2"]) == 0
    assert "rewrite 2 (the last applied)" in capsys.readouterr().err
    assert main(["dump", path, "--dim", "N=1", "--check-each", "--time-passes"]) == 0
    assert "total" in capsys.readouterr().err


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert {"x86-64", "x86-64-v3", "x86-64-v4", "arm64-neon", "arm64-dotprod"} <= names


def test_bench_prints_nodes(small_cnn: onnx.ModelProto, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(save(small_cnn)), "--dim", "N=1", "--seconds", "0.05", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["milliseconds"] > 0 and report["nodes"]


def test_relative_error_sees_differences() -> None:
    one = np.ones(3, np.float32)
    assert relative_error(one, one) == 0
    assert relative_error(one * 1.5, one) == 0.5
    assert relative_error(np.array([1.0, np.nan]), np.array([1.0, 1.0])) == float("inf")
    assert relative_error(one[:2], one) == float("inf")


def test_a_problem_of_no_node_prints_no_empty_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert main(["check", str(tmp_path / "empty.onnx")]) == 1
    assert capsys.readouterr().out.startswith(f"error: {tmp_path}")


def test_bench_of_a_model_without_steps(save: Save) -> None:
    ports = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [0, 3]) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    assert main(["bench", str(save(onnx.helper.make_model(graph))), "--seconds", "0"]) == 0


def test_memory_that_is_not_there_is_an_error(
    small_cnn: onnx.ModelProto, save: Save, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise MemoryError("64 GiB")

    monkeypatch.setattr("c2c.compiler.verify.random_inputs", none)
    assert main(["verify", str(save(small_cnn)), "--dim", "N=1"]) == 1
    assert capsys.readouterr().err == "c2c: error: out of memory: 64 GiB\n"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_compile_leaves_nothing(
    small_cnn: onnx.ModelProto, save: Save, tmp_path: Path, end: signal.Signals
) -> None:
    """The signal arrives while the bundle is being written."""
    script = (
        "import os, signal, sys, c2c.compiler.bundle as bundle\n"
        "from c2c.compiler.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"bundle.header = lambda *_: os.kill(os.getpid(), {int(end)})\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", script, "compile", str(save(small_cnn)), "--dim", "N=1", "-o", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + end and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
