/* CUDA driver; c2c_cuda.h says what each function promises.
 *
 * Types, constants and signatures are those of the CUDA Driver API 11 and of NVRTC; their headers are not needed. */
#include "c2c_cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#define CU_CALL __stdcall
#else
#define CU_CALL
#endif

enum { NAME = 256, GROUPS_ALONG = 65535 };
enum { INVALID_OPTION = 5, KNOWN_TO_ALL = 75 }; /* of NVRTC: an error; what versions 11 to 13 know */
enum { OUT_OF_MEMORY = 2, MAX_THREADS_PER_BLOCK = 1, COMPUTE_MAJOR = 75, COMPUTE_MINOR = 76 };

typedef int code;
typedef void *object; /* context, stream, module, function, event, NVRTC program */
typedef unsigned long long pointer;
typedef void(CU_CALL *notify_type)(object stream, code status, void *user);

/* The functions that are used: name, parameters. */
#define FUNCTIONS(F) \
    F(cuInit, (unsigned)) \
    F(cuDriverGetVersion, (int *)) \
    F(cuDeviceGetCount, (int *)) \
    F(cuDeviceGet, (int *, int)) \
    F(cuDeviceGetName, (char *, int, int)) \
    F(cuDeviceGetAttribute, (int *, int, int)) \
    F(cuDevicePrimaryCtxRetain, (object *, int)) \
    F(cuDevicePrimaryCtxRelease, (int)) \
    F(cuCtxPushCurrent_v2, (object)) \
    F(cuCtxPopCurrent_v2, (object *)) \
    F(cuStreamCreate, (object *, unsigned)) \
    F(cuStreamDestroy_v2, (object)) \
    F(cuStreamSynchronize, (object)) \
    F(cuStreamAddCallback, (object, notify_type, void *, unsigned)) \
    F(cuMemAlloc_v2, (pointer *, size_t)) \
    F(cuMemFree_v2, (pointer)) \
    F(cuMemHostAlloc, (void **, size_t, unsigned)) \
    F(cuMemFreeHost, (void *)) \
    F(cuMemcpyHtoDAsync_v2, (pointer, const void *, size_t, object)) \
    F(cuMemcpyDtoHAsync_v2, (void *, pointer, size_t, object)) \
    F(cuModuleLoadData, (object *, const void *)) \
    F(cuModuleUnload, (object)) \
    F(cuModuleGetFunction, (object *, object, const char *)) \
    F(cuLaunchKernel, (object, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, object, void **, \
                       void **)) \
    F(cuEventCreate, (object *, unsigned)) \
    F(cuEventDestroy_v2, (object)) \
    F(cuEventRecord, (object, object)) \
    F(cuEventElapsedTime, (float *, object, object))

#define NVRTC_FUNCTIONS(F) \
    F(nvrtcCreateProgram, (object *, const char *, const char *, int, const char *const *, const char *const *)) \
    F(nvrtcDestroyProgram, (object *)) \
    F(nvrtcCompileProgram, (object, int, const char *const *)) \
    F(nvrtcGetPTXSize, (object, size_t *)) \
    F(nvrtcGetPTX, (object, char *)) \
    F(nvrtcGetProgramLogSize, (object, size_t *)) \
    F(nvrtcGetProgramLog, (object, char *))

#define POINTER(name, parameters) code(CU_CALL *name) parameters;
typedef struct library {
    void *handle;
    FUNCTIONS(POINTER)
} library;
typedef struct compiler {
    void *handle;
    NVRTC_FUNCTIONS(POINTER)
} compiler;

struct c2c_cuda {
    library cu;
    object context;
    int id, profile, major, minor;
    char name[NAME], message[C2C_GPU_MESSAGE];
    char *cache;
};

struct c2c_cuda_model {
    c2c_cuda *device;
    const c2c_plan *plan;
    c2c_gpu_walk walk;
    object stream, module;
    pointer *buffers;  /* of the plan's numbers */
    void **ports;      /* pinned memory of inputs and outputs, once it is asked for */
    object *functions; /* one a kernel */
    object *events;    /* two a step, with profiling */
    int measured;
    void *const *outputs; /* of c2c_cuda_start, copied */
    void (*done)(void *user, int error);
    void *user;
};

