/* A plug-in for qemu-aarch64 (user mode): guest instructions by class, from one mark to the next.
 *
 *   gcc -O2 -shared -fPIC classes.c -o classes.so
 *   qemu-aarch64 -plugin ./classes.so,out=FILE PROGRAM
 *
 * A mark is the system call getpriority(0xc2c, TAG), which the kernel refuses. At each one a line "TAG mark n,n,…" is
 * written with the counts of the thread since its last mark, in the order of `class`, then the lanes of its multiply-adds;
 * and a line "TAG SYMBOL n,n,…" for each function that was executed.
 * Declarations are those of version 1 of the plug-in interface (QEMU 4.2 and later).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
typedef struct qemu_plugin_tb block_t;
typedef struct qemu_plugin_insn insn_t;
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, block_t *));
void qemu_plugin_register_vcpu_tb_exec_cb(block_t *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                             uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
size_t qemu_plugin_tb_n_insns(const block_t *);
insn_t *qemu_plugin_tb_get_insn(const block_t *, size_t);
const void *qemu_plugin_insn_data(const insn_t *);
const char *qemu_plugin_insn_symbol(const insn_t *);
__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum class { FMA, FMUL, DOT, SIMD, LOAD, STORE, INTEGER, BRANCH, LANES, COUNTS };

/* The first row whose bits match decides. "Arm A64 Instruction Set Architecture", top-level encodings and SIMD tables.
 * lanes: of a multiply-add in 64 bits; those of 128 bits (bit 30) have twice as many. 0: scalar. */
static const struct { uint32_t mask, bits; uint8_t class, lanes; } rows[] = {
    { 0xff000000, 0x1f000000, FMA, 0 },                                       /* fmadd, fmsub, fnmadd, fnmsub */
    { 0xbf20fc00, 0x0e20cc00, FMA, 2 },                                       /* fmla, fmls: vector */
    { 0xbf60fc00, 0x0e400c00, FMA, 4 },                                       /* the same of halves */
    { 0xbf80b400, 0x0f801000, FMA, 2 },                                       /* fmla, fmls: by element */
    { 0xbfc0b400, 0x0f001000, FMA, 4 },                                       /* the same of halves */
    { 0xff80b400, 0x5f801000, FMA, 0 },                                       /* scalar by element */
    { 0xff207c00, 0x1e200800, FMUL, 0 },                                      /* fmul, fnmul: scalar */
    { 0xbfa0fc00, 0x2e20dc00, FMUL, 0 }, { 0xbfe0fc00, 0x2e401c00, FMUL, 0 }, /* vector, halves */
    { 0xbf80f400, 0x0f809000, FMUL, 0 }, { 0xbfc0f400, 0x0f009000, FMUL, 0 }, /* by element, halves */
    { 0xff80f400, 0x5f809000, FMUL, 0 },
    { 0x9fe0fc00, 0x0e809400, DOT, 0 }, { 0x9fc0f400, 0x0f80e000, DOT, 0 },   /* sdot, udot */
    { 0xdfe0fc00, 0x4e80a400, DOT, 0 },                                       /* smmla, ummla */
    { 0x0e000000, 0x0e000000, SIMD, 0 },                                      /* all else of SIMD and floats */
    { 0xffc00000, 0xf9800000, INTEGER, 0 }, { 0xffe00c00, 0xf8a00800, INTEGER, 0 }, /* prfm */
    { 0x3b000000, 0x18000000, LOAD, 0 },                                      /* ldr of a literal */
    { 0x3f200c00, 0x38200000, LOAD, 0 },                                      /* atomics give the old value */
    { 0x3e400000, 0x38000000, STORE, 0 }, { 0x3e400000, 0x3c000000, STORE, 0 },
    { 0x3fc00000, 0x38800000, LOAD, 0 }, { 0x3fc00000, 0x39800000, LOAD, 0 },
    { 0x3fc00000, 0x3c800000, STORE, 0 }, { 0x3fc00000, 0x3d800000, STORE, 0 }, /* str of 128 bits */
    { 0x3a000000, 0x38000000, LOAD, 0 },
    { 0x0a400000, 0x08000000, STORE, 0 }, { 0x0a000000, 0x08000000, LOAD, 0 }, /* pairs, structures, exclusive */
    { 0x1c000000, 0x14000000, BRANCH, 0 },
    { 0, 0, INTEGER, 0 },
};

struct symbol { struct symbol *next; char *name; uint64_t counts[COUNTS], before[COUNTS]; };
struct counts { struct symbol *symbol; uint32_t counts[COUNTS]; };
static struct symbol *symbols;
static FILE *out;

static void classify(uint32_t word, uint32_t *counts)
{
    size_t i = 0;
    while ((word & rows[i].mask) != rows[i].bits) i++;
    counts[rows[i].class]++;
    if (rows[i].class == FMA) counts[LANES] += rows[i].lanes ? rows[i].lanes << (word >> 30 & 1) >> (rows[i].lanes == 2 && word >> 22 & 1) : 1;
}

static struct symbol *symbol_named(const char *name)
{
    struct symbol *s;
    if (!name) name = "?";
    for (s = symbols; s; s = s->next)
        if (!strcmp(s->name, name)) return s;
    s = calloc(1, sizeof *s);
    s->name = strdup(name);
    s->next = symbols;
    return symbols = s;
}

static void executed(unsigned cpu, void *data)
{
    const struct counts *c = data;
    (void)cpu;
    for (int i = 0; i < COUNTS; i++) c->symbol->counts[i] += c->counts[i];
}

static void translated(plugin_id id, block_t *block)
{
    struct counts *c = calloc(1, sizeof *c);
    (void)id;
    c->symbol = symbol_named(qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(block, 0)));
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        classify(word, c->counts);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, c);
}

static void line(uint64_t tag, const char *name, const uint64_t *counts)
{
    fprintf(out, "%d %s", (int)tag, name);
    for (int i = 0; i < COUNTS; i++) fprintf(out, "%c%llu", i ? ',' : ' ', (unsigned long long)counts[i]);
    fputc('\n', out);
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t tag, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    uint64_t sums[COUNTS] = { 0 };
    (void)id, (void)cpu, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != 141 || a != 0xc2c) return;
    for (struct symbol *s = symbols; s; s = s->next) {
        uint64_t since[COUNTS], any = 0;
        for (int i = 0; i < COUNTS; i++) {
            any |= since[i] = s->counts[i] - s->before[i];
            sums[i] += since[i];
            s->before[i] = s->counts[i];
        }
        if (any) line(tag, s->name, since);
    }
    line(tag, "mark", sums);
    fflush(out);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
    if (!out) out = stderr;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
