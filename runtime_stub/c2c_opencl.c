/* OpenCL driver; c2c_opencl.h says what each function promises.
 *
 * Types, constants and signatures are those of the OpenCL 1.2 specification; its headers are not needed. */
#include "c2c_opencl.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#define CL_CALL __stdcall
#else
#define CL_CALL
#endif

enum { NAME = 256, DEVICES = 16 };

typedef int32_t cl_int;
typedef uint32_t cl_uint;
typedef uint64_t cl_bits;
typedef void *cl_object; /* platform, device, context, queue, program, kernel, memory, event */
typedef void(CL_CALL *cl_notify)(cl_object event, cl_int status, void *user);

enum { CL_SUCCESS = 0, CL_MEM_OBJECT_ALLOCATION_FAILURE = -4, CL_OUT_OF_RESOURCES = -5, CL_OUT_OF_HOST_MEMORY = -6,
       CL_INVALID_BUFFER_SIZE = -61, CL_COMPLETE = 0 };
enum { CL_PLATFORM_NAME = 0x0902, CL_DEVICE_NAME = 0x102B, CL_DRIVER_VERSION = 0x102D, CL_DEVICE_EXTENSIONS = 0x1030,
       CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004, CL_PROGRAM_BINARY_SIZES = 0x1165, CL_PROGRAM_BINARIES = 0x1166,
       CL_PROGRAM_BUILD_LOG = 0x1183, CL_PROFILING_COMMAND_START = 0x1282, CL_PROFILING_COMMAND_END = 0x1283 };
#define CL_DEVICE_TYPE_GPU ((cl_bits)4)
#define CL_DEVICE_TYPE_ALL ((cl_bits)0xFFFFFFFF)
#define CL_QUEUE_PROFILING_ENABLE ((cl_bits)2)
#define CL_MEM_READ_WRITE ((cl_bits)1)
#define CL_MEM_READ_ONLY ((cl_bits)4)
#define CL_MEM_ALLOC_HOST_PTR ((cl_bits)16)
#define CL_MEM_COPY_HOST_PTR ((cl_bits)32)

/* The functions that are used: result, name, parameters. */
#define FUNCTIONS(F) \
    F(cl_int, clGetPlatformIDs, (cl_uint, cl_object *, cl_uint *)) \
    F(cl_int, clGetPlatformInfo, (cl_object, cl_uint, size_t, void *, size_t *)) \
    F(cl_int, clGetDeviceIDs, (cl_object, cl_bits, cl_uint, cl_object *, cl_uint *)) \
    F(cl_int, clGetDeviceInfo, (cl_object, cl_uint, size_t, void *, size_t *)) \
    F(cl_object, clCreateContext, (const intptr_t *, cl_uint, const cl_object *, void *, void *, cl_int *)) \
    F(cl_int, clReleaseContext, (cl_object)) \
    F(cl_object, clCreateCommandQueue, (cl_object, cl_object, cl_bits, cl_int *)) \
    F(cl_int, clReleaseCommandQueue, (cl_object)) \
    F(cl_object, clCreateBuffer, (cl_object, cl_bits, size_t, void *, cl_int *)) \
    F(cl_int, clReleaseMemObject, (cl_object)) \
    F(cl_object, clCreateProgramWithSource, (cl_object, cl_uint, const char **, const size_t *, cl_int *)) \
    F(cl_object, clCreateProgramWithBinary, \
      (cl_object, cl_uint, const cl_object *, const size_t *, const unsigned char **, cl_int *, cl_int *)) \
    F(cl_int, clBuildProgram, (cl_object, cl_uint, const cl_object *, const char *, void *, void *)) \
    F(cl_int, clGetProgramBuildInfo, (cl_object, cl_object, cl_uint, size_t, void *, size_t *)) \
    F(cl_int, clGetProgramInfo, (cl_object, cl_uint, size_t, void *, size_t *)) \
    F(cl_int, clReleaseProgram, (cl_object)) \
    F(cl_object, clCreateKernel, (cl_object, const char *, cl_int *)) \
    F(cl_int, clReleaseKernel, (cl_object)) \
    F(cl_int, clSetKernelArg, (cl_object, cl_uint, size_t, const void *)) \
    F(cl_int, clEnqueueNDRangeKernel, (cl_object, cl_object, cl_uint, const size_t *, const size_t *, const size_t *, \
                                       cl_uint, const cl_object *, cl_object *)) \
    F(cl_int, clEnqueueWriteBuffer, \
      (cl_object, cl_object, cl_uint, size_t, size_t, const void *, cl_uint, const cl_object *, cl_object *)) \
    F(cl_int, clEnqueueReadBuffer, \
      (cl_object, cl_object, cl_uint, size_t, size_t, void *, cl_uint, const cl_object *, cl_object *)) \
    F(void *, clEnqueueMapBuffer, (cl_object, cl_object, cl_uint, cl_bits, size_t, size_t, cl_uint, const cl_object *, \
                                   cl_object *, cl_int *)) \
    F(cl_int, clEnqueueUnmapMemObject, (cl_object, cl_object, void *, cl_uint, const cl_object *, cl_object *)) \
    F(cl_int, clEnqueueMarkerWithWaitList, (cl_object, cl_uint, const cl_object *, cl_object *)) \
    F(cl_int, clSetEventCallback, (cl_object, cl_int, cl_notify, void *)) \
    F(cl_int, clGetEventProfilingInfo, (cl_object, cl_uint, size_t, void *, size_t *)) \
    F(cl_int, clReleaseEvent, (cl_object)) \
    F(cl_int, clFlush, (cl_object)) \
    F(cl_int, clFinish, (cl_object))

