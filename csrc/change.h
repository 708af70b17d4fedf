/* SPDX-License-Identifier: Apache-2.0
 *
 * A change of a fabric on several machines: who wants one asks the agent, which has it numbered by the coordinator and made on all of
 * them. And the parts that each machine makes, beside those of links' values (link.h). */
#ifndef FBX_CHANGE_H
#define FBX_CHANGE_H
#include "internal.h"

#define FBXI_CHANGE_WORDS 16u
#define FBXI_CHANGE_BYTES (16u + 8u * FBXI_CHANGE_WORDS)
_Static_assert(FBX_LINK_KEYS <= FBXI_CHANGE_WORDS, "all values of a link are one change");

/* Wait until all machines have made it: 0, or why not. */
int fbxi_change_ask(fbx_fabric *f, const struct fbx_change *change);

int fbxi_link_set_here(fbx_fabric *f, uint32_t link, int up); /* fabric.c */
int fbxi_ntb_set_here(fbx_fabric *f, uint32_t node, uint32_t down); /* ntb_peer.c */
int fbxi_mw_set_here(fbx_fabric *f, uint32_t node, uint32_t widx, uint32_t peer, uint64_t translation, uint64_t bytes, int perm,
                     int mapping); /* window.c */
int fbxi_mw_clear_here(fbx_fabric *f, uint32_t node, uint32_t widx);
#endif
