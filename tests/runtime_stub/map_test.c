/* map_test FILE BYTES: prints the error code, and for a mapped file its first and last byte; "aligned" is checked. */
#include "c2c_runtime.h"
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    const void *weights = &weights;
    void *mapping = &mapping;
    size_t bytes = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 0;
    int error = c2c_map_weights(argv[1], bytes, &weights, &mapping);
    printf("%d", error);
    if ((error || !bytes) && (weights || mapping))
        return 1;
    if (!error && bytes) {
        const unsigned char *p = (const unsigned char *)weights;
        if ((uintptr_t)p % 64)
            return 2;
        printf(" %d %d", p[0], p[bytes - 1]);
    }
    c2c_unmap_weights(mapping, bytes);
    printf(" %s\n", c2c_error_string(error));
    return 0;
}
