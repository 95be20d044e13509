/* Foundation and Metal for the driver on any system with an Objective-C runtime: objects are counted, the call that the
 * test names fails. Commands run when they are committed: kernels do nothing but count and mark what they were given
 * last, or run where $FAKE_KERNELS is a library of the emulator's. */
#define _GNU_SOURCE
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fake_calls, fake_fail_at, fake_live, fake_devices = 1, fake_kernels_run, fake_copies, fake_built;
size_t fake_largest = (size_t)1 << 30, fake_group = 1024, fake_width = 32;

extern id class_createInstance(Class class, size_t extra);
extern id object_dispose(id object);

typedef void (*run_type)(const char *, void *, void *const *, const size_t *, unsigned, const unsigned *, const unsigned *,
                         int);
static void *kernels;

static int fails(void) { return ++fake_calls == fake_fail_at; }

/* --- Foundation */

enum { POOLED = 100000 };
static id pooled[POOLED];
static int pooled_count;

@implementation NSObject
+ (instancetype)alloc
{
    NSObject *made = class_createInstance(self, 0);
    made->references = 1;
    fake_live++;
    return made;
}
+ (instancetype)new
{
    return [[self alloc] init];
}
- (instancetype)init
{
    return self;
}
- (id)retain
{
    references++;
    return self;
}
- (void)release
{
    if (--references == 0)
        [self dealloc];
}
- (id)autorelease
{
    if (pooled_count == POOLED)
        abort();
    return pooled[pooled_count++] = self;
}
- (void)dealloc
{
    fake_live--;
    object_dispose(self);
}
@end

@interface NSAutoreleasePool : NSObject {
    int first;
}
- (void)drain;
@end

@implementation NSAutoreleasePool
- (instancetype)init
{
    first = pooled_count;
    return self;
}
- (void)drain
{
    while (pooled_count > first)
        [pooled[--pooled_count] release];
    [self release];
}
@end

@implementation NSString
+ (instancetype)stringWithUTF8String:(const char *)given
{
    NSString *made = [[NSString new] autorelease];
    made->text = strdup(given);
    return made;
}
- (const char *)UTF8String
{
    return text;
}
- (void)dealloc
{
    free(text);
    [super dealloc];
}
@end

@implementation NSError
+ (NSError *)with:(const char *)given
{
    NSError *made = [[NSError new] autorelease];
    made->words = given;
    return made;
}
- (NSString *)localizedDescription
{
    return [NSString stringWithUTF8String:words];
}
@end

@implementation NSURL
+ (NSURL *)fileURLWithPath:(NSString *)given
{
    NSURL *made = [[NSURL new] autorelease];
    snprintf(made->path, sizeof made->path, "%s", [given UTF8String]);
    return made;
}
@end

@implementation NSArray
+ (instancetype)arrayWithObject:(id)object
{
    NSArray *made = [[NSArray new] autorelease];
    made->member = [object retain];
    return made;
}
- (NSUInteger)count
{
    return member != nil;
}
- (id)objectAtIndex:(NSUInteger)index
{
    return index ? nil : member;
}
- (void)dealloc
{
    [member release];
    [super dealloc];
}
@end

/* --- Metal */

@implementation MTLCompileOptions
- (instancetype)init
{
    fast = YES;
    return self;
}
- (void)setFastMathEnabled:(BOOL)enabled
{
    fast = enabled;
}
- (BOOL)fastMathEnabled
{
    return fast;
}
- (void)setLanguageVersion:(MTLLanguageVersion)given
{
    version = given;
}
- (MTLLanguageVersion)languageVersion
{
    return version;
}
@end

@implementation MTLComputePipelineDescriptor
- (void)setComputeFunction:(id<MTLFunction>)given
{
    kernel = [given retain];
}
- (id<MTLFunction>)computeFunction
{
    return kernel;
}
- (void)setBinaryArchives:(NSArray *)given
{
    archives = [given retain];
}
- (NSArray *)binaryArchives
{
    return archives;
}
- (void)dealloc
{
    [kernel release];
    [archives release];
    [super dealloc];
}
@end

