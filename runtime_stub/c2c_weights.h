/* c2c packed weights: checks a file that `c2c compile --weights packed` wrote, or the same bytes in memory, and decodes
 * it into the weight image that NAME_run reads.
 *
 * Optional: only models with packed weights need it. Links libzstd (1.4 or newer), of which it decompresses single
 * frames only. C99, C++11; a few KB, no state. Little-endian machines. docs/weights-file.md has the format. */
#ifndef C2C_WEIGHTS_H
#define C2C_WEIGHTS_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum c2c_weights_error {
    C2C_WEIGHTS_OK = 0,
    C2C_WEIGHTS_E_OPEN = 1,     /* the file is missing or cannot be read */
    C2C_WEIGHTS_E_FORMAT = 2,   /* these are no packed weights */
    C2C_WEIGHTS_E_VERSION = 3,  /* packed weights, or a table, of another version of the format */
    C2C_WEIGHTS_E_MODEL = 4,    /* packed weights of another model */
    C2C_WEIGHTS_E_SHORT = 5,    /* bytes are missing */
    C2C_WEIGHTS_E_LONG = 6,     /* there are too many bytes */
    C2C_WEIGHTS_E_CHECKSUM = 7, /* a checksum is wrong: the bytes are damaged */
    C2C_WEIGHTS_E_CORRUPT = 8,  /* a frame does not decode to what the table promises */
    C2C_WEIGHTS_E_MEMORY = 9    /* out of memory */
};

/* A few words for an error code. */
const char *c2c_weights_error_string(int error);

/* Decode a file into `image`, NAME_WEIGHTS_BYTES at a multiple of 64. table: NAME_packed of the model. Everything is
 * checked before the first byte is decoded; on an error the image's contents are undefined and must not be used.
 * Peak memory: the image and one block. Returns enum c2c_weights_error. */
int c2c_weights_load(const char *path, const uint32_t *table, void *image);

/* The same of `bytes` bytes in memory. */
int c2c_weights_decode(const void *packed, size_t bytes, const uint32_t *table, void *image);

/* Layer by layer: open and check a file, decode groups [first, last] of it (`packed` in manifest.json has those of each
 * constant) to their places in the image, close it (NULL: nothing). On an error of open *file is NULL. */
typedef struct c2c_weights c2c_weights;
int c2c_weights_open(const char *path, const uint32_t *table, c2c_weights **file);
int c2c_weights_read(c2c_weights *file, uint32_t first, uint32_t last, void *image);
void c2c_weights_close(c2c_weights *file);

#ifdef __cplusplus
}
#endif
#endif
