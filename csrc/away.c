/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations on nodes of other machines. Translation, permission and the state of the way have been looked at here, where the
 * source is at home; then:
 *
 *   time      the links that are at home here are reserved, up to the crossing; the rest is reserved where the target is
 *   move      a frame goes to that machine's gateway, which executes it as its own journey (gateway.c)
 *   complete  the answer says how long the rest took as modelled; the links back that are at home here are reserved, and the
 *             operation is complete at issue + all of that, on this machine's clock, or late
 *
 * So the network's own time lies inside the modelled time where it fits, and clocks of two machines are never compared. What
 * a frame says is how far the crossing lies ahead of now, less half the shortest round trip that was seen.
 *
 * A completion does not pass posted writes that travel its way. Those of the target came over connections of its own
 * processes: the answer names them, and counts only when this machine's gateway has them.
 */
#include "away.h"

#include "journey.h"
#include "timing.h"
#include "transport.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define CHUNK_TIMED (16u << 10)
#define AHEAD_PS 2000000u /* links are reserved this long before something departs */
#define LOOK_PS 50000000u /* when to look again for an answer, for who does not wait */
#define RING 16u /* chunks of a bulk read under way */
#define MARKS 8u

/* private_: 0 to 7 as in op.c */
enum { TICKET = 8, CROSSES, SENT_PS, WHAT, SUBMITTED, HEAD, TAIL, STAGE, SLOTS };
/* SLOTS ..: of a read, RING words (ticket << 32 | bytes); of others, MARKS pairs; then */
enum { CURSOR = SLOTS + RING, MARK_COUNT, BEGAN_NS,
       PLAN_CROSSES, PLAN_ENDS, PLAN_EXPECTED, PLAN_HELD, PRIVATE_END }; /* of DMA in modelled time */
enum { SUBMITS, ASKS, MARKED };
_Static_assert(PRIVATE_END <= 40 && 2 * MARKS <= RING, "private_ has room for it");

static uint64_t min64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static int timed(const fbx_node *n) { return (n->fabric->flags & FBXL_TIMING) != 0; }
static uint64_t now_of(const fbx_node *n) { return timed(n) ? fbxi_now(&n->fabric->clock) : 0; }
static int bulk_write(const struct fbx_op *op) { return op->kind == FBX_WRITE || op->kind == FBX_DMA_WRITE; }
static int posted(const struct fbx_op *op) { return op->kind == FBX_STORE || bulk_write(op); }

/* Pieces of DMA are counted where the whole of it is. */
static int ended(fbx_node *n, struct fbx_op *op, int status, uint64_t now)
{
    if (op->kind != FBX_DMA_READ && op->kind != FBX_DMA_WRITE)
        return fbxi_finish(n, op, status, now);
    op->state = FBX_DONE;
    op->status = status;
    return status;
}

static int peer_of(fbx_node *n, uint32_t target, const struct fbxi_transport **transport, struct fbxi_peer **peer)
{
    uint32_t machine = n->fabric->node_facts[target].machine;
    *transport = fbxi_transport_to(n->fabric, machine);
    return (*transport)->open(n->fabric, n, machine, peer);
}

static int64_t ahead(const fbx_node *n, uint32_t target, uint64_t crosses_ps)
{
    if (!timed(n))
        return 0;
    uint64_t half = fbx_peek(&n->fabric->half_trip_ps[n->fabric->node_facts[target].machine]);
    return (int64_t)(crosses_ps - fbxi_now(&n->fabric->clock) - half);
}

static void heard_after(fbx_node *n, uint32_t target, uint64_t sent_ps, uint64_t now)
{
    fbx_au64 *half = &n->fabric->half_trip_ps[n->fabric->node_facts[target].machine];
    uint64_t seen = fbx_peek(half), trip = now > sent_ps ? (now - sent_ps) / 2 : 0;
    if (trip && (!seen || trip < seen))
        fbx_poke(half, trip);
}

static int end(fbx_node *n, struct fbx_op *op, int status, uint64_t now)
{
    if (posted(op) && (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST || status == FBX_E_COMPLETION_TIMEOUT)) {
        fbxi_vanish(n, op->target, NULL);
        if (!(n->fabric->flags & FBXL_STRICT))
            status = 0;
    }
    return ended(n, op, status, now);
}

static int later(fbx_node *n, struct fbx_op *op)
{
    op->next_ps = now_of(n) + LOOK_PS;
    return FBX_E_AGAIN;
}

/* ---- submitting ------------------------------------------------------------------------------------------------------- */

