"""The thread pool and the step timer of `pool.py` as LLVM IR; the constants are filled in by `pool.py`."""

from __future__ import annotations

# State, in bytes: 0 busy, 128 task, 136 frame, 144 count, 152 active, 256 waiting, 320 mutex, 448 condition; then, from
# 1024 on, 512 for each worker: 0 what it does, 8 state, 16 number, 24 runs it missed, 28 processor it was seen on,
# 32 runs to leave it out of, 64 mutex, 192 condition, 256 handle, 384 pieces taken. What a worker does: 0 nothing, 1 is
# to begin, 2 runs, 3 sleeps.
POOL = """
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @sched_yield()
declare i64 @llvm.umin.i64(i64, i64)
{pause_declaration}

define internal ptr @worker_of(ptr %state, i64 %number) {{
  %bytes = mul i64 %number, {worker_bytes}
  %at = add i64 %bytes, 1024
  %w = getelementptr i8, ptr %state, i64 %at
  ret ptr %w
}}

define internal void @signal(ptr %mutex, ptr %condition) {{
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %s = call i32 @pthread_cond_signal(ptr %condition)
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}}

; Sleep as long as `at` holds `value`; who changes it signals afterwards.
define internal void @sleep_while(ptr %at, i32 %value, ptr %mutex, ptr %condition) {{
entry:
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  br label %check
check:
  %current = load atomic i32, ptr %at seq_cst, align 4
  %still = icmp eq i32 %current, %value
  br i1 %still, label %rest, label %awake
rest:
  %c = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %check
awake:
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
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
  %rest.at = getelementptr i8, ptr %w, i64 32
  %mutex = getelementptr i8, ptr %w, i64 64
  %condition = getelementptr i8, ptr %w, i64 192
  %waiting = getelementptr i8, ptr %state, i64 256
  %done.mutex = getelementptr i8, ptr %state, i64 320
  %done = getelementptr i8, ptr %state, i64 448
  br label %wait
wait:
  %resting = load atomic i32, ptr %rest.at seq_cst, align 4
  %rests = icmp ne i32 %resting, 0
  %begin.turn = select i1 %rests, i32 {last_spin}, i32 0
  br label %spin
spin:
  %turn = phi i32 [ %begin.turn, %wait ], [ %turn.next, %again ]
  %now = load atomic i32, ptr %w seq_cst, align 4
  %go = icmp eq i32 %now, 1
  br i1 %go, label %begin, label %again
again:
  {pause}
  %turn.next = add i32 %turn, 1
  %tired = icmp eq i32 %turn.next, {spin}
  br i1 %tired, label %sleep, label %spin
sleep:
  %asleep = cmpxchg ptr %w, i32 0, i32 3 seq_cst seq_cst
  call void @sleep_while(ptr %w, i32 3, ptr %mutex, ptr %condition)
  br label %wait
begin:
  %pair = cmpxchg ptr %w, i32 1, i32 2 seq_cst seq_cst
  %mine = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %mine, label %work, label %wait
work:
  call void @keep_apart(ptr %state, ptr %w, i64 %number)
  call void @shares(ptr %state, i64 %number)
  %idle = atomicrmw xchg ptr %w, i32 0 seq_cst
  %waits = load atomic i32, ptr %waiting seq_cst, align 4
  %tell = icmp ne i32 %waits, 0
  br i1 %tell, label %signal, label %wait
signal:
  call void @signal(ptr %done.mutex, ptr %done)
  br label %wait
}}

define internal void @wake(ptr %w) {{
  %was = atomicrmw xchg ptr %w, i32 1 seq_cst
  %asleep = icmp eq i32 %was, 3
  br i1 %asleep, label %signal, label %done
signal:
  %mutex = getelementptr i8, ptr %w, i64 64
  %condition = getelementptr i8, ptr %w, i64 192
  call void @signal(ptr %mutex, ptr %condition)
  br label %done
done:
  ret void
}}

; Call a worker off that has not begun, or wait until it is done.
define internal void @wait_for(ptr %state, ptr %w) {{
entry:
  %missed.at = getelementptr i8, ptr %w, i64 24
  %missed = load i32, ptr %missed.at
  %often = icmp sge i32 %missed, {patience}
  %first = load atomic i32, ptr %w seq_cst, align 4
  %late = icmp eq i32 %first, 1
  %blocked = and i1 %often, %late
  br i1 %blocked, label %yield, label %ask
yield:
  %y = call i32 @sched_yield()
  br label %ask
ask:
  %pair = cmpxchg ptr %w, i32 1, i32 0 seq_cst seq_cst
  %off = extractvalue {{ i32, i1 }} %pair, 1
  %more = add i32 %missed, 1
  %row = select i1 %off, i32 %more, i32 0
  store i32 %row, ptr %missed.at
  br i1 %off, label %done, label %spin
spin:
  %turn = phi i32 [ 0, %ask ], [ %turn.next, %again ]
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
  %waits = atomicrmw xchg ptr %waiting, i32 1 seq_cst
  call void @sleep_while(ptr %w, i32 2, ptr %mutex, ptr %condition)
  %over = atomicrmw xchg ptr %waiting, i32 0 seq_cst
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
  %self = call ptr @worker_of(ptr %state, i64 0)
  call void @keep_apart(ptr %state, ptr %self, i64 0)
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
  %c = phi i64 [ 1, %reset ], [ %c.next, %called ]
  %cw = call ptr @worker_of(ptr %state, i64 %c)
  %rest.at = getelementptr i8, ptr %cw, i64 32
  %rest = load atomic i32, ptr %rest.at seq_cst, align 4
  %rests = icmp ne i32 %rest, 0
  br i1 %rests, label %leave, label %post
leave:
  %rest.next = sub i32 %rest, 1
  store atomic i32 %rest.next, ptr %rest.at seq_cst, align 4
  br label %called
post:
  call void @wake(ptr %cw)
  br label %called
called:
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
  %on = getelementptr i8, ptr %w, i64 28
  store i32 -1, ptr %on
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
"""


