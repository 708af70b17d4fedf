/* SPDX-License-Identifier: Apache-2.0
 *
 * What the machine itself can do: memcpy, chases of pointers, an atomic, a cache line between two processors, a look at the
 * counter, a futex wake. No library could be faster.
 */
#define _GNU_SOURCE
#include "measure.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void pin(int nth)
{
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all))
        return;
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && seen++ == nth % CPU_COUNT(&all)) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

/* A cycle through all lines of `bytes`, in an order that no prefetcher follows. */
static void **chain(uint64_t bytes)
{
    uint64_t lines = bytes / 64, *order = malloc(lines * sizeof *order), seed = 88172645463325252u;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!order || memory == MAP_FAILED)
        exit(1);
    for (uint64_t i = 0; i < lines; i++)
        order[i] = i;
    for (uint64_t i = lines - 1; i; i--) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        uint64_t k = seed % (i + 1), kept = order[i];
        order[i] = order[k], order[k] = kept;
    }
    for (uint64_t i = 0; i < lines; i++)
        *(void **)(memory + order[i] * 64) = memory + order[(i + 1) % lines] * 64;
    free(order);
    return (void **)memory;
}

struct shared {
    uint32_t word __attribute__((aligned(128)));
    uint32_t back __attribute__((aligned(128)));
};

static void futex(uint32_t *word, int op, uint32_t value) { syscall(SYS_futex, word, op, value, NULL, NULL, 0); }

/* Round trips with another process; half of one is one way. */
static void ping(const char *name, int sleeping, uint32_t rounds)
{
    struct shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED)
        exit(1);
    pid_t child = fork();
    uint32_t *mine = child ? &s->back : &s->word, *theirs = child ? &s->word : &s->back;
    pin(child ? 0 : 1);
    uint64_t begin = 0;
    for (uint32_t i = 1; i <= rounds + 50; i++) {
        if (child && i == 51)
            begin = now_ns();
        for (int half = 0; half < 2; half++) {
            if (half == !child) {
                __atomic_store_n(theirs, i, __ATOMIC_RELEASE);
                if (sleeping)
                    futex(theirs, FUTEX_WAKE, 1);
            } else {
                uint32_t seen;
                while ((seen = __atomic_load_n(mine, __ATOMIC_ACQUIRE)) != i)
                    if (sleeping)
                        futex(mine, FUTEX_WAIT, seen);
            }
        }
    }
    if (!child)
        _exit(0);
    say(name, 4, (double)(now_ns() - begin) / rounds / 2);
    waitpid(child, NULL, 0);
    munmap(s, sizeof *s);
}

static uint64_t counter(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return now_ns();
#endif
}

int main(int argc, char **argv)
{
    int rounds = batches(argc, argv, 1);
    void **small = chain(16 << 10), **large = chain(256u << 20);
    char *from = malloc(BULK_MAX), *to = malloc(BULK_MAX);
    if (!from || !to)
        return 1;
    memset(from, 1, BULK_MAX);
    memset(to, 2, BULK_MAX);
    cpu_set_t whole;
    sched_getaffinity(0, sizeof whole, &whole);
    for (int round = 0; round < rounds; round++) {
        MEASURE("chase_in_cache", 8, 2000000, small = *(void **volatile *)small);
        MEASURE("chase_in_memory", 8, 100000, large = *(void **volatile *)large);
        uint64_t word = 0;
        MEASURE("atomic_add", 8, 1000000, __atomic_fetch_add(&word, 1, __ATOMIC_SEQ_CST));
        MEASURE("counter", 8, 500000, (void)*(volatile uint64_t *)&(uint64_t){counter()});
        for (unsigned i = 0; i < BULK_SIZES; i++)
            MEASURE("memcpy", bulk_bytes[i], bulk_count(bulk_bytes[i]), {
                memcpy(to, from, bulk_bytes[i]);
                __asm__ __volatile__("" ::: "memory");
            });
        if (CPU_COUNT(&whole) > 1)
            ping("cache_line", 0, 20000);
        ping("futex_wake", 1, 300);
        sched_setaffinity(0, sizeof whole, &whole);
    }
    return small == NULL || large == NULL;
}
