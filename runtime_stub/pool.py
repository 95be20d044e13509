"""Worker threads and a step timer for models in this process, as LLVM IR: `c2c_parallel` without a C toolchain.

The protocol of `c2c_runtime.c`: each worker of a run takes pieces of its own share of the indices, then those that
others have left; one that has not begun when all are taken is called off. Workers spin for a while, then sleep. A pool
serves one run at a time: a second caller, seeing it busy, runs its task alone. Only pthreads are used; where there are
none, models run on the caller's thread.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from typing import Any

import numpy as np

from .pool_text import APART, POOL, TOGETHER, TRACER

SPIN = 10000
"""Turns of a waiting thread's loop before it sleeps; one is 10 to 40 ns."""

PIECES = 16
"""Parts of a worker's share, at most."""

PATIENCE = 2
"""Runs that a worker may miss before the caller offers it its own processor."""

MOST_THREADS = 64
WORKER_BYTES = 512
STATE_BYTES = 1024 + MOST_THREADS * WORKER_BYTES


class Parallel(ctypes.Structure):
    """`c2c_parallel` of the generated header."""

    _fields_ = (("run", ctypes.c_void_p), ("self", ctypes.c_void_p), ("workers", ctypes.c_int32))


_PAUSE = {
    "x86_64": ("call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"),
    "aarch64": ('call void asm sideeffect "isb", "~{memory}"()', ""),
}


def has_threads() -> bool:
    """Whether this system has the pthreads that a pool needs."""
    return sys.platform in ("linux", "darwin")


@cache
def _functions() -> dict[str, Any]:
    """The compiled functions of `pool_text` by name; kept for the life of the process, as workers run in them."""
    import llvmlite.binding as llvm

    machine = "aarch64" if platform.machine().lower() in ("arm64", "aarch64") else "x86_64"
    pause, declaration = _PAUSE[machine]
    text = (POOL + TRACER).format(
        pause=pause,
        pause_declaration=declaration,
        spin=SPIN,
        last_spin=SPIN - 1,
        pieces=PIECES,
        patience=PATIENCE,
        worker_bytes=WORKER_BYTES,
        clock=6 if sys.platform == "darwin" else 1,
    )
    text += APART if sys.platform == "linux" else TOGETHER
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    jit = llvm.create_lljit_compiler(use_jit_link=True)
    names = ("c2c_pool_run", "c2c_pool_start", "c2c_trace_run")
    builder = llvm.JITLibraryBuilder().add_ir(text).add_current_process()
    for name in names:
        builder.export_symbol(name)
    library = builder.link(jit, "c2c.pool")
    return {"jit": jit, "library": library, **{n: library[n] for n in names}}


_pools: dict[int, tuple[np.ndarray, Parallel]] = {}


def pool(threads: int) -> Parallel | None:
    """The process's pool of that many threads, the caller's among them; None where one thread is all there is."""
    if threads < 2 or not has_threads():
        return None
    threads = min(threads, MOST_THREADS)
    if threads not in _pools:
        functions = _functions()
        state = _state(STATE_BYTES)
        start = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(functions["c2c_pool_start"])
        running = start(state.ctypes.data, threads)
        _pools[threads] = state, Parallel(functions["c2c_pool_run"], state.ctypes.data, running)
    return _pools[threads][1]


def tracer(times: np.ndarray, beside: tuple[int, int] | None = None) -> tuple[Parallel, np.ndarray]:
    """A `c2c_parallel` that runs each step on the caller's thread and writes its nanoseconds into `times`, in order.
    beside: addresses of a NAME_run and its arguments; it runs twice before each step, and the second run's nanoseconds
    come before the step's. The second part must live as long as the first is used."""
    state = np.array([times.ctypes.data, *(beside or (0, 0))], np.uint64)
    return Parallel(_functions()["c2c_trace_run"], state.ctypes.data, 1), state


def _state(size: int) -> np.ndarray:
    raw = np.zeros(size + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + size]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork
