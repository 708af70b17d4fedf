/* SPDX-License-Identifier: Apache-2.0
 *
 * The journey of an operation: translate, admit, time, move, complete; in this order and only here.
 *
 * The short way: without injected time an aligned load, store or atomic by the thread that opened the handle is a
 * look at the generation, one table entry, one access. Everything else takes the long way, which is the same journey as a
 * resumable record (struct fbx_op).
 *
 * In-operation marks. A requester marks its lane before it looks at its generation and clears it after the bytes have
 * moved. Whoever changes a window, a link or a node bumps the generation, runs a barrier in every process, and waits
 * until marks that may be older have cleared. So what moves, moves before the change returned, or not at all.
 */
#include "away.h"
#include "hot.h"
#include "internal.h"
#include "journey.h"
#include "ntb.h"
#include "ordering.h"
#include "registered.h"
#include "tier.h"
#include "timing.h"
#include "trace.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define PIECE 4096u /* no request crosses 4 KiB */

static inline void mark(const fbx_node *n, fbx_au32 *lane)
{
    fbx_poke(lane, 1);
    /* Pairs with: fbxi_membarrier() in clear_marks(). Breaks: a changer that sees no mark while we still use the old
     * generation. */
    if (UNLIKELY(n->explicit_fence))
        fbx_fence_sleep();
    else
        fbx_compiler_fence();
}

/* Pairs with: fbx_observe(&lane->in_operation) in clear_marks(). Breaks: our bytes land after the change returned. */
static inline void unmark(fbx_au32 *lane) { fbx_publish(lane, 0); }

enum { SHORT_LOAD = 1, SHORT_STORE = 2, SHORT_BOTH = 3 };

/* The short way to `gva`: its address, or NULL. Marked on success. */
static inline uint8_t *short_way(fbx_node *n, uint64_t gva, uint32_t bytes, int what)
{
    const uint64_t slot = gva >> FBX_SLOT_SHIFT, offset = gva & FBX_SLOT_MASK;
    if (UNLIKELY(n->home != fbxi_thread() || (gva & (bytes - 1))))
        return NULL;
    mark(n, n->lane);
    if (LIKELY(fbx_observe(n->generation) == n->generation_seen && slot < n->tlb_count)) {
        const struct fbxi_tlb t = n->tlb[slot];
        const int may = (!(what & SHORT_LOAD) || t.load) & (!(what & SHORT_STORE) || t.store);
        if (LIKELY((uint32_t)(offset >> FBX_COMMIT_SHIFT) - t.lo < t.span && may && !fbx_observe(n->pending)))
            return t.base + offset;
    }
    unmark(n->lane);
    return NULL;
}

/* ---- translate and admit ------------------------------------------------------------------------------------------ */

static int usable(fbx_node *n, int op, uint64_t gva)
{
    fbx_fabric *f = n->fabric;
    if (fbx_peek(&n->closed) || fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail_at(FBX_E_CLOSED, op, (int)n->index, gva, "the handle of %s is closed%s", n->facts->name,
                            fbx_peek(&f->forked) ? ": it was made before fork" : "");
    if (fbx_peek(&f->header->state) & FBXL_CLOSED)
        return fbxi_fail_at(FBX_E_CLOSED, op, (int)n->index, gva, "fabric '%s' has been taken down", f->name);
    return 0;
}

static int route_to(fbx_node *n, uint32_t target, uint32_t path, struct fbxi_route **out)
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
static int way_status(fbx_node *n, uint32_t target, struct fbxi_route *route)
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

static int resolve(fbx_node *n, uint64_t gva, uint64_t bytes, uint64_t generation, struct fbxi_xl *x, uint64_t *offset)
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
    if (t.target != n->index && (status = route_to(n, t.target, 0, &x->route)))
        return status;
    x->status = way_status(n, t.target, x->route);
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
    int status = resolve(n, gva, bytes, generation, scratch, offset);
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

static int on_path(fbx_node *n, struct fbxi_xl *x, uint32_t path)
{
    int status = route_to(n, x->target, path, &x->route);
    if (!status)
        x->status = way_status(n, x->target, x->route);
    return status;
}

/* The same on the path that the operation takes. */
static int find_for(fbx_node *n, const struct fbx_op *op, uint64_t gva, uint64_t bytes, struct fbxi_xl *scratch, struct fbxi_xl **out, uint64_t *offset)
{
    int status = find(n, gva, bytes, scratch, out, offset);
    if (LIKELY(status || !op->path || !(*out)->route))
        return status;
    if (*out != scratch)
        *scratch = **out;
    *out = scratch;
    return on_path(n, scratch, op->path);
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
static void vanish(fbx_node *n, uint32_t target, const struct fbxi_route *route)
{
    fbx_count(&n->slot->dropped, 1);
    fbx_count(&n->fabric->nodes[target].posted_dropped, 1);
    fbx_count(&n->shared->aer_nonfatal, 1);
    if (route && route->hops)
        fbx_count(&route->hop[0].out->dropped, 1);
}

static void use_target(fbx_node *n, uint32_t target)
{
    if (LIKELY(fbx_bits_observe(&n->used_target[target])))
        return;
    pthread_mutex_lock(&n->mutex);
    if (!fbx_bits_or(&n->used_target[target], 1)) {
        uint32_t count = fbx_peek(&n->used_targets_count);
        n->used_targets[count] = target;
        /* Pairs with: fbx_observe() in fbx_flush() and fbx_fence(). Breaks: a target that a flush leaves out. */
        fbx_publish(&n->used_targets_count, count + 1);
    }
    pthread_mutex_unlock(&n->mutex);
}

static int posted_queue(fbx_node *n, struct fbxi_route *route, uint32_t tc, struct fbxl_queue **out)
{
    *out = fbx_observe_pointer(&route->queue[tc]);
    if (LIKELY(*out))
        return 0;
    int status = fbxi_queue_get(n->fabric, n->index, route->target, tc | route->path << 3, out);
    if (!status)
        fbx_publish_pointer(&route->queue[tc], *out);
    return status;
}

/* The stream of posted writes that `tc` shares; NULL if there never was one. */
static struct fbxl_queue *own_queue(fbx_node *n, struct fbxi_route *route, uint32_t tc)
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

static int deliver_due(fbx_node *n, uint32_t target, uint64_t now)
{
    if (LIKELY(!fbx_observe(&n->fabric->nodes[target].pending)))
        return 0;
    return fbxi_deliver(n->fabric, target, now);
}

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

static int writes(const struct fbx_op *op)
{
    return is_posted(op) || op->kind == FBX_FETCH_ADD || op->kind == FBX_SWAP || op->kind == FBX_CAS;
}

static int permitted(const struct fbx_op *op, const struct fbxi_xl *x)
{
    if (op->kind == FBX_FLUSH)
        return 1;
    if (is_posted(op))
        return (x->perm & FBX_PERM_WRITE) != 0;
    if (writes(op))
        return x->perm == FBX_PERM_RW;
    return (x->perm & FBX_PERM_READ) != 0;
}

/* Mark, check that what was resolved still holds, move `bytes`, unmark. `*x` is refreshed where it was stale. Returns
 * AGAIN if delivery is in a stopped process's hands and the operation must not pass it. */
static int move(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, struct fbxi_xl **x, struct fbxi_xl *scratch,
                uint64_t bytes, uint64_t now)
{
    int status = 0;
    uint64_t offset = 0;
    const uint64_t gva = op->gva + op->done;
    for (int attempt = 0; attempt < 1000; attempt++) {
        if ((status = find_for(n, op, gva, bytes, scratch, x, &offset)))
            return status;
        if (!permitted(op, *x))
            return refuse(n, op, FBX_E_ABORT, (*x)->target);
        if ((*x)->status)
            return (*x)->status;
        if (writes(op) && UNLIKELY(fbxi_uncommitted(n->fabric, (*x)->region, offset + bytes)) &&
            (status = fbxi_commit(n->fabric, (*x)->region, offset, bytes)))
            return status;
        mark(n, lane);
        if (LIKELY(fbx_observe(n->generation) == (*x)->generation))
            goto current;
        unmark(lane);
        if ((status = usable(n, op->kind, gva)))
            return status;
    }
    return fbxi_fail(FBX_E_BUSY, "the routes of %s change faster than it can look", n->facts->name);
current:
    if (UNLIKELY(deliver_due(n, (*x)->target, now) < 0) && op->kind != FBX_LOAD && op->kind != FBX_READ &&
        op->kind != FBX_WAIT) {
        unmark(lane);
        return FBX_E_AGAIN;
    }
    status = touch(n, op, *x, offset, bytes);
    unmark(lane);
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
static __attribute__((noinline)) void trace_op(fbx_node *n, const struct fbx_op *op, uint64_t now)
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

static int finish(fbx_node *n, struct fbx_op *op, int status, uint64_t now)
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
        trace_op(n, op, now);
    if (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST || status == FBX_E_COMPLETION_TIMEOUT)
        refuse(n, op, status, op->target);
    else if (status == FBX_E_UNSUPPORTED && !fbxi_ntb_permits(n->fabric, n->index, n->slot->function))
        fbxi_fail_at(status, op->kind, (int)n->index, op->gva, "function %u of %s is not in its NTB's requester-ID table",
                     n->slot->function, n->facts->name);
    return status;
}

/* ---- begin and advance ------------------------------------------------------------------------------------------------ */

/* One round trip of a non-posted request, reserved on the links both ways. */
static void time_request(fbx_node *n, struct fbx_op *op, struct fbxi_route *route, uint32_t region, uint64_t at_ps,
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
    struct fbxl_queue *q = own_queue(n, route, op->tc);
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
static uint64_t pushed_by_completion(fbx_node *n, uint32_t target, uint32_t stream, uint32_t attr, uint64_t completes_ps)
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
            int status = find_for(n, op, op->gva + op->done, 1, &scratch, &x, &offset);
            if (status)
                return status;
            step = min64(step, x->hi - offset);
        }
        if (now == UINT64_MAX && (n->fabric->flags & FBXL_TIMING))
            now = fbxi_now(&n->fabric->clock);
        int status = move(n, op, lane, &x, &scratch, step, now);
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
                vanish(n, x->target, x->route);
                return 0;
            }
            return status;
        }
        op->done += step;
        if (op->done >= op->bytes)
            break;
    }
    if (is_posted(op))
        use_target(n, x->target);
    return 0;
}

