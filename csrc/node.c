/* SPDX-License-Identifier: Apache-2.0
 *
 * Being a node: taking its owner slot or a client slot, lanes for threads, and giving all of it back.
 */
#include "change.h"
#include "dma_queue.h"
#include "event.h"
#include "internal.h"
#include "ntb.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int take_lane(fbx_fabric *f, uint32_t requester, fbx_au32 **out)
{
    int status = fbxi_control_lock(f);
    if (status)
        return status;
    uint32_t high = fbxi_high(f, FBXL_LANES), i = 0;
    while (i < high && fbx_observe(&f->lanes[i].requester))
        i++;
    status = fbxi_table_take(f, FBXL_LANES, i);
    if (!status) {
        fbx_poke(&f->lanes[i].in_operation, 0);
        fbx_publish(&f->lanes[i].requester, requester + 1);
        *out = &f->lanes[i].in_operation;
    }
    fbxi_control_unlock(f);
    return status;
}

static void release_lane(fbx_fabric *f, const fbx_au32 *in_operation)
{
    uint64_t index = ((uintptr_t)in_operation - (uintptr_t)f->lanes) / sizeof *f->lanes;
    if (index < f->capacity[FBXL_LANES])
        fbx_publish(&f->lanes[index].requester, 0);
}

fbx_au32 *fbxi_lane(fbx_node *n)
{
    const void *me = fbxi_thread();
    if (n->home == me || fbx_peek(&n->fabric->forked))
        return n->lane;
    fbx_au32 *found = NULL;
    pthread_mutex_lock(&n->mutex);
    for (struct fbxi_extra_lane *e = n->extra; e; e = e->next)
        if (e->thread == me)
            found = e->lane;
    if (!found && !fbx_peek(&n->closed)) {
        struct fbxi_extra_lane *e = malloc(sizeof *e);
        if (e && !take_lane(n->fabric, n->requester, &e->lane)) {
            e->thread = me;
            e->next = n->extra;
            n->extra = e;
            found = e->lane;
        } else {
            free(e);
        }
    }
    pthread_mutex_unlock(&n->mutex);
    return found;
}

void fbxi_node_forked(fbx_node *n)
{
    n->lane = &n->forked_lane;
    n->generation_seen = UINT64_MAX;
    fbx_poke(&n->closed, 1);
    pthread_mutex_init(&n->mutex, NULL);
}

static int take_slot(fbx_fabric *f, uint32_t node, uint32_t kind, uint32_t *out)
{
    struct fbxl_node *shared = &f->nodes[node];
    uint32_t owner = fbx_observe(&shared->owner);
    if (kind == FBX_OWNER && owner) {
        struct fbxl_requester *r = owner <= fbxi_high(f, FBXL_REQUESTERS) ? &f->requesters[owner - 1] : NULL;
        uint32_t session = r ? fbx_observe(&r->session) - 1 : 0;
        if (r && !fbxi_session_dead(f, session, r->session_incarnation))
            return fbxi_fail(FBX_E_EXISTS, "%s is attached already, by process %u", f->node_facts[node].name, f->sessions[session].pid);
    }
    uint32_t high = fbxi_high(f, FBXL_REQUESTERS), i = 0, function = 0;
    while (i < high && fbx_observe(&f->requesters[i].state) != FBXL_FREE)
        i++;
    /* The owner is function 0; a client takes the lowest other number that no handle of the node has. */
    function = kind != FBX_OWNER;
    for (uint32_t k = 0; kind != FBX_OWNER && k < high;) {
        const struct fbxl_requester *other = &f->requesters[k++];
        if (fbx_observe(&other->state) != FBXL_FREE && other->node == node && other->function == function) {
            function++;
            k = 0;
        }
    }
    int status = fbxi_table_take(f, FBXL_REQUESTERS, i);
    if (status)
        return status;
    struct fbxl_requester *r = &f->requesters[i];
    r->node = node;
    r->kind = kind;
    r->function = function;
    r->session_incarnation = f->session_incarnation;
    fbx_poke(&r->proxy_of, 0);
    fbx_poke(&r->session, f->session + 1);
    fbx_poke(&r->dropped, 0);
    fbx_add(&r->incarnation, 1);
    fbx_add(&r->generation, 1);
    if (!fbx_peek(&r->dependencies)) {
        uint64_t offset;
        if ((status = fbxi_heap(f, (f->link_count + f->node_count + 63u) / 64u * 8u, &offset)))
            return status;
        fbx_publish(&r->dependencies, offset);
    }
    if ((f->flags & (FBXL_TIMING | FBXL_COUNTED)) == FBXL_TIMING && !fbx_peek(&r->stats)) { /* nothing counted is ever late */
        uint64_t offset;
        if ((status = fbxi_heap(f, sizeof(struct fbxl_stats), &offset)))
            return status;
        fbx_publish(&r->stats, offset);
    }
    fbx_publish(&r->state, FBXL_LIVE);
    *out = i;
    return 0;
}

