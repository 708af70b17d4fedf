/* SPDX-License-Identifier: Apache-2.0
 *
 * Fabric time. The creator measures the processor's counter against the kernel's clock once and stores scale and epoch
 * in the header; every process of the fabric converts with those, so that two of them never disagree about "now".
 * Only this file reads clocks, and only it waits for one.
 *
 * Where time is off and an adversary needs delays nevertheless, time is *counted*: each look at the clock is one tick of a counter
 * that all processes share. So it passes with operations, however long they take, and whoever waits moves it on for all.
 */
#include "clock.h"

#include "error.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { SOURCE_MONOTONIC = 0, SOURCE_TSC = 1, SOURCE_CNTVCT = 2, SOURCE_COUNTED = 3 };
#define COUNTED_HZ 50000000u /* a look is 20 ns, and an operation takes some three to ten of them */

uint64_t fbxi_monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t fbxi_ticks(uint32_t source)
{
#if defined(__x86_64__)
    if (source == SOURCE_TSC)
        return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    if (source == SOURCE_CNTVCT) {
        uint64_t ticks;
        __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(ticks));
        return ticks;
    }
#endif
    (void)source;
    return fbxi_monotonic_ns();
}

uint64_t fbxi_ticks_other(const struct fbxi_clock *clock)
{
    return clock->counted ? fbx_add(clock->counted, 1) + 1 : fbxi_ticks(clock->source);
}

void fbxi_slept(const struct fbxi_clock *clock, uint64_t ns)
{
    if (clock->counted)
        fbx_add(clock->counted, ns / (1000000000u / COUNTED_HZ) + 1);
}

uint64_t fbx_ticks(void)
{
#if defined(__x86_64__)
    return fbxi_ticks(SOURCE_TSC);
#else
    return fbxi_ticks(SOURCE_CNTVCT);
#endif
}

static uint32_t best_source(void)
{
#if defined(__aarch64__)
    return SOURCE_CNTVCT;
#elif defined(__x86_64__)
    /* The counter must run at one rate whatever the processor does; the kernel's list of flags says whether it does. */
    char text[8192];
    FILE *file = fopen("/proc/cpuinfo", "re");
    if (!file)
        return SOURCE_MONOTONIC;
    bool constant = false, nonstop = false;
    while (fgets(text, sizeof text, file))
        if (!strncmp(text, "flags", 5)) {
            constant = strstr(text, " constant_tsc") != NULL;
            nonstop = strstr(text, " nonstop_tsc") != NULL;
            break;
        }
    fclose(file);
    return constant && nonstop ? SOURCE_TSC : SOURCE_MONOTONIC;
#else
    return SOURCE_MONOTONIC;
#endif
}

/* One pair (counter, nanoseconds), taken where the counter moved least around the kernel's answer. */
static uint64_t pair(uint32_t source, uint64_t *ns)
{
    uint64_t best = UINT64_MAX, ticks = 0;
    for (int i = 0; i < 32; i++) {
        uint64_t before = fbxi_ticks(source), at = fbxi_monotonic_ns(), after = fbxi_ticks(source);
        if (after - before < best) {
            best = after - before;
            ticks = before + (after - before) / 2;
            *ns = at;
        }
    }
    return ticks;
}

int fbxi_clock_measure(struct fbxl_header *header, uint32_t kind, uint32_t num, uint32_t den)
{
    const int counted = (header->flags & FBXL_COUNTED) != 0;
    uint32_t source = counted ? SOURCE_COUNTED : best_source();
    uint64_t hz = 1000000000u;
    if (counted) {
        hz = COUNTED_HZ;
        num = den = 1; /* nobody waits for it: there is nothing to stretch */
    } else if (source == SOURCE_CNTVCT) {
#if defined(__aarch64__)
        __asm__ __volatile__("mrs %0, cntfrq_el0" : "=r"(hz)); /* the architecture states the rate */
#endif
    } else if (source == SOURCE_TSC) {
        /* 20 ms against a clock that is read within some 30 ns: a few parts per million. Once per process is enough. */
        static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
        static uint64_t measured;
        pthread_mutex_lock(&once);
        if (!measured) {
            uint64_t ns0 = 0, ns1 = 0, t0 = pair(source, &ns0);
            struct timespec nap = {0, 20000000};
            while (clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, &nap) == EINTR)
                ;
            uint64_t t1 = pair(source, &ns1);
            measured = (uint64_t)((unsigned __int128)(t1 - t0) * 1000000000u / (ns1 - ns0));
        }
        hz = measured;
        pthread_mutex_unlock(&once);
    }
    if (!hz || !num || !den)
        return fbxi_fail(FBX_E_INVALID, "time dilation %u/%u is not a positive ratio", num, den);
    header->clock_kind = kind;
    header->tick_source = source;
    header->tick_hz = hz;
    header->dilation_num = num;
    header->dilation_den = den;
    /* ps per tick, 32 fractional bits; a dilation of 3 makes modelled time run at a third of real time. */
    header->ps_per_tick_q32 =
        (uint64_t)(((unsigned __int128)1000000000000u << 32) / hz * den / num);
    if (!header->ps_per_tick_q32)
        return fbxi_fail(FBX_E_INVALID, "time dilation %u/%u is too large", num, den);
    if (counted) {
        header->epoch_ticks = 0;
        header->tick_cost_ps = 1000000000000u / COUNTED_HZ;
        return 0;
    }
    header->epoch_ticks = fbxi_ticks(source);
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 64; i++) {
        uint64_t a = fbxi_ticks(source), b = fbxi_ticks(source);
        for (int k = 0; k < 6; k++)
            b = fbxi_ticks(source);
        if (b - a < best)
            best = b - a;
    }
    header->tick_cost_ps = (uint32_t)((unsigned __int128)(best / 7) * 1000000000000u / hz);
    return 0;
}