/* A request pushes its requester's earlier posted writes before it: they are visible before it reads. */
static int own_writes_pending(fbx_node *n, const struct fbx_op *op, uint64_t now)
{
    struct fbxi_route *route = op->target == n->index ? NULL : route_of(n, op);
    struct fbxl_queue *q = op->private_[6] ? own_queue(n, route, op->tc) : NULL;
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
        struct fbxl_queue *q = own_queue(n, route, s % FBX_CLASSES);
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
        struct fbxl_queue *q = op->private_[8 + s] ? own_queue(n, route, s % FBX_CLASSES) : NULL;
        if (q && fbxi_holds(n->fabric, q, op->private_[8 + s], UINT32_MAX))
            return 1;
    }
    return 0;
}

/* Another process is delivering. The living finish within nanoseconds; a stopped one is what completion timeouts are
 * for: its lock is never taken from it. */
static int stalled(fbx_node *n, struct fbx_op *op, int code, uint64_t now)
{
    uint64_t ns = fbxi_monotonic_ns();
    if (!op->private_[7])
        op->private_[7] = ns;
    if (ns - op->private_[7] > FBX_STALL_NS)
        return finish(n, op, code, now);
    op->next_ps = now == UINT64_MAX ? 0 : now + 100000u;
    return FBX_E_AGAIN;
}

/* What a write carries: what its issuer said, and what its window adds. */
static uint32_t attributes(const struct fbx_op *op, const struct fbxi_xl *x)
{
    return (op->attr | (op->attr & FBX_PLAIN ? 0 : x->attr)) & (FBX_RO | FBX_IDO);
}

/* ---- under the adversary: everything is a packet of its own, and travels in the queue ---------------------------------- */

#define LINE 64u
#define PLAN_AHEAD_PS 2000000u

/* Where a packet of `bytes` is torn, as its target stores it: 0 for nowhere. */
static uint64_t torn_at(fbx_fabric *f, uint64_t key, uint64_t bytes)
{
    const uint64_t words = bytes / 8;
    const uint64_t cut = words > 1 ? fbxi_choice_at(f, FBXI_CHOICE_TEAR, key, 4 * words) : 0;
    return cut < words ? cut * 8 : 0;
}

/* A bulk write, or a store of several words: packets of a line at most. private_: 1 bytes that have been posted, 2 when the
 * next packet may start, 10 where the line under way is torn + 1. */
