"""Worker threads and a step timer for models in this process, as LLVM IR: `c2c_parallel` without a C toolchain.

The same protocol as `c2c_runtime.c`: a worker spins for a while on the generation counter, then sleeps on a condition
variable; the caller works on the first range itself. A pool serves one run at a time: a second caller, seeing it busy,
runs its task alone. Only pthreads are used; where there are none, models run on the caller's thread.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from typing import Any

import numpy as np

SPIN = 2048
"""Turns of a waiting worker's loop before it sleeps; one is 10 to 40 ns."""

YIELD_MASK = 127
"""Waiting threads offer their core to others every so many turns (a power of two, less one)."""

STATE_BYTES = 4096
MOST_THREADS = 64


class Parallel(ctypes.Structure):
    """`c2c_parallel` of the generated header."""

    _fields_ = (("run", ctypes.c_void_p), ("self", ctypes.c_void_p), ("workers", ctypes.c_int32))


# State, in bytes: 0 generation, 64 pending, 128 busy, 192 task, 200 frame, 208 count, 216 workers, 220 threads,
# 256 sleepers, 320 mutex, 448 condition, 640 thread handles, 1280 thread arguments {state, index}.
_TEXT = """
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)
{pause_declaration}

define internal void @range(ptr %state, i64 %index) {{
  %task.at = getelementptr i8, ptr %state, i64 192
  %task = load ptr, ptr %task.at
  %frame.at = getelementptr i8, ptr %state, i64 200
  %frame = load ptr, ptr %frame.at
  %count.at = getelementptr i8, ptr %state, i64 208
  %count = load i64, ptr %count.at
  %workers.at = getelementptr i8, ptr %state, i64 216
  %workers32 = load i32, ptr %workers.at
  %workers = zext i32 %workers32 to i64
  %mine = icmp ult i64 %index, %workers
  br i1 %mine, label %work, label %done
work:
  %next = add i64 %index, 1
  %low = mul i64 %count, %index
  %high = mul i64 %count, %next
  %begin = udiv i64 %low, %workers
  %end = udiv i64 %high, %workers
  %worker = trunc i64 %index to i32
  call void %task(ptr %frame, i64 %begin, i64 %end, i32 %worker)
  br label %done
done:
  ret void
}}

define internal ptr @worker(ptr %argument) {{
entry:
  %state = load ptr, ptr %argument
  %index.at = getelementptr i8, ptr %argument, i64 8
  %index = load i64, ptr %index.at
  %pending = getelementptr i8, ptr %state, i64 64
  %sleepers = getelementptr i8, ptr %state, i64 256
  %mutex = getelementptr i8, ptr %state, i64 320
  %condition = getelementptr i8, ptr %state, i64 448
  br label %wait
wait:
  %seen = phi i64 [ 0, %entry ], [ %found, %work ]
  br label %spin
spin:
  %turn = phi i32 [ 0, %wait ], [ %turn.next, %next ]
  %now = load atomic i64, ptr %state acquire, align 8
  %changed = icmp ne i64 %now, %seen
  br i1 %changed, label %work, label %again
again:
  {pause}
  %turn.next = add i32 %turn, 1
  %tired = icmp eq i32 %turn.next, {spin}
  br i1 %tired, label %sleep, label %maybe
maybe:
  %low = and i32 %turn.next, {yield_mask}
  %long = icmp eq i32 %low, 0
  br i1 %long, label %yield, label %next
yield:
  %y = call i32 @sched_yield()
  br label %next
next:
  br label %spin
sleep:
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %up = atomicrmw add ptr %sleepers, i32 1 seq_cst
  br label %check
check:
  %current = load atomic i64, ptr %state seq_cst, align 8
  %woken = icmp ne i64 %current, %seen
  br i1 %woken, label %awake, label %rest
rest:
  %c = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %check
awake:
  %down = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %work
work:
  %found = phi i64 [ %now, %spin ], [ %current, %awake ]
  call void @range(ptr %state, i64 %index)
  %left = atomicrmw sub ptr %pending, i32 1 release
  br label %wait
}}

define void @c2c_pool_run(ptr %state, ptr %task, ptr %frame, i64 %count, i32 %workers) {{
entry:
  %count.low = icmp slt i64 %count, 2
  %few = icmp slt i32 %workers, 2
  %alone = or i1 %count.low, %few
  br i1 %alone, label %serial, label %claim
claim:
  %busy = getelementptr i8, ptr %state, i64 128
  %pair = cmpxchg ptr %busy, i32 0, i32 1 acquire monotonic
  %free = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %free, label %parallel, label %serial
serial:
  call void %task(ptr %frame, i64 0, i64 %count, i32 0)
  ret void
parallel:
  %task.at = getelementptr i8, ptr %state, i64 192
  store ptr %task, ptr %task.at
  %frame.at = getelementptr i8, ptr %state, i64 200
  store ptr %frame, ptr %frame.at
  %count.at = getelementptr i8, ptr %state, i64 208
  store i64 %count, ptr %count.at
  %wide = zext i32 %workers to i64
  %fewer = icmp slt i64 %count, %wide
  %least = select i1 %fewer, i64 %count, i64 %wide
  %used = trunc i64 %least to i32
  %workers.at = getelementptr i8, ptr %state, i64 216
  store i32 %used, ptr %workers.at
  %threads.at = getelementptr i8, ptr %state, i64 220
  %threads = load i32, ptr %threads.at
  %others = sub i32 %threads, 1
  %pending = getelementptr i8, ptr %state, i64 64
  store atomic i32 %others, ptr %pending monotonic, align 4
  %old = atomicrmw add ptr %state, i64 1 seq_cst
  %sleepers = getelementptr i8, ptr %state, i64 256
  %asleep = load atomic i32, ptr %sleepers seq_cst, align 4
  %any = icmp ne i32 %asleep, 0
  br i1 %any, label %wake, label %work
wake:
  %mutex = getelementptr i8, ptr %state, i64 320
  %condition = getelementptr i8, ptr %state, i64 448
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %b = call i32 @pthread_cond_broadcast(ptr %condition)
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %work
work:
  call void @range(ptr %state, i64 0)
  br label %join
join:
  %turn = phi i32 [ 0, %work ], [ %turn.next, %next ]
  %left = load atomic i32, ptr %pending acquire, align 4
  %finished = icmp eq i32 %left, 0
  br i1 %finished, label %done, label %again
again:
  {pause}
  %turn.next = add i32 %turn, 1
  %low = and i32 %turn.next, {yield_mask}
  %long = icmp eq i32 %low, 0
  br i1 %long, label %yield, label %next
yield:
  %y = call i32 @sched_yield()
  br label %next
next:
  br label %join
done:
  store atomic i32 0, ptr %busy release, align 4
  ret void
}}

define i32 @c2c_pool_start(ptr %state, i32 %threads) {{
entry:
  %threads.at = getelementptr i8, ptr %state, i64 220
  store i32 %threads, ptr %threads.at
  %mutex = getelementptr i8, ptr %state, i64 320
  %m = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %condition = getelementptr i8, ptr %state, i64 448
  %c = call i32 @pthread_cond_init(ptr %condition, ptr null)
  br label %loop
loop:
  %i = phi i32 [ 1, %entry ], [ %i.next, %started ]
  %more = icmp slt i32 %i, %threads
  br i1 %more, label %start, label %done
start:
  %index = zext i32 %i to i64
  %handle.at = mul i64 %index, 8
  %handles = getelementptr i8, ptr %state, i64 640
  %handle = getelementptr i8, ptr %handles, i64 %handle.at
  %argument.at = mul i64 %index, 16
  %arguments = getelementptr i8, ptr %state, i64 1280
  %argument = getelementptr i8, ptr %arguments, i64 %argument.at
  store ptr %state, ptr %argument
  %second = getelementptr i8, ptr %argument, i64 8
  store i64 %index, ptr %second
  %failed = call i32 @pthread_create(ptr %handle, ptr null, ptr @worker, ptr %argument)
  %bad = icmp ne i32 %failed, 0
  br i1 %bad, label %stop, label %started
started:
  %thread = load ptr, ptr %handle
  %d = call i32 @pthread_detach(ptr %thread)
  %i.next = add i32 %i, 1
  br label %loop
stop:
  store i32 %i, ptr %threads.at
  br label %done
done:
  %running = load i32, ptr %threads.at
  ret i32 %running
}}

define void @c2c_trace_run(ptr %state, ptr %task, ptr %frame, i64 %count, i32 %workers) {{
  %before = alloca [2 x i64]
  %after = alloca [2 x i64]
  %b = call i32 @clock_gettime(i32 {clock}, ptr %before)
  call void %task(ptr %frame, i64 0, i64 %count, i32 0)
  %a = call i32 @clock_gettime(i32 {clock}, ptr %after)
  %s0 = load i64, ptr %before
  %s1 = load i64, ptr %after
  %n0.at = getelementptr i8, ptr %before, i64 8
  %n1.at = getelementptr i8, ptr %after, i64 8
  %n0 = load i64, ptr %n0.at
  %n1 = load i64, ptr %n1.at
  %seconds = sub i64 %s1, %s0
  %whole = mul i64 %seconds, 1000000000
  %part = sub i64 %n1, %n0
  %time = add i64 %whole, %part
  %sink = load ptr, ptr %state
  store i64 %time, ptr %sink
  %sink.next = getelementptr i8, ptr %sink, i64 8
  store ptr %sink.next, ptr %state
  ret void
}}
"""

