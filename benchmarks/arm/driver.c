/* Runs a compiled model three times, with a mark before and after the third (see classes.c).
 *
 *   driver ARENA_BYTES {in FILE BYTES | out FILE BYTES}…    in the order of the model's inputs and outputs
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int model_run(void **args);

static void *room(size_t bytes)
{
    void *p;
    if (posix_memalign(&p, 64, bytes + 64)) exit(3);
    return p;
}

int main(int argc, char **argv)
{
    void *args[64] = { 0 };
    int n = 0;
    for (int i = 2; i + 2 < argc; i += 3, n++) {
        size_t bytes = strtoull(argv[i + 2], NULL, 10);
        args[n] = room(bytes);
        if (!strcmp(argv[i], "in")) {
            FILE *f = fopen(argv[i + 1], "rb");
            if (!f || fread(args[n], 1, bytes, f) != bytes) return 4;
            fclose(f);
        }
    }
    args[n] = room(strtoull(argv[1], NULL, 10));
    for (int run = 0; run < 3; run++) {
        if (run == 2) syscall(SYS_getpriority, 0xc2cL, 0L);
        if (model_run(args)) return 5;
    }
    syscall(SYS_getpriority, 0xc2cL, 1L);
    for (int i = 2, k = 0; i + 2 < argc; i += 3, k++) {
        if (!strcmp(argv[i], "out")) {
            FILE *f = fopen(argv[i + 1], "wb");
            if (!f || fwrite(args[k], 1, strtoull(argv[i + 2], NULL, 10), f) == 0) return 6;
            fclose(f);
        }
    }
    return 0;
}
