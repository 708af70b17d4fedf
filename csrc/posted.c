/* SPDX-License-Identifier: Apache-2.0
 *
 * Posted writes on their way. One queue per (source node, target node, traffic class) in shared memory: a ring of
 * 64-byte cells. Producers append under the queue's lock in the order in which the link carries them, so arrival times
 * never decrease along a queue. Whoever comes by delivers what is due: the source, the target at each of its accesses,
 * its service thread. Delivery to one target is under that target's lock, earliest arrival first.
 *
 * Death. A producer that dies before it publishes the tail leaves nothing. A deliverer that dies leaves its lock with its
 * name in it and the head where it was; the next one takes the lock over and does that one entry again, which for a
 * write of memory is the same as doing it once. A stopped holder is left alone: the rest counts as not yet arrived.
 *
 * Under the adversary (ordering.h) arrival times may decrease along a queue. An entry that becomes visible before others in
 * front of it is marked as applied, and the head moves on once it is their turn.
 */
#include "internal.h"
#include "ntb.h"
#include "ordering.h"
#include "registered.h"
#include "timing.h"
#include "trace.h"

#include <stdlib.h>

#define CELLS 1020u /* with the queue's own four lines a power of two */

static struct fbxl_queue *queue_at(fbx_fabric *f, uint64_t offset)
{
    struct fbxl_queue *q = fbxi_heap_at(f, offset, sizeof *q + CELLS * 64ull);
    if (!q || offset & 63)
        return NULL;
    if (q->cells != CELLS || q->target >= f->node_count || q->source >= f->node_count) {
        fbx_count(&f->header->corrupt_resets, 1);
        return NULL;
    }
    return q;
}

struct fbxl_queue *fbxi_queue_find(fbx_fabric *f, uint32_t source, uint32_t target, uint32_t tc)
{
    uint32_t bound = 0;
    for (uint64_t at = fbx_observe(&f->nodes[target].queues); at && bound++ < 1u << 20;) {
        struct fbxl_queue *q = queue_at(f, at);
        if (!q)
            return NULL;
        if (q->source == source && q->traffic_class == tc)
            return q;
        at = fbx_observe(&q->next);
    }
    return NULL;
}

int fbxi_queue_get(fbx_fabric *f, uint32_t source, uint32_t target, uint32_t tc, struct fbxl_queue **out)
{
    *out = fbxi_queue_find(f, source, target, tc);
    if (*out)
        return 0;
    int status = fbxi_control_lock(f);
    if (status)
        return status;
    struct fbxl_queue *q = fbxi_queue_find(f, source, target, tc);
    if (!q) {
        uint64_t offset;
        status = fbxi_heap(f, sizeof *q + CELLS * 64ull, &offset);
        if (!status) {
            struct fbxl_node *node = &f->nodes[target];
            q = fbxi_at(f, offset);
            q->source = source;
            q->target = target;
            q->traffic_class = tc;
            q->ordinal = fbx_add(&node->queue_count, 1);
            q->cells = CELLS;
            fbx_poke(&q->next, fbx_peek(&node->queues));
            /* Pairs with: fbx_observe(&node->queues) of deliverers. Breaks: a queue with garbage in it. */
            fbx_publish(&node->queues, offset);
        }
    }
    fbxi_control_unlock(f);
    *out = q;
    return status;
}

static struct fbxl_entry *cell(fbx_fabric *f, const struct fbxl_queue *q, uint64_t position)
{
    (void)f;
    return (struct fbxl_entry *)(uintptr_t)(q + 1) + position % CELLS;
}

static uint32_t cells_for(uint32_t bytes) { return bytes <= 16 ? 1 : 1 + (bytes + 63) / 64; }

/* The entry at `position`, and how many cells it takes; NULL if that is not what a producer writes. */
static struct fbxl_entry *entry(fbx_fabric *f, const struct fbxl_queue *q, uint64_t position, uint64_t tail)
{
    struct fbxl_entry *e = cell(f, q, position);
    const uint32_t cells = e->cells;
    return !cells || cells > CELLS || position + cells > tail || position % CELLS + cells > CELLS ? NULL : e;
}

