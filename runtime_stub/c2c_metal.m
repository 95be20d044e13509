/* Metal driver; c2c_metal.h says what each function promises.
 *
 * Objects are kept as plain pointers with one reference each, so that the file builds with ARC and without. */
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#include "c2c_metal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 256 };

#if __has_feature(objc_arc)
#define KEEP(object) ((__bridge_retained void *)(object))
#define DROP(pointer) ((void)(__bridge_transfer id)(pointer))
#else
#define KEEP(object) ((void *)(object)) /* of methods that are called new…: theirs is the reference */
#define DROP(pointer) [(id)(pointer) release]
#endif
#define AS(type, pointer) ((__bridge id<type>)(pointer))

struct c2c_metal {
    void *device; /* MTLDevice */
    int profile;
    char name[NAME], message[C2C_GPU_MESSAGE];
    char *cache;
};

struct c2c_metal_model {
    c2c_metal *device;
    const c2c_plan *plan;
    c2c_gpu_walk walk;
    void *queue;      /* MTLCommandQueue */
    void **buffers;   /* MTLBuffer, of the plan's numbers */
    void **pipelines; /* MTLComputePipelineState, one a kernel */
    void **timed;     /* MTLCommandBuffer, one a step, with profiling */
    void *command;    /* MTLCommandBuffer that takes steps now, and its MTLComputeCommandEncoder */
    void *encoder;
    void *last; /* MTLCommandBuffer of c2c_metal_start */
    int measured;
    void **outputs; /* of c2c_metal_start */
    void (*done)(void *user, int error);
    void *user;
};

/* --- errors */

/* The error of a call that was to do `what`; reason: NSError or NULL. */
static int failed(c2c_metal *d, int error, const char *what, const char *name, NSError *reason)
{
    const char *words = reason ? [[reason localizedDescription] UTF8String] : NULL;
    return c2c_gpu_fail(d->message, error, "%s: cannot %s%s%s%s%s", d->name, what, *name ? " " : "", name,
                        words ? ": " : "", words ? words : "");
}

const char *c2c_metal_message(const c2c_metal *device) { return device ? device->message : "out of memory"; }

const char *c2c_metal_name(const c2c_metal *device) { return device ? device->name : ""; }

static NSString *string(const char *text) { return [NSString stringWithUTF8String:text]; }

static void drop(void **pointer)
{
    if (*pointer)
        DROP(*pointer);
    *pointer = NULL;
}

/* --- the device */

/* One whose name has a part, where one is wanted; iOS has one device, macOS several. */
static void *find_device(const char *wanted)
{
    void *found = NULL;
#if TARGET_OS_OSX
    NSArray<id<MTLDevice>> *all = wanted ? MTLCopyAllDevices() : nil;
    NSUInteger i;
    for (i = 0; i < [all count] && !found; i++)
        if (strstr([[[all objectAtIndex:i] name] UTF8String], wanted))
#if __has_feature(objc_arc)
            found = KEEP([all objectAtIndex:i]);
#else
            found = (void *)[[all objectAtIndex:i] retain];
    [all release];
#endif
    if (wanted)
        return found;
#endif
    found = KEEP(MTLCreateSystemDefaultDevice());
    if (found && wanted && !strstr([[AS(MTLDevice, found) name] UTF8String], wanted))
        drop(&found);
    return found;
}

int c2c_metal_open(const c2c_metal_options *options, c2c_metal **device)
{
    static const c2c_metal_options none = {NULL, NULL, 0};
    const c2c_metal_options *o = options ? options : &none;
    c2c_metal *d;
    if (!device)
        return C2C_GPU_E_NULL;
    *device = d = (c2c_metal *)calloc(1, sizeof *d);
    if (!d)
        return C2C_GPU_E_MEMORY;
    @autoreleasepool {
        d->device = find_device(o->device);
        if (!d->device)
            return c2c_gpu_fail(d->message, C2C_GPU_E_DEVICE, "there is no Metal device%s%s",
                                o->device ? " with the name " : "", o->device ? o->device : "");
        strncpy(d->name, [[AS(MTLDevice, d->device) name] UTF8String], sizeof d->name - 1);
    }
    d->profile = o->profile;
    d->cache = c2c_gpu_copy(o->cache);
    return C2C_GPU_OK;
}

void c2c_metal_close(c2c_metal *d)
{
    if (!d)
        return;
    drop(&d->device);
    free(d->cache);
    free(d);
}

/* --- building */

