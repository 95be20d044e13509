"""The tuner with times that the test decides, tuning files, and compiles that follow them byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from c2c.codegen.target import Target, native
from c2c.compiler import tune
from c2c.compiler.bundle import write_bundle
from c2c.compiler.cli import main
from c2c.compiler.driver import compile_graph
from c2c.compiler.options import CompileOptions
from c2c.compiler.tune import Key, Tuner, TuneReport, Variant, independent, kernels_chose, steps_of, trials_of
from c2c.compiler.tuning import Measured, read_tuning, untuned, write_tuning
from c2c.ir.errors import TuningError
from c2c.ir.graph import Graph
from c2c.passes.lower.schedule import Choice, Tuning
from c2c.tests.passes.build import Net

OPTIONS = CompileOptions(Target.parse("native"))
Times = Callable[[Variant], np.ndarray]


def two_products() -> Graph:
    """Two products of one shape, one of another, and a convolution that Winograd's form fits."""
    net = Net()
    x = net.input(40, 64)
    y = net.op("MatMul", net.op("Relu", net.op("MatMul", x, net.random(64, 64))), net.random(64, 64))
    image = net.op("Reshape", net.op("MatMul", y, net.random(64, 160)), np.array([1, 64, 10, 10]))
    return net.done(net.conv(image, 32))


def run(monkeypatch: pytest.MonkeyPatch, times: Times, seconds: float = 600.0) -> TuneReport:
    """A tuner whose steps take what `times` says, and whose whole runs take the sum."""

    def in_turn(self: Tuner, a: Variant, b: Variant) -> tuple[np.ndarray, np.ndarray]:
        return times(a), times(b)

    def whole(self: Tuner, a: Variant, b: Variant) -> tuple[float, float, float]:
        before, after = float(times(a).sum()), float(times(b).sum())
        return before, after, after / before

    monkeypatch.setattr(tune, "SPREAD", 100.0)
    monkeypatch.setattr(Tuner, "_in_turn", in_turn)
    monkeypatch.setattr(Tuner, "_whole", whole)
    return Tuner(two_products(), OPTIONS, seconds).run()


def by_rank(wanted: dict[str, int]) -> Times:
    """A step is fast where its node's problem has the candidate of the wanted rank (by family)."""

    def times(v: Variant) -> np.ndarray:
        out = np.full(len(v.compiled.calls), 100.0)
        for key, choice in v.choices.items():
            if choice.rank == wanted.get(key[0]):
                out[v.steps[key]] -= 30.0
        return out

    return times


def test_the_fastest_candidate_of_every_problem_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(monkeypatch, by_rank({"gemm": 2, "winograd": 1}))
    base = compile_graph(two_products(), OPTIONS)
    ranked = {c.key: [name for name, _ in c.candidates] for c in base.schedules}
    gemm = [k for k in report.measured if k[0] == "gemm"]
    assert len(gemm) == 2, "equal problems are tuned once"
    assert all(report.measured[k].name == ranked[k][2] for k in gemm)
    (winograd,) = [k for k in report.measured if k[0] == "winograd"]
    assert report.measured[winograd].name == ranked[winograd][1]
    assert report.complete and report.after < report.before


def test_the_cost_model_stays_where_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(monkeypatch, by_rank({}))
    assert report.measured and not report.changed
    assert report.rounds > 2


def test_no_time_means_no_trials_but_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(monkeypatch, by_rank({"gemm": 2}), seconds=0.0)
    assert report.rounds == 0 and not report.complete
    assert report.measured and not report.changed


def test_a_winner_that_loses_in_company_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = by_rank({"gemm": 1})

    def times(v: Variant) -> np.ndarray:
        changed = [k for k in v.choices if k[0] == "gemm" and v.choices[k].rank]
        return alone(v) + (100.0 if len(changed) > 1 and not v.names.keys() - set(changed) and CONFIRM else 0.0)

    CONFIRM = False
    first = Tuner._confirm

    def confirm(self: Tuner, base: Variant, complete: bool) -> TuneReport:
        nonlocal CONFIRM
        CONFIRM = True
        return first(self, base, complete)

    monkeypatch.setattr(Tuner, "_confirm", confirm)
    assert not run(monkeypatch, times).changed


def test_an_interrupt_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Tuner._round

    def interrupted(self: Tuner, base: Variant, trials: list[tune.Trial]) -> dict[Key, tuple[str, float]]:
        if self.rounds == 4:
            raise KeyboardInterrupt
        found: dict[Key, tuple[str, float]] = rounds(self, base, trials)
        return found

    monkeypatch.setattr(Tuner, "_round", interrupted)
    report = run(monkeypatch, by_rank({"gemm": 1}))
    assert report.rounds == 4 and not report.complete
    assert [k[0] for k in report.changed] == ["gemm", "gemm"]


