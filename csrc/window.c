/* SPDX-License-Identifier: Apache-2.0
 *
 * Device profiles and windows: which part of which peer's bus a node's apertures show.
 *
 * With `windows: auto` and a profile that has room, window k of a node is the manager's map of region k, whole, readable
 * and writable, and costs no memory until somebody programs it otherwise. A profile with less room is multiplexed:
 * the manager moves its windows to where the program looks. With `windows: manual` nothing is reachable until
 * somebody programs a window.
 *
 * A window is two snapshots and a switch, so that a reader sees one whole setting and a writer that dies leaves one.
 */
#include "call.h"
#include "change.h"
#include "event.h"
#include "internal.h"
#include "registered.h"

#include <errno.h>
#include <stdlib.h>

/* What the silicon has and rejects. Sources: the Linux drivers ntb_hw_intel, ntb_hw_amd, ntb_hw_idt, ntb_hw_switchtec,
 * and ntb_hw_epf; counts marked * are a typical configuration of what firmware or EEPROM decides. */
static const struct profile {
    const char *name;
    uint32_t direct, lut;
    uint64_t max_bytes, lut_bytes, address_align, size_align, min_bytes; /* address_align 0: its own size */
} profiles[FBX_PROFILES] = {
    [FBX_PROFILE_FABREX] = {"fabrex", 64, 512, 1ull << FBX_SLOT_SHIFT, 1ull << 21, 4096, 4096, 4096},
    [FBX_PROFILE_XEON_GEN3] = {"xeon-gen3", 2, 0, 1ull << 36, 0, 0, 1, 1},
    [FBX_PROFILE_XEON_GEN4] = {"xeon-gen4", 2, 0, 1ull << 36, 0, 4096, 1, 1},
    [FBX_PROFILE_AMD] = {"amd", 2, 0, 1ull << 36, 0, 4096, 1, 1},
    [FBX_PROFILE_IDT] = {"idt", 5, 24, 1ull << 32, 1ull << 20, 4, 1, 4}, /* * */
    [FBX_PROFILE_SWITCHTEC] = {"switchtec", 2, 64, 2ull << 20, 64ull << 10, 4096, 4096, 4096}, /* * */
    [FBX_PROFILE_EPF] = {"epf", 4, 0, 1ull << 30, 0, 4096, 1, 1},
};

int fbxi_profile_windows(const struct fbx_config *c, uint32_t node, uint32_t regions, uint32_t *direct, uint32_t *lut,
                         uint64_t *max_bytes)
{
    const struct profile *p = &profiles[c->nodes[node].profile];
    *direct = p->direct;
    *lut = p->lut;
    *max_bytes = p->max_bytes;
    if (c->nodes[node].kind == FBX_SWITCH)
        *direct = *lut = 0;
    else if (c->nodes[node].profile == FBX_PROFILE_FABREX && regions > p->direct)
        *direct = regions; /* the idealised device has a window for everything there is */
    return 0;
}

static uint64_t window_limit(const struct fbxl_node *n, uint32_t widx)
{
    return widx < n->mw_count ? n->mw_max_bytes : profiles[n->profile].lut_bytes;
}

static struct fbxl_window *table(fbx_fabric *f, uint32_t node)
{
    uint64_t offset = fbx_observe(&f->nodes[node].mw_table);
    uint64_t bytes = (uint64_t)(f->node_facts[node].mw_count + f->node_facts[node].lut_count) * sizeof(struct fbxl_window);
    return fbxi_heap_at(f, offset, bytes);
}

struct setting {
    uint64_t translation, bytes;
    uint32_t peer, perm, attr, mapping, state;
};

