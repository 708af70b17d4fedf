/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared slots, one for each descriptor that a requester has under way. The engine executes private copies and shows here
 * what it touches, so nothing that a peer scribbles into a slot can lead a copy astray: the worst is a buffer that stays in
 * quarantine too long or leaves it too soon. Slots of a requester whose process died count for nothing, because its slot in
 * the requester table is free.
 */
#include "dma_queue.h"

static struct fbxl_dma *table_of(fbx_fabric *f, uint32_t requester)
{
    return fbxi_heap_at(f, fbx_observe(&f->requesters[requester].dma), sizeof(struct fbxl_dma));
}

static struct fbxl_dma_slot *slots_of(fbx_fabric *f, struct fbxl_dma *dma, uint32_t channel)
{
    return fbxi_heap_at(f, fbx_observe(&dma->channel[channel]), FBX_DMA_DEPTH * sizeof(struct fbxl_dma_slot));
}

int fbxi_dma_slots(fbx_fabric *f, uint32_t requester, uint32_t channel, struct fbxl_dma_slot **out)
{
    uint64_t offset;
    int status = fbxi_control_lock(f);
    if (status)
        return status;
    struct fbxl_dma *dma = table_of(f, requester);
    if (!dma && !(status = fbxi_heap(f, sizeof *dma, &offset))) {
        /* Pairs with: fbx_observe() in table_of(). Breaks: others read channels that were not zeroed. */
        fbx_publish(&f->requesters[requester].dma, offset);
        dma = fbxi_at(f, offset);
    }
    *out = dma ? slots_of(f, dma, channel) : NULL;
    if (dma && !*out && !(status = fbxi_heap(f, FBX_DMA_DEPTH * sizeof **out, &offset))) {
        /* Pairs with: fbx_observe() in slots_of(). Breaks: as above. */
        fbx_publish(&dma->channel[channel], offset);
        *out = fbxi_at(f, offset);
    }
    fbxi_control_unlock(f);
    return status;
}

void fbxi_dma_show(fbx_fabric *f, uint32_t requester, struct fbxl_dma_slot *slot, uint64_t number, uint32_t channel,
                   uint64_t bytes, const struct fbxi_range *ranges, uint32_t range_count)
{
    slot->bytes = bytes;
    slot->channel = channel;
    slot->range_count = range_count;
    fbx_poke(&slot->done, 0);
    for (uint32_t i = 0; i < FBX_DMA_RANGES; i++) {
        fbx_poke(&slot->range[i].first, i < range_count ? ranges[i].first : 0);
        fbx_poke(&slot->range[i].end, i < range_count ? ranges[i].end : 0);
    }
    struct fbxl_dma *dma = table_of(f, requester);
    if (dma)
        fbx_add(&dma->live, 1);
    /* Pairs with: fbx_observe(&slot->state) in fbxi_dma_touches(). Breaks: a range of the descriptor before. */
    fbx_publish(&slot->state, number << 1 | 1);
}

void fbxi_dma_hide(fbx_fabric *f, uint32_t requester, struct fbxl_dma_slot *slot)
{
    /* Pairs with: fbx_observe(&slot->state) in fbxi_dma_touches(). Breaks: a buffer given away before the last byte moved. */
    fbx_publish(&slot->state, 0);
    struct fbxl_dma *dma = table_of(f, requester);
    if (dma)
        fbx_add(&dma->live, UINT64_MAX);
}

void fbxi_dma_clear(fbx_fabric *f, uint32_t requester)
{
    struct fbxl_dma *dma = table_of(f, requester);
    for (uint32_t c = 0; dma && c < FBX_DMA_CHANNELS; c++) {
        struct fbxl_dma_slot *slots = slots_of(f, dma, c);
        for (uint32_t i = 0; slots && i < FBX_DMA_DEPTH; i++)
            fbx_poke(&slots[i].state, 0);
    }
    if (dma)
        fbx_publish(&dma->live, 0);
}

int fbxi_dma_touches(fbx_fabric *f, uint32_t region, uint64_t offset, uint64_t bytes)
{
    const uint64_t first = ((uint64_t)(region + 1) << FBX_SLOT_SHIFT) + offset, end = first + bytes;
    uint32_t high = fbxi_high(f, FBXL_REQUESTERS);
    for (uint32_t r = 0; r < high; r++) {
        struct fbxl_dma *dma = fbx_observe(&f->requesters[r].state) == FBXL_LIVE ? table_of(f, r) : NULL;
        if (!dma || !fbx_observe(&dma->live))
            continue;
        for (uint32_t c = 0; c < FBX_DMA_CHANNELS; c++) {
            struct fbxl_dma_slot *slots = fbx_observe(&dma->channel[c]) ? slots_of(f, dma, c) : NULL;
            for (uint32_t i = 0; slots && i < FBX_DMA_DEPTH; i++) {
                if (!(fbx_observe(&slots[i].state) & 1))
                    continue;
                for (uint32_t k = 0; k < FBX_DMA_RANGES; k++)
                    if (fbx_peek(&slots[i].range[k].first) < end && fbx_peek(&slots[i].range[k].end) > first)
                        return 1;
            }
        }
    }
    return 0;
}
