/* SPDX-License-Identifier: Apache-2.0
 *
 * The machines of a fabric: who is lost, and changes that all of them make. */
#ifndef FBX_MACHINE_H
#define FBX_MACHINE_H
#include "internal.h"

/* On the directory's machine: make a change here and on every other machine that is not lost. */
int fbxi_change(fbx_fabric *f, uint32_t what, uint32_t index, uint64_t value);
/* Make it here: FBXW_LINK_APPLY (link index, up), FBXW_NTB_LINK (node index, down). */
int fbxi_apply(fbx_fabric *f, uint32_t what, uint32_t index, uint64_t value);
/* From any machine, through the directory's. */
int fbxi_change_everywhere(fbx_fabric *f, uint32_t what, uint32_t index, uint64_t value);

int fbxi_link_set_here(fbx_fabric *f, uint32_t link, int up); /* fabric.c */
int fbxi_ntb_set_here(fbx_fabric *f, uint32_t node, uint32_t down); /* ntb_peer.c */
#endif
