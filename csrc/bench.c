/* SPDX-License-Identifier: Apache-2.0
 *
 * Timing operations from inside C, where no binding's cost hides theirs.
 */
#include "internal.h"

/* What two looks at the clock measure with nothing between them is not the operation's. */
static uint64_t nothing(const fbx_fabric *f)
{
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 200; i++) {
        uint64_t a = fbxi_now(&f->clock), b = fbxi_now(&f->clock);
        if (b - a < least)
            least = b - a;
    }
    return least;
}

int fbx_bench(fbx_node *n, int kind, const uint64_t *gvas, uint64_t gva_count, uint64_t bytes, uint64_t count,
              uint64_t *samples_ps, uint64_t *total_ps)
{
    fbx_fabric *f = n->fabric;
    if (!gva_count || !count || (kind != FBX_READ && kind != FBX_WRITE && bytes > 8))
        return fbxi_fail(FBX_E_INVALID, "nothing to measure");
    static _Thread_local uint8_t scratch[1 << 16] __attribute__((aligned(64)));
    if ((kind == FBX_READ || kind == FBX_WRITE) && bytes > sizeof scratch)
        return fbxi_fail(FBX_E_INVALID, "at most %zu bytes", sizeof scratch);
    uint64_t value = 0, gva = gvas[0];
    const uint32_t size = (uint32_t)bytes;
    const uint64_t empty = samples_ps ? nothing(f) : 0;
    const uint64_t binding = n->binding_ps;
    n->binding_ps = n->own_ps;
    const uint64_t begin = fbxi_now(&f->clock);
    int status = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t before = samples_ps ? fbxi_now(&f->clock) : 0;
        switch (kind) {
        case FBX_LOAD: status = fbx_load(n, gva, size, &value); break;
        case FBX_STORE: status = fbx_store(n, gva, size, i & 0xff); break;
        case FBX_FETCH_ADD: status = fbx_fetch_add(n, gva, size, 1, &value); break;
        case FBX_READ: status = fbx_read(n, gva, scratch, bytes); break;
        case FBX_WRITE: status = fbx_write(n, gva, scratch, bytes); break;
        case FBX_FLUSH: status = fbx_flush(n, UINT32_MAX, 0); break;
        case FBX_WAIT: /* a chase: each value is the address of the next load */
            status = fbx_load(n, gva, 8, &value);
            gva = value;
            break;
        default: status = fbxi_fail(FBX_E_INVALID, "operation %d cannot be measured", kind);
        }
        if (status)
            break;
        if (samples_ps) {
            uint64_t took = fbxi_now(&f->clock) - before;
            samples_ps[i] = took > empty ? took - empty : 0;
        }
        if (gva_count > 1 && kind != FBX_WAIT)
            gva = gvas[(i + 1) % gva_count];
    }
    *total_ps = fbxi_now(&f->clock) - begin;
    n->binding_ps = binding;
    return status;
}

int fbx_bench_dma(fbx_node *n, const struct fbx_dma *d, uint32_t depth, uint64_t count, uint64_t *samples_ps, uint64_t *total_ps)
{
    fbx_fabric *f = n->fabric;
    uint64_t ids[FBX_DMA_QUEUE_LIMIT];
    if (!count || !depth || depth > FBX_DMA_QUEUE_LIMIT)
        return fbxi_fail(FBX_E_INVALID, "a depth of %u: 1 to %u", depth, FBX_DMA_QUEUE_LIMIT);
    const uint64_t empty = samples_ps ? nothing(f) : 0, binding = n->binding_ps;
    n->binding_ps = n->own_ps;
    const uint64_t begin = fbxi_now(&f->clock);
    uint64_t submitted = 0, ended = 0;
    int status = 0;
    while (!status && ended < count) {
        while (submitted < count && submitted - ended < depth) {
            uint64_t before = samples_ps ? fbxi_now(&f->clock) : 0;
            if ((status = fbx_dma_submit(n, d, &ids[submitted % depth])))
                break;
            if (depth == 1)
                status = fbx_dma_wait(n, ids[0], UINT64_MAX);
            if (samples_ps) {
                uint64_t took = fbxi_now(&f->clock) - before;
                samples_ps[submitted] = took > empty ? took - empty : 0;
            }
            submitted++;
        }
        if (submitted == ended)
            break;
        int waited = fbx_dma_wait(n, ids[ended % depth], UINT64_MAX);
        fbx_dma_release(n, ids[ended++ % depth]);
        status = status ? status : waited;
    }
    for (; ended < submitted; ended++) {
        fbx_dma_cancel(n, ids[ended % depth]);
        fbx_dma_release(n, ids[ended % depth]);
    }
    *total_ps = fbxi_now(&f->clock) - begin;
    n->binding_ps = binding;
    return status;
}