static struct setting window_read(struct fbxl_window *w)
{
    struct setting s;
    for (;;) {
        uint64_t which = fbx_observe(&w->which);
        struct fbxl_window_snapshot *from = &w->snapshot[which & 1];
        s.translation = fbx_peek(&from->translation);
        s.bytes = fbx_peek(&from->bytes);
        uint32_t word = fbx_peek(&from->peer_perm);
        s.peer = word & 0xffffff;
        s.perm = word >> 24 & 3;
        s.attr = word >> 26 & 3;
        s.mapping = word >> 28 & 3;
        s.state = word >> 30;
        /* A writer fills the other snapshot; only two changes during our read could have touched this one. */
        fbx_fence_sleep();
        if (fbx_observe(&w->which) == which)
            return s;
    }
}

static void window_write(struct fbxl_window *w, const struct setting *s)
{
    uint64_t which = fbx_peek(&w->which);
    struct fbxl_window_snapshot *to = &w->snapshot[(which + 1) & 1];
    fbx_poke(&to->translation, s->translation);
    fbx_poke(&to->bytes, s->bytes);
    fbx_poke(&to->peer_perm, s->peer | s->perm << 24 | s->attr << 26 | s->mapping << 28 | s->state << 30);
    /* Pairs with: fbx_observe(&w->which) in window_read(). Breaks: half of one setting, half of another. */
    fbx_publish(&w->which, which + 1);
}

/* The setting in force, the manager's default included. */
static struct setting window_get(fbx_fabric *f, uint32_t node, uint32_t widx)
{
    struct fbxl_window *w = table(f, node);
    struct setting s = {0};
    if (w)
        s = window_read(&w[widx]);
    if (s.peer >= f->node_count)
        memset(&s, 0, sizeof s); /* scribbled over: leads nowhere */
    const struct fbxl_node *n = &f->node_facts[node];
    if (s.state == FBXL_MW_DEFAULT) {
        memset(&s, 0, sizeof s);
        if ((f->flags & FBXL_AUTO_WINDOWS) && n->profile == FBX_PROFILE_FABREX && widx < f->region_count &&
            f->region_facts[widx].node != node) {
            s.translation = f->region_facts[widx].bus;
            s.bytes = f->region_facts[widx].bytes;
            s.peer = f->region_facts[widx].node;
            s.perm = FBX_PERM_RW;
            s.mapping = FBX_MANAGED;
        }
    }
    return s;
}

/* Region and offset behind `bus` of `node`; the region's index or -1. */
static int64_t bus_region(const fbx_fabric *f, uint32_t node, uint64_t bus)
{
    uint64_t index = bus >> FBX_SLOT_SHIFT;
    const struct fbxl_node *n = &f->node_facts[node];
    if (index == n->region_count)
        return fbxi_registered_region(f, node);
    if (index > n->region_count || (bus & FBX_SLOT_MASK) >= f->region_facts[n->first_region + index].bytes)
        return -1;
    return n->first_region + (int64_t)index;
}

static int through(fbx_fabric *f, uint32_t node, uint32_t widx, const struct setting *s, uint64_t bus, uint64_t bytes,
                   struct fbxi_target *out)
{
    if (!s->bytes || s->peer >= f->node_count || bus < s->translation || bus - s->translation >= s->bytes)
        return 0;
    int64_t region = bus_region(f, s->peer, bus);
    if (region < 0)
        return 0;
    uint64_t offset = bus & FBX_SLOT_MASK, base = bus - offset;
    out->region = (uint32_t)region;
    out->target = s->peer;
    out->perm = s->perm;
    out->attr = s->attr;
    out->mapping = s->mapping == FBX_WRITE_COMBINING || s->mapping == FBX_UNCACHED ? s->mapping : FBX_MANAGED;
    if (out->mapping == FBX_MANAGED && f->node_facts[node].wc)
        out->mapping = FBX_WRITE_COMBINING;
    out->window = widx;
    out->offset = offset;
    out->lo = s->translation > base ? s->translation - base : 0;
    uint64_t end = s->translation + s->bytes - base;
    out->hi = end < f->region_facts[region].bytes ? end : f->region_facts[region].bytes;
    return offset + bytes <= out->hi;
}

