/* SPDX-License-Identifier: Apache-2.0
 *
 * The machines of a fabric, as this one sees them. Who is lost, and what is changed of the fabric as a whole, is said by its agent;
 * what follows from it is here. */
#include "call.h"
#include "change.h"
#include "link.h"
#include "ntb.h"

#include <time.h>

_Static_assert(FBXW_VERSION == FBX_WIRE_VERSION, "agents admit whose frames are understood");

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
    out->epoch = fbx_peek(&f->machines->epoch[machine]);
    out->windows = out->here ? fbx_peek(&f->machines->windows) : 0;
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

int fbx_machine_epoch(fbx_fabric *f, uint32_t machine, uint64_t epoch)
{
    int status = machine_ok(f, machine);
    if (!status)
        fbx_poke(&f->machines->epoch[machine], epoch);
    return status;
}

/* BUSY comes from two places: before anything was done, and after all of it was, if somebody does not let go. */
static int is_made(fbx_fabric *f, const struct fbx_change *c)
{
    uint64_t value[FBX_LINK_KEYS];
    switch (c->what) {
    case FBX_CHANGE_LINK: return !fbx_observe(&f->links[c->index].state) == !!c->value[0];
    case FBX_CHANGE_NTB: return !fbx_observe(&f->nodes[c->index].ntb_down) == !c->value[0];
    case FBX_CHANGE_CONFIGURE:
        fbxi_link_current(f, c->index, value);
        for (uint32_t key = 0; key < FBX_LINK_KEYS; key++)
            if (value[key] != (c->keys >> key & 1 ? c->value[key] : c->keys ? value[key] : f->link_facts[c->index].value[key]))
                return 0;
        return 1;
    default: return 0;
    }
}

int fbx_change_make(fbx_fabric *f, const struct fbx_change *c, int *made)
{
    const uint64_t *v = c->value;
    int status;
    *made = 0;
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    const int of_node = c->what != FBX_CHANGE_LINK && c->what != FBX_CHANGE_CONFIGURE;
    if (c->index >= (of_node ? f->node_count : f->link_count))
        return fbxi_fail(FBX_E_NOT_FOUND, "no %s %u", of_node ? "node" : "link", c->index);
    switch (c->what) {
    case FBX_CHANGE_LINK: status = fbxi_link_set_here(f, c->index, v[0] != 0); break;
    case FBX_CHANGE_CONFIGURE: status = fbxi_link_configure_here(f, c->index, c->keys, v); break;
    case FBX_CHANGE_NTB: status = fbxi_ntb_set_here(f, c->index, v[0] != 0); break;
    case FBX_CHANGE_WINDOW:
    case FBX_CHANGE_WINDOW_CLEAR:
        if (fbxi_is_away(f, c->index))
            return fbxi_fail(FBX_E_INVALID, "the windows of %s are not at home here", f->node_facts[c->index].name);
        if (v[0] > UINT32_MAX || (c->what == FBX_CHANGE_WINDOW && (v[1] > UINT32_MAX || v[4] > 0xff || v[5] > 0xff)))
            return fbxi_fail(FBX_E_INVALID, "these are no values of a window");
        status = c->what == FBX_CHANGE_WINDOW ? fbxi_mw_set_here(f, c->index, (uint32_t)v[0], (uint32_t)v[1], v[2], v[3], (int)v[4], (int)v[5])
                                              : fbxi_mw_clear_here(f, c->index, (uint32_t)v[0]);
        break;
    default: return fbxi_fail(FBX_E_UNSUPPORTED, "change %u is none", c->what);
    }
    *made = !status || (status == FBX_E_BUSY && is_made(f, c));
    return status;
}
