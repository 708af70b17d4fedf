/* SPDX-License-Identifier: Apache-2.0
 *
 * Buffers and names: who may use which bytes of a region, and how processes find each other.
 *
 * The table of buffers is the truth; the list by address that alloc walks is derived from it and rebuilt when the holder
 * of a region's lock died. Names (of buffers, values, barriers) hang in hash buckets under the control lock, each change
 * one published word, so that a death leaves the old state or the new one.
 */
#include "call.h"
#include "dma_queue.h"

#include <stdio.h>
#include <stdlib.h>

static uint32_t hash(const char *name)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (uint32_t i = 0; i < FBX_NAME_BYTES && name[i]; i++) /* bounded: it may come from shared memory */
        h = (h ^ (uint8_t)name[i]) * 0x100000001b3ull;
    return (uint32_t)(h ^ h >> 32);
}

static struct fbxl_name *name_at(fbx_fabric *f, uint32_t index)
{
    uint32_t high = fbxi_high(f, FBXL_NAMES);
    return index && index <= high && index <= f->capacity[FBXL_NAMES] ? &f->names[index - 1] : NULL;
}

/* Kinds have name spaces of their own: a buffer, a value and a barrier may share a name. Control lock held. */
static struct fbxl_name *name_find(fbx_fabric *f, const char *name, uint32_t kind)
{
    uint32_t capacity = f->capacity[FBXL_BUCKETS], bound = 0;
    uint32_t index = fbx_observe(&f->buckets[(hash(name) + kind) % capacity]);
    for (struct fbxl_name *e; (e = name_at(f, index)) && bound++ < 1u << 20; index = fbx_observe(&e->next))
        if (fbx_observe(&e->state) == kind && !strncmp(e->name, name, FBX_NAME_BYTES))
            return e;
    return NULL;
}

static int name_add(fbx_fabric *f, const char *name, uint32_t kind, struct fbxl_name **out)
{
    uint32_t high = fbxi_high(f, FBXL_NAMES), index = 0;
    for (; index < high; index++)
        if (fbx_observe(&f->names[index].state) == FBXL_NAME_FREE)
            break;
    int status = fbxi_table_take(f, FBXL_NAMES, index);
    if (status)
        return status;
    struct fbxl_name *e = &f->names[index];
    memset(e, 0, sizeof *e);
    snprintf(e->name, sizeof e->name, "%s", name);
    fbx_au32 *bucket = &f->buckets[(hash(name) + kind) % f->capacity[FBXL_BUCKETS]];
    fbx_poke(&e->next, fbx_peek(bucket));
    fbx_poke(&e->state, kind);
    *out = e;
    return 0;
}

/* Let the others see it: after it is filled. */
static void name_publish(fbx_fabric *f, struct fbxl_name *e)
{
    uint32_t kind = fbx_peek(&e->state);
    fbx_publish(&f->buckets[(hash(e->name) + kind) % f->capacity[FBXL_BUCKETS]],
                (uint32_t)(e - f->names) + 1);
}

static void name_remove(fbx_fabric *f, struct fbxl_name *gone)
{
    uint32_t kind = fbx_peek(&gone->state), bound = 0;
    fbx_au32 *at = &f->buckets[(hash(gone->name) + kind) % f->capacity[FBXL_BUCKETS]];
    for (struct fbxl_name *e; (e = name_at(f, fbx_observe(at))) && bound++ < 1u << 20; at = &e->next)
        if (e == gone) {
            fbx_publish(at, fbx_peek(&e->next));
            break;
        }
    fbx_publish(&gone->state, FBXL_NAME_FREE);
}

static void names_changed(fbx_fabric *f)
{
    fbx_add(&f->header->names_changed, 1);
    if (fbx_observe(&f->header->names_waiters))
        fbxi_futex_wake(&f->header->names_changed);
}

static int usable(fbx_fabric *f)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric's handle is closed");
    if (fbx_peek(&f->header->state) & FBXL_CLOSED)
        return fbxi_fail(FBX_E_CLOSED, "fabric '%s' has been taken down", f->name);
    return 0;
}

static int name_check(const char *name)
{
    return fbxi_name_ok(name) ? 0 : fbxi_fail(FBX_E_NAME, "'%.64s' is no name", name ? name : "");
}

/* The control lock, for a call that names something. */
static int lock_names(fbx_fabric *f, const char *name)
{
    int status = usable(f);
    if (!status)
        status = name_check(name);
    return status ? status : fbxi_control_lock(f);
}