static int owner_died(fbx_fabric *f, uint32_t node)
{
    uint32_t owner = fbx_observe(&f->nodes[node].owner);
    if (!owner || owner > fbxi_high(f, FBXL_REQUESTERS))
        return 0;
    const struct fbxl_requester *r = &f->requesters[owner - 1];
    return fbxi_session_dead(f, fbx_observe(&r->session) - 1, r->session_incarnation);
}

/* What the last owner left is gone with its power: its buffers are free again and handles to them stale. */
static void power_on(fbx_fabric *f, uint32_t node)
{
    fbxi_ntb_reset(f, node);
    uint32_t high = fbxi_high(f, FBXL_BUFFERS);
    for (uint32_t i = 0; i < high; i++) {
        struct fbxl_buffer *b = &f->buffers[i];
        if (fbx_observe(&b->state) == FBXL_BUFFER_LIVE && b->region < f->region_count &&
            f->region_facts[b->region].node == node) {
            fbx_poke(&f->regions[b->region].list_broken, 1);
            fbx_count(&f->regions[b->region].allocated, 0 - b->bytes);
            fbx_count(&b->generation, 1);
            fbx_publish(&b->state, FBXL_BUFFER_FREE);
        }
    }
}

static int attach(fbx_fabric *f, const char *name, int kind, uint32_t proxy, fbx_node **out)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric's handle is closed");
    if (fbx_peek(&f->header->state) & FBXL_CLOSED)
        return fbxi_fail(FBX_E_CLOSED, "fabric '%s' has been taken down", f->name);
    int index = fbx_node_find(f, name);
    if (index < 0)
        return index;
    struct fbxl_node *shared = &f->nodes[index];
    if (!proxy && fbxi_is_away(f, (uint32_t)index))
        return fbxi_fail(FBX_E_INVALID, "%s lives on machine %s: a process there can be it, not one here", name,
                         f->machines->of[f->node_facts[index].machine].name);
    /* An owner that died is buried first: its peers must learn of it, and its memory is gone. */
    for (int i = 0; i < 1000 && owner_died(f, (uint32_t)index); i++)
        if (!fbxi_reap(f)) {
            struct timespec nap = {0, 1000000}; /* another is at it */
            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
        }
    if (f->node_facts[index].kind == FBXL_SWITCH)
        return fbxi_fail(FBX_E_INVALID, "%s is a switch: no process can be it", name);
    /* Its device comes up new, on all machines; without a coordinator it stays as all of them have it. */
    if (!proxy && f->machines && fbx_observe(&shared->ntb_down) && fbx_observe(&shared->state) == FBXL_LOST)
        (void)fbxi_change_ask(f, &(struct fbx_change){.what = FBX_CHANGE_NTB, .index = (uint32_t)index});
    fbx_node *n = calloc(1, sizeof *n);
    if (!n)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    /* Entries of 16 bytes must not straddle lines. */
    n->tlb = aligned_alloc(64, ((f->region_count + 1) * sizeof *n->tlb + 63) & ~63ull);
    n->xl = calloc(f->region_count + 1, sizeof *n->xl);
    n->routes = calloc((size_t)f->node_count * FBX_PATHS, sizeof *n->routes);
    n->used_targets = calloc(f->node_count, sizeof *n->used_targets);
    n->used_target = calloc(f->node_count, 1);
    int status = 0;
    if (n && proxy && (n->proxy_facts = aligned_alloc(64, sizeof *n->proxy_facts))) {
        /* What its processor adds has been added where it is. */
        memcpy(n->proxy_facts, &f->node_facts[index], sizeof *n->proxy_facts);
        n->proxy_facts->pio_read_ps = n->proxy_facts->pio_write_ps = 0;
    }
    if (f->flags & FBXL_TIMING)
        n->tag_free_ps = calloc(1024, sizeof *n->tag_free_ps);
    if ((f->flags & FBXL_TIMING && !n->tag_free_ps) || (proxy && !n->proxy_facts) || !n->tlb || !n->xl || !n->routes || !n->used_targets || !n->used_target)
        status = fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    if (!status && (status = fbxi_control_lock(f)) == 0) {
        if (kind == FBX_ANY)
            kind = fbx_observe(&shared->owner) ? FBX_CLIENT : FBX_OWNER;
        status = take_slot(f, (uint32_t)index, (uint32_t)kind, &n->requester);
        if (!status && kind == FBX_OWNER) {
            if (fbx_observe(&shared->state) == FBXL_LOST)
                power_on(f, (uint32_t)index);
            fbx_add(&shared->incarnation, 1);
            fbx_publish(&shared->owner, n->requester + 1);
            if (fbx_observe(&shared->state) != FBXL_POWERED) {
                fbx_publish(&shared->state, FBXL_POWERED);
                fbxi_invalidate_dependents(f, f->link_count + (uint32_t)index);
            }
        }
        fbxi_control_unlock(f);
        if (!status && (status = take_lane(f, n->requester, &n->lane)))
            fbx_publish(&f->requesters[n->requester].state, FBXL_FREE);
    }
    if (status) {
        free(n->tag_free_ps);
        free(n->tlb);
        free(n->xl);
        free(n->routes);
        free(n->used_targets);
        free(n->used_target);
        free(n->proxy_facts);
        free(n);
        return status;
    }
    memset(n->tlb, 0, (f->region_count + 1) * sizeof *n->tlb);
    n->tlb_count = f->region_count + 1;
    n->fabric = f;
    n->index = (uint32_t)index;
    n->kind = (uint32_t)kind;
    n->shared = shared;
    n->proxy = proxy;
    n->facts = proxy ? n->proxy_facts : &f->node_facts[index];
    n->slot = &f->requesters[n->requester];
    n->incarnation = fbx_peek(&n->slot->incarnation);
    n->generation = &n->slot->generation;
    n->dependencies = fbxi_heap_at(f, fbx_peek(&n->slot->dependencies), (f->link_count + f->node_count + 63u) / 64u * 8u);
    n->stats = proxy ? NULL : fbxi_heap_at(f, fbx_peek(&n->slot->stats), sizeof(struct fbxl_stats));
    n->home = fbxi_thread();
    n->pending = &shared->pending;
    fbxi_dma_clear(f, n->requester);
    n->explicit_fence = (f->flags & FBXL_EXPLICIT_FENCE) != 0;
    if (f->clock.kind == FBX_REAL && f->ordering != FBX_ADVERSARIAL)
        n->may_shorten = f->flags & FBXL_TIMING ? 2 : 1;
    if (f->flags & FBXL_TIMING && !proxy && !fbxi_counts(&f->clock))
        n->binding_ps = n->own_ps = fbxi_calibrate(n);
    pthread_mutex_init(&n->mutex, NULL);
    pthread_mutex_lock(&f->mutex);
    n->next = f->node_list;
    f->node_list = n;
    pthread_mutex_unlock(&f->mutex);
    fbxi_event(f, &(struct fbxi_event){FBX_EVENT_NODE_ATTACHED, n->index, UINT32_MAX, UINT32_MAX, (uint64_t)getpid(), n->kind});
    *out = n;
    return 0;
}