#define POINTER(result, name, parameters) result(CL_CALL *name) parameters;
typedef struct library {
    void *handle;
    FUNCTIONS(POINTER)
} library;

struct c2c_opencl {
    library cl;
    cl_object id, context;
    int profile;
    char name[NAME], driver[NAME], message[C2C_GPU_MESSAGE];
    char *cache;
};

struct c2c_opencl_model {
    c2c_opencl *device;
    const c2c_plan *plan;
    c2c_gpu_walk walk;
    cl_object queue, program;
    cl_object *buffers; /* of the plan's numbers */
    cl_object *kernels; /* one a step, its arguments set */
    cl_object *events;  /* one a step, with profiling */
    void **ports;       /* addresses of inputs and outputs that this processor may use now */
    cl_object last;     /* of c2c_opencl_start */
    int measured;
    void (*done)(void *user, int error);
    void *user;
};

/* --- errors */

/* The error of an OpenCL call that was to do `what`. */
static int failed(c2c_opencl *d, cl_int code, const char *what, const char *name)
{
    int memory = code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_RESOURCES ||
                 code == CL_OUT_OF_HOST_MEMORY || code == CL_INVALID_BUFFER_SIZE;
    return c2c_gpu_fail(d->message, memory ? C2C_GPU_E_MEMORY : C2C_GPU_E_RUN, "%s: cannot %s%s%s (OpenCL error %d)", d->name,
                what, *name ? " " : "", name, (int)code);
}

const char *c2c_opencl_message(const c2c_opencl *device) { return device ? device->message : "out of memory"; }

const char *c2c_opencl_name(const c2c_opencl *device) { return device ? device->name : ""; }

/* --- the library */

static const char *const LIBRARIES[] = {
#ifdef _WIN32
    "OpenCL.dll",
#else
    "libOpenCL.so.1", "libOpenCL.so", "/vendor/lib64/libOpenCL.so", "/system/vendor/lib64/libOpenCL.so",
    "/System/Library/Frameworks/OpenCL.framework/OpenCL",
#endif
    NULL,
};

