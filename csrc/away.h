/* SPDX-License-Identifier: Apache-2.0
 *
 * The part of an operation's journey that differs when its target lives on another machine: see away.c. */
#ifndef FBX_AWAY_H
#define FBX_AWAY_H
#include "internal.h"

/* Admitted so far: `x` says where `op->gva` leads (NULL for a flush of op->target). Status, or AGAIN with op->state AWAY. */
int fbxi_away_begin(fbx_node *n, struct fbx_op *op, const struct fbxi_xl *x, uint64_t offset, uint64_t now);
/* Take it on; waits up to max_wait_ns for its answer. */
int fbxi_away_advance(fbx_node *n, struct fbx_op *op, uint64_t max_wait_ns);
/* A piece of DMA, of at most one frame: op->kind FBX_DMA_READ or FBX_DMA_WRITE with gva, bytes and buffer. When all of it should
 * happen has been planned, with the links that are at home here reserved. */
struct fbxi_away_plan {
    uint64_t issue_ps, crosses_ps; /* it begins; it reaches the crossing */
    uint64_t ends_ps; /* a write has left; a read's last byte is here */
    /* Of a read: what its machine takes from the crossing on if nobody else is there; how much more is no news; and how long it
     * has waited for links here, which is no reason to wait for those there as well. */
    uint64_t expected_ps, rounding_ps, held_ps;
};
int fbxi_away_dma_begin(fbx_node *n, struct fbx_op *op, const struct fbxi_away_plan *plan);
/* Let streams to machines that are lost count what was lost with them. */
void fbxi_away_settle(fbx_node *n);
/* Loads of many addresses, of which those from number `from` on begin on another machine, under way at the same time. Only
 * without injected time: a processor makes them one after the other. */
int fbxi_away_many(fbx_node *n, const uint64_t *gvas, uint64_t count, uint64_t from);
int fbxi_away_gather(fbx_node *n, const uint64_t *gvas, uint64_t count, uint32_t bytes, void *out, uint64_t *done);
int fbxi_away_register(fbx_node *n, uint32_t target, uint32_t kind, uint64_t reg, uint64_t value, uint32_t bytes);
/* A round trip that reads a register of `target`'s NTB: FBXW_SAMPLE_*. */
int fbxi_away_sample(fbx_node *n, uint32_t target, uint32_t what, uint64_t index, uint64_t *out);
#endif
