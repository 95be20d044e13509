"""The pool of this process: every index once, whoever takes it, in runs that nest, meet and find the workers asleep."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from c2c.runtime_stub.pool import MOST_THREADS, PIECES, _pools, has_threads, pool

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32)
RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, TASK, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32)

pytestmark = pytest.mark.skipif(not has_threads(), reason="no pthreads")


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(threads: int, count: int, body: Callable[[int, int, int], None], workers: int | None = None) -> None:
    """Body(begin, end, worker) over [0, count) on the pool of `threads`."""
    found = pool(threads)
    assert found is not None
    task = TASK(lambda _frame, begin, end, worker: body(begin, end, worker))
    RUN(found.run)(found.self, task, None, count, min(found.workers, workers or threads))


def times(threads: int, count: int, workers: int | None = None) -> tuple[np.ndarray, list[int]]:
    """How often each index was run, and the worker of each call."""
    seen, calls = np.zeros(max(count, 1), int), list[int]()

    def body(begin: int, end: int, worker: int) -> None:
        seen[begin:end] += 1
        calls.append(worker)

    run(threads, count, body, workers)
    return seen[:count], calls


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 15, 17, 100, 1001])
def test_every_index_is_run_once(threads: int, count: int) -> None:
    for _ in range(20):
        seen, calls = times(threads, count)
        assert (seen == 1).all()
        assert set(calls) <= set(range(threads))
        assert len(calls) <= max(1, min(count, PIECES * threads))


def test_fewer_workers_than_threads() -> None:
    seen, calls = times(4, 100, workers=2)
    assert (seen == 1).all()
    assert set(calls) <= {0, 1}


@pytest.mark.skipif(processors() < 2, reason="a worker that has to share a processor is left out")
def test_others_take_what_a_slow_worker_leaves() -> None:
    """The caller's first piece lasts until the other worker has done everything else."""
    done = np.zeros(64, int)

    def body(begin: int, end: int, worker: int) -> None:
        deadline = time.monotonic() + 20
        if begin == 0:
            while done.sum() < 64 - (end - begin):
                assert time.monotonic() < deadline
                time.sleep(0.001)
        done[begin:end] += 1

    run(2, 64, body)
    assert (done == 1).all()


def test_a_run_inside_a_task_is_serial() -> None:
    seen = np.zeros((40, 30), int)

    def body(begin: int, end: int, worker: int) -> None:
        for row in seen[begin:end]:
            inner, calls = times(3, 30)
            row += inner
            assert calls == [0]

    run(3, 40, body)
    assert (seen == 1).all()


def test_callers_that_meet_both_get_their_work_done() -> None:
    wrong: list[int] = []

    def caller() -> None:
        wrong.extend(1 for _ in range(100) if not (times(2, 50)[0] == 1).all())

    callers = [threading.Thread(target=caller) for _ in range(3)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert not wrong


def test_workers_asleep_are_woken_or_called_off() -> None:
    for _ in range(30):
        time.sleep(0.003)
        assert (times(3, 200)[0] == 1).all()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_workers_stay_within_the_processors_that_they_may_use() -> None:
    """Started on one processor only, all workers share it: work gets done, and their masks are as they were."""

    def masks() -> list[set[int]]:
        return [os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task")]

    allowed = os.sched_getaffinity(0)
    others = len(masks())
    threads = next(n for n in range(7, MOST_THREADS) if n not in _pools)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert all((times(threads, 200)[0] == 1).all() for _ in range(200))
        assert masks().count({min(allowed)}) >= threads
        assert len(masks()) >= others
    finally:
        os.sched_setaffinity(0, allowed)
    assert all((times(threads, 200)[0] == 1).all() for _ in range(200))
