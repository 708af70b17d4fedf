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

/* The same for programs under the virtual clock (sim.c). */
struct fbx_hot_sim {
    uint32_t version, op_bytes;
    int (*begin)(fbx_node *node, struct fbx_op *op);
    uint32_t (*current)(const fbx_sim *sim);
    int (*next)(fbx_sim *sim);
    void (*op)(fbx_sim *sim, fbx_node *node, struct fbx_op *op, int status);
    void (*sleep)(fbx_sim *sim, uint64_t until_ps);
    void (*wait_until)(fbx_sim *sim, fbx_node *node, uint64_t gva, uint32_t bytes, int compare, uint64_t value, uint64_t deadline_ps);
    void (*watch)(fbx_sim *sim, fbx_node *node, int what, uint64_t which, uint64_t deadline_ps);
    void (*exit)(fbx_sim *sim);
    int (*result)(fbx_sim *sim, uint64_t *value);
    struct fbx_op *(*record)(fbx_sim *sim, void **wide);
    uint64_t (*now)(const fbx_sim *sim);
    void (*site)(fbx_sim *sim, uint32_t site);
};
#endif
