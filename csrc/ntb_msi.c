/* SPDX-License-Identifier: Apache-2.0
 *
 * Interrupts by message (MSI), in the manner of the kernel's ntb_msi: a node takes one of its device's free vectors and gets
 * a descriptor of it, an offset and a word; a peer that was told the descriptor writes the word at that offset, as a posted
 * write behind its data. A vector's word changes each time it is given out, so a descriptor of an earlier holder rings
 * nobody. The vectors' state is with the other registers (ntb.c): an interrupt is an edge, pending until it is told.
 *
 * On x86 the messages of a whole host go to one small range of bus addresses. Here each device has such a page, beside its
 * windows: it costs none of them.
 */
#include "ntb.h"

#define PAGE 4096u

static int masked(fbx_node *n, uint32_t which, uint64_t bits)
{
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(n->fabric, n->index);
    const uint64_t valid = p->msis >= 64 ? UINT64_MAX : (1ull << p->msis) - 1;
    struct fbxl_ntb *d;
    if (bits & ~valid)
        return fbxi_fail(FBX_E_INVALID, "0x%llx: %s has %u interrupt vectors for messages", (unsigned long long)bits,
                         n->facts->name, p->msis);
    int status = fbxi_ntb_own_lock(n, &d);
    if (status)
        return status;
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    r.msi_mask = which ? r.msi_mask | bits : r.msi_mask & ~bits;
    fbxi_ntb_put(d, &r);
    fbxi_unlock(n->fabric, &d->lock);
    if (!which && r.msi_pending & bits & r.msi_used) /* unmasked over a pending one: that is an event */
        fbxi_ntb_notify(n->fabric, n->index, d);
    return 0;
}

int fbx_msi_set_mask(fbx_node *n, uint64_t vectors) { return masked(n, 1, vectors); }
int fbx_msi_clear_mask(fbx_node *n, uint64_t vectors) { return masked(n, 0, vectors); }

static int look(fbx_node *n, int mask, uint64_t *vectors)
{
    struct fbxl_ntb *d;
    *vectors = 0;
    int status = fbxi_ntb_own(n, &d);
    if (!status) {
        struct fbxi_ntb_registers r = fbxi_ntb_read(d);
        *vectors = mask ? r.msi_mask : r.msi_pending & r.msi_used;
    }
    return status;
}

int fbx_msi_read_mask(fbx_node *n, uint64_t *vectors) { return look(n, 1, vectors); }
int fbx_msi_read_pending(fbx_node *n, uint64_t *vectors) { return look(n, 0, vectors); }

int fbx_msi_count(fbx_node *n)
{
    int status = fbxi_ntb_usable(n);
    return status ? status : (int)fbxi_ntb_profile(n->fabric, n->index)->msis;
}

/* Is the handle that took the vector still there? */
static int held(fbx_fabric *f, const struct fbxl_ntb *d, uint32_t vector)
{
    uint32_t requester = fbx_peek(&d->msi[vector].requester);
    return requester && requester <= fbxi_high(f, FBXL_REQUESTERS) &&
           fbx_observe(&f->requesters[requester - 1].state) == FBXL_LIVE &&
           fbx_observe(&f->requesters[requester - 1].incarnation) == fbx_peek(&d->msi[vector].incarnation);
}

static int mine(const fbx_node *n, const struct fbxl_ntb *d, uint32_t vector)
{
    return fbx_peek(&d->msi[vector].requester) == n->requester + 1 &&
           fbx_peek(&d->msi[vector].incarnation) == fbx_peek(&n->slot->incarnation);
}

int fbx_msi_request(fbx_node *n, struct fbx_msi_desc *out)
{
    fbx_fabric *f = n->fabric;
    const uint32_t count = fbxi_ntb_profile(f, n->index)->msis;
    struct fbxl_ntb *d;
    int status = fbxi_ntb_own_lock(n, &d);
    if (status)
        return status;
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    uint32_t vector = 0;
    while (vector < count && r.msi_used >> vector & 1 && held(f, d, vector))
        vector++;
    if (vector < count) {
        uint32_t data = fbx_peek(&d->msi[vector].data) + 1;
        fbx_poke(&d->msi[vector].data, data);
        fbx_poke(&d->msi[vector].requester, n->requester + 1);
        fbx_poke(&d->msi[vector].incarnation, fbx_peek(&n->slot->incarnation));
        r.msi_used |= 1ull << vector;
        r.msi_pending &= ~(1ull << vector);
        r.msi_mask &= ~(1ull << vector);
        fbxi_ntb_put(d, &r);
        *out = (struct fbx_msi_desc){vector * 4, data};
    }
    fbxi_unlock(f, &d->lock);
    if (!count)
        return fbxi_fail(FBX_E_INVALID, "the device of %s has no vector for interrupt messages", n->facts->name);
    if (vector == count)
        return fbxi_fail(FBX_E_INVALID, "all %u vectors for interrupt messages of %s are taken", count, n->facts->name);
    return (int)vector;
}

