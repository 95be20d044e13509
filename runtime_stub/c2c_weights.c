/* Packed weights; c2c_weights.h says what each function promises, docs/weights-file.md what the bytes mean.
 *
 * The table is compiled in and trusted; not a byte of the file is. */
#include "c2c_weights.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

enum { FILE_HEAD = 48, ALIGNMENT = 64, KINDS = 64, KIND_SHIFT = 26, MOST_LEVELS = 256, BLOCK = 1 << 16 };

/* Words of the table's head. */
enum { VERSION = 2, T_VERSION = 0, T_IDENTITY = 2, T_FILE = 6, T_CRC = 8, T_IMAGE = 9, T_DECODED = 11, T_PACKED = 13,
       T_GROUPS = 14, T_FRAMES = 15, T_PARTS = 16, T_HEAD = 18, GROUP = 4, FRAME = 3, PART = 4 };

/* Kinds of streams; forms of positions and of values. */
enum { RAW = 0, LEVEL = 4, HALF_LEVEL = 8, DENSE_INDEX = 9, KEPT_INDEX = 12, NIBBLES = 15, GAPS = 16, BITMAP = 17,
       PLANE = 16, RANGE = 32 };
enum { W_DENSE, W_GAPS, W_SHORT_GAPS, W_BITMAP, W_NIBBLES };
enum { V_RAW, V_PLANES, V_ROTATED, V_INDEX8, V_INDEX4, V_INDEX2, V_RANGE };

typedef struct stream {
    const uint8_t *at, *end;
} stream;

struct c2c_weights {
    const uint32_t *table;
    FILE *file;            /* NULL: the bytes are in memory */
    const uint8_t *memory;
    ZSTD_DCtx *zstd;
    uint8_t *decoded; /* streams of a group */
    uint8_t *packed;  /* of a file: bytes of a group, or of a block */
    uint32_t crc[8][256];
    stream streams[KINDS];
};

static uint64_t two(const uint32_t *w) { return w[0] | (uint64_t)w[1] << 32; }

static uint32_t word(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t low_bytes(const uint8_t *p, unsigned width)
{
    uint64_t v = 0;
    memcpy(&v, p, width);
    return v;
}

/* --- CRC-32 (ISO 3309, ITU-T V.42; the one of RFC 1952), eight bytes at a time (Kounavis, Berry, 2005) */

static void crc_tables(uint32_t crc[8][256])
{
    uint32_t i, k, c;
    for (i = 0; i < 256; i++) {
        for (c = i, k = 0; k < 8; k++)
            c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
        crc[0][i] = c;
    }
    for (k = 1; k < 8; k++)
        for (i = 0; i < 256; i++)
            crc[k][i] = crc[k - 1][i] >> 8 ^ crc[0][crc[k - 1][i] & 255];
}

static uint32_t crc_of(uint32_t crc[8][256], uint32_t before, const uint8_t *p, size_t n)
{
    uint32_t c = ~before;
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t a = c ^ word(p), b = word(p + 4);
        c = crc[7][a & 255] ^ crc[6][a >> 8 & 255] ^ crc[5][a >> 16 & 255] ^ crc[4][a >> 24] ^ crc[3][b & 255] ^
            crc[2][b >> 8 & 255] ^ crc[1][b >> 16 & 255] ^ crc[0][b >> 24];
    }
    for (; n; n--, p++)
        c = c >> 8 ^ crc[0][(c ^ *p) & 255];
    return ~c;
}

/* --- the file */

static int seek(FILE *f, uint64_t offset)
{
#ifdef _WIN32
    return _fseeki64(f, (long long)offset, SEEK_SET);
#else
    long at = (long)offset;
    return at < 0 || (uint64_t)at != offset || fseek(f, at, SEEK_SET);
#endif
}

/* Bytes [offset, offset + n) of the file or of memory; NULL where they cannot be read. n: at most what `packed` holds */
static const uint8_t *fetch(c2c_weights *w, uint64_t offset, size_t n)
{
    if (!w->file)
        return w->memory + offset;
    return seek(w->file, offset) || fread(w->packed, 1, n, w->file) != n ? NULL : w->packed;
}

