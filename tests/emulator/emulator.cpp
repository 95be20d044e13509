/* emulator.h says what is promised. Fibers begin by makecontext and go on by _longjmp, which makes no system call. */
#include "emulator.h"
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

enum { MOST = 1024, STACK = 1 << 20, BROUGHT = 64 };
static const uint32_t NOBODY = 0xffffffff, SEVERAL = 0xfffffffe;

struct fiber {
    jmp_buf here;
    int started, done, line, gathers;
    char brought[BROUGHT];
    emulated_position at;
};

/* Who touched a byte last: threads, and in which interval between barriers. */
struct touched {
    uint32_t writer, reader, written, read;
};

struct region {
    char *begin, *end;
    bool writable;
    std::vector<touched> shadow;
};

static struct {
    fiber fibers[MOST];
    jmp_buf scheduler;
    fiber *now;
    char *stacks, *gathered; /* what all threads have brought to where they met last */
    emulated_entry entry;
    void *const *arguments;
    const char *name;
    uint32_t interval, first_of_group, first_thread;
    bool stopped, watched;
    std::vector<region> regions;
    std::string faults, answer;
    int count;
} self;

extern char __start_emulated_shared[] __attribute__((weak)), __stop_emulated_shared[] __attribute__((weak));

unsigned emulated_subgroup = 32;
int emulated_scattered = 0;

/* Once for each kernel and kind. */
static void fault(const char *what)
{
    std::string line = std::string(self.name) + ": " + what + "\n";
    self.count++;
    if (self.faults.find(line) == std::string::npos)
        self.faults += line;
}

/* --- fibers */

static void to_scheduler(void)
{
    if (!_setjmp(self.now->here))
        _longjmp(self.scheduler, 1);
}

static void body(void)
{
    for (;;) {
        self.entry(self.arguments, self.now->at);
        self.now->done = 1;
        to_scheduler();
    }
}

static void resume(fiber *f)
{
    self.now = f;
    if (_setjmp(self.scheduler))
        return;
    if (f->started)
        _longjmp(f->here, 1);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = self.stacks + (f - self.fibers) * STACK;
    context.uc_stack.ss_size = STACK;
    context.uc_link = NULL;
    makecontext(&context, body, 0);
    f->started = 1;
    setcontext(&context);
}

emulated_position emulated_at(void) { return self.now->at; }

static void meet(int line, int gathers)
{
    self.now->line = line;
    self.now->gathers = gathers;
    to_scheduler();
}

void emulated_barrier(int line) { meet(line, 0); }

void emulated_gather(int line, const void *mine, size_t bytes, void *all)
{
    unsigned first = self.now->at.subgroup * emulated_subgroup;
    if (bytes > BROUGHT)
        abort();
    memcpy(self.now->brought, mine, bytes);
    meet(line, 1);
    for (unsigned i = 0; i < emulated_subgroup; i++)
        memcpy((char *)all + i * bytes, self.gathered + (first + i) * BROUGHT, bytes);
}

void emulated_shuffle_xor(int line, const void *mine, size_t bytes, unsigned mask, void *theirs)
{
    char all[EMULATED_SUBGROUP * 8];
    emulated_gather(line, mine, bytes, all);
    if (mask >= emulated_subgroup)
        fault("a shuffle beyond its subgroup");
    memcpy(theirs, all + (self.now->at.lane ^ mask) % emulated_subgroup * bytes, bytes);
}

void emulated_fault(const char *what) { fault(what); }

/* Threads that wait, after one round of all; what is wrong with where they wait. gathers: whether all of those exchange
 * values. */
static unsigned waiting(unsigned threads, bool *gathers)
{
    unsigned wait = 0, exchanges = 0, i;
    int line = 0;
    bool apart = false;
    for (i = 0; i < threads; i++) {
        fiber *f = &self.fibers[i];
        wait += !f->done;
        exchanges += !f->done && f->gathers;
        apart |= !f->done && line && f->line != line;
        line = f->done ? line : f->line;
    }
    if (apart)
        fault(exchanges ? "exchange divergence: threads wait at different places"
                        : "barrier divergence: threads wait at different barriers");
    if (wait && wait < threads)
        fault(exchanges ? "exchange divergence: threads ended before an exchange"
                        : "barrier divergence: threads ended before a barrier");
    *gathers = wait && exchanges == wait;
    return wait;
}

static unsigned place_of(const fiber *f) { return f->at.subgroup * emulated_subgroup + f->at.lane; }

static void run_group(unsigned threads)
{
    unsigned i, left = threads;
    self.first_of_group = ++self.interval;
    while (left && !self.stopped) {
        for (i = 0; i < threads && !self.stopped; i++)
            if (!self.fibers[i].done)
                resume(&self.fibers[i]);
        bool gathers = false;
        left = self.stopped ? 0 : waiting(threads, &gathers);
        self.interval += !gathers;
        for (i = 0; i < threads && left; i++)
            memcpy(self.gathered + place_of(&self.fibers[i]) * BROUGHT, self.fibers[i].brought, BROUGHT);
    }
}

static void run_plain(unsigned threads)
{
    for (unsigned i = 0; i < threads && !self.stopped; i++) {
        self.now = &self.fibers[i];
        if (!_setjmp(self.scheduler)) /* an access outside of all memory comes back here */
            self.entry(self.arguments, self.now->at);
    }
}

