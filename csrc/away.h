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
/* Let streams to machines that are lost count what was lost with them. */
void fbxi_away_settle(fbx_node *n);
int fbxi_away_register(fbx_node *n, uint32_t target, uint32_t kind, uint64_t reg, uint64_t value, uint32_t bytes);
/* A round trip that reads a register of `target`'s NTB: FBXW_SAMPLE_*. */
int fbxi_away_sample(fbx_node *n, uint32_t target, uint32_t what, uint64_t index, uint64_t *out);
#endif