/* The way of the next bytes, in force while the lane is marked. 0 with the mark set, or a status. */
static int look(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t gva, uint64_t bytes, struct fbxi_xl *scratch,
                struct fbxi_xl **x, uint64_t *offset)
{
    for (int attempt = 0; attempt < 1000; attempt++) {
        int status = fbxi_find(n, op, gva, bytes, scratch, x, offset);
        if (status)
            return status;
        if (!(*x)->away)
            return fbxi_fail_at(FBX_E_ADDRESS, op->kind, (int)n->index, gva, "an operation on memory of several machines");
        if (posted(op) ? !((*x)->perm & FBX_PERM_WRITE)
            : op->kind == FBX_LOAD || op->kind == FBX_READ || op->kind == FBX_WAIT || op->kind == FBX_DMA_READ ? !((*x)->perm & FBX_PERM_READ)
                                                                                  : (*x)->perm != FBX_PERM_RW)
            return fbxi_refuse(n, op->kind, gva, FBX_E_ABORT, (*x)->target);
        if ((*x)->status)
            return (*x)->status;
        fbxi_mark(n, lane);
        if (fbx_observe(n->generation) == (*x)->generation)
            return 0;
        fbxi_unmark(lane);
        if ((status = fbxi_usable(n, op->kind, gva)))
            return status;
    }
    return fbxi_fail(FBX_E_BUSY, "the routes of %s change faster than it can look", n->facts->name);
}

/* What a request carries: what its issuer said, and what its window adds. */
static uint8_t attributes(const struct fbx_op *op, const struct fbxi_xl *x)
{
    return (uint8_t)(((op->attr | (op->attr & FBX_PLAIN ? 0u : x->attr)) & (FBX_RO | FBX_IDO)) | (uint32_t)op->path << FBXW_PATH_SHIFT);
}

static uint64_t remote_address(const struct fbxi_xl *x, uint64_t offset)
{
    return ((uint64_t)(x->region + 1) << FBX_SLOT_SHIFT) | offset;
}

static int submit_scalar(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    static const uint8_t kinds[FBX_OP_KINDS] = {[FBX_LOAD] = FBXW_LOAD, [FBX_WAIT] = FBXW_LOAD, [FBX_STORE] = FBXW_STORE,
                                                [FBX_FETCH_ADD] = FBXW_FETCH_ADD, [FBX_SWAP] = FBXW_SWAP, [FBX_CAS] = FBXW_CAS};
    const struct fbxi_transport *transport;
    struct fbxi_peer *peer;
    struct fbxi_xl scratch, *x;
    struct fbxi_flight flight = {.departs_ps = now, .arrives_ps = now};
    struct fbxw_frame w = {.kind = kinds[op->kind], .attr = op->attr, .tc = op->tc, .length = (uint32_t)op->bytes,
                           .value = op->buffer && op->kind == FBX_STORE ? 0 : op->operand[0]};
    uint8_t both[32];
    const void *payload = NULL;
    uint64_t offset;
    uint32_t ticket;
    int status = peer_of(n, op->target, &transport, &peer);
    if (status || (status = look(n, op, lane, op->gva, op->bytes, &scratch, &x, &offset)))
        return status;
    const uint64_t request = op->kind == FBX_LOAD || op->kind == FBX_WAIT ? 0 : op->kind == FBX_CAS ? 2 * op->bytes : op->bytes;
    if (timed(n)) {
        const int log2_bytes = __builtin_ctzll(op->bytes | 64);
        if (posted(op))
            fbxi_send_small(x->route, 0, now + n->facts->pio_write_ps, FBXI_MWR, (uint32_t)log2_bytes, &flight);
        else if (request)
            fbxi_send(x->route, 0, now + n->facts->pio_read_ps, request, 1, FBX_MRD_HEADER, 0, 1, &flight);
        else
            fbxi_send_small(x->route, 0, now + n->facts->pio_read_ps, FBXI_REQUEST, 0, &flight);
    }
    if (op->kind == FBX_CAS) {
        for (uint32_t i = 0; i < 4; i++)
            fbxw_put64(both + 8 * i, op->operand[i]);
        payload = both;
        w.payload = sizeof both;
    } else if (op->kind == FBX_STORE && op->buffer) {
        payload = op->buffer;
        w.payload = (uint32_t)op->bytes;
    }
    w.address = remote_address(x, offset);
    w.attr = attributes(op, x);
    w.ahead_ps = ahead(n, op->target, flight.arrives_ps);
    if (posted(op))
        status = transport->submit(peer, &w, payload, NULL, 0, NULL);
    else
        status = transport->submit(peer, &w, payload, op->bytes > 8 ? op->buffer : NULL,
                                   op->buffer ? (uint32_t)op->bytes : 0, &ticket);
    fbxi_unmark(lane);
    if (status)
        return status;
    op->departs_ps = flight.departs_ps;
    op->arrives_ps = op->private_[CROSSES] = flight.arrives_ps;
    op->sequence = w.sequence;
    if (posted(op)) {
        fbxi_use_target(n, op->target);
        if (!timed(n))
            return ended(n, op, 0, 0);
        fbxi_count_way(x->route, 0, op->bytes, 1, FBX_MWR_HEADER);
        uint64_t credit = x->route->hops ? fbxi_out(x->route)->credit_ps : UINT64_MAX >> 1;
        op->completes_ps = now + n->facts->pio_write_ps;
        if (flight.departs_ps > now + credit)
            op->completes_ps = flight.departs_ps - credit;
        op->next_ps = op->completes_ps;
        op->state = FBX_RETURNS;
        return now + n->facts->pio_write_ps >= op->completes_ps ? fbxi_finish(n, op, 0, now) : FBX_E_AGAIN;
    }
    op->private_[TICKET] = ticket;
    op->private_[SENT_PS] = now_of(n);
    op->private_[STAGE] = ASKS;
    if (timed(n)) {
        op->private_[2] = request;
        op->private_[3] = op->bytes;
        op->private_[4] = 1;
    }
    return later(n, op);
}

