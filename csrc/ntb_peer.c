/* SPDX-License-Identifier: Apache-2.0
 *
 * What a node does to the registers of its peers' NTB devices, over the fabric: writes are posted behind the data that
 * went there before, reads are round trips that push it. And its own NTB's link, which opens and closes that way.
 */
#include "away.h"
#include "change.h"
#include "event.h"
#include "internal.h"
#include "journey.h"
#include "ntb.h"
#include "timing.h"
#include "trace.h"
#include "wire.h"

#include <sched.h>

/* The peer's registers are made by whoever writes to them first: a delivery may not wait for the control lock. */
int fbxi_ntb_reach(fbx_node *n, uint32_t pidx, uint32_t *peer)
{
    struct fbxl_ntb *d;
    int status = fbxi_ntb_usable(n);
    if (!status)
        status = fbxi_ntb_peer(n, pidx, peer);
    if (!status)
        status = fbxi_ntb_get(n->fabric, n->index, &d);
    return status ? status : fbxi_ntb_get(n->fabric, *peer, &d);
}

int fbxi_post_register(fbx_node *n, uint32_t target, uint32_t kind, uint64_t reg, uint64_t value, uint32_t bytes)
{
    fbx_fabric *f = n->fabric;
    const int travels = f->flags & FBXL_TIMING && f->ordering != FBX_IMMEDIATE;
    struct fbxi_route *route;
    struct fbxl_queue *q = NULL;
    fbx_au32 *lane;
    uint64_t begin = 0, ticks;
    if (fbxi_is_away(f, target))
        return fbxi_away_register(n, target, kind, reg, value, bytes);
    for (;;) {
        int status = fbxi_usable(n, FBX_OTHER, 0);
        if (status || (status = fbxi_route_to(n, target, 0, &route)))
            return status;
        if (!(lane = fbxi_lane(n)))
            return fbxi_fail(FBX_E_CLOSED, "the handle of %s is closed", n->facts->name);
        uint64_t generation = fbx_observe(n->generation);
        if ((status = fbxi_way_status(n, target, route))) {
            fbxi_vanish(n, target, route);
            return f->flags & FBXL_STRICT ? fbxi_fail_at(status, FBX_OTHER, (int)n->index, 0, "the way from %s to %s is closed",
                                                         n->facts->name, f->node_facts[target].name) : 0;
        }
        if (travels && (status = fbxi_posted_queue(n, route, 0, &q)))
            return status;
        fbxi_mark(n, lane);
        if (UNLIKELY(fbx_observe(n->generation) != generation)) {
            fbxi_unmark(lane);
            continue;
        }
        struct fbxi_flight flight = {0, 0, 0};
        uint64_t now = !(f->flags & FBXL_TIMING) ? 0 : n->proxy ? n->proxy_now : fbxi_now(&f->clock);
        uint64_t fence = fbx_peek(&n->fence_floor);
        if (f->flags & FBXL_TIMING && fbxi_send_small(route, 0, now + n->facts->pio_write_ps, FBXI_MWR,
                                                      (uint32_t)__builtin_ctz(bytes), &flight))
            fbx_count(&f->header->reservations_clamped, 1);
        struct fbxi_post post = {.region = UINT32_MAX, .bytes = bytes, .kind = kind, .flags = FBXL_ENTRY_SCALAR,
                                 .requester = n->requester, .offset = reg, .trace_id = fbxi_tracing(f) ? fbxi_trace_id(f) : 0,
                                 .arrives_ps = flight.arrives_ps > fence ? flight.arrives_ps : fence, .payload = &value};
        if (travels) {
            status = fbxi_post(f, q, &post);
        } else {
            const struct fbxi_ntb_write w = {kind, n->index, reg, value, NULL, 0};
            fbxi_deliver_due(n, target, now);
            status = fbxi_ntb_apply(f, target, &w);
            if (status == FBX_E_INVALID) { /* an interrupt message for nobody */
                fbxi_vanish(n, target, route);
                status = 0;
            }
            if (f->flags & FBXL_TIMING)
                fbxi_count_way(route, 0, bytes, 1, FBX_MWR_HEADER);
        }
        fbxi_unmark(lane);
        if (n->proxy && (status == FBX_E_AGAIN || status == FBX_E_BUSY))
            return FBX_E_AGAIN; /* a gateway does not wait here */
        if (status == FBX_E_AGAIN || status == FBX_E_BUSY) {
            /* Full, or a stopped process is in the way: wait for room, but not for ever. */
            uint64_t ns = fbxi_monotonic_ns();
            if (!begin)
                begin = ns;
            if (f->sim)
                return FBX_E_AGAIN; /* the program waits until there is room */
            if (f->clock.kind != FBX_REAL || ns - begin > FBX_STALL_NS)
                return fbxi_fail(FBX_E_QUEUE_FULL, "%s does not take what %s posts to its registers",
                                 f->node_facts[target].name, n->facts->name);
            if (fbxi_wait(&f->clock, post.arrives_ps, 1000000u, FBX_SPIN_NS, NULL, &ticks) == 0)
                sched_yield();
            continue;
        }
        if (status)
            return status;
        fbxi_use_target(n, target);
        if (fbxi_tracing(f)) {
            struct fbx_op told = {.kind = FBX_OTHER, .gva = reg, .bytes = bytes, .operand = {value}, .target = target,
                                  .trace_id = post.trace_id, .sequence = post.sequence, .issued_ps = now,
                                  .departs_ps = flight.departs_ps, .arrives_ps = post.arrives_ps, .completes_ps = now};
            fbxi_trace_op(n, &told, now);
        }
        if (travels)
            fbxi_ntb_posted(f, target);
        uint64_t credit = fbxi_out(route)->credit_ps;
        if (f->clock.kind == FBX_REAL && flight.departs_ps > now + credit && !n->proxy)
            while (fbxi_wait(&f->clock, flight.departs_ps - credit, UINT64_MAX, FBX_SPIN_LAST_NS, NULL, &ticks) == FBX_E_AGAIN)
                ;
        return 0;
    }
}

