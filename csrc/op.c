/* SPDX-License-Identifier: Apache-2.0
 *
 * The journey of an operation: translate, admit, time, move, complete; in this order and only here. It is a record (struct
 * fbx_op) that is begun and advanced until it is done. blocking.c makes calls of it that wait, packets.c is what it does with
 * several packets under the adversary, and journey.h has the steps that others take too.
 *
 * In-operation marks. A requester marks its lane before it looks at its generation and clears it after the bytes have
 * moved. Whoever changes a window, a link or a node bumps the generation, runs a barrier in every process, and waits
 * until marks that may be older have cleared. So what moves, moves before the change returned, or not at all.
 */
#include "away.h"
#include "internal.h"
#include "journey.h"
#include "ntb.h"
#include "ordering.h"
#include "registered.h"
#include "tier.h"
#include "timing.h"
#include "trace.h"

#include <sched.h>
#include <stdlib.h>

/* ---- translate and admit ------------------------------------------------------------------------------------------ */

int fbxi_usable(fbx_node *n, int op, uint64_t gva)
{
    fbx_fabric *f = n->fabric;
    if (fbx_peek(&n->closed) || fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail_at(FBX_E_CLOSED, op, (int)n->index, gva, "the handle of %s is closed%s", n->facts->name,
                            fbx_peek(&f->forked) ? ": it was made before fork" : "");
    if (fbx_peek(&f->header->state) & FBXL_CLOSED)
        return fbxi_fail_at(FBX_E_CLOSED, op, (int)n->index, gva, "fabric '%s' has been taken down", f->name);
    return 0;
}

/* The same, and the lane to mark, without a call where nothing is the matter. */
static inline int usable_lane(fbx_node *n, const struct fbx_op *op, fbx_au32 **lane)
{
    const fbx_fabric *f = n->fabric;
    int status = 0;
    if (UNLIKELY(fbx_peek(&n->closed) | fbx_peek(&f->closed) | fbx_peek(&f->forked) | (fbx_peek(&f->header->state) & FBXL_CLOSED)))
        status = fbxi_usable(n, op->kind, op->gva);
    *lane = LIKELY(!status) ? LIKELY(n->home == fbxi_thread()) ? n->lane : fbxi_lane(n) : NULL;
    return status;
}

int fbxi_route_to(fbx_node *n, uint32_t target, uint32_t path, struct fbxi_route **out)
{
    *out = fbx_observe_pointer(&n->routes[target * FBX_PATHS + path]);
    if (LIKELY(*out))
        return 0;
    struct fbxi_route *route = malloc(sizeof *route);
    int status = route ? fbxi_route_build(n->fabric, n->index, target, path, route) : fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    if (status) {
        free(route);
        return status;
    }
    pthread_mutex_lock(&n->mutex);
    if (n->routes[target * FBX_PATHS + path])
        free(route);
    else
        fbx_publish_pointer(&n->routes[target * FBX_PATHS + path], route);
    *out = n->routes[target * FBX_PATHS + path];
    pthread_mutex_unlock(&n->mutex);
    return 0;
}

static void depend(fbx_node *n, uint32_t bit)
{
    if (!(fbx_peek(&n->dependencies[bit / 64]) >> (bit % 64) & 1))
        fbx_or(&n->dependencies[bit / 64], 1ull << (bit % 64));
}

/* Is the way to `target` open? Sets the dependency bits first, so that whoever closes it later finds us. */
int fbxi_way_status(fbx_node *n, uint32_t target, struct fbxi_route *route)
{
    fbx_fabric *f = n->fabric;
    depend(n, f->link_count + target);
    for (uint32_t i = 0; route && i < route->hops; i++)
        depend(n, route->hop[i].direction / 2);
    /* Pairs with: the fence in invalidate(). Breaks: a closed link that our cached route still calls open. */
    fbx_fence_sleep();
    if (route && UNLIKELY(fbxi_route_changed(f, route))) {
        /* Without memory for the new figures the old ones stay, until somebody asks again. */
        pthread_mutex_lock(&n->mutex);
        fbxi_route_refresh(f, route);
        pthread_mutex_unlock(&n->mutex);
    }
    if (fbx_observe(&f->nodes[target].state) == FBXL_LOST && target != n->index)
        return FBX_E_PEER_LOST;
    for (uint32_t i = 0; route && i < route->hops; i++)
        if (fbx_observe(&f->links[route->hop[i].direction / 2].state))
            return FBX_E_LINK_DOWN;
    if (route && (fbx_observe(&f->nodes[target].ntb_down) || fbx_observe(&n->shared->ntb_down)))
        return FBX_E_LINK_DOWN;
    if (route && !fbxi_ntb_permits(f, n->index, n->slot->function))
        return FBX_E_UNSUPPORTED;
    return 0;
}

int fbxi_resolve(fbx_node *n, uint64_t gva, uint64_t bytes, uint64_t generation, struct fbxi_xl *x, uint64_t *offset)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_target t;
    struct fbxi_region_map *map = NULL;
    int status = UNLIKELY(n->proxy) ? fbxi_translate_here(f, gva, bytes, &t) : fbxi_translate(f, n->index, gva, bytes, &t);
    x->away = !status && fbxi_is_away(f, t.target) ? f->node_facts[t.target].machine + 1 : 0;
    if (!status && !x->away && !fbxi_is_registered(f, t.region))
        status = fbxi_map_region(f, t.region, &map);
    if (status)
        return status;
    x->lo = t.lo;
    x->hi = t.hi;
    x->perm = t.perm;
    x->mapping = t.mapping;
    x->attr = t.attr;
    x->target = t.target;
    x->region = t.region;
    x->base = map ? map->rw : NULL;
    x->route = NULL;
    if (t.target != n->index && (status = fbxi_route_to(n, t.target, 0, &x->route)))
        return status;
    x->status = fbxi_way_status(n, t.target, x->route);
    x->generation = generation;
    *offset = t.offset;
    return 0;
}

/* Publish a region to the short way, as far as it is committed: whole pieces only. */
static void shorten(fbx_node *n, struct fbxi_xl *x)
{
    struct fbxi_tlb *t = &n->tlb[x->region + 1];
    const uint64_t committed = fbx_observe(&n->fabric->regions[x->region].prefix);
    const uint64_t end = x->hi < committed ? x->hi : committed, first = (x->lo + FBX_COMMIT_BYTES - 1) >> FBX_COMMIT_SHIFT;
    const uint64_t pieces = end >> FBX_COMMIT_SHIFT;
    const bool allowed = !x->status && !x->away && (n->may_shorten == 1 || (n->may_shorten == 2 && !x->route));
    t->base = x->base;
    t->lo = (uint32_t)first;
    t->span = allowed && pieces > first ? (uint32_t)(pieces - first) & 0x3fffffffu : 0;
    t->load = (x->perm & FBX_PERM_READ) != 0;
    t->store = (x->perm & FBX_PERM_WRITE) != 0;
    x->shortened = end;
}

/* Find what `gva` means to this handle now: in the cache of the home thread, or anew into `scratch`. */
static int find(fbx_node *n, uint64_t gva, uint64_t bytes, struct fbxi_xl *scratch, struct fbxi_xl **out,
                uint64_t *offset)
{
    uint64_t slot = gva >> FBX_SLOT_SHIFT, generation = fbx_observe(n->generation);
    *out = NULL;
    int home = n->home == fbxi_thread();
    if (home && n->generation_seen != generation) {
        memset(n->tlb, 0, n->tlb_count * sizeof *n->tlb);
        n->generation_seen = generation;
    }
    if (LIKELY(home && slot && slot < n->tlb_count)) {
        struct fbxi_xl *x = &n->xl[slot - 1];
        *offset = gva & FBX_SLOT_MASK;
        if (LIKELY(x->generation == generation && *offset >= x->lo && *offset < x->hi && bytes <= x->hi - *offset)) {
            if (UNLIKELY(n->may_shorten && *offset + bytes > x->shortened && x->shortened < x->hi))
                shorten(n, x); /* more has been committed since */
            *out = x;
            return 0;
        }
    }
    int status = fbxi_resolve(n, gva, bytes, generation, scratch, offset);
    if (status)
        return status;
    *out = scratch;
    if (home && slot && slot < n->tlb_count) {
        *out = &n->xl[scratch->region];
        **out = *scratch;
        shorten(n, *out);
    }
    return 0;
}

int fbxi_on_path(fbx_node *n, struct fbxi_xl *x, uint32_t path)
{
    if (!x->route || !path)
        return 0;
    int status = fbxi_route_to(n, x->target, path, &x->route);
    if (!status)
        x->status = fbxi_way_status(n, x->target, x->route);
    return status;
}