/* A flush, or a look at a register of the peer's NTB. */
static int submit_flush(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    const struct fbxi_transport *transport;
    struct fbxi_peer *peer;
    struct fbxi_route *route;
    struct fbxi_flight flight = {.departs_ps = now, .arrives_ps = now};
    const uint64_t what = op->private_[WHAT];
    struct fbxw_frame w = {.kind = what ? FBXW_SAMPLE : FBXW_FLUSH, .aux = op->target, .what = (uint16_t)(what & 0xff),
                           .attr = (uint8_t)((uint32_t)op->path << FBXW_PATH_SHIFT), .address = what >> 16, .length = 4};
    uint32_t ticket;
    uint64_t generation;
    int status = peer_of(n, op->target, &transport, &peer);
    if (status || (status = fbxi_route_to(n, op->target, op->path, &route)))
        return status;
    do {
        if ((status = fbxi_usable(n, op->kind, 0)))
            return status;
        generation = fbx_observe(n->generation);
        if ((status = fbxi_way_status(n, op->target, route)))
            return status;
        fbxi_mark(n, lane);
        if (fbx_observe(n->generation) == generation)
            break;
        fbxi_unmark(lane);
    } while (1);
    if (timed(n))
        fbxi_send_small(route, 0, now + n->facts->pio_read_ps, FBXI_REQUEST, 0, &flight);
    w.ahead_ps = ahead(n, op->target, flight.arrives_ps);
    w.what = what ? (uint16_t)((what & 0xff) - 1) : 0;
    status = transport->submit(peer, &w, NULL, NULL, 0, &ticket);
    fbxi_unmark(lane);
    if (status)
        return status;
    op->private_[TICKET] = ticket;
    op->private_[CROSSES] = flight.arrives_ps;
    op->private_[SENT_PS] = now_of(n);
    op->private_[STAGE] = ASKS;
    return later(n, op);
}

/* Bulk writes leave in frames, as fast as the links that are at home here take them. */
static int submit_write(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    uint64_t *p = op->private_, offset;
    const struct fbxi_transport *transport;
    struct fbxi_peer *peer;
    struct fbxi_xl scratch, *x;
    int status = peer_of(n, op->target, &transport, &peer);
    if (status)
        return status;
    if (!p[CURSOR])
        p[CURSOR] = op->kind == FBX_DMA_WRITE ? op->issued_ps : now + n->facts->pio_write_ps;
    fbxi_use_target(n, op->target);
    while (op->done < op->bytes) {
        if (timed(n) && p[CURSOR] > now + AHEAD_PS && (now = fbxi_now(&n->fabric->clock)) + AHEAD_PS < p[CURSOR]) {
            op->next_ps = p[CURSOR] - AHEAD_PS;
            transport->push(peer);
            return FBX_E_AGAIN;
        }
        status = look(n, op, lane, op->gva + op->done, 1, &scratch, &x, &offset);
        if (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST) {
            fbxi_vanish(n, op->target, NULL);
            op->done += min64(op->bytes - op->done, min64(CHUNK_TIMED, x->hi - offset));
            if (n->fabric->flags & FBXL_STRICT)
                return ended(n, op, status, now);
            continue;
        }
        if (status)
            return status;
        uint64_t step = min64(min64(op->bytes - op->done, x->hi - offset), timed(n) ? CHUNK_TIMED : FBXW_PAYLOAD);
        struct fbxi_flight flight = {.departs_ps = now, .arrives_ps = now};
        struct fbxw_frame w = {.kind = FBXW_WRITE, .attr = op->attr, .tc = op->tc, .payload = (uint32_t)step,
                               .length = (uint32_t)step, .address = remote_address(x, offset)};
        /* First whether it can go: what is reserved and not sent is lost on the link. */
        if ((status = transport->room(peer, w.payload, 0, 0))) {
            fbxi_unmark(lane);
            return status;
        }
        if (timed(n) && op->kind == FBX_DMA_WRITE) {
            flight.arrives_ps = p[PLAN_CROSSES];
            p[CURSOR] = p[PLAN_ENDS];
        } else if (timed(n)) {
            uint32_t packet = x->mapping == FBX_UNCACHED ? n->facts->access_bytes : 64;
            uint64_t tlps = ((offset & (packet - 1)) + step + packet - 1) / packet;
            fbxi_send(x->route, 0, p[CURSOR], step, tlps, FBX_MWR_HEADER, 1, 1, &flight);
            fbxi_count_way(x->route, 0, step, tlps, FBX_MWR_HEADER);
            p[CURSOR] = flight.departs_ps;
            op->arrives_ps = flight.arrives_ps;
        }
        w.attr = attributes(op, x);
        w.ahead_ps = ahead(n, op->target, flight.arrives_ps);
        status = transport->submit(peer, &w, (const uint8_t *)op->buffer + op->done, NULL, 0, NULL);
        fbxi_unmark(lane);
        if (status)
            return status;
        op->done += step;
    }
    transport->push(peer);
    if (!timed(n))
        return ended(n, op, 0, 0);
    op->completes_ps = op->next_ps = p[CURSOR];
    op->state = FBX_RETURNS;
    return FBX_E_AGAIN;
}

