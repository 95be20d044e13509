/* c2c runtime stub: a thread pool and mapping of weight files, for apps that link a model compiled by c2c.
 *
 * Optional: a model runs serially without it, and an app may pass its own c2c_parallel and its own weights. C99, C++11;
 * pthreads or Win32; a few KB. */
#ifndef C2C_RUNTIME_H
#define C2C_RUNTIME_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef C2C_PARALLEL_DEFINED
#define C2C_PARALLEL_DEFINED
/* How a model runs on several threads. run() splits [0, count) into ranges, calls task once for each, with worker
 * numbers in [0, workers) of which none is in use twice at a time, and returns when all are done. c2c_runtime.h has a
 * thread pool that fits; an app may bring its own. */
typedef void (*c2c_task)(void *frame, int64_t begin, int64_t end, int32_t worker);
typedef struct c2c_parallel {
    void (*run)(void *self, c2c_task task, void *frame, int64_t count, int32_t workers);
    void *self;
    int32_t workers;
} c2c_parallel;
#endif

enum c2c_error {
    C2C_OK = 0,
    C2C_E_OPEN = 1, /* the file is missing or may not be read */
    C2C_E_SIZE = 2, /* the file does not have the size that the model expects */
    C2C_E_MAP = 3   /* the system refused to map it */
};

/* A few words for an error code. */
const char *c2c_error_string(int error);

typedef struct c2c_pool c2c_pool;

/* A pool of `threads` workers, the calling thread of each run included; 0: one for each processor. NULL: out of memory.
 * A pool may be used by several threads and from inside a task: while it is busy, a further run is done serially by
 * its caller. Waiting workers spin for some hundred microseconds, then sleep; no run waits for one to wake up. */
c2c_pool *c2c_pool_create(int threads);

/* Stop the workers and free the pool (NULL: nothing). No run may be going on. */
void c2c_pool_destroy(c2c_pool *pool);

/* What to put into NAME_args.parallel; lives as long as the pool. NULL of NULL. */
const c2c_parallel *c2c_pool_parallel(c2c_pool *pool);

/* Map a weight file of exactly `bytes` bytes for reading. On C2C_OK *weights is its address, aligned to 64 bytes, and
 * *mapping what c2c_unmap_weights takes; otherwise both are NULL. */
int c2c_map_weights(const char *path, size_t bytes, const void **weights, void **mapping);

/* Give a mapping back (NULL: nothing); `bytes` as it was mapped. */
void c2c_unmap_weights(void *mapping, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