/* ---- doorbells --------------------------------------------------------------------------------------------------- */

static int peer_doorbell(fbx_node *n, uint32_t pidx, uint64_t op, uint64_t bits)
{
    uint32_t peer;
    int status = fbxi_ntb_reach(n, pidx, &peer);
    if (status)
        return status;
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(n->fabric, peer), *mine = fbxi_ntb_profile(n->fabric, n->index);
    if (op != FBXI_DB_SET && !(p->peer_registers && mine->peer_registers))
        return fbxi_fail(FBX_E_INVALID, "the devices of %s and its peer ring a peer's doorbell and change nothing else of it",
                         n->facts->name);
    const uint64_t valid = fbxi_ntb_valid(p) & fbxi_ntb_valid(mine);
    if (bits & ~valid)
        return fbxi_fail(FBX_E_INVALID, "0x%llx: from %s to %s there are doorbells 0x%llx", (unsigned long long)bits,
                         n->facts->name, n->fabric->node_facts[peer].name, (unsigned long long)valid);
    return fbxi_post_register(n, peer, FBXL_ENTRY_DOORBELL, op, bits, 8);
}

int fbx_peer_db_set(fbx_node *n, uint32_t pidx, uint64_t bits) { return peer_doorbell(n, pidx, FBXI_DB_SET, bits); }
int fbx_peer_db_clear(fbx_node *n, uint32_t pidx, uint64_t bits) { return peer_doorbell(n, pidx, FBXI_DB_CLEAR, bits); }
int fbx_peer_db_set_mask(fbx_node *n, uint32_t pidx, uint64_t bits)
{
    return peer_doorbell(n, pidx, FBXI_DB_SET_MASK, bits);
}
int fbx_peer_db_clear_mask(fbx_node *n, uint32_t pidx, uint64_t bits)
{
    return peer_doorbell(n, pidx, FBXI_DB_CLEAR_MASK, bits);
}

/* A round trip to `peer`: it pushes this node's earlier writes there, samples when it is there, and comes back. */
static int sample(fbx_node *n, uint32_t peer, int (*look)(fbx_fabric *, uint32_t, int, uint64_t *), int which, uint64_t *out)
{
    struct fbx_op op = {.kind = FBX_FLUSH, .operand = {peer}};
    const struct fbxi_clock *clock = &n->fabric->clock;
    uint64_t ticks, value = UINT64_MAX;
    if (n->fabric->sim) /* a program made the round trip already, with an operation that others could run beside */
        return look(n->fabric, peer, which, out) ? FBX_E_INVALID : 0;
    int sampled = 0, status = fbx_op_begin(n, &op);
    for (;;) {
        if (!sampled && (op.state == FBX_RETURNS || (op.state == FBX_DONE && !status))) {
            status = look(n->fabric, peer, which, &value) ? FBX_E_INVALID : status;
            sampled = 1;
        }
        if (op.state == FBX_DONE)
            break;
        if (op.state == FBX_RETURNS) {
            status = fbx_op_wait(n, &op, UINT64_MAX);
        } else {
            fbxi_wait(clock, op.next_ps, 1000000u, FBX_SPIN_NS, NULL, &ticks);
            status = fbx_op_advance(n, &op);
        }
        if (clock->kind != FBX_REAL && status == FBX_E_AGAIN)
            return status; /* virtual time moves only between calls */
    }
    if (!status)
        *out = value;
    return status;
}

