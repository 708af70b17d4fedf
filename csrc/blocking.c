/* SPDX-License-Identifier: Apache-2.0
 *
 * The calls that a program makes and that return when the operation is complete: an operation is begun (op.c) and waited for.
 *
 * The short way: without injected time an aligned load, store or atomic by the thread that opened the handle is a
 * look at the generation, one table entry, one access. Everything else takes the long way, which is the journey.
 */
#include "away.h"
#include "hot.h"
#include "internal.h"
#include "journey.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define FOREVER UINT64_MAX

/* ---- the short way ---------------------------------------------------------------------------------------------------- */

enum { SHORT_LOAD = 1, SHORT_STORE = 2, SHORT_BOTH = 3 };

/* The short way to `gva`: its address, or NULL. Marked on success. */
static inline uint8_t *short_way(fbx_node *n, uint64_t gva, uint32_t bytes, int what)
{
    const uint64_t slot = gva >> FBX_SLOT_SHIFT, offset = gva & FBX_SLOT_MASK;
    if (UNLIKELY(n->home != fbxi_thread() || (gva & (bytes - 1))))
        return NULL;
    fbxi_mark(n, n->lane);
    if (LIKELY(fbx_observe(n->generation) == n->generation_seen && slot < n->tlb_count)) {
        const struct fbxi_tlb t = n->tlb[slot];
        const int may = (!(what & SHORT_LOAD) || t.load) & (!(what & SHORT_STORE) || t.store);
        if (LIKELY((uint32_t)(offset >> FBX_COMMIT_SHIFT) - t.lo < t.span && may && !fbx_observe(n->pending)))
            return t.base + offset;
    }
    fbxi_unmark(n->lane);
    return NULL;
}

