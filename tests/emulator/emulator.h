/* A graphics processor of one core: the threads of a work-group are fibers that take turns at barriers.
 *
 * Kernels are C++ functions behind an `entry` that hands them their arguments. Code that was compiled with
 * -fsanitize=thread is watched as well: the compiler calls __tsan_read4(address) and its like before every access. */
#ifndef EMULATOR_H
#define EMULATOR_H
#include <stddef.h>
#include <stdint.h>

struct emulated_uint3 {
    unsigned x, y, z;
};

/* Numbers of a thread: its work-group, itself in that, itself in the grid. */
struct emulated_position {
    emulated_uint3 of_group, in_group, in_grid;
};

typedef void (*emulated_entry)(void *const *arguments, const emulated_position &at);

/* What stands in front of memory that a work-group shares: one place for all of it, since groups come one by one. */
#define EMULATED_SHARED static __attribute__((section("emulated_shared")))

extern "C" {
/* The thread that runs. */
__attribute__((const)) emulated_position emulated_at(void);

/* All threads of the work-group come here, from one `line` of the text, before any goes on. */
__attribute__((noduplicate)) void emulated_barrier(int line);

/* Run a grid. sizes: bytes behind each argument, or NULL: not known. barriers: whether there are any. */
void emulated_run(const char *name, emulated_entry entry, void *const *arguments, const size_t *sizes, unsigned count,
                  const unsigned groups[3], const unsigned threads[3], int barriers);

/* What was wrong since the last call, a line each; empty where nothing was. */
const char *emulated_faults(void);
}
#endif
