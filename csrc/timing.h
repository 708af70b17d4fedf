/* SPDX-License-Identifier: Apache-2.0
 *
 * The timing model: (route, reservations, operation, when) -> (departs, arrives, completes). It reads no clock, sleeps
 * nowhere and does no I/O, so that every clock and every planner shares it.
 */
#ifndef FBX_TIMING_H
#define FBX_TIMING_H
#include "link.h"

/* Reserve `duration_ps` of a link (`d`, with the figures it is set to) for traffic that reaches it at `at_ps`; where it starts and ends.
 * `bulk`: one of many packets of a long transfer, which small operations pass between. Returns 1 if it was clamped. */
int fbxi_reserve(struct fbxl_direction *d, const struct fbxi_figures *figures, uint64_t at_ps, uint64_t duration_ps, int bulk,
                 uint64_t *start_ps, uint64_t *end_ps);

#define FBX_MWR_HEADER 24u /* 64-bit address, with framing, sequence and LCRC: see pcie.h */
#define FBX_MRD_HEADER 24u
#define FBX_CPLD_HEADER 20u

/* Bytes on the wire of a link for `payload` bytes in `tlps` packets of `header` bytes each. */
uint64_t fbxi_wire(const struct fbxi_figures *figures, uint64_t payload, uint64_t tlps, uint32_t header);

struct fbxi_flight {
    uint64_t departs_ps; /* last byte has left the source */
    uint64_t arrives_ps; /* last byte is at the end of the way */
    uint64_t jitter_ps; /* of that, what chance added: no back-pressure */
};
/* The same for one packet without, or with 1 to 64 bytes of, payload: what `fbxi_small` names, with durations that the
 * link's figures keep ready. Posted writes, requests and completions of scalar operations take this way. */
enum fbxi_small { FBXI_REQUEST, FBXI_MWR, FBXI_CPLD };
int fbxi_send_small(const struct fbxi_route *route, int back, uint64_t at_ps, enum fbxi_small what, uint32_t log2_bytes,
                    struct fbxi_flight *out);
/* Fill the durations of new figures. */
void fbxi_figures_times(struct fbxi_figures *figures);
/* Count what was sent: bytes on the wire and packets of each link of the way. Costs more than a reservation, so whoever
 * waits anyway counts while it waits. */
void fbxi_count_way(const struct fbxi_route *route, int back, uint64_t payload, uint64_t tlps, uint32_t header);
/* Send along a route (back: from its target to its source), at the earliest at `at_ps`. `reserve` 0 only asks. */
int fbxi_send(const struct fbxi_route *route, int back, uint64_t at_ps, uint64_t payload, uint64_t tlps,
              uint32_t header, int bulk, int reserve, struct fbxi_flight *out);
#endif