/* The same on the path that the operation takes. */
int fbxi_find(fbx_node *n, const struct fbx_op *op, uint64_t gva, uint64_t bytes, struct fbxi_xl *scratch, struct fbxi_xl **out, uint64_t *offset)
{
    int status = find(n, gva, bytes, scratch, out, offset);
    if (LIKELY(status || !op->path || !(*out)->route))
        return status;
    if (*out != scratch)
        *scratch = **out;
    *out = scratch;
    return fbxi_on_path(n, scratch, op->path);
}

/* The way that a resolved operation takes; NULL if it was never built. */
static struct fbxi_route *route_of(fbx_node *n, const struct fbx_op *op)
{
    return fbx_observe_pointer(&n->routes[op->target * FBX_PATHS + op->path]);
}

static int refuse(fbx_node *n, const struct fbx_op *op, int code, uint32_t target)
{
    static const char *const what[] = {"load", "store", "read", "write", "fetch_add", "swap", "compare_swap", "flush",
                                       "wait", "dma_read", "dma_write", "operation"};
    const char *name = op->kind < FBX_OP_KINDS ? what[op->kind] : "operation";
    return fbxi_fail_at(code, op->kind, (int)n->index, op->gva, "%s of %s at 0x%llx (%s): %s", name, n->facts->name,
                        (unsigned long long)op->gva, n->fabric->nodes[target].name,
                        code == FBX_E_LINK_DOWN   ? "link down"
                        : code == FBX_E_PEER_LOST ? "the peer died"
                        : code == FBX_E_ABORT     ? "the window does not permit it"
                                                  : fbx_error_name(code));
}

static int is_posted(const struct fbx_op *op) { return op->kind == FBX_STORE || op->kind == FBX_WRITE; }

/* A posted write that the fabric lost: nobody is told at once, counters and flush(check) say it. */
void fbxi_vanish(fbx_node *n, uint32_t target, const struct fbxi_route *route)
{
    fbx_count(&n->slot->dropped, 1);
    fbx_count(&n->fabric->nodes[target].posted_dropped, 1);
    fbx_count(&n->shared->aer_nonfatal, 1);
    if (route && route->hops)
        fbx_count(&route->hop[0].out->dropped, 1);
}

void fbxi_use_target_slow(fbx_node *n, uint32_t target)
{
    pthread_mutex_lock(&n->mutex);
    if (!fbx_bits_or(&n->used_target[target], 1)) {
        uint32_t count = fbx_peek(&n->used_targets_count);
        n->used_targets[count] = target;
        /* Pairs with: fbx_observe() in fbx_flush() and fbx_fence(). Breaks: a target that a flush leaves out. */
        fbx_publish(&n->used_targets_count, count + 1);
    }
    pthread_mutex_unlock(&n->mutex);
}

int fbxi_posted_queue_slow(fbx_node *n, struct fbxi_route *route, uint32_t tc, struct fbxl_queue **out)
{
    int status = fbxi_queue_get(n->fabric, n->index, route->target, tc | route->path << 3, out);
    if (!status)
        fbx_publish_pointer(&route->queue[tc], *out);
    return status;
}

/* The stream of posted writes that `tc` shares; NULL if there never was one. */
struct fbxl_queue *fbxi_own_queue(fbx_node *n, struct fbxi_route *route, uint32_t tc)
{
    if (!route)
        return NULL;
    struct fbxl_queue *q = fbx_observe_pointer(&route->queue[tc]);
    /* Look again only where there is one more than when there was none. */
    const uint32_t count = q ? 0 : fbx_observe(&n->fabric->nodes[route->target].queue_count);
    if (count && count != fbx_peek(&route->looked[tc])) {
        q = fbxi_queue_find(n->fabric, n->index, route->target, tc | route->path << 3);
        if (q)
            fbx_publish_pointer(&route->queue[tc], q);
        else if (fbx_observe(&n->fabric->nodes[route->target].queues))
            fbx_poke(&route->looked[tc], count);
    }
    return q;
}

/* ---- move ------------------------------------------------------------------------------------------------------------- */

/* The same where nobody but one process has the bytes. */
static int touch_registered(fbx_node *n, struct fbx_op *op, const struct fbxi_xl *x, uint64_t offset, uint64_t bytes)
{
    fbx_fabric *f = n->fabric;
    uint64_t done = 0;
    switch (op->kind) {
    case FBX_LOAD:
    case FBX_READ:
    case FBX_WAIT:
        if (!op->buffer)
            return fbxi_registered_load(f, x->region, offset, (uint32_t)bytes, &op->operand[0]);
        return fbxi_registered_read(f, x->region, offset, (uint8_t *)op->buffer + op->done, bytes, &done);
    case FBX_STORE:
    case FBX_WRITE:
        return fbxi_registered_write(f, x->region, offset, op->buffer ? (const uint8_t *)op->buffer + op->done : (const uint8_t *)op->operand,
                                     bytes, 1, &done);
    default: return fbxi_registered_atomic(f, x->region, offset, op->kind, (uint32_t)bytes, op->operand);
    }
}

/* Touch memory once. Marked; what is due is delivered; a write's memory is committed. */
static int touch(fbx_node *n, struct fbx_op *op, const struct fbxi_xl *x, uint64_t offset, uint64_t bytes)
{
    if (UNLIKELY(!x->base))
        return touch_registered(n, op, x, offset, bytes);
    uint8_t *at = x->base + offset;
    switch (op->kind) {
    case FBX_LOAD:
    case FBX_READ:
    case FBX_WAIT: {
        if (UNLIKELY(!fbxi_committed(n->fabric, x->region, offset, bytes))) {
            /* Never written, at least in part: piece by piece, zeros without touching where nothing is. */
            uint8_t zeros[64] = {0}, *out = op->buffer ? (uint8_t *)op->buffer + op->done : zeros;
            for (uint64_t done = 0, step; done < bytes; done += step) {
                step = FBX_COMMIT_BYTES - ((offset + done) & (FBX_COMMIT_BYTES - 1));
                if (step > bytes - done)
                    step = bytes - done;
                if (fbxi_committed(n->fabric, x->region, offset + done, step))
                    fbx_mem_copy(out + done, at + done, step);
                else
                    memset(out + done, 0, step);
            }
            if (!op->buffer)
                memcpy(op->operand, zeros, 8);
        } else if (!op->buffer) {
            op->operand[0] = fbx_mem_load(at, (uint32_t)bytes);
        } else {
            if (UNLIKELY(op->bytes >= FBX_STREAM_BYTES))
                fbx_mem_stream((uint8_t *)op->buffer + op->done, at, bytes);
            else
                fbx_mem_copy((uint8_t *)op->buffer + op->done, at, bytes);
            fbx_fence_load();
        }
        break;
    }
    case FBX_STORE:
        if (!op->buffer) {
            fbx_mem_store(at, op->operand[0], (uint32_t)bytes);
            break;
        } /* fall through */
    case FBX_WRITE:
        if (UNLIKELY(op->bytes >= FBX_STREAM_BYTES))
            fbx_mem_stream(at, (const uint8_t *)op->buffer + op->done, bytes);
        else
            fbx_mem_copy(at, (const uint8_t *)op->buffer + op->done, bytes);
        fbx_fence_store();
        break;
    case FBX_FETCH_ADD: op->operand[0] = fbx_mem_fetch_add(at, op->operand[0], (uint32_t)bytes); break;
    case FBX_SWAP: op->operand[0] = fbx_mem_swap(at, op->operand[0], (uint32_t)bytes); break;
    case FBX_CAS:
        if (bytes == 16)
            fbx_mem_cas16(at, &op->operand[0], &op->operand[2], &op->operand[0]);
        else
            op->operand[0] = fbx_mem_cas(at, op->operand[0], op->operand[2], (uint32_t)bytes);
        break;
    default: break;
    }
    return 0;
}

/* What a window must permit for it: FBX_PERM_*. */
static inline uint32_t needs(const struct fbx_op *op)
{
    static const uint8_t of[16] = {
        [FBX_LOAD] = FBX_PERM_READ, [FBX_READ] = FBX_PERM_READ, [FBX_WAIT] = FBX_PERM_READ, [FBX_STORE] = FBX_PERM_WRITE,
        [FBX_WRITE] = FBX_PERM_WRITE, [FBX_FETCH_ADD] = FBX_PERM_RW, [FBX_SWAP] = FBX_PERM_RW, [FBX_CAS] = FBX_PERM_RW,
        [FBX_DMA_READ] = FBX_PERM_READ, [FBX_DMA_WRITE] = FBX_PERM_READ, [FBX_OTHER] = FBX_PERM_READ};
    return of[op->kind & 15];
}

static inline int writes(const struct fbx_op *op) { return (needs(op) & FBX_PERM_WRITE) != 0; }
static inline int permitted(const struct fbx_op *op, const struct fbxi_xl *x) { return !(needs(op) & ~x->perm); }

