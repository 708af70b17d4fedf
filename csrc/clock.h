/* SPDX-License-Identifier: Apache-2.0
 *
 * Fabric time: reading it, converting to it, waiting for it. The only header that knows processors' counters. */
#ifndef FBX_CLOCK_H
#define FBX_CLOCK_H
#include "fabrex.h"
#include "layout.h"

struct fbxi_clock {
    uint32_t kind, source, ticks_shift, pad;
    uint64_t epoch, ps_per_tick_q32, ticks_per_ps, tick_cost_ps, ticks_per_us;
    uint64_t virtual_ps;
    fbx_au64 *counted;
};

int fbxi_clock_measure(struct fbxl_header *header, uint32_t kind, uint32_t num, uint32_t den);
void fbxi_clock_load(struct fbxi_clock *clock, struct fbxl_header *header);
uint64_t fbxi_ticks(uint32_t source);
uint64_t fbxi_ticks_other(const struct fbxi_clock *clock);
static inline int fbxi_counts(const struct fbxi_clock *clock) { return clock->counted != NULL; }
/* Somebody has waited for so long, as the kernel counts: where time is counted, it has passed for all. */
void fbxi_slept(const struct fbxi_clock *clock, uint64_t ns);
uint64_t fbxi_monotonic_ns(void);
static inline uint64_t fbxi_ticks_now(const struct fbxi_clock *clock)
{
#if defined(__x86_64__)
    if (__builtin_expect(clock->source == 1, 1))
        return __builtin_ia32_rdtsc();
#endif
    return fbxi_ticks_other(clock);
}
static inline uint64_t fbxi_now(const struct fbxi_clock *clock)
{
    if (__builtin_expect(clock->kind != FBX_REAL, 0))
        return clock->virtual_ps;
    return (uint64_t)(((unsigned __int128)(fbxi_ticks_now(clock) - clock->epoch) * clock->ps_per_tick_q32) >> 32);
}
static inline uint64_t fbxi_ps_to_ticks(const struct fbxi_clock *clock, uint64_t ps)
{
    return (uint64_t)(((unsigned __int128)ps * clock->ticks_per_ps) >> clock->ticks_shift);
}
static inline uint64_t fbxi_ticks_to_ps(const struct fbxi_clock *clock, uint64_t ticks)
{
    return (uint64_t)(((unsigned __int128)(ticks - clock->epoch) * clock->ps_per_tick_q32) >> 32);
}
/* How long before the deadline a wait stops sleeping: longer before the end of an operation, which the caller feels, than
 * before steps on the way, which only must not fall behind. */
#define FBX_SPIN_LAST_NS 80000u
#define FBX_SPIN_NS 15000u
/* Wait for fabric time `deadline_ps`, but at most max_wait_ns of real time: 0 reached, AGAIN not. `*jumped` counts
 * gaps in the spin that show that the processor was taken away; `*reached_ticks` is the counter at the end. */
int fbxi_wait(const struct fbxi_clock *clock, uint64_t deadline_ps, uint64_t max_wait_ns, uint32_t spin_ns,
              uint32_t *jumped, uint64_t *reached_ticks);

#endif