int fbx_node_attach(fbx_fabric *f, const char *name, int kind, fbx_node **out) { return attach(f, name, kind, 0, out); }

int fbxi_proxy_attach(fbx_fabric *f, uint32_t node, fbx_node **out)
{
    return attach(f, f->node_facts[node].name, FBX_CLIENT, 1, out);
}

int fbx_node_detach(fbx_node *n)
{
    fbx_fabric *f = n->fabric;
    if (fbx_peek(&n->closed))
        return 0;
    pthread_mutex_lock(&n->mutex);
    fbx_poke(&n->closed, 1);
    pthread_mutex_unlock(&n->mutex);
    if (fbx_peek(&f->forked))
        return 0;
    fbxi_dma_detach(n);
    fbxi_peers_close(n);
    /* Another thread may be in the middle of an operation: its next look at the generation sends it to `closed`. */
    fbx_add(n->generation, 1);
    fbxi_membarrier(f);
    for (struct fbxi_extra_lane *e = n->extra; e; e = e->next)
        while (fbx_observe(e->lane))
            fbx_relax();
    if (n->home != fbxi_thread())
        for (int i = 0; fbx_observe(n->lane) && i < 100000000; i++)
            fbx_relax();
    fbxi_publish_counts(n);
    if (n->kind == FBX_OWNER && fbx_observe(&n->shared->owner) == n->requester + 1)
        fbx_publish(&n->shared->owner, 0); /* switched off in order: its memory stays powered */
    fbx_publish(&n->slot->state, FBXL_FREE);
    release_lane(f, n->lane);
    for (struct fbxi_extra_lane *e = n->extra; e; e = e->next)
        release_lane(f, e->lane);
    n->lane = &n->forked_lane;
    fbxi_event(f, &(struct fbxi_event){FBX_EVENT_NODE_DETACHED, n->index, UINT32_MAX, UINT32_MAX, (uint64_t)getpid(), n->kind});
    return 0;
}