/* Bytes of a file; more than `most` are not counted. */
static int file_size(c2c_weights *w, uint64_t most, uint64_t *size)
{
    size_t n;
    *size = 0;
    if (seek(w->file, 0))
        return C2C_WEIGHTS_E_OPEN;
    while (*size <= most && (n = fread(w->packed, 1, BLOCK, w->file)) > 0)
        *size += n;
    return ferror(w->file) ? C2C_WEIGHTS_E_OPEN : C2C_WEIGHTS_OK;
}

static int check_head(c2c_weights *w, uint64_t size)
{
    static const uint8_t magic[8] = {0x89, 'C', '2', 'W', 13, 10, 26, 10};
    const uint32_t *t = w->table;
    uint32_t i;
    const uint8_t *p;
    if (size < FILE_HEAD)
        return C2C_WEIGHTS_E_SHORT;
    p = fetch(w, 0, FILE_HEAD);
    if (!p)
        return C2C_WEIGHTS_E_OPEN;
    if (memcmp(p, magic, sizeof magic))
        return C2C_WEIGHTS_E_FORMAT;
    if (word(p + 8) != VERSION)
        return C2C_WEIGHTS_E_VERSION;
    for (i = 0; i < 4; i++)
        if (word(p + 16 + 4 * i) != t[T_IDENTITY + i])
            return C2C_WEIGHTS_E_MODEL;
    if (size != two(t + T_FILE))
        return size < two(t + T_FILE) ? C2C_WEIGHTS_E_SHORT : C2C_WEIGHTS_E_LONG;
    if (word(p + 44) != crc_of(w->crc, 0, p, 44) || word(p + 40) != t[T_CRC] || word(p + 12) != t[T_GROUPS] ||
        word(p + 32) != t[T_FILE] || word(p + 36) != t[T_FILE + 1])
        return C2C_WEIGHTS_E_CHECKSUM;
    return C2C_WEIGHTS_OK;
}

/* Everything that can be said before a frame is decoded. */
static int check(c2c_weights *w, uint64_t size)
{
    uint64_t at;
    uint32_t crc = 0;
    int error = check_head(w, size);
    if (error)
        return error;
    for (at = FILE_HEAD; at < size;) {
        size_t n = size - at < BLOCK ? (size_t)(size - at) : (size_t)BLOCK;
        const uint8_t *p = fetch(w, at, n);
        if (!p)
            return C2C_WEIGHTS_E_OPEN;
        crc = crc_of(w->crc, crc, p, n);
        at += n;
    }
#ifndef C2C_WEIGHTS_FUZZ /* defined by tests, to reach the decoder with damaged frames */
    if (crc != w->table[T_CRC])
        return C2C_WEIGHTS_E_CHECKSUM;
#endif
    return C2C_WEIGHTS_OK;
}

/* --- decoding */

/* The next n bytes of a stream; NULL where there are fewer. Of no bytes: anything but NULL. */
static const uint8_t *take(c2c_weights *w, unsigned kind, size_t n)
{
    stream *s = &w->streams[kind];
    const uint8_t *p = s->at;
    if (!n)
        return (const uint8_t *)w->table;
    if ((size_t)(s->end - s->at) < n)
        return NULL;
    s->at += n;
    return p;
}

static void put(uint8_t *to, size_t i, unsigned width, uint64_t v)
{
    switch (width) { /* little-endian */
    case 1: to[i] = (uint8_t)v; break;
    case 2: memcpy(to + 2 * i, &v, 2); break;
    case 4: memcpy(to + 4 * i, &v, 4); break;
    default: memcpy(to + 8 * i, &v, 8);
    }
}

/* f16 to the bits of f32, exactly. */
static uint32_t widened(uint32_t h)
{
    uint32_t sign = (h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31)
        return sign | 0x7F800000 | mantissa << 13;
    if (exponent)
        return sign | (exponent + 112) << 23 | mantissa << 13;
    if (!mantissa)
        return sign;
    for (exponent = 113; !(mantissa & 1024); exponent--)
        mantissa <<= 1;
    return sign | exponent << 23 | (mantissa & 1023) << 13;
}

