/* packed TABLE FILE SECONDS: decodes packed weights into their image over and over. Prints the image's bytes, the
 * fastest time in seconds, and the most memory that the decoder held beside the image (allocations are counted). */
#include "c2c_weights.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static size_t held, most;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void __real_free(void *p);
size_t malloc_usable_size(void *p);

static void *counted(void *p)
{
    held += p ? malloc_usable_size(p) : 0;
    most = held > most ? held : most;
    return p;
}

void *__wrap_malloc(size_t n) { return counted(__real_malloc(n)); }
void *__wrap_calloc(size_t n, size_t size) { return counted(__real_calloc(n, size)); }
void __wrap_free(void *p)
{
    held -= p ? malloc_usable_size(p) : 0;
    __real_free(p);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    FILE *f = argc == 4 ? fopen(argv[1], "rb") : NULL;
    uint32_t *table;
    size_t size, image_bytes;
    double best = 1e9, begin = now();
    void *image;
    if (!f)
        return 2;
    fseek(f, 0, SEEK_END);
    size = (size_t)ftell(f);
    rewind(f);
    table = (uint32_t *)__real_malloc(size);
    if (!table || fread(table, 1, size, f) != size)
        return 3;
    fclose(f);
    image_bytes = table[9] | (size_t)table[10] << 32;
    image = aligned_alloc(64, (image_bytes + 64) / 64 * 64);
    memset(image, 1, image_bytes);
    do {
        double start = now(), took;
        int error = c2c_weights_load(argv[2], table, image);
        if (error) {
            fprintf(stderr, "%s\n", c2c_weights_error_string(error));
            return 1;
        }
        took = now() - start;
        best = took < best ? took : best;
    } while (now() - begin < atof(argv[3]));
    printf("%zu %.9f %zu\n", image_bytes, best, most);
    return 0;
}
