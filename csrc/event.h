/* SPDX-License-Identifier: Apache-2.0
 *
 * What has happened to a fabric, for those who look on. */
#ifndef FBX_EVENT_H
#define FBX_EVENT_H
#include "internal.h"

/* Write one event. `node`, `other`, `link`: UINT32_MAX for none. Never fails, never waits. */
struct fbxi_event {
    uint32_t kind, node, other, link;
    uint64_t a, b;
};
void fbxi_event(fbx_fabric *f, const struct fbxi_event *event);
/* What only counters know (lost writes, AER): told by who looks, so many at a time and not one by one. */
void fbxi_event_look(fbx_fabric *f);
/* Where the ring is: checked once, when the header is. 0: damaged. */
int fbxi_event_ring(const struct fbxl_header *header, uint64_t *offset);
#endif
