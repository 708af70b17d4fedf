/* SPDX-License-Identifier: Apache-2.0
 *
 * Sampling of distributions: what is one and what is not, uniform draws, independent places, the same on every machine. */
#include "check.h"
#include "jitter.h"

#include <stdlib.h>

#define WHOLE (1ull << 32)

static int accepted(const uint64_t *pairs, uint32_t count)
{
    struct fbxi_jitter *j = fbxi_jitter_new(pairs, count);
    int good = j != NULL;
    free(j);
    return good;
}

static void what_is_a_distribution(void)
{
    const uint64_t good[] = {0, 5, WHOLE / 2, 5, WHOLE, 9}, late[] = {1, 5, WHOLE, 9}, early[] = {0, 5, WHOLE - 1, 9},
                   falls[] = {0, 5, WHOLE, 4}, stands[] = {0, 1, 0, 2, WHOLE, 3}, huge[] = {0, 0, WHOLE, 1000000000001ull};
    CHECK(accepted(good, 3));
    CHECK(!accepted(good, 1));
    CHECK(!accepted(late, 2));
    CHECK(!accepted(early, 2));
    CHECK(!accepted(falls, 2));
    CHECK(!accepted(stands, 3));
    CHECK(!accepted(huge, 2));
    static uint64_t many[2 * (FBX_JITTER_POINTS + 1)];
    for (uint64_t i = 0; i <= FBX_JITTER_POINTS; i++)
        many[2 * i] = many[2 * i + 1] = i == FBX_JITTER_POINTS ? WHOLE : i;
    CHECK(!accepted(many, FBX_JITTER_POINTS + 1));
}

static void draws(void)
{
    enum { COUNT = 1 << 20, BINS = 64 };
    const uint64_t straight[] = {0, 0, WHOLE, 64000000}, steps[] = {0, 0, WHOLE / 4 * 3, 3000, WHOLE, 1000000};
    struct fbxi_jitter *j = fbxi_jitter_new(straight, 2), *k = fbxi_jitter_new(steps, 3);
    CHECK_EQ(j->mean_ps, 32000000);
    CHECK_EQ(k->mean_ps, (3 * 1500 + 501500) / 4);
    /* Times as they come: regular ones, far apart and next to each other. */
    for (uint64_t step = 1; step < 1000000; step = step * 31 + 1) {
        static unsigned bin[BINS];
        for (int b = 0; b < BINS; b++)
            bin[b] = 0;
        uint64_t seed = fbxi_jitter_seed(7, step), sum = 0, same = 0;
        for (uint64_t i = 0; i < COUNT; i++) {
            uint64_t ps = fbxi_jitter_at(j, seed, i * step);
            CHECK(ps < 64000000);
            bin[ps / 1000000]++;
            sum += ps;
            same += ps / 1000000 == fbxi_jitter_at(j, fbxi_jitter_seed(7, step + 1), i * step) / 1000000;
        }
        double chi = 0;
        for (int b = 0; b < BINS; b++) {
            double d = (double)bin[b] - (double)COUNT / BINS;
            chi += d * d / ((double)COUNT / BINS);
        }
        CHECK(chi < 130); /* 63 degrees of freedom: one in a million is beyond 127 */
        CHECK(sum / COUNT > 31800000 && sum / COUNT < 32200000);
        CHECK(same > COUNT / BINS - 800 && same < COUNT / BINS + 800); /* another place draws otherwise */
    }
    uint64_t tail = 0;
    for (uint64_t i = 0; i < COUNT; i++)
        tail += fbxi_jitter_at(k, 1, i) >= 3000;
    CHECK(tail > COUNT / 4 - 3000 && tail < COUNT / 4 + 3000);
    /* For ever, and everywhere. */
    CHECK_EQ(fbxi_jitter_at(j, fbxi_jitter_seed(0, 0), 0), 18032723);
    CHECK_EQ(fbxi_jitter_at(j, fbxi_jitter_seed(7, 3), 123456789), 16694326);
    free(j);
    free(k);
}

int main(void)
{
    what_is_a_distribution();
    draws();
    return check_report();
}
