/* SPDX-License-Identifier: Apache-2.0
 *
 * What links are set to. The topology's values never change; a change of them is a snapshot beside it, of which a link
 * has two and a word that says which is in force, so that a process that dies in the middle leaves the old or the new
 * values. Whoever times traffic works with figures: a private copy, checked, and what follows from it. Routes keep pointers
 * to figures and look whether the word has changed whenever they are resolved anew, which whoever changes a link makes
 * every dependent requester do (docs/internals/generations.md). What is on its way keeps the times that it was given.
 *
 * Calendars are indexed by time in slots, so each length of a slot has its own; they stay for the life of the fabric,
 * because a stopped process may still hold one.
 */
#include "link.h"

#include "event.h"
#include "pcie.h"
#include "timing.h"

#include <stdlib.h>

_Static_assert(FBX_LINK_KEYS <= FBX_LINK_VALUES, "every value has a place in the segment");

static const char *const names[FBX_LINK_KEYS] = {
    "delay", "gen", "lanes", "mps", "mrrs", "rcb", "rate", "mtu", "overhead_bytes", "posted_credits_header",
    "posted_credits_data", "nonposted_credits_header", "nonposted_credits_data", "completion_credits_header",
    "completion_credits_data", "tags"};

#define BIT(key) (1u << (key))
#define CREDITS                                                                                                        \
    (BIT(FBX_LINK_POSTED_CREDITS_HEADER) | BIT(FBX_LINK_POSTED_CREDITS_DATA) | BIT(FBX_LINK_NONPOSTED_CREDITS_HEADER) | \
     BIT(FBX_LINK_NONPOSTED_CREDITS_DATA) | BIT(FBX_LINK_COMPLETION_CREDITS_HEADER) | BIT(FBX_LINK_COMPLETION_CREDITS_DATA))
/* What each kind has. */
static const uint32_t keys_of[2] = {
    BIT(FBX_LINK_DELAY_PS) | BIT(FBX_LINK_GEN) | BIT(FBX_LINK_LANES) | BIT(FBX_LINK_MPS) | BIT(FBX_LINK_MRRS) |
        BIT(FBX_LINK_RCB) | CREDITS | BIT(FBX_LINK_TAGS),
    BIT(FBX_LINK_DELAY_PS) | BIT(FBX_LINK_RATE_BPS) | BIT(FBX_LINK_MTU) | BIT(FBX_LINK_OVERHEAD_BYTES)};

static int refuse(const char *name, const char *what, uint64_t value, const char *allowed)
{
    return fbxi_fail(FBX_E_INVALID, "link %.100s: %s %llu is not possible; allowed: %s", name, what, (unsigned long long)value, allowed);
}

int fbxi_link_check(const char *name, uint32_t kind, const uint64_t v[FBX_LINK_KEYS])
{
    if (v[FBX_LINK_DELAY_PS] > 1000000000000ull)
        return refuse(name, "a delay in ps of", v[FBX_LINK_DELAY_PS], "up to one second");
    if (kind == 1) {
        if (!v[FBX_LINK_RATE_BPS] || v[FBX_LINK_RATE_BPS] > INT64_MAX)
            return refuse(name, "a rate in b/s of", v[FBX_LINK_RATE_BPS], "1 to 2^63 - 1");
        if (v[FBX_LINK_MTU] < 64 || v[FBX_LINK_MTU] > 65535)
            return refuse(name, "mtu", v[FBX_LINK_MTU], "64 to 65535");
        if (v[FBX_LINK_OVERHEAD_BYTES] > 1024)
            return refuse(name, "overhead_bytes", v[FBX_LINK_OVERHEAD_BYTES], "0 to 1024");
        return 0;
    }
    if (kind)
        return fbxi_fail(FBX_E_INVALID, "link %.100s is of no kind that there is", name);
    for (int key = FBX_LINK_GEN; key <= FBX_LINK_RCB; key++)
        if (v[key] > 4096)
            return refuse(name, names[key], v[key], "less");
    const struct fbx_pcie_link p = {(uint32_t)v[FBX_LINK_GEN], (uint32_t)v[FBX_LINK_LANES], (uint32_t)v[FBX_LINK_MPS],
                                    (uint32_t)v[FBX_LINK_MRRS], (uint32_t)v[FBX_LINK_RCB]};
    switch (fbx_pcie_check(&p)) {
    case FBX_PCIE_EGEN: return refuse(name, "gen", p.gen, "1 to 6");
    case FBX_PCIE_ELANES: return refuse(name, "lanes", p.lanes, "1, 2, 4, 8, 12, 16, 32");
    case FBX_PCIE_EMPS: return refuse(name, "mps", p.mps, "128, 256, 512, 1024, 2048, 4096");
    case FBX_PCIE_EMRRS: return refuse(name, "mrrs", p.mrrs, "128, 256, 512, 1024, 2048, 4096");
    case FBX_PCIE_ERCB: return refuse(name, "rcb", p.rcb, "64, 128");
    default: break;
    }
    /* With scaled flow control a port advertises up to 127 * 16 headers and 2047 * 16 units of data. */
    for (int key = FBX_LINK_POSTED_CREDITS_HEADER; key < FBX_LINK_TAGS; key += 2) {
        if (v[key] > 2032)
            return refuse(name, names[key], v[key], "0 (infinite) to 2032");
        if (v[key + 1] > 32752)
            return refuse(name, names[key + 1], v[key + 1], "0 (infinite) to 32752");
    }
    if (!v[FBX_LINK_TAGS] || v[FBX_LINK_TAGS] > 1024)
        return refuse(name, "tags", v[FBX_LINK_TAGS], "1 to 1024");
    if (v[FBX_LINK_POSTED_CREDITS_DATA] && v[FBX_LINK_POSTED_CREDITS_DATA] * 16 < p.mps)
        return fbxi_fail(FBX_E_INVALID, "link %.100s: %u posted data credits of 16 bytes do not hold one payload of %u bytes; allowed: "
                         "0 (infinite) or at least %u", name, (uint32_t)v[FBX_LINK_POSTED_CREDITS_DATA], p.mps, p.mps / 16);
    return 0;
}