uint32_t fbx_names_seen(fbx_fabric *f) { return fbx_observe(&f->header->names_changed); }

int fbx_names_wait(fbx_fabric *f, uint32_t seen, uint64_t max_wait_ns)
{
    int status = usable(f);
    if (status)
        return status;
    /* Pairs with: add then look for waiters in names_changed(). Breaks: a sleeper that nobody wakes (bounded by the
     * caller's slices in any case). */
    /* Names of another machine change without telling us: look again soon. */
    if (fbxi_names_away(f) && max_wait_ns > 1000000u)
        max_wait_ns = 1000000u;
    const uint64_t begin = fbxi_monotonic_ns();
    fbx_add(&f->header->names_waiters, 1);
    if (fbx_observe(&f->header->names_changed) == seen)
        fbxi_futex_wait(&f->header->names_changed, seen, max_wait_ns);
    fbx_add(&f->header->names_waiters, 0xffffffffu);
    fbxi_slept(&f->clock, fbxi_monotonic_ns() - begin);
    return 0;
}

/* ---- values --------------------------------------------------------------------------------------------------------- */

int fbx_put(fbx_fabric *f, const char *key, const void *value, uint64_t bytes)
{
    int status = usable(f);
    if (!status)
        status = name_check(key);
    if (!status && bytes > 16u << 20)
        status = fbxi_fail(FBX_E_NO_MEMORY, "a value has at most 16 MiB; put larger ones into a buffer");
    if (!status && fbxi_names_away(f))
        return fbxi_call_put(f, key, value, bytes);
    if (!status)
        status = fbxi_control_lock(f);
    if (status)
        return status;
    struct fbxl_name *e = name_find(f, key, FBXL_NAME_VALUE);
    bool fresh = !e;
    if (!e)
        status = name_add(f, key, FBXL_NAME_VALUE, &e);
    if (!status) {
        uint64_t which = fbx_peek(&e->which);
        uint32_t to = (which + 1) & 1;
        uint32_t capacity = fbx_peek(&e->value[to].capacity);
        uint64_t offset = fbx_peek(&e->value[to].offset);
        if (capacity < bytes || !offset) {
            if (offset)
                fbxi_heap_free(f, offset, capacity);
            fbx_poke(&e->value[to].offset, 0);
            uint64_t room = 64;
            while (room < bytes)
                room <<= 1;
            status = fbxi_heap(f, room, &offset);
            if (!status) {
                fbx_poke(&e->value[to].capacity, (uint32_t)room);
                fbx_poke(&e->value[to].offset, offset);
            }
        }
        if (!status) {
            if (!fbxi_heap_at(f, offset, bytes)) {
                fbxi_control_unlock(f);
                return fbxi_fail(FBX_E_CORRUPT, "the value of '%s' lies outside the control segment", key);
            }
            memcpy(fbxi_at(f, offset), value, bytes);
            fbx_poke(&e->value[to].bytes, (uint32_t)bytes);
            fbx_publish(&e->which, which + 1);
            if (fresh)
                name_publish(f, e);
        } else if (fresh) {
            fbx_publish(&e->state, FBXL_NAME_FREE);
        }
    }
    fbxi_control_unlock(f);
    if (!status)
        names_changed(f);
    return status;
}

int fbx_get(fbx_fabric *f, const char *key, void *value, uint64_t *bytes)
{
    if (fbxi_names_away(f) && !usable(f) && !name_check(key))
        return fbxi_call_get(f, key, value, bytes);
    int status = lock_names(f, key);
    if (status)
        return status;
    struct fbxl_name *e = name_find(f, key, FBXL_NAME_VALUE);
    if (!e) {
        status = fbxi_fail(FBX_E_NOT_FOUND, "no value '%s' in fabric '%s'", key, f->name);
    } else {
        uint32_t from = fbx_peek(&e->which) & 1;
        uint64_t offset = fbx_peek(&e->value[from].offset), room = *bytes;
        *bytes = fbx_peek(&e->value[from].bytes);
        if (!fbxi_heap_at(f, offset, *bytes))
            status = fbxi_fail(FBX_E_CORRUPT, "the value of '%s' lies outside the control segment", key);
        else if (*bytes > room)
            status = fbxi_fail(FBX_E_NO_MEMORY, "the value of '%s' has %llu bytes", key, (unsigned long long)*bytes);
        else
            memcpy(value, fbxi_at(f, offset), *bytes);
    }
    fbxi_control_unlock(f);
    return status;
}