/* Mark, check that what was resolved still holds, move `bytes`, unmark. `*x` is refreshed where it was stale. Returns
 * AGAIN if delivery is in a stopped process's hands and the operation must not pass it. */
int fbxi_move(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, struct fbxi_xl **x, struct fbxi_xl *scratch,
                uint64_t bytes, uint64_t now)
{
    int status = 0;
    uint64_t offset = 0;
    const uint64_t gva = op->gva + op->done;
    for (int attempt = 0; attempt < 1000; attempt++) {
        if ((status = fbxi_find(n, op, gva, bytes, scratch, x, &offset)))
            return status;
        if (!permitted(op, *x))
            return refuse(n, op, FBX_E_ABORT, (*x)->target);
        if ((*x)->status)
            return (*x)->status;
        if (writes(op) && UNLIKELY(fbxi_uncommitted(n->fabric, (*x)->region, offset + bytes)) &&
            (status = fbxi_commit(n->fabric, (*x)->region, offset, bytes)))
            return status;
        fbxi_mark(n, lane);
        if (LIKELY(fbx_observe(n->generation) == (*x)->generation))
            goto current;
        fbxi_unmark(lane);
        if ((status = fbxi_usable(n, op->kind, gva)))
            return status;
    }
    return fbxi_fail(FBX_E_BUSY, "the routes of %s change faster than it can look", n->facts->name);
current:
    if (UNLIKELY(fbxi_deliver_due(n, (*x)->target, now) < 0) && op->kind != FBX_LOAD && op->kind != FBX_READ &&
        op->kind != FBX_WAIT) {
        fbxi_unmark(lane);
        return FBX_E_AGAIN;
    }
    status = touch(n, op, *x, offset, bytes);
    fbxi_unmark(lane);
    return status;
}

/* ---- complete -------------------------------------------------------------------------------------------------------- */

/* The home thread has a word of its own, which it alone writes: a locked addition would cost a store a tenth of its time. */
static inline void count_one(fbx_node *n, fbx_au64 *shared, fbx_au64 *home)
{
    if (LIKELY(n->home == fbxi_thread()))
        fbx_poke(home, fbx_peek(home) + 1);
    else
        fbx_count(shared, 1);
}

/* Counted while the operation still waits, so that counting costs no time that would have to be explained. */
static void count(fbx_node *n, struct fbx_op *op)
{
    if (!n->stats || op->kind >= FBX_OP_KINDS || op->private_[5])
        return;
    op->private_[5] = 1;
    __typeof__(n->stats->kind[0]) *k = &n->stats->kind[op->kind];
    count_one(n, &k->count, &k->count_home);
    if (op->bytes > 64)
        fbx_count(&k->bytes, op->bytes);
    struct fbxi_route *route = op->private_[4] && op->target < n->fabric->node_count ? route_of(n, op) : NULL;
    if (!route || op->kind == FBX_WRITE)
        return;
    /* One round trip, or as many as a bulk read made. */
    uint64_t trips = op->kind == FBX_READ ? (op->bytes + op->private_[3] - 1) / op->private_[3] : 1;
    if (LIKELY(n->home == fbxi_thread())) {
        struct fbxi_trips *made = &route->made[0];
        fbx_poke(&made->trips, fbx_peek(&made->trips) + trips);
        fbx_poke(&made->request_bytes, fbx_peek(&made->request_bytes) + trips * op->private_[2]);
        fbx_poke(&made->completion_bytes, fbx_peek(&made->completion_bytes) + trips * op->private_[3]);
    } else {
        fbx_count(&route->made[1].trips, trips);
        fbx_count(&route->made[1].request_bytes, trips * op->private_[2]);
        fbx_count(&route->made[1].completion_bytes, trips * op->private_[3]);
    }
}

void fbxi_publish_counts(fbx_node *n)
{
    pthread_mutex_lock(&n->mutex);
    for (uint32_t target = 0; target < n->fabric->node_count * FBX_PATHS; target++) {
        struct fbxi_route *route = n->routes[target];
        for (int i = 0; route && i < 2; i++) {
            struct fbxi_trips *made = &route->made[i], *told = &route->published[i];
            uint64_t trips = fbx_peek(&made->trips) - fbx_peek(&told->trips);
            if (!trips)
                continue;
            uint64_t out = fbx_peek(&made->request_bytes) - fbx_peek(&told->request_bytes);
            uint64_t back = fbx_peek(&made->completion_bytes) - fbx_peek(&told->completion_bytes);
            fbx_count(&told->trips, trips);
            fbx_count(&told->request_bytes, out);
            fbx_count(&told->completion_bytes, back);
            fbxi_count_way(route, 0, out, trips, FBX_MRD_HEADER);
            fbxi_count_way(route, 1, back, trips, FBX_CPLD_HEADER);
        }
    }
    pthread_mutex_unlock(&n->mutex);
}

static void count_end(fbx_node *n, struct fbx_op *op, int status, uint64_t now)
{
    if (!n->stats || op->kind >= FBX_OP_KINDS)
        return;
    __typeof__(n->stats->kind[0]) *k = &n->stats->kind[op->kind];
    if (UNLIKELY(status))
        fbx_count(&k->failed, 1);
    /* Two looks at the counter are not lateness: they are the resolution of the floor. */
    if (LIKELY(now <= op->completes_ps + 2 * n->fabric->clock.tick_cost_ps) || !op->completes_ps)
        return;
    uint64_t late = now - op->completes_ps;
    uint32_t bin = 63u - (uint32_t)__builtin_clzll(late);
    fbx_count(&k->late_hist[bin < FBX_HIST_BINS ? bin : FBX_HIST_BINS - 1], 1);
    if (late <= n->fabric->clock.tick_cost_ps + 20000u)
        return;
    fbx_count(&k->late, 1);
    fbx_count(&k->late_ps_total, late);
    if (op->private_[0] & ~FBXI_BY_NETWORK)
        fbx_count(&k->preempted, 1);
    if (UNLIKELY(op->private_[0] & FBXI_BY_NETWORK))
        fbx_count(&k->network, 1);
    uint64_t most = fbx_peek(&k->late_ps_max);
    while (late > most && !fbx_claim(&k->late_ps_max, most, late))
        most = fbx_peek(&k->late_ps_max);
}

/* The operation is complete for its issuer. */
__attribute__((noinline)) void fbxi_trace_op(fbx_node *n, const struct fbx_op *op, uint64_t now)
{
    struct fbxi_trace_record r = {
        .at_ps = now == UINT64_MAX ? 0 : now, .id = op->trace_id, .gva = op->gva, .bytes = op->bytes, .issued_ps = op->issued_ps,
        .departs_ps = op->departs_ps, .arrives_ps = op->arrives_ps, .completes_ps = op->completes_ps, .status = (int16_t)op->status,
        .node = (uint16_t)n->index, .target = (uint16_t)op->target, .site = n->fabric->trace_site, .event = FBX_TRACE_OP,
        .kind = (uint8_t)op->kind, .tc = (uint8_t)(op->tc | op->path << 3), .attr = op->attr};
    r.sequence = op->kind == FBX_STORE || op->kind == FBX_OTHER ? op->sequence : 0;
    if (op->kind != FBX_FLUSH)
        r.digest = op->buffer ? fbxi_trace_digest(op->buffer, op->bytes) : op->operand[0];
    fbxi_trace(n->fabric, &r);
}

int fbxi_finish(fbx_node *n, struct fbx_op *op, int status, uint64_t now)
{
    op->status = status;
    op->state = FBX_DONE;
    if (status && !is_posted(op) && op->kind != FBX_FLUSH && !op->buffer)
        op->operand[0] = op->operand[1] = UINT64_MAX; /* what a CPU reads when nobody answers */
    else if (status && op->buffer && !is_posted(op))
        memset((uint8_t *)op->buffer + op->done, 0xff, op->bytes - op->done);
    if (n->fabric->flags & FBXL_TIMING) {
        count(n, op);
        count_end(n, op, status, now);
    }
    if (fbxi_tracing(n->fabric))
        fbxi_trace_op(n, op, now);
    if (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST || status == FBX_E_COMPLETION_TIMEOUT)
        refuse(n, op, status, op->target);
    else if (status == FBX_E_UNSUPPORTED && !fbxi_ntb_permits(n->fabric, n->index, n->slot->function))
        fbxi_fail_at(status, op->kind, (int)n->index, op->gva, "function %u of %s is not in its NTB's requester-ID table",
                     n->slot->function, n->facts->name);
    return status;
}

/* ---- begin and advance ------------------------------------------------------------------------------------------------ */