/* ---- scalars and bulk ------------------------------------------------------------------------------------------------- */

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
            fbxi_unmark(n->lane);
            return 0;
        }
    } else if (bytes == 4 || bytes == 2 || bytes == 1) {
        uint8_t *at = short_way(n, gva, bytes, SHORT_LOAD);
        if (LIKELY(at != NULL)) {
            *value = fbx_mem_load(at, bytes);
            fbxi_unmark(n->lane);
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
            fbxi_unmark(n->lane);
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
    fbxi_unmark(n->lane);
    return 0;
}

int fbx_swap_value(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value, uint64_t *old)
{
    uint8_t *at = LIKELY(bytes == 8) ? short_way(n, gva, 8, SHORT_BOTH) : NULL;
    if (UNLIKELY(!at))
        return rmw_slow(n, FBX_SWAP, gva, bytes, value, old);
    *old = fbx_mem_swap(at, value, 8);
    fbxi_unmark(n->lane);
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

/* ---- many, and calls that can be taken up again -------------------------------------------------------------------- */

/* The short way as part of a loop, for a size that the compiler knows: 0, or AGAIN. */
static inline int short_load(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t *value)
{
    uint8_t *at = short_way(n, gva, bytes, SHORT_LOAD);
    if (UNLIKELY(!at))
        return FBX_E_AGAIN;
    *value = fbx_mem_load(at, bytes);
    fbxi_unmark(n->lane);
    return 0;
}

static inline int short_store(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value)
{
    uint8_t *at = short_way(n, gva, bytes, SHORT_STORE);
    if (UNLIKELY(!at))
        return FBX_E_AGAIN;
    fbx_mem_store(at, value, bytes);
    fbxi_unmark(n->lane);
    return 0;
}

static int try_load(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t *value)
{
    uint8_t *at = bytes == 8 ? short_way(n, gva, 8, SHORT_LOAD) : bytes == 4 || bytes == 2 || bytes == 1 ? short_way(n, gva, bytes, SHORT_LOAD) : NULL;
    if (UNLIKELY(!at))
        return FBX_E_AGAIN;
    *value = fbx_mem_load(at, bytes);
    fbxi_unmark(n->lane);
    return 0;
}

static int try_store(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value)
{
    if (bytes != 8 && ((bytes != 4 && bytes != 2 && bytes != 1) || value >> (bytes * 8)))
        return FBX_E_AGAIN;
    return short_store(n, gva, bytes, value);
}

static int try_fetch_add(fbx_node *n, uint64_t gva, uint32_t bytes, uint64_t value, uint64_t *old)
{
    uint8_t *at = bytes == 8 ? short_way(n, gva, 8, SHORT_BOTH) : NULL;
    if (UNLIKELY(!at))
        return FBX_E_AGAIN;
    *old = fbx_mem_fetch_add(at, value, 8);
    fbxi_unmark(n->lane);
    return 0;
}

/* A load that the short way does not make, which may be left under way in `op` (kind OTHER: none) and be taken up again by the
 * next call. */
static int load_long_resumably(fbx_node *n, struct fbx_op *op, uint64_t gva, uint32_t bytes, void *wide, uint64_t *value,
                               uint64_t max_wait_ns)
{
    int status = FBX_E_AGAIN;
    if (op->kind == FBX_OTHER) {
        op->kind = FBX_LOAD;
        op->gva = gva;
        op->bytes = bytes;
        op->buffer = wide;
        op->tc = op->attr = 0;
        op->path = 0;
        op->trace_id = 0;
        status = fbx_op_begin(n, op);
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
        if (op->kind != FBX_OTHER || bytes > 8 ||
            (bytes == 8   ? short_load(n, gvas[i], 8, &value)
             : bytes == 4 ? short_load(n, gvas[i], 4, &value)
                          : try_load(n, gvas[i], bytes, &value))) {
            int status = load_long_resumably(n, op, gvas[i], bytes, bytes > 8 ? to : NULL, &value, max_wait_ns);
            if (UNLIKELY(status))
                return status;
        }
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
        int status, fresh = op->kind == FBX_OTHER, missed = 1;
        switch (bytes) {
        case 8: memcpy(&value, from, 8); missed = !fresh || short_store(n, gvas[i], 8, value); break;
        case 4: memcpy(&value, from, 4); missed = !fresh || short_store(n, gvas[i], 4, value); break;
        case 2: memcpy(&value, from, 2); missed = !fresh || short_store(n, gvas[i], 2, value); break;
        case 1: memcpy(&value, from, 1); missed = !fresh || short_store(n, gvas[i], 1, value); break;
        default: break;
        }
        if (LIKELY(!missed)) {
            *done = i + 1;
            continue;
        }
        if (fresh) {
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

/* ---- order and visibility of what was written ---------------------------------------------------------------------- */

/* Write-combining buffers leave: what is stored from now on does not pass what they held. */
static void drain_towards(fbx_node *n, uint32_t target)
{
    for (uint32_t s = 0; s < FBX_STREAMS; s++) {
        struct fbxi_route *route = fbx_observe_pointer(&n->routes[target * FBX_PATHS + s / FBX_CLASSES]);
        struct fbxl_queue *q = fbxi_own_queue(n, route, s % FBX_CLASSES);
        if (q)
            fbx_poke(&route->drained[s % FBX_CLASSES], fbx_observe(&q->sequence));
    }
}

int fbx_set_order(fbx_node *n, uint32_t attr, uint32_t tc)
{
    int status = fbxi_usable(n, FBX_OTHER, 0);
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
    int status = fbxi_usable(n, FBX_OTHER, 0);
    for (uint32_t i = 0; !status && i < fbx_observe(&n->used_targets_count); i++)
        drain_towards(n, n->used_targets[i]);
    if (!status)
        fbx_fence_sleep();
    return status;
}

static int flush_one(fbx_node *n, uint32_t target);

int fbx_fence(fbx_node *n)
{
    int status = fbxi_usable(n, FBX_OTHER, 0);
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
            struct fbxl_queue *q = fbxi_own_queue(n, route, s % FBX_CLASSES);
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
    int status = fbxi_usable(n, FBX_FLUSH, 0);
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
    int status = fbxi_usable(n, FBX_FLUSH, 0);
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

/* ---- waiting for a value ------------------------------------------------------------------------------------------- */

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
        if (op->kind != FBX_OTHER || try_load(n, gva, bytes, &found)) {
            int status = load_long_resumably(n, op, gva, bytes, NULL, &found, max_wait_ns);
            if (status)
                return status;
        }
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

/* ---- what a call costs beside its wait ----------------------------------------------------------------------------- */

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
    if (fbxi_usable(n, FBX_OTHER, 0) || !fbxi_lane(n))
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
        fbxi_unmark(n->lane);
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

/* ---- for the _hot extension ------------------------------------------------------------------------------------------- */

static int node_virtual(fbx_node *n) { return n->fabric->clock.kind != FBX_REAL; }

const void *fbx_hot_table(void)
{
    static const struct fbx_hot table = {FBX_HOT_VERSION, sizeof(struct fbx_op), try_load, try_store, try_fetch_add,
                                         fbx_op_begin, fbx_op_wait, nothing, node_virtual,
                                         fbx_dma_submit, fbx_dma_release, fbx_op_forget};
    return &table;
}