static int set_locked(fbx_fabric *f, uint32_t node, uint32_t widx, const struct setting *s);

/* Point the next of a small device's windows at the piece around `bus` of `peer`. */
static int multiplex(fbx_fabric *f, uint32_t node, uint32_t peer, uint64_t bus, uint64_t bytes)
{
    struct fbxl_node *shared = &f->nodes[node];
    const struct fbxl_node *n = &f->node_facts[node];
    const struct profile *p = &profiles[n->profile];
    int64_t region = bus_region(f, peer, bus);
    if (region < 0 || !n->mw_count)
        return fbxi_fail(FBX_E_NO_WINDOW, "%s has no window to %s", n->name, f->node_facts[peer].name);
    uint64_t size = 4096;
    while (size < n->mw_max_bytes && size < f->region_facts[region].bytes)
        size <<= 1;
    uint64_t offset = bus & FBX_SLOT_MASK, base = bus - offset, start = offset & ~(size - 1);
    if (offset + bytes > start + size) /* across the edge of an aligned piece */
        start = p->address_align ? (offset & ~(p->address_align < 4096 ? 4095 : p->address_align - 1)) : start;
    uint64_t room = f->region_facts[region].bytes - start;
    struct setting s = {.translation = base + start, .bytes = size < room ? size : room, .peer = peer,
                        .perm = FBX_PERM_RW, .mapping = FBX_MANAGED, .state = FBXL_MW_SET};
    int status = fbxi_lock(f, &shared->mw_lock, FBX_STALL_NS);
    if (status < 0)
        return fbxi_fail(FBX_E_BUSY, "another process programs the windows of %s and does not finish", n->name);
    uint32_t widx = fbx_add(&shared->mw_next, 1) % n->mw_count;
    status = set_locked(f, node, widx, &s);
    fbxi_unlock(f, &shared->mw_lock);
    return status;
}

/* A registration is a small part of its node's slot. */
static int registered(fbx_fabric *f, uint32_t node, uint64_t address, uint64_t bytes, struct fbxi_target *out)
{
    struct fbxi_registration g;
    int status = fbxi_registered_find(f, out->region, out->offset, &g);
    if (status)
        return status;
    if (out->lo < g.offset)
        out->lo = g.offset;
    if (out->hi > g.offset + g.bytes)
        out->hi = g.offset + g.bytes;
    if (g.flags & FBX_REGISTER_READ_ONLY)
        out->perm &= FBX_PERM_READ;
    if (bytes > out->hi - out->offset)
        return fbxi_fail_at(FBX_E_ADDRESS, -1, (int)node, address, "0x%llx and %llu bytes from there leave the memory that %s registered",
                            (unsigned long long)address, (unsigned long long)bytes, f->node_facts[out->target].name);
    return 0;
}

int fbxi_translate_here(fbx_fabric *f, uint64_t address, uint64_t bytes, struct fbxi_target *out)
{
    uint64_t slot = address >> FBX_SLOT_SHIFT, offset = address & FBX_SLOT_MASK;
    const struct fbxl_region *r = slot && slot <= (uint64_t)f->region_count + f->node_count ? &f->region_facts[slot - 1] : NULL;
    if (!r || fbxi_is_away(f, r->node) || offset >= r->bytes || bytes > r->bytes - offset)
        return fbxi_fail_at(FBX_E_ADDRESS, -1, -1, address, "0x%llx is no memory of this machine", (unsigned long long)address);
    *out = (struct fbxi_target){.region = (uint32_t)slot - 1, .target = r->node, .perm = FBX_PERM_RW, .mapping = FBX_MANAGED,
                                .window = UINT32_MAX, .offset = offset, .hi = r->bytes};
    return fbxi_is_registered(f, out->region) ? registered(f, r->node, address, bytes, out) : 0;
}