/* One round trip of a non-posted request, reserved on the links both ways. */
void fbxi_time_request(fbx_node *n, struct fbx_op *op, struct fbxi_route *route, uint32_t region, uint64_t at_ps,
                         uint64_t request_bytes, uint64_t answer_bytes)
{
    struct fbxi_flight out, back;
    fbx_fabric *f = n->fabric;
    /* A request waits for a free tag. */
    const uint32_t following = fbx_peek(&n->tag_next), tag = following < fbxi_out(route)->tags ? following : 0;
    const uint64_t free_ps = fbx_peek(&n->tag_free_ps[tag]);
    fbx_poke(&n->tag_next, tag + 1);
    if (UNLIKELY(free_ps > at_ps && free_ps - at_ps < FBX_BACKLOG_PS))
        at_ps = free_ps;
    int clamped = request_bytes ? fbxi_send(route, 0, at_ps + n->facts->pio_read_ps, request_bytes, 1, FBX_MRD_HEADER, 0, 1, &out)
                                : fbxi_send_small(route, 0, at_ps + n->facts->pio_read_ps, FBXI_REQUEST, 0, &out);
    /* A request pushes the posted writes before it on its way: it is not there before they are. */
    struct fbxl_queue *q = fbxi_own_queue(n, route, op->tc);
    uint64_t key = 0;
    op->private_[6] = q ? fbx_observe(&q->tail) : 0;
    uint64_t last = q ? fbx_observe(&q->last_arrives) : 0;
    if (fbxi_adversarial(f)) {
        key = fbxi_choice_key(n->requester, route->target, op->tc | 32u, fbx_add(&n->requests, 1) + 1);
        out.arrives_ps += fbxi_unfair_ps(f, FBXI_CHOICE_DELAY, key);
        /* D2b, and for reads B2b: what may pass all of them (atomics with RO), or those of others (IDO). */
        if (last > out.arrives_ps && ((op->attr & FBX_RO && request_bytes) || op->attr & FBX_IDO) && fbxi_passes(f, key)) {
            last = 0;
            if (op->attr & FBX_RO && request_bytes)
                op->private_[6] = 0;
        }
    }
    if (last > out.arrives_ps && last - out.arrives_ps < FBX_BACKLOG_PS)
        out.arrives_ps = last;
    op->departs_ps = out.departs_ps;
    op->arrives_ps = out.arrives_ps;
    if (region < f->region_count + f->node_count) {
        uint64_t first;
        op->arrives_ps = fbxi_tier_access(f, region, out.arrives_ps, request_bytes ? 2 * answer_bytes : answer_bytes, 0, 0, &first);
        op->arrives_ps += fbxi_tier_latency(f, region, out.arrives_ps);
    }
    /* Widths are powers of two; a completion of 64 bytes at most. */
    clamped |= fbxi_send_small(route, 1, op->arrives_ps, FBXI_CPLD, (uint32_t)__builtin_ctzll(answer_bytes | 64), &back);
    if (UNLIKELY(clamped))
        fbx_count(&f->header->reservations_clamped, 1);
    op->private_[2] = request_bytes;
    op->private_[3] = answer_bytes;
    op->private_[4] = 1;
    op->completes_ps = back.arrives_ps;
    fbx_poke(&n->tag_free_ps[tag], back.arrives_ps);
    if (fbxi_adversarial(f))
        op->completes_ps += fbxi_unfair_ps(f, FBXI_CHOICE_DELAY, key | 1ull << 33);
}

/* A completion does not pass posted writes that travel the same way: what the target sent us before it answered is here
 * first. */
uint64_t fbxi_pushed_by_completion(fbx_node *n, uint32_t target, uint32_t stream, uint32_t attr, uint64_t completes_ps)
{
    if (!fbx_observe(n->pending))
        return completes_ps;
    struct fbxl_queue *q = fbxi_queue_find(n->fabric, target, n->index, stream);
    uint64_t last = q && fbx_observe(&q->head) != fbx_observe(&q->tail) ? fbx_observe(&q->last_arrives) : 0;
    if (fbxi_adversarial(n->fabric) && attr & (FBX_RO | FBX_IDO) && last > completes_ps &&
        fbxi_passes(n->fabric, fbxi_choice_key(n->requester, target, stream | 32u, fbx_peek(&n->requests)) | 1ull << 33))
        return completes_ps;
    return last > completes_ps && last - completes_ps < FBX_BACKLOG_PS ? last : completes_ps;
}

static uint64_t min64(uint64_t a, uint64_t b) { return a < b ? a : b; }

static int untimed(fbx_node *n, struct fbx_op *op, fbx_au32 *lane)
{
    struct fbxi_xl scratch, *x = NULL;
    uint64_t offset, now = fbx_observe(n->pending) || n->fabric->clock.kind ? fbxi_now(&n->fabric->clock) : UINT64_MAX;
    uint64_t begin = 0;
    for (;;) {
        uint64_t left = op->bytes - op->done, step = min64(left, FBX_HOLD_BYTES);
        if (op->bytes > 64) {
            int status = fbxi_find(n, op, op->gva + op->done, 1, &scratch, &x, &offset);
            if (status)
                return status;
            step = min64(step, x->hi - offset);
        }
        if (now == UINT64_MAX && (n->fabric->flags & FBXL_TIMING))
            now = fbxi_now(&n->fabric->clock);
        int status = fbxi_move(n, op, lane, &x, &scratch, step, now);
        if (status == FBX_E_AGAIN) {
            uint64_t ns = fbxi_monotonic_ns();
            if (!begin)
                begin = ns;
            if (ns - begin > FBX_STALL_NS)
                return FBX_E_COMPLETION_TIMEOUT;
            sched_yield();
            continue;
        }
        if (status) {
            op->target = x ? x->target : n->index;
            if (x && is_posted(op) && (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST || status == x->status) &&
                !(n->fabric->flags & FBXL_STRICT)) {
                fbxi_vanish(n, x->target, x->route);
                return 0;
            }
            return status;
        }
        op->done += step;
        if (op->done >= op->bytes)
            break;
    }
    if (is_posted(op))
        fbxi_use_target(n, x->target);
    return 0;
}

/* A request pushes its requester's earlier posted writes before it: they are visible before it reads. */
int fbxi_own_writes_pending(fbx_node *n, const struct fbx_op *op, uint64_t now)
{
    struct fbxi_route *route = op->target == n->index ? NULL : route_of(n, op);
    struct fbxl_queue *q = op->private_[6] ? fbxi_own_queue(n, route, op->tc) : NULL;
    const uint32_t whose = op->attr & FBX_IDO ? n->requester : UINT32_MAX;
    if (LIKELY(!q || !fbxi_holds(n->fabric, q, op->private_[6], whose)))
        return 0;
    fbxi_deliver(n->fabric, op->target, now);
    return fbxi_holds(n->fabric, q, op->private_[6], whose);
}

/* A flush is a read on every path and class that this node uses towards the target. private_: 8.. the tails of their
 * streams. */
static void note_streams(fbx_node *n, struct fbx_op *op)
{
    const fbx_fabric *f = n->fabric;
    for (uint32_t s = 0; s < FBX_STREAMS; s++) {
        struct fbxi_route *route = fbx_observe_pointer(&n->routes[op->target * FBX_PATHS + s / FBX_CLASSES]);
        struct fbxl_queue *q = fbxi_own_queue(n, route, s % FBX_CLASSES);
        op->private_[8 + s] = q ? fbx_observe(&q->tail) : 0;
        uint64_t last = q && f->flags & FBXL_TIMING ? fbx_observe(&q->last_arrives) : 0;
        if (last > op->arrives_ps && last - op->arrives_ps < FBX_BACKLOG_PS) {
            op->completes_ps += last - op->arrives_ps;
            op->arrives_ps = last;
        }
    }
}

static int streams_hold(fbx_node *n, const struct fbx_op *op)
{
    for (uint32_t s = 0; s < FBX_STREAMS; s++) {
        struct fbxi_route *route = fbx_observe_pointer(&n->routes[op->target * FBX_PATHS + s / FBX_CLASSES]);
        struct fbxl_queue *q = op->private_[8 + s] ? fbxi_own_queue(n, route, s % FBX_CLASSES) : NULL;
        if (q && fbxi_holds(n->fabric, q, op->private_[8 + s], UINT32_MAX))
            return 1;
    }
    return 0;
}

/* Another process is delivering. The living finish within nanoseconds; a stopped one is what completion timeouts are
 * for: its lock is never taken from it. */
int fbxi_stalled(fbx_node *n, struct fbx_op *op, int code, uint64_t now)
{
    uint64_t ns = fbxi_monotonic_ns();
    if (!op->private_[7])
        op->private_[7] = ns;
    if (ns - op->private_[7] > FBX_STALL_NS)
        return fbxi_finish(n, op, code, now);
    op->next_ps = now == UINT64_MAX ? 0 : now + 100000u;
    return FBX_E_AGAIN;
}

