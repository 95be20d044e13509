/* c2c plan: how a compiled network runs on a graphics processor, as a table that the compiler wrote (NAME_plan.h) and
 * that a driver (c2c_opencl.h, c2c_metal.h, c2c_cuda.h) follows. Nothing is parsed: sizes, places and orders are known when the app is built. */
#ifndef C2C_PLAN_H
#define C2C_PLAN_H
#include <stddef.h>
#include <stdint.h>

/* Buffers: three of the driver's own, then the model's inputs and its outputs. */
enum { C2C_PLAN_ARENA = 0, C2C_PLAN_WEIGHTS = 1, C2C_PLAN_PREPARED = 2, C2C_PLAN_PORTS = 3 };

typedef struct c2c_plan_kernel {
    const char *name;
    uint32_t threads[3]; /* in all, whole work-groups; the dimension whose neighbours lie together comes first */
    uint32_t group[3];   /* of a work-group */
} c2c_plan_kernel;

/* A parameter: a buffer, the element at which the parameter begins, bytes of an element. OpenCL's kernels take the first
 * two as arguments; Metal and CUDA bind the address. */
typedef struct c2c_plan_arg {
    uint32_t buffer, at, size;
} c2c_plan_arg;

/* Bytes of a buffer that the host reads (access 1) or reads and writes (3). */
typedef struct c2c_plan_span {
    uint32_t buffer, access;
    uint64_t begin, bytes;
} c2c_plan_span;

/* One run of a kernel with args[first .. first + count). It needs what step `after` and those before it wrote (-1:
 * nothing); the driver's queue keeps the order anyway. A step with `host` has no kernel: this processor calls `host` with
 * the addresses of spans[span .. span + spans); steps that follow each other with one `span` share what is mapped. */
typedef struct c2c_plan_step {
    uint32_t kernel, first, count;
    int32_t after;
    const char *node; /* the ONNX node */
    void (*host)(char *const *mapped);
    uint32_t span, spans;
} c2c_plan_step;

typedef struct c2c_plan_port {
    const char *name, *dtype;
    uint64_t bytes;
} c2c_plan_port;

typedef struct c2c_plan {
    const char *name;
    const char *const *source; /* pieces of the kernels' text, in order; NULL at the end */
    const c2c_plan_kernel *kernels;
    const c2c_plan_arg *args;
    const c2c_plan_step *steps; /* the first `prepares` run once, when the model is loaded */
    const c2c_plan_port *ports; /* inputs, then outputs */
    const c2c_plan_span *spans;
    uint32_t kernel_count, step_count, prepares, inputs, outputs;
    uint32_t weights_crc32; /* of the weights (ISO 3309, as in zlib) */
    uint64_t arena_bytes, weights_bytes, prepared_bytes;
    uint32_t subgroup; /* threads in lock-step that the kernels count on; 0: on none */
} c2c_plan;

#endif