/* A part, and what its values are read from. */
typedef struct part {
    size_t count, kept;
    uint32_t where, what, width, levels;
    uint64_t level[MOST_LEVELS]; /* those that do not exist are 0 */
    const uint8_t *values;       /* raw values or indices */
    const uint8_t *planes[8];
} part;

static int read_levels(c2c_weights *w, part *p, uint32_t is_half)
{
    uint32_t i, width = is_half ? 2 : p->width, log = width == 1 ? 0 : width == 2 ? 1 : width == 4 ? 2 : 3;
    const uint8_t *from = take(w, is_half ? (unsigned)HALF_LEVEL : LEVEL + log, (size_t)width * p->levels);
    if (!from)
        return 0;
    memset(p->level, 0, sizeof p->level);
    for (i = 0; i < p->levels; i++) {
        uint64_t v = low_bytes(from + (size_t)i * width, width);
        p->level[i] = is_half ? widened((uint32_t)v) : v;
    }
    return 1;
}

/* Take the streams of n values. */
static int read_values(c2c_weights *w, part *p, size_t n)
{
    unsigned j, index = p->where == W_DENSE ? DENSE_INDEX : KEPT_INDEX;
    unsigned log = p->width == 1 ? 0 : p->width == 2 ? 1 : p->width == 4 ? 2 : 3;
    switch (p->what) {
    case V_RAW: p->values = take(w, RAW + log, n * p->width); return p->values != NULL;
    case V_INDEX8: p->values = take(w, index, n); return p->values != NULL;
    case V_INDEX4: p->values = take(w, index + 1, n / 2 + (n & 1)); return p->values != NULL;
    case V_INDEX2: p->values = take(w, index + 2, n / 4 + (n % 4 != 0)); return p->values != NULL;
    case V_PLANES:
    case V_ROTATED:
        for (j = 0; j < p->width; j++)
            if (!(p->planes[j] = take(w, PLANE + p->width + j, n)))
                return 0;
        return 1;
    default: return 0;
    }
}

/* Value k; indices count from level `first`. Whatever an index says, it names one of the 256 places. */
static uint64_t value(const part *p, size_t k, unsigned first)
{
    uint64_t v = 0;
    unsigned j;
    switch (p->what) {
    case V_RAW: return low_bytes(p->values + k * p->width, p->width);
    case V_INDEX8: return p->level[(p->values[k] + first) & 255];
    case V_INDEX4: return p->level[(p->values[k / 2] >> (k & 1) * 4 & 15) + first];
    case V_INDEX2: return p->level[(p->values[k / 4] >> (k & 3) * 2 & 3) + first];
    default:
        for (j = 0; j < p->width; j++)
            v |= (uint64_t)p->planes[j][k] << 8 * j;
        return p->what == V_ROTATED ? v >> 1 | (v & 1) << (8 * p->width - 1) : v;
    }
}

static void dense(const part *p, uint8_t *to)
{
    size_t k, n = p->count;
    if (p->what == V_RAW)
        memcpy(to, p->values, n * p->width);
    else if (p->what == V_INDEX8 && p->width == 4)
        for (k = 0; k < n; k++)
            put(to, k, 4, p->level[p->values[k]]);
    else if (p->what == V_INDEX4 && p->width == 4)
        for (k = 0; k < n; k++)
            put(to, k, 4, p->level[p->values[k / 2] >> (k & 1) * 4 & 15]);
    else if (p->what == V_ROTATED && p->width == 4)
        for (k = 0; k < n; k++) {
            uint32_t v = p->planes[0][k] | (uint32_t)p->planes[1][k] << 8 | (uint32_t)p->planes[2][k] << 16 |
                         (uint32_t)p->planes[3][k] << 24;
            put(to, k, 4, v >> 1 | v << 31);
        }
    else
        for (k = 0; k < n; k++)
            put(to, k, p->width, value(p, k, 0));
}