int fbxi_post_piece(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, const struct fbxi_xl *x, struct fbxi_post *post,
                    struct fbxi_flight *flight, uint64_t now)
{
    struct fbxl_queue *q;
    int status = fbxi_commit(n->fabric, x->region, post->offset, post->bytes);
    if (status || (status = fbxi_posted_queue(n, x->route, op->tc, &q)))
        return fbxi_finish(n, op, status, now);
    post->region = x->region;
    post->kind = FBXL_ENTRY_WRITE;
    post->requester = n->requester;
    post->trace_id = op->trace_id;
    fbxi_mark(n, lane);
    const bool current = fbx_observe(n->generation) == x->generation;
    if (current && flight) {
        fbxi_send(x->route, 0, flight->departs_ps, post->bytes, 1, FBX_MWR_HEADER, 1, 1, flight);
        const uint64_t floor = fbx_peek(&n->fence_floor);
        post->arrives_ps = flight->arrives_ps > floor ? flight->arrives_ps : floor;
    }
    if (current)
        status = fbxi_post(n->fabric, q, post);
    fbxi_unmark(lane);
    if (!current)
        return FBXI_LOOK_AGAIN;
    if (status == FBX_E_AGAIN) {
        if (post->arrives_ps <= now || post->arrives_ps - now > FBX_BACKLOG_PS)
            return fbxi_stalled(n, op, FBX_E_QUEUE_FULL, now);
        op->next_ps = post->arrives_ps;
        return FBX_E_AGAIN;
    }
    return status ? fbxi_finish(n, op, status, now) : 0;
}

/* Timed bulk write: pieces are reserved as they depart, copied when they arrive; what is still under way when the last
 * byte has departed stays in the queue. private_: 1 reserved bytes, 2 cursor (when the next piece may start), 3 head and
 * 4 tail of the ring of pieces in flight, 6 piece size, 8.. pairs (end, arrives). */
#define RING 16u
static int write_step(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    fbx_fabric *f = n->fabric;
    if (fbxi_adversarial(f))
        return fbxi_write_packets(n, op, lane, now);
    struct fbxi_xl scratch, *x = NULL;
    uint64_t *p = op->private_, offset;
    for (;;) {
        int status;
        while (p[3] != p[4] && p[8 + p[3] % RING * 2 + 1] <= now) {
            uint64_t end = p[8 + p[3] % RING * 2], step;
            for (; op->done < end; op->done += step) {
                if ((status = fbxi_find(n, op, op->gva + op->done, 1, &scratch, &x, &offset)))
                    return fbxi_finish(n, op, status, now);
                step = min64(end - op->done, x->hi - offset);
                status = fbxi_move(n, op, lane, &x, &scratch, step, now);
                if (status == FBX_E_AGAIN)
                    return fbxi_stalled(n, op, FBX_E_QUEUE_FULL, now);
                if (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST) {
                    fbxi_vanish(n, x->target, x->route);
                    if (f->flags & FBXL_STRICT)
                        return fbxi_finish(n, op, status, now);
                } else if (status) {
                    return fbxi_finish(n, op, status, now);
                }
            }
            p[3]++;
        }
        if (p[1] < op->bytes && p[4] - p[3] < RING && p[2] <= now + 2 * 1000000u) {
            if ((status = fbxi_find(n, op, op->gva + p[1], 1, &scratch, &x, &offset)))
                return fbxi_finish(n, op, status, now);
            uint64_t step = min64(op->bytes - p[1], min64(p[6] - (offset & (p[6] - 1)), x->hi - offset));
            /* The CPU's write buffers make packets of 64 bytes, uncached stores packets of its access width. */
            uint32_t packet = x->mapping != FBX_UNCACHED ? 64 : n->facts->access_bytes;
            uint64_t tlps = ((offset & (packet - 1)) + step + packet - 1) / packet;
            struct fbxi_flight flight;
            /* Whoever was away for longer than the calendar remembers has lost that time on the link. */
            const uint64_t memory_ps = (uint64_t)(FBX_CAL_SLOTS / 4) << fbxi_out(x->route)->slot_shift;
            if (p[2] + memory_ps < now)
                p[2] = now - memory_ps;
            if (fbxi_send(x->route, 0, p[2], step, tlps, FBX_MWR_HEADER, 1, 1, &flight))
                fbx_count(&f->header->reservations_clamped, 1);
            flight.arrives_ps = fbxi_tier_write(f, x->region, flight.arrives_ps, fbx_bytes_to_ps(fbxi_out(x->route)->ps_per_byte_q24, step), step, 1, now);
            fbxi_count_way(x->route, 0, step, tlps, FBX_MWR_HEADER);
            /* Credits let the source run ahead of the narrowest link by as much and no further. */
            p[2] = flight.departs_ps;
            uint64_t ahead = fbx_peek(&x->route->fixed_ps) + fbxi_out(x->route)->credit_ps + flight.jitter_ps;
            if (flight.arrives_ps > p[2] + ahead)
                p[2] = flight.arrives_ps - ahead;
            struct fbxl_queue *q = fbxi_own_queue(n, x->route, op->tc);
            uint64_t floor = fbx_peek(&n->fence_floor);
            uint64_t last = q ? fbx_observe(&q->last_arrives) : 0;
            if (last > floor && last < flight.arrives_ps + FBX_BACKLOG_PS)
                floor = last;
            if (p[4] != p[3] && p[8 + (p[4] - 1) % RING * 2 + 1] > floor)
                floor = p[8 + (p[4] - 1) % RING * 2 + 1];
            if (flight.arrives_ps < floor)
                flight.arrives_ps = floor;
            p[1] += step;
            p[8 + p[4] % RING * 2] = p[1];
            p[8 + p[4] % RING * 2 + 1] = flight.arrives_ps;
            p[4]++;
            op->arrives_ps = flight.arrives_ps;
            continue;
        }
        if (p[1] >= op->bytes) {
            op->completes_ps = p[2];
            if (now >= p[2]) {
                /* The last byte has departed. The rest travels on its own. */
                while (op->done < op->bytes) {
                    if ((status = fbxi_find(n, op, op->gva + op->done, 1, &scratch, &x, &offset)))
                        return fbxi_finish(n, op, status, now);
                    while (p[3] != p[4] && p[8 + p[3] % RING * 2] <= op->done)
                        p[3]++;
                    uint64_t end = p[3] != p[4] ? p[8 + p[3] % RING * 2] : op->bytes;
                    uint64_t step = min64(min64(end - op->done, x->hi - offset), FBX_PIECE_BYTES);
                    struct fbxi_post post = {.bytes = (uint32_t)step, .offset = offset,
                                             .arrives_ps = p[3] != p[4] ? p[8 + p[3] % RING * 2 + 1] : op->arrives_ps,
                                             .payload = (const uint8_t *)op->buffer + op->done};
                    if (x->status) {
                        fbxi_vanish(n, x->target, x->route);
                    } else {
                        if ((status = fbxi_post_piece(n, op, lane, x, &post, NULL, now)) == FBXI_LOOK_AGAIN)
                            continue;
                        if (status)
                            return status;
                    }
                    op->done += step;
                }
                return fbxi_finish(n, op, 0, now);
            }
        }
        op->next_ps = p[1] >= op->bytes ? p[2] : p[4] - p[3] < RING ? p[2] - 2 * 1000000u : UINT64_MAX;
        if (p[3] != p[4] && p[8 + p[3] % RING * 2 + 1] < op->next_ps)
            op->next_ps = p[8 + p[3] % RING * 2 + 1];
        if (op->next_ps <= now && !f->recording) {
            now = fbxi_now(&f->clock);
            if (op->next_ps <= now)
                continue;
        }
        return FBX_E_AGAIN;
    }
}

static int begin_write(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, struct fbxi_xl *x, uint64_t now)
{
    uint64_t *p = op->private_;
    fbxi_use_target(n, x->target);
    p[1] = p[3] = p[4] = p[10] = 0;
    if (fbxi_adversarial(n->fabric))
        p[9] = fbx_add(&n->requests, 1);
    p[2] = now + n->facts->pio_write_ps;
    /* The ring of pieces must hold what the way holds: larger pieces for longer ways. */
    p[6] = op->bytes < 64 * FBX_PIECE_BYTES ? FBX_PIECE_BYTES : 4 * FBX_PIECE_BYTES;
    const struct fbxi_figures *d = fbxi_out(x->route);
    while (p[6] < 256u << 10 && ((p[6] * d->ps_per_byte_q24) >> 24) * (RING - 4) < fbx_peek(&x->route->fixed_ps))
        p[6] <<= 1;
    op->state = FBX_TRAVELS;
    return write_step(n, op, lane, now);
}

