/* SPDX-License-Identifier: Apache-2.0
 *
 * Steps of an operation's journey (op.c) that others take as well: blocking calls (blocking.c), the adversary (packets.c), a
 * DMA engine, which is a requester of its own kind (dma.c), what leads to other machines (away.c). */
#ifndef FBX_JOURNEY_H
#define FBX_JOURNEY_H
#include "internal.h"

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define FBX_PIECE_BYTES 4096u /* no request crosses 4 KiB */

/* Whether the handle still is one; CLOSED with its reason otherwise. */
int fbxi_usable(fbx_node *n, int op, uint64_t gva);
/* What `gva` means to this node now, uncached. `generation` is what was read before the call, and is kept in `x`. */
int fbxi_resolve(fbx_node *n, uint64_t gva, uint64_t bytes, uint64_t generation, struct fbxi_xl *x, uint64_t *offset);
/* What was resolved, on another path than the shortest (path 0: as it is). */
int fbxi_on_path(fbx_node *n, struct fbxi_xl *x, uint32_t path);
/* The same on the operation's path, from the handle's cache where that may be used: the journey's own first step. */
int fbxi_find(fbx_node *n, const struct fbx_op *op, uint64_t gva, uint64_t bytes, struct fbxi_xl *scratch, struct fbxi_xl **out,
              uint64_t *offset);
/* The in-operation mark, around the look at the generation and the bytes that move because of it. */
static inline void fbxi_mark(const fbx_node *n, fbx_au32 *lane)
{
    fbx_poke(lane, 1);
    /* Pairs with: fbxi_membarrier() in clear_marks(). Breaks: a changer that sees no mark while we still use the old
     * generation. */
    if (UNLIKELY(n->explicit_fence))
        fbx_fence_sleep();
    else
        fbx_compiler_fence();
}
/* Pairs with: fbx_observe(&lane->in_operation) in clear_marks(). Breaks: our bytes land after the change returned. */
static inline void fbxi_unmark(fbx_au32 *lane) { fbx_publish(lane, 0); }
int fbxi_route_to(fbx_node *n, uint32_t target, uint32_t path, struct fbxi_route **out);
/* 0, or why nothing passes: LINK_DOWN, PEER_LOST. */
int fbxi_way_status(fbx_node *n, uint32_t target, struct fbxi_route *route);
/* Deliver what has arrived at `target`: below 0 if that is in somebody else's hands. */
static inline int fbxi_deliver_due(fbx_node *n, uint32_t target, uint64_t now)
{
    if (LIKELY(!fbx_observe(&n->fabric->nodes[target].pending)))
        return 0;
    return fbxi_deliver(n->fabric, target, now);
}
/* Mark, check that what was resolved still holds, move `bytes`, unmark. `*x` is refreshed where it was stale. Returns
 * AGAIN if delivery is in a stopped process's hands and the operation must not pass it. */
int fbxi_move(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, struct fbxi_xl **x, struct fbxi_xl *scratch,
              uint64_t bytes, uint64_t now);
/* One round trip of a non-posted request, reserved on the links both ways. */
void fbxi_time_request(fbx_node *n, struct fbx_op *op, struct fbxi_route *route, uint32_t region, uint64_t at_ps,
                       uint64_t request_bytes, uint64_t answer_bytes);
/* A request pushes its requester's earlier posted writes before it: they are visible before it reads. */
int fbxi_own_writes_pending(fbx_node *n, const struct fbx_op *op, uint64_t now);
/* Another process is delivering: AGAIN for a while, then the end with `code`. */
int fbxi_stalled(fbx_node *n, struct fbx_op *op, int code, uint64_t now);
/* A bulk operation without its time, at once. */
int fbxi_untimed(fbx_node *n, struct fbx_op *op);
/* The operation's end, counted. */
int fbxi_finish(fbx_node *n, struct fbx_op *op, int status, uint64_t now);
/* Tell the trace that an operation is complete for its issuer. */
void fbxi_trace_op(fbx_node *n, const struct fbx_op *op, uint64_t now);
/* The queue towards a route's target, made if it is not there; and the one that is there, or NULL. */
int fbxi_posted_queue_slow(fbx_node *n, struct fbxi_route *route, uint32_t tc, struct fbxl_queue **out);
static inline int fbxi_posted_queue(fbx_node *n, struct fbxi_route *route, uint32_t tc, struct fbxl_queue **out)
{
    *out = fbx_observe_pointer(&route->queue[tc]);
    return LIKELY(*out != NULL) ? 0 : fbxi_posted_queue_slow(n, route, tc, out);
}
struct fbxl_queue *fbxi_own_queue(fbx_node *n, struct fbxi_route *route, uint32_t tc);
/* Post a piece of a write where `x` leads: bytes, offset, payload and flags are the caller's. `flight` is one packet that is sent
 * now, at the earliest at its departs_ps; NULL where that is done, and post->arrives_ps known. 0; LOOK_AGAIN if `x` is no
 * longer true; or what the write's step returns: AGAIN, or how it ended. */
#define FBXI_LOOK_AGAIN 1
struct fbxi_flight;
int fbxi_post_piece(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, const struct fbxi_xl *x, struct fbxi_post *post,
                    struct fbxi_flight *flight, uint64_t now);
/* A flush of all reaches `target` too. */
void fbxi_use_target_slow(fbx_node *n, uint32_t target);
static inline void fbxi_use_target(fbx_node *n, uint32_t target)
{
    if (UNLIKELY(!fbx_bits_observe(&n->used_target[target])))
        fbxi_use_target_slow(n, target);
}
/* What a write carries: what its issuer said, and what its window adds. */
static inline uint32_t fbxi_attributes(const struct fbx_op *op, const struct fbxi_xl *x)
{
    return (op->attr | (op->attr & FBX_PLAIN ? 0 : x->attr)) & (FBX_RO | FBX_IDO);
}
/* Count a posted write that the fabric lost. */
void fbxi_vanish(fbx_node *n, uint32_t target, const struct fbxi_route *route);
/* When a completion from `target` is here, given what was posted the same way before it. */
uint64_t fbxi_pushed_by_completion(fbx_node *n, uint32_t target, uint32_t stream, uint32_t attr, uint64_t completes_ps);
/* Record why an operation at `gva` failed; returns `code`. */
int fbxi_refuse(fbx_node *n, int kind, uint64_t gva, int code, uint32_t target);
/* Add one operation to the handle's statistics. */
void fbxi_count_operation(fbx_node *n, int kind, uint64_t bytes, int status, uint64_t why, uint64_t completes_ps, uint64_t now);
/* In `why`, and in private_[0] of an operation: what kept it from its time was the network. The rest counts how often the
 * processor was taken away. */
#define FBXI_BY_NETWORK (1ull << 63)
/* What a wait asks of a value: `how` is an enum fbx_compare. */
static inline int fbxi_compares(uint64_t a, int how, uint64_t b)
{
    switch (how) {
    case FBX_EQ: return a == b;
    case FBX_NE: return a != b;
    case FBX_LT: return a < b;
    case FBX_LE: return a <= b;
    case FBX_GT: return a > b;
    default: return a >= b;
    }
}
/* packets.c: steps of a bulk write or a wide store, and of a bulk read or a wide load, under the adversary. */
int fbxi_write_packets(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now);
int fbxi_read_pieces(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now);
#endif
