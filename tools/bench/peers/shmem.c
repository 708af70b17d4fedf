/* SPDX-License-Identifier: Apache-2.0
 *
 * OpenSHMEM between two processing elements: one word read, written and added to, and puts of bulk.
 */
#define _GNU_SOURCE
#include "measure.h"

#include <shmem.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int rounds = batches(argc, argv, 1);
    shmem_init();
    long *word = shmem_malloc(64), *done = shmem_malloc(64);
    char *far = shmem_malloc(BULK_MAX), *data = malloc(BULK_MAX);
    if (!word || !done || !far || !data)
        return 1;
    *word = 0;
    *(volatile long *)done = 0;
    memset(far, 0, BULK_MAX);
    memset(data, 1, BULK_MAX);
    shmem_barrier_all();
    if (shmem_my_pe() == 0) {
        volatile long sink;
        for (int round = 0; round < rounds; round++) {
            MEASURE("shmem_long_g", 8, 500000, sink = shmem_long_g(word, 1));
            MEASURE("shmem_long_p", 8, 500000, shmem_long_p(word, (long)i_, 1));
            MEASURE("shmem_long_fadd", 8, 500000, sink = shmem_long_atomic_fetch_add(word, 1, 1));
            for (unsigned i = 0; i < BULK_SIZES; i++)
                MEASURE("shmem_putmem", bulk_bytes[i], bulk_count(bulk_bytes[i]), shmem_putmem(far, data, bulk_bytes[i], 1));
        }
        (void)sink;
        shmem_long_p(done, 1, 1);
        shmem_quiet();
    } else {
        while (!*(volatile long *)done)
            usleep(200);
    }
    shmem_barrier_all();
    /* Some versions crash in shmem_finalize() after all is said. */
    fflush(stdout);
    _exit(0);
}