/* ---- barriers ------------------------------------------------------------------------------------------------------- */

/* Who has arrived: a word per node that names the requester, so that a mark dies with the process that made it. */
static uint64_t mark_of(const fbx_node *n) { return (uint64_t)n->incarnation << 32 | (n->requester + 1u); }

static bool mark_lives(fbx_fabric *f, uint64_t mark)
{
    uint32_t requester = (uint32_t)mark - 1u;
    if (!mark || requester >= fbxi_high(f, FBXL_REQUESTERS))
        return false;
    const struct fbxl_requester *r = &f->requesters[requester];
    return fbx_observe(&r->state) == FBXL_LIVE && fbx_observe(&r->incarnation) == (uint32_t)(mark >> 32) &&
           !fbxi_session_dead(f, fbx_observe(&r->session) - 1, r->session_incarnation);
}

/* One look at the barrier under the control lock: 0 the round is over, AGAIN wait, or an error. */
static int arrive(fbx_node *n, struct fbxl_name *e, const char *name, uint32_t expected, uint64_t *ticket, bool *changed)
{
    fbx_fabric *f = n->fabric;
    fbx_au64 *arrived = fbxi_heap_at(f, fbx_peek(&e->value[0].offset), f->node_count * 8ull);
    if (!arrived)
        return fbxi_fail(FBX_E_CORRUPT, "barrier '%s' lies outside the control segment", name);
    const uint32_t round = fbx_peek(&e->round);
    if (*ticket && (uint32_t)(*ticket >> 32) != round) {
        *ticket = 0; /* our round is over */
        return 0;
    }
    uint32_t count = 0, dead = 0, alike = 0, lost = UINT32_MAX;
    for (uint32_t i = 0; i < f->node_count; i++) {
        uint64_t mark = fbx_peek(&arrived[i]);
        bool here = mark_lives(f, mark);
        if (mark && !here) {
            fbx_poke(&arrived[i], 0);
            lost = i;
            dead++;
        }
        count += here;
        if (f->node_facts[i].kind != n->facts->kind)
            continue;
        alike++;
        if (!here && fbx_observe(&f->nodes[i].state) == FBXL_LOST)
            lost = i;
    }
    if (!*ticket) {
        if (count == 0)
            fbx_poke(&e->expected, expected); /* a fresh round may have another size */
        else if (fbx_peek(&e->expected) != expected)
            return fbxi_fail(FBX_E_INVALID, "barrier '%s' is used with %u ranks here and %u elsewhere", name, expected,
                             fbx_peek(&e->expected));
        uint64_t mark = fbx_peek(&arrived[n->index]);
        if (mark_lives(f, mark))
            return fbxi_fail(FBX_E_INVALID, "%s is waiting at barrier '%s' already", n->facts->name, name);
        fbx_poke(&arrived[n->index], mark_of(n));
        *ticket = (uint64_t)round << 32 | 1;
        *changed = true;
        count++;
    }
    if (count >= expected) {
        for (uint32_t i = 0; i < f->node_count; i++)
            fbx_poke(&arrived[i], 0);
        fbx_publish(&e->round, round + 1);
        *ticket = 0;
        *changed = true;
        return 0;
    }
    /* Somebody who arrived and died may come again, but did not wait; somebody who is dead and needed will not come. */
    if (dead || (lost != UINT32_MAX && expected >= alike)) {
        fbx_poke(&arrived[n->index], 0);
        *ticket = 0;
        return fbxi_fail(FBX_E_PEER_LOST, "%s died, so barrier '%s' cannot complete", f->node_facts[lost].name, name);
    }
    return FBX_E_AGAIN;
}

int fbx_barrier(fbx_node *n, const char *name, uint32_t expected, uint64_t *ticket, uint64_t max_wait_ns)
{
    fbx_fabric *f = n->fabric;
    int status = usable(f);
    if (!status && fbx_peek(&n->closed))
        status = fbxi_fail(FBX_E_CLOSED, "the node's handle is closed");
    if (!status)
        status = name_check(name);
    if (!status && (!expected || expected > f->node_count))
        status = fbxi_fail(FBX_E_INVALID, "a barrier of %u ranks", expected);
    if (status)
        return status;
    if (fbxi_names_away(f))
        return fbxi_call_barrier(n, name, expected, ticket, max_wait_ns);
    uint32_t seen = fbx_names_seen(f);
    if ((status = fbxi_control_lock(f)))
        return status;
    struct fbxl_name *e = name_find(f, name, FBXL_NAME_BARRIER);
    if (!e && !(status = name_add(f, name, FBXL_NAME_BARRIER, &e))) {
        uint64_t offset = 0;
        status = fbxi_heap(f, f->node_count * 8ull, &offset);
        if (status) {
            fbx_publish(&e->state, FBXL_NAME_FREE);
        } else {
            fbx_poke(&e->value[0].offset, offset);
            name_publish(f, e);
        }
    }
    bool changed = false;
    if (!status)
        status = arrive(n, e, name, expected, ticket, &changed);
    fbxi_control_unlock(f);
    if (changed)
        names_changed(f);
    if (status == FBX_E_AGAIN)
        fbx_names_wait(f, changed ? seen + 1 : seen, max_wait_ns);
    return status;
}