void fbxi_figures_of(struct fbxi_figures *d, uint32_t kind, const uint64_t v[FBX_LINK_KEYS], uint64_t beyond_ps)
{
    const struct fbx_pcie_link p = {(uint32_t)v[FBX_LINK_GEN], (uint32_t)v[FBX_LINK_LANES], (uint32_t)v[FBX_LINK_MPS],
                                    (uint32_t)v[FBX_LINK_MRRS], (uint32_t)v[FBX_LINK_RCB]};
    memset(d, 0, sizeof *d);
    memcpy(d->value, v, sizeof d->value);
    d->ethernet = kind;
    d->mtu = kind ? (uint32_t)v[FBX_LINK_MTU] : 1;
    d->overhead = kind ? (uint32_t)v[FBX_LINK_OVERHEAD_BYTES] : 0;
    d->mps = p.mps;
    d->mrrs = p.mrrs;
    d->ps_per_byte_q24 = kind ? fbx_ethernet_ps_per_byte(v[FBX_LINK_RATE_BPS]) : fbx_pcie_ps_per_byte(&p);
    d->delay_ps = v[FBX_LINK_DELAY_PS] + beyond_ps;
    const uint64_t full = (kind ? d->mtu : d->mps) + FBX_MWR_HEADER;
    d->tlp_ps = fbx_bytes_to_ps(d->ps_per_byte_q24, full);
    /* A slot holds some full packets: see timing.c. */
    d->slot_shift = FBX_SHIFT_LEAST;
    while (d->slot_shift < FBX_SHIFT_MOST && (1ull << d->slot_shift) < 2 * d->tlp_ps)
        d->slot_shift++;
    /* As much as the credits of the nearest receiver hold; 0 means that it advertises infinite ones. */
    const uint64_t infinite = 1ull << 62;
    uint64_t headers = v[FBX_LINK_POSTED_CREDITS_HEADER] ? v[FBX_LINK_POSTED_CREDITS_HEADER] * full : infinite;
    uint64_t data = v[FBX_LINK_POSTED_CREDITS_DATA] ? v[FBX_LINK_POSTED_CREDITS_DATA] * 16u : infinite;
    uint64_t bytes = headers < data ? headers : data;
    d->credit_ps = bytes == infinite ? infinite : fbx_bytes_to_ps(d->ps_per_byte_q24, bytes);
    fbxi_figures_times(d);
    /* A credit for a request is used again once the request has crossed, and the update for it has come back (a DLLP of 8 bytes). */
    if (v[FBX_LINK_NONPOSTED_CREDITS_HEADER])
        d->request_gap_ps = (2 * v[FBX_LINK_DELAY_PS] + d->small_ps[FBXI_REQUEST][0] + fbx_bytes_to_ps(d->ps_per_byte_q24, 8)) /
                            v[FBX_LINK_NONPOSTED_CREDITS_HEADER];
    d->tags = kind ? 1024 : (uint32_t)v[FBX_LINK_TAGS];
    d->completions = v[FBX_LINK_COMPLETION_CREDITS_HEADER] ? (uint32_t)v[FBX_LINK_COMPLETION_CREDITS_HEADER] : UINT32_MAX;
    d->completion_bytes = v[FBX_LINK_COMPLETION_CREDITS_DATA] ? (uint32_t)v[FBX_LINK_COMPLETION_CREDITS_DATA] * 16 : UINT32_MAX;
}

