/* c2c OpenCL driver: runs a model that `c2c compile --target opencl` made, on any device with OpenCL 1.2.
 *
 * The platform's OpenCL library is looked up when a device is opened; an app that links this file starts without one.
 * C99, C++11; a few KB; link -ldl where the system wants it. A device may be used by several threads that load and run
 * different models; one model runs one call at a time. */
#ifndef C2C_OPENCL_H
#define C2C_OPENCL_H
#include "c2c_gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct c2c_opencl c2c_opencl;
typedef struct c2c_opencl_model c2c_opencl_model;

/* What to open. All fields may be 0: the first GPU, or where there is none the first device. */
typedef struct c2c_opencl_options {
    const char *platform; /* part of the platform's name */
    const char *device;   /* part of the device's name */
    const char *cache;    /* an existing folder that keeps built kernels from one start of the app to the next */
    int profile;          /* not 0: steps are timed (c2c_opencl_times) */
} c2c_opencl_options;

/* Open a device (options NULL: as if all were 0). *device is NULL after an error other than E_LIBRARY, E_DEVICE and
 * E_RUN, after which it only holds the message; c2c_opencl_close takes it in any case. */
int c2c_opencl_open(const c2c_opencl_options *options, c2c_opencl **device);
void c2c_opencl_close(c2c_opencl *device); /* all models must be unloaded; NULL: nothing */

/* The last error of a device in words, with names and the build log; and the device's name. Never NULL. */
const char *c2c_opencl_message(const c2c_opencl *device);
const char *c2c_opencl_name(const c2c_opencl *device);

/* Build a model's kernels, copy its weights to the device and prepare it. *model is NULL after an error; E_DEVICE: the
 * model's work-groups are larger than the device's may be. */
int c2c_opencl_load(c2c_opencl *device, const c2c_plan *plan, const void *weights, size_t bytes,
                    c2c_opencl_model **model);
void c2c_opencl_unload(c2c_opencl_model *model); /* waits for a run that is going on; NULL: nothing */

/* The memory of input or output number `port` (inputs first), for this processor to read and write until the model runs
 * next or is unloaded, and not while it runs. Where device and processor share memory nothing is copied. */
int c2c_opencl_map(c2c_opencl_model *model, uint32_t port, void **address);

/* Run once and wait. inputs, outputs: an address for each of the plan's ports, in order, or C2C_GPU_IN_PLACE. */
int c2c_opencl_run(c2c_opencl_model *model, const void *const *inputs, void *const *outputs);

/* Run without waiting: inputs may be changed when the call returns; `done` is called with an error code once the outputs
 * are written, perhaps on another thread, and may not call into the driver. Steps that the host runs, and those before
 * them, have ended when the call returns. */
int c2c_opencl_start(c2c_opencl_model *model, const void *const *inputs, void *const *outputs,
                     void (*done)(void *user, int error), void *user);

/* Nanoseconds of each of the plan's steps in the last run of a device opened with `profile`. */
int c2c_opencl_times(const c2c_opencl_model *model, uint64_t *nanoseconds);

#ifdef __cplusplus
}
#endif
#endif