static int translate(fbx_fabric *f, uint32_t node, uint64_t address, uint64_t bytes, struct fbxi_target *out)
{
    uint32_t count = f->node_facts[node].mw_count + f->node_facts[node].lut_count;
    if (address & FBX_BUS) {
        uint64_t bus = address & ~FBX_BUS;
        if (bus >= FBX_BAR_BASE) {
            uint64_t widx = (bus - FBX_BAR_BASE) >> FBX_SLOT_SHIFT, inside = bus & FBX_SLOT_MASK;
            if (widx >= count)
                return fbxi_fail_at(FBX_E_ADDRESS, -1, (int)node, address, "%s has %u windows, no window %llu",
                                    f->node_facts[node].name, count, (unsigned long long)widx);
            struct setting s = window_get(f, node, (uint32_t)widx);
            if (!s.bytes || inside >= s.bytes || bytes > s.bytes - inside ||
                !through(f, node, (uint32_t)widx, &s, s.translation + inside, bytes, out))
                return fbxi_fail_at(s.bytes ? FBX_E_ADDRESS : FBX_E_NO_WINDOW, -1, (int)node, address,
                                    "offset 0x%llx of window %llu of %s leads nowhere", (unsigned long long)inside,
                                    (unsigned long long)widx, f->node_facts[node].name);
            return 0;
        }
        int64_t region = bus_region(f, node, bus);
        if (region < 0 || bytes > f->region_facts[region].bytes - (bus & FBX_SLOT_MASK))
            return fbxi_fail_at(FBX_E_ADDRESS, -1, (int)node, address, "bus address 0x%llx of %s is in none of its regions",
                                (unsigned long long)bus, f->node_facts[node].name);
        address = ((uint64_t)(region + 1) << FBX_SLOT_SHIFT) | (bus & FBX_SLOT_MASK);
    }
    uint64_t slot = address >> FBX_SLOT_SHIFT, offset = address & FBX_SLOT_MASK;
    if (!slot || slot > (uint64_t)f->region_count + f->node_count)
        return fbxi_fail_at(FBX_E_ADDRESS, -1, (int)node, address, "0x%llx is in no region of the fabric",
                            (unsigned long long)address);
    const struct fbxl_region *r = &f->region_facts[slot - 1];
    if (offset >= r->bytes || bytes > r->bytes - offset)
        return fbxi_fail_at(FBX_E_ADDRESS, -1, (int)node, address,
                            "0x%llx and %llu bytes from there leave %s of %s, which ends at 0x%llx",
                            (unsigned long long)address, (unsigned long long)bytes, r->tier, f->node_facts[r->node].name,
                            (unsigned long long)((slot << FBX_SLOT_SHIFT) + r->bytes));
    if (r->node == node) {
        *out = (struct fbxi_target){.region = (uint32_t)slot - 1, .target = node, .perm = FBX_PERM_RW, .mapping = FBX_MANAGED,
                                    .window = UINT32_MAX, .offset = offset, .hi = r->bytes};
        return 0;
    }
    const uint64_t bus = r->bus + offset;
    if (slot > f->region_count && f->flags & FBXL_AUTO_WINDOWS && f->node_facts[node].profile == FBX_PROFILE_FABREX) {
        /* The manager's window to what a peer has registered: as large as it may get. */
        *out = (struct fbxi_target){.region = (uint32_t)slot - 1, .target = r->node, .perm = FBX_PERM_RW,
                                    .mapping = f->node_facts[node].wc ? FBX_WRITE_COMBINING : FBX_MANAGED, .window = UINT32_MAX,
                                    .offset = offset, .hi = r->bytes};
        return 0;
    }
    for (int attempt = 0; attempt < 2; attempt++) {
        /* The manager's own window first: with the idealised device it is the one. */
        if ((f->flags & FBXL_AUTO_WINDOWS) && f->node_facts[node].profile == FBX_PROFILE_FABREX && slot - 1 < count) {
            struct setting s = window_get(f, node, (uint32_t)slot - 1);
            if (s.peer == r->node && through(f, node, (uint32_t)slot - 1, &s, bus, bytes, out))
                return 0;
        }
        if (table(f, node))
            for (uint32_t w = 0; w < count; w++) {
                struct setting s = window_get(f, node, w);
                if (s.peer == r->node && through(f, node, w, &s, bus, bytes, out))
                    return 0;
            }
        if (attempt || !(f->flags & FBXL_AUTO_WINDOWS) || f->node_facts[node].profile == FBX_PROFILE_FABREX)
            break;
        int status = multiplex(f, node, r->node, bus, bytes < 64 ? bytes : 1);
        if (status)
            return status;
    }
    return fbxi_fail_at(FBX_E_NO_WINDOW, -1, (int)node, address, "no window of %s reaches 0x%llx (%s of %s)",
                        f->node_facts[node].name, (unsigned long long)address, r->tier, f->node_facts[r->node].name);
}