/* Elements found by gaps; 0 where the stream ends early or a gap leads beyond the last element. */
static int by_gaps(c2c_weights *w, const part *p, uint8_t *to)
{
    stream *s = &w->streams[GAPS];
    unsigned unit = p->where == W_GAPS ? 255 : 32;
    size_t k = 0, at = 0;
    while (k < p->kept) {
        unsigned gap;
        if (s->at == s->end)
            return 0;
        gap = *s->at++;
        if (gap >= p->count - at && (gap != unit || gap > p->count - at))
            return 0;
        at += gap;
        if (gap == unit)
            continue;
        put(to, at++, p->width, value(p, k++, 1));
    }
    return 1;
}

static int by_nibbles(c2c_weights *w, const part *p, uint8_t *to)
{
    stream *s = &w->streams[NIBBLES];
    size_t k = 0, at = 0;
    while (k < p->kept) {
        unsigned b, gap;
        if (s->at == s->end)
            return 0;
        b = *s->at++;
        gap = b == 255 ? 16 : b >> 4;
        if (gap >= p->count - at)
            return 0;
        at += gap;
        if (b != 255) {
            put(to, at++, p->width, p->level[(b & 15) + 1]);
            k++;
        }
    }
    return 1;
}

static int by_bitmap(c2c_weights *w, const part *p, uint8_t *to)
{
    size_t i, k = 0;
    const uint8_t *bits = take(w, BITMAP, p->count / 8 + (p->count % 8 != 0));
    if (!bits)
        return 0;
    for (i = 0; i < p->count; i++)
        if (bits[i / 8] >> i % 8 & 1) {
            if (k == p->kept)
                return 0;
            put(to, i, p->width, value(p, k++, 1));
        }
    return k == p->kept;
}

/* --- adaptive range coding of indices; packing/range_code.py says how */

enum { UNIT = 22, CODED = 16, MEMORY = 1022, LEAST = 1 << 12, FLAGS = 3, PLACES = FLAGS + 256 };

typedef struct range_reader {
    stream *from;
    uint32_t code, range;
    uint32_t chance[PLACES];
    uint16_t seen[PLACES];
} range_reader;

static int start_range(range_reader *r, stream *from)
{
    int i;
    if (from->end - from->at < 4)
        return 0;
    r->from = from;
    for (r->code = 0, i = 0; i < 4; i++)
        r->code = r->code << 8 | *from->at++;
    r->range = UINT32_MAX;
    for (i = 0; i < PLACES; i++) {
        r->chance[i] = 1u << (UNIT - 1);
        r->seen[i] = 0;
    }
    return 1;
}

/* A bit, 2 where the stream ends early. */
static unsigned range_bit(range_reader *r, unsigned place)
{
    uint32_t chance = r->chance[place], bound = (r->range >> CODED) * (chance >> (UNIT - CODED));
    uint32_t step = r->seen[place] + 2u;
    unsigned bit = r->code >= bound;
    if (bit) {
        r->code -= bound;
        r->range -= bound;
        chance -= chance / step;
        r->chance[place] = chance < LEAST ? (uint32_t)LEAST : chance;
    } else {
        r->range = bound;
        chance += ((1u << UNIT) - chance) / step;
        r->chance[place] = chance > (1u << UNIT) - LEAST ? (1u << UNIT) - LEAST : chance;
    }
    if (r->seen[place] < MEMORY)
        r->seen[place]++;
    for (; r->range < 1u << 24; r->range <<= 8) {
        if (r->from->at == r->from->end)
            return 2;
        r->code = r->code << 8 | *r->from->at++;
    }
    return bit;
}

static int by_range(c2c_weights *w, const part *p, uint8_t *to)
{
    range_reader r;
    size_t k;
    unsigned bits = 0, before = 0;
    while (p->levels > 2 && (p->levels - 2) >> bits)
        bits++;
    if (bits > 8 || !start_range(&r, &w->streams[RANGE]))
        return 0;
    for (k = 0; k < p->count; k++) {
        unsigned i, bit, index = 0, kept = range_bit(&r, (before & 1) + (before >> 1));
        if (kept == 2)
            return 0;
        before = (before << 1 | kept) & 3;
        if (kept) {
            for (index = 1, i = 0; i < bits; i++) {
                if ((bit = range_bit(&r, FLAGS + index)) == 2)
                    return 0;
                index = index << 1 | bit;
            }
            index = index - (1u << bits) + 1;
        }
        put(to, k, p->width, p->level[index & 255]);
    }
    return 1;
}

