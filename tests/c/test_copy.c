/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies of every alignment and of sizes around each loop's step: what is copied is all there, and nothing else is touched.
 */
#include "atomics.h"
#include "check.h"

#include <stdlib.h>

#define ROOM (1u << 16)
#define EDGE 256u

static uint8_t *from, *to;

static void fill(void)
{
    uint32_t seed = 2463534242u;
    for (uint32_t i = 0; i < ROOM; i++) {
        seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
        from[i] = (uint8_t)seed;
    }
}

static int copied(void (*copy)(void *, const void *, size_t), uint32_t at, uint32_t source, size_t size)
{
    memset(to, 0xEE, ROOM);
    copy(to + EDGE + at, from + source, size);
    for (size_t i = 0; i < ROOM; i++) {
        int inside = i >= EDGE + at && i < EDGE + at + size;
        if (to[i] != (inside ? from[source + i - EDGE - at] : 0xEE))
            return 0;
    }
    return 1;
}

static void plain(void *t, const void *f, size_t size) { fbx_mem_copy(t, f, size); }

int main(void)
{
    static const size_t sizes[] = {0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 1000, 1023, 1024, 1025, 1151, 1152, 1153, 4096, 5000, 40000};
    if (posix_memalign((void **)&from, 64, ROOM) || posix_memalign((void **)&to, 64, ROOM))
        return 1;
    fill();
    for (uint32_t at = 0; at < 72; at += at < 16 ? 1 : 8)
        for (uint32_t source = 0; source < 72; source += source < 16 ? 1 : 8)
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
                CHECK(copied(plain, at, source, sizes[i]));
                CHECK(copied(fbx_mem_stream, at, source, sizes[i]));
            }
    /* The wide loop says how far it came, and goes no further. */
    size_t done = fbx_copy_wide(to, from, 1000);
    CHECK(done <= 1000 && done % 8 == 0);
    free(from);
    free(to);
    return check_report();
}