@implementation MTLBinaryArchiveDescriptor
- (void)setUrl:(NSURL *)given
{
    [place release];
    place = [given retain];
}
- (NSURL *)url
{
    return place;
}
- (void)dealloc
{
    [place release];
    [super dealloc];
}
@end

@interface FakeArchive : NSObject <MTLBinaryArchive>
@end

@implementation FakeArchive
- (BOOL)addComputePipelineFunctionsWithDescriptor:(MTLComputePipelineDescriptor *)descriptor error:(NSError **)error
{
    (void)error;
    return [descriptor computeFunction] != nil;
}
- (BOOL)serializeToURL:(NSURL *)url error:(NSError **)error
{
    FILE *f = fopen(url->path, "wb");
    (void)error;
    return f && fputs("archive", f) >= 0 && !fclose(f);
}
@end

@interface FakeFunction : NSObject <MTLFunction> {
@public
    char name[128];
}
@end
@implementation FakeFunction
@end

@interface FakePipeline : NSObject <MTLComputePipelineState> {
@public
    char name[128];
    void *entry;
}
@end
@implementation FakePipeline
- (NSUInteger)maxTotalThreadsPerThreadgroup
{
    return fake_group;
}
- (NSUInteger)threadExecutionWidth
{
    return fake_width;
}
@end

@interface FakeBuffer : NSObject <MTLBuffer> {
@public
    char *memory;
    size_t bytes;
}
@end
@implementation FakeBuffer
- (void *)contents
{
    return memory;
}
- (void)dealloc
{
    free(memory);
    [super dealloc];
}
@end

/* Commands that wait for their commitment. */
typedef struct command {
    FakePipeline *pipeline;
    char *at[31];
    unsigned count, groups[3], threads[3];
} command;

@interface FakeCommands : NSObject <MTLCommandBuffer> {
@public
    command *list;
    int count, ended;
    void (^handler)(id<MTLCommandBuffer>);
    MTLCommandBufferStatus state;
}
@end

@interface FakeEncoder : NSObject <MTLComputeCommandEncoder> {
@public
    FakeCommands *commands;
    command now;
}
@end

@implementation FakeEncoder
- (void)setComputePipelineState:(id<MTLComputePipelineState>)state
{
    memset(&now, 0, sizeof now);
    now.pipeline = (FakePipeline *)state;
}
- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index
{
    FakeBuffer *given = (FakeBuffer *)buffer;
    if (index != now.count || index > 30 || offset > given->bytes)
        abort();
    now.at[now.count++] = given->memory + offset;
}
- (void)dispatchThreadgroups:(MTLSize)groups threadsPerThreadgroup:(MTLSize)threads
{
    command made = now;
    made.groups[0] = (unsigned)groups.width, made.groups[1] = (unsigned)groups.height;
    made.groups[2] = (unsigned)groups.depth, made.threads[0] = (unsigned)threads.width;
    made.threads[1] = (unsigned)threads.height, made.threads[2] = (unsigned)threads.depth;
    commands->list = realloc(commands->list, (size_t)(commands->count + 1) * sizeof made);
    commands->list[commands->count++] = made;
}
- (void)endEncoding
{
    commands->ended = 1;
}
@end

@implementation FakeCommands
- (id<MTLComputeCommandEncoder>)computeCommandEncoder
{
    FakeEncoder *made = fails() ? nil : [[FakeEncoder new] autorelease];
    if (made)
        made->commands = self;
    return made;
}
- (void)addCompletedHandler:(MTLCommandBufferHandler)block
{
    handler = block; /* called before the frame of the block ends, by commit */
}
- (void)commit
{
    run_type run = kernels ? (run_type)dlsym(kernels, "emulated_run") : NULL;
    int i;
    if (!ended || state)
        abort();
    state = fails() ? MTLCommandBufferStatusError : MTLCommandBufferStatusCompleted;
    for (i = 0; i < count && state == MTLCommandBufferStatusCompleted; i++) {
        command *c = &list[i];
        fake_kernels_run++;
        if (run)
            run(c->pipeline->name, c->pipeline->entry, (void *const *)c->at, NULL, c->count, c->groups, c->threads, 1);
        else
            *c->at[c->count - 1] = 7;
    }
    if (handler)
        handler(self);
}
- (void)waitUntilCompleted
{
    if (!state)
        abort();
}
- (MTLCommandBufferStatus)status
{
    return state;
}
- (NSError *)error
{
    return [NSError with:"the fake device was lost"];
}
- (CFTimeInterval)GPUStartTime
{
    return 1.0;
}
- (CFTimeInterval)GPUEndTime
{
    return 1.0000000421;
}
- (void)dealloc
{
    free(list);
    [super dealloc];
}
@end

