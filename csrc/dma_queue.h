/* SPDX-License-Identifier: Apache-2.0
 *
 * The descriptors of DMA under way, where every process of the fabric can see them. */
#ifndef FBX_DMA_QUEUE_H
#define FBX_DMA_QUEUE_H
#include "internal.h"

struct fbxi_range {
    uint64_t first, end;
};

/* The slots of a channel of a requester, made if they are not there. */
int fbxi_dma_slots(fbx_fabric *f, uint32_t requester, uint32_t channel, struct fbxl_dma_slot **out);
void fbxi_dma_show(fbx_fabric *f, uint32_t requester, struct fbxl_dma_slot *slot, uint64_t number, uint32_t channel,
                   uint64_t bytes, const struct fbxi_range *ranges, uint32_t range_count);
void fbxi_dma_hide(fbx_fabric *f, uint32_t requester, struct fbxl_dma_slot *slot);
/* A handle that takes a requester's slot over starts with none under way. */
void fbxi_dma_clear(fbx_fabric *f, uint32_t requester);
/* Whether DMA of any living requester reads or writes there. */
int fbxi_dma_touches(fbx_fabric *f, uint32_t region, uint64_t offset, uint64_t bytes);
#endif