static struct fbxl_link_setting *setting_at(fbx_fabric *f, uint32_t link)
{
    return fbxi_heap_at(f, fbx_observe(&f->links[link].setting), sizeof(struct fbxl_link_setting));
}

static void topology_values(const fbx_fabric *f, uint32_t link, uint64_t value[FBX_LINK_KEYS])
{
    memcpy(value, f->link_facts[link].value, FBX_LINK_KEYS * sizeof *value);
}

uint64_t fbxi_link_current(fbx_fabric *f, uint32_t link, uint64_t value[FBX_LINK_KEYS])
{
    const struct fbxl_link *facts = &f->link_facts[link];
    for (int attempt = 0; attempt < 1000; attempt++) {
        /* Pairs with: the publish in write_setting(). Breaks: half of a snapshot. */
        uint64_t which = fbx_observe(&f->links[link].which);
        struct fbxl_link_setting *s = which ? setting_at(f, link) : NULL;
        if (!s) {
            topology_values(f, link, value);
            return which;
        }
        for (int key = 0; key < FBX_LINK_KEYS; key++)
            value[key] = fbx_peek(&s->snapshot[which & 1].value[key]);
        fbx_fence_load();
        if (fbx_observe(&f->links[link].which) != which)
            continue;
        if (!fbxi_link_check(facts->name, facts->kind, value))
            return which;
        break;
    }
    /* Scribbled over: as it was described. */
    fbx_count(&f->header->corrupt_resets, 1);
    topology_values(f, link, value);
    return fbx_observe(&f->links[link].which);
}

/* The calendar of a direction for slots of 2^shift ps, made if it is not there. */
static int calendar(fbx_fabric *f, uint32_t direction, uint32_t shift, fbx_au64 **out)
{
    uint64_t topology[FBX_LINK_KEYS];
    struct fbxi_figures own;
    topology_values(f, direction / 2, topology);
    fbxi_figures_of(&own, f->link_facts[direction / 2].kind, topology, 0);
    fbx_au64 *word = &f->directions[direction].calendar;
    if (own.slot_shift != shift) {
        struct fbxl_link_setting *s = setting_at(f, direction / 2);
        if (!s)
            return fbxi_fail(FBX_E_CORRUPT, "the setting of link %.100s lies outside the control segment", f->link_facts[direction / 2].name);
        word = &s->calendar[direction & 1][shift - FBX_SHIFT_LEAST];
    }
    uint64_t offset = fbx_observe(word);
    if (!offset) {
        int status = fbxi_control_lock(f);
        if (status)
            return status;
        offset = fbx_observe(word);
        if (!offset && !(status = fbxi_heap(f, FBX_CAL_SLOTS * 8, &offset)))
            fbx_publish(word, offset);
        fbxi_control_unlock(f);
        if (status)
            return status;
    }
    *out = fbxi_heap_at(f, offset, FBX_CAL_SLOTS * 8);
    return *out ? 0 : fbxi_fail(FBX_E_CORRUPT, "a link's calendar lies outside the control segment");
}

int fbxi_figures(fbx_fabric *f, uint32_t direction, const struct fbxi_figures **out, uint64_t *which)
{
    const struct fbxl_link *facts = &f->link_facts[direction / 2];
    const uint32_t to = facts->node[!(direction & 1)];
    uint64_t value[FBX_LINK_KEYS];
    *which = fbxi_link_current(f, direction / 2, value);
    pthread_mutex_lock(&f->figures_mutex);
    struct fbxi_figures *found = f->figures[direction];
    while (found && memcmp(found->value, value, sizeof value) != 0)
        found = found->next;
    pthread_mutex_unlock(&f->figures_mutex);
    *out = found;
    if (found)
        return 0;
    struct fbxi_figures *made = malloc(sizeof *made);
    if (!made)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    fbxi_figures_of(made, facts->kind, value, f->node_facts[to].kind == FBXL_SWITCH ? f->node_facts[to].delay_ps : 0);
    made->jitter = f->link_jitter[direction / 2];
    made->jitter_seed = fbxi_jitter_seed(f->seed, direction);
    int status = f->flags & FBXL_TIMING ? calendar(f, direction, made->slot_shift, &made->calendar) : 0;
    if (status) {
        free(made);
        return status;
    }
    pthread_mutex_lock(&f->figures_mutex);
    for (found = f->figures[direction]; found && memcmp(found->value, value, sizeof value) != 0;)
        found = found->next;
    if (!found) {
        made->next = f->figures[direction];
        f->figures[direction] = found = made;
        made = NULL;
    }
    pthread_mutex_unlock(&f->figures_mutex);
    free(made);
    *out = found;
    return 0;
}