@interface FakeQueue : NSObject <MTLCommandQueue>
@end
@implementation FakeQueue
- (id<MTLCommandBuffer>)commandBuffer
{
    return fails() ? nil : [[FakeCommands new] autorelease];
}
@end

@interface FakeLibrary : NSObject <MTLLibrary>
@end
@implementation FakeLibrary
- (id<MTLFunction>)newFunctionWithName:(NSString *)name
{
    FakeFunction *made = fails() ? nil : [FakeFunction new];
    if (made)
        snprintf(made->name, sizeof made->name, "%s", [name UTF8String]);
    return made;
}
@end

@interface FakeDevice : NSObject <MTLDevice>
@end

@implementation FakeDevice
- (NSString *)name
{
    return [NSString stringWithUTF8String:"Fake device"];
}
- (NSUInteger)maxBufferLength
{
    return fake_largest;
}
- (id<MTLCommandQueue>)newCommandQueue
{
    return fails() ? nil : [FakeQueue new];
}
- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options
{
    FakeBuffer *made = fails() || !length || options ? nil : [FakeBuffer new];
    if (made) {
        made->memory = calloc(1, length);
        made->bytes = length;
    }
    return made;
}
- (id<MTLBuffer>)newBufferWithBytes:(const void *)bytes length:(NSUInteger)length options:(MTLResourceOptions)options
{
    FakeBuffer *made = [self newBufferWithLength:length options:options];
    if (made)
        memcpy(made->memory, bytes, length);
    return made;
}
- (id<MTLLibrary>)newLibraryWithSource:(NSString *)source options:(MTLCompileOptions *)options error:(NSError **)error
{
    if (fails() || !*[source UTF8String] || [options fastMathEnabled] || !([options languageVersion] >> 16)) {
        *error = [NSError with:"error: line 3 of the fake log"];
        return nil;
    }
    if (getenv("FAKE_KERNELS") && !kernels)
        kernels = dlopen(getenv("FAKE_KERNELS"), RTLD_NOW);
    return [FakeLibrary new];
}
- (id<MTLBinaryArchive>)newBinaryArchiveWithDescriptor:(MTLBinaryArchiveDescriptor *)descriptor error:(NSError **)error
{
    (void)error;
    fake_built += [descriptor url] == nil;
    return fails() ? nil : [FakeArchive new];
}
- (id<MTLComputePipelineState>)newComputePipelineStateWithDescriptor:(MTLComputePipelineDescriptor *)descriptor
                                                              options:(MTLPipelineOption)options
                                                           reflection:(void *)reflection
                                                                error:(NSError **)error
{
    FakeFunction *function = (FakeFunction *)[descriptor computeFunction];
    FakePipeline *made = fails() || options || reflection ? nil : [FakePipeline new];
    char entry[160];
    if (!made) {
        *error = [NSError with:"no such pipeline"];
        return nil;
    }
    snprintf(made->name, sizeof made->name, "%s", function->name);
    snprintf(entry, sizeof entry, "emulated_%s", function->name);
    made->entry = kernels ? dlsym(kernels, entry) : NULL;
    return made;
}
@end

id<MTLDevice> MTLCreateSystemDefaultDevice(void) { return fails() || !fake_devices ? nil : [FakeDevice new]; }

NSArray *MTLCopyAllDevices(void)
{
    FakeDevice *device = [FakeDevice new];
    NSArray *made = [[NSArray arrayWithObject:device] retain];
    [device release];
    return made;
}

/* --- blocks, of which the driver makes one that captures a pointer */

void *_NSConcreteStackBlock[32], *_NSConcreteGlobalBlock[32];
