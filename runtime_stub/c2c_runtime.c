/* Thread pool and weight mapping; c2c_runtime.h says what each function promises. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for the processor that a thread is on */
#elif !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE /* for the number of processors */
#endif
#include "c2c_runtime.h"
#include <stdlib.h>

/* --- the system: atomics, threads, sleeping */

#ifdef _WIN32
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>

typedef CRITICAL_SECTION c2c_mutex;
typedef CONDITION_VARIABLE c2c_cond;
typedef HANDLE c2c_thread;
typedef LPVOID c2c_thread_arg;
#define C2C_THREAD_RESULT DWORD WINAPI

static void mutex_init(c2c_mutex *m) { InitializeCriticalSection(m); }
static void mutex_destroy(c2c_mutex *m) { DeleteCriticalSection(m); }
static void mutex_lock(c2c_mutex *m) { EnterCriticalSection(m); }
static void mutex_unlock(c2c_mutex *m) { LeaveCriticalSection(m); }
static void cond_init(c2c_cond *c) { InitializeConditionVariable(c); }
static void cond_destroy(c2c_cond *c) { (void)c; }
static void cond_wait(c2c_cond *c, c2c_mutex *m) { SleepConditionVariableCS(c, m, INFINITE); }
static void cond_signal(c2c_cond *c) { WakeConditionVariable(c); }

static int thread_start(c2c_thread *t, DWORD(WINAPI *body)(LPVOID), void *arg)
{
    *t = CreateThread(NULL, 0, body, arg, 0, NULL);
    return *t != NULL;
}

static void thread_join(c2c_thread t)
{
    WaitForSingleObject(t, INFINITE);
    CloseHandle(t);
}

static int processors(void)
{
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return (int)info.dwNumberOfProcessors;
}

static void yield_once(void) { SwitchToThread(); }

#else
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef pthread_mutex_t c2c_mutex;
typedef pthread_cond_t c2c_cond;
typedef pthread_t c2c_thread;
#define C2C_THREAD_RESULT void *

static void mutex_init(c2c_mutex *m) { pthread_mutex_init(m, NULL); }
static void mutex_destroy(c2c_mutex *m) { pthread_mutex_destroy(m); }
static void mutex_lock(c2c_mutex *m) { pthread_mutex_lock(m); }
static void mutex_unlock(c2c_mutex *m) { pthread_mutex_unlock(m); }
static void cond_init(c2c_cond *c) { pthread_cond_init(c, NULL); }
static void cond_destroy(c2c_cond *c) { pthread_cond_destroy(c); }
static void cond_wait(c2c_cond *c, c2c_mutex *m) { pthread_cond_wait(c, m); }
static void cond_signal(c2c_cond *c) { pthread_cond_signal(c); }
static int thread_start(c2c_thread *t, void *(*body)(void *), void *arg) { return !pthread_create(t, NULL, body, arg); }
static void thread_join(c2c_thread t) { pthread_join(t, NULL); }
static int processors(void)
{
#ifdef _SC_NPROCESSORS_ONLN
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
#else
    return 1;
#endif
}

static void yield_once(void) { sched_yield(); }
#endif

