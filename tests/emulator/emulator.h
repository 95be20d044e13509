/* A graphics processor of one core: the threads of a work-group are fibers that take turns at barriers and where threads
 * of a subgroup exchange values.
 *
 * Kernels are C++ functions behind an `entry` that hands them their arguments. Code that was compiled with
 * -fsanitize=thread is watched as well: the compiler calls __tsan_read4(address) and its like before every access. */
#ifndef EMULATOR_H
#define EMULATOR_H
#include <stddef.h>
#include <stdint.h>

enum { EMULATED_SUBGROUP = 128 }; /* threads at most */

struct emulated_uint3 {
    unsigned x, y, z;
};

/* Numbers of a thread: its work-group, itself in that, itself in the grid; its subgroup, itself in that. */
struct emulated_position {
    emulated_uint3 of_group, in_group, in_grid;
    unsigned subgroup, lane;
};

typedef void (*emulated_entry)(void *const *arguments, const emulated_position &at);

/* What stands in front of memory that a work-group shares: one place for all of it, since groups come one by one. */
#define EMULATED_SHARED static __attribute__((section("emulated_shared")))

extern "C" {
/* Threads of a subgroup: neighbours by number, the first dimension of a work-group counting fastest. */
extern unsigned emulated_subgroup;

/* Where not 0, they are others: those whose numbers, times 5 and modulo a power of two, are neighbours. */
extern int emulated_scattered;

/* The thread that runs. */
__attribute__((const)) emulated_position emulated_at(void);

/* All threads of the work-group come here, from one `line` of the text, before any goes on. */
__attribute__((noduplicate)) void emulated_barrier(int line);

/* All threads of the work-group come here, too; `all`: what those of the thread's subgroup have brought, `bytes` (at most
 * 64) of each by its place. Orders no memory. */
__attribute__((noduplicate)) void emulated_gather(int line, const void *mine, size_t bytes, void *all);

/* The same, and `theirs` is what the thread has brought whose place differs in the bits of `mask`. */
__attribute__((noduplicate)) void emulated_shuffle_xor(int line, const void *mine, size_t bytes, unsigned mask,
                                                       void *theirs);

/* Something is wrong with what a thread does. */
void emulated_fault(const char *what);

/* Run a grid. sizes: bytes behind each argument, or NULL: not known. barriers: whether there are any. */
void emulated_run(const char *name, emulated_entry entry, void *const *arguments, const size_t *sizes, unsigned count,
                  const unsigned groups[3], const unsigned threads[3], int barriers);

/* What was wrong since the last call, a line each; empty where nothing was. */
const char *emulated_faults(void);
}
#endif