/* `x`: what was found just now, at `offset`; NULL if nobody has looked yet. */
static int begin_store(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, struct fbxi_xl *x, uint64_t offset, uint64_t now)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_xl scratch;
    struct fbxl_queue *q;
    for (;; x = NULL) {
        int status = x ? 0 : fbxi_find(n, op, op->gva, op->bytes, &scratch, &x, &offset);
        if (status)
            return fbxi_finish(n, op, status, now);
        op->target = x->target;
        if (!(x->perm & FBX_PERM_WRITE))
            return fbxi_finish(n, op, refuse(n, op, FBX_E_ABORT, x->target), now);
        if (UNLIKELY(x->status)) {
            fbxi_vanish(n, x->target, x->route);
            return fbxi_finish(n, op, f->flags & FBXL_STRICT ? x->status : 0, now);
        }
        if (UNLIKELY(fbxi_uncommitted(f, x->region, offset + op->bytes)) &&
            (status = fbxi_commit(f, x->region, offset, op->bytes)))
            return fbxi_finish(n, op, status, now);
        if ((status = fbxi_posted_queue(n, x->route, op->tc, &q)))
            return fbxi_finish(n, op, status, now);
        fbxi_mark(n, lane);
        if (LIKELY(fbx_observe(n->generation) == x->generation))
            break;
        fbxi_unmark(lane);
        if ((status = fbxi_usable(n, op->kind, op->gva)))
            return fbxi_finish(n, op, status, now);
    }
    fbxi_use_target(n, x->target);
    struct fbxi_flight flight;
    if (fbxi_send_small(x->route, 0, now + n->facts->pio_write_ps, FBXI_MWR, (uint32_t)__builtin_ctzll(op->bytes), &flight))
        fbx_count(&f->header->reservations_clamped, 1);
    flight.arrives_ps = fbxi_tier_write(f, x->region, flight.arrives_ps, 0, op->bytes, 0, 0);
    uint64_t payload = op->operand[0], fence = fbx_peek(&n->fence_floor);
    struct fbxi_post post = {.region = x->region, .bytes = (uint32_t)op->bytes, .kind = FBXL_ENTRY_WRITE,
                             .flags = fbxi_attributes(op, x) | FBXL_ENTRY_SCALAR |
                                      (x->mapping == FBX_WRITE_COMBINING ? FBXL_ENTRY_COMBINING : 0),
                             .drained = fbx_peek(&x->route->drained[op->tc]), .requester = n->requester, .offset = offset,
                             .arrives_ps = flight.arrives_ps > fence ? flight.arrives_ps : fence,
                             .trace_id = op->trace_id, .payload = op->buffer ? op->buffer : &payload};
    int status;
    if (f->ordering == FBX_IMMEDIATE) {
        status = touch(n, op, x, offset, op->bytes);
        fbxi_count_way(x->route, 0, op->bytes, 1, FBX_MWR_HEADER);
    } else {
        status = fbxi_post(f, q, &post);
    }
    fbxi_unmark(lane);
    if (UNLIKELY(status == FBX_E_AGAIN)) {
        /* What was reserved is lost on the link; nothing has been issued. Come again when there is room. */
        op->state = FBX_ISSUED;
        op->completes_ps = post.arrives_ps;
        if (post.arrives_ps <= now || post.arrives_ps - now > FBX_BACKLOG_PS)
            return fbxi_stalled(n, op, FBX_E_QUEUE_FULL, now);
        op->next_ps = post.arrives_ps;
        return FBX_E_AGAIN;
    }
    op->departs_ps = flight.departs_ps;
    op->arrives_ps = post.arrives_ps;
    op->sequence = post.sequence;
    op->completes_ps = now + n->facts->pio_write_ps;
    if (UNLIKELY(status))
        return fbxi_finish(n, op, status, now);
    /* What a narrower link further on has not taken yet holds credits as well. */
    uint64_t credit = fbxi_out(x->route)->credit_ps;
    const uint64_t fixed_ps = fbx_peek(&x->route->fixed_ps);
    if (flight.arrives_ps > flight.departs_ps + fixed_ps + flight.jitter_ps)
        flight.departs_ps = flight.arrives_ps - fixed_ps - flight.jitter_ps;
    if (flight.departs_ps > now + credit) {
        /* Credits are exhausted: the store waits in the CPU until the link has caught up. */
        op->completes_ps = op->next_ps = flight.departs_ps - credit;
        op->state = FBX_RETURNS;
        return FBX_E_AGAIN;
    }
    op->status = 0;
    op->state = FBX_DONE;
    if (fbxi_tracing(f))
        fbxi_trace_op(n, op, now);
    if (n->stats)
        count_one(n, &n->stats->kind[op->kind].count, &n->stats->kind[op->kind].count_home);
    return 0;
}

static int scalar_ok(fbx_node *n, struct fbx_op *op)
{
    static const uint16_t allowed[FBX_OP_KINDS] = {
        [FBX_LOAD] = 1 | 2 | 4 | 8 | 16 | 32 | 64, [FBX_STORE] = 1 | 2 | 4 | 8 | 16 | 32 | 64,
        [FBX_FETCH_ADD] = 4 | 8, [FBX_SWAP] = 4 | 8, [FBX_CAS] = 4 | 8 | 16, [FBX_WAIT] = 1 | 2 | 4 | 8};
    uint64_t b = op->bytes;
    if (b > 64 || (b & (b - 1)) || !(b & allowed[op->kind])) {
        if (allowed[op->kind] == (4 | 8) || allowed[op->kind] == (4 | 8 | 16))
            return fbxi_fail_at(FBX_E_ALIGNMENT, op->kind, (int)n->index, op->gva, "an atomic of %llu bytes: they are "
                                "4 or 8%s", (unsigned long long)b, op->kind == FBX_CAS ? " or 16" : "");
        return fbxi_fail_at(FBX_E_ALIGNMENT, op->kind, (int)n->index, op->gva, "an access of %llu bytes",
                            (unsigned long long)b);
    }
    if (op->gva & (b - 1))
        return fbxi_fail_at(FBX_E_ALIGNMENT, op->kind, (int)n->index, op->gva, "0x%llx is not aligned to %llu bytes",
                            (unsigned long long)op->gva, (unsigned long long)b);
    return 0;
}

/* Whether an operation can be at all: INVALID, ALIGNMENT. */
static __attribute__((noinline)) int acceptable(fbx_node *n, struct fbx_op *op, int scalar)
{
    int status = 0;
    if (op->kind > FBX_FLUSH && op->kind != FBX_WAIT)
        status = fbxi_fail(FBX_E_INVALID, "operation %u is none", op->kind);
    if (!status && scalar)
        status = scalar_ok(n, op);
    if (!status && (op->tc >= FBX_CLASSES || op->path >= FBX_PATHS))
        status = fbxi_fail(FBX_E_INVALID, "traffic class %u, path %u: they are 0 to %u, and 0 to %u", op->tc, op->path, FBX_CLASSES - 1,
                           FBX_PATHS - 1);
    if (!status && (op->kind == FBX_LOAD || op->kind == FBX_STORE) && op->bytes > 8 && !op->buffer)
        status = fbxi_fail(FBX_E_INVALID, "an access of more than 8 bytes needs a buffer");
    return status;
}

/* Of what is acceptable, what nearly all operations are: bulk, 4 or 8 aligned bytes, or a line. */
static inline int is_usual(const struct fbx_op *op, int scalar)
{
    const uint32_t kinds = 1u << FBX_LOAD | 1u << FBX_STORE | 1u << FBX_FETCH_ADD | 1u << FBX_SWAP | 1u << FBX_CAS;
    if (op->tc >= FBX_CLASSES || op->path >= FBX_PATHS)
        return 0;
    if (!scalar)
        return 1;
    if (LIKELY(op->bytes == 8 || op->bytes == 4))
        return !(op->gva & (op->bytes - 1)) && op->kind < 32 && kinds >> op->kind & 1;
    return op->bytes == 64 && !(op->gva & 63) && (op->kind == FBX_LOAD || op->kind == FBX_STORE) && op->buffer;
}

static int advance(fbx_node *n, struct fbx_op *op, uint64_t now);