/* The processor that the calling thread is on; -1 where the system does not tell. */
static int32_t processor(void)
{
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

/* All atomics are sequentially consistent: the hand-shakes below need stores ordered before later loads. */
#if defined(_MSC_VER) && !defined(__clang__)
typedef volatile LONG c2c_atomic;
static int32_t atomic_read(c2c_atomic *a) { return (int32_t)InterlockedCompareExchange(a, 0, 0); }
static int32_t atomic_swap(c2c_atomic *a, int32_t v) { return (int32_t)InterlockedExchange(a, v); }
static int32_t atomic_plus_one(c2c_atomic *a) { return (int32_t)InterlockedIncrement(a) - 1; } /* what it was */
static int atomic_replace(c2c_atomic *a, int32_t from, int32_t to)
{
    return InterlockedCompareExchange(a, to, from) == from;
}
#else
typedef int32_t c2c_atomic;
static int32_t atomic_read(c2c_atomic *a) { return __atomic_load_n(a, __ATOMIC_SEQ_CST); }
static int32_t atomic_swap(c2c_atomic *a, int32_t v) { return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST); }
static int32_t atomic_plus_one(c2c_atomic *a) { return __atomic_fetch_add(a, 1, __ATOMIC_SEQ_CST); } /* what it was */
static int atomic_replace(c2c_atomic *a, int32_t from, int32_t to)
{
    return __atomic_compare_exchange_n(a, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
#endif

static void pause_briefly(void)
{
#if defined(_MSC_VER) && !defined(__clang__)
    YieldProcessor();
#elif defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* about as long as x86's pause; `yield` is a no-op on most cores */
#endif
}

/* --- the pool
 *
 * Each worker of a run has a share of the indices, cut into pieces. It takes the pieces of its own share first, then
 * those that others have left: a slow or late worker delays nobody by more than a piece. A worker that has not begun
 * when all pieces are taken is called off, so a run never waits for a thread to wake up. A worker that finds itself on
 * the processor of another moves: schedulers may leave the two together, taking turns, for seconds. */

enum { LINE = 128, SPINS = 10000, MOST = 256, PIECES = 16, PATIENCE = 2, REST = 64 };
enum { IDLE, GO, RUNNING, ASLEEP, STOP };

/* What a worker's neighbours do not touch while it works lies on cache lines of its own. */
typedef struct c2c_worker {
    c2c_atomic state; /* only the caller of run leaves IDLE for GO, only the worker GO for RUNNING */
    int32_t number;   /* 0 is whoever calls run: no thread */
    int32_t missed;   /* runs in a row that it was called off from */
    c2c_atomic on;    /* the processor that it was last seen on */
    c2c_atomic rest;  /* runs to leave it out of, as it had to share a processor with another worker */
    c2c_pool *pool;
    c2c_mutex mutex;
    c2c_cond wake;
    c2c_thread thread;
    char apart[LINE];
    c2c_atomic taken; /* pieces of its share */
} c2c_worker;

typedef union c2c_padded {
    c2c_worker worker;
    char pad[(sizeof(c2c_worker) + LINE - 1) / LINE * LINE];
} c2c_padded;

struct c2c_pool {
    c2c_parallel parallel;
    void *allocated;
    c2c_padded *workers;
    c2c_task task; /* of the run going on, for workers below `active` */
    void *frame;
    int64_t count;
    int32_t active;
    c2c_atomic busy;
    char apart[LINE]; /* below: what workers read while others write what is above */
    c2c_atomic waiting;
    c2c_mutex mutex;
    c2c_cond done;
};

static c2c_worker *worker_of(const c2c_pool *p, int32_t number) { return &p->workers[number].worker; }

/* Where part `index` of `parts` near-equal parts of [0, count) begins. */
static int64_t part_begin(int64_t count, int32_t parts, int32_t index)
{
    int64_t rest = count % parts;
    return count / parts * index + (index < rest ? index : rest);
}

static void run_shares(const c2c_pool *p, int32_t number)
{
    int32_t i, piece, owner = number;
    for (i = 0; i < p->active; i++) {
        int64_t begin = part_begin(p->count, p->active, owner);
        int64_t count = part_begin(p->count, p->active, owner + 1) - begin;
        int32_t pieces = count < PIECES ? (int32_t)count : PIECES;
        while ((piece = atomic_plus_one(&worker_of(p, owner)->taken)) < pieces)
            p->task(p->frame, begin + part_begin(count, pieces, piece), begin + part_begin(count, pieces, piece + 1),
                    number);
        owner = owner + 1 == p->active ? 0 : owner + 1;
    }
}

/* Note where the worker runs; leave the processors of the others if it shares one with a worker of a lower number. */
static void keep_apart(const c2c_pool *p, c2c_worker *w)
{
    int32_t i, here = processor();
    if (here != atomic_read(&w->on))
        atomic_swap(&w->on, here);
#ifdef __linux__
    for (i = 0; i < w->number; i++)
        if (here >= 0 && atomic_read(&worker_of(p, i)->on) == here) {
            cpu_set_t allowed, free;
            if (sched_getaffinity(0, sizeof allowed, &allowed))
                return;
            free = allowed;
            for (i = 0; i < p->active; i++)
                CPU_CLR((size_t)atomic_read(&worker_of(p, i)->on), &free);
            if (!CPU_COUNT(&free))
                atomic_swap(&w->rest, REST);
            else if (!sched_setaffinity(0, sizeof free, &free)) /* moves it at once */
                sched_setaffinity(0, sizeof allowed, &allowed);
            return;
        }
#else
    (void)p, (void)i;
#endif
}

/* Wait until the worker has to begin (1) or to stop (0). */
static int wait_for_work(c2c_worker *w)
{
    for (;;) {
        int32_t state, spins;
        for (spins = atomic_read(&w->rest) ? SPINS - 1 : 0; spins < SPINS; spins++) {
            state = atomic_read(&w->state);
            if (state == STOP)
                return 0;
            if (state == GO && atomic_replace(&w->state, GO, RUNNING))
                return 1;
            pause_briefly();
        }
        mutex_lock(&w->mutex);
        atomic_replace(&w->state, IDLE, ASLEEP);
        while (atomic_read(&w->state) == ASLEEP)
            cond_wait(&w->wake, &w->mutex);
        mutex_unlock(&w->mutex);
    }
}

static void wake(c2c_worker *w, int32_t state)
{
    if (atomic_swap(&w->state, state) == ASLEEP) {
        mutex_lock(&w->mutex);
        cond_signal(&w->wake);
        mutex_unlock(&w->mutex);
    }
}

static C2C_THREAD_RESULT worker_body(void *arg)
{
    c2c_worker *w = (c2c_worker *)arg;
    c2c_pool *p = w->pool;
    while (wait_for_work(w)) {
        keep_apart(p, w);
        run_shares(p, w->number);
        atomic_swap(&w->state, IDLE);
        if (atomic_read(&p->waiting)) {
            mutex_lock(&p->mutex);
            cond_signal(&p->done);
            mutex_unlock(&p->mutex);
        }
    }
    return 0;
}

/* Call a worker off that has not begun, or wait until it is done. */
static void wait_for(c2c_pool *p, c2c_worker *w)
{
    int32_t spins;
    if (w->missed >= PATIENCE && atomic_read(&w->state) == GO)
        yield_once(); /* it may wait for this very processor */
    if (atomic_replace(&w->state, GO, IDLE)) {
        w->missed++;
        return;
    }
    w->missed = 0;
    for (spins = 0; spins < SPINS; spins++) {
        if (atomic_read(&w->state) != RUNNING)
            return;
        pause_briefly();
    }
    mutex_lock(&p->mutex);
    atomic_swap(&p->waiting, 1);
    while (atomic_read(&w->state) == RUNNING)
        cond_wait(&p->done, &p->mutex);
    atomic_swap(&p->waiting, 0);
    mutex_unlock(&p->mutex);
}

static void pool_run(void *self, c2c_task task, void *frame, int64_t count, int32_t workers)
{
    c2c_pool *p = (c2c_pool *)self;
    int32_t i, active = workers < p->parallel.workers ? workers : p->parallel.workers;
    if (active > count)
        active = (int32_t)count;
    if (active <= 1 || !atomic_replace(&p->busy, 0, 1)) {
        if (count > 0)
            task(frame, 0, count, 0);
        return;
    }
    p->task = task;
    p->frame = frame;
    p->count = count;
    p->active = active;
    keep_apart(p, worker_of(p, 0));
    for (i = 0; i < active; i++)
        atomic_swap(&worker_of(p, i)->taken, 0);
    for (i = 1; i < active; i++) {
        int32_t rest = atomic_read(&worker_of(p, i)->rest);
        if (rest)
            atomic_swap(&worker_of(p, i)->rest, rest - 1);
        else
            wake(worker_of(p, i), GO);
    }
    run_shares(p, 0);
    for (i = 1; i < active; i++)
        wait_for(p, worker_of(p, i));
    atomic_swap(&p->busy, 0);
}

c2c_pool *c2c_pool_create(int threads)
{
    size_t head = (sizeof(c2c_pool) + LINE - 1) / LINE * LINE;
    char *memory, *aligned;
    c2c_pool *p;
    int32_t i;
    if (threads < 1)
        threads = processors();
    threads = threads < 1 ? 1 : threads > MOST ? MOST : threads;
    memory = (char *)calloc(1, head + (size_t)threads * sizeof(c2c_padded) + LINE);
    if (!memory)
        return NULL;
    aligned = memory + (LINE - (uintptr_t)memory % LINE);
    p = (c2c_pool *)(void *)aligned;
    p->allocated = memory;
    p->workers = (c2c_padded *)(void *)(aligned + head);
    mutex_init(&p->mutex);
    cond_init(&p->done);
    for (i = 1; i < threads; i++) {
        c2c_worker *w = worker_of(p, i);
        w->pool = p;
        w->number = i;
        w->on = -1;
        mutex_init(&w->mutex);
        cond_init(&w->wake);
        if (!thread_start(&w->thread, worker_body, w)) { /* the system has no more threads: do with those there are */
            mutex_destroy(&w->mutex);
            cond_destroy(&w->wake);
            break;
        }
    }
    p->parallel.run = pool_run;
    p->parallel.self = p;
    p->parallel.workers = i;
    return p;
}

void c2c_pool_destroy(c2c_pool *pool)
{
    int32_t i;
    if (!pool)
        return;
    for (i = 1; i < pool->parallel.workers; i++) {
        c2c_worker *w = worker_of(pool, i);
        wake(w, STOP);
        thread_join(w->thread);
        mutex_destroy(&w->mutex);
        cond_destroy(&w->wake);
    }
    mutex_destroy(&pool->mutex);
    cond_destroy(&pool->done);
    free(pool->allocated);
}

const c2c_parallel *c2c_pool_parallel(c2c_pool *pool) { return pool ? &pool->parallel : NULL; }

/* --- weights */

const char *c2c_error_string(int error)
{
    switch (error) {
    case C2C_OK: return "no error";
    case C2C_E_OPEN: return "cannot open the file";
    case C2C_E_SIZE: return "the file has the wrong size for this model";
    case C2C_E_MAP: return "cannot map the file into memory";
    default: return "unknown error";
    }
}

#ifdef _WIN32
static int map_file(const char *path, size_t bytes, void **address)
{
    LARGE_INTEGER size;
    HANDLE mapping, file = CreateFileA(path, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
    if (file == INVALID_HANDLE_VALUE)
        return C2C_E_OPEN;
    if (!GetFileSizeEx(file, &size) || (uint64_t)size.QuadPart != (uint64_t)bytes) {
        CloseHandle(file);
        return C2C_E_SIZE;
    }
    mapping = bytes ? CreateFileMappingA(file, NULL, PAGE_READONLY, 0, 0, NULL) : NULL;
    CloseHandle(file);
    if (!mapping)
        return bytes ? C2C_E_MAP : C2C_OK;
    *address = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    CloseHandle(mapping);
    return *address ? C2C_OK : C2C_E_MAP;
}
#else
static int map_file(const char *path, size_t bytes, void **address)
{
    struct stat info;
    void *found;
    int file = open(path, O_RDONLY);
    if (file < 0)
        return C2C_E_OPEN;
    if (fstat(file, &info) || !S_ISREG(info.st_mode) || (uint64_t)info.st_size != (uint64_t)bytes) {
        close(file);
        return C2C_E_SIZE;
    }
    found = bytes ? mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, 0) : NULL;
    close(file);
    if (found == MAP_FAILED)
        return C2C_E_MAP;
    *address = found;
    return C2C_OK;
}
#endif

int c2c_map_weights(const char *path, size_t bytes, const void **weights, void **mapping)
{
    int error;
    *mapping = NULL;
    error = map_file(path, bytes, mapping);
    *weights = *mapping;
    return error;
}

void c2c_unmap_weights(void *mapping, size_t bytes)
{
    if (!mapping)
        return;
#ifdef _WIN32
    (void)bytes;
    UnmapViewOfFile(mapping);
#else
    munmap(mapping, bytes);
#endif
}