/* The kernels' text, built without the liberties that Metal takes by default. */
static int build(c2c_metal *d, const c2c_plan *plan, void **library)
{
    MTLCompileOptions *options = [MTLCompileOptions new];
    NSError *reason = nil;
    char *text = c2c_gpu_source(plan);
    if (text) {
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations"
        options.fastMathEnabled = NO;
#pragma clang diagnostic pop
        options.languageVersion = MTLLanguageVersion2_2;
        if (@available(macOS 11.0, iOS 14.0, *)) {
            if (plan->subgroup)
                options.languageVersion = MTLLanguageVersion2_3;
        }
        *library = KEEP([AS(MTLDevice, d->device) newLibraryWithSource:string(text) options:options error:&reason]);
    }
#if !__has_feature(objc_arc)
    [options release];
#endif
    if (!text)
        return c2c_gpu_fail(d->message, C2C_GPU_E_MEMORY, "out of memory");
    free(text);
    if (*library)
        return C2C_GPU_OK;
    return c2c_gpu_fail(d->message, C2C_GPU_E_BUILD, "%s: the kernels of %s could not be built\n%s", d->name, plan->name,
                        reason ? [[reason localizedDescription] UTF8String] : "");
}

/* An archive of pipelines at `path`, or an empty one; NULL where the system has none. A bad file is left aside. */
static void *open_archive(c2c_metal *d, const char *path)
{
    void *archive = NULL;
    FILE *f;
    if (!path)
        return NULL;
    if (@available(macOS 11.0, iOS 14.0, *)) {
        MTLBinaryArchiveDescriptor *descriptor = [MTLBinaryArchiveDescriptor new];
        f = fopen(path, "rb");
        if (f) {
            fclose(f);
            descriptor.url = [NSURL fileURLWithPath:string(path)];
            archive = KEEP([AS(MTLDevice, d->device) newBinaryArchiveWithDescriptor:descriptor error:NULL]);
        }
        if (!archive) {
            descriptor.url = nil;
            archive = KEEP([AS(MTLDevice, d->device) newBinaryArchiveWithDescriptor:descriptor error:NULL]);
        }
#if !__has_feature(objc_arc)
        [descriptor release];
#endif
    }
    return archive;
}

static int make_pipeline(c2c_metal_model *m, uint32_t number, void *library, void *archive)
{
    c2c_metal *d = m->device;
    const c2c_plan_kernel *k = &m->plan->kernels[number];
    NSUInteger threads = (NSUInteger)k->group[0] * k->group[1] * k->group[2], width;
    MTLComputePipelineDescriptor *descriptor;
    NSError *reason = nil;
    void *function = KEEP([AS(MTLLibrary, library) newFunctionWithName:string(k->name)]);
    if (!function)
        return failed(d, C2C_GPU_E_BUILD, "find kernel", k->name, nil);
    descriptor = [MTLComputePipelineDescriptor new];
    descriptor.computeFunction = AS(MTLFunction, function);
    if (@available(macOS 11.0, iOS 14.0, *)) {
        if (archive) {
            descriptor.binaryArchives = [NSArray arrayWithObject:AS(MTLBinaryArchive, archive)];
            [AS(MTLBinaryArchive, archive) addComputePipelineFunctionsWithDescriptor:descriptor error:NULL];
        }
    }
    m->pipelines[number] = KEEP([AS(MTLDevice, d->device) newComputePipelineStateWithDescriptor:descriptor
                                                                                        options:MTLPipelineOptionNone
                                                                                     reflection:NULL
                                                                                          error:&reason]);
#if !__has_feature(objc_arc)
    [descriptor release];
#endif
    drop(&function);
    if (!m->pipelines[number])
        return failed(d, C2C_GPU_E_BUILD, "build kernel", k->name, reason);
    if ([AS(MTLComputePipelineState, m->pipelines[number]) maxTotalThreadsPerThreadgroup] < threads)
        return c2c_gpu_fail(d->message, C2C_GPU_E_DEVICE, "%s runs at most %lu threads together; kernel %s wants %lu",
                            d->name,
                            (unsigned long)[AS(MTLComputePipelineState, m->pipelines[number]) maxTotalThreadsPerThreadgroup],
                            k->name, (unsigned long)threads);
    width = [AS(MTLComputePipelineState, m->pipelines[number]) threadExecutionWidth];
    if (m->plan->subgroup && m->plan->subgroup != width)
        return c2c_gpu_fail(d->message, C2C_GPU_E_DEVICE,
                            "%s runs %lu threads in lock-step; kernels of %s count on %u: compile for metal", d->name,
                            (unsigned long)width, m->plan->name, (unsigned)m->plan->subgroup);
    return C2C_GPU_OK;
}

