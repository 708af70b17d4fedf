/* SPDX-License-Identifier: Apache-2.0
 *
 * The ring of events: what has happened to the fabric, in the order in which it was told. Bounded and lossy: a writer never
 * waits, a reader that was overtaken learns how many it missed. Readers write nothing but a count of sleepers, so any number
 * of them may look on, and sleep on a futex word meanwhile.
 *
 * A writer takes the next number, marks the record of that number as being written, fills it, and publishes the number in it.
 * One that dies in between leaves a record without its number, which readers wait for a moment and then count as lost. One
 * that was stopped for a whole turn of the ring may write into a newer record: its sum then does not fit, and that one
 * is lost as well.
 *
 * Owns: the ring. Must not know: who reads, and what for.
 */
#include "event.h"

#include <time.h>

#define UNWRITTEN_NS 100000000u /* how long a number without a record may be somebody's who still writes */

int fbxi_event_ring(const struct fbxl_header *h, uint64_t *offset)
{
    for (uint32_t i = 0; i < sizeof h->extension / sizeof h->extension[0]; i++)
        if (h->extension[i].id == FBXL_EVENTS) {
            *offset = h->extension[i].offset;
            return h->extension[i].bytes >= sizeof(struct fbxl_events) && !(*offset & 63) && *offset < h->control_bytes &&
                   sizeof(struct fbxl_events) <= h->control_bytes - *offset;
        }
    return 0;
}

static struct fbxl_events *ring(const fbx_fabric *f) { return fbxi_at(f, f->events_offset); }

static uint64_t sum(uint64_t number, const uint64_t word[FBX_EVENT_WORDS])
{
    uint64_t h = number * 0x9E3779B97F4A7C15ull + 1;
    for (int i = 0; i < (int)FBX_EVENT_WORDS; i++)
        h = (h ^ word[i]) * 0x9E3779B97F4A7C15ull + (h >> 29);
    return h;
}

void fbxi_event(fbx_fabric *f, const struct fbxi_event *e)
{
    struct timespec wall = {0, 0};
    if (!f->clock.ps_per_tick_q32)
        fbxi_clock_load(&f->clock, f->header);
    if (f->clock.kind == FBX_REAL) /* virtual time knows of no date */
        clock_gettime(CLOCK_REALTIME, &wall);
    const uint64_t word[FBX_EVENT_WORDS] = {fbxi_now(&f->clock), (uint64_t)wall.tv_sec * 1000000000u + (uint64_t)wall.tv_nsec,
                                             (uint64_t)e->other << 32 | e->kind, (uint64_t)e->link << 32 | e->node, e->a, e->b};
    struct fbxl_events *r = ring(f);
    const uint64_t number = fbx_add(&r->next, 1);
    struct fbxl_event *at = &r->event[number % FBX_EVENTS];
    fbx_publish(&at->number, 0);
    fbx_fence_store();
    for (int i = 0; i < (int)FBX_EVENT_WORDS; i++)
        fbx_poke(&at->word[i], word[i]);
    fbx_poke(&at->sum, sum(number, word));
    /* Pairs with: fbx_observe(&event->number) in read_one(). Breaks: half of an event. */
    fbx_publish(&at->number, number + 1);
    fbx_add(&r->changed, 1);
    /* Pairs with: the addition to `sleepers` before the look at `changed` in fbx_events_wait(). Breaks: a reader that sleeps on. */
    if (fbx_observe(&r->sleepers))
        fbxi_futex_wake(&r->changed);
}

void fbxi_event_look(fbx_fabric *f)
{
    for (uint32_t i = 0; i < f->node_count; i++) {
        struct fbxl_node *n = &f->nodes[i];
        uint64_t dropped = fbx_peek(&n->posted_dropped), told = fbx_peek(&n->dropped_told);
        if (dropped != told && fbx_claim(&n->dropped_told, told, dropped))
            fbxi_event(f, &(struct fbxi_event){FBX_EVENT_WRITES_DROPPED, i, UINT32_MAX, UINT32_MAX, dropped - told, dropped});
        uint64_t aer = fbx_peek(&n->aer_correctable) + fbx_peek(&n->aer_nonfatal) + fbx_peek(&n->aer_fatal);
        told = fbx_peek(&n->aer_told);
        if (aer != told && fbx_claim(&n->aer_told, told, aer))
            fbxi_event(f, &(struct fbxi_event){FBX_EVENT_AER, i, UINT32_MAX, UINT32_MAX, aer - told, aer});
    }
}