int fbx_barrier_leave(fbx_node *n, const char *name, uint64_t ticket)
{
    fbx_fabric *f = n->fabric;
    if (fbxi_names_away(f) && !usable(f) && !name_check(name))
        return fbxi_call_leave(n, name, ticket);
    int status = lock_names(f, name);
    if (status)
        return status;
    struct fbxl_name *e = name_find(f, name, FBXL_NAME_BARRIER);
    fbx_au64 *arrived = e ? fbxi_heap_at(f, fbx_peek(&e->value[0].offset), f->node_count * 8ull) : NULL;
    if (arrived && ticket && (uint32_t)(ticket >> 32) == fbx_peek(&e->round) && fbx_peek(&arrived[n->index]) == mark_of(n))
        fbx_poke(&arrived[n->index], 0);
    fbxi_control_unlock(f);
    return 0;
}

/* ---- buffers -------------------------------------------------------------------------------------------------------- */

static struct fbxl_buffer *buffer_at(fbx_fabric *f, uint32_t index)
{
    uint32_t high = fbxi_high(f, FBXL_BUFFERS);
    return index && index <= high && index <= f->capacity[FBXL_BUFFERS] ? &f->buffers[index - 1] : NULL;
}

static int by_offset(const void *a, const void *b)
{
    const struct fbxl_buffer *const *x = a, *const *y = b;
    return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

/* The list by address, anew from the table. The region's lock is held. */
static int rebuild(fbx_fabric *f, uint32_t region)
{
    struct fbxl_region *r = &f->regions[region];
    uint32_t high = fbxi_high(f, FBXL_BUFFERS), count = 0;
    struct fbxl_buffer **live = malloc((high + 1) * sizeof(*live));
    if (!live)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    for (uint32_t i = 0; i < high; i++)
        if (fbx_observe(&f->buffers[i].state) >= FBXL_BUFFER_LIVE && f->buffers[i].region == region)
            live[count++] = &f->buffers[i];
    qsort(live, count, sizeof *live, by_offset);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        fbx_poke(&live[i]->next, i + 1 < count ? (uint32_t)(live[i + 1] - f->buffers) + 1 : 0);
        bytes += live[i]->bytes;
    }
    fbx_poke(&r->first_buffer, count ? (uint32_t)(live[0] - f->buffers) + 1 : 0);
    fbx_poke(&r->allocated, bytes);
    fbx_publish(&r->list_broken, 0);
    free(live);
    return 0;
}

static void describe(fbx_fabric *f, uint32_t index, struct fbx_buffer *out)
{
    const struct fbxl_buffer *b = &f->buffers[index];
    memset(out, 0, sizeof *out);
    memcpy(out->name, b->name, sizeof out->name);
    out->name[sizeof out->name - 1] = 0;
    out->index = index;
    out->generation = fbx_observe(&f->buffers[index].generation);
    out->region = b->region;
    out->node = b->region < f->region_count ? f->region_facts[b->region].node : UINT32_MAX;
    out->offset = b->offset;
    out->bytes = b->bytes;
    out->gva = ((uint64_t)(b->region + 1) << FBX_SLOT_SHIFT) + b->offset;
    out->instance = f->identity_of_fabric;
}

static int region_lock(fbx_fabric *f, uint32_t region)
{
    struct fbxl_region *r = &f->regions[region];
    int status = fbxi_lock(f, &r->lock, 5 * FBX_STALL_NS);
    if (status < 0)
        return fbxi_fail(FBX_E_BUSY, "another process holds the allocator of %s and does not let go",
                         f->node_facts[f->region_facts[region].node].name);
    if (status == 1 || fbx_observe(&r->list_broken)) {
        status = rebuild(f, region);
        if (status)
            fbxi_unlock(f, &r->lock);
        return status;
    }
    return 0;
}

