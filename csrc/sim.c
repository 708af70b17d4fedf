/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs under the virtual clock. The events are what the programs wait for: an operation's next step, a moment, a value,
 * and the fabric's own: posted writes that arrive, DMA, operations that were begun. The earliest happens, time jumps to it, and when it makes a
 * program ready that program is what fbx_sim_next() returns. At one moment writes arrive first, then DMA moves, then
 * programs run, in an order that the seed chooses. Nothing here knows how programs are switched.
 *
 * Waiting for a value. A program polls with loads, as it would in real time. Polls of its own memory that cannot find
 * anything new are left out: the program is looked at after each event and loads when the value is there. Polls of a
 * peer's memory are made, because they are traffic, until a thousand in a row would find nothing new; those are left out.
 *
 * Reset. A private fabric's control segment is copied as it was before anybody attached, and copied back; what was added
 * behind it is zeroed, as is memory that was committed. Caches of this process hang on node handles, which are freed
 * between runs. So a run after a reset cannot be told from one on a new fabric.
 */
#include "choice.h"
#include "hot.h"
#include "internal.h"
#include "journey.h"
#include "link.h"
#include "ntb.h"
#include "registered.h"
#include "trace.h"

#include <stdlib.h>
#include <sys/mman.h>

#define NEVER UINT64_MAX
#define SKIP_POLLS 1000u
#define LOOK_EVENTS 65536u

struct task {
    fbx_node *node;
    uint32_t state, what;
    uint32_t site; /* the line of the program that asked */
    uint32_t idle; /* it went on because of a change, and has done nothing since */
    uint64_t next_ps; /* when to look at it again; NEVER: only when something changes */
    uint64_t tie; /* order among those of the same moment */
    uint64_t deadline_ps, since_ps, turns;
    struct fbx_op *op; /* under way */
    uint64_t which; /* FBX_SIM_DMA: its id; NAMES: what was seen */
    uint64_t gva, value, last;
    uint32_t bytes;
    int32_t compare, result;
    uint64_t poll_changes, poll_ps, period_ps; /* as of when the last poll began; to the next */
    struct fbxi_xl at; /* where the value is */
    uint64_t offset;
    struct fbx_error error;
    struct fbx_op own;
    uint8_t wide[64];
};

struct piece { /* of the control segment, as it was */
    uint64_t offset, bytes;
    uint8_t *copy;
    int table; /* -1: fixed extent; else grows with that table's high; FBXL_TABLES: the heap */
};

struct fbx_sim {
    fbx_fabric *fabric;
    struct task **tasks;
    uint32_t count, room, live;
    uint32_t current;
    struct fbx_sim_options options;
    uint64_t changes, checked, events, resets;
    const void *thread;
    struct piece pieces[FBXL_TABLES + 2];
    uint32_t piece_count;
    struct begun { /* operations that programs began and do other things meanwhile */
        fbx_node *node;
        struct fbx_op *op;
    } *begun;
    uint32_t begun_count, begun_room;
};