/* ---- for those who look on ----------------------------------------------------------------------------------------------- */

static int readable(const fbx_fabric *f)
{
    return f->base && !fbx_peek(&f->forked) && (f->observer || !fbx_peek(&f->closed))
               ? 0
               : fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
}

const char *fbx_event_name(uint32_t kind)
{
    switch (kind) {
#define FBX_X(number, name) \
    case number: return #name;
        FBX_EVENT_KINDS(FBX_X)
#undef FBX_X
    default: return NULL;
    }
}

int fbx_events_range(fbx_fabric *f, uint64_t *first, uint64_t *next)
{
    int status = readable(f);
    if (status)
        return status;
    *next = fbx_observe(&ring(f)->next);
    *first = *next > FBX_EVENTS ? *next - FBX_EVENTS : 0;
    return 0;
}

/* 1: read; 0: not written yet; -1: gone. */
static int read_one(struct fbxl_events *r, uint64_t number, struct fbx_event *out)
{
    struct fbxl_event *at = &r->event[number % FBX_EVENTS];
    uint64_t word[FBX_EVENT_WORDS], seen = fbx_observe(&at->number);
    if (seen != number + 1)
        return seen > number + 1 ? -1 : 0;
    for (int i = 0; i < (int)FBX_EVENT_WORDS; i++)
        word[i] = fbx_peek(&at->word[i]);
    uint64_t found = fbx_peek(&at->sum);
    fbx_fence_load();
    if (fbx_observe(&at->number) != number + 1 || found != sum(number, word))
        return -1;
    *out = (struct fbx_event){number, word[0], word[1], (uint32_t)word[2], (uint32_t)word[3], (uint32_t)(word[2] >> 32),
                              (uint32_t)(word[3] >> 32), word[4], word[5]};
    return 1;
}

int fbx_events_read(fbx_fabric *f, uint64_t *cursor, struct fbx_event *out, uint32_t room, uint64_t *lost)
{
    uint64_t first, next, begin = 0;
    int status = fbx_events_range(f, &first, &next), count = 0;
    if (status)
        return status;
    if (*cursor > next)
        *cursor = next; /* a number of the future, or a scribbled ring */
    while (*cursor < next && (uint32_t)count < room) {
        if (*cursor < first) {
            *lost += first - *cursor;
            *cursor = first;
        }
        int got = read_one(ring(f), *cursor, &out[count]);
        if (!got) {
            /* Somebody writes it just now, or died while it did. One moment for all of them. */
            uint64_t ns = fbxi_monotonic_ns();
            if (!begin)
                begin = ns;
            if (count)
                break;
            if (ns - begin < UNWRITTEN_NS) {
                struct timespec nap = {0, 50000};
                clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
                fbx_events_range(f, &first, &next);
                continue;
            }
        }
        if (got > 0)
            count++;
        else
            ++*lost;
        ++*cursor;
    }
    return count;
}

int fbx_events_wait(fbx_fabric *f, uint64_t cursor, uint64_t max_wait_ns)
{
    int status = readable(f);
    if (status)
        return status;
    struct fbxl_events *r = ring(f);
    const uint32_t seen = fbx_observe(&r->changed);
    if (fbx_observe(&r->next) > cursor)
        return 0;
    if (fbx_observe(&f->header->state) & FBXL_CLOSED)
        return fbxi_fail(FBX_E_CLOSED, "fabric '%s' has been taken down", f->name);
    if (f->observer && f->flags & FBXL_OWNED && fbxi_session_dead(f, 0, 1))
        return fbxi_fail(FBX_E_CLOSED, "the process that owned '%s' is gone, and the fabric with it", f->name);
    fbx_add(&r->sleepers, 1);
    /* Pairs with: the look at `sleepers` after `changed` was counted in fbxi_event(). */
    if (fbx_observe(&r->changed) == seen)
        fbxi_futex_wait(&r->changed, seen, max_wait_ns);
    fbx_add(&r->sleepers, (uint32_t)-1);
    return fbx_observe(&r->next) > cursor ? 0 : FBX_E_AGAIN;
}