/* The entry of a named buffer that is alive; one whose buffer died with its owner goes. Control lock held. */
static struct fbxl_name *live_name(fbx_fabric *f, const char *name)
{
    struct fbxl_name *e = name_find(f, name, FBXL_NAME_BUFFER);
    struct fbxl_buffer *b = e ? buffer_at(f, (uint32_t)fbx_peek(&e->value[0].offset) + 1) : NULL;
    if (!e)
        return NULL;
    if (b && fbx_observe(&b->state) == FBXL_BUFFER_LIVE && !strncmp(b->name, name, FBX_NAME_BYTES))
        return e;
    name_remove(f, e);
    return NULL;
}

/* Names of buffers that live on other machines; kept by the directory's machine as values. One whose machine is lost goes, as its
 * memory has. Control lock held. */
static struct fbxl_name *away_name(fbx_fabric *f, const char *name, struct fbx_buffer *out)
{
    struct fbxl_name *e = f->machines ? name_find(f, name, FBXL_NAME_AWAY) : NULL;
    uint8_t *at = e ? fbxi_heap_at(f, fbx_peek(&e->value[0].offset), FBXI_BUFFER_BYTES) : NULL;
    if (!at)
        return NULL;
    fbxi_unpack_buffer(at, out);
    const uint32_t machine = out->node < f->node_count ? f->node_facts[out->node].machine : f->machine_count;
    if (machine >= f->machine_count || fbx_observe(&f->machines->of[machine].state) == FBXL_MACHINE_LOST) {
        const uint64_t offset = fbx_peek(&e->value[0].offset);
        name_remove(f, e);
        fbxi_heap_free(f, offset, FBXI_BUFFER_BYTES);
        return NULL;
    }
    return e;
}

int fbxi_name_buffer(fbx_fabric *f, const struct fbx_buffer *b)
{
    struct fbx_buffer there;
    uint64_t offset = 0;
    struct fbxl_name *e = NULL;
    int status = lock_names(f, b->name);
    if (status)
        return status;
    if (live_name(f, b->name) || away_name(f, b->name, &there))
        status = fbxi_fail(FBX_E_EXISTS, "a buffer '%s' is there already", b->name);
    else if (!(status = name_add(f, b->name, FBXL_NAME_AWAY, &e)) && (status = fbxi_heap(f, FBXI_BUFFER_BYTES, &offset)))
        fbx_publish(&e->state, FBXL_NAME_FREE);
    if (!status) {
        fbxi_pack_buffer(b, fbxi_at(f, offset));
        fbx_poke(&e->value[0].offset, offset);
        fbx_poke(&e->value[0].bytes, FBXI_BUFFER_BYTES);
        fbx_poke(&e->value[0].capacity, FBXI_BUFFER_BYTES);
        name_publish(f, e);
    }
    fbxi_control_unlock(f);
    if (!status)
        names_changed(f);
    return status;
}

int fbxi_unname_buffer(fbx_fabric *f, const struct fbx_buffer *b)
{
    struct fbx_buffer there;
    int status = lock_names(f, b->name);
    if (status)
        return status;
    struct fbxl_name *e = away_name(f, b->name, &there);
    if (e && there.gva == b->gva && there.generation == b->generation) {
        uint64_t offset = fbx_peek(&e->value[0].offset);
        name_remove(f, e);
        fbxi_heap_free(f, offset, FBXI_BUFFER_BYTES);
    }
    fbxi_control_unlock(f);
    return 0;
}

static int name_it(fbx_fabric *f, const struct fbx_buffer *b)
{
    return fbxi_names_away(f) ? fbxi_call_name(f, b) : fbxi_name_buffer(f, b);
}

static int unname_it(fbx_fabric *f, const struct fbx_buffer *b)
{
    return fbxi_names_away(f) ? fbxi_call_unname(f, b) : fbxi_unname_buffer(f, b);
}