int fbxi_translate(fbx_fabric *f, uint32_t node, uint64_t address, uint64_t bytes, struct fbxi_target *out)
{
    int status = translate(f, node, address, bytes, out);
    /* Another machine's registrations are known there. */
    if (status || !fbxi_is_registered(f, out->region) || fbxi_is_away(f, out->target))
        return status;
    return registered(f, node, address, bytes, out);
}

int fbx_mw_count(fbx_fabric *f, uint32_t node)
{
    if (node >= f->node_count)
        return fbxi_fail(FBX_E_NOT_FOUND, "no node %u", node);
    return (int)(f->node_facts[node].mw_count + f->node_facts[node].lut_count);
}

int fbx_mw_info(fbx_fabric *f, uint32_t node, uint32_t widx, struct fbx_window_info *out)
{
    int count = fbx_mw_count(f, node);
    if (count < 0)
        return count;
    const int away = f->machines && fbxi_is_away(f, node) && !fbx_peek(&f->closed) && !fbx_peek(&f->forked);
    if (widx >= (uint32_t)count)
        return fbxi_fail(FBX_E_INVALID, "%s has %d windows, no window %u", f->node_facts[node].name, count, widx);
    const struct fbxl_node *n = &f->node_facts[node];
    const struct profile *p = &profiles[n->profile];
    struct setting s = window_get(f, node, widx);
    if (away) {
        /* Windows are at home where their node is. */
        struct fbxw_frame w = {.what = FBXW_WINDOW_INFO, .aux = node};
        uint8_t ask[8], said[256];
        uint32_t room = sizeof said;
        fbxw_put64(ask, widx);
        int status = fbxi_call(f, NULL, n->machine, &w, ask, sizeof ask, said, &room, FBXI_CALL_NS);
        if (status || w.status || room != 48)
            return status ? status : fbxi_fail(w.status ? w.status : FBX_E_CORRUPT, "%.*s", (int)room, said);
        s.peer = (uint32_t)fbxw_get64(said);
        s.perm = fbxw_get32(said + 8);
        s.attr = fbxw_get32(said + 12);
        s.mapping = (uint32_t)fbxw_get64(said + 16);
        s.translation = fbxw_get64(said + 32);
        s.bytes = fbxw_get64(said + 40);
    }
    uint64_t limit = window_limit(n, widx);
    /* An entry of a look-up table has one size; Switchtec's is aligned to it as well. */
    int fixed = widx >= n->mw_count && n->profile != FBX_PROFILE_FABREX;
    uint64_t align = p->address_align && !(fixed && n->profile == FBX_PROFILE_SWITCHTEC) ? p->address_align : limit;
    *out = (struct fbx_window_info){
        .index = widx, .peer = s.peer, .perm = s.perm, .attr = s.attr, .mapping = s.mapping, .lut = widx >= n->mw_count,
        .programmed = s.bytes != 0, .translation = s.translation, .bytes = s.bytes,
        .bus = FBX_BAR_BASE + ((uint64_t)widx << FBX_SLOT_SHIFT), .max_bytes = limit,
        .address_align = align, .size_align = fixed ? limit : p->size_align, .min_bytes = p->min_bytes};
    return 0;
}

