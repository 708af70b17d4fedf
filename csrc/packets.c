/* SPDX-License-Identifier: Apache-2.0
 *
 * What the adversary (ordering.h) does with operations of several packets: each packet of a bulk write, or of a wide store,
 * is posted by itself and may be torn; the lines of a bulk read, or the words of a wide load, are sampled in any order, each at
 * its own time. Otherwise the journey is that of op.c, from which these two steps are called.
 */
#include "internal.h"
#include "journey.h"
#include "ordering.h"
#include "timing.h"

#define LINE 64u
#define PLAN_AHEAD_PS 2000000u

static uint64_t min64(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Where a packet of `bytes` is torn, as its target stores it: 0 for nowhere. */
static uint64_t torn_at(fbx_fabric *f, uint64_t key, uint64_t bytes)
{
    const uint64_t words = bytes / 8;
    const uint64_t cut = words > 1 ? fbxi_choice_at(f, FBXI_CHOICE_TEAR, key, 4 * words) : 0;
    return cut < words ? cut * 8 : 0;
}

/* A bulk write, or a store of several words: packets of a line at most. private_: 1 bytes that have been posted, 2 when the
 * next packet may start, 10 where the line under way is torn + 1. */
int fbxi_write_packets(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_xl scratch, *x = NULL;
    uint64_t *p = op->private_, offset;
    while (p[1] < op->bytes) {
        if (p[2] > now + PLAN_AHEAD_PS) {
            op->next_ps = p[2] - PLAN_AHEAD_PS;
            return FBX_E_AGAIN;
        }
        int status = fbxi_find(n, op, op->gva + p[1], 1, &scratch, &x, &offset);
        if (status)
            return fbxi_finish(n, op, status, now);
        uint64_t step = min64(min64(op->bytes - p[1], LINE - (offset & (LINE - 1))), x->hi - offset);
        op->done = p[1];
        if (!x->route || x->status) {
            status = x->status;
            if (!status)
                status = fbxi_move(n, op, lane, &x, &scratch, step, now);
            if (status == FBX_E_AGAIN)
                return fbxi_stalled(n, op, FBX_E_QUEUE_FULL, now);
            if (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST) {
                fbxi_vanish(n, x->target, x->route);
                status = f->flags & FBXL_STRICT ? status : 0;
            }
            if (status)
                return fbxi_finish(n, op, status, now);
            p[1] += step;
            continue;
        }
        if (!p[10])
            p[10] = 1 + torn_at(f, fbxi_choice_key(n->requester, x->target, op->tc | 32u, p[9]) ^ p[1] << 14, step);
        if (p[10] > 1)
            step = min64(step, p[10] - 1);
        struct fbxi_flight flight = {.departs_ps = p[2]};
        struct fbxi_post post = {.bytes = (uint32_t)step, .offset = offset, .payload = (const uint8_t *)op->buffer + p[1],
                                 .flags = fbxi_attributes(op, x) | (x->mapping == FBX_WRITE_COMBINING ? FBXL_ENTRY_COMBINING : 0),
                                 .drained = fbx_peek(&x->route->drained[op->tc])};
        if ((status = fbxi_post_piece(n, op, lane, x, &post, &flight, now)) == FBXI_LOOK_AGAIN) {
            if ((status = fbxi_usable(n, op->kind, op->gva)))
                return fbxi_finish(n, op, status, now);
            continue;
        }
        if (status)
            return status;
        fbxi_count_way(x->route, 0, step, 1, FBX_MWR_HEADER);
        p[1] += step;
        p[2] = flight.departs_ps;
        p[7] = 0;
        /* The second part of a torn line follows; then a line of its own. */
        p[10] = p[10] > 1 && (offset + step) & (LINE - 1) && p[1] < op->bytes ? 1 : 0;
        op->departs_ps = flight.departs_ps;
        op->sequence = post.sequence;
        if (post.arrives_ps > op->arrives_ps)
            op->arrives_ps = post.arrives_ps;
    }
    op->done = op->bytes;
    op->completes_ps = op->kind == FBX_STORE ? op->issued_ps + n->facts->pio_write_ps : p[2];
    if (now >= op->completes_ps)
        return fbxi_finish(n, op, 0, now);
    op->state = FBX_RETURNS;
    op->next_ps = op->completes_ps;
    return FBX_E_AGAIN;
}

/* Which of `count` pieces is taken as number `turn`, in the order that `how` names. 0: one after the other. */
static uint32_t piece_of(uint64_t how, uint32_t turn, uint32_t count)
{
    uint8_t order[FBX_PIECE_BYTES / LINE];
    if (!how || count < 2)
        return turn;
    for (uint32_t i = 0; i < count; i++)
        order[i] = (uint8_t)i;
    for (uint32_t i = count - 1; i; i--) {
        uint32_t k = (uint32_t)(fbxi_choice_bits(how, FBXI_CHOICE_TEAR, i) % (i + 1));
        uint8_t kept = order[i];
        order[i] = order[k];
        order[k] = kept;
    }
    return order[turn];
}

/* A read of several lines, or a load of several words: the pieces are sampled in any order, each at its own time. private_:
 * 1 bytes of this round, 9 the order's name, 10 pieces sampled, 11 when the first one is, 12 how long after it the next. */
int fbxi_read_pieces(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    struct fbxi_xl scratch, *x = NULL;
    uint64_t *p = op->private_, offset;
    const uint32_t unit = op->kind == FBX_LOAD ? 8 : LINE;
    for (;;) {
        int status = fbxi_find(n, op, op->gva + op->done, 1, &scratch, &x, &offset);
        if (status)
            return fbxi_finish(n, op, status, now);
        if (x->status)
            return fbxi_finish(n, op, x->status, now);
        if (!x->route) { /* a window that leads home by now */
            status = fbxi_untimed(n, op);
            return fbxi_finish(n, op, status, now);
        }
        if (op->state == FBX_ISSUED) {
            uint64_t step = min64(min64(op->bytes - op->done, x->hi - offset), FBX_PIECE_BYTES - (offset & (FBX_PIECE_BYTES - 1)));
            const uint32_t width = op->kind == FBX_LOAD ? (uint32_t)op->bytes : n->facts->access_bytes;
            uint64_t accesses = ((offset & (width - 1)) + step + width - 1) / width, start = op->completes_ps;
            fbxi_time_request(n, op, x->route, x->region, start, 0, width);
            uint64_t trip = op->completes_ps - start, count = ((offset & (unit - 1)) + step + unit - 1) / unit;
            p[1] = step;
            p[9] = fbxi_choice_at(n->fabric, FBXI_CHOICE_TEAR, fbxi_choice_key(n->requester, x->target, op->tc | 32u, fbx_peek(&n->requests)), 24);
            p[10] = 0;
            p[11] = op->arrives_ps;
            p[12] = op->kind == FBX_LOAD ? 20000u : count > 1 ? (accesses - 1) * trip / (count - 1) : 0;
            op->arrives_ps += (count - 1) * p[12];
            op->completes_ps += op->kind == FBX_LOAD ? (count - 1) * p[12] : (accesses - 1) * trip;
            op->state = FBX_TRAVELS;
        }
        if (op->state == FBX_TRAVELS) {
            const uint64_t start = op->done, step = p[1], first = offset & (unit - 1);
            const uint32_t count = (uint32_t)((first + step + unit - 1) / unit);
            for (; p[10] < count; p[10]++) {
                uint64_t at = p[11] + p[10] * p[12];
                if (now < at) {
                    op->next_ps = at;
                    return FBX_E_AGAIN;
                }
                if (fbxi_own_writes_pending(n, op, now))
                    return fbxi_stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
                uint32_t piece = piece_of(p[9], (uint32_t)p[10], count);
                uint64_t from = piece ? (uint64_t)piece * unit - first : 0, to = min64(step, (uint64_t)(piece + 1) * unit - first);
                op->done = start + from;
                status = fbxi_move(n, op, lane, &x, &scratch, to - from, now);
                op->done = start;
                if (status == FBX_E_AGAIN)
                    return fbxi_stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
                if (status)
                    return fbxi_finish(n, op, status, now);
            }
            op->done += step;
            fbxi_deliver_due(n, n->index, now); /* what is here already pushes nothing */
            op->completes_ps = fbxi_pushed_by_completion(n, x->target, op->tc | (uint32_t)op->path << 3, op->attr, op->completes_ps);
            op->state = op->done < op->bytes ? FBX_ISSUED : FBX_RETURNS;
            if (op->state == FBX_ISSUED)
                continue;
        }
        if (now < op->completes_ps) {
            op->next_ps = op->completes_ps;
            return FBX_E_AGAIN;
        }
        fbxi_deliver_due(n, n->index, now);
        return fbxi_finish(n, op, 0, now);
    }
}
