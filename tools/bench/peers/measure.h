/* SPDX-License-Identifier: Apache-2.0
 *
 * What the measuring programs share: a clock, batches, and lines of output that say `operation bytes nanoseconds`, one per
 * batch. The driver reads those lines and nothing else.
 */
#ifndef MEASURE_H
#define MEASURE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void say(const char *operation, uint64_t bytes, double ns)
{
    printf("%s %llu %.4f\n", operation, (unsigned long long)bytes, ns);
    fflush(stdout);
}

#define SLICES 20u

static inline int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static inline double median(double *values, uint64_t count)
{
    qsort(values, count, sizeof *values, by_size);
    return values[count / 2];
}

/* Run `body` `count` times, a tenth as often before to warm up, and say what one took: the median of slices, so that a
 * processor that was away for one of them does not count. */
#define MEASURE(operation, bytes, count, body)                                                                         \
    do {                                                                                                               \
        const uint64_t runs_ = (count), slices_ = runs_ < SLICES ? runs_ : SLICES, each_ = runs_ / slices_;            \
        double slice_[SLICES];                                                                                         \
        for (uint64_t i_ = 0; i_ < runs_ / 10 + 1; i_++) {                                                             \
            body;                                                                                                      \
        }                                                                                                              \
        for (uint64_t s_ = 0; s_ < slices_; s_++) {                                                                    \
            uint64_t begin_ = now_ns();                                                                                \
            for (uint64_t i_ = 0; i_ < each_; i_++) {                                                                  \
                body;                                                                                                  \
            }                                                                                                          \
            slice_[s_] = (double)(now_ns() - begin_) / (double)each_;                                                  \
        }                                                                                                              \
        say((operation), (bytes), median(slice_, slices_));                                                            \
    } while (0)

/* Sizes of bulk copies, and how often each is copied in a batch. */
static const uint64_t bulk_bytes[] = {4096, 65536, 1u << 20, 4u << 20, 8u << 20, 16u << 20, 64u << 20};
#define BULK_SIZES (sizeof bulk_bytes / sizeof bulk_bytes[0])
#define BULK_MAX (64u << 20)
static inline uint64_t bulk_count(uint64_t bytes) { return bytes >= BULK_MAX ? 3 : bytes >= 4u << 20 ? 5 : (16u << 20) / bytes > 2000 ? 2000 : (16u << 20) / bytes; }

/* The only argument of most programs: batches of each operation. */
static inline int batches(int argc, char **argv, int at) { return argc > at && atoi(argv[at]) > 0 ? atoi(argv[at]) : 3; }

#endif