static int over(const struct fbxl_entry *e) { return e->kind == FBXL_ENTRY_SKIP || e->flags & FBXL_ENTRY_APPLIED; }

/* When a write arrives that the adversary may delay, and let pass what the rules permit. The producer's lock is held. */
static void arrange(fbx_fabric *f, struct fbxl_queue *q, struct fbxi_post *post, uint64_t head, uint64_t tail)
{
    const uint64_t key = fbxi_choice_key(q->source, q->target, q->traffic_class, fbx_peek(&q->sequence) + 1);
    uint64_t own = post->arrives_ps + fbxi_unfair_ps(f, FBXI_CHOICE_DELAY, key), must = 0, all = 0;
    for (uint64_t p = head; p < tail;) {
        const struct fbxl_entry *e = entry(f, q, p, tail);
        if (!e)
            break;
        p += e->cells;
        uint64_t arrives = fbx_peek(&e->arrives_ps);
        if (over(e) || arrives > post->arrives_ps + FBX_BACKLOG_PS)
            continue;
        all = arrives > all ? arrives : all;
        if (!fbxi_may_pass(e, post))
            must = arrives > must ? arrives : must;
    }
    /* Cells are found in order, so nothing that has gone needs to be looked at: it arrived before now. */
    if (own < all && must < all && !fbxi_passes(f, key))
        must = all;
    post->arrives_ps = own > must ? own : must;
}

int fbxi_post(fbx_fabric *f, struct fbxl_queue *q, struct fbxi_post *post)
{
    const uint32_t need = cells_for(post->bytes), target = q->target, source = q->source;
    if (target >= f->node_count || source >= f->node_count)
        return fbxi_fail(FBX_E_CORRUPT, "a queue of posted writes is damaged");
    for (;;) {
        if (fbxi_lock(f, &q->producer, FBX_STALL_NS) < 0)
            return fbxi_fail(FBX_E_QUEUE_FULL, "a stopped process holds the queue from %s to %s",
                             f->node_facts[source].name, f->node_facts[target].name);
        uint64_t tail = fbx_peek(&q->tail), head = fbx_observe(&q->head);
        uint32_t skip = tail % CELLS + need > CELLS ? CELLS - (uint32_t)(tail % CELLS) : 0;
        if (head > tail || tail - head > CELLS) { /* scribbled over: empty it */
            fbx_count(&f->header->corrupt_resets, 1);
            fbx_publish(&q->head, tail);
            head = tail;
        }
        if (tail + skip + need - head <= CELLS) {
            if (skip) {
                struct fbxl_entry *e = cell(f, q, tail);
                fbx_poke(&e->arrives_ps, 0);
                e->flags = 0;
                e->bytes = 0;
                e->kind = FBXL_ENTRY_SKIP;
                e->cells = (uint16_t)skip;
                tail += skip;
            }
            uint64_t last = fbx_peek(&q->last_arrives);
            if (fbxi_adversarial(f))
                arrange(f, q, post, head, tail);
            else if (post->arrives_ps < last && last - post->arrives_ps < FBX_BACKLOG_PS)
                post->arrives_ps = last; /* FIFO, whatever jitter and calendars say */
            else if (post->arrives_ps < last)
                fbx_count(&f->header->corrupt_resets, 1);
            struct fbxl_entry *e = cell(f, q, tail);
            fbx_poke(&e->arrives_ps, post->arrives_ps);
            e->sequence = post->sequence = fbx_peek(&q->sequence) + 1;
            e->region = post->region;
            e->bytes = post->bytes;
            e->offset = post->offset;
            e->cells = (uint16_t)need;
            e->kind = (uint8_t)post->kind;
            e->flags = (uint8_t)post->flags;
            e->requester = (uint16_t)post->requester;
            e->poison = 0;
            e->trace_id = post->trace_id;
            if (post->bytes <= 8 && post->bytes)
                memcpy(e->inline_payload, post->payload, post->bytes);
            else
                fbx_mem_copy(need == 1 ? (void *)e->inline_payload : (void *)(e + 1), post->payload, post->bytes);
            fbx_poke(&q->sequence, post->sequence);
            if (post->flags & FBXL_ENTRY_SCALAR) {
                fbx_poke(&q->scalar_bytes, fbx_peek(&q->scalar_bytes) + post->bytes);
                fbx_poke(&q->scalar_tlps, fbx_peek(&q->scalar_tlps) + 1);
            }
            if (!fbxi_adversarial(f) || post->arrives_ps > last)
                fbx_poke(&q->last_arrives, post->arrives_ps);
            /* Pairs with: fbx_observe(&q->tail) in deliver. Breaks: an entry delivered before it is written. */
            fbx_publish(&q->tail, tail + need);
            /* A full exchange, so that a deliverer that clears the mark either sees this tail or leaves the mark.
             * Pairs with: the and + observe at the end of fbxi_deliver(). Breaks: an entry that nobody finds. */
            fbx_or(&f->nodes[target].pending, 1ull << (q->ordinal & 63));
            fbxi_unlock(f, &q->producer);
            return 0;
        }
        post->arrives_ps = fbx_peek(&cell(f, q, head)->arrives_ps);
        fbxi_unlock(f, &q->producer);
        /* Full: credits are exhausted, and the producer delivers its own head when that is due. If it is already, whoever
         * holds the delivery is at it; a stopped one is the caller's to wait for. */
        if (fbxi_deliver(f, target, fbxi_now(&f->clock)) <= 0)
            return FBX_E_AGAIN;
    }
}

