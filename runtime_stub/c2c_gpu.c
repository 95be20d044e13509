/* What drivers of graphics processors share; c2c_gpu.h says what each function promises. */
#include "c2c_gpu.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#include <time.h>
#endif

const char *c2c_gpu_error_string(int error)
{
    static const char *const words[] = {
        "no error", "there is no library for such devices", "there is no such device", "out of memory",
        "the kernels could not be built", "these are not the model's weights", "a pointer is NULL",
        "the device failed",
    };
    return error >= 0 && error < (int)(sizeof words / sizeof *words) ? words[error] : "unknown error";
}

int c2c_gpu_fail(char *message, int error, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(message, C2C_GPU_MESSAGE, format, list);
    va_end(list);
    return error;
}

/* --- checks */

static uint32_t crc32(uint32_t crc, const void *data, size_t bytes)
{
    const unsigned char *p = (const unsigned char *)data;
    uint32_t table[256], i, k;
    for (i = 0; i < 256; i++) {
        table[i] = i;
        for (k = 0; k < 8; k++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xEDB88320u : 0);
    }
    crc = ~crc;
    while (bytes--)
        crc = crc >> 8 ^ table[(crc ^ *p++) & 255];
    return ~crc;
}

int c2c_gpu_check_weights(char *message, const c2c_plan *plan, const void *weights, size_t bytes)
{
    if (bytes != plan->weights_bytes)
        return c2c_gpu_fail(message, C2C_GPU_E_WEIGHTS, "the weights of %s have %llu bytes, not %llu", plan->name,
                            (unsigned long long)plan->weights_bytes, (unsigned long long)bytes);
    if (bytes && crc32(0, weights, bytes) != plan->weights_crc32)
        return c2c_gpu_fail(message, C2C_GPU_E_WEIGHTS, "these are not the weights of %s: their checksum differs",
                            plan->name);
    return C2C_GPU_OK;
}

int c2c_gpu_check_groups(char *message, const char *device, const c2c_plan *plan, size_t most)
{
    uint32_t i;
    for (i = 0; i < plan->kernel_count; i++) {
        const uint32_t *g = plan->kernels[i].group;
        if ((size_t)g[0] * g[1] * g[2] > most)
            return c2c_gpu_fail(message, C2C_GPU_E_DEVICE, "%s runs at most %lu threads together; kernel %s wants %lu",
                                device, (unsigned long)most, plan->kernels[i].name,
                                (unsigned long)g[0] * g[1] * g[2]);
    }
    return C2C_GPU_OK;
}

int c2c_gpu_check_ports(char *message, const c2c_plan *plan, const void *const *inputs, void *const *outputs)
{
    uint32_t i;
    for (i = 0; i < plan->inputs; i++)
        if (!inputs[i])
            return c2c_gpu_fail(message, C2C_GPU_E_NULL, "input '%s' of %s is NULL", plan->ports[i].name, plan->name);
    for (i = 0; i < plan->outputs; i++)
        if (!outputs[i])
            return c2c_gpu_fail(message, C2C_GPU_E_NULL, "output '%s' of %s is NULL",
                                plan->ports[plan->inputs + i].name, plan->name);
    return C2C_GPU_OK;
}

/* --- text and files */

char *c2c_gpu_copy(const char *text)
{
    char *made = text ? (char *)malloc(strlen(text) + 1) : NULL;
    return made ? strcpy(made, text) : NULL;
}

char *c2c_gpu_source(const c2c_plan *plan)
{
    const char *const *s;
    size_t bytes = 1, at = 0;
    char *made;
    for (s = plan->source; *s; s++)
        bytes += strlen(*s);
    made = (char *)malloc(bytes);
    if (!made)
        return NULL;
    for (s = plan->source; *s; s++) {
        size_t n = strlen(*s);
        memcpy(made + at, *s, n);
        at += n;
    }
    made[at] = 0;
    return made;
}

char *c2c_gpu_cache_path(const char *folder, const c2c_plan *plan, const char *device, const char *driver)
{
    uint32_t text = 0, where = crc32(crc32(0, device, strlen(device)), driver, strlen(driver));
    size_t bytes = 0, room;
    const char *const *s;
    char *path;
    if (!folder)
        return NULL;
    for (s = plan->source; *s; s++) {
        text = crc32(text, *s, strlen(*s));
        bytes += strlen(*s);
    }
    room = strlen(folder) + strlen(plan->name) + 64;
    path = (char *)malloc(room);
    if (path)
        snprintf(path, room, "%s/%s-%08x-%lx-%08x.bin", folder, plan->name, (unsigned)text, (unsigned long)bytes,
                 (unsigned)where);
    return path;
}