static int peer_read_doorbell(fbx_node *n, uint32_t pidx, int mask, uint64_t *bits)
{
    uint32_t peer;
    *bits = 0;
    int status = fbxi_ntb_reach(n, pidx, &peer);
    if (status || !fbxi_ntb_profile(n->fabric, peer)->peer_registers ||
        !fbxi_ntb_profile(n->fabric, n->index)->peer_registers)
        return status;
    *bits = UINT64_MAX;
    if (fbxi_is_away(n->fabric, peer))
        return fbxi_away_sample(n, peer, mask ? FBXW_SAMPLE_MASK : FBXW_SAMPLE_DOORBELL, 0, bits);
    return sample(n, peer, fbxi_ntb_doorbell, mask, bits);
}

int fbx_peer_db_read(fbx_node *n, uint32_t pidx, uint64_t *bits) { return peer_read_doorbell(n, pidx, 0, bits); }
int fbx_peer_db_read_mask(fbx_node *n, uint32_t pidx, uint64_t *bits) { return peer_read_doorbell(n, pidx, 1, bits); }

/* ---- scratchpads and messages ---------------------------------------------------------------------------------------- */

static int peer_register(fbx_node *n, uint32_t pidx, uint32_t index, uint32_t count, uint32_t *peer, const char *what)
{
    int status = fbxi_ntb_reach(n, pidx, peer);
    if (!status && index >= count)
        status = fbxi_fail(FBX_E_INVALID, "%s has %u %s, no such %u", n->fabric->node_facts[*peer].name, count, what, index);
    return status;
}

static uint32_t peer_count(fbx_node *n, uint32_t pidx, int messages)
{
    uint32_t peer;
    if (fbxi_ntb_peer(n, pidx, &peer))
        return 0;
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(n->fabric, peer), *mine = fbxi_ntb_profile(n->fabric, n->index);
    uint32_t a = messages ? p->messages : p->spads, b = messages ? mine->messages : mine->spads;
    return a < b ? a : b;
}

static int look_spad(fbx_fabric *f, uint32_t node, int sidx, uint64_t *value)
{
    struct fbxl_ntb *d;
    int status = fbxi_ntb_get(f, node, &d);
    if (!status)
        *value = fbx_observe(&d->spad[sidx]);
    return status;
}

int fbx_peer_spad_read(fbx_node *n, uint32_t pidx, uint32_t sidx, uint32_t *value)
{
    uint32_t peer, count = peer_count(n, pidx, 0);
    uint64_t found = UINT32_MAX;
    *value = UINT32_MAX;
    int status = peer_register(n, pidx, count ? sidx : 0, count ? count : 1, &peer, "scratchpads");
    if (!status && count)
        status = fbxi_is_away(n->fabric, peer) ? fbxi_away_sample(n, peer, FBXW_SAMPLE_SPAD, sidx, &found)
                                               : sample(n, peer, look_spad, (int)sidx, &found);
    if (!status)
        *value = (uint32_t)found;
    return status;
}

int fbx_peer_spad_write(fbx_node *n, uint32_t pidx, uint32_t sidx, uint32_t value)
{
    uint32_t peer;
    int status = peer_register(n, pidx, sidx, peer_count(n, pidx, 0), &peer, "scratchpads");
    return status ? status : fbxi_post_register(n, peer, FBXL_ENTRY_SPAD, sidx, value, 4);
}

int fbx_peer_msg_write(fbx_node *n, uint32_t pidx, uint32_t midx, uint32_t value)
{
    uint32_t peer;
    int status = peer_register(n, pidx, midx, peer_count(n, pidx, 1), &peer, "message registers");
    return status ? status : fbxi_post_register(n, peer, FBXL_ENTRY_MESSAGE, midx, value, 4);
}

/* ---- windows ------------------------------------------------------------------------------------------------------- */

int fbx_peer_resource_idx(fbx_node *n, uint32_t pidx)
{
    /* Where this node stands among the peers of that peer: its share of what each peer divides between its own peers. */
    int own = fbx_port_number(n), peer = own < 0 ? own : fbx_peer_port_number(n, pidx);
    return peer < 0 ? peer : peer < own ? own - 1 : own;
}

