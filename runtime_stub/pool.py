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

SPIN = 10000
"""Turns of a waiting thread's loop before it sleeps; one is 10 to 40 ns."""

PIECES = 8
"""Parts of a worker's share, at most."""

MOST_THREADS = 64
WORKER_BYTES = 512
STATE_BYTES = 1024 + MOST_THREADS * WORKER_BYTES


class Parallel(ctypes.Structure):
    """`c2c_parallel` of the generated header."""

    _fields_ = (("run", ctypes.c_void_p), ("self", ctypes.c_void_p), ("workers", ctypes.c_int32))


# State, in bytes: 0 busy, 128 task, 136 frame, 144 count, 152 active, 256 waiting, 320 mutex, 448 condition; then, from
# 1024 on, 512 for each worker: 0 what it does, 8 state, 16 number, 64 mutex, 192 condition, 256 handle, 384 pieces
# taken. What a worker does: 0 nothing, 1 has to begin, 2 runs, 3 sleeps.
_TEXT = """
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @clock_gettime(i32, ptr)
declare i64 @llvm.umin.i64(i64, i64)
{pause_declaration}

define internal ptr @worker_of(ptr %state, i64 %number) {{
  %bytes = mul i64 %number, {worker_bytes}
  %at = add i64 %bytes, 1024
  %w = getelementptr i8, ptr %state, i64 %at
  ret ptr %w
}}

; Where part `index` of `parts` near-equal parts of [0, count) begins.
define internal i64 @part(i64 %count, i64 %parts, i64 %index) {{
  %each = udiv i64 %count, %parts
  %rest = urem i64 %count, %parts
  %low = mul i64 %each, %index
  %more = call i64 @llvm.umin.i64(i64 %index, i64 %rest)
  %begin = add i64 %low, %more
  ret i64 %begin
}}

define internal void @shares(ptr %state, i64 %number) {{
entry:
  %task.at = getelementptr i8, ptr %state, i64 128
  %task = load ptr, ptr %task.at
  %frame.at = getelementptr i8, ptr %state, i64 136
  %frame = load ptr, ptr %frame.at
  %count.at = getelementptr i8, ptr %state, i64 144
  %count = load i64, ptr %count.at
  %active.at = getelementptr i8, ptr %state, i64 152
  %active = load i64, ptr %active.at
  %worker = trunc i64 %number to i32
  br label %share
share:
  %i = phi i64 [ 0, %entry ], [ %i.next, %empty ]
  %sum = add i64 %number, %i
  %owner = urem i64 %sum, %active
  %after = add i64 %owner, 1
  %begin = call i64 @part(i64 %count, i64 %active, i64 %owner)
  %end = call i64 @part(i64 %count, i64 %active, i64 %after)
  %size = sub i64 %end, %begin
  %pieces = call i64 @llvm.umin.i64(i64 %size, i64 {pieces})
  %w = call ptr @worker_of(ptr %state, i64 %owner)
  %taken = getelementptr i8, ptr %w, i64 384
  br label %take
take:
  %piece32 = atomicrmw add ptr %taken, i32 1 seq_cst
  %piece = zext i32 %piece32 to i64
  %left = icmp ult i64 %piece, %pieces
  br i1 %left, label %work, label %empty
work:
  %piece.next = add i64 %piece, 1
  %low = call i64 @part(i64 %size, i64 %pieces, i64 %piece)
  %high = call i64 @part(i64 %size, i64 %pieces, i64 %piece.next)
  %first = add i64 %begin, %low
  %last = add i64 %begin, %high
  call void %task(ptr %frame, i64 %first, i64 %last, i32 %worker)
  br label %take
empty:
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %active
  br i1 %more, label %share, label %done
done:
  ret void
}}

define internal ptr @worker(ptr %w) {{
entry:
  %state.at = getelementptr i8, ptr %w, i64 8
  %state = load ptr, ptr %state.at
  %number.at = getelementptr i8, ptr %w, i64 16
  %number = load i64, ptr %number.at
  %mutex = getelementptr i8, ptr %w, i64 64
  %condition = getelementptr i8, ptr %w, i64 192
  %waiting = getelementptr i8, ptr %state, i64 256
  %done.mutex = getelementptr i8, ptr %state, i64 320
  %done = getelementptr i8, ptr %state, i64 448
  br label %wait
wait:
  br label %spin
spin:
  %turn = phi i32 [ 0, %wait ], [ %turn.next, %again ]
  %now = load atomic i32, ptr %w seq_cst, align 4
  %go = icmp eq i32 %now, 1
  br i1 %go, label %begin, label %again
again:
  {pause}
  %turn.next = add i32 %turn, 1
  %tired = icmp eq i32 %turn.next, {spin}
  br i1 %tired, label %sleep, label %spin
sleep:
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %asleep = cmpxchg ptr %w, i32 0, i32 3 seq_cst seq_cst
  br label %check
check:
  %current = load atomic i32, ptr %w seq_cst, align 4
  %still = icmp eq i32 %current, 3
  br i1 %still, label %rest, label %awake
rest:
  %c = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %check
awake:
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %wait
begin:
  %pair = cmpxchg ptr %w, i32 1, i32 2 seq_cst seq_cst
  %mine = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %mine, label %work, label %wait
work:
  call void @shares(ptr %state, i64 %number)
  %idle = atomicrmw xchg ptr %w, i32 0 seq_cst
  %waits = load atomic i32, ptr %waiting seq_cst, align 4
  %tell = icmp ne i32 %waits, 0
  br i1 %tell, label %signal, label %wait
signal:
  %dl = call i32 @pthread_mutex_lock(ptr %done.mutex)
  %ds = call i32 @pthread_cond_signal(ptr %done)
  %du = call i32 @pthread_mutex_unlock(ptr %done.mutex)
  br label %wait
}}

define internal void @wake(ptr %w) {{
  %was = atomicrmw xchg ptr %w, i32 1 seq_cst
  %asleep = icmp eq i32 %was, 3
  br i1 %asleep, label %signal, label %done
signal:
  %mutex = getelementptr i8, ptr %w, i64 64
  %condition = getelementptr i8, ptr %w, i64 192
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %s = call i32 @pthread_cond_signal(ptr %condition)
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %done
done:
  ret void
}}

; Call a worker off that has not begun, or wait until it is done.
define internal void @wait_for(ptr %state, ptr %w) {{
entry:
  %pair = cmpxchg ptr %w, i32 1, i32 0 seq_cst seq_cst
  %off = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %off, label %done, label %spin
spin:
  %turn = phi i32 [ 0, %entry ], [ %turn.next, %again ]
  %now = load atomic i32, ptr %w seq_cst, align 4
  %runs = icmp eq i32 %now, 2
  br i1 %runs, label %again, label %done
again:
  {pause}
  %turn.next = add i32 %turn, 1
  %tired = icmp eq i32 %turn.next, {spin}
  br i1 %tired, label %sleep, label %spin
sleep:
  %waiting = getelementptr i8, ptr %state, i64 256
  %mutex = getelementptr i8, ptr %state, i64 320
  %condition = getelementptr i8, ptr %state, i64 448
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %waits = atomicrmw xchg ptr %waiting, i32 1 seq_cst
  br label %check
check:
  %current = load atomic i32, ptr %w seq_cst, align 4
  %still = icmp eq i32 %current, 2
  br i1 %still, label %rest, label %awake
rest:
  %c = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %check
awake:
  %over = atomicrmw xchg ptr %waiting, i32 0 seq_cst
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %done
done:
  ret void
}}

define void @c2c_pool_run(ptr %state, ptr %task, ptr %frame, i64 %count, i32 %workers) {{
entry:
  %count.low = icmp slt i64 %count, 2
  %few = icmp slt i32 %workers, 2
  %alone = or i1 %count.low, %few
  br i1 %alone, label %serial, label %claim
claim:
  %pair = cmpxchg ptr %state, i32 0, i32 1 seq_cst seq_cst
  %free = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %free, label %parallel, label %serial
serial:
  call void %task(ptr %frame, i64 0, i64 %count, i32 0)
  ret void
parallel:
  %task.at = getelementptr i8, ptr %state, i64 128
  store ptr %task, ptr %task.at
  %frame.at = getelementptr i8, ptr %state, i64 136
  store ptr %frame, ptr %frame.at
  %count.at = getelementptr i8, ptr %state, i64 144
  store i64 %count, ptr %count.at
  %wide = zext i32 %workers to i64
  %active = call i64 @llvm.umin.i64(i64 %count, i64 %wide)
  %active.at = getelementptr i8, ptr %state, i64 152
  store i64 %active, ptr %active.at
  br label %reset
reset:
  %r = phi i64 [ 0, %parallel ], [ %r.next, %reset ]
  %rw = call ptr @worker_of(ptr %state, i64 %r)
  %taken = getelementptr i8, ptr %rw, i64 384
  store atomic i32 0, ptr %taken seq_cst, align 4
  %r.next = add i64 %r, 1
  %r.more = icmp ult i64 %r.next, %active
  br i1 %r.more, label %reset, label %call
call:
  %c = phi i64 [ 1, %reset ], [ %c.next, %call ]
  %cw = call ptr @worker_of(ptr %state, i64 %c)
  call void @wake(ptr %cw)
  %c.next = add i64 %c, 1
  %c.more = icmp ult i64 %c.next, %active
  br i1 %c.more, label %call, label %work
work:
  call void @shares(ptr %state, i64 0)
  br label %join
join:
  %j = phi i64 [ 1, %work ], [ %j.next, %join ]
  %jw = call ptr @worker_of(ptr %state, i64 %j)
  call void @wait_for(ptr %state, ptr %jw)
  %j.next = add i64 %j, 1
  %j.more = icmp ult i64 %j.next, %active
  br i1 %j.more, label %join, label %done
done:
  store atomic i32 0, ptr %state seq_cst, align 4
  ret void
}}

define i32 @c2c_pool_start(ptr %state, i32 %threads) {{
entry:
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
  %number = zext i32 %i to i64
  %w = call ptr @worker_of(ptr %state, i64 %number)
  %state.at = getelementptr i8, ptr %w, i64 8
  store ptr %state, ptr %state.at
  %number.at = getelementptr i8, ptr %w, i64 16
  store i64 %number, ptr %number.at
  %w.mutex = getelementptr i8, ptr %w, i64 64
  %wm = call i32 @pthread_mutex_init(ptr %w.mutex, ptr null)
  %w.condition = getelementptr i8, ptr %w, i64 192
  %wc = call i32 @pthread_cond_init(ptr %w.condition, ptr null)
  %handle = getelementptr i8, ptr %w, i64 256
  %failed = call i32 @pthread_create(ptr %handle, ptr null, ptr @worker, ptr %w)
  %bad = icmp ne i32 %failed, 0
  br i1 %bad, label %done, label %started
started:
  %thread = load ptr, ptr %handle
  %d = call i32 @pthread_detach(ptr %thread)
  %i.next = add i32 %i, 1
  br label %loop
done:
  ret i32 %i
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
        pieces=PIECES,
        worker_bytes=WORKER_BYTES,
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