void fbxi_clock_load(struct fbxi_clock *clock, struct fbxl_header *header)
{
    clock->counted = header->tick_source == SOURCE_COUNTED ? &header->counted_ticks : NULL;
    clock->kind = header->clock_kind;
    clock->source = header->tick_source;
    clock->epoch = header->epoch_ticks;
    clock->ps_per_tick_q32 = header->ps_per_tick_q32 ? header->ps_per_tick_q32 : 1;
    /* Ticks per ps with as many fractional bits as fit: fewer where dilation makes a tick shorter than a picosecond. */
    clock->ticks_shift = 64;
    for (uint64_t scale = clock->ps_per_tick_q32; scale <= 1ull << 32 && clock->ticks_shift > 32; scale <<= 1)
        clock->ticks_shift--;
    clock->ticks_per_ps = (uint64_t)((((unsigned __int128)1) << (clock->ticks_shift + 32)) / clock->ps_per_tick_q32);
    clock->tick_cost_ps = header->tick_cost_ps;
    clock->ticks_per_us = header->tick_hz / 1000000u + 1;
}

/* Time is counted: waiting moves it on, by a microsecond at a time, so that others have their turns between. */
static int count_up(const struct fbxi_clock *clock, uint64_t target, uint64_t max_wait_ns, uint64_t *reached_ticks)
{
    const uint64_t begin_ns = fbxi_monotonic_ns();
    for (;;) {
        uint64_t now = *reached_ticks = fbxi_ticks_other(clock);
        if ((int64_t)(target - now) <= 0)
            return 0;
        if (max_wait_ns != UINT64_MAX && fbxi_monotonic_ns() - begin_ns >= max_wait_ns)
            return FBX_E_AGAIN;
        fbx_add(clock->counted, target - now < clock->ticks_per_us ? target - now : clock->ticks_per_us);
        sched_yield();
    }
}

/* A gap in the spin that no instruction explains: the processor was away. */
#define GAP_NS 4000u

int fbxi_wait(const struct fbxi_clock *clock, uint64_t deadline_ps, uint64_t max_wait_ns, uint32_t spin_ns,
              uint32_t *jumped, uint64_t *reached_ticks)
{
    if (clock->kind != FBX_REAL)
        return clock->virtual_ps >= deadline_ps ? 0 : FBX_E_AGAIN;
    uint64_t target = clock->epoch + fbxi_ps_to_ticks(clock, deadline_ps);
    if (clock->counted)
        return count_up(clock, target + 1, max_wait_ns, reached_ticks);
    uint64_t now = fbxi_ticks_now(clock);
    *reached_ticks = now;
    if ((int64_t)(target - now) <= 0)
        return 0;
    if (target - now > 2 * clock->ticks_per_us || max_wait_ns < 2000u) {
        /* Long: sleep, then spin. Real time is the kernel's, whatever the dilation. */
        uint64_t begin_ns = fbxi_monotonic_ns(), begin = now;
        for (;;) {
            *reached_ticks = now = fbxi_ticks_now(clock);
            if ((int64_t)(target - now) <= 0)
                return 0;
            uint64_t ns = fbxi_monotonic_ns();
            if (ns - begin_ns >= max_wait_ns)
                return FBX_E_AGAIN;
            /* ticks to ns: exact for the monotonic source, the creator's scale without dilation otherwise */
            uint64_t left_ns;
            if (ns - begin_ns > 1000000u)
                left_ns = (uint64_t)((unsigned __int128)(target - now) * (ns - begin_ns) / (now - begin));
            else
                left_ns = (uint64_t)((unsigned __int128)(target - now) * 1000u / clock->ticks_per_us);
            if (left_ns <= spin_ns)
                break;
            uint64_t nap_ns = left_ns - spin_ns;
            if (nap_ns > max_wait_ns - (ns - begin_ns))
                nap_ns = max_wait_ns - (ns - begin_ns);
            if (nap_ns > 20000000u)
                nap_ns = 20000000u;
            struct timespec nap = {0, (long)nap_ns};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
        }
    }
    int processors = 0;
    uint64_t gap = GAP_NS * clock->ticks_per_us / 1000u, last = now;
    const uint64_t yield_at = 5 * clock->ticks_per_us;
    while ((int64_t)(target - (now = fbxi_ticks_now(clock))) > 0) {
        if (__builtin_expect(now - last > gap, 0) && jumped)
            ++*jumped;
        last = now;
        if (__builtin_expect(target - now > yield_at, 0)) {
            /* One processor: whoever we wait for needs it. */
            if (!processors) {
                cpu_set_t set;
                processors = sched_getaffinity(0, sizeof set, &set) ? 2 : CPU_COUNT(&set);
            }
            if (processors == 1)
                sched_yield();
        }
    }
    if (__builtin_expect(now - last > gap, 0) && jumped)
        ++*jumped; /* it was away while the deadline passed */
    *reached_ticks = now;
    return 0;
}
