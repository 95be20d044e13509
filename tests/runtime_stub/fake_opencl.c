/* An OpenCL library that computes nothing: it counts objects and makes the call fail that the test names. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int fake_calls, fake_fail_at, fake_live, fake_devices = 1, fake_kernels_run, fake_copies, fake_built;
size_t fake_largest = (size_t)1 << 30, fake_group = 1024;
char fake_log[] = "error: line 3 of the fake log";
char fake_extensions[64] = "cl_khr_fp16";
char fake_options[64];

typedef void *object;

static int fails(void) { return ++fake_calls == fake_fail_at; }

static object made(int32_t *code, int32_t error)
{
    object o = fails() ? NULL : malloc(1);
    if (code)
        *code = o ? 0 : error;
    fake_live += o != NULL;
    return o;
}

static int32_t gone(object o)
{
    free(o);
    fake_live--;
    return 0;
}

static int32_t answer(const void *data, size_t bytes, size_t room, void *value, size_t *whole)
{
    if (whole)
        *whole = bytes;
    if (value && room < bytes)
        return -30;
    if (value)
        memcpy(value, data, bytes);
    return 0;
}

int32_t clGetPlatformIDs(uint32_t n, object *found, uint32_t *count)
{
    (void)n;
    *found = (object)1;
    *count = 1;
    return fails() ? -1001 : 0;
}
int32_t clGetPlatformInfo(object p, uint32_t what, size_t room, void *value, size_t *whole)
{
    (void)p, (void)what;
    return answer("Fake", 5, room, value, whole);
}
int32_t clGetDeviceIDs(object p, uint64_t type, uint32_t n, object *found, uint32_t *count)
{
    (void)p, (void)n;
    if (!fake_devices || type == 4) /* no GPU */
        return -1;
    *found = (object)2;
    *count = 1;
    return 0;
}
int32_t clGetDeviceInfo(object d, uint32_t what, size_t room, void *value, size_t *whole)
{
    (void)d;
    if (what == 0x1004)
        return answer(&fake_group, sizeof fake_group, room, value, whole);
    if (what == 0x1030)
        return answer(fake_extensions, strlen(fake_extensions) + 1, room, value, whole);
    return answer("Fake device", 12, room, value, whole);
}
object clCreateContext(const intptr_t *p, uint32_t n, const object *d, void *f, void *u, int32_t *code)
{
    (void)p, (void)n, (void)d, (void)f, (void)u;
    return made(code, -6);
}
int32_t clReleaseContext(object o) { return gone(o); }
object clCreateCommandQueue(object c, object d, uint64_t p, int32_t *code)
{
    (void)c, (void)d, (void)p;
    return made(code, -6);
}
int32_t clReleaseCommandQueue(object o) { return gone(o); }
object clCreateBuffer(object c, uint64_t flags, size_t bytes, void *data, int32_t *code)
{
    (void)c, (void)flags, (void)data;
    if (bytes > fake_largest) {
        *code = -61;
        return NULL;
    }
    return made(code, -4);
}
int32_t clReleaseMemObject(object o) { return gone(o); }
object clCreateProgramWithSource(object c, uint32_t n, const char **s, const size_t *l, int32_t *code)
{
    (void)c, (void)n, (void)s, (void)l;
    fake_built++;
    return made(code, -6);
}
object clCreateProgramWithBinary(object c, uint32_t n, const object *d, const size_t *l, const unsigned char **b,
                                 int32_t *status, int32_t *code)
{
    (void)c, (void)n, (void)d, (void)l, (void)b;
    *status = 0;
    return made(code, -42);
}
int32_t clBuildProgram(object p, uint32_t n, const object *d, const char *o, void *f, void *u)
{
    (void)p, (void)n, (void)d, (void)f, (void)u;
    strncpy(fake_options, o, sizeof fake_options - 1);
    return fails() ? -11 : 0;
}
int32_t clGetProgramBuildInfo(object p, object d, uint32_t what, size_t room, void *value, size_t *whole)
{
    (void)p, (void)d, (void)what;
    return answer(fake_log, sizeof fake_log, room, value, whole);
}
int32_t clGetProgramInfo(object p, uint32_t what, size_t room, void *value, size_t *whole)
{
    size_t size = 3;
    (void)p;
    if (what == 0x1165)
        return answer(&size, sizeof size, room, value, whole);
    memcpy(*(unsigned char **)value, "bin", 3);
    return 0;
}
int32_t clReleaseProgram(object o) { return gone(o); }
object clCreateKernel(object p, const char *name, int32_t *code)
{
    (void)p, (void)name;
    return made(code, -46);
}
int32_t clReleaseKernel(object o) { return gone(o); }
int32_t clSetKernelArg(object k, uint32_t i, size_t bytes, const void *value)
{
    (void)k, (void)i, (void)bytes, (void)value;
    return fails() ? -49 : 0;
}
static int32_t event(object *e)
{
    if (fails())
        return -5;
    if (e) {
        *e = malloc(1);
        fake_live++;
    }
    return 0;
}
int32_t clEnqueueNDRangeKernel(object q, object k, uint32_t d, const size_t *o, const size_t *g, const size_t *l,
                               uint32_t n, const object *w, object *e)
{
    (void)q, (void)k, (void)d, (void)o, (void)g, (void)l, (void)n, (void)w;
    fake_kernels_run++;
    return event(e);
}
int32_t clEnqueueWriteBuffer(object q, object b, uint32_t wait, size_t o, size_t n, const void *p, uint32_t c,
                             const object *w, object *e)
{
    (void)q, (void)b, (void)wait, (void)o, (void)n, (void)p, (void)c, (void)w;
    fake_copies++;
    return event(e);
}
int32_t clEnqueueReadBuffer(object q, object b, uint32_t wait, size_t o, size_t n, void *p, uint32_t c,
                            const object *w, object *e)
{
    (void)q, (void)b, (void)wait, (void)o, (void)n, (void)c, (void)w;
    ((char *)p)[0] = 7;
    fake_copies++;
    return event(e);
}
object clEnqueueMapBuffer(object q, object b, uint32_t wait, uint64_t flags, size_t o, size_t n, uint32_t c,
                          const object *w, object *e, int32_t *code)
{
    (void)q, (void)b, (void)wait, (void)flags, (void)o, (void)c, (void)w, (void)e;
    if (fails()) {
        *code = -12;
        return NULL;
    }
    fake_live++;
    return calloc(1, n);
}
int32_t clEnqueueUnmapMemObject(object q, object b, void *p, uint32_t c, const object *w, object *e)
{
    (void)q, (void)b, (void)c, (void)w, (void)e;
    gone(p);
    return fails() ? -36 : 0;
}
int32_t clEnqueueMarkerWithWaitList(object q, uint32_t n, const object *w, object *e)
{
    (void)q, (void)n, (void)w;
    return event(e);
}
int32_t clSetEventCallback(object e, int32_t status, void (*f)(object, int32_t, void *), void *user)
{
    if (fails())
        return -6;
    f(e, status, user);
    return 0;
}
int32_t clGetEventProfilingInfo(object e, uint32_t what, size_t room, void *value, size_t *whole)
{
    uint64_t at = what == 0x1282 ? 100 : 142;
    (void)e;
    return fails() ? -7 : answer(&at, sizeof at, room, value, whole);
}
int32_t clReleaseEvent(object o) { return gone(o); }
int32_t clFlush(object q) { (void)q; return fails() ? -36 : 0; }
int32_t clFinish(object q) { (void)q; return fails() ? -36 : 0; }