static int find_functions(c2c_opencl *d)
{
    void *found;
    d->cl.handle = c2c_gpu_library(LIBRARIES);
    if (!d->cl.handle)
        return c2c_gpu_fail(d->message, C2C_GPU_E_LIBRARY, "no OpenCL library was found: install the driver of the device");
#define FIND(result, name, parameters)                                                                     \
    found = c2c_gpu_symbol(d->cl.handle, #name);                                                                   \
    if (!found)                                                                                            \
        return c2c_gpu_fail(d->message, C2C_GPU_E_LIBRARY, "the OpenCL library has no %s: version 1.2 is needed", #name); \
    memcpy(&d->cl.name, &found, sizeof found);
    FUNCTIONS(FIND)
    return C2C_GPU_OK;
}

/* --- the device */

/* The first device of a type whose platform and device have the wanted names. */
static int find_device(c2c_opencl *d, const c2c_opencl_options *o, cl_bits type)
{
    cl_object platforms[DEVICES], devices[DEVICES];
    cl_uint count = 0, more, i, j;
    if (d->cl.clGetPlatformIDs(DEVICES, platforms, &count))
        return 0;
    for (i = 0; i < count && i < DEVICES; i++) {
        char name[NAME] = "";
        d->cl.clGetPlatformInfo(platforms[i], CL_PLATFORM_NAME, sizeof name - 1, name, NULL);
        if (o->platform && !strstr(name, o->platform))
            continue;
        more = 0;
        if (d->cl.clGetDeviceIDs(platforms[i], type, DEVICES, devices, &more))
            continue;
        for (j = 0; j < more && j < DEVICES; j++) {
            memset(d->name, 0, sizeof d->name);
            d->cl.clGetDeviceInfo(devices[j], CL_DEVICE_NAME, sizeof d->name - 1, d->name, NULL);
            if (o->device && !strstr(d->name, o->device))
                continue;
            d->id = devices[j];
            return 1;
        }
    }
    memset(d->name, 0, sizeof d->name);
    return 0;
}

int c2c_opencl_open(const c2c_opencl_options *options, c2c_opencl **device)
{
    static const c2c_opencl_options none = {NULL, NULL, NULL, 0};
    const c2c_opencl_options *o = options ? options : &none;
    c2c_opencl *d;
    cl_int code = 0;
    int error;
    if (!device)
        return C2C_GPU_E_NULL;
    *device = d = (c2c_opencl *)calloc(1, sizeof *d);
    if (!d)
        return C2C_GPU_E_MEMORY;
    error = find_functions(d);
    if (error)
        return error;
    if (!find_device(d, o, CL_DEVICE_TYPE_GPU) && !find_device(d, o, CL_DEVICE_TYPE_ALL))
        return c2c_gpu_fail(d->message, C2C_GPU_E_DEVICE, "there is no OpenCL device%s%s%s%s", o->platform ? " of platform " : "",
                    o->platform ? o->platform : "", o->device ? " with the name " : "", o->device ? o->device : "");
    d->cl.clGetDeviceInfo(d->id, CL_DRIVER_VERSION, sizeof d->driver - 1, d->driver, NULL);
    d->profile = o->profile;
    d->cache = c2c_gpu_copy(o->cache);
    d->context = d->cl.clCreateContext(NULL, 1, &d->id, NULL, NULL, &code);
    return d->context ? C2C_GPU_OK : failed(d, code, "make a context", "");
}

void c2c_opencl_close(c2c_opencl *d)
{
    if (!d)
        return;
    if (d->context)
        d->cl.clReleaseContext(d->context);
    c2c_gpu_library_close(d->cl.handle);
    free(d->cache);
    free(d);
}

/* --- building */

/* A program from the cache, built; NULL where there is none that the device takes. */
static cl_object cached(c2c_opencl *d, const char *path)
{
    size_t size = 0;
    unsigned char *data = (unsigned char *)c2c_gpu_read_file(path, &size);
    const unsigned char *binary = data;
    cl_object program = NULL;
    cl_int code = 0, status = 0;
    if (data)
        program = d->cl.clCreateProgramWithBinary(d->context, 1, &d->id, &size, &binary, &status, &code);
    if (program && (code || status || d->cl.clBuildProgram(program, 1, &d->id, "", NULL, NULL))) {
        d->cl.clReleaseProgram(program);
        program = NULL;
    }
    free(data);
    return program;
}

/* Keep a built program; a failure costs the next start some time and is no error. */
static void keep(c2c_opencl *d, cl_object program, const char *path)
{
    size_t bytes = 0;
    unsigned char *data;
    if (!path || d->cl.clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof bytes, &bytes, NULL) || !bytes)
        return;
    data = (unsigned char *)malloc(bytes);
    if (data && !d->cl.clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof data, &data, NULL))
        c2c_gpu_write_file(path, data, bytes);
    free(data);
}

/* Whether the device's extensions name one. */
static int has_extension(c2c_opencl *d, const char *name)
{
    size_t bytes = 0;
    char *all = NULL;
    int found;
    if (!d->cl.clGetDeviceInfo(d->id, CL_DEVICE_EXTENSIONS, 0, NULL, &bytes))
        all = (char *)calloc(1, bytes + 1);
    found = all && !d->cl.clGetDeviceInfo(d->id, CL_DEVICE_EXTENSIONS, bytes, all, NULL) && strstr(all, name);
    free(all);
    return found;
}

