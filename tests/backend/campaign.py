"""Runs node tests in worker processes, so that a crash or a hang is one test's result.

Workers are forks of a process that has loaded the tests and nothing else: threads of what the caller uses (OpenCL,
onnxruntime) would be missing in a fork of it.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from .cases import node_tests
from .execute import CRASHED, Result, execute

TIMEOUT = 60.0
"""Seconds for one test."""

_CHUNK = 100
"""Tests a worker: bounds its memory."""


def run_all(
    names: Sequence[str], target: str = "native", progress: Callable[[str, Result], None] = lambda name, result: None
) -> dict[str, Result]:
    """Results by name."""
    results: dict[str, Result] = {}
    left = list(names)
    while left:
        for name, result in _worker_results(left[:_CHUNK], target):
            results[name] = result
            progress(name, result)
        left = [n for n in left if n not in results]
    return results


def _worker_results(names: list[str], target: str) -> list[tuple[str, Result]]:
    """What one worker got done; the test at which it died or hung is a crash."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.loaded"])
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(names, target, sender), daemon=True)
    worker.start()
    sender.close()
    done: list[tuple[str, Result]] = []
    try:
        while len(done) < len(names):
            if not receiver.poll(TIMEOUT):
                done.append((names[len(done)], Result(CRASHED, f"no result within {TIMEOUT:.0f} s")))
                break
            done.append((names[len(done)], receiver.recv()))
    except EOFError:
        worker.join(TIMEOUT)
        done.append((names[len(done)], Result(CRASHED, f"the process ended with {worker.exitcode}")))
    if worker.is_alive():
        worker.kill()
    worker.join()
    return done


def _work(names: list[str], target: str, sender: Connection) -> None:
    faulthandler.disable()
    os.close(2)
    os.open(os.devnull, os.O_WRONLY)
    for name in names:
        sender.send(execute(node_tests()[name], target))