static int alloc_somewhere(fbx_node *n, uint32_t region, uint64_t bytes, uint64_t align, const char *name, struct fbx_buffer *out)
{
    fbx_fabric *f = n->fabric;
    const int named = name && name[0];
    if (!f->machines || region >= f->region_count || usable(f) || fbx_peek(&n->closed) || (named && name_check(name)))
        return fbx_peek(&n->closed) ? fbxi_fail(FBX_E_CLOSED, "the node's handle is closed")
                                    : fbxi_alloc_here(f, 0, region, bytes, align, name, out);
    const int away = fbxi_is_away(f, f->region_facts[region].node);
    if (away && fbx_observe(&f->nodes[f->region_facts[region].node].state) == FBXL_LOST)
        return fbxi_fail(FBX_E_PEER_LOST, "%s died, and its memory with it", f->node_facts[f->region_facts[region].node].name);
    int status = away ? fbxi_call_alloc(f, region, bytes, align, name, out)
                      : fbxi_alloc_here(f, 0, region, bytes, align, name, out);
    if (status || !named || (!away && f->machine == FBXI_DIRECTORY))
        return status;
    snprintf(out->name, sizeof out->name, "%s", name);
    if ((status = name_it(f, out))) {
        struct fbx_error kept = *fbx_last_error();
        if (away)
            fbxi_call_buffer(f, FBXW_FREE, out);
        else
            fbxi_free_here(f, out);
        return fbxi_fail(status, "%s", kept.text);
    }
    return 0;
}

int fbx_alloc(fbx_node *n, uint32_t region, uint64_t bytes, uint64_t align, const char *name, struct fbx_buffer *out)
{
    int status = alloc_somewhere(n, region, bytes, align, name, out);
    if (status != FBX_E_EXISTS || !n->fabric->machines)
        return status;
    /* The directory knows names of other machines' buffers, and not whether these died with their owners: who looks finds out. */
    struct fbx_buffer other;
    const struct fbx_error kept = *fbx_last_error();
    if (fbx_buffer_find(n->fabric, name, &other) == FBX_E_NOT_FOUND)
        return alloc_somewhere(n, region, bytes, align, name, out);
    return fbxi_fail(status, "%s", kept.text);
}

int fbxi_alloc_here(fbx_fabric *f, int for_other, uint32_t region, uint64_t bytes, uint64_t align, const char *name,
                    struct fbx_buffer *out)
{
    int status = usable(f);
    if (!status && region >= f->region_count)
        status = fbxi_fail(FBX_E_NOT_FOUND, "no region %u", region);
    if (!status && name && name[0])
        status = name_check(name);
    if (!status && (!bytes || (align & (align - 1)) || align > 1ull << 30))
        status = fbxi_fail(FBX_E_INVALID, "a buffer of %llu bytes aligned to %llu: sizes start at 1, alignments are powers "
                                          "of two up to 1 GiB", (unsigned long long)bytes, (unsigned long long)align);
    if (status)
        return status;
    if (align < 64)
        align = 64; /* two buffers never share a line */
    struct fbxl_region *r = &f->regions[region];
    const struct fbxl_region *facts = &f->region_facts[region];
    const char *owner = f->node_facts[facts->node].name;
    if (fbx_observe(&f->nodes[facts->node].state) == FBXL_LOST)
        return fbxi_fail(FBX_E_PEER_LOST, "%s died, and its memory with it", owner);
    if (bytes > facts->bytes)
        return fbxi_fail(FBX_E_NO_MEMORY, "%s of %s has %llu bytes in all", facts->tier, owner, (unsigned long long)facts->bytes);
    uint64_t span = (bytes + 63) & ~63ull;

    /* Reserve an entry first; the holder of RESERVED entries is its session, which reclaims them if it dies. */
    if ((status = fbxi_control_lock(f)))
        return status;
    /* Elsewhere than on the directory's machine a name only labels; the directory says whether it is free. */
    const int names = name && name[0] && !fbxi_names_away(f) && !for_other;
    struct fbx_buffer there;
    if (names && (live_name(f, name) || away_name(f, name, &there))) {
        fbxi_control_unlock(f);
        return fbxi_fail(FBX_E_EXISTS, "a buffer '%s' is there already", name);
    }
    uint32_t high = fbxi_high(f, FBXL_BUFFERS), index = 0;
    for (; index < high; index++)
        if (fbx_observe(&f->buffers[index].state) == FBXL_BUFFER_FREE)
            break;
    status = fbxi_table_take(f, FBXL_BUFFERS, index);
    struct fbxl_buffer *b = &f->buffers[index];
    if (!status) {
        b->region = region;
        b->session = f->session;
        b->session_incarnation = f->session_incarnation;
        b->bytes = 0;
        memset(b->name, 0, sizeof b->name);
        fbx_publish(&b->state, FBXL_BUFFER_RESERVED);
    }
    fbxi_control_unlock(f);
    if (status || (status = region_lock(f, region)))
        goto give_up;