/* Dot products of bytes have their names in OpenCL C 3.0 only; other kernels are built as the device likes best. */
static const char *build_options(c2c_opencl *d, const c2c_plan *plan)
{
    cl_uint i;
    for (i = 0; plan->source[i]; i++)
        if (strstr(plan->source[i], "dot_4x8packed"))
            return has_extension(d, "cl_khr_integer_dot_product") ? "-cl-std=CL3.0" : "";
    return "";
}

static int build(c2c_opencl *d, const c2c_plan *plan, cl_object *program)
{
    char *path = c2c_gpu_cache_path(d->cache, plan, d->name, d->driver);
    cl_uint pieces = 0;
    cl_int code = 0;
    *program = cached(d, path);
    if (*program) {
        free(path);
        return C2C_GPU_OK;
    }
    while (plan->source[pieces])
        pieces++;
    *program = d->cl.clCreateProgramWithSource(d->context, pieces, (const char **)plan->source, NULL, &code);
    if (!*program) {
        free(path);
        return failed(d, code, "read the kernels of", plan->name);
    }
    code = d->cl.clBuildProgram(*program, 1, &d->id, build_options(d, plan), NULL, NULL);
    if (code) {
        int at = snprintf(d->message, sizeof d->message, "%s: the kernels of %s could not be built (OpenCL error %d)\n",
                          d->name, plan->name, (int)code);
        size_t room = sizeof d->message - (size_t)at - 1, whole = 0;
        char *log = NULL;
        d->cl.clGetProgramBuildInfo(*program, d->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &whole);
        log = (char *)calloc(1, whole + 1);
        if (log && !d->cl.clGetProgramBuildInfo(*program, d->id, CL_PROGRAM_BUILD_LOG, whole, log, NULL)) {
            strncpy(d->message + at, log, room);
            d->message[sizeof d->message - 1] = 0;
        }
        free(log);
        free(path);
        return C2C_GPU_E_BUILD;
    }
    keep(d, *program, path);
    free(path);
    return C2C_GPU_OK;
}

/* --- a model */

static int make_buffer(c2c_opencl_model *m, uint32_t number, cl_bits flags, uint64_t bytes, const void *data)
{
    c2c_opencl *d = m->device;
    cl_int code = 0;
    if (bytes > (size_t)-1 - 64)
        return failed(d, CL_INVALID_BUFFER_SIZE, "make the memory of", m->plan->name);
    m->buffers[number] = d->cl.clCreateBuffer(d->context, flags | (data ? CL_MEM_COPY_HOST_PTR : 0),
                                              bytes ? (size_t)bytes : 64, (void *)data, &code);
    return m->buffers[number] ? C2C_GPU_OK : failed(d, code, "make the memory of", m->plan->name);
}

static int make_buffers(c2c_opencl_model *m, const void *weights)
{
    const c2c_plan *p = m->plan;
    uint32_t i;
    int error = make_buffer(m, C2C_PLAN_ARENA, CL_MEM_READ_WRITE, p->arena_bytes, NULL);
    if (!error)
        error = make_buffer(m, C2C_PLAN_WEIGHTS, CL_MEM_READ_ONLY, p->weights_bytes, p->weights_bytes ? weights : NULL);
    if (!error)
        error = make_buffer(m, C2C_PLAN_PREPARED, CL_MEM_READ_WRITE, p->prepared_bytes, NULL);
    for (i = 0; !error && i < p->inputs + p->outputs; i++)
        error = make_buffer(m, C2C_PLAN_PORTS + i, CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR, p->ports[i].bytes, NULL);
    return error;
}