_PAUSE = {
    "x86_64": ("call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"),
    "aarch64": ("call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)"),
}


def has_threads() -> bool:
    """Whether this system has the pthreads that a pool needs."""
    return sys.platform in ("linux", "darwin")


@cache
def _functions() -> dict[str, Any]:
    """The compiled functions of `_TEXT` by name; kept for the life of the process, as workers run in them."""
    import llvmlite.binding as llvm

    machine = "aarch64" if platform.machine().lower() in ("arm64", "aarch64") else "x86_64"
    pause, declaration = _PAUSE[machine]
    text = _TEXT.format(
        pause=pause,
        pause_declaration=declaration,
        spin=SPIN,
        yield_mask=YIELD_MASK,
        clock=6 if sys.platform == "darwin" else 1,
    )
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    jit = llvm.create_lljit_compiler()
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


def tracer(times: np.ndarray) -> tuple[Parallel, np.ndarray]:
    """A `c2c_parallel` that runs each step on the caller's thread and writes its nanoseconds into `times`, in order.
    The second part must live as long as the first is used."""
    state = np.array([times.ctypes.data], np.uint64)
    return Parallel(_functions()["c2c_trace_run"], state.ctypes.data, 1), state


def _state(size: int) -> np.ndarray:
    raw = np.zeros(size + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + size]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork
