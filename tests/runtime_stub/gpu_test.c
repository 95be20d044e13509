/* A driver (DRIVER: c2c_opencl, of HEADER) against a library that fails on demand: every failure is an error code with
 * words, and nothing is left behind. Prints the number of calls that were made to fail. */
#include HEADER
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PASTED(a, b) a##b
#define PASTE(a, b) PASTED(a, b)
#define gpu_model PASTE(DRIVER, _model)
#define gpu_options PASTE(DRIVER, _options)
#define gpu_open PASTE(DRIVER, _open)
#define gpu_close PASTE(DRIVER, _close)
#define gpu_message PASTE(DRIVER, _message)
#define gpu_name PASTE(DRIVER, _name)
#define gpu_load PASTE(DRIVER, _load)
#define gpu_unload PASTE(DRIVER, _unload)
#define gpu_map PASTE(DRIVER, _map)
#define gpu_run PASTE(DRIVER, _run)
#define gpu_start PASTE(DRIVER, _start)
#define gpu_times PASTE(DRIVER, _times)

extern int fake_calls, fake_fail_at, fake_live, fake_devices, fake_kernels_run, fake_copies, fake_built;
extern size_t fake_largest, fake_group;
#ifdef LOCK_STEP /* the driver asks how many threads run in it */
extern size_t fake_width;
#endif