static int decode_part(c2c_weights *w, const uint32_t *row, uint8_t *image)
{
    part p;
    uint8_t *to = image + (size_t)row[0] * ALIGNMENT;
    size_t i;
    memset(p.planes, 0, sizeof p.planes);
    p.values = NULL;
    p.count = row[1];
    p.kept = row[2];
    p.where = row[3] & 15;
    p.what = row[3] >> 4 & 15;
    p.width = 1u << (row[3] >> 8 & 7);
    p.levels = row[3] >> 16;
    if (!read_levels(w, &p, row[3] >> 11 & 1))
        return 0;
    if (p.what == V_RANGE)
        return by_range(w, &p, to);
    if (p.where != W_NIBBLES && !read_values(w, &p, p.kept))
        return 0;
    if (p.where == W_DENSE) {
        dense(&p, to);
        return 1;
    }
    for (i = 0; i < p.count; i++)
        put(to, i, p.width, p.level[0]);
    switch (p.where) {
    case W_GAPS:
    case W_SHORT_GAPS: return by_gaps(w, &p, to);
    case W_BITMAP: return by_bitmap(w, &p, to);
    default: return by_nibbles(w, &p, to);
    }
}

/* A frame into `to`, which has room for `n` bytes; 0 where it does not fill it exactly. */
static int inflate(c2c_weights *w, const uint8_t *from, size_t packed, uint8_t *to, size_t n)
{
    if (packed == n) {
        memcpy(to, from, n);
        return 1;
    }
    return ZSTD_decompressDCtx(w->zstd, to, n, from, packed) == n;
}

static int decode_group(c2c_weights *w, uint32_t number, uint8_t *image)
{
    const uint32_t *t = w->table, *group = t + T_HEAD + (size_t)number * GROUP, *next = group + GROUP;
    const uint32_t *frames = t + T_HEAD + ((size_t)t[T_GROUPS] + 1) * GROUP;
    const uint32_t *parts = frames + (size_t)t[T_FRAMES] * FRAME, *row = parts + (size_t)group[3] * PART;
    size_t at = 0, used = 0;
    const uint8_t *from = fetch(w, two(group), (size_t)(two(next) - two(group)));
    int plain = next[3] - group[3] == 1 && (row[3] & 255) == 0;
    uint32_t i;
    if (!from)
        return C2C_WEIGHTS_E_OPEN;
    for (i = 0; i < KINDS; i++)
        w->streams[i].at = w->streams[i].end = NULL;
    for (i = group[2]; i < next[2]; i++) {
        const uint32_t *f = frames + (size_t)i * FRAME;
        size_t n = f[1] & ((1u << KIND_SHIFT) - 1);
        uint8_t *to = plain ? image + (size_t)row[0] * ALIGNMENT : w->decoded + used;
#ifndef C2C_WEIGHTS_FUZZ
        if (crc_of(w->crc, 0, from + at, f[0]) != f[2])
            return C2C_WEIGHTS_E_CHECKSUM;
#endif
        if (!inflate(w, from + at, f[0], to, n))
            return C2C_WEIGHTS_E_CORRUPT;
        w->streams[f[1] >> KIND_SHIFT].at = to;
        w->streams[f[1] >> KIND_SHIFT].end = to + n;
        at += f[0];
        used += (n + 7) / 8 * 8;
    }
    if (plain)
        return C2C_WEIGHTS_OK;
    for (; row < parts + (size_t)next[3] * PART; row += PART)
        if (!decode_part(w, row, image))
            return C2C_WEIGHTS_E_CORRUPT;
    for (i = 0; i < KINDS; i++)
        if (w->streams[i].at != w->streams[i].end)
            return C2C_WEIGHTS_E_CORRUPT;
    return C2C_WEIGHTS_OK;
}