    uint64_t at = FBX_FIXED_BYTES;
    fbx_au32 *link = &r->first_buffer;
    uint32_t bound = 0;
    for (struct fbxl_buffer *next; (next = buffer_at(f, fbx_peek(link))) && bound++ < 1u << 24; link = &next->next) {
        while (fbx_observe(&next->state) == FBXL_BUFFER_QUARANTINED && !fbxi_dma_touches(f, region, next->offset, next->bytes)) {
            /* Freed while DMA was under way there, which is over: now it goes. */
            uint32_t after = fbx_peek(&next->next);
            fbx_publish(link, after);
            fbx_count(&r->allocated, 0 - next->bytes);
            fbx_publish(&next->state, FBXL_BUFFER_FREE);
            if (!(next = buffer_at(f, after)))
                break;
        }
        if (!next)
            break;
        uint64_t start = (at + align - 1) & ~(align - 1);
        if (next->offset >= start && next->offset - start >= span)
            break;
        at = next->offset + ((next->bytes + 63) & ~63ull);
    }
    at = (at + align - 1) & ~(align - 1);
    if (at > facts->bytes || bytes > facts->bytes - at) {
        status = fbxi_fail(FBX_E_NO_MEMORY, "%s of %s has no %llu bytes in one piece; %llu of %llu are allocated", facts->tier,
                           owner, (unsigned long long)bytes, (unsigned long long)fbx_peek(&r->allocated),
                           (unsigned long long)facts->bytes);
    } else {
        b->offset = at;
        b->bytes = bytes;
        b->kind = 0;
        fbx_poke(&b->next, fbx_peek(link));
        if (name)
            snprintf(b->name, sizeof b->name, "%s", name);
        fbx_count(&b->generation, 1);
        /* Live before it is in the list: dying in between is found by whoever takes the lock over and rebuilds. */
        fbx_publish(&b->state, FBXL_BUFFER_LIVE);
        fbx_publish(link, index + 1);
        fbx_count(&r->allocated, bytes);
    }
    fbxi_unlock(f, &r->lock);
    if (status)
        goto give_up;
    describe(f, index, out);
    status = fbxi_commit(f, region, at, bytes);
    if (!status && names) {
        status = fbxi_control_lock(f);
        if (!status) {
            struct fbxl_name *e = NULL;
            if (live_name(f, name))
                status = fbxi_fail(FBX_E_EXISTS, "a buffer '%s' is there already", name);
            else if (!(status = name_add(f, name, FBXL_NAME_BUFFER, &e))) {
                fbx_poke(&e->value[0].offset, index);
                name_publish(f, e);
            }
            fbxi_control_unlock(f);
        }
    }
    if (status) {
        struct fbx_error kept = *fbx_last_error();
        memset(b->name, 0, sizeof b->name);
        fbx_free(f, out);
        return fbxi_fail(status, "%s", kept.text);
    }
    names_changed(f);
    return 0;

give_up:
    if (index < high || fbxi_high(f, FBXL_BUFFERS) > index)
        fbx_publish(&b->state, FBXL_BUFFER_FREE);
    return status;
}

static int live(fbx_fabric *f, const struct fbx_buffer *buffer, struct fbxl_buffer **out)
{
    if (buffer->instance != f->identity_of_fabric)
        return fbxi_fail(FBX_E_STALE, "the handle is of another fabric, or of an earlier one of the same name");
    struct fbxl_buffer *b = buffer_at(f, buffer->index + 1);
    if (!b || fbx_observe(&b->state) != FBXL_BUFFER_LIVE || fbx_observe(&b->generation) != buffer->generation ||
        b->region >= f->region_count || b->region != buffer->region || b->offset != buffer->offset ||
        b->bytes != buffer->bytes)
        return fbxi_fail(FBX_E_STALE, "buffer %u.%u was freed", buffer->index, buffer->generation);
    *out = b;
    return 0;
}

int fbx_free(fbx_fabric *f, const struct fbx_buffer *buffer)
{
    const int away = f->machines && buffer->region < f->region_count && fbxi_is_away(f, f->region_facts[buffer->region].node);
    int status = usable(f);
    if (!status)
        status = away ? fbxi_call_buffer(f, FBXW_FREE, buffer) : fbxi_free_here(f, buffer);
    if (!status && f->machines && buffer->name[0])
        unname_it(f, buffer); /* a name that stays leads to what is stale, which whoever finds it removes */
    return status;
}