static int make_kernel(c2c_opencl_model *m, uint32_t number)
{
    c2c_opencl *d = m->device;
    const c2c_plan_step *step = &m->plan->steps[number];
    const char *name = m->plan->kernels[step->kernel].name;
    cl_int code = 0;
    uint32_t i;
    m->kernels[number] = d->cl.clCreateKernel(m->program, name, &code);
    if (!m->kernels[number])
        return failed(d, code, "make kernel", name);
    for (i = 0; i < step->count; i++) {
        const c2c_plan_arg *arg = &m->plan->args[step->first + i];
        code = d->cl.clSetKernelArg(m->kernels[number], 2 * i, sizeof(cl_object), &m->buffers[arg->buffer]);
        if (!code)
            code = d->cl.clSetKernelArg(m->kernels[number], 2 * i + 1, sizeof arg->at, &arg->at);
        if (code)
            return failed(d, code, "set an argument of", name);
    }
    return C2C_GPU_OK;
}

static int enqueue(void *self, uint32_t number)
{
    c2c_opencl_model *m = (c2c_opencl_model *)self;
    c2c_opencl *d = m->device;
    const c2c_plan_kernel *k = &m->plan->kernels[m->plan->steps[number].kernel];
    size_t threads[3], group[3];
    cl_int code;
    int i;
    for (i = 0; i < 3; i++) {
        threads[i] = k->threads[i];
        group[i] = k->group[i];
    }
    code = d->cl.clEnqueueNDRangeKernel(m->queue, m->kernels[number], 3, NULL, threads, group, 0, NULL,
                                        m->events ? &m->events[number] : NULL);
    return code ? failed(d, code, "run", m->plan->steps[number].node) : C2C_GPU_OK;
}

static void release_events(c2c_opencl_model *m)
{
    uint32_t i;
    for (i = 0; m->events && i < m->plan->step_count; i++)
        if (m->events[i]) {
            m->device->cl.clReleaseEvent(m->events[i]);
            m->events[i] = NULL;
        }
}

static int prepare(c2c_opencl_model *m)
{
    c2c_opencl *d = m->device;
    int error = c2c_gpu_walk_steps(&m->walk, 0, m->plan->prepares);
    cl_int code = d->cl.clFinish(m->queue);
    return error ? error : code ? failed(d, code, "prepare", m->plan->name) : C2C_GPU_OK;
}

/* --- steps of the host */

/* All steps before have ended once memory is mapped: the queue keeps the order. */
static int map(void *self, const c2c_plan_span *s, char **address)
{
    c2c_opencl_model *m = (c2c_opencl_model *)self;
    cl_int code = 0;
    *address = (char *)m->device->cl.clEnqueueMapBuffer(m->queue, m->buffers[s->buffer], 1, s->access, (size_t)s->begin,
                                                        (size_t)s->bytes, 0, NULL, NULL, &code);
    return *address ? C2C_GPU_OK : failed(m->device, code, "map the memory of", m->plan->name);
}

static int unmap(void *self, const c2c_plan_span *s, char *address)
{
    c2c_opencl_model *m = (c2c_opencl_model *)self;
    cl_int code = m->device->cl.clEnqueueUnmapMemObject(m->queue, m->buffers[s->buffer], address, 0, NULL, NULL);
    return code ? failed(m->device, code, "give memory back to", m->device->name) : C2C_GPU_OK;
}

/* Inputs and outputs that this processor may use, for the device again. */
static int take_back(c2c_opencl_model *m)
{
    int error = C2C_GPU_OK;
    uint32_t i;
    for (i = 0; i < m->plan->inputs + m->plan->outputs; i++) {
        cl_int code = 0;
        if (m->ports[i])
            code = m->device->cl.clEnqueueUnmapMemObject(m->queue, m->buffers[C2C_PLAN_PORTS + i], m->ports[i], 0, NULL,
                                                         NULL);
        m->ports[i] = NULL;
        if (code && !error)
            error = failed(m->device, code, "give memory back to", m->device->name);
    }
    return error;
}

int c2c_opencl_map(c2c_opencl_model *m, uint32_t port, void **address)
{
    cl_int code = 0;
    uint64_t bytes;
    if (!m || !address || port >= m->plan->inputs + m->plan->outputs)
        return C2C_GPU_E_NULL;
    bytes = m->plan->ports[port].bytes;
    if (!m->ports[port])
        m->ports[port] = m->device->cl.clEnqueueMapBuffer(m->queue, m->buffers[C2C_PLAN_PORTS + port], 1, 3, 0,
                                                          bytes ? (size_t)bytes : 1, 0, NULL, NULL, &code);
    *address = m->ports[port];
    return *address ? C2C_GPU_OK : failed(m->device, code, "map the memory of", m->plan->ports[port].name);
}