#define CHECK(condition)                                                                          \
    do                                                                                            \
        if (!(condition)) {                                                                       \
            printf("line %d: %s (call %d failed)\n", __LINE__, #condition, fake_fail_at);         \
            exit(1);                                                                              \
        }                                                                                         \
    while (0)

static const char *const source[] = {"kernel text", NULL};
static const c2c_plan_kernel kernels[] = {{"m__a", {64, 1, 1}, {64, 1, 1}}, {"m__b", {128, 8, 1}, {16, 8, 1}}};
static const c2c_plan_arg arguments[] = {{3, 0, 4}, {0, 16, 4}, {1, 0, 4}, {0, 16, 4}, {4, 0, 4}};
static int host_runs;
static void host_one(char *const *mapped)
{
    mapped[0][15] = 3;
    host_runs++;
}
static void host_two(char *const *mapped)
{
    mapped[1][63] = mapped[0][15]; /* what the step before it left: both have the same memory */
    host_runs += mapped[1][63] == 3;
}
static const c2c_plan_span spans[] = {{0, 3, 16, 16}, {3, 3, 0, 64}, {4, 3, 0, 64}};
static const c2c_plan_step steps[] = {{1, 2, 1, -1, "prepare", NULL, 0, 0},
                                      {0, 0, 3, 0, "first", NULL, 0, 0},
                                      {0, 0, 0, 1, "third", host_one, 0, 2},
                                      {0, 0, 0, 2, "fourth", host_two, 0, 2},
                                      {1, 3, 2, 1, "second", NULL, 0, 0},
                                      {0, 0, 0, 4, "last", host_one, 2, 1}};
static const c2c_plan_port ports[] = {{"x", "f32", 64}, {"y", "f32", 64}};
static c2c_plan plan = {"m", source, kernels, arguments, steps, ports, spans, 2, 6, 1, 1, 1, 0xCBF43926u, 1024, 9, 0, 32};
static const char weights[] = "123456789"; /* whose CRC-32 is the check value of the standard */

static int called, given;
static void done(void *user, int error)
{
    called += *(int *)user;
    given = error;
}

/* A run without copies; the first error. */
static int in_place(gpu_model *model)
{
    const void *inputs[] = {C2C_GPU_IN_PLACE};
    void *outputs[] = {C2C_GPU_IN_PLACE}, *x = NULL, *again = NULL, *y = NULL;
    int before = fake_copies, error = gpu_map(model, 0, &x), runs = host_runs;
    if (!error) {
        memset(x, 1, 64);
        error = gpu_map(model, 0, &again);
        CHECK(error || again == x);
    }
    if (!error)
        error = gpu_run(model, inputs, outputs);
    if (!error) {
        CHECK(host_runs == runs + 3);
        error = gpu_map(model, 1, &y);
    }
    CHECK(error || (fake_copies == before && y));
    return error;
}

/* Everything once; the first error. */
static int everything(const gpu_options *options, const void *bytes, size_t size, int asynchronous)
{
    float x[16] = {0}, y[16] = {0};
    const void *inputs[] = {x};
    void *outputs[] = {y};
    uint64_t times[6];
    int one = 1, error, before;
    DRIVER *device;
    gpu_model *model = NULL;
    error = gpu_open(options, &device);
    CHECK(device != NULL);
    if (!error) {
        error = gpu_load(device, &plan, bytes, size, &model);
        CHECK((model == NULL) == (error != 0));
    }
    before = fake_kernels_run;
    host_runs = 0;
    if (!error && asynchronous) {
        called = 0;
        error = gpu_start(model, inputs, outputs, done, &one);
        CHECK(error || called == 1);
        error = error ? error : given;
    } else if (!error)
        error = gpu_run(model, inputs, outputs);
    if (!error) {
        CHECK(fake_kernels_run - before == 2);
        CHECK(host_runs == 3);
        CHECK(((char *)y)[0] == 7);
    }
    if (!error)
        error = in_place(model);
    if (!error && options->profile) {
        error = gpu_times(model, times);
        CHECK(error || (times[0] == 0 && times[1] == 42 && times[4] == 42 && times[2] < 1000000));
    }
    if (error && !fake_fail_at)
        printf("%s\n", gpu_message(device));
    CHECK(!error || strlen(gpu_message(device)) > 10);
    CHECK(strlen(c2c_gpu_error_string(error)) > 5);
    gpu_unload(model);
    gpu_close(device);
    CHECK(fake_live == 0);
    return error;
}

static int with(int fail_at, int profile, const char *cache, int asynchronous)
{
    gpu_options options = {0};
    options.profile = profile;
    options.cache = cache;
    fake_calls = fake_built = 0;
    fake_fail_at = fail_at;
    return everything(&options, weights, 9, asynchronous);
}

static void message(int wanted, const gpu_options *options, const void *bytes, size_t size, const char *words)
{
    DRIVER *device;
    gpu_model *model = NULL;
    int error = gpu_open(options, &device);
    if (!error)
        error = gpu_load(device, &plan, bytes, size, &model);
    CHECK(error == wanted);
    CHECK(strstr(gpu_message(device), words));
    gpu_unload(model);
    gpu_close(device);
    CHECK(fake_live == 0);
}

int main(int argc, char **argv)
{
    gpu_options options = {0};
    const char *cache = argc > 1 ? argv[1] : NULL;
    DRIVER *device;
    gpu_model *one, *two;
    int failed = 0, mode, fail_at, i;
    float x[16] = {0}, y[16];
    const void *inputs[] = {x};
    void *outputs[] = {y}, *unused;

    for (mode = 0; mode < 4; mode++) {
        CHECK(with(0, mode & 1, NULL, mode >> 1) == 0);
        for (fail_at = fake_calls; fail_at > 0; fail_at--) {
            /* releasing waits, whose failure is nobody's error any more; an event is made behind a call that counts */
            int error = with(fail_at, mode & 1, NULL, mode >> 1);
            failed += error != 0;
        }
    }
    CHECK(failed > FAILURES);
    for (i = 0; i < 2; i++) {
        CHECK(with(0, 0, cache, 0) == 0); /* writes the cache, then reads it */
        CHECK(fake_built == !i);
    }

    fake_fail_at = 0;
    message(C2C_GPU_E_WEIGHTS, &options, weights, 8, "9 bytes, not 8");
    message(C2C_GPU_E_WEIGHTS, &options, "123456780", 9, "checksum");
    options.device = "Quantum";
    message(C2C_GPU_E_DEVICE, &options, weights, 9, "Quantum");
    options.device = NULL;
    fake_group = 32;
    message(C2C_GPU_E_DEVICE, &options, weights, 9, "m__a wants 64");
    fake_group = 1024;
#ifdef LOCK_STEP
    fake_width = 64;
    message(C2C_GPU_E_DEVICE, &options, weights, 9, "runs 64 threads in lock-step; kernels of m count on 32");
    fake_width = 32;
#endif
    fake_largest = 512;
    message(C2C_GPU_E_MEMORY, &options, weights, 9, "memory of m");
    fake_largest = (size_t)1 << 30;
    fake_devices = 0;
    message(C2C_GPU_E_DEVICE, &options, weights, 9, NO_DEVICE);
    fake_devices = 1;
    for (fail_at = 1; fail_at < 40; fail_at++) {
        fake_calls = 0;
        fake_fail_at = fail_at;
        if (everything(&options, weights, 9, 0) == C2C_GPU_E_BUILD)
            break;
    }
    fake_calls = 0;
    message(C2C_GPU_E_BUILD, &options, weights, 9, "line 3 of the fake log");
    fake_fail_at = 0;

    CHECK(gpu_open(NULL, NULL) == C2C_GPU_E_NULL);
    CHECK(gpu_open(NULL, &device) == 0);
    CHECK(gpu_load(device, &plan, NULL, 9, &one) == C2C_GPU_E_NULL);
    CHECK(gpu_load(device, &plan, weights, 9, &one) == 0);
    CHECK(gpu_load(device, &plan, weights, 9, &two) == 0);
    CHECK(gpu_run(one, NULL, outputs) == C2C_GPU_E_NULL);
    CHECK(gpu_map(one, 2, &unused) == C2C_GPU_E_NULL && gpu_map(one, 0, NULL) == C2C_GPU_E_NULL);
    inputs[0] = NULL;
    CHECK(gpu_run(one, inputs, outputs) == C2C_GPU_E_NULL);
    CHECK(strstr(gpu_message(device), "input 'x' of m"));
    inputs[0] = x;
    i = fake_live;
    for (mode = 0; mode < 1000; mode++) {
        CHECK(gpu_run(one, inputs, outputs) == 0);
        CHECK(gpu_run(two, inputs, outputs) == 0);
    }
    CHECK(fake_live == i);
    gpu_unload(one);
    gpu_unload(two);
    gpu_unload(NULL);
    gpu_close(device);
    gpu_close(NULL);
    CHECK(fake_live == 0);
    printf("%d\n", failed);
    return 0;
}