/* A piece of DMA: requests in packets of MRRS here, completions in packets of MPS where it is. */
static int submit_dma_read(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    const struct fbxi_transport *transport;
    struct fbxi_peer *peer;
    struct fbxi_xl scratch, *x;
    uint64_t offset;
    uint32_t ticket;
    int status = peer_of(n, op->target, &transport, &peer);
    if (status || (status = look(n, op, lane, op->gva, op->bytes, &scratch, &x, &offset)))
        return status;
    struct fbxw_frame w = {.kind = FBXW_READ, .what = 1, .attr = attributes(op, x), .tc = op->tc, .length = (uint32_t)op->bytes,
                           .address = remote_address(x, offset)};
    if (!(status = transport->room(peer, 0, fbxw_answer_bytes(&w), 0))) {
        w.ahead_ps = ahead(n, op->target, op->private_[PLAN_CROSSES]);
        if (w.ahead_ps < 0)
            op->private_[PLAN_HELD] = UINT64_MAX; /* late: whom it meets there now it would not have met */
        status = transport->submit(peer, &w, NULL, op->buffer, (uint32_t)op->bytes, &ticket);
    }
    fbxi_unmark(lane);
    if (status)
        return status;
    op->private_[TICKET] = ticket;
    op->private_[SENT_PS] = now;
    op->private_[STAGE] = ASKS;
    transport->push(peer);
    return later(n, op);
}

/* Bulk reads ask for pieces ahead of the one that is awaited. */
static int submit_read(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    uint64_t *p = op->private_, offset;
    const struct fbxi_transport *transport;
    struct fbxi_peer *peer;
    struct fbxi_xl scratch, *x;
    uint32_t ticket;
    int status = peer_of(n, op->target, &transport, &peer);
    if (!p[CURSOR])
        p[CURSOR] = op->completes_ps = now;
    while (!status && p[SUBMITTED] < op->bytes && p[TAIL] - p[HEAD] < RING) {
        if ((status = look(n, op, lane, op->gva + p[SUBMITTED], 1, &scratch, &x, &offset)))
            break;
        uint64_t step = min64(min64(op->bytes - p[SUBMITTED], x->hi - offset), timed(n) ? CHUNK_TIMED : FBXW_PAYLOAD);
        struct fbxw_frame w = {.kind = FBXW_READ, .attr = op->attr, .tc = op->tc, .length = (uint32_t)step,
                               .address = remote_address(x, offset), .ahead_ps = ahead(n, op->target, now)};
        status = transport->submit(peer, &w, NULL, (uint8_t *)op->buffer + p[SUBMITTED], (uint32_t)step, &ticket);
        fbxi_unmark(lane);
        if (status)
            break;
        p[SLOTS + p[TAIL]++ % RING] = (uint64_t)ticket << 32 | step;
        p[SUBMITTED] += step;
    }
    /* What was asked is awaited first, whatever became of the rest. */
    p[STAGE] = p[HEAD] != p[TAIL] ? ASKS : SUBMITS;
    return p[STAGE] == ASKS || !status ? later(n, op) : status;
}

/* ---- answers ---------------------------------------------------------------------------------------------------------- */

/* Whether posted writes of a requester of another machine are here, `posted` of them. */
static int mark_here(const fbx_fabric *f, uint64_t proxy_of, uint32_t incarnation, uint64_t posted_count)
{
    uint32_t high = fbxi_high(f, FBXL_REQUESTERS);
    for (uint32_t i = 0; i < high; i++) {
        struct fbxl_requester *r = &f->requesters[i];
        /* Pairs with: the publish of proxy_of by the gateway. Breaks: the count of one that was here before. */
        if (fbx_observe(&r->proxy_of) == proxy_of && fbx_peek(&r->proxy_incarnation) == incarnation &&
            fbx_observe(&r->state) == FBXL_LIVE)
            return fbx_observe(&r->proxy_posted) >= posted_count;
    }
    return 0; /* not yet, or no more: whoever asks gives up after a while */
}

/* 0: what travelled before the answer is here. */
static int marks_pending(fbx_node *n, struct fbx_op *op)
{
    uint64_t *p = op->private_;
    const uint64_t machine = n->fabric->node_facts[op->target].machine + 1ull;
    while (p[MARK_COUNT]) {
        uint64_t *at = &p[SLOTS + 2 * (p[MARK_COUNT] - 1)];
        if (!mark_here(n->fabric, machine << 32 | at[0] >> 32, (uint32_t)at[0], at[1]) &&
            fbxi_monotonic_ns() - p[BEGAN_NS] < FBX_STALL_NS)
            return 1;
        p[MARK_COUNT]--;
    }
    return 0;
}