/* Whether the device runs work-groups as large as the plan's. */
static int check_groups(c2c_opencl *d, const c2c_plan *p)
{
    size_t most = 0;
    d->cl.clGetDeviceInfo(d->id, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof most, &most, NULL);
    return c2c_gpu_check_groups(d->message, d->name, p, most);
}

static int load(c2c_opencl_model *m, const void *weights)
{
    c2c_opencl *d = m->device;
    const c2c_plan *p = m->plan;
    cl_int code = 0;
    uint32_t i;
    int error;
    m->buffers = (cl_object *)calloc(C2C_PLAN_PORTS + p->inputs + p->outputs, sizeof(cl_object));
    m->kernels = (cl_object *)calloc(p->step_count + 1, sizeof(cl_object));
    m->ports = (void **)calloc(p->inputs + p->outputs + 1, sizeof(void *));
    if (d->profile)
        m->events = (cl_object *)calloc(p->step_count + 1, sizeof(cl_object));
    if (!m->buffers || !m->kernels || !m->ports || (d->profile && !m->events))
        return c2c_gpu_fail(d->message, C2C_GPU_E_MEMORY, "out of memory");
    error = c2c_gpu_walk_open(&m->walk, d->message, d->profile);
    if (error)
        return error;
    m->queue = d->cl.clCreateCommandQueue(d->context, d->id, d->profile ? CL_QUEUE_PROFILING_ENABLE : 0, &code);
    if (!m->queue)
        return failed(d, code, "make a queue for", p->name);
    error = check_groups(d, p);
    if (!error)
        error = make_buffers(m, weights);
    if (!error && p->kernel_count)
        error = build(d, p, &m->program);
    for (i = 0; !error && i < p->step_count; i++)
        if (!p->steps[i].host)
            error = make_kernel(m, i);
    return error ? error : prepare(m);
}

int c2c_opencl_load(c2c_opencl *d, const c2c_plan *plan, const void *weights, size_t bytes, c2c_opencl_model **model)
{
    c2c_opencl_model *m;
    int error;
    if (!d || !plan || !model || (!weights && plan->weights_bytes))
        return C2C_GPU_E_NULL;
    *model = NULL;
    error = c2c_gpu_check_weights(d->message, plan, weights, bytes);
    if (error)
        return error;
    m = (c2c_opencl_model *)calloc(1, sizeof *m);
    if (!m)
        return c2c_gpu_fail(d->message, C2C_GPU_E_MEMORY, "out of memory");
    m->device = d;
    m->plan = m->walk.plan = plan;
    m->walk.self = m;
    m->walk.launch = enqueue;
    m->walk.map = map;
    m->walk.unmap = unmap;
    error = load(m, weights);
    if (error)
        c2c_opencl_unload(m);
    else
        *model = m;
    return error;
}

void c2c_opencl_unload(c2c_opencl_model *m)
{
    library *cl;
    uint32_t i;
    if (!m)
        return;
    cl = &m->device->cl;
    if (m->queue)
        cl->clFinish(m->queue);
    release_events(m);
    if (m->ports)
        take_back(m);
    if (m->last)
        cl->clReleaseEvent(m->last);
    for (i = 0; m->kernels && i < m->plan->step_count; i++)
        if (m->kernels[i])
            cl->clReleaseKernel(m->kernels[i]);
    for (i = 0; m->buffers && i < C2C_PLAN_PORTS + m->plan->inputs + m->plan->outputs; i++)
        if (m->buffers[i])
            cl->clReleaseMemObject(m->buffers[i]);
    if (m->program)
        cl->clReleaseProgram(m->program);
    if (m->queue)
        cl->clReleaseCommandQueue(m->queue);
    free(m->events);
    c2c_gpu_walk_close(&m->walk);
    free(m->ports);
    free(m->kernels);
    free(m->buffers);
    free(m);
}

/* --- running */

