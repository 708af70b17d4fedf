/* SPDX-License-Identifier: Apache-2.0
 *
 * What a transport does for operations on memory that this process cannot map: it carries a frame to the machine that has
 * it, and the answer back. It knows nothing of windows, time or faults. Memory that is mapped needs none (op.c touches it).
 */
#ifndef FBX_TRANSPORT_H
#define FBX_TRANSPORT_H
#include "internal.h"
#include "wire.h"

struct fbxi_peer; /* one requester's stream of frames to one machine: in order, each executed once */

struct fbxi_answer {
    int32_t status;
    uint32_t bytes, mark_count;
    int64_t took_ps;
    uint64_t value[2];
    struct fbxw_mark *mark; /* whoever polled frees it */
};

struct fbxi_transport {
    const char *name;
    /* The stream of `n` (NULL: of the process) to `machine`; made at first use. Any thread, never waits. */
    int (*open)(fbx_fabric *f, fbx_node *n, uint32_t machine, struct fbxi_peer **out);
    /* Queue a frame. `ticket` NULL: posted. `into`: where an answer's payload goes, until poll() or forget(). AGAIN: no room
     * now; PEER_LOST, COMPLETION_TIMEOUT: the machine is gone. Any thread, never waits. */
    int (*submit)(struct fbxi_peer *p, struct fbxw_frame *frame, const void *payload, void *into, uint32_t into_bytes,
                  uint32_t *ticket);
    /* Send what is queued. Any thread, never waits. */
    void (*push)(struct fbxi_peer *p);
    /* The answer of `ticket`, once: 0 with `out` filled, or AGAIN after max_wait_ns. Also what moves everything along. */
    int (*poll)(struct fbxi_peer *p, uint32_t ticket, uint64_t max_wait_ns, struct fbxi_answer *out);
    /* Wait for room for a frame, and for its answer (fbxw_answer_bytes(), 0 if it is posted); 0, AGAIN, or as submit(). */
    int (*room)(struct fbxi_peer *p, uint32_t payload, uint32_t answer_bytes, uint64_t max_wait_ns);
    /* Nobody will ask for this answer; nothing is written to `into` after it has returned. */
    void (*forget)(struct fbxi_peer *p, uint32_t ticket);
};
extern const struct fbxi_transport fbxi_socket;

/* The transport between this machine and another. */
static inline const struct fbxi_transport *fbxi_transport_to(const fbx_fabric *f, uint32_t machine)
{
    (void)f;
    (void)machine;
    return &fbxi_socket;
}
#endif