void fbxi_figures_free(fbx_fabric *f)
{
    for (uint32_t i = 0; f->figures && i < f->link_count * 2; i++)
        while (f->figures[i]) {
            struct fbxi_figures *d = f->figures[i];
            f->figures[i] = d->next;
            free(d);
        }
    free(f->figures);
}

/* Control lock held. */
static int write_setting(fbx_fabric *f, uint32_t link, const uint64_t value[FBX_LINK_KEYS])
{
    struct fbxl_link *l = &f->links[link];
    if (!fbx_observe(&l->setting)) {
        uint64_t offset;
        int status = fbxi_heap(f, sizeof(struct fbxl_link_setting), &offset);
        if (status)
            return status;
        fbx_publish(&l->setting, offset);
    }
    struct fbxl_link_setting *s = setting_at(f, link);
    if (!s)
        return fbxi_fail(FBX_E_CORRUPT, "the setting of link %.100s lies outside the control segment", f->link_facts[link].name);
    const uint64_t which = fbx_observe(&l->which), next = !(which & 1);
    for (int key = 0; key < FBX_LINK_KEYS; key++)
        fbx_poke(&s->snapshot[next].value[key], value[key]);
    /* Time owed to bulk is counted in parts of a slot, which may have another length from here on. */
    fbx_poke(&f->directions[2 * link].debt, 0);
    fbx_poke(&f->directions[2 * link + 1].debt, 0);
    /* Pairs with: fbx_observe(&link->which) in fbxi_link_current() and fbxi_route_changed(). Breaks: half of a snapshot. */
    fbx_publish(&l->which, ((which >> 1) + 1) << 1 | next);
    return 0;
}

int fbxi_link_configure_here(fbx_fabric *f, uint32_t link, uint32_t keys, const uint64_t *values)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    if (link >= f->link_count)
        return fbxi_fail(FBX_E_NOT_FOUND, "no link %u", link);
    const struct fbxl_link *facts = &f->link_facts[link];
    const uint32_t foreign = keys & ~keys_of[facts->kind];
    if (foreign >> FBX_LINK_KEYS)
        return fbxi_fail(FBX_E_INVALID, "link %.100s: no value has key %d", facts->name, __builtin_ctz(foreign >> FBX_LINK_KEYS) + FBX_LINK_KEYS);
    if (foreign)
        return fbxi_fail(FBX_E_INVALID, "link %.100s is %s and has no %s", facts->name, facts->kind ? "Ethernet" : "PCIe",
                         names[__builtin_ctz(foreign)]);
    uint64_t value[FBX_LINK_KEYS];
    int status = fbxi_control_lock(f);
    if (status)
        return status;
    if (keys)
        fbxi_link_current(f, link, value);
    else
        topology_values(f, link, value);
    for (int key = 0; key < FBX_LINK_KEYS; key++)
        if (keys >> key & 1)
            value[key] = values[key];
    status = fbxi_link_check(facts->name, facts->kind, value);
    if (!status)
        status = write_setting(f, link, value);
    if (!status)
        status = fbxi_invalidate_dependents(f, link);
    fbxi_control_unlock(f);
    if (status && status != FBX_E_BUSY)
        return status;
    for (int key = 0; key < FBX_LINK_KEYS; key++)
        if (keys >> key & 1)
            fbxi_event(f, &(struct fbxi_event){FBX_EVENT_LINK_SET, UINT32_MAX, UINT32_MAX, link, (uint64_t)key, value[key]});
    if (!keys)
        fbxi_event(f, &(struct fbxi_event){FBX_EVENT_LINK_RESET, UINT32_MAX, UINT32_MAX, link, 0, 0});
    return status;
}

int fbx_link_values(fbx_fabric *f, uint32_t link, int described, uint64_t *values)
{
    if (link >= f->link_count)
        return fbxi_fail(FBX_E_NOT_FOUND, "no link %u", link);
    if (described)
        topology_values(f, link, values);
    else
        fbxi_link_current(f, link, values);
    return 0;
}