def test_a_foreign_machine_cannot_be_tuned_for() -> None:
    other = "x86-64" if native().arch == "aarch64" else "arm64-neon"
    with pytest.raises(TuningError, match="cannot run"):
        Tuner(two_products(), replace(OPTIONS, target=Target.parse(other)), 1.0).run()


def test_trials_come_by_rank_and_leave_out_what_cannot_win() -> None:
    a = Choice("f", "a", "x", (("x", 10.0), ("y", 11.0), ("z", 12.0), ("far", 99.0)))
    b = Choice("f", "b", "u", (("u", 1.0), ("v", 1.0)))
    assert [(c.problem, n) for c, n in trials_of([a, b, a])] == [("a", "y"), ("b", "v"), ("a", "z")]


def test_a_round_changes_one_choice_of_a_node() -> None:
    one, two, three = (Choice("f", p, "x", (("x", 1.0), ("y", 1.0))) for p in "abc")
    steps = {one.key: [0, 1], two.key: [1], three.key: [2]}
    now, later = independent([(one, "y"), (two, "y"), (three, "y"), (one, "z")], steps)
    assert [c.problem for c, _ in now] == ["a", "c"]
    assert [c.problem for c, _ in later] == ["b", "a"]


def test_steps_of_a_problem_are_those_of_all_its_nodes() -> None:
    compiled = compile_graph(two_products(), OPTIONS)
    steps = steps_of(compiled)
    assert steps.keys() == {c.key for c in compiled.schedules}
    counts = sorted(
        len(steps[c.key]) for c in {c.key: c for c in kernels_chose(compiled)}.values() if c.family == "gemm"
    )
    assert counts == [1, 2]


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = two_products()
    base = compile_graph(graph, OPTIONS)
    several = [c for c in base.schedules if len(c.candidates) > 1]
    second = {c.key: c.candidates[c.family != "winograd"][0] for c in several}  # another form would open other problems
    write_tuning(tmp_path / "t.json", OPTIONS.target, {k: Measured(n, 1.0, "", 2.0) for k, n in second.items()})
    manifests = []
    for folder in ("a", "b"):
        options = replace(OPTIONS, tuning=read_tuning(tmp_path / "t.json", OPTIONS.target))
        compiled = compile_graph(graph, options)
        assert untuned(options.tuning, compiled.schedules) == []
        manifests.append(write_bundle(compiled.program, options, tmp_path / folder))
    assert manifests[0] == manifests[1]
    assert manifests[0]["options"]["tuning"] == options.tuning.digest != ""
    assert set(manifests[0]["schedules"].values()) >= set(second.values())
    untuned_manifest = write_bundle(base.program, OPTIONS, tmp_path / "c")
    assert untuned_manifest["sha256"]["model.o"] != manifests[0]["sha256"]["model.o"]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_tuning(path, Target.parse("x86-64-v3"), {("gemm", "p"): Measured("tile=1x1", 1.0, "tile=1x1", None)})
    assert read_tuning(path, Target.parse("x86-64-v3-windows")).names == {("gemm", "p"): "tile=1x1"}
    with pytest.raises(TuningError, match="another kind of machine"):
        read_tuning(path, Target.parse("x86-64-v4"))
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(TuningError, match="format 99"):
        read_tuning(path, Target.parse("x86-64-v3"))
    for text in ("", "[]", "{}", '{"format": 1, "machine": 3, "c2c": "", "schedules": []}'):
        path.write_text(text)
        with pytest.raises(TuningError, match="not a tuning file"):
            read_tuning(path, Target.parse("x86-64-v3"))
    with pytest.raises(TuningError, match="cannot read"):
        read_tuning(tmp_path / "missing.json", Target.parse("x86-64-v3"))


def test_problems_that_a_file_leaves_open_are_told() -> None:
    a, b = (Choice("f", p, "x", (("x", 1.0), ("y", 1.0))) for p in "ab")
    assert untuned(Tuning(), [a, b]) == []
    assert untuned(Tuning({a.key: "x"}), [a, b, b]) == [b]
    with pytest.raises(TuningError, match="names no problem of this model"):
        untuned(Tuning({("f", "other"): "x"}), [a, b])


def test_tune_writes_a_file_that_compile_takes(
    small_cnn: object, save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file, out = str(save(small_cnn)), str(tmp_path / "t.json"), str(tmp_path / "out")
    assert main(["tune", model, "--dim", "N=1", "--seconds", "0", "-o", file]) == 0
    assert "0 rounds" in capsys.readouterr().out
    assert main(["compile", model, "--dim", "N=1", "--tune", "0", "-o", out]) == 0
    assert (tmp_path / "out" / "model.tune.json").exists()
    assert json.loads(Path(file).read_text())["schedules"]
    before = (tmp_path / "out" / "model.o").read_bytes()
    assert main(["compile", model, "--dim", "N=1", "--tuning", file, "-o", out]) == 0
    assert (tmp_path / "out" / "model.o").read_bytes() == before
    assert main(["compile", model, "--dim", "N=1", "--tuning", file, "--tune", "0", "-o", out]) == 1
