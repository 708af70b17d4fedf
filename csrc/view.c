/* SPDX-License-Identifier: Apache-2.0
 *
 * Raw views: the bytes behind an address, mapped, for programs that look at them without operations, untimed.
 */
#include "internal.h"
#include "journey.h"

#include <sys/mman.h>

int fbx_map(fbx_node *n, uint64_t gva, uint64_t bytes, void **out, int *writable)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_xl x;
    uint64_t offset;
    int status = fbxi_usable(n, FBX_OTHER, gva);
    if (!status && !bytes)
        status = fbxi_fail(FBX_E_INVALID, "a view of no bytes");
    if (!status)
        status = fbxi_resolve(n, gva, bytes, 0, &x, &offset);
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
