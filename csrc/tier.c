/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory tiers take time: a latency, which may vary, and a rate. What reaches a tier from other nodes reserves it as it reserves
 * links, in a calendar of its own in shared memory, so several that read and write one memory box share its rate. Reads
 * and writes count alike. A node's own CPU takes no modelled time at its own memory and reserves nothing.
 */
#include "tier.h"

#include "jitter.h"
#include "timing.h"

#include <stdlib.h>

#define ACCESS_BYTES 256u /* what a bulk access lets small ones pass between: a page of DRAM, or a burst of channels */

/* Registered memory lies in its node's first tier. */
static uint32_t tier_of(const fbx_fabric *f, uint32_t region)
{
    if (region < f->region_count)
        return region;
    const uint32_t node = region - f->region_count;
    return node < f->node_count && f->node_facts[node].first_region < f->region_count ? f->node_facts[node].first_region : UINT32_MAX;
}

static struct fbxi_tier {
    struct fbxl_direction *shared;
    struct fbxi_figures figures;
} *tier(fbx_fabric *f, uint32_t region)
{
    struct fbxi_tier *t = fbx_observe_pointer(&f->tiers[region]);
    if (t)
        return t;
    fbx_au64 *word = &f->regions[region].reserved_at;
    const uint64_t bytes = sizeof(struct fbxl_direction) + FBX_CAL_SLOTS * 8;
    uint64_t offset = fbx_observe(word);
    if (!offset) {
        if (fbxi_control_lock(f))
            return NULL;
        offset = fbx_observe(word);
        if (!offset && !fbxi_heap(f, bytes, &offset))
            fbx_publish(word, offset);
        fbxi_control_unlock(f);
    }
    struct fbxl_direction *shared = offset ? fbxi_heap_at(f, offset, bytes) : NULL;
    if (!shared || !(t = calloc(1, sizeof *t)))
        return NULL;
    t->shared = shared;
    t->figures.ps_per_byte_q24 = f->region_facts[region].ps_per_byte_q24;
    t->figures.tlp_ps = fbx_bytes_to_ps(t->figures.ps_per_byte_q24, ACCESS_BYTES);
    t->figures.slot_shift = FBX_SHIFT_LEAST;
    while (t->figures.slot_shift < FBX_SHIFT_MOST && (1ull << t->figures.slot_shift) < 2 * t->figures.tlp_ps)
        t->figures.slot_shift++;
    t->figures.calendar = (fbx_au64 *)(shared + 1);
    pthread_mutex_lock(&f->figures_mutex);
    if (f->tiers[region])
        free(t);
    else
        fbx_publish_pointer(&f->tiers[region], t);
    t = f->tiers[region];
    pthread_mutex_unlock(&f->figures_mutex);
    return t;
}

uint64_t fbxi_tier_access_slow(fbx_fabric *f, uint32_t region, uint64_t at_ps, uint64_t bytes, int bulk, uint64_t now_ps, uint64_t *first_ps)
{
    *first_ps = at_ps;
    region = tier_of(f, region);
    const uint64_t rate = region == UINT32_MAX ? 0 : f->region_facts[region].ps_per_byte_q24;
    if (!rate)
        return at_ps;
    const uint64_t duration = fbx_bytes_to_ps(rate, bytes);
    struct fbxi_tier *t = now_ps != FBX_ASK ? tier(f, region) : NULL;
    uint64_t end;
    if (!t || at_ps + ((uint64_t)(FBX_CAL_SLOTS / 4 * 3) << t->figures.slot_shift) <= now_ps)
        return at_ps + duration;
    if (fbxi_reserve(t->shared, &t->figures, at_ps, duration, bulk, first_ps, &end))
        fbx_count(&f->header->reservations_clamped, 1);
    return end;
}

uint64_t fbxi_tier_write_slow(fbx_fabric *f, uint32_t region, uint64_t arrives_ps, uint64_t wire_ps, uint64_t bytes, int bulk, uint64_t now_ps)
{
    const uint32_t at = tier_of(f, region);
    const uint64_t rate = at == UINT32_MAX ? 0 : f->region_facts[at].ps_per_byte_q24;
    if (!rate)
        return arrives_ps;
    /* Memory takes the bytes as they come: a tier that is faster than the wire adds nothing. */
    const uint64_t duration = fbx_bytes_to_ps(rate, bytes), early = duration < wire_ps ? duration : wire_ps;
    uint64_t first, end = fbxi_tier_access_slow(f, region, arrives_ps > early ? arrives_ps - early : 0, bytes, bulk, now_ps, &first);
    return end > arrives_ps ? end : arrives_ps;
}

uint64_t fbxi_tier_latency_slow(const fbx_fabric *f, uint32_t region, uint64_t at_ps)
{
    region = tier_of(f, region);
    if (region == UINT32_MAX)
        return 0;
    const struct fbxi_jitter *j = f->tier_jitter[region];
    uint64_t latency = f->region_facts[region].latency_ps;
    if (__builtin_expect(j != NULL, 0))
        latency += at_ps == FBX_ASK ? j->mean_ps : fbxi_jitter_at(j, fbxi_jitter_seed(f->seed, 0x10000000ull + region), at_ps);
    return latency;
}

void fbxi_tiers_free(fbx_fabric *f)
{
    for (uint32_t i = 0; i < f->region_count; i++) {
        if (f->tiers)
            free(f->tiers[i]);
        if (f->tier_jitter)
            free(f->tier_jitter[i]);
    }
    for (uint32_t i = 0; f->link_jitter && i < f->link_count; i++)
        free(f->link_jitter[i]);
    free(f->tiers);
    free(f->tier_jitter);
    free(f->link_jitter);
}