static int windows_ready(fbx_fabric *f, uint32_t node)
{
    struct fbxl_node *n = &f->nodes[node];
    uint64_t offset;
    if (table(f, node))
        return 0;
    int status = fbxi_control_lock(f);
    if (status)
        return status;
    if (!fbx_observe(&n->mw_table)) {
        status = fbxi_heap(f, (uint64_t)(f->node_facts[node].mw_count + f->node_facts[node].lut_count) * sizeof(struct fbxl_window), &offset);
        if (!status)
            fbx_publish(&n->mw_table, offset);
    }
    fbxi_control_unlock(f);
    if (!status && !table(f, node))
        status = fbxi_fail(FBX_E_CORRUPT, "the window table of %s lies outside the control segment", f->node_facts[node].name);
    return status;
}

static int set_locked(fbx_fabric *f, uint32_t node, uint32_t widx, const struct setting *s)
{
    int status = windows_ready(f, node);
    if (status)
        return status;
    struct fbxl_window *w = table(f, node);
    /* As the drivers do: read back what was written, and let the window lead nowhere if it is not that. */
    struct setting takes = *s, cleared = {.state = FBXL_MW_CLEARED};
    takes.translation &= ~fbx_peek(&w[widx].stuck);
    window_write(&w[widx], &takes);
    struct setting found = window_read(&w[widx]);
    if (found.translation != s->translation || found.bytes != s->bytes || found.peer != s->peer || found.state != s->state) {
        window_write(&w[widx], &cleared);
        (void)fbxi_invalidate_node_routes(f, node);
        errno = EIO;
        return fbxi_fail_system(FBX_E_SYSTEM, "window %u of %s reads back 0x%llx where 0x%llx was written", widx,
                                f->node_facts[node].name, (unsigned long long)found.translation,
                                (unsigned long long)s->translation);
    }
    return fbxi_invalidate_node_routes(f, node);
}

static int set(fbx_fabric *f, uint32_t node, uint32_t widx, const struct setting *s)
{
    struct fbxl_node *n = &f->nodes[node];
    if (fbxi_lock(f, &n->mw_lock, FBX_STALL_NS) < 0)
        return fbxi_fail(FBX_E_BUSY, "another process programs the windows of %s and does not finish", f->node_facts[node].name);
    int status = set_locked(f, node, widx, s);
    fbxi_unlock(f, &n->mw_lock);
    return status;
}

