/* SPDX-License-Identifier: Apache-2.0
 *
 * Delays that vary. A distribution is a table of its inverse, so that every kind of it is sampled in the same way, in integers:
 * a uniform number of 32 bits is looked up and interpolated. The number is a hash of the seed, the place and the time, and
 * no state: processes need not agree on who comes next, and the same run gives the same delays.
 */
#include "jitter.h"

#include <stdlib.h>

__extension__ typedef unsigned __int128 u128;

#define WHOLE (1ull << 32)
#define MOST_PS 1000000000000ull

/* A permutation whose output bits each depend on all of its input (the finaliser of MurmurHash3 with Stafford's constants 13). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

struct fbxi_jitter *fbxi_jitter_new(const uint64_t *pairs, uint32_t count)
{
    if (count < 2 || count > FBX_JITTER_POINTS || pairs[0] != 0 || pairs[2 * (count - 1)] != WHOLE)
        return NULL;
    for (uint32_t i = 0; i < count; i++)
        if (pairs[2 * i + 1] > MOST_PS || (i && (pairs[2 * i] <= pairs[2 * i - 2] || pairs[2 * i + 1] < pairs[2 * i - 1])))
            return NULL;
    struct fbxi_jitter *j = malloc(sizeof *j + count * sizeof j->point[0]);
    if (!j)
        return NULL;
    u128 twice = 0; /* area under the inverse, by trapezoids */
    j->count = count;
    for (uint32_t i = 0; i < count; i++) {
        j->point[i].share = pairs[2 * i];
        j->point[i].ps = pairs[2 * i + 1];
        if (i)
            twice += (u128)(pairs[2 * i + 1] + pairs[2 * i - 1]) * (pairs[2 * i] - pairs[2 * i - 2]);
    }
    j->mean_ps = (uint64_t)((twice + WHOLE) / (2 * WHOLE));
    return j;
}

uint64_t fbxi_jitter_seed(uint64_t seed, uint64_t place) { return mix(mix(seed) + (place + 1) * 0x9E3779B97F4A7C15ull); }

uint64_t fbxi_jitter_at(const struct fbxi_jitter *j, uint64_t seed, uint64_t at_ps)
{
    const uint64_t share = mix(seed ^ mix(at_ps)) >> 32;
    uint32_t low = 0, high = j->count - 1; /* point[low].share <= share < point[high].share */
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (j->point[middle].share <= share)
            low = middle;
        else
            high = middle;
    }
    const struct fbxi_jitter_point *a = &j->point[low], *b = a + 1;
    return a->ps + (uint64_t)((u128)(b->ps - a->ps) * (share - a->share) / (b->share - a->share));
}