/* --- what an app calls */

static int start(const uint32_t *table, const char *path, c2c_weights **made)
{
    c2c_weights *w;
    uint64_t decoded = two(table + T_DECODED);
    size_t room = path ? table[T_PACKED] : 0;
    *made = NULL;
    if (table[T_VERSION] != VERSION)
        return C2C_WEIGHTS_E_VERSION;
    if (decoded > SIZE_MAX - 64 || !(w = (c2c_weights *)calloc(1, sizeof *w)))
        return C2C_WEIGHTS_E_MEMORY;
    *made = w;
    w->table = table;
    crc_tables(w->crc);
    if (path && !(w->file = fopen(path, "rb")))
        return C2C_WEIGHTS_E_OPEN;
    if (room < BLOCK)
        room = BLOCK;
    w->zstd = ZSTD_createDCtx();
    w->decoded = (uint8_t *)malloc((size_t)decoded + 1);
    w->packed = path ? (uint8_t *)malloc(room) : NULL;
    return !w->zstd || !w->decoded || (path && !w->packed) ? C2C_WEIGHTS_E_MEMORY : C2C_WEIGHTS_OK;
}

int c2c_weights_open(const char *path, const uint32_t *table, c2c_weights **file)
{
    uint64_t size;
    int error = start(table, path, file);
    if (!error)
        error = file_size(*file, two(table + T_FILE), &size);
    if (!error)
        error = check(*file, size);
    if (error) {
        c2c_weights_close(*file);
        *file = NULL;
    }
    return error;
}

int c2c_weights_read(c2c_weights *file, uint32_t first, uint32_t last, void *image)
{
    int error = C2C_WEIGHTS_OK;
    uint32_t i;
    for (i = first; !error && i <= last && i < file->table[T_GROUPS]; i++)
        error = decode_group(file, i, (uint8_t *)image);
    return error;
}

void c2c_weights_close(c2c_weights *file)
{
    if (!file)
        return;
    if (file->file)
        fclose(file->file);
    ZSTD_freeDCtx(file->zstd);
    free(file->decoded);
    free(file->packed);
    free(file);
}

/* What no constant covers is zero. */
static int decode_all(c2c_weights *w, void *image)
{
    memset(image, 0, (size_t)two(w->table + T_IMAGE));
    return c2c_weights_read(w, 0, UINT32_MAX, image);
}

int c2c_weights_load(const char *path, const uint32_t *table, void *image)
{
    c2c_weights *w;
    int error = c2c_weights_open(path, table, &w);
    if (!error)
        error = decode_all(w, image);
    c2c_weights_close(w);
    return error;
}

int c2c_weights_decode(const void *packed, size_t bytes, const uint32_t *table, void *image)
{
    c2c_weights *w;
    int error = start(table, NULL, &w);
    if (!error) {
        w->memory = (const uint8_t *)packed;
        error = check(w, bytes);
    }
    if (!error)
        error = decode_all(w, image);
    c2c_weights_close(w);
    return error;
}

const char *c2c_weights_error_string(int error)
{
    switch (error) {
    case C2C_WEIGHTS_OK: return "no error";
    case C2C_WEIGHTS_E_OPEN: return "cannot read the file";
    case C2C_WEIGHTS_E_FORMAT: return "not a file of packed weights";
    case C2C_WEIGHTS_E_VERSION: return "packed weights of another version of the format";
    case C2C_WEIGHTS_E_MODEL: return "packed weights of another model";
    case C2C_WEIGHTS_E_SHORT: return "the packed weights are too short";
    case C2C_WEIGHTS_E_LONG: return "the packed weights are too long";
    case C2C_WEIGHTS_E_CHECKSUM: return "the packed weights are damaged: a checksum is wrong";
    case C2C_WEIGHTS_E_CORRUPT: return "the packed weights are damaged: a frame does not decode";
    case C2C_WEIGHTS_E_MEMORY: return "out of memory";
    default: return "unknown error";
    }
}