static int begin(fbx_node *n, struct fbx_op *op, const uint64_t now)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_xl scratch, *x = NULL;
    uint64_t offset = 0;
    op->done = 0;
    op->state = FBX_ISSUED;
    op->status = FBX_E_AGAIN;
    op->private_[0] = op->private_[4] = op->private_[5] = op->private_[6] = op->private_[7] = 0;
    op->requester = n->requester;
    op->attr |= op->attr & FBX_PLAIN ? 0 : (uint8_t)n->attr;
    if (!op->tc)
        op->tc = (uint8_t)n->tc;
    op->target = n->index;
    op->poison = 0;
    op->injected = 0;
    op->completes_ps = 0;
    if (fbxi_tracing(f)) {
        if (!f->recording)
            op->trace_id = fbxi_trace_id(f);
        op->departs_ps = op->arrives_ps = op->sequence = 0;
    }
    fbx_au32 *lane;
    int status = usable_lane(n, op, &lane);
    const int scalar = op->kind != FBX_READ && op->kind != FBX_WRITE && op->kind != FBX_FLUSH;
    if (!status && UNLIKELY(!is_usual(op, scalar)))
        status = acceptable(n, op, scalar);
    if (!status && !lane)
        status = fbxi_fail(FBX_E_CLOSED, "the handle of %s is closed", n->facts->name);
    if (status)
        return fbxi_finish(n, op, status, 0);
    if (!scalar && !op->bytes && op->kind != FBX_FLUSH)
        return fbxi_finish(n, op, 0, 0);

    op->issued_ps = now;
    if (UNLIKELY(op->kind == FBX_STORE && op->gva >> FBXI_MSI_SHIFT == FBXI_MSI_SPACE))
        return fbxi_finish(n, op, fbxi_ntb_store_msi(n, op->gva, op->bytes, op->buffer ? 0 : op->operand[0]), 0);
    if (op->kind == FBX_FLUSH) {
        if (op->operand[0] >= f->node_count)
            return fbxi_finish(n, op, fbxi_fail(FBX_E_NOT_FOUND, "no node %llu", (unsigned long long)op->operand[0]), now);
        op->target = (uint32_t)op->operand[0];
        if (fbxi_is_away(f, op->target))
            return fbxi_away_begin(n, op, NULL, 0, now);
        struct fbxi_route *route = NULL;
        if (op->target != n->index && (status = fbxi_route_to(n, op->target, op->path, &route)))
            return fbxi_finish(n, op, status, now);
        if (route && (status = fbxi_way_status(n, op->target, route)))
            return fbxi_finish(n, op, status, now);
        op->arrives_ps = op->completes_ps = now;
        if ((f->flags & FBXL_TIMING) && route)
            fbxi_time_request(n, op, route, UINT32_MAX, now, 0, 4);
        note_streams(n, op);
        op->state = FBX_TRAVELS;
        op->next_ps = op->arrives_ps;
        return advance(n, op, fbxi_now(&f->clock));
    }
    if (UNLIKELY(f->machines != NULL)) { /* it may be another machine's */
        if ((status = fbxi_find(n, op, op->gva, scalar ? op->bytes : 1, &scratch, &x, &offset)))
            return fbxi_finish(n, op, status, now);
        op->target = x->target;
        if (x->away)
            return permitted(op, x) ? fbxi_away_begin(n, op, x, offset, now)
                                    : fbxi_finish(n, op, refuse(n, op, FBX_E_ABORT, x->target), now);
    }
    if (!(f->flags & FBXL_TIMING)) {
        if (!scalar) { /* all of it must be reachable before any of it moves */
            for (uint64_t at = 0; at < op->bytes; at += x->hi - offset) {
                if ((status = fbxi_find(n, op, op->gva + at, 1, &scratch, &x, &offset)))
                    return fbxi_finish(n, op, status, now);
                if ((x->hi - offset) < op->bytes - at && x->hi == f->region_facts[x->region].bytes)
                    return fbxi_finish(n, op, fbxi_fail_at(FBX_E_ADDRESS, op->kind, (int)n->index, op->gva,
                                  "%llu bytes from 0x%llx leave %s of %s", (unsigned long long)op->bytes,
                                  (unsigned long long)op->gva, f->region_facts[x->region].tier, f->node_facts[x->target].name), now);
            }
        }
        return fbxi_finish(n, op, untimed(n, op, lane), now);
    }
    if (op->kind == FBX_STORE) {
        /* Look first whether it is our own memory: that takes no time here. */
        if ((status = fbxi_find(n, op, op->gva, op->bytes, &scratch, &x, &offset)))
            return fbxi_finish(n, op, status, now);
        if (x->route && fbxi_adversarial(f) && op->bytes > 8 && !x->status && permitted(op, x)) {
            op->target = x->target;
            return begin_write(n, op, lane, x, now); /* of several words: it may be torn */
        }
        if (x->route)
            return begin_store(n, op, lane, x, offset, now);
    } else {
        if ((status = fbxi_find(n, op, op->gva, scalar ? op->bytes : 1, &scratch, &x, &offset)))
            return fbxi_finish(n, op, status, now);
        for (uint64_t at = 0, o = offset; !scalar && at < op->bytes; at += x->hi - o) {
            if ((status = fbxi_find(n, op, op->gva + at, 1, &scratch, &x, &o)))
                return fbxi_finish(n, op, status, now);
            if (x->hi - o < op->bytes - at && x->hi == f->region_facts[x->region].bytes)
                return fbxi_finish(n, op, fbxi_fail_at(FBX_E_ADDRESS, op->kind, (int)n->index, op->gva,
                              "%llu bytes from 0x%llx leave %s of %s", (unsigned long long)op->bytes,
                              (unsigned long long)op->gva, f->region_facts[x->region].tier, f->node_facts[x->target].name), now);
        }
    }
    op->target = x->target;
    if (!permitted(op, x))
        return fbxi_finish(n, op, refuse(n, op, FBX_E_ABORT, x->target), now);
    if (!x->route) { /* local: no fabric in between */
        op->completes_ps = now;
        return fbxi_finish(n, op, untimed(n, op, lane), now);
    }
    if (x->status) {
        if (is_posted(op)) {
            fbxi_vanish(n, x->target, x->route);
            return fbxi_finish(n, op, f->flags & FBXL_STRICT ? x->status : 0, now);
        }
        return fbxi_finish(n, op, x->status, now);
    }
    if (op->kind == FBX_WRITE) {
        if (f->ordering == FBX_IMMEDIATE) {
            /* Visible at once, yet it takes its time on the link. */
            uint64_t bytes = op->bytes;
            status = untimed(n, op, lane);
            op->done = 0;
            op->bytes = bytes;
            if (status)
                return fbxi_finish(n, op, status, now);
            struct fbxi_flight flight;
            fbxi_count_way(x->route, 0, bytes, (bytes + 63) / 64, FBX_MWR_HEADER);
            for (uint64_t at = 0, t = now; at < bytes; at += FBX_PIECE_BYTES, t = flight.departs_ps)
                fbxi_send(x->route, 0, t, min64(FBX_PIECE_BYTES, bytes - at), (min64(FBX_PIECE_BYTES, bytes - at) + 63) / 64, FBX_MWR_HEADER, 1, 1,
                          &flight);
            op->done = bytes;
            op->completes_ps = op->next_ps = flight.departs_ps;
            op->state = FBX_RETURNS;
            return advance(n, op, fbxi_now(&f->clock));
        }
        if ((status = fbxi_commit(f, x->region, offset, min64(op->bytes, x->hi - offset))))
            return fbxi_finish(n, op, status, now);
        return begin_write(n, op, lane, x, now);
    }
    if (op->kind == FBX_READ || (op->kind == FBX_LOAD && op->bytes > 8 && fbxi_adversarial(f))) {
        op->state = FBX_ISSUED;
        op->completes_ps = now;
        op->next_ps = now;
        return advance(n, op, fbxi_now(&f->clock));
    }
    fbxi_time_request(n, op, x->route, x->region, now,
                 op->kind == FBX_LOAD || op->kind == FBX_WAIT ? 0 : op->kind == FBX_CAS ? 2 * op->bytes : op->bytes,
                 op->bytes);
    op->next_ps = op->arrives_ps;
    op->state = FBX_TRAVELS;
    return FBX_E_AGAIN;
}

/* Bulk PIO read: one request of the CPU's access width at a time, so a piece costs as many round trips. */
static int read_step(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    if (fbxi_adversarial(n->fabric))
        return fbxi_read_pieces(n, op, lane, now);
    struct fbxi_xl scratch, *x = NULL;
    uint64_t offset;
    for (;;) {
        int status = fbxi_find(n, op, op->gva + op->done, 1, &scratch, &x, &offset);
        if (status)
            return fbxi_finish(n, op, status, now);
        if (x->status)
            return fbxi_finish(n, op, x->status, now);
        if (op->state == FBX_ISSUED) {
            uint64_t step = min64(min64(op->bytes - op->done, x->hi - offset), FBX_PIECE_BYTES - (offset & (FBX_PIECE_BYTES - 1)));
            uint32_t width = n->facts->access_bytes;
            uint64_t accesses = ((offset & (width - 1)) + step + width - 1) / width, start = op->completes_ps;
            fbxi_time_request(n, op, x->route, x->region, start, 0, width);
            uint64_t trip = op->completes_ps - start;
            op->arrives_ps += (accesses - 1) * trip;
            op->completes_ps += (accesses - 1) * trip;
            op->private_[1] = step;
            op->state = FBX_TRAVELS;
        }
        if (op->state == FBX_TRAVELS) {
            if (now < op->arrives_ps) {
                op->next_ps = op->arrives_ps;
                return FBX_E_AGAIN;
            }
            uint64_t step = op->private_[1];
            if (fbxi_own_writes_pending(n, op, now))
                return fbxi_stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
            status = fbxi_move(n, op, lane, &x, &scratch, min64(step, op->bytes - op->done), now);
            if (status)
                return fbxi_finish(n, op, status, now);
            op->done += step;
            fbxi_deliver_due(n, n->index, now); /* what is here already pushes nothing */
            op->completes_ps = fbxi_pushed_by_completion(n, x->target, op->tc | (uint32_t)op->path << 3, op->attr, op->completes_ps);
            op->state = op->done < op->bytes ? FBX_ISSUED : FBX_RETURNS;
        }
        if (op->state == FBX_RETURNS) {
            if (now < op->completes_ps) {
                op->next_ps = op->completes_ps;
                return FBX_E_AGAIN;
            }
            fbxi_deliver_due(n, n->index, now);
            return fbxi_finish(n, op, 0, now);
        }
    }
}