void *c2c_gpu_read_file(const char *path, size_t *bytes)
{
    FILE *f = path ? fopen(path, "rb") : NULL;
    long size = -1;
    char *data = NULL;
    if (!f)
        return NULL;
    if (!fseek(f, 0, SEEK_END) && (size = ftell(f)) > 0 && !fseek(f, 0, SEEK_SET))
        data = (char *)malloc((size_t)size + 1);
    if (data && fread(data, 1, (size_t)size, f) != (size_t)size) {
        free(data);
        data = NULL;
    }
    fclose(f);
    if (data) {
        data[size] = 0;
        *bytes = (size_t)size;
    }
    return data;
}

void c2c_gpu_write_file(const char *path, const void *data, size_t bytes)
{
    FILE *f = path && data && bytes ? fopen(path, "wb") : NULL;
    size_t written;
    if (!f)
        return;
    written = fwrite(data, 1, bytes, f);
    if (fclose(f) || written != bytes)
        remove(path);
}

/* --- the system */

void *c2c_gpu_library(const char *const *names)
{
    void *handle = NULL;
    for (; *names && !handle; names++)
#ifdef _WIN32
        handle = (void *)LoadLibraryA(*names);
#else
        handle = dlopen(*names, RTLD_NOW | RTLD_LOCAL);
#endif
    return handle;
}

void *c2c_gpu_symbol(void *library, const char *name)
{
#ifdef _WIN32
    return (void *)GetProcAddress((HMODULE)library, name);
#else
    return dlsym(library, name);
#endif
}

void c2c_gpu_library_close(void *library)
{
    if (!library)
        return;
#ifdef _WIN32
    FreeLibrary((HMODULE)library);
#else
    dlclose(library);
#endif
}

uint64_t c2c_gpu_now(void)
{
#ifdef _WIN32
    LARGE_INTEGER count, rate;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&rate);
    return (uint64_t)((double)count.QuadPart * 1e9 / (double)rate.QuadPart);
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
#endif
}

/* --- the walk */

int c2c_gpu_walk_open(c2c_gpu_walk *w, char *message, int timed)
{
    uint32_t i, most = 0;
    for (i = 0; i < w->plan->step_count; i++)
        if (w->plan->steps[i].spans > most)
            most = w->plan->steps[i].spans;
    w->mapped = (char **)calloc(most + 1, sizeof(char *));
    if (timed)
        w->host = (uint64_t *)calloc(w->plan->step_count + 1, sizeof(uint64_t));
    return w->mapped && (w->host || !timed) ? C2C_GPU_OK : c2c_gpu_fail(message, C2C_GPU_E_MEMORY, "out of memory");
}

void c2c_gpu_walk_close(c2c_gpu_walk *w)
{
    free(w->mapped);
    free(w->host);
    w->mapped = NULL;
    w->host = NULL;
}

static int unmap(c2c_gpu_walk *w)
{
    int error = C2C_GPU_OK;
    uint32_t i;
    for (i = 0; i < w->count; i++) {
        int code = w->unmap(w->self, &w->plan->spans[w->first + i], w->mapped[i]);
        error = error ? error : code;
    }
    w->count = 0;
    return error;
}

static int map(c2c_gpu_walk *w, const c2c_plan_step *step)
{
    int error = C2C_GPU_OK;
    w->first = step->span;
    while (!error && w->count < step->spans) {
        error = w->map(w->self, &w->plan->spans[step->span + w->count], &w->mapped[w->count]);
        w->count += !error;
    }
    if (error)
        unmap(w);
    return error;
}

static int run_host(c2c_gpu_walk *w, uint32_t number)
{
    const c2c_plan_step *step = &w->plan->steps[number], *next = step + 1;
    uint64_t begin;
    int error = w->count ? C2C_GPU_OK : map(w, step);
    if (error)
        return error;
    begin = w->host ? c2c_gpu_now() : 0;
    step->host(w->mapped);
    if (w->host)
        w->host[number] = c2c_gpu_now() - begin;
    if (number + 1 < w->plan->step_count && next->host && next->span == step->span)
        return C2C_GPU_OK;
    return unmap(w);
}

int c2c_gpu_walk_steps(c2c_gpu_walk *w, uint32_t begin, uint32_t end)
{
    uint32_t i;
    int error = C2C_GPU_OK;
    for (i = begin; !error && i < end; i++)
        error = w->plan->steps[i].host ? run_host(w, i) : w->launch(w->self, i);
    return error;
}