void fbx_node_free(fbx_node *n)
{
    if (!n)
        return;
    fbx_node_detach(n);
    fbx_fabric *f = n->fabric;
    pthread_mutex_lock(&f->mutex);
    for (fbx_node **at = &f->node_list; *at; at = &(*at)->next)
        if (*at == n) {
            *at = n->next;
            break;
        }
    pthread_mutex_unlock(&f->mutex);
    fbxi_dma_free(n);
    fbxi_ntb_msi_release(n);
    fbxi_ntb_close(n);
    for (uint32_t i = 0; i < f->node_count * FBX_PATHS; i++)
        free(n->routes[i]);
    while (n->extra) {
        struct fbxi_extra_lane *e = n->extra;
        n->extra = e->next;
        free(e);
    }
    free(n->tag_free_ps);
    free(n->tlb);
    free(n->xl);
    free(n->routes);
    free(n->used_targets);
    free(n->used_target);
    free(n->proxy_facts);
    pthread_mutex_destroy(&n->mutex);
    free(n);
}

uint32_t fbx_node_index(const fbx_node *n) { return n->index; }
int fbx_node_is_owner(const fbx_node *n) { return n->kind == FBX_OWNER; }

int fbx_set_binding_cost(fbx_node *n, uint64_t ps)
{
    if (ps > 1000000)
        return fbxi_fail(FBX_E_INVALID, "a binding that costs more than a microsecond was measured wrongly");
    n->binding_ps = n->own_ps + ps;
    return 0;
}