/* A write of a register: BUSY while a stopped process holds the registers; it stays queued then. */
static int apply_register(fbx_fabric *f, struct fbxl_queue *q, const struct fbxl_entry *e, uint32_t cells)
{
    struct fbxi_ntb_write w = {e->kind, q->source, e->offset, 0, q, e->sequence};
    if (cells != 1 || e->bytes > 8)
        return FBX_E_INVALID;
    memcpy(&w.value, e->inline_payload, 8);
    return fbxi_ntb_apply(f, q->target, &w);
}

static int apply(fbx_fabric *f, struct fbxl_queue *q, const struct fbxl_entry *e, uint32_t cells, struct fbxl_node *node)
{
    const uint32_t region = e->region, bytes = e->bytes;
    const uint64_t offset = e->offset;
    struct fbxi_region_map *map;
    if (e->kind > FBXL_ENTRY_WRITE && !(e->flags & FBXL_ENTRY_DROPPED) && fbx_observe(&node->state) != FBXL_LOST) {
        int status = apply_register(f, q, e, cells);
        if (!status)
            fbx_count(&node->delivered, 1);
        if (!status || status == FBX_E_BUSY)
            return status;
    }
    const void *payload = bytes <= 16 ? (const void *)e->inline_payload : (const void *)(e + 1);
    if (region == fbxi_registered_region(f, q->target) && !(e->flags & FBXL_ENTRY_DROPPED) && e->kind == FBXL_ENTRY_WRITE &&
        fbx_observe(&node->state) != FBXL_LOST && bytes <= (CELLS - 1) * 64 && cells == cells_for(bytes) && offset < FBX_SLOT_MASK) {
        uint64_t done = 0;
        int status = fbxi_registered_write(f, region, offset, payload, bytes, 0, &done);
        if (!status)
            fbx_count(&node->delivered, 1);
        if (!status || status == FBX_E_BUSY)
            return status;
    }
    if (e->flags & FBXL_ENTRY_DROPPED || e->kind != FBXL_ENTRY_WRITE || region >= f->region_count ||
        bytes > (CELLS - 1) * 64 || offset > f->region_facts[region].bytes || bytes > f->region_facts[region].bytes - offset ||
        cells != cells_for(bytes) || fbx_observe(&node->state) == FBXL_LOST || fbxi_map_region(f, region, &map) ||
        (!fbxi_committed(f, region, offset, bytes ? bytes : 1) && fbxi_commit(f, region, offset, bytes))) {
        if (e->kind == FBXL_ENTRY_SKIP)
            return 0;
        fbx_count(&node->posted_dropped, 1);
        uint32_t requester = e->requester;
        if (requester < fbxi_high(f, FBXL_REQUESTERS))
            fbx_count(&f->requesters[requester].dropped, 1);
        return 0;
    }
    if (bytes <= 8 && (bytes & (bytes - 1)) == 0 && bytes && !(offset & (bytes - 1))) {
        uint64_t value = 0;
        memcpy(&value, payload, bytes);
        fbx_mem_store(map->rw + offset, value, bytes);
    } else {
        fbx_mem_copy(map->rw + offset, payload, bytes);
    }
    fbx_count(&node->delivered, 1);
    return 0;
}