static void place(unsigned x, unsigned y, unsigned z, const unsigned t[3])
{
    unsigned i = 0, all = t[0] * t[1] * t[2], n;
    for (unsigned c = 0; c < t[2]; c++)
        for (unsigned b = 0; b < t[1]; b++)
            for (unsigned a = 0; a < t[0]; a++, i++) {
                n = emulated_scattered ? i * 5 % all : i;
                self.fibers[i].done = 0;
                self.fibers[i].at = {{x, y, z}, {a, b, c}, {x * t[0] + a, y * t[1] + b, z * t[2] + c},
                                     n / emulated_subgroup, n % emulated_subgroup};
            }
}

/* --- watching */

static void add_region(char *begin, size_t bytes)
{
    self.regions.push_back({begin, begin + bytes, true, std::vector<touched>(bytes, touched{NOBODY, NOBODY, 0, 0})});
}

static region *find(const char *p)
{
    for (region &r : self.regions)
        if (p >= r.begin && p < r.end)
            return &r;
    return NULL;
}

static void outside(const char *what)
{
    fault(what);
    self.stopped = true;
    _longjmp(self.scheduler, 1);
}

/* One byte: threads that touch it, one of them writing, must have a barrier between them; barriers order the memory of
 * a work-group alone. */
static void touch(touched &t, bool write, bool shared)
{
    uint32_t me = self.first_thread + (uint32_t)(self.now - self.fibers), since = shared ? self.interval : 0;
    if (t.writer != NOBODY && t.writer != me && t.written >= since)
        fault(shared ? "data race in shared memory" : "data race in device memory");
    if (write && t.reader != NOBODY && t.reader != me && t.read >= since)
        fault(shared ? "data race in shared memory" : "data race in device memory");
    if (shared && !write && t.written < self.first_of_group)
        fault("shared memory is read that nobody wrote");
    if (write) {
        t.writer = me;
        t.written = self.interval;
    } else {
        t.reader = t.reader == NOBODY || t.reader == me || t.read < since ? me : SEVERAL;
        t.read = self.interval;
    }
}

static void access(const void *address, size_t bytes, bool write)
{
    const char *p = (const char *)address;
    if (!self.watched || (p >= self.stacks && p < self.stacks + (size_t)MOST * STACK))
        return;
    region *r = find(p);
    if (!r || p + bytes > r->end)
        outside(write ? "invalid write" : "invalid read");
    bool shared = r->begin == __start_emulated_shared;
    int before = self.count;
    for (size_t i = 0; i < bytes && self.count == before; i++)
        touch(r->shadow[p - r->begin + i], write, shared);
}

static void watch(void *const *arguments, const size_t *sizes, unsigned count)
{
    self.regions.clear();
    self.watched = sizes != NULL;
    for (unsigned i = 0; sizes && i < count; i++)
        if (!find((char *)arguments[i]))
            add_region((char *)arguments[i], sizes[i]);
    if (__start_emulated_shared && sizes)
        add_region(__start_emulated_shared, (size_t)(__stop_emulated_shared - __start_emulated_shared));
}

#define WATCHED(n)                                                                  \
    void __tsan_read##n(void *p) { access(p, n, false); }                           \
    void __tsan_write##n(void *p) { access(p, n, true); }                           \
    void __tsan_unaligned_read##n(void *p) { access(p, n, false); }                 \
    void __tsan_unaligned_write##n(void *p) { access(p, n, true); }                 \
    void __tsan_read_write##n(void *p) { access(p, n, false), access(p, n, true); } \
    void __tsan_unaligned_read_write##n(void *p) { access(p, n, false), access(p, n, true); }

extern "C" {
WATCHED(1) WATCHED(2) WATCHED(4) WATCHED(8) WATCHED(16)
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void *__tsan_memset(void *p, int c, size_t n) { return access(p, n, true), memset(p, c, n); }
void *__tsan_memcpy(void *a, const void *b, size_t n) { return access(b, n, false), access(a, n, true), memcpy(a, b, n); }
void *__tsan_memmove(void *a, const void *b, size_t n)
{
    return access(b, n, false), access(a, n, true), memmove(a, b, n);
}
void __ubsan_handle_out_of_bounds(void *, void *) { outside("an index beyond its array"); }
}

/* --- runs */

void emulated_run(const char *name, emulated_entry entry, void *const *arguments, const size_t *sizes, unsigned count,
                  const unsigned groups[3], const unsigned threads[3], int barriers)
{
    unsigned all = threads[0] * threads[1] * threads[2], number = 0;
    if (!self.gathered)
        self.gathered = (char *)calloc(MOST + EMULATED_SUBGROUP, BROUGHT);
    if (!self.stacks)
        self.stacks = (char *)mmap(NULL, (size_t)MOST * STACK, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all > MOST || self.stacks == MAP_FAILED || !self.gathered)
        abort();
    self.name = name;
    self.entry = entry;
    self.arguments = arguments;
    self.stopped = false;
    watch(arguments, sizes, count);
    for (unsigned z = 0; z < groups[2]; z++)
        for (unsigned y = 0; y < groups[1]; y++)
            for (unsigned x = 0; x < groups[0] && !self.stopped; x++, number++) {
                self.first_thread = number * all;
                place(x, y, z, threads);
                if (barriers || self.watched)
                    run_group(all);
                else
                    run_plain(all);
            }
    for (unsigned i = 0; self.stopped && i < all; i++)
        self.fibers[i].started = 0;
}

const char *emulated_faults(void)
{
    self.answer = self.faults;
    self.faults.clear();
    self.count = 0;
    return self.answer.c_str();
}