static void keep_marks(fbx_node *n, struct fbx_op *op, const struct fbxi_answer *answer)
{
    uint64_t *p = op->private_;
    const uint64_t machine = n->fabric->node_facts[op->target].machine + 1ull;
    p[MARK_COUNT] = 0;
    p[BEGAN_NS] = answer->mark_count ? fbxi_monotonic_ns() : 0;
    for (uint32_t i = 0; i < answer->mark_count; i++) {
        const struct fbxw_mark *m = &answer->mark[i];
        while (p[MARK_COUNT] == MARKS && marks_pending(n, op))
            sched_yield();
        if (!mark_here(n->fabric, machine << 32 | m->requester, m->incarnation, m->posted)) {
            p[SLOTS + 2 * p[MARK_COUNT]] = (uint64_t)m->requester << 32 | m->incarnation;
            p[SLOTS + 2 * p[MARK_COUNT]++ + 1] = m->posted;
        }
    }
}

static int complete(fbx_node *n, struct fbx_op *op)
{
    fbx_fabric *f = n->fabric;
    uint64_t now = fbxi_now(&f->clock);
    if (marks_pending(n, op))
        return later(n, op);
    op->done = op->bytes;
    if (!timed(n)) {
        if (fbx_observe(n->pending))
            fbxi_deliver(f, n->index, now);
        return ended(n, op, 0, now);
    }
    op->completes_ps = fbxi_pushed_by_completion(n, op->target, op->tc, op->attr, op->completes_ps);
    if (now > op->completes_ps) {
        op->private_[0] |= FBXI_BY_NETWORK;
        fbx_count(&f->machines->of[f->node_facts[op->target].machine].late, 1);
    }
    op->next_ps = op->completes_ps;
    op->state = FBX_RETURNS;
    return FBX_E_AGAIN;
}

static int hear_read(fbx_node *n, struct fbx_op *op, const struct fbxi_transport *transport, struct fbxi_peer *peer,
                     struct fbxi_route *route, uint64_t max_wait_ns)
{
    uint64_t *p = op->private_;
    struct fbxi_answer answer = {.mark = NULL};
    while (p[HEAD] != p[TAIL]) {
        uint64_t word = p[SLOTS + p[HEAD] % RING];
        int status = transport->poll(peer, (uint32_t)(word >> 32), max_wait_ns, &answer);
        if (status == FBX_E_AGAIN)
            return later(n, op);
        p[HEAD]++;
        if (!status)
            status = answer.status;
        if (!status && answer.bytes != (uint32_t)word)
            status = FBX_E_CORRUPT;
        if (status) {
            free(answer.mark);
            for (; p[HEAD] != p[TAIL]; p[HEAD]++)
                transport->forget(peer, (uint32_t)(p[SLOTS + p[HEAD] % RING] >> 32));
            return end(n, op, status, now_of(n));
        }
        op->done += (uint32_t)word;
        if (answer.mark_count) {
            /* Their words in private_ are the tickets' here: wait for them now, which is rare and short. */
            const uint64_t machine = n->fabric->node_facts[op->target].machine + 1ull, begin = fbxi_monotonic_ns();
            for (uint32_t i = 0; i < answer.mark_count; i++)
                while (!mark_here(n->fabric, machine << 32 | answer.mark[i].requester, answer.mark[i].incarnation,
                                  answer.mark[i].posted) && fbxi_monotonic_ns() - begin < FBX_STALL_NS)
                    sched_yield();
            free(answer.mark);
            answer.mark = NULL;
        }
        if (timed(n)) {
            /* One request of the processor's access width at a time: each of its round trips pays both parts of the way. */
            const uint32_t width = n->facts->access_bytes;
            const uint64_t trips = ((uint32_t)word + width - 1) / width;
            struct fbxi_flight out, back;
            fbxi_send_small(route, 0, p[CURSOR] + n->facts->pio_read_ps, FBXI_REQUEST, 0, &out);
            uint64_t there = out.arrives_ps - p[CURSOR], here = (uint64_t)answer.took_ps;
            fbxi_send_small(route, 1, out.arrives_ps + here / trips, FBXI_CPLD, (uint32_t)__builtin_ctz(width), &back);
            uint64_t home = back.arrives_ps - (out.arrives_ps + here / trips);
            p[CURSOR] += here + trips * (there + home);
            op->completes_ps = p[CURSOR];
            p[2] = 0;
            p[3] = width;
            p[4] = 1;
        }
    }
    return 0;
}

