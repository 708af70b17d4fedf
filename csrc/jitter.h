/* SPDX-License-Identifier: Apache-2.0
 *
 * Delays that vary: samples of a distribution, by seed. */
#ifndef FBX_JITTER_H
#define FBX_JITTER_H
#include <stdint.h>

#define FBX_JITTER_POINTS 256u /* most in one distribution */

/* Points of a distribution function, straight between them: a share of 2^32 and the delay that it stays below. */
struct fbxi_jitter {
    uint32_t count;
    uint64_t mean_ps;
    struct fbxi_jitter_point {
        uint64_t share, ps;
    } point[];
};

/* From `count` pairs (share, ps): NULL if they are no distribution (or there is no memory). The caller frees it. */
struct fbxi_jitter *fbxi_jitter_new(const uint64_t *pairs, uint32_t count);
/* The delay of what happens at `at_ps` in the place that `seed` stands for: the same for the same two, on every machine. */
uint64_t fbxi_jitter_at(const struct fbxi_jitter *jitter, uint64_t seed, uint64_t at_ps);
/* A seed of one place of a fabric. */
uint64_t fbxi_jitter_seed(uint64_t seed, uint64_t place);
#endif