int fbx_peer_highest_mw_idx(fbx_node *n, uint32_t pidx)
{
    int resource = fbx_peer_resource_idx(n, pidx), count = resource < 0 ? resource : fbx_ntb_mw_count(n, pidx);
    if (count < 0)
        return count;
    if (resource >= count)
        return fbxi_fail(FBX_E_INVALID, "the peer has %d windows, too few for each of its peers to have one", count);
    return count - resource - 1;
}

/* Inbound windows are the peer's outbound ones: what it sees of this node. */
int fbx_ntb_mw_count(fbx_node *n, uint32_t pidx)
{
    int peer = fbx_peer_node(n, pidx);
    return peer < 0 ? peer : fbx_mw_count(n->fabric, (uint32_t)peer);
}

int fbx_mw_get_align(fbx_node *n, uint32_t pidx, uint32_t widx, uint64_t *address_align, uint64_t *size_align,
                     uint64_t *size_max)
{
    struct fbx_window_info w;
    int peer = fbx_peer_node(n, pidx), status = peer < 0 ? peer : fbx_mw_info(n->fabric, (uint32_t)peer, widx, &w);
    if (!status && !fbxi_ntb_linked(n->fabric, n->index, (uint32_t)peer))
        status = fbxi_fail(FBX_E_LINK_DOWN, "the link from %s to %s is down", n->facts->name,
                           n->fabric->node_facts[peer].name);
    if (status)
        return status;
    if (address_align)
        *address_align = w.address_align;
    if (size_align)
        *size_align = w.size_align;
    if (size_max)
        *size_max = w.max_bytes;
    return 0;
}

int fbx_ntb_mw_set_trans(fbx_node *n, uint32_t pidx, uint32_t widx, uint64_t address, uint64_t bytes)
{
    int peer = fbx_peer_node(n, pidx);
    if (peer < 0)
        return peer;
    return fbx_mw_set_trans(n->fabric, (uint32_t)peer, widx, n->index, address, bytes, FBX_PERM_RW, FBX_WRITE_COMBINING);
}

int fbx_ntb_mw_clear_trans(fbx_node *n, uint32_t pidx, uint32_t widx)
{
    struct fbx_window_info w;
    int peer = fbx_peer_node(n, pidx), status = peer < 0 ? peer : fbx_mw_info(n->fabric, (uint32_t)peer, widx, &w);
    if (status)
        return status;
    if (w.programmed && w.peer != n->index)
        return fbxi_fail(FBX_E_INVALID, "window %u of %s shows %s, not %s", widx, n->fabric->node_facts[peer].name,
                         n->fabric->node_facts[w.peer].name, n->facts->name);
    return fbx_mw_clear_trans(n->fabric, (uint32_t)peer, widx);
}

/* ---- the link ------------------------------------------------------------------------------------------------------- */

int fbxi_ntb_set_here(fbx_fabric *f, uint32_t node, uint32_t down)
{
    int status = fbxi_control_lock(f);
    if (status)
        return status;
    int changed = fbx_observe(&f->nodes[node].ntb_down) != down;
    if (changed || down) {
        /* Pairs with: fbx_observe(&node->ntb_down) where routes are resolved. Breaks: a route through a closed NTB. */
        fbx_publish(&f->nodes[node].ntb_down, down);
        status = fbxi_invalidate_dependents(f, f->link_count + node);
        int own = fbxi_invalidate_node_routes(f, node);
        if (!status)
            status = own;
        if (down)
            fbxi_drop_of_node(f, node);
    }
    fbxi_control_unlock(f);
    if (changed) {
        fbxi_event(f, &(struct fbxi_event){down ? FBX_EVENT_NTB_DISABLED : FBX_EVENT_NTB_ENABLED, node, UINT32_MAX, UINT32_MAX, 0, 0});
        fbxi_ntb_links_changed(f, UINT32_MAX, node);
    }
    return status;
}

static int set_link(fbx_node *n, uint32_t down)
{
    int status = fbxi_ntb_usable(n);
    if (status)
        return status;
    const struct fbx_change c = {.what = FBX_CHANGE_NTB, .index = n->index, .value = {down}};
    return n->fabric->machines ? fbxi_change_ask(n->fabric, &c) : fbxi_ntb_set_here(n->fabric, n->index, down);
}

int fbx_ntb_link_enable(fbx_node *n, int max_speed, int max_width)
{
    if (max_speed < FBX_NTB_SPEED_AUTO || max_speed > 6 || max_width < FBX_NTB_SPEED_AUTO || max_width > 32)
        return fbxi_fail(FBX_E_INVALID, "speed %d or width %d is none", max_speed, max_width);
    return set_link(n, 0);
}

int fbx_ntb_link_disable(fbx_node *n) { return set_link(n, 1); }
