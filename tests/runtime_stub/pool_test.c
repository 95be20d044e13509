/* Exercises the pool: every index once, nested and concurrent use, sleeping workers. Exit code 0: right. */
#define _POSIX_C_SOURCE 200809L
#include "c2c_runtime.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 4096 };

typedef struct frame {
    int32_t times[MOST];
    int32_t seen[64]; /* calls by worker number */
    const c2c_parallel *inner;
    struct frame *nested;
} frame;

static void count_once(void *data, int64_t begin, int64_t end, int32_t worker)
{
    frame *f = (frame *)data;
    f->seen[worker]++;
    for (int64_t i = begin; i < end; i++)
        f->times[i]++;
}

static void run_nested(void *data, int64_t begin, int64_t end, int32_t worker)
{
    frame *f = (frame *)data;
    count_once(f, begin, end, worker);
    for (int64_t i = begin; i < end; i++)
        f->inner->run(f->inner->self, count_once, &f->nested[i], 100, 8);
}

static int wrong(const frame *f, int64_t count, int32_t workers, int32_t calls)
{
    int32_t called = 0;
    for (int64_t i = 0; i < MOST; i++)
        if (f->times[i] != (i < count ? calls : 0))
            return fprintf(stderr, "index %d was run %d times of %d\n", (int)i, (int)f->times[i], (int)calls);
    for (int32_t w = 0; w < 64; w++) {
        called += f->seen[w];
        if (f->seen[w] && w >= workers)
            return fprintf(stderr, "worker %d of %d\n", (int)w, (int)workers);
    }
    return called < calls ? fprintf(stderr, "%d calls\n", (int)called) : 0;
}

static int exercise(int threads, int rounds)
{
    c2c_pool *pool = c2c_pool_create(threads);
    const c2c_parallel *parallel = c2c_pool_parallel(pool);
    frame *f = (frame *)malloc(sizeof *f);
    int bad = !pool || !f || parallel->workers != threads;
    static const int64_t counts[] = {0, 1, 2, 3, 7, 64, 1000, MOST};
    for (int r = 0; r < rounds && !bad; r++) {
        int64_t count = counts[r % 8];
        int32_t workers = 1 + (int32_t)(r % 11);
        memset(f, 0, sizeof *f);
        parallel->run(parallel->self, count_once, f, count, workers);
        bad = wrong(f, count, workers, count > 0);
    }
    free(f);
    c2c_pool_destroy(pool);
    return bad;
}

static int exercise_nested(int threads)
{
    c2c_pool *pool = c2c_pool_create(threads);
    const c2c_parallel *parallel = c2c_pool_parallel(pool);
    frame *f = (frame *)calloc((size_t)threads + 1, sizeof *f);
    int bad;
    f->inner = parallel;
    f->nested = f + 1;
    parallel->run(parallel->self, run_nested, f, threads, threads);
    bad = wrong(f, threads, threads, 1);
    for (int w = 0; w < threads && !bad; w++)
        bad = wrong(&f->nested[w], 100, 8, 1);
    free(f);
    c2c_pool_destroy(pool);
    return bad;
}

static void *app_thread(void *data)
{
    const c2c_parallel *parallel = (const c2c_parallel *)data;
    frame *f = (frame *)calloc(1, sizeof *f);
    int rounds = 300, bad = !f;
    for (int r = 0; r < rounds && !bad; r++)
        parallel->run(parallel->self, count_once, f, 500, 4);
    bad = bad || wrong(f, 500, 4, rounds);
    free(f);
    return bad ? data : NULL;
}

static int exercise_concurrent(void)
{
    c2c_pool *pool = c2c_pool_create(4);
    pthread_t apps[2];
    int bad = 0;
    for (int i = 0; i < 2; i++)
        if (pthread_create(&apps[i], NULL, app_thread, (void *)(uintptr_t)c2c_pool_parallel(pool)))
            return 1;
    for (int i = 0; i < 2; i++) {
        void *result;
        pthread_join(apps[i], &result);
        bad |= result != NULL;
    }
    c2c_pool_destroy(pool);
    return bad;
}

/* Runs far enough apart that the workers sleep in between. */
static int exercise_sleep(void)
{
    c2c_pool *pool = c2c_pool_create(3);
    const c2c_parallel *parallel = c2c_pool_parallel(pool);
    frame *f = (frame *)calloc(1, sizeof *f);
    int rounds = 20, bad;
    for (int r = 0; r < rounds; r++) {
        struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
        parallel->run(parallel->self, count_once, f, 90, 3);
    }
    bad = wrong(f, 90, 3, rounds);
    free(f);
    c2c_pool_destroy(pool);
    return bad;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 200;
    for (int threads = 1; threads <= 8; threads++)
        if (exercise(threads, rounds) || exercise_nested(threads))
            return 1;
    c2c_pool_destroy(NULL);
    if (c2c_pool_parallel(NULL) || exercise_concurrent() || exercise_sleep())
        return 2;
    return 0;
}
