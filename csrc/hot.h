/* SPDX-License-Identifier: Apache-2.0
 *
 * The core's functions that the _hot extension calls. It is a module of its own and links nothing: it gets this table's
 * address from the binding, so that one copy of the core serves both. */
#ifndef FBX_HOT_H
#define FBX_HOT_H
#include "fabrex.h"

#define FBX_HOT_VERSION 3u
struct fbx_hot {
    uint32_t version, op_bytes;
    /* The short way only: 0, or AGAIN where the long way must be taken (nothing has happened then). */
    int (*try_load)(fbx_node *node, uint64_t gva, uint32_t bytes, uint64_t *value);
    int (*try_store)(fbx_node *node, uint64_t gva, uint32_t bytes, uint64_t value);
    int (*try_fetch_add)(fbx_node *node, uint64_t gva, uint32_t bytes, uint64_t value, uint64_t *old);
    int (*begin)(fbx_node *node, struct fbx_op *op);
    int (*wait)(fbx_node *node, struct fbx_op *op, uint64_t max_wait_ns);
    /* An operation that asks for nothing but `ps`: what it takes longer is the way in and out. */
    int (*nothing)(fbx_node *node, struct fbx_op *op, uint64_t ps);
    int (*node_virtual)(fbx_node *node);
    int (*dma_submit)(fbx_node *node, const struct fbx_dma *descriptor, uint64_t *id);
    int (*dma_release)(fbx_node *node, uint64_t id);
};
#endif
