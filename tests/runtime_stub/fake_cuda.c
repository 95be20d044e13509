/* A CUDA driver and an NVRTC whose device memory is this process'. They count objects and make the call fail that the
 * test names. Kernels do nothing but count, or run where $FAKE_KERNELS is a library of the emulator's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fake_calls, fake_fail_at, fake_live, fake_devices = 1, fake_kernels_run, fake_copies, fake_built;
size_t fake_largest = (size_t)1 << 30, fake_group = 1024;

typedef void *object;
typedef unsigned long long pointer;
typedef void (*run_type)(const char *, void *, void *const *, const size_t *, unsigned, const unsigned *, const unsigned *,
                         int);

/* A kernel: its name, and what runs it. */
typedef struct function {
    char name[128];
    void *entry;
    const unsigned *count; /* of its arguments */
    run_type run;
} function;

static function functions[4096];
static int function_count;
static void *library;

static int fails(void) { return ++fake_calls == fake_fail_at; }

static int made(object *o)
{
    if (fails())
        return 201;
    *o = malloc(1);
    fake_live++;
    return 0;
}

static int gone(object o)
{
    free(o);
    fake_live--;
    return 0;
}

int cuInit(unsigned flags) { return flags ? 1 : fails() ? 100 : 0; }
int cuDriverGetVersion(int *version) { return *version = 12000, 0; }
int cuDeviceGetCount(int *count) { return *count = fake_devices, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, 0; }
int cuDeviceGetName(char *name, int room, int device)
{
    (void)device;
    snprintf(name, (size_t)room, "Fake device");
    return 0;
}
int cuDeviceGetAttribute(int *value, int what, int device)
{
    (void)device;
    *value = what == 1 ? (int)fake_group : what == 75 ? 8 : 6;
    return fails() ? 1 : 0;
}
static object primary;
int cuDevicePrimaryCtxRetain(object *context, int device)
{
    (void)device;
    if (made(&primary))
        return 201;
    *context = primary;
    return 0;
}
int cuDevicePrimaryCtxRelease(int device) { return (void)device, gone(primary); }
static int entered;
int cuCtxPushCurrent_v2(object context)
{
    if (context != primary || fails())
        return 201;
    entered++;
    return 0;
}
int cuCtxPopCurrent_v2(object *context) { return *context = NULL, entered--, 0; }
int cuStreamCreate(object *stream, unsigned flags) { return flags != 1 || !entered ? 1 : made(stream); }
int cuStreamDestroy_v2(object stream) { return gone(stream); }
int cuStreamSynchronize(object stream) { return !stream || !entered || fails() ? 700 : 0; }
int cuStreamAddCallback(object stream, void (*f)(object, int, void *), void *user, unsigned flags)
{
    if (flags || fails())
        return 1;
    f(stream, 0, user);
    return 0;
}
int cuMemAlloc_v2(pointer *at, size_t bytes)
{
    object o;
    if (bytes > fake_largest || fails())
        return 2;
    o = malloc(bytes);
    *at = (pointer)(uintptr_t)o;
    fake_live++;
    return 0;
}
int cuMemFree_v2(pointer at) { return gone((object)(uintptr_t)at); }
int cuMemHostAlloc(void **at, size_t bytes, unsigned flags)
{
    if (flags || fails())
        return 2;
    *at = malloc(bytes);
    fake_live++;
    return 0;
}
int cuMemFreeHost(void *at) { return gone(at); }
int cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t bytes, object stream)
{
    if (!stream || !entered || fails())
        return 1;
    memcpy((void *)(uintptr_t)to, from, bytes);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t bytes, object stream)
{
    if (!stream || !entered || fails())
        return 1;
    memcpy(to, (void *)(uintptr_t)from, bytes);
    if (!library)
        *(char *)to = 7; /* what the kernels would have made */
    return 0;
}
int cuModuleLoadData(object *module, const void *ptx)
{
    if (strncmp((const char *)ptx, "ptx", 3))
        return 218;
    if (getenv("FAKE_KERNELS") && !library)
        library = dlopen(getenv("FAKE_KERNELS"), RTLD_NOW);
    return made(module);
}
int cuModuleUnload(object module) { return gone(module); }
int cuModuleGetFunction(object *found, object module, const char *name)
{
    function *f = &functions[function_count++ % 4096];
    char entry[160];
    if (!module || fails())
        return 500;
    snprintf(f->name, sizeof f->name, "%s", name);
    snprintf(entry, sizeof entry, "emulated_%s", name);
    f->entry = library ? dlsym(library, entry) : NULL;
    snprintf(entry, sizeof entry, "count_%s", name);
    f->count = library ? (const unsigned *)dlsym(library, entry) : NULL;
    f->run = library ? (run_type)dlsym(library, "emulated_run") : NULL;
    *found = f;
    return library && !f->entry ? 500 : 0;
}
int cuLaunchKernel(object kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, object stream, void **arguments, void **extra)
{
    function *f = (function *)kernel;
    const unsigned groups[3] = {gx, gy, gz}, threads[3] = {bx, by, bz};
    void *at[64];
    unsigned i;
    if (shared || !stream || extra || !entered || gy > 65535 || gz > 65535 || fails())
        return 1;
    fake_kernels_run++;
    if (!f->run)
        return 0;
    for (i = 0; i < *f->count; i++)
        at[i] = *(void **)arguments[i];
    f->run(f->name, f->entry, at, NULL, *f->count, groups, threads, 1);
    return 0;
}
int cuEventCreate(object *event, unsigned flags) { return flags ? 1 : made(event); }
int cuEventDestroy_v2(object event) { return gone(event); }
int cuEventRecord(object event, object stream) { return !event || !stream || fails() ? 1 : 0; }
int cuEventElapsedTime(float *milliseconds, object begin, object end)
{
    *milliseconds = 42e-6f;
    return begin == end || fails() ? 1 : 0;
}

/* --- NVRTC */

int nvrtcCreateProgram(object *program, const char *text, const char *name, int headers, const char *const *h,
                       const char *const *n)
{
    if (!strlen(text) || !strlen(name) || headers || h || n)
        return 3;
    fake_built++;
    return made(program);
}
int nvrtcDestroyProgram(object *program) { return gone(*program); }
/* Every second program meets a compiler that does not know the device. */
int nvrtcCompileProgram(object program, int count, const char *const *options)
{
    if (!program || count != 2 || fails())
        return 6;
    if (!strcmp(options[0], "--gpu-architecture=compute_86"))
        return fake_built % 2 ? 0 : 5;
    return strcmp(options[0], "--gpu-architecture=compute_75") ? 6 : 0;
}
int nvrtcGetPTXSize(object program, size_t *bytes) { return *bytes = 4, !program || fails() ? 4 : 0; }
int nvrtcGetPTX(object program, char *ptx)
{
    memcpy(ptx, "ptx", 4);
    return !program || fails() ? 4 : 0;
}
static const char fake_log[] = "error: line 3 of the fake log";
int nvrtcGetProgramLogSize(object program, size_t *bytes) { return *bytes = sizeof fake_log, !program; }
int nvrtcGetProgramLog(object program, char *log)
{
    memcpy(log, fake_log, sizeof fake_log);
    return !program;
}
