/* SPDX-License-Identifier: Apache-2.0
 *
 * The requester-ID table of a node's NTB: which functions of this node may send requests across it. Switchtec and IDT have
 * one, in front of the translation; the traffic of a function that is not in it is dropped: posted writes vanish and are
 * counted, everything else ends as an unsupported request. Until somebody writes the table all may pass, as with the drivers,
 * which enter what their host has. Two snapshots and a switch: a process that dies in the middle has changed nothing.
 */
#include "ntb.h"

#define WORDS FBX_NTB_FUNCTION_WORDS
_Static_assert(WORDS * 64 == FBX_NTB_FUNCTIONS, "a bit for each function");
enum { SNAPSHOT = 1, ENFORCED = 2, CHANGE = 4 };

struct table {
    uint64_t which, bits[WORDS];
};

static struct table look(struct fbxl_ntb *d)
{
    struct table t;
    do {
        t.which = fbx_observe(&d->rid_which);
        for (uint32_t i = 0; i < WORDS; i++)
            t.bits[i] = fbx_peek(&(t.which & SNAPSHOT ? d->rid1 : d->rid0)[i]);
        /* A writer fills the other snapshot; only two changes during our read could have touched this one. */
        fbx_fence_sleep();
    } while (fbx_observe(&d->rid_which) != t.which);
    return t;
}

int fbxi_ntb_permits(fbx_fabric *f, uint32_t node, uint32_t function)
{
    struct fbxl_ntb *d = fbxi_ntb_device(f, node);
    if (!d || !(fbx_observe(&d->rid_which) & ENFORCED))
        return 1;
    struct table t = look(d);
    return !(t.which & ENFORCED) || (function < FBX_NTB_FUNCTIONS && t.bits[function / 64] >> (function % 64) & 1);
}

int fbx_rid_count(fbx_node *n)
{
    int status = fbxi_ntb_usable(n);
    return status ? status : (int)fbxi_ntb_profile(n->fabric, n->index)->requesters;
}

int fbx_node_function(fbx_node *n)
{
    int status = fbxi_ntb_usable(n);
    return status ? status : (int)n->slot->function;
}

static int change(fbx_node *n, const uint64_t *bits)
{
    fbx_fabric *f = n->fabric;
    struct fbxl_ntb *d;
    if (!fbxi_ntb_profile(f, n->index)->requesters)
        return fbxi_fail(FBX_E_INVALID, "the device of %s has no requester-ID table", n->facts->name);
    int status = fbxi_ntb_own(n, &d); /* makes it, so before the control lock */
    if (!status)
        status = fbxi_control_lock(f);
    if (status)
        return status;
    uint64_t which = fbx_peek(&d->rid_which), next = (which + CHANGE) ^ SNAPSHOT;
    for (uint32_t i = 0; i < WORDS; i++)
        fbx_poke(&(next & SNAPSHOT ? d->rid1 : d->rid0)[i], bits ? bits[i] : 0);
    next = bits ? next | ENFORCED : next & ~(uint64_t)ENFORCED;
    /* Pairs with: fbx_observe(&d->rid_which) in look(). Breaks: half of one table and half of another. */
    fbx_publish(&d->rid_which, next);
    /* When this has returned nobody uses what it found in the old table any more. */
    status = fbxi_invalidate_node_routes(f, n->index);
    fbxi_control_unlock(f);
    return status;
}

int fbx_rid_open(fbx_node *n) { return change(n, NULL); }

int fbx_rid_set(fbx_node *n, const uint32_t *functions, uint32_t count)
{
    const uint32_t room = fbxi_ntb_profile(n->fabric, n->index)->requesters;
    uint64_t bits[WORDS] = {0};
    if (room && count > room)
        return fbxi_fail(FBX_E_INVALID, "the requester-ID table of %s has %u entries, not %u", n->facts->name, room, count);
    for (uint32_t i = 0; i < count; i++) {
        if (functions[i] >= FBX_NTB_FUNCTIONS)
            return fbxi_fail(FBX_E_INVALID, "requester functions are below %u, not %u", FBX_NTB_FUNCTIONS, functions[i]);
        bits[functions[i] / 64] |= 1ull << (functions[i] % 64);
    }
    return change(n, bits);
}

int fbx_rid_get(fbx_node *n, uint32_t *functions, uint32_t room)
{
    struct fbxl_ntb *d;
    uint32_t count = 0;
    int status = fbxi_ntb_own(n, &d);
    if (status)
        return status;
    struct table t = look(d);
    if (!(t.which & ENFORCED))
        return FBX_E_NOT_FOUND;
    for (uint32_t i = 0; i < FBX_NTB_FUNCTIONS; i++)
        if (t.bits[i / 64] >> (i % 64) & 1 && count++ < room)
            functions[count - 1] = i;
    return (int)count;
}