int fbxi_mw_set_here(fbx_fabric *f, uint32_t node, uint32_t widx, uint32_t peer, uint64_t translation, uint64_t bytes, int perm,
                     int mapping)
{
    struct fbx_window_info w;
    int status = fbx_mw_info(f, node, widx, &w);
    if (status)
        return status;
    const char *name = f->node_facts[node].name;
    if (peer >= f->node_count || peer == node)
        return fbxi_fail(FBX_E_INVALID, "a window of %s needs another node of the fabric as its peer", name);
    const uint32_t attr = (uint32_t)perm >> 2 & 3;
    if (perm < FBX_PERM_NONE || perm > (FBX_PERM_RW | FBX_WINDOW_RO | FBX_WINDOW_IDO) || mapping < 0 || mapping > FBX_MANAGED)
        return fbxi_fail(FBX_E_INVALID, "permission %d or mapping %d is none", perm, mapping);
    if (!bytes || bytes < w.min_bytes || bytes > w.max_bytes)
        return fbxi_fail(FBX_E_WINDOW, "window %u of %s (%s) takes %llu to %llu bytes, not %llu", widx, name,
                         profiles[f->node_facts[node].profile].name, (unsigned long long)w.min_bytes,
                         (unsigned long long)w.max_bytes, (unsigned long long)bytes);
    uint64_t align = w.address_align;
    if (w.lut && f->node_facts[node].profile != FBX_PROFILE_FABREX && bytes != w.max_bytes)
        return fbxi_fail(FBX_E_WINDOW, "LUT window %u of %s has the fixed size of %llu bytes", widx, name,
                         (unsigned long long)w.max_bytes);
    if (translation & (align - 1))
        return fbxi_fail(FBX_E_WINDOW, "window %u of %s needs a translation aligned to 0x%llx bytes, not 0x%llx", widx, name,
                         (unsigned long long)align, (unsigned long long)translation);
    if (bytes & (w.size_align - 1))
        return fbxi_fail(FBX_E_WINDOW, "window %u of %s needs a multiple of %llu bytes, not %llu", widx, name,
                         (unsigned long long)w.size_align, (unsigned long long)bytes);
    int64_t region = bus_region(f, peer, translation);
    if (region < 0 || bytes > f->region_facts[region].bytes - (translation & FBX_SLOT_MASK))
        return fbxi_fail(FBX_E_ADDRESS, "0x%llx and %llu bytes from there are not memory on the bus of %s",
                         (unsigned long long)translation, (unsigned long long)bytes, f->node_facts[peer].name);
    struct setting s = {translation, bytes, peer, (uint32_t)perm & FBX_PERM_RW, attr, (uint32_t)mapping, FBXL_MW_SET};
    status = set(f, node, widx, &s);
    if (!status || status == FBX_E_BUSY)
        fbxi_event(f, &(struct fbxi_event){FBX_EVENT_WINDOW_SET, node, widx, peer, translation, bytes});
    return status;
}

int fbxi_mw_clear_here(fbx_fabric *f, uint32_t node, uint32_t widx)
{
    struct fbx_window_info w;
    int status = fbx_mw_info(f, node, widx, &w);
    if (status)
        return status;
    struct setting s = {.state = FBXL_MW_CLEARED};
    status = set(f, node, widx, &s);
    if (!status || status == FBX_E_BUSY)
        fbxi_event(f, &(struct fbxi_event){FBX_EVENT_WINDOW_CLEARED, node, widx, UINT32_MAX, 0, 0});
    /* What was translated before is on its way already: let it land before we say that nothing more will. */
    return status ? status : fbxi_land(f, node);
}

/* Windows are at home where their node is. A process there programs them at once, as a driver does, and its machine's agent has that
 * numbered afterwards; one elsewhere has it numbered first. */
static int counted(fbx_fabric *f, int status)
{
    if (f->machines && (!status || status == FBX_E_BUSY))
        fbx_add(&f->machines->windows, 1);
    return status;
}

int fbx_mw_set_trans(fbx_fabric *f, uint32_t node, uint32_t widx, uint32_t peer, uint64_t translation, uint64_t bytes,
                     int perm, int mapping)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    if (f->machines && node < f->node_count && fbxi_is_away(f, node))
        return fbxi_change_ask(f, &(struct fbx_change){.what = FBX_CHANGE_WINDOW, .index = node,
                                                       .value = {widx, peer, translation, bytes, (uint32_t)perm, (uint32_t)mapping}});
    return counted(f, fbxi_mw_set_here(f, node, widx, peer, translation, bytes, perm, mapping));
}

int fbx_mw_clear_trans(fbx_fabric *f, uint32_t node, uint32_t widx)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    if (f->machines && node < f->node_count && fbxi_is_away(f, node))
        return fbxi_change_ask(f, &(struct fbx_change){.what = FBX_CHANGE_WINDOW_CLEAR, .index = node, .value = {widx}});
    return counted(f, fbxi_mw_clear_here(f, node, widx));
}

int fbx_mw_inject_stuck(fbx_fabric *f, uint32_t node, uint32_t widx, uint64_t bits)
{
    struct fbx_window_info w;
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    int status = fbx_mw_info(f, node, widx, &w);
    if (!status)
        status = windows_ready(f, node);
    if (!status)
        fbx_poke(&table(f, node)[widx].stuck, bits);
    return status;
}