static int make_pipelines(c2c_metal_model *m)
{
    c2c_metal *d = m->device;
    char *path = c2c_gpu_cache_path(d->cache, m->plan, d->name, "");
    void *library = NULL, *archive = open_archive(d, path);
    uint32_t i;
    int error = m->plan->kernel_count ? build(d, m->plan, &library) : C2C_GPU_OK;
    for (i = 0; !error && i < m->plan->kernel_count; i++)
        error = make_pipeline(m, i, library, archive);
    if (@available(macOS 11.0, iOS 14.0, *)) {
        if (!error && archive)
            [AS(MTLBinaryArchive, archive) serializeToURL:[NSURL fileURLWithPath:string(path)] error:NULL];
    }
    drop(&archive);
    drop(&library);
    free(path);
    return error;
}

/* --- steps */

static char *contents(c2c_metal_model *m, uint32_t buffer)
{
    return (char *)[AS(MTLBuffer, m->buffers[buffer]) contents];
}

/* What the device has been given until now goes to it; a pointer of one reference to its command buffer. */
static void *commit(c2c_metal_model *m)
{
    void *command = m->command;
    if (!command)
        return NULL;
    [AS(MTLComputeCommandEncoder, m->encoder) endEncoding];
    drop(&m->encoder);
    m->command = NULL;
    return command;
}

static int finish(c2c_metal_model *m, void *command, int error)
{
    if (!command)
        return error;
    [AS(MTLCommandBuffer, command) commit];
    [AS(MTLCommandBuffer, command) waitUntilCompleted];
    if (!error && [AS(MTLCommandBuffer, command) status] == MTLCommandBufferStatusError)
        error = failed(m->device, C2C_GPU_E_RUN, "run", m->plan->name, [AS(MTLCommandBuffer, command) error]);
    drop(&command);
    return error;
}