static uint64_t max64(uint64_t a, uint64_t b) { return a > b ? a : b; }
static uint64_t min64(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* ---- making, and making anew ---------------------------------------------------------------------------------------- */

static int keep(fbx_sim *s, uint64_t offset, uint64_t bytes, int table)
{
    struct piece *p = &s->pieces[s->piece_count++];
    p->offset = offset;
    p->bytes = bytes;
    p->table = table;
    p->copy = bytes ? malloc(bytes) : NULL;
    if (bytes && !p->copy)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory for a copy of the fabric's state");
    if (bytes)
        memcpy(p->copy, fbxi_at(s->fabric, offset), bytes);
    return 0;
}

int fbx_sim_open(fbx_fabric *f, fbx_sim **out)
{
    *out = NULL;
    if (fbx_peek(&f->closed) || f->clock.kind != FBX_VIRTUAL || !(f->flags & FBX_PRIVATE))
        return fbxi_fail(FBX_E_INVALID, "programs run on a private fabric whose clock is virtual");
    if (f->node_list || f->sim)
        return fbxi_fail(FBX_E_BUSY, "the fabric is in use");
    fbx_sim *s = calloc(1, sizeof *s);
    if (!s)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    s->fabric = f;
    s->current = FBX_SIM_NOBODY;
    s->options.step_ps = 10000;
    int status = 0;
    uint64_t lazy = f->mapped_bytes;
    for (int i = 0; i < FBXL_TABLES; i++)
        if (i == FBXL_SESSIONS || i == FBXL_REQUESTERS || i == FBXL_LANES || i == FBXL_BUFFERS || i == FBXL_NAMES) {
            lazy = min64(lazy, f->table_offset[i]);
            status = status ? status : keep(s, f->table_offset[i], (uint64_t)fbxi_high(f, i) * f->stride[i], i);
        }
    /* Everything before the tables that grow: header, nodes, regions, links, directions, buckets, topology. */
    status = status ? status : keep(s, 0, lazy, -1);
    status = status ? status : keep(s, f->heap_offset, fbx_peek(&f->header->heap_used), FBXL_TABLES);
    if (status) {
        fbx_sim_free(s);
        return status;
    }
    f->sim = s;
    *out = s;
    return 0;
}

static void forget_tasks(fbx_sim *s)
{
    s->count = s->live = s->begun_count = 0;
    s->current = FBX_SIM_NOBODY;
}

void fbx_sim_free(fbx_sim *s)
{
    if (!s)
        return;
    if (s->fabric->sim == s)
        s->fabric->sim = NULL;
    for (uint32_t i = 0; i < s->piece_count; i++)
        free(s->pieces[i].copy);
    for (uint32_t i = 0; i < s->room; i++)
        free(s->tasks[i]);
    free(s->tasks);
    free(s->begun);
    free(s);
}

/* Memory that was committed is zero again, and no longer committed. */
static void clear_region(fbx_fabric *f, uint32_t region)
{
    struct fbxl_region *r = &f->regions[region];
    const struct fbxi_region_map *map = &f->maps[region];
    const uint64_t bytes = f->region_facts[region].bytes, committed = fbx_peek(&r->committed);
    if (!committed || !map->rw)
        return;
    const int whole = committed > 16 * FBX_COMMIT_BYTES;
    for (uint64_t page = 0; page <= (bytes - 1) / FBX_BITS_PAGE && page / 64 < FBX_TOP_WORDS; page++) {
        if (!(fbx_peek(&r->top[page / 64]) >> (page % 64) & 1))
            continue;
        uint8_t *bits = map->bits + page * 4096;
        const uint64_t pieces = (bytes + FBX_COMMIT_BYTES - 1) >> FBX_COMMIT_SHIFT, first = page * (FBX_BITS_PAGE >> FBX_COMMIT_SHIFT);
        const uint64_t end = min64(4096, (pieces - min64(first, pieces) + 7) / 8);
        for (uint64_t i = 0; i < end; i++) {
            uint8_t byte = fbx_bits_observe(&bits[i]);
            for (uint32_t bit = 0; !whole && byte >> bit; bit++)
                if (byte >> bit & 1) {
                    uint64_t at = (first + i * 8 + bit) << FBX_COMMIT_SHIFT;
                    memset(map->rw + at, 0, min64(FBX_COMMIT_BYTES, bytes - at));
                }
        }
        memset(bits, 0, end);
    }
    /* Much of it: give the pages back, as a hole reads as zeros. */
    if (whole)
        madvise(map->rw, bytes & ~4095ull, MADV_REMOVE);
}

int fbx_sim_reset(fbx_sim *s, uint64_t seed, const struct fbx_sim_options *options)
{
    fbx_fabric *f = s->fabric;
    for (const fbx_node *n = f->node_list; n; n = n->next)
        if (!fbx_peek(&n->closed))
            return fbxi_fail(FBX_E_BUSY, "%s is attached; detach it first", n->facts->name);
    for (uint32_t i = 0; i < f->region_count; i++)
        clear_region(f, i);
    uint64_t high[FBXL_TABLES + 1];
    for (int i = 0; i < FBXL_TABLES; i++)
        high[i] = (uint64_t)fbxi_high(f, i) * f->stride[i];
    high[FBXL_TABLES] = min64(fbx_peek(&f->header->heap_used), f->heap_bytes);
    for (uint32_t i = 0; i < s->piece_count; i++) {
        const struct piece *p = &s->pieces[i];
        uint8_t *at = fbxi_at(f, p->offset);
        if (p->bytes)
            memcpy(at, p->copy, p->bytes);
        if (p->table >= 0 && high[p->table] > p->bytes)
            memset(at + p->bytes, 0, high[p->table] - p->bytes);
    }
    /* What links were set to hangs on calendars in the heap. */
    for (uint32_t i = 0; i < f->link_count * 2; i++)
        for (struct fbxi_figures *d; (d = f->figures[i]);) {
            f->figures[i] = d->next;
            free(d);
        }
    fbxi_registered_forget(f);
    f->header->seed = seed;
    f->header->instance += ++s->resets;
    f->identity_of_fabric = f->header->instance; /* handles of buffers of an earlier run are stale */
    f->clock.virtual_ps = 0;
    f->choice_seed = seed;
    memset(f->choice_count, 0, sizeof f->choice_count);
    fbx_poke(&f->watched, 0);
    forget_tasks(s);
    s->changes = s->checked = s->events = 0;
    if (options)
        s->options = *options;
    s->thread = fbxi_thread();
    return 0;
}

/* ---- programs ---------------------------------------------------------------------------------------------------------- */

/* A program is kept from the processor for a while: mostly not, else from 64 ns to 64 us. */
static uint64_t stall(uint64_t drawn) { return drawn ? 32000ull << drawn : 0; }

int fbx_sim_spawn(fbx_sim *s, fbx_node *node)
{
    if (node->fabric != s->fabric)
        return fbxi_fail(FBX_E_INVALID, "the node is of another fabric");
    if (s->count == s->room) {
        uint32_t room = s->room ? 2 * s->room : 8;
        struct task **more = realloc(s->tasks, room * sizeof *more);
        if (!more)
            return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
        memset(more + s->room, 0, (room - s->room) * sizeof *more);
        s->tasks = more;
        s->room = room;
    }
    if (!s->tasks[s->count] && !(s->tasks[s->count] = malloc(sizeof **s->tasks)))
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    struct task *t = s->tasks[s->count];
    memset(t, 0, offsetof(struct task, error));
    t->node = node;
    t->state = FBX_SIM_READY;
    t->tie = fbxi_choice_at(s->fabric, FBXI_CHOICE_SCHEDULE, (uint64_t)s->count << 40, 8);
    /* Who begins when matters as much as what happens then. */
    if (s->options.stalls)
        t->next_ps = stall(fbxi_choice_rare(s->fabric, FBXI_CHOICE_STALL, (uint64_t)s->count << 40, 12, 3));
    s->live++;
    return (int)s->count++;
}

uint32_t fbx_sim_current(const fbx_sim *s) { return s->thread == fbxi_thread() ? s->current : FBX_SIM_NOBODY; }
fbx_sim *fbx_sim_of(fbx_fabric *f) { return f->sim; }
uint64_t fbx_sim_events(const fbx_sim *s) { return s->events; }

struct fbx_op *fbx_sim_record(fbx_sim *s, void **wide)
{
    if (fbx_sim_current(s) == FBX_SIM_NOBODY)
        return NULL;
    struct task *t = s->tasks[s->current];
    *wide = t->wide;
    return &t->own;
}

/* When the program goes on after something that was complete at `at_ps`. */
static uint64_t resumes(fbx_sim *s, uint32_t number, uint64_t at_ps)
{
    const struct task *t = s->tasks[number];
    at_ps = max64(at_ps, t->since_ps + s->options.step_ps);
    return s->options.stalls
               ? at_ps + stall(fbxi_choice_rare(s->fabric, FBXI_CHOICE_STALL, (uint64_t)number << 40 | t->turns, 12, 6))
               : at_ps;
}

/* It runs at `at_ps`. */
static void ready(struct task *t, uint64_t at_ps, int result)
{
    t->state = FBX_SIM_READY;
    t->what = 0;
    t->next_ps = at_ps;
    t->result = result;
    t->op = NULL;
    if (result && result != FBX_E_AGAIN)
        t->error = *fbx_last_error();
}

/* The running program has asked for something: it takes its turn among those of the same moment as the seed says. */
static struct task *turn(fbx_sim *s)
{
    struct task *t = s->tasks[s->current];
    t->turns++;
    t->tie = fbxi_choice_at(s->fabric, FBXI_CHOICE_SCHEDULE, (uint64_t)s->current << 40 | t->turns, 8);
    t->since_ps = s->fabric->clock.virtual_ps;
    t->deadline_ps = NEVER;
    t->idle = 0;
    t->site = s->fabric->trace_site;
    s->changes++;
    return t;
}

void fbx_sim_op(fbx_sim *s, fbx_node *node, struct fbx_op *op, int status)
{
    struct task *t = turn(s);
    if (status != FBX_E_AGAIN) {
        ready(t, 0, status);
        t->next_ps = resumes(s, s->current, status ? 0 : op->completes_ps);
        return;
    }
    t->state = FBX_SIM_OPERATES;
    t->op = op;
    t->node = node;
    t->next_ps = max64(op->next_ps, t->since_ps);
}

void fbx_sim_sleep(fbx_sim *s, uint64_t until_ps)
{
    struct task *t = turn(s);
    t->what = FBX_SIM_SLEEP;
    t->state = FBX_SIM_READY;
    t->result = 0;
    t->next_ps = resumes(s, s->current, until_ps);
}

void fbx_sim_watch(fbx_sim *s, fbx_node *node, int what, uint64_t which, uint64_t deadline_ps)
{
    const uint64_t changes = s->changes;
    const int idle = s->tasks[s->current]->idle && what == FBX_SIM_CHANGE;
    struct task *t = turn(s);
    if (idle)
        s->changes = changes; /* two that only look whether something has changed must not keep each other busy */
    t->node = node;
    t->state = FBX_SIM_PARKED;
    t->what = (uint32_t)what;
    t->which = which;
    t->deadline_ps = t->next_ps = deadline_ps;
    if (what == FBX_SIM_CHANGE)
        t->which = s->changes;
}

void fbx_sim_exit(fbx_sim *s)
{
    struct task *t = turn(s);
    t->state = FBX_SIM_ENDED;
    t->next_ps = NEVER;
    s->live--;
    s->current = FBX_SIM_NOBODY;
}

void fbx_sim_stop(fbx_sim *s)
{
    for (uint32_t i = 0; i < s->count; i++) {
        s->tasks[i]->state = FBX_SIM_ENDED;
        s->tasks[i]->next_ps = NEVER;
    }
    s->live = 0;
    s->current = FBX_SIM_NOBODY;
}

int fbx_sim_result(fbx_sim *s, uint64_t *value)
{
    if (s->current == FBX_SIM_NOBODY)
        return FBX_E_INVALID;
    const struct task *t = s->tasks[s->current];
    *value = t->last;
    if (t->result && t->result != FBX_E_AGAIN)
        fbxi_fail_again(&t->error);
    return t->result;
}

int fbx_sim_look(fbx_sim *s, uint32_t number, struct fbx_sim_task *out)
{
    if (number >= s->count)
        return fbxi_fail(FBX_E_NOT_FOUND, "no program %u", number);
    const struct task *t = s->tasks[number];
    memset(out, 0, sizeof *out);
    out->state = t->state;
    out->what = t->what;
    out->node = t->node->index;
    out->size = t->bytes;
    out->compare = t->compare;
    out->result = t->result;
    out->gva = t->gva;
    out->value = t->what == FBX_SIM_MEMORY ? t->value : t->which;
    out->last = t->last;
    out->next_ps = t->next_ps;
    out->deadline_ps = t->deadline_ps;
    out->since_ps = t->since_ps;
    out->operations = t->turns;
    if (t->op) {
        out->op_kind = t->op->kind;
        out->op_target = t->op->target;
        out->gva = t->op->gva;
    }
    return 0;
}

int fbx_sim_begun(fbx_sim *s, fbx_node *node, struct fbx_op *op)
{
    if (s->begun_count == s->begun_room) {
        uint32_t room = s->begun_room ? 2 * s->begun_room : 8;
        struct begun *more = realloc(s->begun, room * sizeof *more);
        if (!more)
            return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
        s->begun = more;
        s->begun_room = room;
    }
    s->begun[s->begun_count++] = (struct begun){node, op};
    return 0;
}

void fbx_sim_forget(fbx_sim *s, const struct fbx_op *op)
{
    for (uint32_t i = 0; i < s->begun_count; i++)
        if (s->begun[i].op == op) {
            memmove(&s->begun[i], &s->begun[i + 1], (--s->begun_count - i) * sizeof *s->begun);
            return;
        }
}

/* ---- waiting for a value -------------------------------------------------------------------------------------------- */

static void polled(fbx_sim *s, uint32_t number, int status);

/* One poll: a load like any other. */
static void poll(fbx_sim *s, uint32_t number)
{
    struct task *t = s->tasks[number];
    struct fbx_op *op = &t->own;
    op->kind = FBX_LOAD;
    op->gva = t->gva;
    op->bytes = t->bytes;
    op->buffer = NULL;
    op->tc = op->attr = 0;
    op->path = 0;
    op->trace_id = 0;
    t->poll_changes = s->changes;
    t->poll_ps = s->fabric->clock.virtual_ps;
    t->op = op;
    t->state = FBX_SIM_POLLS;
    s->fabric->trace_site = t->site;
    int status = fbx_op_begin(t->node, op);
    if (status == FBX_E_AGAIN)
        t->next_ps = max64(op->next_ps, t->poll_ps);
    else
        polled(s, number, status);
}

/* A poll is complete: go on, poll again, or wait until there may be something new. */
static void polled(fbx_sim *s, uint32_t number, int status)
{
    struct task *t = s->tasks[number];
    const uint64_t now = s->fabric->clock.virtual_ps;
    t->op = NULL;
    if (status) {
        ready(t, 0, status);
        t->next_ps = resumes(s, number, now);
        return;
    }
    t->last = t->own.operand[0];
    if (fbxi_compares(t->last, t->compare, t->value)) {
        ready(t, 0, 0);
        t->next_ps = resumes(s, number, t->own.completes_ps);
    } else if (now >= t->deadline_ps) {
        ready(t, now, FBX_E_AGAIN);
    } else {
        t->state = FBX_SIM_PARKED;
        t->next_ps = t->deadline_ps;
        uint64_t generation = fbx_observe(t->node->generation);
        if (fbxi_resolve(t->node, t->gva, t->bytes, generation, &t->at, &t->offset) || t->at.route) {
            /* A peer's memory: the next poll follows at once. */
            t->at.generation = 0;
            t->next_ps = min64(max64(t->own.completes_ps, t->poll_ps + s->options.step_ps), t->deadline_ps);
            t->period_ps = t->next_ps - t->poll_ps;
        }
    }
}

void fbx_sim_wait_until(fbx_sim *s, fbx_node *node, uint64_t gva, uint32_t bytes, int how, uint64_t value, uint64_t deadline_ps)
{
    struct task *t = turn(s);
    t->node = node;
    t->what = FBX_SIM_MEMORY;
    t->gva = gva;
    t->bytes = bytes;
    t->compare = how;
    t->value = value;
    t->deadline_ps = deadline_ps;
    t->last = 0;
    poll(s, s->current);
}

/* Whether a parked program's own memory has what it waits for, without an access. */
static int found(fbx_sim *s, struct task *t)
{
    fbx_fabric *f = s->fabric;
    if (!t->at.generation)
        return 0; /* polls */
    if (t->at.generation != fbx_observe(t->node->generation))
        return 1; /* windows or links changed: the load will say */
    uint64_t value = 0;
    if (fbxi_committed(f, t->at.region, t->offset, t->bytes))
        value = fbx_mem_load(t->at.base + t->offset, t->bytes);
    return fbxi_compares(value, t->compare, t->value);
}

/* Something happened: who has what it waits for? */
static void recheck(fbx_sim *s)
{
    fbx_fabric *f = s->fabric;
    const uint64_t now = f->clock.virtual_ps;
    s->checked = s->changes;
    for (uint32_t i = 0; i < s->count; i++) {
        struct task *t = s->tasks[i];
        struct fbx_dma_status status;
        if (t->state != FBX_SIM_PARKED)
            continue;
        switch (t->what) {
        case FBX_SIM_MEMORY:
            if (found(s, t) && (t->poll_changes != s->changes || t->poll_ps < now))
                poll(s, i);
            break;
        case FBX_SIM_EVENTS:
            if (fbxi_ntb_any(t->node)) {
                ready(t, 0, 0);
                t->next_ps = resumes(s, i, now);
            }
            break;
        case FBX_SIM_NAMES:
            if (fbx_names_seen(f) != (uint32_t)t->which) {
                ready(t, 0, 0);
                t->next_ps = resumes(s, i, now);
            }
            break;
        case FBX_SIM_DMA:
            if (fbx_dma_poll(t->node, t->which, &status) || status.status != FBX_E_AGAIN) {
                ready(t, 0, 0);
                t->next_ps = resumes(s, i, max64(now, status.status ? 0 : status.completes_ps));
            }
            break;
        case FBX_SIM_CHANGE:
            if (s->changes != t->which) {
                ready(t, 0, 0);
                t->next_ps = resumes(s, i, now);
                t->idle = 1;
            }
            break;
        default: break;
        }
    }
}

/* ---- time -------------------------------------------------------------------------------------------------------------- */

/* The next arrival of a posted write, and where. */
static uint64_t arrival(fbx_fabric *f, uint32_t *where)
{
    uint64_t first = NEVER;
    for (uint32_t i = 0; i < f->node_count; i++)
        if (fbx_peek(&f->nodes[i].pending)) {
            uint64_t due = fbxi_next_due(f, i);
            if (due < first) {
                first = due;
                *where = i;
            }
        }
    return first;
}

static uint64_t dma(fbx_fabric *f, fbx_node **whose)
{
    uint64_t first = NEVER;
    for (fbx_node *n = f->node_list; n; n = n->next)
        if (n->dma && !fbx_peek(&n->closed)) {
            uint64_t next = fbxi_dma_next(n);
            if (next < first || (next == first && next != NEVER && n->index < (*whose)->index)) {
                first = next;
                *whose = n;
            }
        }
    return first;
}

/* The next step of an operation that a program began, and which; those that are over go. */
static uint64_t begun(fbx_sim *s, uint32_t *which)
{
    uint64_t first = NEVER;
    for (uint32_t i = 0; i < s->begun_count;) {
        const struct fbx_op *op = s->begun[i].op;
        if (op->state == FBX_DONE || fbx_peek(&s->begun[i].node->closed)) {
            fbx_sim_forget(s, op);
            continue;
        }
        uint64_t next = max64(op->next_ps, op->issued_ps + 1);
        if (next < first) {
            first = next;
            *which = i;
        }
        i++;
    }
    return first;
}

static int earlier(const struct task *a, const struct task *b)
{
    return a->next_ps != b->next_ps ? a->next_ps < b->next_ps : a->tie < b->tie;
}

/* Polls of a peer's memory that can find nothing new before `until_ps`. */
static int polls_in_vain(const fbx_sim *s, const struct task *t)
{
    return t->state == FBX_SIM_PARKED && t->what == FBX_SIM_MEMORY && !t->at.generation && t->poll_changes == s->changes;
}

/* Leave out those that would be before `until_ps`: all, if nothing else will ever happen. */
static int skip_polls(struct task *t, uint64_t until_ps)
{
    const uint64_t until = min64(until_ps, t->deadline_ps), period = max64(t->period_ps, 1);
    if (until == NEVER) {
        t->next_ps = NEVER;
        return 1;
    }
    if (until <= t->next_ps)
        return 0;
    const uint64_t polls = (until - t->next_ps) / period;
    if (!polls || (until_ps != NEVER && polls < SKIP_POLLS))
        return 0;
    t->next_ps += polls * period;
    return 1;
}

int fbx_sim_next(fbx_sim *s)
{
    fbx_fabric *f = s->fabric;
    const uint64_t start = s->events;
    s->current = FBX_SIM_NOBODY;
    for (;;) {
        if (s->checked != s->changes)
            recheck(s);
        struct task *best = NULL;
        uint32_t number = 0, where = 0;
        for (uint32_t i = 0; i < s->count; i++)
            if (!best || earlier(s->tasks[i], best)) {
                best = s->tasks[i];
                number = i;
            }
        fbx_node *whose = NULL;
        uint32_t which = 0;
        uint64_t arrives = arrival(f, &where), moves = dma(f, &whose), goes = begun(s, &which), at = best ? best->next_ps : NEVER;
        if (best && at != NEVER && polls_in_vain(s, best)) {
            uint64_t until = min64(min64(arrives, moves), goes);
            for (uint32_t i = 0; i < s->count; i++)
                if (!polls_in_vain(s, s->tasks[i]))
                    until = min64(until, s->tasks[i]->next_ps);
            if (skip_polls(best, until))
                continue;
        }
        at = min64(min64(at, goes), min64(arrives, moves));
        if (at == NEVER)
            return s->live ? FBX_SIM_DEADLOCK : FBX_SIM_DONE;
        if ((s->options.limit_ps && at > s->options.limit_ps) || (s->options.limit_events && s->events >= s->options.limit_events))
            return FBX_SIM_LIMIT;
        if (at > f->clock.virtual_ps)
            f->clock.virtual_ps = at;
        at = f->clock.virtual_ps;
        s->events++;
        if (arrives <= at) {
            fbxi_deliver(f, where, at);
            s->changes++;
        } else if (moves <= at) {
            fbxi_dma_step(whose);
            s->changes++;
        } else if (goes <= at) {
            struct begun *b = &s->begun[which];
            if (fbx_op_advance(b->node, b->op) == FBX_E_AGAIN && b->op->next_ps <= at)
                b->op->next_ps = at + 1000;
            s->changes++;
        } else if (best->state == FBX_SIM_READY) {
            s->current = number;
            return (int)number;
        } else if (best->state == FBX_SIM_PARKED) {
            if (best->what == FBX_SIM_MEMORY)
                poll(s, number);
            else
                ready(best, at, FBX_E_AGAIN);
        } else {
            f->trace_site = best->site;
            int status = fbx_op_advance(best->node, best->op);
            if (best->state == FBX_SIM_OPERATES || best->op->kind != FBX_LOAD)
                s->changes++;
            if (status == FBX_E_AGAIN) {
                best->next_ps = best->op->next_ps > at ? best->op->next_ps : at + 1000;
            } else if (best->state == FBX_SIM_POLLS) {
                polled(s, number, status);
            } else {
                uint64_t completes = status ? at : best->op->completes_ps;
                ready(best, 0, status);
                best->next_ps = resumes(s, number, completes);
            }
        }
        if (s->events - start >= LOOK_EVENTS)
            return FBX_SIM_LOOK;
    }
}

/* ---- for the _hot extension ------------------------------------------------------------------------------------------- */

static uint64_t now(const fbx_sim *s) { return s->fabric->clock.virtual_ps; }
static void site(fbx_sim *s, uint32_t number) { s->fabric->trace_site = number; }

const void *fbx_sim_table(void)
{
    static const struct fbx_hot_sim table = {
        FBX_HOT_VERSION, sizeof(struct fbx_op), fbx_op_begin, fbx_sim_current, fbx_sim_next, fbx_sim_op, fbx_sim_sleep,
        fbx_sim_wait_until, fbx_sim_watch, fbx_sim_exit, fbx_sim_result, fbx_sim_record, now, site};
    return &table;
}
