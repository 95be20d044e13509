/* weights_test TABLE IMAGE FILE...: for each file the error codes of reading it from disk and from memory, and whether
 * the image is right. TABLE, IMAGE: raw words and bytes. In a build with C2C_WEIGHTS_FUZZ the codes alone count. */
#include "c2c_weights.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *contents(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    char *data;
    *size = 0;
    if (!f)
        return NULL;
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    data = (char *)malloc(*size + !*size); /* not a byte more: what is read beyond is seen */
    if (!data || fread(data, 1, *size, f) != *size)
        exit(3);
    fclose(f);
    return data;
}

int main(int argc, char **argv)
{
    size_t words, bytes, size;
    uint32_t *table = (uint32_t *)contents(argv[1], &words);
    char *expected = (char *)contents(argv[2], &bytes), *image = (char *)malloc(bytes + !bytes), *data;
    int i, loaded, decoded, opened, same;
    for (i = 3; i < argc; i++) {
        c2c_weights *file;
        memset(image, 5, bytes);
        loaded = c2c_weights_load(argv[i], table, image);
        same = !memcmp(image, expected, bytes);
        memset(image, 5, bytes);
        data = (char *)contents(argv[i], &size);
        decoded = data ? c2c_weights_decode(data, size, table, image) : loaded;
        same += 2 * !memcmp(image, expected, bytes);
        free(data);
        opened = c2c_weights_open(argv[i], table, &file);
        if (!opened != !!file)
            return 4;
        c2c_weights_close(file);
        printf("%d %d %d %d %s\n", loaded, decoded, opened, same, c2c_weights_error_string(loaded));
    }
    free(table);
    free(expected);
    free(image);
    return 0;
}
