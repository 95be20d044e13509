/* Names the type of files with Magika's trained network, compiled into this program by c2c.
 *
 *   ./filetype FILE...        prints: FILE<tab>type<tab>probability
 *
 * Magika reads 1024 bytes from the start and 1024 from the end of a file, stripped of white space; 256 is padding. */
#include "magika.h"
#include "magika_labels.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HALF = 1024, BLOCK = 4096, PADDING = 256 };

static long read_block(FILE *f, long from, unsigned char *block) {
    if (fseek(f, from, SEEK_SET)) return -1;
    return (long)fread(block, 1, BLOCK, f);
}

static int features(const char *path, int32_t *x) {
    unsigned char block[BLOCK];
    long size, n, i;
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) return -1;
    size = ftell(f);
    for (i = 0; i < 2 * HALF; i++) x[i] = PADDING;
    n = read_block(f, 0, block);
    for (i = 0; i < n && isspace(block[i]); i++) {}
    for (long k = 0; k < HALF && i < n; k++, i++) x[k] = block[i];
    n = read_block(f, size > BLOCK ? size - BLOCK : 0, block);
    fclose(f);
    while (n > 0 && isspace(block[n - 1])) n--;
    for (long k = 2 * HALF - 1; k >= HALF && n > 0; k--) x[k] = block[--n];
    return 0;
}

int main(int argc, char **argv) {
    static int32_t x[MAGIKA_BYTES_SIZE];
    static float y[MAGIKA_TARGET_LABEL_SIZE];
    char *arena = (char *)malloc(MAGIKA_ARENA_BYTES + 64);
    magika_args args = {0};
    if (!arena) return 2;
    args.bytes = x;
    args.target_label = y;
    args.arena = arena + 64 - (uintptr_t)arena % 64;
    for (int a = 1; a < argc; a++) {
        int best = 0, error;
        if (features(argv[a], x)) { fprintf(stderr, "%s: cannot be read\n", argv[a]); return 1; }
        error = magika_run(&args);
        if (error) { fprintf(stderr, "magika_run: error %d\n", error); return 1; }
        for (int k = 1; k < MAGIKA_TARGET_LABEL_SIZE; k++)
            if (y[k] > y[best]) best = k;
        printf("%s\t%s\t%.6f\n", argv[a], magika_labels[best], (double)y[best]);
    }
    free(arena);
    return 0;
}