/* The entry of `q` that arrives first, and its position; UINT64_MAX if there is none. A hint without the delivery lock. */
static uint64_t first_due(fbx_fabric *f, struct fbxl_queue *q, uint64_t *position)
{
    uint64_t head = fbx_observe(&q->head), tail = fbx_observe(&q->tail), due = UINT64_MAX;
    for (uint64_t p = head; p < tail && p - head <= CELLS;) {
        const struct fbxl_entry *e = entry(f, q, p, tail);
        if (!e) {
            *position = p; /* whoever delivers empties the queue */
            return 0;
        }
        uint64_t arrives = fbx_peek(&e->arrives_ps);
        if (!over(e) && arrives < due) {
            due = arrives;
            *position = p;
        }
        p += e->cells;
    }
    return due;
}

int fbxi_holds(fbx_fabric *f, struct fbxl_queue *q, uint64_t tail, uint32_t requester)
{
    uint64_t head = fbx_observe(&q->head);
    if (head >= tail)
        return 0;
    if (!fbxi_adversarial(f))
        return 1;
    for (uint64_t p = head; p < tail && p - head <= CELLS;) {
        const struct fbxl_entry *e = entry(f, q, p, tail);
        if (!e)
            return 1;
        if (!over(e) && (requester == UINT32_MAX || e->requester == (uint16_t)requester))
            return fbx_observe(&q->head) < tail; /* or its cells have been given to others meanwhile */
        p += e->cells;
    }
    return 0;
}

/* The entry of `q` that is due next: its arrival, or UINT64_MAX. */
static uint64_t head_due(fbx_fabric *f, struct fbxl_queue *q)
{
    uint64_t position;
    if (fbxi_adversarial(f))
        return first_due(f, q, &position);
    for (;;) {
        uint64_t head = fbx_observe(&q->head);
        __builtin_prefetch(cell(f, q, head)); /* comes over together with the tail, not after it */
        if (head == fbx_observe(&q->tail))
            return UINT64_MAX;
        uint64_t due = fbx_peek(&cell(f, q, head)->arrives_ps);
        /* A cell is reused only after the head has passed it. */
        if (fbx_observe(&q->head) == head)
            return due;
    }
}

uint64_t fbxi_next_due(fbx_fabric *f, uint32_t target)
{
    uint64_t due = UINT64_MAX;
    uint32_t bound = 0;
    if (!fbx_observe(&f->nodes[target].pending))
        return due;
    for (uint64_t at = fbx_observe(&f->nodes[target].queues); at && bound++ < 1u << 20;) {
        struct fbxl_queue *q = queue_at(f, at);
        if (!q)
            break;
        uint64_t d = head_due(f, q);
        if (d < due)
            due = d;
        at = fbx_observe(&q->next);
    }
    return due;
}