static int write_packets(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_xl scratch, *x = NULL;
    uint64_t *p = op->private_, offset;
    while (p[1] < op->bytes) {
        struct fbxl_queue *q;
        if (p[2] > now + PLAN_AHEAD_PS) {
            op->next_ps = p[2] - PLAN_AHEAD_PS;
            return FBX_E_AGAIN;
        }
        int status = find_for(n, op, op->gva + p[1], 1, &scratch, &x, &offset);
        if (status)
            return finish(n, op, status, now);
        uint64_t step = min64(min64(op->bytes - p[1], LINE - (offset & (LINE - 1))), x->hi - offset);
        op->done = p[1];
        if (!x->route || x->status) {
            status = x->status;
            if (!status)
                status = move(n, op, lane, &x, &scratch, step, now);
            if (status == FBX_E_AGAIN)
                return stalled(n, op, FBX_E_QUEUE_FULL, now);
            if (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST) {
                vanish(n, x->target, x->route);
                status = f->flags & FBXL_STRICT ? status : 0;
            }
            if (status)
                return finish(n, op, status, now);
            p[1] += step;
            continue;
        }
        if (!p[10])
            p[10] = 1 + torn_at(f, fbxi_choice_key(n->requester, x->target, op->tc | 32u, p[9]) ^ p[1] << 14, step);
        if (p[10] > 1)
            step = min64(step, p[10] - 1);
        if ((status = fbxi_commit(f, x->region, offset, step)) || (status = posted_queue(n, x->route, op->tc, &q)))
            return finish(n, op, status, now);
        struct fbxi_flight flight;
        mark(n, lane);
        bool current = fbx_observe(n->generation) == x->generation;
        struct fbxi_post post = {.region = x->region, .bytes = (uint32_t)step, .kind = FBXL_ENTRY_WRITE, .requester = n->requester,
                                 .flags = attributes(op, x) |
                                          (x->mapping == FBX_WRITE_COMBINING ? FBXL_ENTRY_COMBINING : 0),
                                 .drained = fbx_peek(&x->route->drained[op->tc]), .offset = offset, .trace_id = op->trace_id,
                                 .payload = (const uint8_t *)op->buffer + p[1]};
        if (current) {
            fbxi_send(x->route, 0, p[2], step, 1, FBX_MWR_HEADER, 1, 1, &flight);
            const uint64_t floor = fbx_peek(&n->fence_floor);
            post.arrives_ps = flight.arrives_ps > floor ? flight.arrives_ps : floor;
            status = fbxi_post(f, q, &post);
        }
        unmark(lane);
        if (!current) {
            if ((status = usable(n, op->kind, op->gva)))
                return finish(n, op, status, now);
            continue;
        }
        if (status == FBX_E_AGAIN) {
            if (post.arrives_ps <= now || post.arrives_ps - now > FBX_BACKLOG_PS)
                return stalled(n, op, FBX_E_QUEUE_FULL, now);
            op->next_ps = post.arrives_ps;
            return FBX_E_AGAIN;
        }
        if (status)
            return finish(n, op, status, now);
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
        return finish(n, op, 0, now);
    op->state = FBX_RETURNS;
    op->next_ps = op->completes_ps;
    return FBX_E_AGAIN;
}

/* Which of `count` pieces is taken as number `turn`, in the order that `how` names. 0: one after the other. */
static uint32_t piece_of(uint64_t how, uint32_t turn, uint32_t count)
{
    uint8_t order[PIECE / LINE];
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
static int read_pieces(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    struct fbxi_xl scratch, *x = NULL;
    uint64_t *p = op->private_, offset;
    const uint32_t unit = op->kind == FBX_LOAD ? 8 : LINE;
    for (;;) {
        int status = find_for(n, op, op->gva + op->done, 1, &scratch, &x, &offset);
        if (status)
            return finish(n, op, status, now);
        if (x->status)
            return finish(n, op, x->status, now);
        if (!x->route) { /* a window that leads home by now */
            status = untimed(n, op, lane);
            return finish(n, op, status, now);
        }
        if (op->state == FBX_ISSUED) {
            uint64_t step = min64(min64(op->bytes - op->done, x->hi - offset), PIECE - (offset & (PIECE - 1)));
            const uint32_t width = op->kind == FBX_LOAD ? (uint32_t)op->bytes : n->facts->access_bytes;
            uint64_t accesses = ((offset & (width - 1)) + step + width - 1) / width, start = op->completes_ps;
            time_request(n, op, x->route, x->region, start, 0, width);
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
                if (own_writes_pending(n, op, now))
                    return stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
                uint32_t piece = piece_of(p[9], (uint32_t)p[10], count);
                uint64_t from = piece ? (uint64_t)piece * unit - first : 0, to = min64(step, (uint64_t)(piece + 1) * unit - first);
                op->done = start + from;
                status = move(n, op, lane, &x, &scratch, to - from, now);
                op->done = start;
                if (status == FBX_E_AGAIN)
                    return stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
                if (status)
                    return finish(n, op, status, now);
            }
            op->done += step;
            deliver_due(n, n->index, now); /* what is here already pushes nothing */
            op->completes_ps = pushed_by_completion(n, x->target, op->tc | (uint32_t)op->path << 3, op->attr, op->completes_ps);
            op->state = op->done < op->bytes ? FBX_ISSUED : FBX_RETURNS;
            if (op->state == FBX_ISSUED)
                continue;
        }
        if (now < op->completes_ps) {
            op->next_ps = op->completes_ps;
            return FBX_E_AGAIN;
        }
        deliver_due(n, n->index, now);
        return finish(n, op, 0, now);
    }
}

/* Timed bulk write: pieces are reserved as they depart, copied when they arrive; what is still under way when the last
 * byte has departed stays in the queue. private_: 1 reserved bytes, 2 cursor (when the next piece may start), 3 head and
 * 4 tail of the ring of pieces in flight, 6 piece size, 8.. pairs (end, arrives). */
#define RING 16u
static int write_step(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    fbx_fabric *f = n->fabric;
    if (fbxi_adversarial(f))
        return write_packets(n, op, lane, now);
    struct fbxi_xl scratch, *x = NULL;
    uint64_t *p = op->private_, offset;
    for (;;) {
        int status;
        while (p[3] != p[4] && p[8 + p[3] % RING * 2 + 1] <= now) {
            uint64_t end = p[8 + p[3] % RING * 2], step;
            for (; op->done < end; op->done += step) {
                if ((status = find_for(n, op, op->gva + op->done, 1, &scratch, &x, &offset)))
                    return finish(n, op, status, now);
                step = min64(end - op->done, x->hi - offset);
                status = move(n, op, lane, &x, &scratch, step, now);
                if (status == FBX_E_AGAIN)
                    return stalled(n, op, FBX_E_QUEUE_FULL, now);
                if (status == FBX_E_LINK_DOWN || status == FBX_E_PEER_LOST) {
                    vanish(n, x->target, x->route);
                    if (f->flags & FBXL_STRICT)
                        return finish(n, op, status, now);
                } else if (status) {
                    return finish(n, op, status, now);
                }
            }
            p[3]++;
        }
        if (p[1] < op->bytes && p[4] - p[3] < RING && p[2] <= now + 2 * 1000000u) {
            if ((status = find_for(n, op, op->gva + p[1], 1, &scratch, &x, &offset)))
                return finish(n, op, status, now);
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
            struct fbxl_queue *q = own_queue(n, x->route, op->tc);
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
                struct fbxl_queue *q;
                while (op->done < op->bytes) {
                    if ((status = find_for(n, op, op->gva + op->done, 1, &scratch, &x, &offset)) ||
                        (status = posted_queue(n, x->route, op->tc, &q)))
                        return finish(n, op, status, now);
                    while (p[3] != p[4] && p[8 + p[3] % RING * 2] <= op->done)
                        p[3]++;
                    uint64_t end = p[3] != p[4] ? p[8 + p[3] % RING * 2] : op->bytes;
                    uint64_t step = min64(min64(end - op->done, x->hi - offset), PIECE);
                    struct fbxi_post post = {.region = x->region, .bytes = (uint32_t)step, .kind = FBXL_ENTRY_WRITE,
                                             .requester = n->requester, .offset = offset, .trace_id = op->trace_id,
                                             .arrives_ps = p[3] != p[4] ? p[8 + p[3] % RING * 2 + 1] : op->arrives_ps,
                                             .payload = (const uint8_t *)op->buffer + op->done};
                    if (x->status) {
                        vanish(n, x->target, x->route);
                    } else {
                        if ((status = fbxi_commit(f, x->region, offset, step)))
                            return finish(n, op, status, now);
                        mark(n, lane);
                        bool current = fbx_observe(n->generation) == x->generation;
                        if (current)
                            status = fbxi_post(f, q, &post);
                        unmark(lane);
                        if (!current)
                            continue;
                        if (status == FBX_E_AGAIN) {
                            if (post.arrives_ps <= now || post.arrives_ps - now > FBX_BACKLOG_PS)
                                return stalled(n, op, FBX_E_QUEUE_FULL, now);
                            op->next_ps = post.arrives_ps;
                            return FBX_E_AGAIN;
                        }
                        if (status)
                            return finish(n, op, status, now);
                    }
                    op->done += step;
                }
                return finish(n, op, 0, now);
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
    use_target(n, x->target);
    p[1] = p[3] = p[4] = p[10] = 0;
    if (fbxi_adversarial(n->fabric))
        p[9] = fbx_add(&n->requests, 1);
    p[2] = now + n->facts->pio_write_ps;
    /* The ring of pieces must hold what the way holds: larger pieces for longer ways. */
    p[6] = op->bytes < 64 * PIECE ? PIECE : 4 * PIECE;
    const struct fbxi_figures *d = fbxi_out(x->route);
    while (p[6] < 256u << 10 && ((p[6] * d->ps_per_byte_q24) >> 24) * (RING - 4) < fbx_peek(&x->route->fixed_ps))
        p[6] <<= 1;
    op->state = FBX_TRAVELS;
    return write_step(n, op, lane, now);
}

static int begin_store(fbx_node *n, struct fbx_op *op, fbx_au32 *lane, uint64_t now)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_xl scratch, *x;
    struct fbxl_queue *q;
    uint64_t offset;
    for (;;) {
        int status = find_for(n, op, op->gva, op->bytes, &scratch, &x, &offset);
        if (status)
            return finish(n, op, status, now);
        op->target = x->target;
        if (!(x->perm & FBX_PERM_WRITE))
            return finish(n, op, refuse(n, op, FBX_E_ABORT, x->target), now);
        if (UNLIKELY(x->status)) {
            vanish(n, x->target, x->route);
            return finish(n, op, f->flags & FBXL_STRICT ? x->status : 0, now);
        }
        if (UNLIKELY(fbxi_uncommitted(f, x->region, offset + op->bytes)) &&
            (status = fbxi_commit(f, x->region, offset, op->bytes)))
            return finish(n, op, status, now);
        if ((status = posted_queue(n, x->route, op->tc, &q)))
            return finish(n, op, status, now);
        mark(n, lane);
        if (LIKELY(fbx_observe(n->generation) == x->generation))
            break;
        unmark(lane);
        if ((status = usable(n, op->kind, op->gva)))
            return finish(n, op, status, now);
    }
    use_target(n, x->target);
    struct fbxi_flight flight;
    if (fbxi_send_small(x->route, 0, now + n->facts->pio_write_ps, FBXI_MWR, (uint32_t)__builtin_ctzll(op->bytes), &flight))
        fbx_count(&f->header->reservations_clamped, 1);
    flight.arrives_ps = fbxi_tier_write(f, x->region, flight.arrives_ps, 0, op->bytes, 0, 0);
    uint64_t payload = op->operand[0], fence = fbx_peek(&n->fence_floor);
    struct fbxi_post post = {.region = x->region, .bytes = (uint32_t)op->bytes, .kind = FBXL_ENTRY_WRITE,
                             .flags = attributes(op, x) | FBXL_ENTRY_SCALAR |
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
    unmark(lane);
    if (UNLIKELY(status == FBX_E_AGAIN)) {
        /* What was reserved is lost on the link; nothing has been issued. Come again when there is room. */
        op->state = FBX_ISSUED;
        op->completes_ps = post.arrives_ps;
        if (post.arrives_ps <= now || post.arrives_ps - now > FBX_BACKLOG_PS)
            return stalled(n, op, FBX_E_QUEUE_FULL, now);
        op->next_ps = post.arrives_ps;
        return FBX_E_AGAIN;
    }
    op->departs_ps = flight.departs_ps;
    op->arrives_ps = post.arrives_ps;
    op->sequence = post.sequence;
    op->completes_ps = now + n->facts->pio_write_ps;
    if (UNLIKELY(status))
        return finish(n, op, status, now);
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
        trace_op(n, op, now);
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
    int status = usable(n, op->kind, op->gva);
    if (!status && op->kind >= FBX_FLUSH && op->kind != FBX_WAIT)
        status = op->kind == FBX_FLUSH ? 0 : fbxi_fail(FBX_E_INVALID, "operation %u is none", op->kind);
    const int scalar = op->kind != FBX_READ && op->kind != FBX_WRITE && op->kind != FBX_FLUSH;
    if (!status && scalar)
        status = scalar_ok(n, op);
    if (!status && (op->tc >= FBX_CLASSES || op->path >= FBX_PATHS))
        status = fbxi_fail(FBX_E_INVALID, "traffic class %u, path %u: they are 0 to %u, and 0 to %u", op->tc, op->path, FBX_CLASSES - 1,
                           FBX_PATHS - 1);
    if (!status && (op->kind == FBX_LOAD || op->kind == FBX_STORE) && op->bytes > 8 && !op->buffer)
        status = fbxi_fail(FBX_E_INVALID, "an access of more than 8 bytes needs a buffer");
    fbx_au32 *lane = status ? NULL : fbxi_lane(n);
    if (!status && !lane)
        status = fbxi_fail(FBX_E_CLOSED, "the handle of %s is closed", n->facts->name);
    if (status)
        return finish(n, op, status, 0);
    if (!scalar && !op->bytes && op->kind != FBX_FLUSH)
        return finish(n, op, 0, 0);

    op->issued_ps = now;
    if (UNLIKELY(op->kind == FBX_STORE && op->gva >> FBXI_MSI_SHIFT == FBXI_MSI_SPACE))
        return finish(n, op, fbxi_ntb_store_msi(n, op->gva, op->bytes, op->buffer ? 0 : op->operand[0]), 0);
    if (op->kind == FBX_FLUSH) {
        if (op->operand[0] >= f->node_count)
            return finish(n, op, fbxi_fail(FBX_E_NOT_FOUND, "no node %llu", (unsigned long long)op->operand[0]), now);
        op->target = (uint32_t)op->operand[0];
        if (fbxi_is_away(f, op->target))
            return fbxi_away_begin(n, op, NULL, 0, now);
        struct fbxi_route *route = NULL;
        if (op->target != n->index && (status = route_to(n, op->target, op->path, &route)))
            return finish(n, op, status, now);
        if (route && (status = way_status(n, op->target, route)))
            return finish(n, op, status, now);
        op->arrives_ps = op->completes_ps = now;
        if ((f->flags & FBXL_TIMING) && route)
            time_request(n, op, route, UINT32_MAX, now, 0, 4);
        note_streams(n, op);
        op->state = FBX_TRAVELS;
        op->next_ps = op->arrives_ps;
        return advance(n, op, fbxi_now(&f->clock));
    }
    if (UNLIKELY(f->machines != NULL)) { /* it may be another machine's */
        if ((status = find_for(n, op, op->gva, scalar ? op->bytes : 1, &scratch, &x, &offset)))
            return finish(n, op, status, now);
        op->target = x->target;
        if (x->away)
            return permitted(op, x) ? fbxi_away_begin(n, op, x, offset, now)
                                    : finish(n, op, refuse(n, op, FBX_E_ABORT, x->target), now);
    }
    if (!(f->flags & FBXL_TIMING)) {
        if (!scalar) { /* all of it must be reachable before any of it moves */
            for (uint64_t at = 0; at < op->bytes; at += x->hi - offset) {
                if ((status = find_for(n, op, op->gva + at, 1, &scratch, &x, &offset)))
                    return finish(n, op, status, now);
                if ((x->hi - offset) < op->bytes - at && x->hi == f->region_facts[x->region].bytes)
                    return finish(n, op, fbxi_fail_at(FBX_E_ADDRESS, op->kind, (int)n->index, op->gva,
                                  "%llu bytes from 0x%llx leave %s of %s", (unsigned long long)op->bytes,
                                  (unsigned long long)op->gva, f->region_facts[x->region].tier, f->node_facts[x->target].name), now);
            }
        }
        return finish(n, op, untimed(n, op, lane), now);
    }
    if (op->kind == FBX_STORE) {
        /* Look first whether it is our own memory: that takes no time here. */
        if ((status = find_for(n, op, op->gva, op->bytes, &scratch, &x, &offset)))
            return finish(n, op, status, now);
        if (x->route && fbxi_adversarial(f) && op->bytes > 8 && !x->status && permitted(op, x)) {
            op->target = x->target;
            return begin_write(n, op, lane, x, now); /* of several words: it may be torn */
        }
        if (x->route)
            return begin_store(n, op, lane, now);
    } else {
        if ((status = find_for(n, op, op->gva, scalar ? op->bytes : 1, &scratch, &x, &offset)))
            return finish(n, op, status, now);
        for (uint64_t at = 0, o = offset; !scalar && at < op->bytes; at += x->hi - o) {
            if ((status = find_for(n, op, op->gva + at, 1, &scratch, &x, &o)))
                return finish(n, op, status, now);
            if (x->hi - o < op->bytes - at && x->hi == f->region_facts[x->region].bytes)
                return finish(n, op, fbxi_fail_at(FBX_E_ADDRESS, op->kind, (int)n->index, op->gva,
                              "%llu bytes from 0x%llx leave %s of %s", (unsigned long long)op->bytes,
                              (unsigned long long)op->gva, f->region_facts[x->region].tier, f->node_facts[x->target].name), now);
        }
    }
    op->target = x->target;
    if (!permitted(op, x))
        return finish(n, op, refuse(n, op, FBX_E_ABORT, x->target), now);
    if (!x->route) { /* local: no fabric in between */
        op->completes_ps = now;
        return finish(n, op, untimed(n, op, lane), now);
    }
    if (x->status) {
        if (is_posted(op)) {
            vanish(n, x->target, x->route);
            return finish(n, op, f->flags & FBXL_STRICT ? x->status : 0, now);
        }
        return finish(n, op, x->status, now);
    }
    if (op->kind == FBX_WRITE) {
        if (f->ordering == FBX_IMMEDIATE) {
            /* Visible at once, yet it takes its time on the link. */
            uint64_t bytes = op->bytes;
            status = untimed(n, op, lane);
            op->done = 0;
            op->bytes = bytes;
            if (status)
                return finish(n, op, status, now);
            struct fbxi_flight flight;
            fbxi_count_way(x->route, 0, bytes, (bytes + 63) / 64, FBX_MWR_HEADER);
            for (uint64_t at = 0, t = now; at < bytes; at += PIECE, t = flight.departs_ps)
                fbxi_send(x->route, 0, t, min64(PIECE, bytes - at), (min64(PIECE, bytes - at) + 63) / 64, FBX_MWR_HEADER, 1, 1,
                          &flight);
            op->done = bytes;
            op->completes_ps = op->next_ps = flight.departs_ps;
            op->state = FBX_RETURNS;
            return advance(n, op, fbxi_now(&f->clock));
        }
        if ((status = fbxi_commit(f, x->region, offset, min64(op->bytes, x->hi - offset))))
            return finish(n, op, status, now);
        return begin_write(n, op, lane, x, now);
    }
    if (op->kind == FBX_READ || (op->kind == FBX_LOAD && op->bytes > 8 && fbxi_adversarial(f))) {
        op->state = FBX_ISSUED;
        op->completes_ps = now;
        op->next_ps = now;
        return advance(n, op, fbxi_now(&f->clock));
    }
    time_request(n, op, x->route, x->region, now,
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
        return read_pieces(n, op, lane, now);
    struct fbxi_xl scratch, *x = NULL;
    uint64_t offset;
    for (;;) {
        int status = find_for(n, op, op->gva + op->done, 1, &scratch, &x, &offset);
        if (status)
            return finish(n, op, status, now);
        if (x->status)
            return finish(n, op, x->status, now);
        if (op->state == FBX_ISSUED) {
            uint64_t step = min64(min64(op->bytes - op->done, x->hi - offset), PIECE - (offset & (PIECE - 1)));
            uint32_t width = n->facts->access_bytes;
            uint64_t accesses = ((offset & (width - 1)) + step + width - 1) / width, start = op->completes_ps;
            time_request(n, op, x->route, x->region, start, 0, width);
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
            if (own_writes_pending(n, op, now))
                return stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
            status = move(n, op, lane, &x, &scratch, min64(step, op->bytes - op->done), now);
            if (status)
                return finish(n, op, status, now);
            op->done += step;
            deliver_due(n, n->index, now); /* what is here already pushes nothing */
            op->completes_ps = pushed_by_completion(n, x->target, op->tc | (uint32_t)op->path << 3, op->attr, op->completes_ps);
            op->state = op->done < op->bytes ? FBX_ISSUED : FBX_RETURNS;
        }
        if (op->state == FBX_RETURNS) {
            if (now < op->completes_ps) {
                op->next_ps = op->completes_ps;
                return FBX_E_AGAIN;
            }
            deliver_due(n, n->index, now);
            return finish(n, op, 0, now);
        }
    }
}

/* Take the operation as far as `now` allows. */
static int advance(fbx_node *n, struct fbx_op *op, uint64_t now)
{
    fbx_fabric *f = n->fabric;
    int status = usable(n, op->kind, op->gva);
    fbx_au32 *lane = status ? NULL : fbxi_lane(n);
    if (!lane)
        return finish(n, op, status ? status : FBX_E_CLOSED, 0);
    if (UNLIKELY(op->state == FBX_AWAY))
        return fbxi_away_advance(n, op, 0);
    if ((op->kind == FBX_WRITE || op->kind == FBX_STORE) && op->state == FBX_TRAVELS)
        return write_step(n, op, lane, now);
    if (op->kind == FBX_STORE && op->state == FBX_ISSUED)
        return begin_store(n, op, lane, now);
    if (op->kind == FBX_READ || (op->kind == FBX_LOAD && op->bytes > 8 && fbxi_adversarial(f)))
        return read_step(n, op, lane, now);
    if (op->state == FBX_TRAVELS) {
        if (now < op->arrives_ps) {
            op->next_ps = op->arrives_ps;
            return FBX_E_AGAIN;
        }
        if (op->kind == FBX_FLUSH) {
            struct fbxi_route *route = op->target == n->index ? NULL : route_of(n, op);
            if (route && (status = way_status(n, op->target, route)))
                return finish(n, op, status, now);
            fbxi_deliver(f, op->target, now);
            if (streams_hold(n, op))
                return stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
        } else {
            struct fbxi_xl scratch, *x = NULL;
            op->state = FBX_MOVES;
            status = own_writes_pending(n, op, now) ? FBX_E_AGAIN : move(n, op, lane, &x, &scratch, op->bytes, now);
            if (status == FBX_E_AGAIN) {
                op->state = FBX_TRAVELS;
                return stalled(n, op, FBX_E_COMPLETION_TIMEOUT, now);
            }
            if (status)
                return finish(n, op, status, now);
            op->done = op->bytes;
        }
        deliver_due(n, n->index, now); /* what is here already pushes nothing */
        op->completes_ps = pushed_by_completion(n, op->target, op->tc | (uint32_t)op->path << 3, op->attr, op->completes_ps);
        op->state = FBX_RETURNS;
    }
    if (now < op->completes_ps) {
        op->next_ps = op->completes_ps;
        return FBX_E_AGAIN;
    }
    if (!is_posted(op))
        deliver_due(n, n->index, now);
    return finish(n, op, 0, now);
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
            deliver_due(n, n->index, op->completes_ps);
            return finish(n, op, 0, fbxi_ticks_to_ps(clock, ticks));
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

/* ---- blocking calls ---------------------------------------------------------------------------------------------------- */

#define FOREVER UINT64_MAX

static int run(fbx_node *n, struct fbx_op *op)
{
    int status = fbx_op_begin(n, op);
    while (status == FBX_E_AGAIN)
        status = fbx_op_wait(n, op, FOREVER);
    return status;
}

/* Initialised field by field: private_ is large and mostly unused. */
#define OP(name, kind_, gva_, bytes_)                                                                                  \
    struct fbx_op name;                                                                                                \
    name.kind = (kind_);                                                                                               \
    name.gva = (gva_);                                                                                                 \
    name.bytes = (bytes_);                                                                                             \
    name.buffer = NULL;                                                                                                \
    name.tc = name.attr = 0;                                                                                           \
    name.path = 0;                                                                                                     \
    name.trace_id = 0;                                                                                                 \
    name.private_[7] = 0

static __attribute__((noinline)) int load_long(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t *value)
{
    OP(op, FBX_LOAD, gva, bytes);
    *value = UINT64_MAX;
    if (bytes > 8)
        return fbxi_fail_at(FBX_E_ALIGNMENT, FBX_LOAD, (int)n->index, gva, "a value has at most 8 bytes, not %u", bytes);
    int status = run(n, &op);
    if (!status)
        *value = op.operand[0];
    return status;
}

int fbx_load(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t *value)
{
    if (LIKELY(bytes == 8)) {
        uint8_t *at = short_way(n, gva, 8, SHORT_LOAD);
        if (LIKELY(at != NULL)) {
            *value = fbx_mem_load(at, 8);
            unmark(n->lane);
            return 0;
        }
    } else if (bytes == 4 || bytes == 2 || bytes == 1) {
        uint8_t *at = short_way(n, gva, bytes, SHORT_LOAD);
        if (LIKELY(at != NULL)) {
            *value = fbx_mem_load(at, bytes);
            unmark(n->lane);
            return 0;
        }
    }
    return load_long(n, gva, bytes, value);
}

static __attribute__((noinline)) int store_long(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value)
{
    OP(op, FBX_STORE, gva, bytes);
    op.operand[0] = value;
    if (bytes > 8 || (bytes < 8 && value >> (bytes * 8)))
        return bytes > 8 ? fbxi_fail_at(FBX_E_ALIGNMENT, FBX_STORE, (int)n->index, gva,
                                        "a value has at most 8 bytes, not %u", bytes)
                         : fbxi_fail_at(FBX_E_VALUE, FBX_STORE, (int)n->index, gva, "0x%llx does not fit %u bytes",
                                        (unsigned long long)value, bytes);
    return run(n, &op);
}

int fbx_store(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value)
{
    if (LIKELY(bytes == 8 || ((bytes == 4 || bytes == 2 || bytes == 1) && !(value >> (bytes * 8))))) {
        uint8_t *at = short_way(n, gva, bytes, SHORT_STORE);
        if (LIKELY(at != NULL)) {
            if (LIKELY(bytes == 8))
                fbx_mem_store(at, value, 8);
            else
                fbx_mem_store(at, value, bytes);
            unmark(n->lane);
            return 0;
        }
    }
    return store_long(n, gva, bytes, value);
}

int fbx_load_wide(fbx_node *n, uint64_t gva, uint32_t bytes, void *out)
{
    OP(op, FBX_LOAD, gva, bytes);
    op.buffer = out;
    memset(out, 0xff, bytes <= 64 ? bytes : 64);
    return run(n, &op);
}

int fbx_store_wide(fbx_node *n, uint64_t gva, uint32_t bytes, const void *data)
{
    OP(op, FBX_STORE, gva, bytes);
    op.buffer = (void *)(uintptr_t)data;
    return run(n, &op);
}

static __attribute__((noinline)) int rmw_slow(fbx_node *n, int kind, uint64_t gva, uint32_t bytes, uint64_t value,
                                                 uint64_t *old)
{
    OP(op, (uint16_t)kind, gva, bytes);
    op.operand[0] = value;
    *old = UINT64_MAX;
    if (bytes == 4 && value >> 32)
        return fbxi_fail_at(FBX_E_VALUE, kind, (int)n->index, gva, "0x%llx does not fit 4 bytes", (unsigned long long)value);
    int status = run(n, &op);
    if (!status)
        *old = op.operand[0];
    return status;
}

int fbx_fetch_add(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value, uint64_t *old)
{
    uint8_t *at = LIKELY(bytes == 8 || (bytes == 4 && !(value >> 32))) ? short_way(n, gva, bytes, SHORT_BOTH) : NULL;
    if (UNLIKELY(!at))
        return rmw_slow(n, FBX_FETCH_ADD, gva, bytes, value, old);
    *old = fbx_mem_fetch_add(at, value, bytes);
    unmark(n->lane);
    return 0;
}

int fbx_swap_value(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value, uint64_t *old)
{
    uint8_t *at = LIKELY(bytes == 8) ? short_way(n, gva, 8, SHORT_BOTH) : NULL;
    if (UNLIKELY(!at))
        return rmw_slow(n, FBX_SWAP, gva, bytes, value, old);
    *old = fbx_mem_swap(at, value, 8);
    unmark(n->lane);
    return 0;
}

int fbx_compare_swap(fbx_node *n, uint64_t gva, uint32_t bytes, const uint64_t *expected, const uint64_t *desired,
                     uint64_t *old)
{
    OP(op, FBX_CAS, gva, bytes);
    op.operand[0] = expected[0];
    op.operand[2] = desired[0];
    op.operand[1] = bytes == 16 ? expected[1] : 0;
    op.operand[3] = bytes == 16 ? desired[1] : 0;
    old[0] = UINT64_MAX;
    if (bytes == 16)
        old[1] = UINT64_MAX;
    if (bytes == 4 && (expected[0] >> 32 || desired[0] >> 32))
        return fbxi_fail_at(FBX_E_VALUE, FBX_CAS, (int)n->index, gva, "a value does not fit 4 bytes");
    int status = run(n, &op);
    if (!status) {
        old[0] = op.operand[0];
        if (bytes == 16)
            old[1] = op.operand[1];
    }
    return status;
}

int fbx_read(fbx_node *n, uint64_t gva, void *out, uint64_t bytes)
{
    OP(op, FBX_READ, gva, bytes);
    op.buffer = out;
    return run(n, &op);
}

int fbx_write(fbx_node *n, uint64_t gva, const void *data, uint64_t bytes)
{
    OP(op, FBX_WRITE, gva, bytes);
    op.buffer = (void *)(uintptr_t)data;
    return run(n, &op);
}

static int try_load(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t *value)
{
    uint8_t *at = bytes == 8 ? short_way(n, gva, 8, SHORT_LOAD) : bytes == 4 || bytes == 2 || bytes == 1 ? short_way(n, gva, bytes, SHORT_LOAD) : NULL;
    if (UNLIKELY(!at))
        return FBX_E_AGAIN;
    *value = fbx_mem_load(at, bytes);
    unmark(n->lane);
    return 0;
}

static int try_store(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value)
{
    if (bytes != 8 && ((bytes != 4 && bytes != 2 && bytes != 1) || value >> (bytes * 8)))
        return FBX_E_AGAIN;
    uint8_t *at = short_way(n, gva, bytes, SHORT_STORE);
    if (UNLIKELY(!at))
        return FBX_E_AGAIN;
    fbx_mem_store(at, value, bytes);
    unmark(n->lane);
    return 0;
}

static int try_fetch_add(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value, uint64_t *old)
{
    uint8_t *at = bytes == 8 ? short_way(n, gva, 8, SHORT_BOTH) : NULL;
    if (UNLIKELY(!at))
        return FBX_E_AGAIN;
    *old = fbx_mem_fetch_add(at, value, 8);
    unmark(n->lane);
    return 0;
}

/* A load that may be left under way in `op` (kind OTHER: none) and be taken up again by the next call. */
static int load_resumably(fbx_node *n, struct fbx_op *op, uint64_t gva, uint32_t bytes, void *wide, uint64_t *value,
                          uint64_t max_wait_ns)
{
    int status;
    if (op->kind == FBX_OTHER) {
        if (!wide && LIKELY(!try_load(n, gva, bytes, value)))
            return 0;
        op->kind = FBX_LOAD;
        op->gva = gva;
        op->bytes = bytes;
        op->buffer = wide;
        op->tc = op->attr = 0;
        op->path = 0;
        op->trace_id = 0;
        status = fbx_op_begin(n, op);
    } else {
        status = FBX_E_AGAIN;
    }
    if (status == FBX_E_AGAIN)
        status = fbx_op_wait(n, op, max_wait_ns);
    if (status != FBX_E_AGAIN) {
        op->kind = FBX_OTHER;
        *value = op->operand[0];
    }
    return status;
}

int fbx_gather(fbx_node *n, struct fbx_op *op, const uint64_t *gvas, uint64_t count, uint32_t bytes, void *out,
               uint64_t *done, uint64_t max_wait_ns)
{
    uint8_t *to = (uint8_t *)out + *done * bytes;
    uint64_t begin = 0;
    if (UNLIKELY(n->fabric->machines != NULL) && op->kind == FBX_OTHER && fbxi_away_many(n, gvas, count, *done))
        return fbxi_away_gather(n, gvas, count, bytes, out, done);
    for (uint64_t i = *done; i < count; i++, to += bytes) {
        uint64_t value;
        int status = load_resumably(n, op, gvas[i], bytes, bytes > 8 ? to : NULL, &value, max_wait_ns);
        if (UNLIKELY(status))
            return status;
        switch (bytes) {
        case 8: memcpy(to, &value, 8); break;
        case 4: memcpy(to, &value, 4); break;
        case 2: memcpy(to, &value, 2); break;
        case 1: memcpy(to, &value, 1); break;
        default: break;
        }
        *done = i + 1;
        if (UNLIKELY((i & 255) == 255 && max_wait_ns != FOREVER)) {
            uint64_t ns = fbxi_monotonic_ns();
            if (!begin)
                begin = ns;
            else if (ns - begin > max_wait_ns && *done < count)
                return FBX_E_AGAIN;
        }
    }
    return 0;
}

int fbx_scatter(fbx_node *n, struct fbx_op *op, const uint64_t *gvas, uint64_t count, uint32_t bytes, const void *values,
                uint64_t *done, uint64_t max_wait_ns)
{
    const uint8_t *from = (const uint8_t *)values + *done * bytes;
    for (uint64_t i = *done; i < count; i++, from += bytes) {
        uint64_t value = 0;
        int status;
        if (bytes <= 8)
            memcpy(&value, from, bytes);
        if (op->kind == FBX_OTHER && bytes <= 8 && LIKELY(!try_store(n, gvas[i], bytes, value))) {
            *done = i + 1;
            continue;
        }
        if (op->kind == FBX_OTHER) {
            op->kind = FBX_STORE;
            op->gva = gvas[i];
            op->bytes = bytes;
            op->buffer = bytes > 8 ? (void *)(uintptr_t)from : NULL;
            op->operand[0] = value;
            op->tc = op->attr = 0;
            op->path = 0;
            op->trace_id = 0;
            status = fbx_op_begin(n, op);
        } else {
            status = FBX_E_AGAIN;
        }
        if (status == FBX_E_AGAIN)
            status = fbx_op_wait(n, op, max_wait_ns);
        if (status == FBX_E_AGAIN)
            return status;
        op->kind = FBX_OTHER;
        if (UNLIKELY(status))
            return status;
        *done = i + 1;
    }
    return 0;
}

/* Write-combining buffers leave: what is stored from now on does not pass what they held. */
static void drain_towards(fbx_node *n, uint32_t target)
{
    for (uint32_t s = 0; s < FBX_STREAMS; s++) {
        struct fbxi_route *route = fbx_observe_pointer(&n->routes[target * FBX_PATHS + s / FBX_CLASSES]);
        struct fbxl_queue *q = own_queue(n, route, s % FBX_CLASSES);
        if (q)
            fbx_poke(&route->drained[s % FBX_CLASSES], fbx_observe(&q->sequence));
    }
}

int fbx_set_order(fbx_node *n, uint32_t attr, uint32_t tc)
{
    int status = usable(n, FBX_OTHER, 0);
    if (!status && (attr & ~(uint32_t)(FBX_RO | FBX_IDO) || tc >= FBX_CLASSES))
        status = fbxi_fail(FBX_E_INVALID, "attributes %#x, traffic class %u: they are RO, IDO, and 0 to %u", attr, tc, FBX_CLASSES - 1);
    if (status)
        return status;
    n->attr = attr;
    n->tc = tc;
    return 0;
}

int fbx_drain(fbx_node *n)
{
    int status = usable(n, FBX_OTHER, 0);
    for (uint32_t i = 0; !status && i < fbx_observe(&n->used_targets_count); i++)
        drain_towards(n, n->used_targets[i]);
    if (!status)
        fbx_fence_sleep();
    return status;
}

static int flush_one(fbx_node *n, uint32_t target);

int fbx_fence(fbx_node *n)
{
    int status = usable(n, FBX_OTHER, 0);
    const uint64_t now = fbxi_now(&n->fabric->clock);
    for (uint32_t i = 0; !status && i < fbx_observe(&n->used_targets_count); i++) {
        const uint32_t target = n->used_targets[i];
        drain_towards(n, target);
        if (fbxi_is_away(n->fabric, target)) {
            flush_one(n, target); /* no floor reaches another machine: there it is waited for */
            continue;
        }
        for (uint32_t s = 0; s < FBX_STREAMS; s++) {
            struct fbxi_route *route = fbx_observe_pointer(&n->routes[target * FBX_PATHS + s / FBX_CLASSES]);
            struct fbxl_queue *q = own_queue(n, route, s % FBX_CLASSES);
            const uint64_t last = q ? fbx_observe(&q->last_arrives) : 0;
            if (!last)
                continue;
            /* Later, and not at the same time: of two things at one time somebody may see the second first. */
            if (last >= fbx_peek(&n->fence_floor) && last < now + fbx_peek(&route->fixed_ps) + FBX_BACKLOG_PS)
                fbx_poke(&n->fence_floor, last + 1);
        }
    }
    fbx_fence_sleep();
    return status;
}

static int flush_one(fbx_node *n, uint32_t target)
{
    OP(op, FBX_FLUSH, 0, 0);
    op.operand[0] = target;
    return run(n, &op);
}

uint32_t fbx_written_nodes(fbx_node *n, uint32_t *out, uint32_t room)
{
    uint32_t count = fbx_observe(&n->used_targets_count);
    for (uint32_t i = 0; i < count && i < room; i++)
        out[i] = n->used_targets[i];
    return count;
}

int fbx_check_lost(fbx_node *n)
{
    int status = usable(n, FBX_FLUSH, 0);
    if (!status && n->fabric->machines)
        fbxi_away_settle(n);
    uint64_t dropped = fbx_peek(&n->slot->dropped), lost = dropped - fbx_peek(&n->dropped_checked);
    fbx_poke(&n->dropped_checked, dropped);
    if (!status && lost)
        status = fbxi_fail_at(FBX_E_LINK_DOWN, FBX_FLUSH, (int)n->index, 0, "%llu posted writes of %s were lost",
                              (unsigned long long)lost, n->facts->name);
    return status;
}

int fbx_flush(fbx_node *n, uint32_t target, uint32_t attr)
{
    int status = usable(n, FBX_FLUSH, 0);
    if (!status && target != UINT32_MAX && target >= n->fabric->node_count)
        status = fbxi_fail(FBX_E_NOT_FOUND, "no node %u", target);
    if (status)
        return status;
    if (target != UINT32_MAX)
        status = flush_one(n, target);
    else
        for (uint32_t i = 0; !status && i < fbx_observe(&n->used_targets_count); i++)
            status = flush_one(n, n->used_targets[i]);
    return status || !(attr & FBX_CHECK) ? status : fbx_check_lost(n);
}

int fbx_wait_until(fbx_node *n, struct fbx_op *op, uint64_t gva, uint32_t bytes, int how, uint64_t value,
                   uint64_t deadline_ps, uint64_t max_wait_ns, uint64_t *last)
{
    fbx_fabric *f = n->fabric;
    static _Thread_local int processors;
    if (how < FBX_EQ || how > FBX_GE)
        return fbxi_fail(FBX_E_INVALID, "comparison %d is none", how);
    if (!processors) {
        cpu_set_t set;
        processors = sched_getaffinity(0, sizeof set, &set) ? 2 : CPU_COUNT(&set);
    }
    uint64_t begin = 0;
    for (uint32_t round = 0;; round++) {
        uint64_t found, ticks;
        if (UNLIKELY(fbx_observe(n->pending)) && op->kind == FBX_OTHER && f->clock.kind == FBX_REAL) {
            /* Something is on its way here: be there when it arrives. */
            uint64_t due = fbxi_next_due(f, n->index), now = fbxi_now(&f->clock);
            if (due > now && due - now < 5000000u && !fbxi_wait(&f->clock, due, max_wait_ns, FBX_SPIN_NS, NULL, &ticks))
                now = due;
            if (due <= now)
                fbxi_deliver_now(f, n->index, now);
        }
        int status = load_resumably(n, op, gva, bytes, NULL, &found, max_wait_ns);
        if (status)
            return status;
        *last = found;
        if (fbxi_compares(*last, how, value))
            return 0;
        if (f->clock.kind != FBX_REAL)
            return FBX_E_AGAIN;
        if ((round & 31) != 31 && op->completes_ps - op->issued_ps < 100000u)
            continue;
        uint64_t ns = fbxi_monotonic_ns();
        if (!begin)
            begin = ns;
        if (ns - begin >= max_wait_ns || fbxi_now(&f->clock) >= deadline_ps)
            return FBX_E_AGAIN;
        /* Spin while it may be a matter of microseconds, then let others have the processor. */
        if (ns - begin > 50000u || processors == 1)
            sched_yield();
        if (ns - begin > 2000000u) {
            struct timespec nap = {0, 50000};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
            fbxi_slept(&f->clock, fbxi_monotonic_ns() - ns);
        }
    }
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Operations that ask for nothing but some time: what the median takes longer than that is our own way in and out. */
static int nothing(fbx_node *n, struct fbx_op *op, uint64_t ps)
{
    op->kind = FBX_OTHER;
    op->gva = op->bytes = 0;
    op->private_[0] = 0;
    op->private_[4] = 0;
    op->private_[5] = 1; /* counted already */
    if (usable(n, FBX_OTHER, 0) || !fbxi_lane(n))
        return FBX_E_CLOSED;
    op->status = FBX_E_AGAIN;
    op->issued_ps = fbxi_now(&n->fabric->clock);
    op->completes_ps = op->next_ps = op->issued_ps + ps;
    op->state = FBX_RETURNS;
    op->target = n->index;
    return FBX_E_AGAIN;
}

static __attribute__((noinline)) int ask_for_nothing(fbx_node *n, uint64_t ps)
{
    /* What a load does before it looks at the clock, too. */
    if (short_way(n, 8, 8, SHORT_LOAD))
        unmark(n->lane);
    OP(op, FBX_LOAD, 8, 8);
    int status = nothing(n, &op, ps);
    return status == FBX_E_AGAIN ? fbx_op_wait(n, &op, FOREVER) : status;
}

/* Mean of the middle: finer than a clock that moves in steps, and deaf to interruptions. */
static uint64_t middle(uint64_t *samples, uint32_t count)
{
    uint64_t sum = 0;
    qsort(samples, count, sizeof *samples, by_value);
    for (uint32_t i = count / 5; i < count - count / 5; i++)
        sum += samples[i];
    return sum / (count - 2 * (count / 5));
}

uint64_t fbxi_calibrate(fbx_node *n)
{
    enum { ROUNDS = 500 };
    const struct fbxi_clock *clock = &n->fabric->clock;
    if (clock->kind != FBX_REAL)
        return 0;
    /* 300 real nanoseconds, however far modelled time is stretched. */
    const uint64_t ask = (uint64_t)(((unsigned __int128)(clock->ticks_per_us * 3 / 10) * clock->ps_per_tick_q32) >> 32);
    uint64_t samples[ROUNDS], empty[ROUNDS];
    struct fbxl_stats *stats = n->stats;
    n->stats = NULL;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t a = fbxi_now(clock), b = fbxi_now(clock);
        empty[i] = b - a;
        a = fbxi_now(clock);
        ask_for_nothing(n, ask);
        samples[i] = fbxi_now(clock) - a;
    }
    n->stats = stats;
    uint64_t took = middle(samples, ROUNDS), nothing_took = middle(empty, ROUNDS);
    took = took > nothing_took ? took - nothing_took : 0;
    return took > ask && took - ask < 100000u ? took - ask : 0;
}

/* ---- raw views ---------------------------------------------------------------------------------------------------------- */

int fbx_map(fbx_node *n, uint64_t gva, uint64_t bytes, void **out, int *writable)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_xl x;
    uint64_t offset;
    int status = usable(n, FBX_OTHER, gva);
    if (!status && !bytes)
        status = fbxi_fail(FBX_E_INVALID, "a view of no bytes");
    if (!status)
        status = resolve(n, gva, bytes, 0, &x, &offset);
    if (!status && x.status)
        status = fbxi_fail_at(x.status, FBX_OTHER, (int)n->index, gva, "%s: %s", f->node_facts[x.target].name,
                              fbx_error_hint(x.status));
    if (!status && x.away)
        status = fbxi_fail_at(FBX_E_UNSUPPORTED, FBX_OTHER, (int)n->index, gva, "memory of %s is on machine %s: it is reached by "
                              "operations, not mapped", f->node_facts[x.target].name, f->machines->of[x.away - 1].name);
    if (!status && !(x.perm & FBX_PERM_READ))
        status = fbxi_fail_at(FBX_E_ABORT, FBX_OTHER, (int)n->index, gva, "the window of %s does not permit to look",
                              n->facts->name);
    if (!status && !x.base)
        status = fbxi_fail_at(FBX_E_ADDRESS, FBX_OTHER, (int)n->index, gva, "registered memory of %s cannot be mapped; read and write it, "
                              "or look at it where it was registered", f->node_facts[x.target].name);
    if (!status)
        status = fbxi_commit(f, x.region, offset, bytes);
    if (status)
        return status;
    uint8_t *base = x.base;
    *writable = (x.perm & FBX_PERM_WRITE) != 0;
    if (!*writable) {
        struct fbxi_region_map *map = &f->maps[x.region];
        pthread_mutex_lock(&f->map_mutex);
        if (!map->ro) {
            /* The same pages again, protected: a store through this view faults as the hardware's page table would. */
            uint64_t size = f->region_facts[x.region].bytes;
            void *again = mremap(map->rw, 0, size, MREMAP_MAYMOVE);
            if (again != MAP_FAILED && mprotect(again, size, PROT_READ)) {
                munmap(again, size);
                again = MAP_FAILED;
            }
            if (again != MAP_FAILED)
                map->ro = again;
            else
                status = fbxi_fail_system(FBX_E_NO_MEMORY, "cannot map a second view");
        }
        base = map->ro;
        pthread_mutex_unlock(&f->map_mutex);
        if (status)
            return status;
    }
    fbx_count(&f->nodes[x.target].raw_views, 1);
    *out = base + offset;
    return 0;
}

void fbx_unmap(fbx_node *n, uint64_t gva)
{
    uint64_t region = (gva >> FBX_SLOT_SHIFT) - 1;
    if (!(gva & FBX_BUS) && region < n->fabric->region_count && !fbx_peek(&n->fabric->forked))
        fbx_count(&n->fabric->nodes[n->fabric->region_facts[region].node].raw_views, 0xffffffffu);
}

/* ---- registers of a peer's NTB ----------------------------------------------------------------------------------------- */

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
        int status = usable(n, FBX_OTHER, 0);
        if (status || (status = route_to(n, target, 0, &route)))
            return status;
        if (!(lane = fbxi_lane(n)))
            return fbxi_fail(FBX_E_CLOSED, "the handle of %s is closed", n->facts->name);
        uint64_t generation = fbx_observe(n->generation);
        if ((status = way_status(n, target, route))) {
            vanish(n, target, route);
            return f->flags & FBXL_STRICT ? fbxi_fail_at(status, FBX_OTHER, (int)n->index, 0, "the way from %s to %s is closed",
                                                         n->facts->name, f->node_facts[target].name) : 0;
        }
        if (travels && (status = posted_queue(n, route, 0, &q)))
            return status;
        mark(n, lane);
        if (UNLIKELY(fbx_observe(n->generation) != generation)) {
            unmark(lane);
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
            deliver_due(n, target, now);
            status = fbxi_ntb_apply(f, target, &w);
            if (status == FBX_E_INVALID) { /* an interrupt message for nobody */
                vanish(n, target, route);
                status = 0;
            }
            if (f->flags & FBXL_TIMING)
                fbxi_count_way(route, 0, bytes, 1, FBX_MWR_HEADER);
        }
        unmark(lane);
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
        use_target(n, target);
        if (fbxi_tracing(f)) {
            struct fbx_op told = {.kind = FBX_OTHER, .gva = reg, .bytes = bytes, .operand = {value}, .target = target,
                                  .trace_id = post.trace_id, .sequence = post.sequence, .issued_ps = now,
                                  .departs_ps = flight.departs_ps, .arrives_ps = post.arrives_ps, .completes_ps = now};
            trace_op(n, &told, now);
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

/* ---- asking the model ------------------------------------------------------------------------------------------------- */

int fbx_estimate(fbx_node *n, int kind, uint64_t gva, uint64_t bytes, struct fbx_estimate *out)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_xl x;
    uint64_t offset;
    memset(out, 0, sizeof *out);
    int status = usable(n, kind, gva);
    const int dma = kind == FBX_DMA_READ || kind == FBX_DMA_WRITE;
    if (!status && (kind < 0 || (kind > FBX_CAS && !dma) || !bytes))
        status = fbxi_fail(FBX_E_INVALID, "no estimate for operation %d of %llu bytes", kind, (unsigned long long)bytes);
    if (!status)
        status = resolve(n, gva, 1, 0, &x, &offset);
    if (status || (!x.route && !dma))
        return status;
    /* Of a way between machines, other machines reserve their part; the model is asked for all of it. */
    struct fbxi_route whole;
    if (x.away && x.route) {
        if ((status = fbxi_route_build(f, n->index, x.target, x.route->path, &whole)))
            return status;
        for (uint32_t i = 0; i < whole.hops; i++)
            whole.hop[i].elsewhere = 0;
        if ((status = fbxi_route_refresh(f, &whole)))
            return status;
        x.route = &whole;
    }
    if (dma)
        return fbxi_dma_estimate(n, kind, &x, offset, bytes, out);
    struct fbxi_flight there, back;
    const uint64_t latency = fbxi_tier_latency(f, x.region, FBX_ASK);
    uint32_t width = kind == FBX_READ ? n->facts->access_bytes : (uint32_t)bytes;
    uint32_t packet = x.mapping != FBX_UNCACHED ? 64 : n->facts->access_bytes;
    out->hops = x.route->hops;
    if (kind == FBX_STORE || kind == FBX_WRITE) {
        uint64_t tlps = kind == FBX_STORE ? 1 : ((offset & (packet - 1)) + bytes + packet - 1) / packet;
        fbxi_send(x.route, 0, n->facts->pio_write_ps, bytes, tlps, FBX_MWR_HEADER, tlps > 1, 0, &there);
        out->wire_bytes = bytes + tlps * FBX_MWR_HEADER;
        const uint64_t wire_ps = kind == FBX_STORE ? 0 : fbx_bytes_to_ps(fbxi_out(x.route)->ps_per_byte_q24, bytes);
        there.arrives_ps = fbxi_tier_write(f, x.region, there.arrives_ps, wire_ps, bytes, 1, FBX_ASK);
        const uint64_t ahead = fbx_peek(&x.route->fixed_ps) + fbxi_out(x.route)->credit_ps + there.jitter_ps;
        out->departs_ps = there.arrives_ps > there.departs_ps + ahead ? there.arrives_ps - ahead : there.departs_ps;
        out->arrives_ps = there.arrives_ps;
        out->completes_ps = kind == FBX_STORE ? n->facts->pio_write_ps : out->departs_ps;
        return 0;
    }
    uint64_t accesses = kind == FBX_READ ? ((offset & (width - 1)) + bytes + width - 1) / width : 1;
    uint64_t request = kind == FBX_LOAD || kind == FBX_READ ? 0 : kind == FBX_CAS ? 2 * bytes : bytes;
    fbxi_send(x.route, 0, n->facts->pio_read_ps, request, 1, FBX_MRD_HEADER, 0, 0, &there);
    uint64_t first, sampled = fbxi_tier_access(f, x.region, there.arrives_ps, request ? 2 * width : width, 0, FBX_ASK, &first) + latency;
    fbxi_send(x.route, 1, sampled, width, 1, FBX_CPLD_HEADER, 0, 0, &back);
    out->departs_ps = there.departs_ps;
    out->arrives_ps = sampled + (accesses - 1) * back.arrives_ps;
    out->completes_ps = accesses * back.arrives_ps;
    out->wire_bytes = accesses * (FBX_MRD_HEADER + request + width + FBX_CPLD_HEADER);
    return 0;
}

int fbx_fidelity(fbx_fabric *f, int kind, struct fbx_fidelity *out)
{
    memset(out, 0, sizeof *out);
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    if (kind < 0 || kind >= (int)FBX_OP_KINDS)
        return fbxi_fail(FBX_E_INVALID, "operation %d is none", kind);
    uint32_t high = fbxi_high(f, FBXL_REQUESTERS);
    for (uint32_t i = 0; i < high; i++) {
        uint64_t offset = fbx_observe(&f->requesters[i].stats);
        struct fbxl_stats *s = fbxi_heap_at(f, offset, sizeof *s);
        if (!s)
            continue;
        out->count += fbx_peek(&s->kind[kind].count) + fbx_peek(&s->kind[kind].count_home);
        out->late += fbx_peek(&s->kind[kind].late);
        out->failed += fbx_peek(&s->kind[kind].failed);
        out->preempted += fbx_peek(&s->kind[kind].preempted);
        out->network += fbx_peek(&s->kind[kind].network);
        out->late_ps_total += fbx_peek(&s->kind[kind].late_ps_total);
        out->bytes += fbx_peek(&s->kind[kind].bytes);
        uint64_t most = fbx_peek(&s->kind[kind].late_ps_max);
        if (most > out->late_ps_max)
            out->late_ps_max = most;
        for (uint32_t b = 0; b < FBX_HIST_BINS; b++)
            out->late_hist[b] += fbx_peek(&s->kind[kind].late_hist[b]);
    }
    return 0;
}

/* ---- for DMA (journey.h) ---------------------------------------------------------------------------------------------- */

int fbxi_usable(fbx_node *n, int op, uint64_t gva) { return usable(n, op, gva); }
int fbxi_resolve(fbx_node *n, uint64_t gva, uint64_t bytes, uint64_t generation, struct fbxi_xl *x, uint64_t *offset)
{
    return resolve(n, gva, bytes, generation, x, offset);
}
int fbxi_find(fbx_node *n, const struct fbx_op *op, uint64_t gva, uint64_t bytes, struct fbxi_xl *scratch, struct fbxi_xl **out,
              uint64_t *offset)
{
    return find_for(n, op, gva, bytes, scratch, out, offset);
}
int fbxi_untimed(fbx_node *n, struct fbx_op *op)
{
    fbx_au32 *lane = fbxi_lane(n);
    return lane ? untimed(n, op, lane) : FBX_E_CLOSED;
}
int fbxi_finish(fbx_node *n, struct fbx_op *op, int status, uint64_t now) { return finish(n, op, status, now); }
int fbxi_route_to(fbx_node *n, uint32_t target, uint32_t path, struct fbxi_route **out) { return route_to(n, target, path, out); }
int fbxi_way_status(fbx_node *n, uint32_t target, struct fbxi_route *route) { return way_status(n, target, route); }
int fbxi_on_path(fbx_node *n, struct fbxi_xl *x, uint32_t path) { return x->route && path ? on_path(n, x, path) : 0; }
int fbxi_posted_queue(fbx_node *n, struct fbxi_route *route, uint32_t tc, struct fbxl_queue **out)
{
    return posted_queue(n, route, tc, out);
}
struct fbxl_queue *fbxi_own_queue(fbx_node *n, struct fbxi_route *route, uint32_t tc) { return own_queue(n, route, tc); }
void fbxi_use_target(fbx_node *n, uint32_t target) { use_target(n, target); }
void fbxi_vanish(fbx_node *n, uint32_t target, const struct fbxi_route *route) { vanish(n, target, route); }
void fbxi_mark(const fbx_node *n, fbx_au32 *lane) { mark(n, lane); }
void fbxi_unmark(fbx_au32 *lane) { unmark(lane); }
uint64_t fbxi_pushed_by_completion(fbx_node *n, uint32_t target, uint32_t tc, uint32_t attr, uint64_t completes_ps)
{
    return pushed_by_completion(n, target, tc, attr, completes_ps);
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

/* ---- for the _hot extension ------------------------------------------------------------------------------------------- */

static int node_virtual(fbx_node *n) { return n->fabric->clock.kind != FBX_REAL; }

const void *fbx_hot_table(void)
{
    static const struct fbx_hot table = {FBX_HOT_VERSION, sizeof(struct fbx_op), try_load, try_store, try_fetch_add,
                                         fbx_op_begin, fbx_op_wait, nothing, node_virtual,
                                         fbx_dma_submit, fbx_dma_release, fbx_op_forget};
    return &table;
}