APART = """
declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)

; Note where the worker runs; leave the processors of the others if it shares one with a worker of a lower number.
define internal void @keep_apart(ptr %state, ptr %w, i64 %number) {
entry:
  %allowed = alloca [16 x i64]
  %free = alloca [16 x i64]
  %here = call i32 @sched_getcpu()
  %on = getelementptr i8, ptr %w, i64 28
  %was = load atomic i32, ptr %on seq_cst, align 4
  %same = icmp eq i32 %here, %was
  br i1 %same, label %look, label %note
note:
  store atomic i32 %here, ptr %on seq_cst, align 4
  br label %look
look:
  %i = phi i64 [ 0, %entry ], [ 0, %note ], [ %i.next, %other ]
  %lower = icmp ult i64 %i, %number
  br i1 %lower, label %other, label %done
other:
  %ow = call ptr @worker_of(ptr %state, i64 %i)
  %ow.on = getelementptr i8, ptr %ow, i64 28
  %there = load atomic i32, ptr %ow.on seq_cst, align 4
  %meet = icmp eq i32 %there, %here
  %i.next = add i64 %i, 1
  br i1 %meet, label %ask, label %look
ask:
  %got = call i32 @sched_getaffinity(i32 0, i64 128, ptr %allowed)
  %unknown = icmp slt i32 %got, 0
  br i1 %unknown, label %done, label %copy
copy:
  call void @llvm.memcpy.p0.p0.i64(ptr %free, ptr %allowed, i64 128, i1 false)
  %active.at = getelementptr i8, ptr %state, i64 152
  %active = load i64, ptr %active.at
  br label %clear
clear:
  %c = phi i64 [ 0, %copy ], [ %c.next, %cleared ]
  %cw = call ptr @worker_of(ptr %state, i64 %c)
  %cw.on = getelementptr i8, ptr %cw, i64 28
  %taken = load atomic i32, ptr %cw.on seq_cst, align 4
  %known = icmp ult i32 %taken, 1024
  br i1 %known, label %bit, label %cleared
bit:
  %byte = lshr i32 %taken, 3
  %low = and i32 %taken, 7
  %low8 = trunc i32 %low to i8
  %one = shl i8 1, %low8
  %mask = xor i8 %one, -1
  %byte.at = getelementptr i8, ptr %free, i32 %byte
  %old = load i8, ptr %byte.at
  %new = and i8 %old, %mask
  store i8 %new, ptr %byte.at
  br label %cleared
cleared:
  %c.next = add i64 %c, 1
  %c.more = icmp ult i64 %c.next, %active
  br i1 %c.more, label %clear, label %count
count:
  %n = phi i64 [ 0, %cleared ], [ %n.next, %count ]
  %sum = phi i64 [ 0, %cleared ], [ %sum.next, %count ]
  %word.at = getelementptr i64, ptr %free, i64 %n
  %word = load i64, ptr %word.at
  %sum.next = or i64 %sum, %word
  %n.next = add i64 %n, 1
  %n.more = icmp ult i64 %n.next, 16
  br i1 %n.more, label %count, label %enough
enough:
  %some = icmp ne i64 %sum.next, 0
  br i1 %some, label %move, label %crowded
crowded:
  %rest = getelementptr i8, ptr %w, i64 32
  store atomic i32 64, ptr %rest seq_cst, align 4
  br label %done
move:
  %moved = call i32 @sched_setaffinity(i32 0, i64 128, ptr %free) ; at once
  %back = call i32 @sched_setaffinity(i32 0, i64 128, ptr %allowed)
  br label %done
done:
  ret void
}
"""

TOGETHER = """
define internal void @keep_apart(ptr %state, ptr %w, i64 %number) {
  ret void
}
"""

TRACER = """
declare i32 @clock_gettime(i32, ptr)

define i64 @c2c_now() {{
  %at = alloca [2 x i64]
  %status = call i32 @clock_gettime(i32 {clock}, ptr %at)
  %seconds = load i64, ptr %at
  %part.at = getelementptr i8, ptr %at, i64 8
  %part = load i64, ptr %part.at
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %part
  ret i64 %now
}}

define void @c2c_trace_add(ptr %state, i64 %begin, i64 %end) {{
  %time = sub i64 %end, %begin
  %sink = load ptr, ptr %state
  store i64 %time, ptr %sink
  %sink.next = getelementptr i8, ptr %sink, i64 8
  store ptr %sink.next, ptr %state
  ret void
}}

define void @c2c_trace_run(ptr %state, ptr %task, ptr %frame, i64 %count, i32 %workers) {{
  %beside.at = getelementptr i8, ptr %state, i64 8
  %beside = load ptr, ptr %beside.at
  %alone = icmp eq ptr %beside, null
  br i1 %alone, label %step, label %compare
compare:
  %args.at = getelementptr i8, ptr %state, i64 16
  %args = load ptr, ptr %args.at
  %warm = call i32 %beside(ptr %args)
  %b = call i64 @c2c_now()
  %status = call i32 %beside(ptr %args)
  %e = call i64 @c2c_now()
  call void @c2c_trace_add(ptr %state, i64 %b, i64 %e)
  br label %step
step:
  %begin = call i64 @c2c_now()
  call void %task(ptr %frame, i64 0, i64 %count, i32 0)
  %end = call i64 @c2c_now()
  call void @c2c_trace_add(ptr %state, i64 %begin, i64 %end)
  ret void
}}
"""
