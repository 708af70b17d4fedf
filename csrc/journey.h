/* SPDX-License-Identifier: Apache-2.0
 *
 * Steps of an operation's journey (op.c) that a DMA engine, which is a requester of its own kind, takes as well. */
#ifndef FBX_JOURNEY_H
#define FBX_JOURNEY_H
#include "internal.h"

/* Whether the handle still is one; CLOSED with its reason otherwise. */
int fbxi_usable(fbx_node *n, int op, uint64_t gva);
/* What `gva` means to this node now, uncached. `generation` is what was read before the call, and is kept in `x`. */
int fbxi_resolve(fbx_node *n, uint64_t gva, uint64_t bytes, uint64_t generation, struct fbxi_xl *x, uint64_t *offset);
/* What was resolved, on another path than the shortest. */
int fbxi_on_path(fbx_node *n, struct fbxi_xl *x, uint32_t path);
/* The in-operation mark, around the look at the generation and the bytes that move because of it. */
void fbxi_mark(const fbx_node *n, fbx_au32 *lane);
void fbxi_unmark(fbx_au32 *lane);
/* The same from the handle's cache where that may be used: the journey's own first step. */
int fbxi_find(fbx_node *n, const struct fbx_op *op, uint64_t gva, uint64_t bytes, struct fbxi_xl *scratch, struct fbxi_xl **out,
              uint64_t *offset);
int fbxi_route_to(fbx_node *n, uint32_t target, uint32_t path, struct fbxi_route **out);
/* 0, or why nothing passes: LINK_DOWN, PEER_LOST. */
int fbxi_way_status(fbx_node *n, uint32_t target, struct fbxi_route *route);
/* A bulk operation without its time, at once. */
int fbxi_untimed(fbx_node *n, struct fbx_op *op);
/* The operation's end, counted. */
int fbxi_finish(fbx_node *n, struct fbx_op *op, int status, uint64_t now);
/* The queue towards a route's target, made if it is not there; and the one that is there, or NULL. */
int fbxi_posted_queue(fbx_node *n, struct fbxi_route *route, uint32_t tc, struct fbxl_queue **out);
struct fbxl_queue *fbxi_own_queue(fbx_node *n, struct fbxi_route *route, uint32_t tc);
/* A flush of all reaches `target` too. */
void fbxi_use_target(fbx_node *n, uint32_t target);
/* Count a posted write that the fabric lost. */
void fbxi_vanish(fbx_node *n, uint32_t target, const struct fbxi_route *route);
/* When a completion from `target` is here, given what was posted the same way before it. */
uint64_t fbxi_pushed_by_completion(fbx_node *n, uint32_t target, uint32_t tc, uint32_t attr, uint64_t completes_ps);
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
#endif