static int take_answer(fbx_node *n, struct fbx_op *op, const struct fbxi_route *route, const struct fbxi_answer *answer)
{
    uint64_t *p = op->private_;
    const uint64_t now = now_of(n);
    if (answer->status)
        return end(n, op, answer->status, now);
    if (timed(n) && op->kind != FBX_DMA_READ)
        heard_after(n, op->target, p[SENT_PS], now);
    if (op->kind == FBX_FLUSH && !p[WHAT]) {
        /* Writes of ours that were lost there: flush(check) tells of them. */
        uint64_t *known = &n->away_dropped[n->fabric->node_facts[op->target].machine];
        if (answer->value[0] != *known)
            fbx_count(&n->slot->dropped, answer->value[0] > *known ? answer->value[0] - *known : answer->value[0]);
        *known = answer->value[0];
    } else if (op->kind == FBX_FLUSH) {
        op->operand[0] = answer->value[0];
    } else if (op->bytes <= 8 || (op->kind != FBX_LOAD && op->kind != FBX_DMA_READ)) {
        op->operand[0] = answer->value[0];
        op->operand[1] = answer->value[1];
    } else if (answer->bytes != op->bytes) {
        return end(n, op, FBX_E_CORRUPT, now);
    }
    if (timed(n)) {
        const uint64_t took = (uint64_t)(answer->took_ps > 0 ? answer->took_ps : 0);
        if (op->kind == FBX_DMA_READ) {
            /* It was planned; what others added there comes on top, as far as it has not waited for links here meanwhile. */
            const uint64_t more = took > p[PLAN_EXPECTED] ? took - p[PLAN_EXPECTED] : 0;
            op->completes_ps = p[PLAN_ENDS] + (more > p[PLAN_HELD] ? more - p[PLAN_HELD] : 0);
        } else {
            struct fbxi_flight back;
            fbxi_send_small(route, 1, p[CROSSES] + took, FBXI_CPLD, (uint32_t)__builtin_ctzll(op->kind == FBX_FLUSH ? 4 : op->bytes | 64), &back);
            op->completes_ps = back.arrives_ps;
        }
    }
    keep_marks(n, op, answer);
    p[STAGE] = MARKED;
    return complete(n, op);
}

static int hear(fbx_node *n, struct fbx_op *op, uint64_t max_wait_ns)
{
    uint64_t *p = op->private_;
    const struct fbxi_transport *transport;
    struct fbxi_peer *peer;
    struct fbxi_route *route;
    struct fbxi_answer answer;
    int status = peer_of(n, op->target, &transport, &peer);
    if (status || (status = fbxi_route_to(n, op->target, op->path, &route)))
        return end(n, op, status, now_of(n));
    if (op->kind == FBX_READ) {
        if ((status = hear_read(n, op, transport, peer, route, max_wait_ns)) || op->state == FBX_DONE)
            return status;
        if (p[SUBMITTED] < op->bytes) {
            p[STAGE] = SUBMITS;
            return FBX_E_AGAIN;
        }
        p[MARK_COUNT] = 0;
        return complete(n, op);
    }
    status = transport->poll(peer, (uint32_t)p[TICKET], max_wait_ns, &answer);
    if (status == FBX_E_AGAIN)
        return later(n, op);
    if (status)
        return end(n, op, status, now_of(n));
    status = take_answer(n, op, route, &answer);
    free(answer.mark);
    return status;
}

/* ---- begin, advance ---------------------------------------------------------------------------------------------------- */

static int submit(fbx_node *n, struct fbx_op *op, uint64_t now)
{
    fbx_au32 *lane = fbxi_lane(n);
    if (!lane)
        return FBX_E_CLOSED;
    switch (op->kind) {
    case FBX_WRITE:
    case FBX_DMA_WRITE: return submit_write(n, op, lane, now);
    case FBX_DMA_READ: return submit_dma_read(n, op, lane, now);
    case FBX_READ: return submit_read(n, op, lane, now);
    case FBX_FLUSH: return submit_flush(n, op, lane, now);
    default: return submit_scalar(n, op, lane, now);
    }
}

/* Submit what can be; what finds no room waits for it, up to max_wait_ns. */
static int go(fbx_node *n, struct fbx_op *op, uint64_t now, uint64_t max_wait_ns)
{
    for (;;) {
        int status = submit(n, op, now);
        if (op->state != FBX_AWAY || op->private_[STAGE] != SUBMITS)
            return status;
        if (status != FBX_E_AGAIN)
            return status ? end(n, op, status, now) : 0;
        const struct fbxi_transport *transport;
        struct fbxi_peer *peer;
        if ((status = peer_of(n, op->target, &transport, &peer)))
            return end(n, op, status, now);
        now = now_of(n);
        if (timed(n) && bulk_write(op) && op->private_[CURSOR] > now + AHEAD_PS) {
            uint64_t ticks;
            if (!max_wait_ns || fbxi_wait(&n->fabric->clock, op->private_[CURSOR] - AHEAD_PS, max_wait_ns, FBX_SPIN_NS, NULL, &ticks))
                return FBX_E_AGAIN;
            continue;
        }
        if (timed(n) && bulk_write(op) && now > op->private_[CURSOR])
            op->private_[0] |= FBXI_BY_NETWORK; /* its links would take more by now */
        const struct fbxw_frame like = {.kind = op->kind == FBX_READ || op->kind == FBX_DMA_READ ? FBXW_READ : FBXW_LOAD, .length = FBXW_PAYLOAD};
        status = transport->room(peer, bulk_write(op) ? FBXW_PAYLOAD : 64, posted(op) ? 0 : fbxw_answer_bytes(&like), max_wait_ns);
        if (status == FBX_E_AGAIN)
            return later(n, op);
        if (status)
            return end(n, op, status, now);
    }
}