/* A command buffer and its encoder; both come without a reference. */
static int open_command(c2c_metal_model *m)
{
    id<MTLCommandBuffer> command = [AS(MTLCommandQueue, m->queue) commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [command computeCommandEncoder];
    if (!encoder)
        return failed(m->device, C2C_GPU_E_MEMORY, "make commands for", m->plan->name, nil);
#if !__has_feature(objc_arc)
    [command retain];
    [encoder retain];
#endif
    m->command = KEEP(command);
    m->encoder = KEEP(encoder);
    return C2C_GPU_OK;
}

static int launch(void *self, uint32_t number)
{
    c2c_metal_model *m = (c2c_metal_model *)self;
    const c2c_plan_step *step = &m->plan->steps[number];
    const c2c_plan_kernel *k = &m->plan->kernels[step->kernel];
    int error = m->command ? C2C_GPU_OK : open_command(m);
    id<MTLComputeCommandEncoder> encoder = AS(MTLComputeCommandEncoder, m->encoder);
    uint32_t i;
    if (error)
        return error;
    [encoder setComputePipelineState:AS(MTLComputePipelineState, m->pipelines[step->kernel])];
    for (i = 0; i < step->count; i++) {
        const c2c_plan_arg *a = &m->plan->args[step->first + i];
        [encoder setBuffer:AS(MTLBuffer, m->buffers[a->buffer]) offset:(NSUInteger)a->at * a->size atIndex:i];
    }
    [encoder dispatchThreadgroups:MTLSizeMake(k->threads[0] / k->group[0], k->threads[1] / k->group[1],
                                              k->threads[2] / k->group[2])
            threadsPerThreadgroup:MTLSizeMake(k->group[0], k->group[1], k->group[2])];
    if (m->timed) { /* a command buffer's times are all that every device has */
        void *command = commit(m);
        [AS(MTLCommandBuffer, command) commit];
        m->timed[number] = command;
    }
    return C2C_GPU_OK;
}

/* The last of the commands that were given to the device one by one. */
static int finish_timed(c2c_metal_model *m, int error)
{
    uint32_t i;
    for (i = 0; m->timed && i < m->plan->step_count; i++) {
        id<MTLCommandBuffer> command = AS(MTLCommandBuffer, m->timed[i]);
        [command waitUntilCompleted];
        if (!error && command && [command status] == MTLCommandBufferStatusError)
            error = failed(m->device, C2C_GPU_E_RUN, "run", m->plan->steps[i].node, [command error]);
    }
    return error;
}

static int map(void *self, const c2c_plan_span *s, char **address)
{
    c2c_metal_model *m = (c2c_metal_model *)self;
    int error = finish_timed(m, finish(m, commit(m), C2C_GPU_OK));
    *address = contents(m, s->buffer) + s->begin;
    return error;
}

static int unmap(void *self, const c2c_plan_span *s, char *address)
{
    (void)self, (void)s, (void)address;
    return C2C_GPU_OK;
}

/* --- a model */

static int make_buffers(c2c_metal_model *m, const void *weights)
{
    id<MTLDevice> device = AS(MTLDevice, m->device->device);
    const c2c_plan *p = m->plan;
    uint32_t i;
    for (i = 0; i < C2C_PLAN_PORTS + p->inputs + p->outputs; i++) {
        uint64_t bytes = i == C2C_PLAN_ARENA      ? p->arena_bytes
                         : i == C2C_PLAN_WEIGHTS  ? p->weights_bytes
                         : i == C2C_PLAN_PREPARED ? p->prepared_bytes
                                                  : p->ports[i - C2C_PLAN_PORTS].bytes;
        if (bytes <= [device maxBufferLength])
            m->buffers[i] = i == C2C_PLAN_WEIGHTS && bytes
                                ? KEEP([device newBufferWithBytes:weights
                                                           length:(NSUInteger)bytes
                                                          options:MTLResourceStorageModeShared])
                                : KEEP([device newBufferWithLength:(NSUInteger)(bytes ? bytes : 64)
                                                           options:MTLResourceStorageModeShared]);
        if (!m->buffers[i])
            return failed(m->device, C2C_GPU_E_MEMORY, "make the memory of", p->name, nil);
    }
    return C2C_GPU_OK;
}

static int load(c2c_metal_model *m, const void *weights)
{
    c2c_metal *d = m->device;
    const c2c_plan *p = m->plan;
    int error;
    m->buffers = (void **)calloc(C2C_PLAN_PORTS + p->inputs + p->outputs, sizeof(void *));
    m->pipelines = (void **)calloc(p->kernel_count + 1, sizeof(void *));
    m->outputs = (void **)calloc(p->outputs + 1, sizeof(void *));
    if (d->profile)
        m->timed = (void **)calloc(p->step_count + 1, sizeof(void *));
    if (!m->buffers || !m->pipelines || !m->outputs || (d->profile && !m->timed))
        return c2c_gpu_fail(d->message, C2C_GPU_E_MEMORY, "out of memory");
    error = c2c_gpu_walk_open(&m->walk, d->message, d->profile);
    if (error)
        return error;
    m->queue = KEEP([AS(MTLDevice, d->device) newCommandQueue]);
    if (!m->queue)
        return failed(d, C2C_GPU_E_MEMORY, "make a queue for", p->name, nil);
    error = make_buffers(m, weights);
    if (!error)
        error = make_pipelines(m);
    if (!error)
        error = c2c_gpu_walk_steps(&m->walk, 0, p->prepares);
    return finish_timed(m, finish(m, commit(m), error));
}

int c2c_metal_load(c2c_metal *d, const c2c_plan *plan, const void *weights, size_t bytes, c2c_metal_model **model)
{
    c2c_metal_model *m;
    int error;
    if (!d || !plan || !model || (!weights && plan->weights_bytes))
        return C2C_GPU_E_NULL;
    *model = NULL;
    error = c2c_gpu_check_weights(d->message, plan, weights, bytes);
    if (error)
        return error;
    m = (c2c_metal_model *)calloc(1, sizeof *m);
    if (!m)
        return c2c_gpu_fail(d->message, C2C_GPU_E_MEMORY, "out of memory");
    m->device = d;
    m->plan = m->walk.plan = plan;
    m->walk.self = m;
    m->walk.launch = launch;
    m->walk.map = map;
    m->walk.unmap = unmap;
    @autoreleasepool {
        error = load(m, weights);
    }
    if (error)
        c2c_metal_unload(m);
    else
        *model = m;
    return error;
}

void c2c_metal_unload(c2c_metal_model *m)
{
    uint32_t i;
    if (!m)
        return;
    @autoreleasepool {
        [AS(MTLCommandBuffer, m->last) waitUntilCompleted];
        finish_timed(m, finish(m, commit(m), C2C_GPU_OK));
    }
    for (i = 0; m->timed && i < m->plan->step_count; i++)
        drop(&m->timed[i]);
    for (i = 0; m->pipelines && i < m->plan->kernel_count; i++)
        drop(&m->pipelines[i]);
    for (i = 0; m->buffers && i < C2C_PLAN_PORTS + m->plan->inputs + m->plan->outputs; i++)
        drop(&m->buffers[i]);
    drop(&m->last);
    drop(&m->queue);
    c2c_gpu_walk_close(&m->walk);
    free(m->timed);
    free(m->outputs);
    free(m->pipelines);
    free(m->buffers);
    free(m);
}

/* --- running */

int c2c_metal_map(c2c_metal_model *m, uint32_t port, void **address)
{
    if (!m || !address || port >= m->plan->inputs + m->plan->outputs)
        return C2C_GPU_E_NULL;
    *address = contents(m, C2C_PLAN_PORTS + port);
    return C2C_GPU_OK;
}

/* Inputs into the device's memory, and steps into its queue. */
static int submit(c2c_metal_model *m, const void *const *inputs)
{
    const c2c_plan *p = m->plan;
    uint32_t i;
    for (i = 0; i < p->inputs; i++)
        if (inputs[i] != C2C_GPU_IN_PLACE)
            memcpy(contents(m, C2C_PLAN_PORTS + i), inputs[i], (size_t)p->ports[i].bytes);
    for (i = 0; m->timed && i < p->step_count; i++)
        drop(&m->timed[i]);
    m->measured = 0;
    return c2c_gpu_walk_steps(&m->walk, p->prepares, p->step_count);
}

static void copy_out(c2c_metal_model *m, void *const *outputs)
{
    const c2c_plan *p = m->plan;
    uint32_t i;
    for (i = 0; i < p->outputs; i++)
        if (outputs[i] != C2C_GPU_IN_PLACE)
            memcpy(outputs[i], contents(m, C2C_PLAN_PORTS + p->inputs + i), (size_t)p->ports[p->inputs + i].bytes);
}

int c2c_metal_run(c2c_metal_model *m, const void *const *inputs, void *const *outputs)
{
    int error;
    if (!m || !inputs || !outputs)
        return C2C_GPU_E_NULL;
    error = c2c_gpu_check_ports(m->device->message, m->plan, inputs, outputs);
    if (error)
        return error;
    @autoreleasepool {
        [AS(MTLCommandBuffer, m->last) waitUntilCompleted];
        error = submit(m, inputs);
        error = finish_timed(m, finish(m, commit(m), error));
    }
    if (!error)
        copy_out(m, outputs);
    m->measured = !error;
    return error;
}

int c2c_metal_start(c2c_metal_model *m, const void *const *inputs, void *const *outputs,
                    void (*done)(void *user, int error), void *user)
{
    int error;
    if (!m || !inputs || !outputs || !done)
        return C2C_GPU_E_NULL;
    error = c2c_gpu_check_ports(m->device->message, m->plan, inputs, outputs);
    if (error)
        return error;
    @autoreleasepool {
        [AS(MTLCommandBuffer, m->last) waitUntilCompleted];
        drop(&m->last);
        m->done = done;
        m->user = user;
        memcpy(m->outputs, outputs, m->plan->outputs * sizeof *outputs);
        error = submit(m, inputs);
        if (!error && !m->command) /* all steps are on their way already: an empty one ends after them */
            error = open_command(m);
        if (error) {
            finish_timed(m, finish(m, commit(m), error));
            return error;
        }
        m->last = commit(m);
        [AS(MTLCommandBuffer, m->last) addCompletedHandler:^(id<MTLCommandBuffer> command) {
            int bad = [command status] == MTLCommandBufferStatusError;
            if (!bad)
                copy_out(m, m->outputs);
            else
                failed(m->device, C2C_GPU_E_RUN, "run", m->plan->name, [command error]);
            m->measured = !bad;
            m->done(m->user, bad ? C2C_GPU_E_RUN : C2C_GPU_OK);
        }];
        [AS(MTLCommandBuffer, m->last) commit];
    }
    return C2C_GPU_OK;
}

int c2c_metal_times(const c2c_metal_model *m, uint64_t *nanoseconds)
{
    uint32_t i;
    if (!m || !nanoseconds)
        return C2C_GPU_E_NULL;
    if (!m->timed || !m->measured)
        return c2c_gpu_fail(m->device->message, C2C_GPU_E_RUN, "%s: no run was timed; open the device with `profile`",
                            m->plan->name);
    for (i = 0; i < m->plan->step_count; i++) {
        id<MTLCommandBuffer> command = AS(MTLCommandBuffer, m->timed[i]);
        nanoseconds[i] = m->walk.host[i];
        if (command)
            nanoseconds[i] = (uint64_t)(([command GPUEndTime] - [command GPUStartTime]) * 1e9);
    }
    return C2C_GPU_OK;
}