int fbxi_free_here(fbx_fabric *f, const struct fbx_buffer *buffer)
{
    struct fbxl_buffer *b;
    int status = usable(f);
    if (!status)
        status = live(f, buffer, &b);
    if (status)
        return status;
    if (b->name[0] && !(status = fbxi_control_lock(f))) {
        struct fbxl_name *e = name_find(f, b->name, FBXL_NAME_BUFFER);
        if (e && fbx_peek(&e->value[0].offset) == buffer->index)
            name_remove(f, e);
        fbxi_control_unlock(f);
    }
    if (!status)
        status = region_lock(f, b->region);
    if (status)
        return status;
    struct fbxl_region *r = &f->regions[b->region];
    if ((status = live(f, buffer, &b))) { /* another was faster */
        fbxi_unlock(f, &r->lock);
        return status;
    }
    if (fbxi_dma_touches(f, b->region, b->offset, b->bytes)) {
        /* Stale for everybody, yet nobody else's: alloc takes it out of the list once the DMA is over. */
        fbx_count(&b->generation, 1);
        fbx_publish(&b->state, FBXL_BUFFER_QUARANTINED);
        fbxi_unlock(f, &r->lock);
        names_changed(f);
        return 0;
    }
    fbx_au32 *link = &r->first_buffer;
    uint32_t bound = 0;
    for (struct fbxl_buffer *at; (at = buffer_at(f, fbx_peek(link))) && bound++ < 1u << 24; link = &at->next)
        if (at == b) {
            fbx_publish(link, fbx_peek(&b->next));
            break;
        }
    fbx_count(&r->allocated, 0 - b->bytes);
    fbx_count(&b->generation, 1);
    fbx_publish(&b->state, FBXL_BUFFER_FREE);
    fbxi_unlock(f, &r->lock);
    names_changed(f);
    return 0;
}

/* Found by name, but freed since, or gone with its node: the name goes too. */
static int still_there(fbx_fabric *f, const char *name, const struct fbx_buffer *b)
{
    int status = fbx_buffer_check(f, b);
    if (status != FBX_E_STALE)
        return status == FBX_E_PEER_LOST || status == FBX_E_COMPLETION_TIMEOUT ? 0 : status;
    unname_it(f, b);
    return fbxi_fail(FBX_E_NOT_FOUND, "no buffer '%s' in fabric '%s'", name, f->name);
}

int fbx_buffer_find(fbx_fabric *f, const char *name, struct fbx_buffer *out)
{
    if (fbxi_names_away(f) && !usable(f) && !name_check(name)) {
        int found = fbxi_call_find(f, name, out);
        return found ? found : still_there(f, name, out);
    }
    int status = lock_names(f, name);
    if (status)
        return status;
    if (f->machines && !live_name(f, name) && away_name(f, name, out)) {
        fbxi_control_unlock(f);
        /* For another machine (an errand) that machine looks itself: this one must not wait for others here. */
        return f->gateway && fbxi_on_errand ? 0 : still_there(f, name, out);
    }
    struct fbxl_name *e = live_name(f, name);
    struct fbxl_buffer *b = e ? buffer_at(f, (uint32_t)fbx_peek(&e->value[0].offset) + 1) : NULL;
    if (!b) {
        status = fbxi_fail(FBX_E_NOT_FOUND, "no buffer '%s' in fabric '%s'", name, f->name);
    } else {
        describe(f, (uint32_t)(b - f->buffers), out);
    }
    fbxi_control_unlock(f);
    return status;
}

int fbxi_check_here(fbx_fabric *f, const struct fbx_buffer *buffer)
{
    struct fbxl_buffer *b;
    int status = usable(f);
    return status ? status : live(f, buffer, &b);
}

int fbx_buffer_check(fbx_fabric *f, const struct fbx_buffer *buffer)
{
    if (f->machines && buffer->region < f->region_count && fbxi_is_away(f, f->region_facts[buffer->region].node) && !usable(f))
        return fbxi_call_buffer(f, FBXW_CHECK, buffer);
    return fbxi_check_here(f, buffer);
}

int fbx_buffer_list(fbx_fabric *f, uint32_t *cursor, struct fbx_buffer *out)
{
    int status = usable(f);
    uint32_t high = fbxi_high(f, FBXL_BUFFERS);
    for (; !status && *cursor < high; ++*cursor)
        if (fbx_observe(&f->buffers[*cursor].state) == FBXL_BUFFER_LIVE) {
            describe(f, (*cursor)++, out);
            return 0;
        }
    return status ? status : FBX_E_NOT_FOUND;
}
