/* SPDX-License-Identifier: Apache-2.0
 *
 * The way from node to node: fewest links, then least delay, then the order in the topology; the same in every process
 * because it is computed from what never changes. Links that are down stay on the way: PCIe does not route around them.
 */
#include "internal.h"
#include "timing.h"

#include <stdlib.h>

int fbxi_routes_init(fbx_fabric *f)
{
    f->adjacent_first = calloc(f->node_count + 2u, sizeof *f->adjacent_first);
    f->adjacent = calloc((size_t)f->link_count * 2 + 1, sizeof *f->adjacent);
    if (!f->adjacent_first || !f->adjacent)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    for (uint32_t i = 0; i < f->link_count * 2; i++)
        f->adjacent_first[f->link_facts[i / 2].node[i & 1] + 2]++;
    for (uint32_t i = 2; i < f->node_count + 2; i++)
        f->adjacent_first[i] += f->adjacent_first[i - 1];
    for (uint32_t i = 0; i < f->link_count * 2; i++) /* direction i leaves node[i & 1] */
        f->adjacent[f->adjacent_first[f->link_facts[i / 2].node[i & 1] + 1]++] = i;
    return 0;
}

/* tree[node]: the direction by which the way from `source` enters it, or ~0. Breadth first: within one distance the
 * least delay wins, and of equals the first. Traffic passes through switches only; other nodes end a way. */
static uint32_t *tree(fbx_fabric *f, uint32_t source)
{
    uint32_t *t = fbx_observe_pointer(&f->trees[source]);
    if (t)
        return t;
    pthread_mutex_lock(&f->mutex);
    t = f->trees[source];
    if (!t) {
        t = malloc(f->node_count * sizeof *t);
        uint32_t *queue = malloc(f->node_count * sizeof *queue), *hops = malloc(f->node_count * sizeof *hops);
        uint64_t *delay = malloc(f->node_count * sizeof *delay);
        if (t && queue && hops && delay) {
            for (uint32_t i = 0; i < f->node_count; i++) {
                t[i] = UINT32_MAX;
                hops[i] = UINT32_MAX;
            }
            uint32_t head = 0, last = 0;
            queue[last++] = source;
            hops[source] = 0;
            delay[source] = 0;
            while (head < last) {
                uint32_t node = queue[head++];
                if (node != source && f->node_facts[node].kind != FBXL_SWITCH)
                    continue;
                for (uint32_t k = f->adjacent_first[node]; k < f->adjacent_first[node + 1]; k++) {
                    uint32_t direction = f->adjacent[k], to = f->link_facts[direction / 2].node[!(direction & 1)];
                    uint64_t d = delay[node] + f->direction_facts[direction].delay_ps;
                    if (hops[to] == UINT32_MAX) {
                        queue[last++] = to;
                        hops[to] = hops[node] + 1;
                    } else if (hops[to] != hops[node] + 1 || d >= delay[to]) {
                        continue;
                    }
                    delay[to] = d;
                    t[to] = direction;
                }
            }
            fbx_publish_pointer(&f->trees[source], t);
        } else {
            free(t);
            t = NULL;
        }
        free(queue);
        free(hops);
        free(delay);
    }
    pthread_mutex_unlock(&f->mutex);
    return t;
}

static int calendar(fbx_fabric *f, uint32_t direction, fbx_au64 **out)
{
    struct fbxl_direction *d = &f->directions[direction];
    uint64_t offset = fbx_observe(&d->calendar);
    if (!offset) {
        int status = fbxi_control_lock(f);
        if (status)
            return status;
        offset = fbx_observe(&d->calendar);
        if (!offset && !(status = fbxi_heap(f, FBX_CAL_SLOTS * 8, &offset)))
            fbx_publish(&d->calendar, offset);
        fbxi_control_unlock(f);
        if (status)
            return status;
    }
    *out = fbxi_heap_at(f, offset, FBX_CAL_SLOTS * 8);
    return *out ? 0 : fbxi_fail(FBX_E_CORRUPT, "a link's calendar lies outside the control segment");
}

int fbxi_way(fbx_fabric *f, uint32_t source, uint32_t target, uint32_t *directions, uint32_t *length)
{
    uint32_t *t = tree(f, source), count = 0;
    if (!t)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    for (uint32_t at = target; at != source; at = f->link_facts[t[at] / 2].node[t[at] & 1]) {
        if (t[at] == UINT32_MAX)
            return fbxi_fail(FBX_E_UNSUPPORTED, "there is no way from %s to %s", f->node_facts[source].name,
                             f->node_facts[target].name);
        if (count == FBX_MAX_HOPS)
            return fbxi_fail(FBX_E_TOPOLOGY, "the way from %s to %s has more than %u links", f->node_facts[source].name,
                             f->node_facts[target].name, FBX_MAX_HOPS);
        directions[count++] = t[at];
    }
    *length = count;
    return 0;
}

int fbxi_route_build(fbx_fabric *f, uint32_t source, uint32_t target, struct fbxi_route *route)
{
    uint32_t count, directions[FBX_MAX_HOPS];
    int failed = fbxi_way(f, source, target, directions, &count);
    if (failed)
        return failed;
    memset(route, 0, offsetof(struct fbxi_route, hop));
    route->target = target;
    route->hops = count;
    route->mps = 4096;
    route->mrrs = 4096;
    route->rcb = 64;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t direction = directions[count - 1 - i];
        const struct fbxl_link *l = &f->link_facts[direction / 2];
        struct fbxi_hop *hop = &route->hop[i];
        memset(hop, 0, sizeof *hop);
        hop->direction = direction;
        hop->out = &f->directions[direction];
        hop->back = &f->directions[direction ^ 1];
        hop->out_facts = &f->direction_facts[direction];
        hop->back_facts = &f->direction_facts[direction ^ 1];
        hop->ethernet = l->kind;
        hop->mtu = l->mtu;
        hop->overhead = l->overhead_bytes;
        /* Between machines: what is at home at the source is reserved there, all else where the operation executes. */
        hop->elsewhere = f->machines && f->node_facts[source].machine != f->node_facts[target].machine &&
                         (l->home == f->node_facts[source].machine) != (f->node_facts[source].machine == f->machine);
        if (!hop->elsewhere)
            route->fixed_ps += hop->out_facts->delay_ps;
        if (!l->kind) {
            if (l->mps < route->mps)
                route->mps = l->mps;
            if (l->mrrs < route->mrrs)
                route->mrrs = l->mrrs;
        }
        if (f->flags & FBXL_TIMING && !hop->elsewhere) {
            int status = calendar(f, direction, &hop->out_calendar);
            if (!status)
                status = calendar(f, direction ^ 1, &hop->back_calendar);
            if (status)
                return status;
        }
    }
    fbxi_route_times(route);
    if (route->mps == 4096 && count && route->hop[0].ethernet)
        route->mps = 256;
    if (route->mrrs == 4096 && count && route->hop[0].ethernet)
        route->mrrs = 512;
    return 0;
}
