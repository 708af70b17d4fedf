/* SPDX-License-Identifier: Apache-2.0
 *
 * The machines of a fabric, as this one sees them. Who is lost is said by its agent; what follows from it is here. */
#include "machine.h"

#include "call.h"
#include "ntb.h"

#include <time.h>

static int machine_ok(fbx_fabric *f, uint32_t machine)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    if (!f->machines || machine >= f->machine_count)
        return fbxi_fail(FBX_E_NOT_FOUND, "fabric '%s' has %u machines, no machine %u", f->name, f->machines ? f->machine_count : 1, machine);
    return 0;
}

int fbx_machine_info(fbx_fabric *f, uint32_t machine, struct fbx_machine_info *out)
{
    memset(out, 0, sizeof *out);
    int status = machine_ok(f, machine);
    if (status)
        return status;
    struct fbxl_machine *m = &f->machines->of[machine];
    memcpy(out->name, m->name, sizeof out->name);
    out->name[sizeof out->name - 1] = 0;
    out->index = machine;
    out->here = machine == f->machine;
    out->state = fbx_observe(&m->state);
    out->connects = fbx_peek(&m->connects);
    out->frames = fbx_peek(&m->frames);
    out->late = fbx_peek(&m->late);
    out->gave_up = fbx_peek(&m->gave_up);
    out->lost_at_ps = fbx_peek(&m->lost_at_ps);
    out->epoch = fbx_peek(&f->machines->epoch);
    out->clock_offset_ps = (int64_t)fbx_peek(&m->clock_offset);
    const uint64_t quality = fbx_peek(&m->clock_quality);
    out->clock_bound_ns = (uint32_t)(quality >> 32);
    out->clock_drift_ppb = (int32_t)(uint32_t)quality;
    return 0;
}

int fbx_machine_clock(fbx_fabric *f, uint32_t machine, int64_t offset_ps, uint32_t bound_ns, int32_t drift_ppb)
{
    int status = machine_ok(f, machine);
    if (status)
        return status;
    fbx_poke(&f->machines->of[machine].clock_offset, (uint64_t)offset_ps);
    fbx_poke(&f->machines->of[machine].clock_quality, (uint64_t)bound_ns << 32 | (uint32_t)drift_ppb);
    return 0;
}

int fbx_node_set(fbx_fabric *f, uint32_t node, int lost)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    if (node >= f->node_count || !fbxi_is_away(f, node))
        return fbxi_fail(FBX_E_INVALID, "the state of node %u is not another machine's to say", node);
    struct fbxl_node *n = &f->nodes[node];
    const uint32_t state = lost ? FBXL_LOST : FBXL_POWERED;
    int status = fbxi_control_lock(f);
    if (status)
        return status;
    const int changed = fbx_observe(&n->state) != state;
    if (changed) {
        if (lost)
            fbx_poke(&n->lost_at_ps, fbxi_now(&f->clock));
        /* Pairs with: fbx_observe(&node->state) where routes are resolved. Breaks: loads from a lost machine succeed. */
        fbx_publish(&n->state, state);
        status = fbxi_invalidate_dependents(f, f->link_count + node);
    }
    fbxi_control_unlock(f);
    if (changed) {
        fbxi_ntb_links_changed(f, UINT32_MAX, node);
        fbx_add(&f->header->names_changed, 1);
        fbxi_futex_wake(&f->header->names_changed);
    }
    return status;
}

int fbx_machine_set(fbx_fabric *f, uint32_t machine, int state)
{
    int status = machine_ok(f, machine);
    if (!status && (machine == f->machine || state < FBX_MACHINE_UP || state > FBX_MACHINE_LOST))
        status = fbxi_fail(FBX_E_INVALID, "machine %u cannot be set to state %d", machine, state);
    if (status)
        return status;
    struct fbxl_machine *m = &f->machines->of[machine];
    if (fbx_observe(&m->state) == (uint32_t)state)
        return 0;
    fbx_poke(&m->lost_at_ps, state ? fbxi_now(&f->clock) : 0);
    fbx_add(&f->machines->epoch, 1);
    /* Pairs with: fbx_observe(&machine->state) of those who wait for its answers. Breaks: they wait on. */
    fbx_publish(&m->state, (uint32_t)state);
    for (uint32_t i = 0; i < f->node_count; i++)
        if (f->node_facts[i].machine == machine && f->node_facts[i].kind != FBXL_SWITCH) {
            int failed = fbx_node_set(f, i, state);
            status = status ? status : failed;
        }
    return status;
}

int fbx_machine_ping(fbx_fabric *f, uint32_t machine, uint64_t max_wait_ns, uint64_t *their_ps, uint64_t *round_trip_ps)
{
    struct fbxw_frame w = {.what = FBXW_PING};
    int status = machine_ok(f, machine);
    if (!status && machine == f->machine)
        status = fbxi_fail(FBX_E_INVALID, "machine %u is this one", machine);
    if (status)
        return status;
    uint64_t before = fbxi_now(&f->clock);
    if ((status = fbxi_call(f, NULL, machine, &w, NULL, 0, NULL, NULL, max_wait_ns)))
        return status;
    *round_trip_ps = fbxi_now(&f->clock) - before;
    *their_ps = w.value;
    return w.status;
}

/* ---- changes that all machines make ------------------------------------------------------------------------------------ */

int fbxi_apply(fbx_fabric *f, uint32_t what, uint32_t index, uint64_t value)
{
    fbx_add(&f->machines->epoch, 1);
    if (what == FBXW_NTB_LINK)
        return index < f->node_count ? fbxi_ntb_set_here(f, index, value != 0) : fbxi_fail(FBX_E_NOT_FOUND, "no node %u", index);
    return fbxi_link_set_here(f, index, value != 0);
}

int fbxi_change(fbx_fabric *f, uint32_t what, uint32_t index, uint64_t value)
{
    int status = fbxi_apply(f, what, index, value);
    for (uint32_t m = 0; m < f->machine_count; m++) {
        struct fbxw_frame w = {.what = FBXW_LINK_APPLY, .address = what, .aux = index, .value = value};
        if (m == f->machine || fbx_observe(&f->machines->of[m].state) == FBXL_MACHINE_LOST)
            continue;
        uint8_t text[256];
        uint32_t room = sizeof text;
        int failed = fbxi_call(f, NULL, m, &w, NULL, 0, text, &room, 4 * FBX_STALL_NS);
        /* One that is lost meanwhile is cut off anyway. */
        if (failed == FBX_E_PEER_LOST || fbx_observe(&f->machines->of[m].state) == FBXL_MACHINE_LOST)
            continue;
        if (!failed && w.status)
            failed = fbxi_fail(fbx_error_name(w.status) ? w.status : FBX_E_CORRUPT, "machine %s: %.*s", f->machines->of[m].name, (int)room, text);
        status = status ? status : failed;
    }
    return status;
}

int fbxi_change_everywhere(fbx_fabric *f, uint32_t what, uint32_t index, uint64_t value)
{
    if (f->machine == FBXI_DIRECTORY)
        return fbxi_change(f, what, index, value);
    struct fbxw_frame w = {.what = (uint16_t)(what == FBXW_LINK_APPLY ? FBXW_LINK : what), .aux = index, .value = value};
    uint8_t text[256];
    uint32_t room = sizeof text;
    int status = fbxi_call(f, NULL, FBXI_DIRECTORY, &w, NULL, 0, text, &room, FBXI_CALL_NS);
    if (!status && w.status)
        status = fbxi_fail(fbx_error_name(w.status) ? w.status : FBX_E_CORRUPT, "%.*s", (int)room, text);
    return status;
}
