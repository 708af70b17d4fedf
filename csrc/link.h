/* SPDX-License-Identifier: Apache-2.0
 *
 * What a link is set to, and what follows from it for each of its directions. */
#ifndef FBX_LINK_H
#define FBX_LINK_H
#include "internal.h"
#include "jitter.h"

#define FBX_SHIFT_LEAST 14u /* a slot of a calendar lasts 2^14 to 2^40 ps */
#define FBX_SHIFT_MOST 40u

/* One directed link as it is set, for arithmetic: private, checked, and never changed once others see it. A setting that
 * comes again finds the same one. */
struct fbxi_figures {
    struct fbxi_figures *next; /* of the same direction */
    uint64_t value[FBX_LINK_KEYS]; /* that it follows from */
    uint64_t ps_per_byte_q24;
    uint64_t delay_ps; /* propagation and, where it ends on a switch, that switch's delay */
    uint64_t credit_ps; /* how far a posted write may be ahead of its departure before its issuer stalls */
    uint64_t tlp_ps; /* one full TLP */
    uint32_t slot_shift, ethernet, mtu, overhead, mps, mrrs;
    fbx_au64 *calendar; /* NULL without injected time */
    const struct fbxi_jitter *jitter; /* NULL: none */
    uint64_t jitter_seed;
    uint64_t request_gap_ps; /* between read requests, by what credits for them come back */
    uint32_t tags, completions, completion_bytes; /* outstanding: requests, and completions and their bytes; ~0: any number */
    uint64_t small_ps[3][7]; /* [enum fbxi_small][log2 bytes]: one packet's time on the wire */
};

/* 0, or INVALID and why: values that no link of this kind has. */
int fbxi_link_check(const char *name, uint32_t kind, const uint64_t value[FBX_LINK_KEYS]);
/* The values in force, checked; returns which change they are. */
uint64_t fbxi_link_current(fbx_fabric *f, uint32_t link, uint64_t value[FBX_LINK_KEYS]);
/* All but the calendar. `beyond_ps`: delay of the switch at its end. */
void fbxi_figures_of(struct fbxi_figures *figures, uint32_t kind, const uint64_t value[FBX_LINK_KEYS], uint64_t beyond_ps);
/* What a direction has now, and which change of its link that is. */
int fbxi_figures(fbx_fabric *f, uint32_t direction, const struct fbxi_figures **out, uint64_t *which);
void fbxi_figures_free(fbx_fabric *f);
/* Of this machine: see fbx_link_configure(). */
int fbxi_link_configure_here(fbx_fabric *f, uint32_t link, uint32_t keys, const uint64_t *values);
#endif