/* Which earlier write this one has passed, of those of its source that are under way, and by what rule. For the trace. */
static uint32_t passes(fbx_fabric *f, const struct fbxl_queue *of, const struct fbxl_entry *e, uint64_t *passed)
{
    const struct fbxi_post later = {.flags = e->flags, .requester = e->requester, .region = e->region, .offset = e->offset,
                                    .bytes = e->bytes ? e->bytes : 1};
    uint64_t oldest = e->trace_id;
    uint32_t rule = FBX_RULE_NONE, bound = 0;
    if (!e->trace_id)
        return rule;
    for (uint32_t target = 0; target < f->node_count; target++)
        for (uint64_t at = fbx_observe(&f->nodes[target].queues); at && bound++ < 1u << 20;) {
            struct fbxl_queue *q = queue_at(f, at);
            if (!q)
                break;
            at = fbx_observe(&q->next);
            uint64_t tail = fbx_observe(&q->tail);
            if (q->source != of->source)
                continue;
            for (uint64_t p = fbx_observe(&q->head); p < tail;) {
                const struct fbxl_entry *other = entry(f, q, p, tail);
                if (!other)
                    break;
                p += other->cells;
                if (over(other) || !other->trace_id || other->trace_id >= oldest)
                    continue;
                oldest = *passed = other->trace_id;
                rule = q == of ? fbxi_may_pass(other, &later) : q->target == of->target && q->traffic_class >> 3 == of->traffic_class >> 3 ? FBX_RULE_TC : FBX_RULE_PATH;
            }
        }
    return rule;
}

int fbxi_deliver(fbx_fabric *f, uint32_t target, uint64_t until_ps)
{
    if (!fbx_observe(&f->nodes[target].pending) || fbxi_next_due(f, target) > until_ps)
        return 0;
    return fbxi_deliver_now(f, target, until_ps);
}

/* Tell the trace that an entry was delivered, or vanished. Its times are those of its arrival: under the virtual clock nobody
 * can have looked in between. */
static void trace_entry(fbx_fabric *f, const struct fbxl_queue *q, const struct fbxl_entry *e, uint32_t rule, uint64_t passed)
{
    struct fbxi_trace_record r = {
        .at_ps = fbx_peek(&e->arrives_ps), .arrives_ps = fbx_peek(&e->arrives_ps), .id = e->trace_id, .sequence = e->sequence,
        .bytes = e->bytes, .node = (uint16_t)q->source, .target = (uint16_t)q->target, .tc = (uint8_t)q->traffic_class,
        .attr = e->flags & (FBXL_ENTRY_RO | FBXL_ENTRY_IDO), .kind = e->kind, .rule = (uint16_t)rule, .passed = passed,
        .event = e->flags & FBXL_ENTRY_DROPPED ? FBX_TRACE_DROPPED : FBX_TRACE_VISIBLE};
    r.gva = e->kind == FBXL_ENTRY_WRITE ? ((uint64_t)(e->region + 1) << FBX_SLOT_SHIFT) + e->offset : e->offset;
    r.digest = fbxi_trace_digest(e->bytes <= 16 ? (const void *)e->inline_payload : (const void *)(e + 1), e->bytes);
    fbxi_trace(f, &r);
}