int fbxi_away_begin(fbx_node *n, struct fbx_op *op, const struct fbxi_xl *x, uint64_t offset, uint64_t now)
{
    const fbx_fabric *f = n->fabric;
    uint64_t *p = op->private_;
    p[STAGE] = SUBMITS;
    p[SUBMITTED] = p[HEAD] = p[TAIL] = p[CURSOR] = p[MARK_COUNT] = p[WHAT] = 0;
    op->state = FBX_AWAY;
    op->completes_ps = op->next_ps = now;
    if (x && x->status)
        return end(n, op, x->status, now);
    /* All of a bulk operation must be reachable before any of it moves. */
    if (x && (op->kind == FBX_READ || op->kind == FBX_WRITE)) {
        struct fbxi_xl scratch, *at = NULL;
        for (uint64_t done = x->hi - offset, o = 0; done < op->bytes; done += at->hi - o) {
            int status = fbxi_find(n, op, op->gva + done, 1, &scratch, &at, &o);
            if (status)
                return ended(n, op, status, now);
        }
        const uint64_t last = op->gva + op->bytes - 1;
        if (!(op->gva & FBX_BUS) && last >> FBX_SLOT_SHIFT != op->gva >> FBX_SLOT_SHIFT)
            return ended(n, op, fbxi_fail_at(FBX_E_ADDRESS, op->kind, (int)n->index, op->gva, "%llu bytes from 0x%llx leave "
                               "%s of %s", (unsigned long long)op->bytes, (unsigned long long)op->gva,
                               f->region_facts[x->region].tier, f->node_facts[x->target].name), now);
    }
    int status = go(n, op, now, 0);
    return status;
}

int fbxi_away_advance(fbx_node *n, struct fbx_op *op, uint64_t max_wait_ns)
{
    for (;;) {
        int status;
        if (op->private_[STAGE] == MARKED) {
            /* Rare and short: writes of the target that are in another connection's pipe. */
            uint64_t begin = fbxi_monotonic_ns();
            while ((status = complete(n, op)) == FBX_E_AGAIN && op->state == FBX_AWAY && fbxi_monotonic_ns() - begin < max_wait_ns)
                sched_yield();
            return status;
        }
        const int submits = op->private_[STAGE] == SUBMITS;
        status = submits ? go(n, op, now_of(n), max_wait_ns) : hear(n, op, max_wait_ns);
        if (status != FBX_E_AGAIN || op->state != FBX_AWAY)
            return status;
        /* On from submitted to heard, and, for the next pieces of a bulk read, back. */
        if (submits ? op->private_[STAGE] == SUBMITS || !max_wait_ns : op->private_[STAGE] == ASKS)
            return status;
    }
}

int fbxi_away_dma_begin(fbx_node *n, struct fbx_op *op, const struct fbxi_away_plan *plan)
{
    struct fbxi_xl scratch, *x;
    uint64_t *p = op->private_, offset;
    op->done = 0;
    op->status = FBX_E_AGAIN;
    p[0] = p[4] = p[7] = 0;
    p[5] = 1; /* counted by the engine */
    op->requester = n->requester;
    op->issued_ps = plan->issue_ps;
    int status = fbxi_find(n, op, op->gva, 1, &scratch, &x, &offset);
    if (status)
        return ended(n, op, status, plan->issue_ps);
    op->target = x->target;
    p[STAGE] = SUBMITS;
    p[SUBMITTED] = p[HEAD] = p[TAIL] = p[CURSOR] = p[MARK_COUNT] = p[WHAT] = 0;
    p[PLAN_CROSSES] = plan->crosses_ps;
    p[PLAN_ENDS] = plan->ends_ps;
    p[PLAN_EXPECTED] = plan->expected_ps + plan->rounding_ps;
    p[PLAN_HELD] = plan->held_ps;
    op->state = FBX_AWAY;
    op->completes_ps = op->next_ps = plan->issue_ps;
    if (x->status)
        return end(n, op, x->status, plan->issue_ps);
    return go(n, op, now_of(n), 0);
}

void fbx_op_forget(fbx_node *n, struct fbx_op *op)
{
    const struct fbxi_transport *transport;
    struct fbxi_peer *peer;
    uint64_t *p = op->private_;
    if (op->state != FBX_AWAY || fbx_peek(&n->closed) || fbx_peek(&n->fabric->forked) || peer_of(n, op->target, &transport, &peer))
        return;
    if (op->kind == FBX_READ)
        for (; p[HEAD] != p[TAIL]; p[HEAD]++)
            transport->forget(peer, (uint32_t)(p[SLOTS + p[HEAD] % RING] >> 32));
    else if (p[STAGE] == ASKS)
        transport->forget(peer, (uint32_t)p[TICKET]);
    op->state = FBX_DONE;
    op->status = FBX_E_CANCELLED;
}

void fbxi_away_settle(fbx_node *n)
{
    for (uint32_t m = 0; m < n->fabric->machine_count; m++) {
        struct fbxi_peer *peer = fbx_observe_pointer(&n->peers[m]);
        if (peer)
            fbxi_transport_to(n->fabric, m)->push(peer);
    }
}

