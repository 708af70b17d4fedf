/* SPDX-License-Identifier: Apache-2.0
 *
 * check.h - the few macros that every C test shares.
 *
 * A failed check says where and what and lets the test go on; `return check_report();` at the end of main() turns any failure
 * into exit status 1. Unlike assert() it stays in when NDEBUG is set. Checks may be made from several threads.
 */
#ifndef FBX_TESTS_CHECK_H
#define FBX_TESTS_CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

static unsigned check_made;
static unsigned check_failed;

#define CHECK(condition)                                                                                                          \
    do {                                                                                                                          \
        __atomic_add_fetch(&check_made, 1, __ATOMIC_RELAXED);                                                                     \
        if (!(condition)) {                                                                                                       \
            __atomic_add_fetch(&check_failed, 1, __ATOMIC_RELAXED);                                                               \
            fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #condition);                                 \
        }                                                                                                                         \
    } while (0)

/* For unsigned values; prints both. */
#define CHECK_EQ(actual, expected)                                                                                                \
    do {                                                                                                                          \
        uint64_t check_actual = (uint64_t)(actual), check_expected = (uint64_t)(expected);                                        \
        __atomic_add_fetch(&check_made, 1, __ATOMIC_RELAXED);                                                                     \
        if (check_actual != check_expected) {                                                                                     \
            __atomic_add_fetch(&check_failed, 1, __ATOMIC_RELAXED);                                                               \
            fprintf(stderr, "%s:%d: %s: %s is %" PRIu64 ", not %" PRIu64 "\n", __FILE__, __LINE__, __func__, #actual,             \
                    check_actual, check_expected);                                                                                \
        }                                                                                                                         \
    } while (0)

static inline int check_report(void)
{
    if (check_failed)
        fprintf(stderr, "%u of %u checks failed\n", check_failed, check_made);
    return check_failed != 0;
}

#endif /* FBX_TESTS_CHECK_H */