int fbxi_deliver_now(fbx_fabric *f, uint32_t target, uint64_t until_ps)
{
    struct fbxl_node *node = &f->nodes[target];
    /* The lock is held for some tens of nanoseconds by the living; try that long before calling it stuck. */
    int status = FBX_E_BUSY;
    for (int i = 0; i < 64 && status < 0; i++) {
        status = fbxi_trylock(f, &node->delivery);
        if (status < 0)
            fbx_relax();
    }
    if (status < 0)
        return FBX_E_BUSY;
    int delivered = 0;
    for (;;) {
        struct fbxl_queue *best = NULL;
        uint64_t best_due = UINT64_MAX;
        uint32_t bound = 0;
        uint64_t idle = 0, busy = 0;
        for (uint64_t at = fbx_observe(&node->queues); at && bound++ < 1u << 20;) {
            struct fbxl_queue *q = queue_at(f, at);
            if (!q)
                break;
            uint64_t due = head_due(f, q);
            *(due == UINT64_MAX ? &idle : &busy) |= 1ull << (q->ordinal & 63);
            if (due < best_due) {
                best = q;
                best_due = due;
            }
            at = fbx_observe(&q->next);
        }
        idle &= ~busy & fbx_peek(&node->pending);
        /* Who has delivered something is waited for: the mark, whose line the producer has, is left to the next look. */
        if (idle && !delivered) {
            fbx_and(&node->pending, ~idle);
            /* Somebody may have appended between our look and the clearing: look again, give the mark back. */
            bound = 0;
            for (uint64_t at = fbx_observe(&node->queues); at && bound++ < 1u << 20;) {
                struct fbxl_queue *q = queue_at(f, at);
                if (!q)
                    break;
                if (idle >> (q->ordinal & 63) & 1 && head_due(f, q) != UINT64_MAX)
                    fbx_or(&node->pending, 1ull << (q->ordinal & 63));
                at = fbx_observe(&q->next);
            }
        }
        if (!best || best_due > until_ps)
            break;
        uint64_t head = fbx_peek(&best->head), at = head;
        if (fbxi_adversarial(f))
            first_due(f, best, &at);
        /* After that: what it found may have been appended just now. */
        uint64_t tail = fbx_observe(&best->tail);
        struct fbxl_entry *e = entry(f, best, at, tail);
        if (!e) {
            /* Not what a producer writes: empty the queue rather than walk through garbage. */
            fbx_count(&f->header->corrupt_resets, 1);
            fbx_publish(&best->head, tail);
            continue;
        }
        fbx_poke(&node->delivering_queue, (uint64_t)((uint8_t *)best - f->base));
        fbx_poke(&node->delivering_seq, e->sequence);
        if (apply(f, best, e, e->cells, node)) {
            delivered = delivered ? delivered : FBX_E_BUSY;
            break;
        }
        if (fbxi_tracing(f) && e->kind != FBXL_ENTRY_SKIP) {
            uint64_t passed = 0;
            uint32_t rule = fbxi_adversarial(f) ? passes(f, best, e, &passed) : FBX_RULE_NONE;
            trace_entry(f, best, e, rule, passed);
        }
        delivered++;
        if (fbxi_adversarial(f)) {
            e->flags |= FBXL_ENTRY_APPLIED;
            while (head < tail && (e = entry(f, best, head, tail)) && over(e))
                head += e->cells;
            if (head == fbx_peek(&best->head))
                continue;
        } else {
            head += e->cells;
        }
        /* Pairs with: fbx_observe(&q->head) of producers. Breaks: a cell reused while it is delivered. */
        fbx_publish(&best->head, head);
    }
    fbxi_unlock(f, &node->delivery);
    return delivered;
}

/* Wait until what a queue holds now has arrived. */
static int land(fbx_fabric *f, struct fbxl_queue *q)
{
    uint64_t tail = fbx_observe(&q->tail), last = fbx_observe(&q->last_arrives), begin = 0, ticks;
    const uint32_t source = q->source, target = q->target;
    while (fbx_observe(&q->head) < tail) {
        uint64_t now = fbxi_now(&f->clock);
        if (f->clock.kind != FBX_REAL)
            now = last; /* nobody else can move time on meanwhile */
        if (fbxi_deliver(f, target, now) >= 0 && now < last && last - now < 8 * FBX_BACKLOG_PS) {
            fbxi_wait(&f->clock, last, 100000000u, FBX_SPIN_NS, NULL, &ticks);
            continue;
        }
        uint64_t ns = fbxi_monotonic_ns();
        if (!begin)
            begin = ns;
        if (fbx_observe(&q->head) < tail && ns - begin > FBX_STALL_NS)
            return fbxi_fail(FBX_E_BUSY, "a stopped process holds what %s has sent to %s", f->node_facts[source].name,
                             f->node_facts[target].name);
    }
    return 0;
}

int fbxi_land(fbx_fabric *f, uint32_t source)
{
    int status = 0;
    for (uint32_t target = 0; target < f->node_count && !status; target++)
        for (uint32_t tc = 0; tc < FBX_STREAMS && !status && fbx_observe(&f->nodes[target].queues); tc++) {
            struct fbxl_queue *q = fbxi_queue_find(f, source, target, tc);
            status = q ? land(f, q) : 0;
        }
    return status;
}

int fbx_progress(fbx_node *n)
{
    if (fbx_peek(&n->closed) || fbx_peek(&n->fabric->forked))
        return fbxi_fail(FBX_E_CLOSED, "the node's handle is closed");
    int delivered = fbxi_deliver(n->fabric, n->index, fbxi_now(&n->fabric->clock));
    return delivered < 0 ? 0 : delivered;
}