int fbxi_away_many(fbx_node *n, const uint64_t *gvas, uint64_t count, uint64_t from)
{
    struct fbxi_xl scratch, *x;
    uint64_t offset;
    return !timed(n) && from < count && !fbxi_usable(n, FBX_LOAD, 0) && !fbxi_find(n, &(struct fbx_op){.path = 0}, gvas[from], 1, &scratch, &x, &offset) && x->away;
}

int fbxi_away_gather(fbx_node *n, const uint64_t *gvas, uint64_t count, uint32_t bytes, void *out, uint64_t *done)
{
    enum { MANY = 64 };
    struct fbx_op *ops = calloc(MANY, sizeof *ops);
    uint64_t first = *done, begun = first, ended = first;
    int status = ops ? 0 : fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    while (!status && ended < count && ended - first < 16 * MANY) { /* so that who waits in slices looks up */
        for (; begun < count && begun - ended < MANY && begun - first < 16 * MANY; begun++) {
            struct fbx_op *op = &ops[begun % MANY];
            memset(op, 0, offsetof(struct fbx_op, private_));
            op->kind = FBX_LOAD;
            op->gva = gvas[begun];
            op->bytes = bytes;
            op->buffer = bytes > 8 ? (uint8_t *)out + begun * bytes : NULL;
            fbx_op_begin(n, op);
        }
        struct fbx_op *op = &ops[ended % MANY];
        while ((status = op->state == FBX_DONE ? op->status : fbx_op_wait(n, op, UINT64_MAX)) == FBX_E_AGAIN)
            ;
        if (status)
            break;
        if (bytes <= 8)
            memcpy((uint8_t *)out + ended * bytes, &op->operand[0], bytes);
        *done = ++ended;
    }
    for (uint64_t i = ended; ops && i < begun; i++)
        fbx_op_forget(n, &ops[i % MANY]);
    free(ops);
    return status ? status : ended < count ? FBX_E_AGAIN : 0;
}

/* ---- registers --------------------------------------------------------------------------------------------------------- */

int fbxi_away_register(fbx_node *n, uint32_t target, uint32_t kind, uint64_t reg, uint64_t value, uint32_t bytes)
{
    const struct fbxi_transport *transport;
    struct fbxi_peer *peer;
    struct fbxi_route *route;
    fbx_au32 *lane = fbxi_lane(n);
    int status = fbxi_usable(n, FBX_OTHER, 0);
    if (!status && !lane)
        status = FBX_E_CLOSED;
    if (status || (status = peer_of(n, target, &transport, &peer)) || (status = fbxi_route_to(n, target, 0, &route)))
        return status;
    for (;;) {
        uint64_t generation = fbx_observe(n->generation);
        if (!(status = fbxi_way_status(n, target, route))) {
            fbxi_mark(n, lane);
            if (fbx_observe(n->generation) != generation) {
                fbxi_unmark(lane);
                if ((status = fbxi_usable(n, FBX_OTHER, 0)))
                    return status;
                continue;
            }
            uint64_t now = now_of(n);
            struct fbxi_flight flight = {.departs_ps = now, .arrives_ps = now};
            struct fbxw_frame w = {.kind = FBXW_REGISTER, .what = (uint16_t)kind, .aux = target, .address = reg, .value = value,
                                   .length = bytes};
            if (!(status = transport->room(peer, 0, 0, 0))) {
                if (timed(n)) {
                    fbxi_send_small(route, 0, now + n->facts->pio_write_ps, FBXI_MWR, (uint32_t)__builtin_ctz(bytes), &flight);
                    fbxi_count_way(route, 0, bytes, 1, FBX_MWR_HEADER);
                }
                w.ahead_ps = ahead(n, target, flight.arrives_ps);
                status = transport->submit(peer, &w, NULL, NULL, 0, NULL);
            }
            fbxi_unmark(lane);
        }
        if (status == FBX_E_AGAIN && !(status = transport->room(peer, 0, 0, FBX_STALL_NS)))
            continue;
        if (status == FBX_E_AGAIN)
            return fbxi_fail(FBX_E_QUEUE_FULL, "%s does not take what %s posts to its registers", n->fabric->node_facts[target].name,
                             n->facts->name);
        if (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST) {
            fbxi_vanish(n, target, route);
            return n->fabric->flags & FBXL_STRICT ? fbxi_refuse(n, FBX_OTHER, 0, status, target) : 0;
        }
        if (!status)
            fbxi_use_target(n, target);
        return status;
    }
}

int fbxi_away_sample(fbx_node *n, uint32_t target, uint32_t what, uint64_t index, uint64_t *out)
{
    struct fbx_op op = {.kind = FBX_FLUSH, .target = target, .requester = n->requester};
    const uint64_t now = now_of(n);
    int status = fbxi_usable(n, FBX_OTHER, 0);
    if (status)
        return status;
    op.issued_ps = op.completes_ps = op.next_ps = now;
    op.state = FBX_AWAY;
    op.private_[STAGE] = SUBMITS;
    op.private_[WHAT] = (what + 1) | index << 16;
    status = go(n, &op, now, 0);
    while (status == FBX_E_AGAIN)
        status = fbx_op_wait(n, &op, UINT64_MAX);
    if (!status)
        *out = op.operand[0];
    return status;
}
