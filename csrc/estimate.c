/* SPDX-License-Identifier: Apache-2.0
 *
 * Asking the model: what an operation would take where nothing else is under way; and how closely those that were made kept to
 * what the model said.
 */
#include "internal.h"
#include "journey.h"
#include "tier.h"
#include "timing.h"

int fbx_estimate(fbx_node *n, int kind, uint64_t gva, uint64_t bytes, struct fbx_estimate *out)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_xl x;
    uint64_t offset;
    memset(out, 0, sizeof *out);
    int status = fbxi_usable(n, kind, gva);
    const int dma = kind == FBX_DMA_READ || kind == FBX_DMA_WRITE;
    if (!status && (kind < 0 || (kind > FBX_CAS && !dma) || !bytes))
        status = fbxi_fail(FBX_E_INVALID, "no estimate for operation %d of %llu bytes", kind, (unsigned long long)bytes);
    if (!status)
        status = fbxi_resolve(n, gva, 1, 0, &x, &offset);
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