void fbxi_count_scalars(fbx_fabric *f, uint32_t link, uint64_t bytes[2], uint64_t tlps[2])
{
    uint32_t directions[FBX_MAX_HOPS], hops;
    struct fbxi_figures figures;
    memset(&figures, 0, sizeof figures);
    figures.ethernet = f->link_facts[link].kind;
    figures.mtu = figures.ethernet ? (uint32_t)f->link_facts[link].value[FBX_LINK_MTU] : 1;
    figures.overhead = (uint32_t)f->link_facts[link].value[FBX_LINK_OVERHEAD_BYTES];
    for (uint32_t target = 0; target < f->node_count; target++) {
        uint32_t bound = 0;
        for (uint64_t at = fbx_observe(&f->nodes[target].queues); at && bound++ < 1u << 20;) {
            struct fbxl_queue *q = queue_at(f, at);
            if (!q)
                break;
            at = fbx_observe(&q->next);
            uint64_t count = fbx_peek(&q->scalar_tlps), payload = fbx_peek(&q->scalar_bytes);
            if (!count || fbxi_way(f, q->source, q->target, q->traffic_class >> 3 & (FBX_PATHS - 1), directions, &hops))
                continue;
            for (uint32_t i = 0; i < hops; i++) {
                if (directions[i] / 2 != link || fbxi_elsewhere(f, q->source, q->target, link))
                    continue;
                /* Each was a frame of its own on an Ethernet hop: take them as equally long. */
                uint64_t wire = figures.ethernet ? count * fbxi_wire(&figures, payload / count, 1, FBX_MWR_HEADER)
                                                 : fbxi_wire(&figures, payload, count, FBX_MWR_HEADER);
                bytes[directions[i] & 1] += wire;
                tlps[directions[i] & 1] += count;
            }
        }
    }
}

/* What crosses `link`, or comes from or goes to `of`. */
static void drop(fbx_fabric *f, uint32_t link, uint32_t of)
{
    uint64_t now = fbxi_now(&f->clock);
    uint32_t directions[FBX_MAX_HOPS], hops;
    for (uint32_t target = 0; target < f->node_count; target++) {
        struct fbxl_node *node = &f->nodes[target];
        if (!fbx_observe(&node->pending))
            continue;
        fbxi_deliver(f, target, now);
        if (fbxi_lock(f, &node->delivery, FBX_STALL_NS) < 0)
            continue;
        uint32_t bound = 0;
        for (uint64_t at = fbx_observe(&node->queues); at && bound++ < 1u << 20;) {
            struct fbxl_queue *q = queue_at(f, at);
            if (!q)
                break;
            at = fbx_observe(&q->next);
            uint32_t crossed = UINT32_MAX, entries = 0;
            if (!fbxi_way(f, q->source, target, q->traffic_class >> 3 & (FBX_PATHS - 1), directions, &hops))
                for (uint32_t i = 0; i < hops; i++)
                    if (directions[i] / 2 == link || q->source == of || target == of)
                        crossed = directions[i];
            if (crossed == UINT32_MAX)
                continue;
            uint64_t first = fbx_observe(&q->head), tail = fbx_observe(&q->tail);
            for (uint64_t p = first; p < tail && p - first < CELLS;) {
                struct fbxl_entry *e = cell(f, q, p);
                if (!e->cells || e->cells > CELLS)
                    break;
                entries += e->kind != FBXL_ENTRY_SKIP;
                p += e->cells;
                if (e->flags & FBXL_ENTRY_APPLIED) {
                    entries--;
                    continue;
                }
                e->flags |= FBXL_ENTRY_DROPPED; /* counted for its requester and target when its turn comes */
                fbx_poke(&e->arrives_ps, now);
            }
            fbx_count(&f->directions[crossed].dropped, entries);
        }
        fbxi_unlock(f, &node->delivery);
        fbxi_deliver(f, target, now);
    }
}

void fbxi_drop_undelivered(fbx_fabric *f, uint32_t link) { drop(f, link, UINT32_MAX); }
void fbxi_drop_of_node(fbx_fabric *f, uint32_t node) { drop(f, UINT32_MAX, node); }
