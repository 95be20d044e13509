/* c2c: what the drivers of graphics processors (c2c_opencl.h, c2c_metal.h, c2c_cuda.h) have in common: error codes and
 * their words, checks, and the walk over a plan's steps. The second half is for drivers alone. C99, C++11. */
#ifndef C2C_GPU_H
#define C2C_GPU_H
#include "c2c_plan.h"

#ifdef __cplusplus
extern "C" {
#endif

enum c2c_gpu_error {
    C2C_GPU_OK = 0,
    C2C_GPU_E_LIBRARY = 1, /* there is no library for such devices, or it is too old */
    C2C_GPU_E_DEVICE = 2,  /* no device of the wanted kind */
    C2C_GPU_E_MEMORY = 3,  /* the device, or this process, has too little memory */
    C2C_GPU_E_BUILD = 4,   /* the device's compiler refused the kernels; the message has its log */
    C2C_GPU_E_WEIGHTS = 5, /* these are not the weights of the model */
    C2C_GPU_E_NULL = 6,    /* a pointer of the arguments is NULL */
    C2C_GPU_E_RUN = 7      /* the device failed; the message has its error */
};

/* A few words for an error code. */
const char *c2c_gpu_error_string(int error);

/* Instead of an input's address: what the driver's map function gave was filled; instead of an output's: it is asked for
 * next. */
#define C2C_GPU_IN_PLACE ((void *)1)

/* --- for drivers */

enum { C2C_GPU_MESSAGE = 4096 };

/* The last error in words, for a message of C2C_GPU_MESSAGE bytes; returns `error`. */
int c2c_gpu_fail(char *message, int error, const char *format, ...);

/* Whether these are the plan's weights, by size and checksum. */
int c2c_gpu_check_weights(char *message, const c2c_plan *plan, const void *weights, size_t bytes);

/* Whether `device` runs work-groups as large as the plan's; `most`: threads of one. */
int c2c_gpu_check_groups(char *message, const char *device, const c2c_plan *plan, size_t most);

/* Whether every input and output has an address. */
int c2c_gpu_check_ports(char *message, const c2c_plan *plan, const void *const *inputs, void *const *outputs);

/* The plan's text in one piece, to be freed; NULL: out of memory. */
char *c2c_gpu_source(const c2c_plan *plan);

/* The file in `folder` that keeps what was built of this text for a device and its driver, to be freed; NULL without a
 * folder. Its whole content, to be freed, or NULL; and written, where nothing is left of what could not be. */
char *c2c_gpu_cache_path(const char *folder, const c2c_plan *plan, const char *device, const char *driver);
void *c2c_gpu_read_file(const char *path, size_t *bytes);
void c2c_gpu_write_file(const char *path, const void *data, size_t bytes);

/* Copies a string, to be freed; NULL of NULL. */
char *c2c_gpu_copy(const char *text);

/* The first library of a list of names that ends with NULL, or NULL; the address of a function, or NULL; and closed. */
void *c2c_gpu_library(const char *const *names);
void *c2c_gpu_symbol(void *library, const char *name);
void c2c_gpu_library_close(void *library);

/* Nanoseconds of a clock that only goes forward. */
uint64_t c2c_gpu_now(void);

/* How a driver does a plan's steps. `self` is its own; functions return enum c2c_gpu_error. */
typedef struct c2c_gpu_walk {
    const c2c_plan *plan;
    void *self;
    int (*launch)(void *self, uint32_t step);                                /* into the queue */
    int (*map)(void *self, const c2c_plan_span *span, char **address);       /* when all before it has ended */
    int (*unmap)(void *self, const c2c_plan_span *span, char *address);      /* before all that follows */
    uint64_t *host; /* nanoseconds of steps of the host, of the plan's number; NULL: not timed */
    char **mapped;  /* the walk's own */
    uint32_t first, count;
} c2c_gpu_walk;

/* Memory of the walk's own, whether steps are timed; and without it. */
int c2c_gpu_walk_open(c2c_gpu_walk *walk, char *message, int timed);
void c2c_gpu_walk_close(c2c_gpu_walk *walk);

/* Steps begin to end, without end itself. Host steps that follow each other share what is mapped. */
int c2c_gpu_walk_steps(c2c_gpu_walk *walk, uint32_t begin, uint32_t end);

#ifdef __cplusplus
}
#endif
#endif
