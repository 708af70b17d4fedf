/* SPDX-License-Identifier: Apache-2.0
 *
 * A machine's side of requests that come from others. */
#ifndef FBX_GATEWAY_H
#define FBX_GATEWAY_H
#include "internal.h"
#include "wire.h"

/* What a process of another machine has allocated here without a name. As on one machine, it ends with that process. */
struct fbxi_owned {
    struct fbxi_owned *next;
    uint32_t count, room;
    struct fbx_buffer buffer[];
};
int fbxi_owned_add(fbx_fabric *f, struct fbxi_owned **owned, const struct fbx_buffer *b);
void fbxi_owned_free(fbx_fabric *f, struct fbxi_owned *owned); /* the buffers, and the list */

/* One thing that another machine asks beside memory operations; may wait, and so runs on a thread of its own (errands.c). */
struct fbxi_errand {
    struct fbxi_errand *next;
    void *session;
    fbx_node *proxy; /* who asks; NULL: a process, not a node */
    struct fbxw_frame frame; /* the request; becomes the answer: status, value, address */
    struct fbxi_owned **owned; /* the session's */
    uint8_t *assembly; /* of the session: a value that comes, or goes, in several frames */
    uint64_t assembly_bytes;
    uint32_t machine, bytes; /* of the answer's payload */
    uint8_t payload[FBXW_PAYLOAD + 1];
};
void fbxi_errand_run(fbx_fabric *f, struct fbxi_errand *e);
#endif