/* --- errors */

/* The error of a CUDA call that was to do `what`. */
static int failed(c2c_cuda *d, code error, const char *what, const char *name)
{
    return c2c_gpu_fail(d->message, error == OUT_OF_MEMORY ? C2C_GPU_E_MEMORY : C2C_GPU_E_RUN,
                        "%s: cannot %s%s%s (CUDA error %d)", d->name, what, *name ? " " : "", name, error);
}

const char *c2c_cuda_message(const c2c_cuda *device) { return device ? device->message : "out of memory"; }

const char *c2c_cuda_name(const c2c_cuda *device) { return device ? device->name : ""; }

/* --- libraries */

static const char *const DRIVERS[] = {
#ifdef _WIN32
    "nvcuda.dll",
#else
    "libcuda.so.1", "libcuda.so",
#endif
    NULL,
};

static const char *const COMPILERS[] = {
#ifdef _WIN32
    "nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll",
#else
    "libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2",
#endif
    NULL,
};

#define FIND(name, parameters)                                                                                       \
    found = c2c_gpu_symbol(l->handle, #name);                                                                        \
    if (!found)                                                                                                      \
        return c2c_gpu_fail(d->message, C2C_GPU_E_LIBRARY, "the library has no %s: CUDA 11 is needed", #name);       \
    memcpy(&l->name, &found, sizeof found);

static int find_driver(c2c_cuda *d, library *l)
{
    void *found;
    l->handle = c2c_gpu_library(DRIVERS);
    if (!l->handle)
        return c2c_gpu_fail(d->message, C2C_GPU_E_LIBRARY, "no CUDA library was found: install NVIDIA's driver");
    FUNCTIONS(FIND)
    return C2C_GPU_OK;
}

static int find_compiler(c2c_cuda *d, compiler *l)
{
    void *found;
    l->handle = c2c_gpu_library(COMPILERS);
    if (!l->handle)
        return c2c_gpu_fail(d->message, C2C_GPU_E_LIBRARY, "no CUDA compiler was found: install NVRTC, or give a cache "
                            "folder that has the kernels");
    NVRTC_FUNCTIONS(FIND)
    return C2C_GPU_OK;
}

/* --- the device */

static int find_device(c2c_cuda *d, const char *wanted)
{
    int count = 0, i;
    if (d->cu.cuInit(0) || d->cu.cuDeviceGetCount(&count))
        count = 0;
    for (i = 0; i < count; i++) {
        memset(d->name, 0, sizeof d->name);
        if (d->cu.cuDeviceGet(&d->id, i) || d->cu.cuDeviceGetName(d->name, sizeof d->name - 1, d->id))
            continue;
        if (!wanted || strstr(d->name, wanted))
            return 1;
    }
    memset(d->name, 0, sizeof d->name);
    return 0;
}

int c2c_cuda_open(const c2c_cuda_options *options, c2c_cuda **device)
{
    static const c2c_cuda_options none = {NULL, NULL, 0};
    const c2c_cuda_options *o = options ? options : &none;
    c2c_cuda *d;
    code error;
    if (!device)
        return C2C_GPU_E_NULL;
    *device = d = (c2c_cuda *)calloc(1, sizeof *d);
    if (!d)
        return C2C_GPU_E_MEMORY;
    error = find_driver(d, &d->cu);
    if (error)
        return error;
    if (!find_device(d, o->device))
        return c2c_gpu_fail(d->message, C2C_GPU_E_DEVICE, "there is no CUDA device%s%s",
                            o->device ? " with the name " : "", o->device ? o->device : "");
    d->profile = o->profile;
    d->cache = c2c_gpu_copy(o->cache);
    error = d->cu.cuDeviceGetAttribute(&d->major, COMPUTE_MAJOR, d->id);
    if (!error)
        error = d->cu.cuDeviceGetAttribute(&d->minor, COMPUTE_MINOR, d->id);
    if (!error)
        error = d->cu.cuDevicePrimaryCtxRetain(&d->context, d->id);
    return error ? failed(d, error, "make a context", "") : C2C_GPU_OK;
}

void c2c_cuda_close(c2c_cuda *d)
{
    if (!d)
        return;
    if (d->context)
        d->cu.cuDevicePrimaryCtxRelease(d->id);
    c2c_gpu_library_close(d->cu.handle);
    free(d->cache);
    free(d);
}

/* The device's context is this thread's for as long as a call takes. */
static int enter(c2c_cuda *d)
{
    code error = d->cu.cuCtxPushCurrent_v2(d->context);
    return error ? failed(d, error, "enter the context", "") : C2C_GPU_OK;
}

static void leave(c2c_cuda *d)
{
    object none;
    d->cu.cuCtxPopCurrent_v2(&none);
}

/* --- building */

/* What the compiler says, behind a first line. */
static int refused(c2c_cuda *d, compiler *c, object program, const c2c_plan *plan, code error)
{
    int at = snprintf(d->message, sizeof d->message, "%s: the kernels of %s could not be built (NVRTC error %d)\n",
                      d->name, plan->name, error);
    size_t room = sizeof d->message - (size_t)at - 1, whole = 0;
    char *log = NULL;
    if (!c->nvrtcGetProgramLogSize(program, &whole))
        log = (char *)calloc(1, whole + 1);
    if (log && !c->nvrtcGetProgramLog(program, log)) {
        strncpy(d->message + at, log, room);
        d->message[sizeof d->message - 1] = 0;
    }
    free(log);
    return C2C_GPU_E_BUILD;
}

/* Compile the text for the device; for one that is newer than the compiler, as for its elders. */
static code try_compile(c2c_cuda *d, compiler *c, const char *text, const char *name, object *program)
{
    char architecture[64];
    const char *options[] = {architecture, "--fmad=false"}; /* multiply-adds are written out */
    int number = 10 * d->major + d->minor;
    code status;
    for (;;) {
        snprintf(architecture, sizeof architecture, "--gpu-architecture=compute_%d", number);
        status = c->nvrtcCreateProgram(program, text, name, 0, NULL, NULL);
        if (!status)
            status = c->nvrtcCompileProgram(*program, 2, options);
        if (status != INVALID_OPTION || number <= KNOWN_TO_ALL)
            return status;
        c->nvrtcDestroyProgram(program);
        *program = NULL;
        number = KNOWN_TO_ALL;
    }
}

/* PTX of the plan's text, to be freed. */
static int compile(c2c_cuda *d, compiler *c, const c2c_plan *plan, char **ptx, size_t *bytes)
{
    char *text = c2c_gpu_source(plan);
    object program = NULL;
    int error;
    code status;
    if (!text)
        return c2c_gpu_fail(d->message, C2C_GPU_E_MEMORY, "out of memory");
    status = try_compile(d, c, text, plan->name, &program);
    free(text);
    if (!program)
        return failed(d, status, "read the kernels of", plan->name);
    error = status ? refused(d, c, program, plan, status) : C2C_GPU_OK;
    if (!error && (status = c->nvrtcGetPTXSize(program, bytes)) != 0)
        error = failed(d, status, "build the kernels of", plan->name);
    if (!error) {
        *ptx = (char *)calloc(1, *bytes + 1);
        status = *ptx ? c->nvrtcGetPTX(program, *ptx) : OUT_OF_MEMORY;
        if (status)
            error = failed(d, status, "build the kernels of", plan->name);
    }
    c->nvrtcDestroyProgram(&program);
    return error;
}

static int build(c2c_cuda *d, const c2c_plan *plan, object *module)
{
    compiler c;
    char version[32], *path, *ptx;
    size_t bytes = 0;
    int number = 0, error = C2C_GPU_OK;
    code status;
    d->cu.cuDriverGetVersion(&number);
    snprintf(version, sizeof version, "%d sm_%d%d", number, d->major, d->minor);
    path = c2c_gpu_cache_path(d->cache, plan, d->name, version);
    ptx = (char *)c2c_gpu_read_file(path, &bytes);
    if (!ptx || d->cu.cuModuleLoadData(module, ptx)) {
        *module = NULL;
        free(ptx);
        ptx = NULL;
        memset(&c, 0, sizeof c);
        error = find_compiler(d, &c);
        if (!error)
            error = compile(d, &c, plan, &ptx, &bytes);
        c2c_gpu_library_close(c.handle);
        if (!error && (status = d->cu.cuModuleLoadData(module, ptx)) != 0)
            error = failed(d, status, "load the kernels of", plan->name);
        if (!error)
            c2c_gpu_write_file(path, ptx, bytes);
    }
    free(ptx);
    free(path);
    return error;
}

/* --- a model */

static int make_buffer(c2c_cuda_model *m, uint32_t number, uint64_t bytes)
{
    code error = bytes > (size_t)-1 - 64 ? OUT_OF_MEMORY
                                         : m->device->cu.cuMemAlloc_v2(&m->buffers[number], bytes ? (size_t)bytes : 64);
    return error ? failed(m->device, error, "make the memory of", m->plan->name) : C2C_GPU_OK;
}

static int make_buffers(c2c_cuda_model *m, const void *weights)
{
    c2c_cuda *d = m->device;
    const c2c_plan *p = m->plan;
    uint32_t i;
    int error = make_buffer(m, C2C_PLAN_ARENA, p->arena_bytes);
    if (!error)
        error = make_buffer(m, C2C_PLAN_WEIGHTS, p->weights_bytes);
    if (!error)
        error = make_buffer(m, C2C_PLAN_PREPARED, p->prepared_bytes);
    for (i = 0; !error && i < p->inputs + p->outputs; i++)
        error = make_buffer(m, C2C_PLAN_PORTS + i, p->ports[i].bytes);
    if (!error && p->weights_bytes) {
        code status = d->cu.cuMemcpyHtoDAsync_v2(m->buffers[C2C_PLAN_WEIGHTS], weights, (size_t)p->weights_bytes, m->stream);
        if (!status)
            status = d->cu.cuStreamSynchronize(m->stream);
        if (status)
            error = failed(d, status, "copy the weights of", p->name);
    }
    return error;
}

/* Groups beyond what the second and third dimension take lie along the first, as the kernels expect. */
static int launch(void *self, uint32_t number)
{
    c2c_cuda_model *m = (c2c_cuda_model *)self;
    const c2c_plan_step *step = &m->plan->steps[number];
    const c2c_plan_kernel *k = &m->plan->kernels[step->kernel];
    pointer at[64];
    void *arguments[64];
    unsigned groups[3], i;
    code error = 0;
    if (step->count > 64)
        return failed(m->device, 1, "pass so many arguments to", k->name);
    for (i = 0; i < step->count; i++) {
        const c2c_plan_arg *a = &m->plan->args[step->first + i];
        at[i] = m->buffers[a->buffer] + (uint64_t)a->at * a->size;
        arguments[i] = &at[i];
    }
    for (i = 0; i < 3; i++)
        groups[i] = k->threads[i] / k->group[i];
    if (groups[1] > GROUPS_ALONG || groups[2] > GROUPS_ALONG) {
        groups[0] *= groups[1] * groups[2];
        groups[1] = groups[2] = 1;
    }
    if (m->events)
        error = m->device->cu.cuEventRecord(m->events[2 * number], m->stream);
    if (!error)
        error = m->device->cu.cuLaunchKernel(m->functions[step->kernel], groups[0], groups[1], groups[2], k->group[0],
                                             k->group[1], k->group[2], 0, m->stream, arguments, NULL);
    if (!error && m->events)
        error = m->device->cu.cuEventRecord(m->events[2 * number + 1], m->stream);
    return error ? failed(m->device, error, "run", step->node) : C2C_GPU_OK;
}

static int map(void *self, const c2c_plan_span *s, char **address)
{
    c2c_cuda_model *m = (c2c_cuda_model *)self;
    code error;
    *address = (char *)malloc((size_t)s->bytes + 1);
    if (!*address)
        return c2c_gpu_fail(m->device->message, C2C_GPU_E_MEMORY, "out of memory");
    error = m->device->cu.cuMemcpyDtoHAsync_v2(*address, m->buffers[s->buffer] + s->begin, (size_t)s->bytes, m->stream);
    if (!error)
        error = m->device->cu.cuStreamSynchronize(m->stream);
    if (!error)
        return C2C_GPU_OK;
    free(*address);
    return failed(m->device, error, "map the memory of", m->plan->name);
}

static int unmap(void *self, const c2c_plan_span *s, char *address)
{
    c2c_cuda_model *m = (c2c_cuda_model *)self;
    code error = 0;
    if (s->access & 2)
        error = m->device->cu.cuMemcpyHtoDAsync_v2(m->buffers[s->buffer] + s->begin, address, (size_t)s->bytes, m->stream);
    if (!error && s->access & 2)
        error = m->device->cu.cuStreamSynchronize(m->stream);
    free(address);
    return error ? failed(m->device, error, "give memory back to", m->device->name) : C2C_GPU_OK;
}

static int make_functions(c2c_cuda_model *m)
{
    c2c_cuda *d = m->device;
    uint32_t i;
    for (i = 0; i < m->plan->kernel_count; i++) {
        code error = d->cu.cuModuleGetFunction(&m->functions[i], m->module, m->plan->kernels[i].name);
        if (error)
            return failed(d, error, "make kernel", m->plan->kernels[i].name);
    }
    for (i = 0; m->events && i < 2 * m->plan->step_count; i++) {
        code error = d->cu.cuEventCreate(&m->events[i], 0);
        if (error)
            return failed(d, error, "make an event for", m->plan->name);
    }
    return C2C_GPU_OK;
}

static int finish(c2c_cuda_model *m, int error)
{
    code status = m->device->cu.cuStreamSynchronize(m->stream);
    return error ? error : status ? failed(m->device, status, "finish", m->plan->name) : C2C_GPU_OK;
}

static int load(c2c_cuda_model *m, const void *weights)
{
    c2c_cuda *d = m->device;
    const c2c_plan *p = m->plan;
    int most = 0, error;
    code status;
    m->buffers = (pointer *)calloc(C2C_PLAN_PORTS + p->inputs + p->outputs, sizeof(pointer));
    m->ports = (void **)calloc(p->inputs + p->outputs + 1, sizeof(void *));
    m->outputs = (void *const *)calloc(p->outputs + 1, sizeof(void *));
    m->functions = (object *)calloc(p->kernel_count + 1, sizeof(object));
    if (d->profile)
        m->events = (object *)calloc(2 * p->step_count + 1, sizeof(object));
    if (!m->buffers || !m->ports || !m->outputs || !m->functions || (d->profile && !m->events))
        return c2c_gpu_fail(d->message, C2C_GPU_E_MEMORY, "out of memory");
    error = c2c_gpu_walk_open(&m->walk, d->message, d->profile);
    if (error)
        return error;
    status = d->cu.cuStreamCreate(&m->stream, 1);
    if (status)
        return failed(d, status, "make a queue for", p->name);
    status = d->cu.cuDeviceGetAttribute(&most, MAX_THREADS_PER_BLOCK, d->id);
    error = status ? failed(d, status, "ask", d->name) : c2c_gpu_check_groups(d->message, d->name, p, (size_t)most);
    if (!error)
        error = make_buffers(m, weights);
    if (!error && p->kernel_count)
        error = build(d, p, &m->module);
    if (!error)
        error = make_functions(m);
    return error ? error : finish(m, c2c_gpu_walk_steps(&m->walk, 0, p->prepares));
}

int c2c_cuda_load(c2c_cuda *d, const c2c_plan *plan, const void *weights, size_t bytes, c2c_cuda_model **model)
{
    c2c_cuda_model *m;
    int error;
    if (!d || !plan || !model || (!weights && plan->weights_bytes))
        return C2C_GPU_E_NULL;
    *model = NULL;
    error = c2c_gpu_check_weights(d->message, plan, weights, bytes);
    if (error)
        return error;
    m = (c2c_cuda_model *)calloc(1, sizeof *m);
    if (!m)
        return c2c_gpu_fail(d->message, C2C_GPU_E_MEMORY, "out of memory");
    m->device = d;
    m->plan = m->walk.plan = plan;
    m->walk.self = m;
    m->walk.launch = launch;
    m->walk.map = map;
    m->walk.unmap = unmap;
    error = enter(d);
    if (!error) {
        error = load(m, weights);
        leave(d);
    }
    if (error)
        c2c_cuda_unload(m);
    else
        *model = m;
    return error;
}

static void release(c2c_cuda_model *m)
{
    library *cu = &m->device->cu;
    uint32_t i, ports = m->plan->inputs + m->plan->outputs;
    if (m->stream)
        cu->cuStreamSynchronize(m->stream);
    for (i = 0; m->events && i < 2 * m->plan->step_count; i++)
        if (m->events[i])
            cu->cuEventDestroy_v2(m->events[i]);
    for (i = 0; m->ports && i < ports; i++)
        if (m->ports[i])
            cu->cuMemFreeHost(m->ports[i]);
    for (i = 0; m->buffers && i < C2C_PLAN_PORTS + ports; i++)
        if (m->buffers[i])
            cu->cuMemFree_v2(m->buffers[i]);
    if (m->module)
        cu->cuModuleUnload(m->module);
    if (m->stream)
        cu->cuStreamDestroy_v2(m->stream);
}

void c2c_cuda_unload(c2c_cuda_model *m)
{
    int entered;
    if (!m)
        return;
    entered = !m->device->cu.cuCtxPushCurrent_v2(m->device->context);
    release(m);
    if (entered)
        leave(m->device);
    c2c_gpu_walk_close(&m->walk);
    free(m->events);
    free(m->functions);
    free((void *)m->outputs);
    free(m->ports);
    free(m->buffers);
    free(m);
}

/* --- running */

/* Pinned memory of an input or output. */
static int pin(c2c_cuda_model *m, uint32_t port)
{
    uint64_t bytes = m->plan->ports[port].bytes;
    code error = m->ports[port] ? 0 : m->device->cu.cuMemHostAlloc(&m->ports[port], bytes ? (size_t)bytes : 64, 0);
    return error ? failed(m->device, error, "map the memory of", m->plan->ports[port].name) : C2C_GPU_OK;
}

int c2c_cuda_map(c2c_cuda_model *m, uint32_t port, void **address)
{
    int error;
    if (!m || !address || port >= m->plan->inputs + m->plan->outputs)
        return C2C_GPU_E_NULL;
    *address = NULL;
    error = enter(m->device);
    if (error)
        return error;
    error = finish(m, pin(m, port));
    leave(m->device);
    if (!error)
        *address = m->ports[port];
    return error;
}

static int copy_in(c2c_cuda_model *m, const void *const *inputs)
{
    const c2c_plan *p = m->plan;
    uint32_t i;
    for (i = 0; i < p->inputs; i++) {
        const void *from = inputs[i] == C2C_GPU_IN_PLACE ? m->ports[i] : inputs[i];
        code error;
        if (!p->ports[i].bytes)
            continue;
        if (!from)
            return c2c_gpu_fail(m->device->message, C2C_GPU_E_NULL, "input '%s' of %s was not mapped", p->ports[i].name,
                                p->name);
        error = m->device->cu.cuMemcpyHtoDAsync_v2(m->buffers[C2C_PLAN_PORTS + i], from, (size_t)p->ports[i].bytes,
                                                   m->stream);
        if (error)
            return failed(m->device, error, "copy input", p->ports[i].name);
    }
    return C2C_GPU_OK;
}

/* Outputs to their addresses, or `pinned` to memory that the device writes on its own. */
static int copy_out(c2c_cuda_model *m, void *const *outputs, int pinned)
{
    const c2c_plan *p = m->plan;
    uint32_t i;
    for (i = 0; i < p->outputs; i++) {
        uint32_t port = p->inputs + i;
        int own = pinned || outputs[i] == C2C_GPU_IN_PLACE;
        code error = own ? pin(m, port) : 0;
        if (error)
            return error;
        if (p->ports[port].bytes)
            error = m->device->cu.cuMemcpyDtoHAsync_v2(own ? m->ports[port] : outputs[i], m->buffers[C2C_PLAN_PORTS + port],
                                                       (size_t)p->ports[port].bytes, m->stream);
        if (error)
            return failed(m->device, error, "copy output", p->ports[port].name);
    }
    return C2C_GPU_OK;
}

int c2c_cuda_run(c2c_cuda_model *m, const void *const *inputs, void *const *outputs)
{
    int error;
    if (!m || !inputs || !outputs)
        return C2C_GPU_E_NULL;
    m->measured = 0;
    error = c2c_gpu_check_ports(m->device->message, m->plan, inputs, outputs);
    if (!error)
        error = enter(m->device);
    if (error)
        return error;
    error = copy_in(m, inputs);
    if (!error)
        error = c2c_gpu_walk_steps(&m->walk, m->plan->prepares, m->plan->step_count);
    if (!error)
        error = copy_out(m, outputs, 0);
    error = finish(m, error);
    leave(m->device);
    m->measured = !error;
    return error;
}

static void CU_CALL notify(object stream, code status, void *user)
{
    c2c_cuda_model *m = (c2c_cuda_model *)user;
    const c2c_plan *p = m->plan;
    uint32_t i;
    (void)stream;
    for (i = 0; !status && i < p->outputs; i++)
        if (m->outputs[i] != C2C_GPU_IN_PLACE)
            memcpy(m->outputs[i], m->ports[p->inputs + i], (size_t)p->ports[p->inputs + i].bytes);
    if (status)
        failed(m->device, status, "run", p->name);
    m->measured = !status;
    m->done(m->user, status ? C2C_GPU_E_RUN : C2C_GPU_OK);
}

static int submit(c2c_cuda_model *m, const void *const *inputs, void *const *outputs,
                  void (*done)(void *user, int error), void *user)
{
    code status;
    int error = finish(m, C2C_GPU_OK); /* of a run that is going on */
    m->done = done;
    m->user = user;
    memcpy((void *)m->outputs, outputs, m->plan->outputs * sizeof *outputs);
    if (!error)
        error = copy_in(m, inputs);
    error = finish(m, error);
    if (!error)
        error = c2c_gpu_walk_steps(&m->walk, m->plan->prepares, m->plan->step_count);
    if (!error)
        error = copy_out(m, outputs, 1);
    if (error)
        return finish(m, error);
    status = m->device->cu.cuStreamAddCallback(m->stream, notify, m, 0);
    return status ? failed(m->device, status, "start", m->plan->name) : C2C_GPU_OK;
}

int c2c_cuda_start(c2c_cuda_model *m, const void *const *inputs, void *const *outputs,
                   void (*done)(void *user, int error), void *user)
{
    int error;
    if (!m || !inputs || !outputs || !done)
        return C2C_GPU_E_NULL;
    error = c2c_gpu_check_ports(m->device->message, m->plan, inputs, outputs);
    if (!error)
        error = enter(m->device);
    if (error)
        return error;
    error = submit(m, inputs, outputs, done, user);
    leave(m->device);
    return error;
}

int c2c_cuda_times(const c2c_cuda_model *m, uint64_t *nanoseconds)
{
    uint32_t i;
    if (!m || !nanoseconds)
        return C2C_GPU_E_NULL;
    if (!m->events || !m->measured)
        return c2c_gpu_fail(m->device->message, C2C_GPU_E_RUN, "%s: no run was timed; open the device with `profile`",
                            m->plan->name);
    for (i = 0; i < m->plan->step_count; i++) {
        float milliseconds = 0;
        code error = 0;
        nanoseconds[i] = m->walk.host[i];
        if (m->plan->steps[i].host || i < m->plan->prepares)
            continue;
        error = m->device->cu.cuEventElapsedTime(&milliseconds, m->events[2 * i], m->events[2 * i + 1]);
        if (error)
            return failed(m->device, error, "time", m->plan->steps[i].node);
        nanoseconds[i] = (uint64_t)((double)milliseconds * 1e6 + 0.5);
    }
    return C2C_GPU_OK;
}
