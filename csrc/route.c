/* SPDX-License-Identifier: Apache-2.0
 *
 * The way from node to node: fewest links, then least delay, then the order in the topology; the same in every process
 * because it is computed from what never changes: what links were described as, not what they are set to. Links that are
 * down stay on the way: PCIe does not route around them.
 */
#include "link.h"

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
 * least delay wins, and of equals the first. Traffic passes through switches only; other nodes end a way. `taken`: links
 * that are not to be used, by index; NULL for none. */
static uint32_t *grow(const fbx_fabric *f, uint32_t source, const uint8_t *taken)
{
    uint32_t *t = malloc(f->node_count * sizeof *t);
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
                uint64_t d = delay[node] + f->link_facts[direction / 2].value[FBX_LINK_DELAY_PS] +
                             (f->node_facts[to].kind == FBXL_SWITCH ? f->node_facts[to].delay_ps : 0);
                if (taken && taken[direction / 2])
                    continue;
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
    } else {
        free(t);
        t = NULL;
    }
    free(queue);
    free(hops);
    free(delay);
    return t;
}

static uint32_t *tree(fbx_fabric *f, uint32_t source)
{
    uint32_t *t = fbx_observe_pointer(&f->trees[source]);
    if (t)
        return t;
    pthread_mutex_lock(&f->mutex);
    if (!f->trees[source] && (t = grow(f, source, NULL)))
        fbx_publish_pointer(&f->trees[source], t);
    t = f->trees[source];
    pthread_mutex_unlock(&f->mutex);
    return t;
}

static int follow(const fbx_fabric *f, uint32_t source, uint32_t target, const uint32_t *t, uint32_t *directions, uint32_t *length)
{
    uint32_t count = 0;
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

/* Between machines: what is at home at the source is reserved there, all else where the operation executes. */
int fbxi_elsewhere(const fbx_fabric *f, uint32_t source, uint32_t target, uint32_t link)
{
    const uint32_t home = f->node_facts[source].machine;
    return f->machines && home != f->node_facts[target].machine && (f->link_facts[link].home == home) != (home == f->machine);
}

int fbxi_way(fbx_fabric *f, uint32_t source, uint32_t target, uint32_t path, uint32_t *directions, uint32_t *length)
{
    const uint32_t *t = tree(f, source);
    if (!t)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    int status = follow(f, source, target, t, directions, length);
    uint8_t *taken = path && !status ? calloc(f->link_count + 1u, 1) : NULL;
    if (path && !status && !taken)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    for (uint32_t p = 1; p <= path && !status; p++) {
        for (uint32_t i = 0; i < *length; i++)
            taken[directions[i] / 2] = 1;
        uint32_t *other = grow(f, source, taken);
        status = !other ? fbxi_fail(FBX_E_NO_MEMORY, "no memory") : follow(f, source, target, other, directions, length);
        free(other);
        if (status == FBX_E_UNSUPPORTED)
            status = fbxi_fail(FBX_E_INVALID, "path %u: there %s %u from %s to %s that share%s no link", path, p == 1 ? "is" : "are", p,
                               f->node_facts[source].name, f->node_facts[target].name, p == 1 ? "s" : "");
    }
    free(taken);
    return status;
}

int fbxi_route_changed(const fbx_fabric *f, const struct fbxi_route *route)
{
    for (uint32_t i = 0; i < route->hops; i++)
        /* Pairs with: the publish in write_setting(). Breaks: figures of a setting that is not in force any more. */
        if (fbx_observe(&f->links[route->hop[i].direction / 2].which) != fbx_peek(&route->hop[i].which))
            return 1;
    return 0;
}

int fbxi_route_refresh(fbx_fabric *f, struct fbxi_route *route)
{
    uint32_t mps = 4096, mrrs = 4096;
    uint64_t fixed_ps = 0;
    for (uint32_t i = 0; i < route->hops; i++) {
        struct fbxi_hop *hop = &route->hop[i];
        const struct fbxi_figures *out, *back;
        uint64_t which, again;
        int status = fbxi_figures(f, hop->direction ^ 1, &back, &again);
        if (!status)
            status = fbxi_figures(f, hop->direction, &out, &which);
        if (status)
            return status;
        fbx_publish_pointer(&hop->out_figures, out);
        fbx_publish_pointer(&hop->back_figures, back);
        fbx_poke(&hop->which, which == again ? which : again); /* changed in between: look again soon */
        fixed_ps += hop->elsewhere == 1 ? 0 : out->delay_ps;
        if (!out->ethernet) {
            mps = out->mps < mps ? out->mps : mps;
            mrrs = out->mrrs < mrrs ? out->mrrs : mrrs;
        } else if (!i) {
            mps = mps == 4096 ? 256 : mps;
            mrrs = mrrs == 4096 ? 512 : mrrs;
        }
    }
    fbx_poke(&route->mps, mps);
    fbx_poke(&route->mrrs, mrrs);
    fbx_poke(&route->fixed_ps, fixed_ps);
    fbx_count(&route->version, 1);
    return 0;
}

int fbxi_route_build(fbx_fabric *f, uint32_t source, uint32_t target, uint32_t path, struct fbxi_route *route)
{
    uint32_t count, directions[FBX_MAX_HOPS];
    int failed = fbxi_way(f, source, target, path, directions, &count);
    if (failed)
        return failed;
    memset(route, 0, sizeof *route);
    route->target = target;
    route->path = path;
    route->hops = count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t direction = directions[count - 1 - i];
        route->hop[i].direction = direction;
        route->hop[i].out = &f->directions[direction];
        route->hop[i].back = &f->directions[direction ^ 1];
        route->hop[i].elsewhere = (uint32_t)fbxi_elsewhere(f, source, target, direction / 2);
    }
    return fbxi_route_refresh(f, route);
}