/* Copies and steps of one run, in the queue; the event of its end where `last` is not NULL. */
static int submit(c2c_opencl_model *m, const void *const *inputs, void *const *outputs, cl_object *last)
{
    c2c_opencl *d = m->device;
    const c2c_plan *p = m->plan;
    uint32_t i, from = C2C_PLAN_PORTS + p->inputs;
    cl_int code;
    int error = c2c_gpu_check_ports(d->message, p, inputs, outputs);
    if (!error)
        error = take_back(m);
    if (error)
        return error;
    for (i = 0; i < p->inputs; i++) {
        if (!p->ports[i].bytes || inputs[i] == C2C_GPU_IN_PLACE)
            continue;
        code = d->cl.clEnqueueWriteBuffer(m->queue, m->buffers[C2C_PLAN_PORTS + i], last != NULL, 0,
                                          (size_t)p->ports[i].bytes, inputs[i], 0, NULL, NULL);
        if (code)
            return failed(d, code, "copy input", p->ports[i].name);
    }
    release_events(m);
    m->measured = 0;
    error = c2c_gpu_walk_steps(&m->walk, p->prepares, p->step_count);
    for (i = 0; !error && i < p->outputs; i++) {
        uint64_t bytes = p->ports[p->inputs + i].bytes;
        if (!bytes || outputs[i] == C2C_GPU_IN_PLACE)
            continue;
        code = d->cl.clEnqueueReadBuffer(m->queue, m->buffers[from + i], 0, 0, (size_t)bytes, outputs[i], 0, NULL, NULL);
        if (code)
            error = failed(d, code, "copy output", p->ports[p->inputs + i].name);
    }
    if (!error && last) {
        code = d->cl.clEnqueueMarkerWithWaitList(m->queue, 0, NULL, last);
        if (code)
            error = failed(d, code, "run", p->name);
    }
    return error;
}

int c2c_opencl_run(c2c_opencl_model *m, const void *const *inputs, void *const *outputs)
{
    cl_int code;
    int error;
    if (!m || !inputs || !outputs)
        return C2C_GPU_E_NULL;
    error = submit(m, inputs, outputs, NULL);
    code = m->device->cl.clFinish(m->queue);
    if (!error && code)
        error = failed(m->device, code, "finish", m->plan->name);
    m->measured = !error;
    return error;
}

static void CL_CALL notify(cl_object event, cl_int status, void *user)
{
    c2c_opencl_model *m = (c2c_opencl_model *)user;
    (void)event;
    m->measured = status == CL_COMPLETE;
    m->done(m->user, status == CL_COMPLETE ? C2C_GPU_OK : C2C_GPU_E_RUN);
}

int c2c_opencl_start(c2c_opencl_model *m, const void *const *inputs, void *const *outputs,
                     void (*done)(void *user, int error), void *user)
{
    c2c_opencl *d;
    cl_int code;
    int error;
    if (!m || !inputs || !outputs || !done)
        return C2C_GPU_E_NULL;
    d = m->device;
    if (m->last) {
        d->cl.clFinish(m->queue);
        d->cl.clReleaseEvent(m->last);
        m->last = NULL;
    }
    m->done = done;
    m->user = user;
    error = submit(m, inputs, outputs, &m->last);
    if (error) {
        d->cl.clFinish(m->queue);
        return error;
    }
    code = d->cl.clSetEventCallback(m->last, CL_COMPLETE, notify, m);
    if (!code)
        code = d->cl.clFlush(m->queue);
    return code ? failed(d, code, "start", m->plan->name) : C2C_GPU_OK;
}

int c2c_opencl_times(const c2c_opencl_model *m, uint64_t *nanoseconds)
{
    uint32_t i;
    if (!m || !nanoseconds)
        return C2C_GPU_E_NULL;
    if (!m->events || !m->measured)
        return c2c_gpu_fail(m->device->message, C2C_GPU_E_RUN, "%s: no run was timed; open the device with `profile`", m->plan->name);
    for (i = 0; i < m->plan->step_count; i++) {
        uint64_t begin = 0, end = 0;
        cl_int code = 0;
        nanoseconds[i] = m->walk.host[i];
        if (!m->events[i])
            continue;
        code = m->device->cl.clGetEventProfilingInfo(m->events[i], CL_PROFILING_COMMAND_START, sizeof begin, &begin, NULL);
        if (!code)
            code = m->device->cl.clGetEventProfilingInfo(m->events[i], CL_PROFILING_COMMAND_END, sizeof end, &end, NULL);
        if (code)
            return failed(m->device, code, "time", m->plan->steps[i].node);
        nanoseconds[i] = end - begin;
    }
    return C2C_GPU_OK;
}