int fbx_msi_free(fbx_node *n, uint32_t vector)
{
    struct fbxl_ntb *d;
    int status = fbxi_ntb_own_lock(n, &d);
    if (status)
        return status;
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    const int ours = vector < FBX_NTB_MSIS && r.msi_used >> vector & 1 && mine(n, d, vector);
    if (ours) {
        r.msi_used &= ~(1ull << vector);
        r.msi_pending &= ~(1ull << vector);
        fbxi_ntb_put(d, &r);
    }
    fbxi_unlock(n->fabric, &d->lock);
    return ours ? 0 : fbxi_fail(FBX_E_INVALID, "this handle of %s holds no interrupt vector %u", n->facts->name, vector);
}

/* A handle that ends leaves its vectors free. One that dies leaves them to the next who needs one. */
void fbxi_ntb_msi_release(fbx_node *n)
{
    fbx_fabric *f = n->fabric;
    struct fbxl_ntb *d = fbx_peek(&f->forked) ? NULL : fbxi_ntb_device(f, n->index);
    if (!d || !fbxi_ntb_read(d).msi_used || fbxi_lock(f, &d->lock, FBX_STALL_NS) < 0)
        return;
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    uint64_t free = 0;
    for (uint32_t v = 0; v < FBX_NTB_MSIS; v++)
        if (r.msi_used >> v & 1 && mine(n, d, v))
            free |= 1ull << v;
    r.msi_used &= ~free;
    r.msi_pending &= ~free;
    if (free)
        fbxi_ntb_put(d, &r);
    fbxi_unlock(f, &d->lock);
}

static int trigger(fbx_node *n, uint32_t pidx, uint32_t offset, uint32_t data)
{
    uint32_t peer;
    int status = fbxi_ntb_reach(n, pidx, &peer);
    if (!status && (offset & 3 || offset >= PAGE))
        status = fbxi_fail(FBX_E_INVALID, "no interrupt message goes to offset 0x%x: they are multiples of 4 below %u", offset,
                           PAGE);
    return status ? status : fbxi_post_register(n, peer, FBXL_ENTRY_MSI, offset, data, 4);
}

int fbx_msi_peer_trigger(fbx_node *n, uint32_t pidx, const struct fbx_msi_desc *desc)
{
    return trigger(n, pidx, desc->addr_offset, desc->data);
}

int fbx_msi_peer_addr(fbx_node *n, uint32_t pidx, const struct fbx_msi_desc *desc, uint64_t *address)
{
    int peer = fbx_peer_node(n, pidx);
    if (peer < 0)
        return peer;
    if (desc->addr_offset & 3 || desc->addr_offset >= PAGE)
        return fbxi_fail(FBX_E_INVALID, "no interrupt message goes to offset 0x%x: they are multiples of 4 below %u",
                         desc->addr_offset, PAGE);
    *address = FBXI_MSI_SPACE << FBXI_MSI_SHIFT | (uint64_t)pidx * PAGE | desc->addr_offset;
    return 0;
}

int fbxi_ntb_store_msi(fbx_node *n, uint64_t address, uint64_t bytes, uint64_t value)
{
    const uint64_t at = address & ((1ull << FBXI_MSI_SHIFT) - 1), pidx = at / PAGE;
    if (bytes != 4)
        return fbxi_fail_at(FBX_E_UNSUPPORTED, FBX_STORE, (int)n->index, address, "an interrupt message is a store of 4 bytes");
    return trigger(n, pidx < UINT32_MAX ? (uint32_t)pidx : UINT32_MAX, at % PAGE, (uint32_t)value);
}