/* Take the operation as far as `now` allows. */
static int advance(fbx_node *n, struct fbx_op *op, uint64_t now)
{
    fbx_fabric *f = n->fabric;
    fbx_au32 *lane;
    int status = usable_lane(n, op, &lane);
    if (UNLIKELY(!lane))
        return fbxi_finish(n, op, status ? status : FBX_E_CLOSED, 0);
    if (UNLIKELY(op->state == FBX_AWAY))
        return fbxi_away_advance(n, op, 0);
    if ((op->kind == FBX_WRITE || op->kind == FBX_STORE) && op->state == FBX_TRAVELS)
        return write_step(n, op, lane, now);
    if (op->kind == FBX_STORE && op->state == FBX_ISSUED)
        return begin_store(n, op, lane, NULL, 0, now);
    if (op->kind == FBX_READ || (op->kind == FBX_LOAD && op->bytes > 8 && fbxi_adversarial(f)))
        return read_step(n, op, lane, now);
    if (op->state == FBX_TRAVELS) {
        if (now < op->arrives_ps) {
            op->next_ps = op->arrives_ps;
            return FBX_E_AGAIN;
        }
        if (op->kind == FBX_FLUSH) {
            struct fbxi_route *route = op->target == n->index ? NULL : route_of(n, op);
            if (route && (status = fbxi_way_status(n, op->target, route)))
                return fbxi_finish(n, op, status, now);
            fbxi_deliver(f, op->target, now);
            if (streams_hold(n, op))
                return fbxi_stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
        } else {
            struct fbxi_xl scratch, *x = NULL;
            op->state = FBX_MOVES;
            status = fbxi_own_writes_pending(n, op, now) ? FBX_E_AGAIN : fbxi_move(n, op, lane, &x, &scratch, op->bytes, now);
            if (status == FBX_E_AGAIN) {
                op->state = FBX_TRAVELS;
                return fbxi_stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
            }
            if (status)
                return fbxi_finish(n, op, status, now);
            op->done = op->bytes;
        }
        fbxi_deliver_due(n, n->index, now); /* what is here already pushes nothing */
        op->completes_ps = fbxi_pushed_by_completion(n, op->target, op->tc | (uint32_t)op->path << 3, op->attr, op->completes_ps);
        op->state = FBX_RETURNS;
    }
    if (now < op->completes_ps) {
        op->next_ps = op->completes_ps;
        return FBX_E_AGAIN;
    }
    if (!is_posted(op))
        fbxi_deliver_due(n, n->index, now);
    return fbxi_finish(n, op, 0, now);
}

/* The same while it is recorded: in one order for all who record, so that doing it again in that order, as of the same times,
 * makes the same reservations. */
static __attribute__((noinline)) int recorded(fbx_node *n, struct fbx_op *op, int begins, uint64_t now)
{
    fbx_fabric *f = n->fabric;
    struct fbxl_header *h = f->header;
    int held = fbxi_lock(f, &h->trace_lock, FBX_STALL_NS) >= 0; /* a stopped one makes the recording worse, nothing else */
    if (begins) {
        now = f->flags & FBXL_TIMING ? fbxi_now(&f->clock) : 0;
        op->trace_id = fbxi_trace_id(f);
    }
    fbx_poke(&h->trace_order, fbx_peek(&h->trace_order) + 1);
    struct fbxi_trace_record r = {.at_ps = now, .id = op->trace_id, .gva = op->gva, .bytes = op->bytes, .sequence = fbx_peek(&h->trace_order),
                                  .passed = n->requester, .node = (uint16_t)n->index, .kind = (uint8_t)op->kind,
                                  .tc = (uint8_t)(op->tc | op->path << 3), .attr = op->attr, .event = begins ? FBX_TRACE_BEGIN : FBX_TRACE_STEP};
    if (op->kind == FBX_FLUSH)
        r.target = (uint16_t)op->operand[0];
    fbxi_trace(f, &r);
    int status = begins ? begin(n, op, now) : advance(n, op, now);
    if (held)
        fbxi_unlock(f, &h->trace_lock);
    return status;
}

int fbx_op_begin(fbx_node *n, struct fbx_op *op)
{
    const fbx_fabric *f = n->fabric;
    /* First: what is done from here on is inside the modelled time. */
    const uint64_t now = !(f->flags & FBXL_TIMING) ? 0 : UNLIKELY(n->proxy) ? n->proxy_now : fbxi_now(&f->clock);
    return UNLIKELY(f->recording) ? recorded(n, op, 1, 0) : begin(n, op, now);
}

static int further(fbx_node *n, struct fbx_op *op, uint64_t now)
{
    return UNLIKELY(n->fabric->recording) ? recorded(n, op, 0, now) : advance(n, op, now);
}

int fbx_op_advance(fbx_node *n, struct fbx_op *op)
{
    if (op->state == FBX_DONE)
        return op->status;
    const fbx_fabric *f = n->fabric;
    return further(n, op, f->flags & FBXL_TIMING || f->clock.kind ? fbxi_now(&f->clock) : UINT64_MAX);
}

int fbx_op_wait(fbx_node *n, struct fbx_op *op, uint64_t max_wait_ns)
{
    const struct fbxi_clock *clock = &n->fabric->clock;
    uint64_t first = 0, ticks;
    while (op->state != FBX_DONE) {
        if (clock->kind != FBX_REAL)
            return fbx_op_advance(n, op);
        if (UNLIKELY(op->state == FBX_AWAY)) {
            if (fbxi_away_advance(n, op, max_wait_ns) == FBX_E_AGAIN && op->state == FBX_AWAY)
                return FBX_E_AGAIN;
            continue;
        }
        uint32_t jumped = 0;
        uint64_t until = op->next_ps;
        if (op->state == FBX_RETURNS) {
            /* The last wait ends early by what it takes to get into the call and from here back to the caller. */
            until = until > n->binding_ps ? until - n->binding_ps : 0;
            if (n->stats)
                count(n, op);
        }
        /* A step just before the end is as good as the end: what it is late, the end is. */
        const int last = op->state == FBX_RETURNS || op->completes_ps < until + FBX_SPIN_LAST_NS * 1000ull;
        if (fbxi_wait(clock, until, max_wait_ns, last ? FBX_SPIN_LAST_NS : FBX_SPIN_NS, &jumped, &ticks) == FBX_E_AGAIN)
            return FBX_E_AGAIN;
        op->private_[0] += jumped;
        if (op->state == FBX_RETURNS) {
            fbxi_deliver_due(n, n->index, op->completes_ps);
            return fbxi_finish(n, op, 0, fbxi_ticks_to_ps(clock, ticks));
        }
        /* Many short waits may be a long one together. */
        if (!first)
            first = ticks;
        else if (max_wait_ns != UINT64_MAX && ticks - first > max_wait_ns / 1000 * clock->ticks_per_us)
            return FBX_E_AGAIN;
        further(n, op, fbxi_ticks_to_ps(clock, ticks));
    }
    return op->status;
}

/* ---- for requesters of other kinds (journey.h) ------------------------------------------------------------------------- */

int fbxi_untimed(fbx_node *n, struct fbx_op *op)
{
    fbx_au32 *lane = fbxi_lane(n);
    return lane ? untimed(n, op, lane) : FBX_E_CLOSED;
}

int fbxi_refuse(fbx_node *n, int kind, uint64_t gva, int code, uint32_t target)
{
    struct fbx_op op;
    op.kind = (uint16_t)kind;
    op.gva = gva;
    return refuse(n, &op, code, target);
}

void fbxi_count_operation(fbx_node *n, int kind, uint64_t bytes, int status, uint64_t why, uint64_t completes_ps, uint64_t now)
{
    struct fbx_op op;
    op.kind = (uint16_t)kind;
    op.bytes = bytes;
    op.target = n->index;
    op.completes_ps = completes_ps;
    op.private_[0] = why;
    op.private_[4] = op.private_[5] = 0;
    count(n, &op);
    count_end(n, &op, status, now);
}
