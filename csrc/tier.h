/* SPDX-License-Identifier: Apache-2.0
 *
 * What a memory tier takes: its rate, which all who reach it from elsewhere share, and its latency. */
#ifndef FBX_TIER_H
#define FBX_TIER_H
#include "internal.h"

#define FBX_ASK UINT64_MAX
/* Reserve the tier for `bytes` that reach it at `at_ps`. Returns when the last of them has been accessed, and when the first
 * was; both are `at_ps` where the tier has no rate. `now_ps`: who comes later than the calendar remembers competes with nobody,
 * and FBX_ASK only asks. */
uint64_t fbxi_tier_access_slow(fbx_fabric *f, uint32_t region, uint64_t at_ps, uint64_t bytes, int bulk, uint64_t now_ps, uint64_t *first_ps);
static inline uint64_t fbxi_tier_access(fbx_fabric *f, uint32_t region, uint64_t at_ps, uint64_t bytes, int bulk, uint64_t now_ps, uint64_t *first_ps)
{
    *first_ps = at_ps;
    return __builtin_expect(f->tiers_limited, 0) ? fbxi_tier_access_slow(f, region, at_ps, bytes, bulk, now_ps, first_ps) : at_ps;
}
/* The same for what came over a link, its last byte at `arrives_ps` after `wire_ps` on the wire: when it is in memory. */
uint64_t fbxi_tier_write_slow(fbx_fabric *f, uint32_t region, uint64_t arrives_ps, uint64_t wire_ps, uint64_t bytes, int bulk, uint64_t now_ps);
static inline uint64_t fbxi_tier_write(fbx_fabric *f, uint32_t region, uint64_t arrives_ps, uint64_t wire_ps, uint64_t bytes, int bulk, uint64_t now_ps)
{
    return __builtin_expect(f->tiers_limited, 0) ? fbxi_tier_write_slow(f, region, arrives_ps, wire_ps, bytes, bulk, now_ps) : arrives_ps;
}
/* Latency of an access at `at_ps`, jitter included; of the mean one for `at_ps` FBX_ASK. */
uint64_t fbxi_tier_latency_slow(const fbx_fabric *f, uint32_t region, uint64_t at_ps);
static inline uint64_t fbxi_tier_latency(const fbx_fabric *f, uint32_t region, uint64_t at_ps)
{
    return __builtin_expect(f->tiers_limited, 0) ? fbxi_tier_latency_slow(f, region, at_ps) : f->region_facts[region].latency_ps;
}
void fbxi_tiers_free(fbx_fabric *f);
#endif
