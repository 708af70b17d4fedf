/* SPDX-License-Identifier: Apache-2.0
 *
 * The NTB device of a node: doorbells, scratchpads, messages, and the events that they raise. What reaches a peer's
 * registers over the fabric is in ntb_peer.c; how it travels, in posted.c.
 *
 * All that decides about events (bits, masks, what was told already) changes at once: whoever changes it holds the
 * device's lock, fills the snapshot that is not in force, and switches. So a process that dies in the middle has changed
 * nothing or everything, and readers need no lock. An event is a bit that is set, not masked and not yet told; setting a
 * bit and unmasking it make it untold again. Beside the bits stands which posted write was applied last, so that
 * one that is delivered again after its deliverer died does not ring twice.
 */
#include "ntb.h"
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUSY_NS 2000000u /* how long a delivery waits for registers before it leaves the rest queued */
#define SPIN_NS 20000u /* how long a waiter looks before it sleeps: less than a wake-up costs */
#define SLICE_NS 20000000u /* a sleeper looks this often whether its peers have died */
#define MSG_IN_SHIFT 16u

/* Sources: the Linux drivers ntb_hw_intel, ntb_hw_amd, ntb_hw_idt, ntb_hw_switchtec and ntb_hw_epf. Xeon: the last vector
 * is the link's. AMD: 16 scratchpads, half of them a side. Switchtec: 28 usable bits of each half, one vector, scratchpads
 * in memory; the driver allocates 32 interrupts and takes about four. IDT: one vector; its scratchpads are messages. An
 * interrupt by message needs a vector that the device's own driver has left free: the other drivers allocate what they use. */
static const struct fbxi_ntb_profile profiles[FBX_PROFILES] = {
    [FBX_PROFILE_FABREX] = {64, 64, FBX_NTB_SPADS, FBX_NTB_MESSAGES, FBX_NTB_MSIS, 256, 1},
    [FBX_PROFILE_XEON_GEN3] = {32, 33, 16, 0, 0, 0, 0},
    [FBX_PROFILE_XEON_GEN4] = {32, 33, 16, 0, 0, 0, 0},
    [FBX_PROFILE_AMD] = {16, 16, 8, 0, 0, 0, 0},
    [FBX_PROFILE_IDT] = {32, 1, 0, 4, 0, 64, 0},
    [FBX_PROFILE_SWITCHTEC] = {28, 1, 128, 0, 28, 256, 0},
    [FBX_PROFILE_EPF] = {31, 31, 64, 0, 0, 0, 0},
};

const struct fbxi_ntb_profile *fbxi_ntb_profile(const fbx_fabric *f, uint32_t node)
{
    uint32_t profile = f->node_facts[node].profile;
    return &profiles[profile < FBX_PROFILES ? profile : FBX_PROFILE_FABREX];
}

uint64_t fbxi_ntb_valid(const struct fbxi_ntb_profile *p)
{
    return p->doorbells >= 64 ? UINT64_MAX : (1ull << p->doorbells) - 1;
}

static uint64_t out_bits(const struct fbxi_ntb_profile *p) { return (1ull << p->messages) - 1; }
static uint64_t in_bits(const struct fbxi_ntb_profile *p) { return out_bits(p) << MSG_IN_SHIFT; }

/* ---- the registers ------------------------------------------------------------------------------------------------ */

struct fbxl_ntb *fbxi_ntb_device(fbx_fabric *f, uint32_t node)
{
    uint64_t offset = fbx_observe(&f->nodes[node].ntb);
    return offset ? fbxi_heap_at(f, offset, sizeof(struct fbxl_ntb)) : NULL;
}

struct fbxi_ntb_registers fbxi_ntb_read(struct fbxl_ntb *d)
{
    struct fbxi_ntb_registers r;
    for (;;) {
        uint64_t which = fbx_observe(&d->which);
        struct fbxl_ntb_state *from = &d->state[which & 1];
        r.db = fbx_peek(&from->db);
        r.db_mask = fbx_peek(&from->db_mask);
        r.db_told = fbx_peek(&from->db_told);
        r.msg_sts = fbx_peek(&from->msg_sts);
        r.msg_mask = fbx_peek(&from->msg_mask);
        r.msg_told = fbx_peek(&from->msg_told);
        r.link_seen = fbx_peek(&from->link_seen);
        r.link_told = fbx_peek(&from->link_told);
        r.msi_pending = fbx_peek(&from->msi_pending);
        r.msi_mask = fbx_peek(&from->msi_mask);
        r.msi_used = fbx_peek(&from->msi_used);
        r.queue = fbx_peek(&from->queue);
        r.sequence = fbx_peek(&from->sequence);
        /* A writer fills the other snapshot; only two changes during our read could have touched this one. */
        fbx_fence_sleep();
        if (fbx_observe(&d->which) == which)
            return r;
    }
}

/* Under the lock. */
void fbxi_ntb_put(struct fbxl_ntb *d, const struct fbxi_ntb_registers *r)
{
    uint64_t which = fbx_peek(&d->which);
    struct fbxl_ntb_state *to = &d->state[(which + 1) & 1];
    /* A reader of the snapshot that we fill now must find the switch moved when it looks again. */
    fbx_fence_sleep();
    fbx_poke(&to->db, r->db);
    fbx_poke(&to->db_mask, r->db_mask);
    fbx_poke(&to->db_told, r->db_told);
    fbx_poke(&to->msg_sts, r->msg_sts);
    fbx_poke(&to->msg_mask, r->msg_mask);
    fbx_poke(&to->msg_told, r->msg_told);
    fbx_poke(&to->link_seen, r->link_seen);
    fbx_poke(&to->link_told, r->link_told);
    fbx_poke(&to->msi_pending, r->msi_pending);
    fbx_poke(&to->msi_mask, r->msi_mask);
    fbx_poke(&to->msi_used, r->msi_used);
    fbx_poke(&to->queue, r->queue);
    fbx_poke(&to->sequence, r->sequence);
    /* Pairs with: fbx_observe(&d->which) in fbxi_ntb_read(). Breaks: a bit of one change and the mask of another. */
    fbx_publish(&d->which, which + 1);
}

static uint64_t db_events(const struct fbxi_ntb_profile *p, const struct fbxi_ntb_registers *r)
{
    return r->db & ~r->db_mask & ~r->db_told & fbxi_ntb_valid(p);
}

static uint64_t msg_events(const struct fbxi_ntb_profile *p, const struct fbxi_ntb_registers *r)
{
    return r->msg_sts & ~r->msg_mask & ~r->msg_told & (in_bits(p) | out_bits(p));
}

static uint64_t msi_events(const struct fbxi_ntb_registers *r) { return r->msi_pending & ~r->msi_mask & r->msi_used; }

/* Does an interrupt message name a vector that somebody holds, as its descriptor said? Under the lock. */
static int msi_known(struct fbxl_ntb *d, const struct fbxi_ntb_registers *r, const struct fbxi_ntb_write *w)
{
    const uint64_t vector = w->reg / 4;
    return r->msi_used >> vector & 1 && fbx_peek(&d->msi[vector].data) == (uint32_t)w->value;
}

/* What an entry may name; what it says beyond that is looked at under the lock. */
static int exists(const struct fbxi_ntb_profile *p, const struct fbxi_ntb_write *w)
{
    switch (w->kind) {
    case FBXL_ENTRY_DOORBELL: return w->reg < 4;
    case FBXL_ENTRY_SPAD: return w->reg < p->spads;
    case FBXL_ENTRY_MESSAGE: return w->reg < p->messages;
    case FBXL_ENTRY_MSI: return !(w->reg & 3) && w->reg / 4 < p->msis;
    default: return 0;
    }
}

static void reset(struct fbxl_ntb *d)
{
    struct fbxi_ntb_registers r = fbxi_ntb_read(d), clean = {.link_seen = r.link_seen, .link_told = r.link_told, .queue = r.queue,
                                           .sequence = r.sequence};
    fbxi_ntb_put(d, &clean);
    for (uint32_t i = 0; i < FBX_NTB_SPADS; i++)
        fbx_poke(&d->spad[i], 0);
}

static uint64_t peers_up(fbx_fabric *f, uint32_t node);

int fbxi_ntb_get(fbx_fabric *f, uint32_t node, struct fbxl_ntb **out)
{
    *out = fbxi_ntb_device(f, node);
    if (*out)
        return 0;
    uint64_t offset = 0, up = peers_up(f, node);
    int status = fbxi_control_lock(f);
    if (status)
        return status;
    struct fbxl_node *n = &f->nodes[node];
    if (!fbx_observe(&n->ntb) && !(status = fbxi_heap(f, sizeof(struct fbxl_ntb), &offset))) {
        struct fbxl_ntb *d = fbxi_at(f, offset);
        fbx_poke(&d->state[0].link_seen, up);
        /* Pairs with: fbx_observe(&node->ntb) in fbxi_ntb_device(). Breaks: registers with garbage in them. */
        fbx_publish(&n->ntb, offset);
    }
    fbxi_control_unlock(f);
    *out = fbxi_ntb_device(f, node);
    return status || *out ? status : fbxi_fail(FBX_E_CORRUPT, "the registers of %s lie outside the control segment",
                                               f->node_facts[node].name);
}

void fbxi_ntb_reset(fbx_fabric *f, uint32_t node)
{
    struct fbxl_ntb *d = fbxi_ntb_device(f, node);
    if (!f->machines) /* all machines know whether it is open: see attach() */
        fbx_publish(&f->nodes[node].ntb_down, 0);
    if (d && fbxi_lock(f, &d->lock, FBX_STALL_NS) >= 0) {
        reset(d);
        fbxi_unlock(f, &d->lock);
    }
}

/* ---- telling those who wait --------------------------------------------------------------------------------------- */

static void fifo_path(const fbx_fabric *f, uint32_t node, char *out, size_t room)
{
    /* Ends with the fabric as its memory does: by the same prefix. */
    snprintf(out, room, "%s/fabrex@%u@%s@%016llx@r-events-%u", f->directory, f->uid, f->name,
             (unsigned long long)f->instance, node);
}

static int fifo_open(const fbx_fabric *f, uint32_t node)
{
    char path[400];
    struct stat found;
    fifo_path(f, node, path, sizeof path);
    /* For both directions: it never blocks, and a reader that goes away raises no signal. */
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0 && (fstat(fd, &found) || !S_ISFIFO(found.st_mode))) {
        close(fd);
        errno = EEXIST;
        fd = -1;
    }
    return fd;
}

static void fifo_ring(const fbx_fabric *f, uint32_t node)
{
    int saved = errno, fd = fifo_open(f, node);
    if (fd >= 0) {
        /* Full is as good: it is readable. */
        while (write(fd, "", 1) < 0 && errno == EINTR)
            ;
        close(fd);
    }
    errno = saved;
}

void fbxi_ntb_notify(fbx_fabric *f, uint32_t node, struct fbxl_ntb *d)
{
    /* Pairs with: the waiter's add and look in fbx_ntb_wait_event(). Breaks: a sleeper that nobody wakes. */
    fbx_add(&d->changed, 1);
    if (fbx_observe(&d->waiters))
        fbxi_futex_wake(&d->changed);
    if (fbx_observe(&f->nodes[node].event_fds))
        fifo_ring(f, node);
}

void fbxi_ntb_posted(fbx_fabric *f, uint32_t target)
{
    struct fbxl_ntb *d = fbxi_ntb_device(f, target);
    if (d && fbx_observe(&d->waiters)) {
        fbx_add(&d->changed, 1);
        fbxi_futex_wake(&d->changed);
    }
    if (fbx_observe(&f->nodes[target].event_fds)) {
        fbx_or(&f->watched, 1ull << (target & 63));
        fbxi_service_wake(f);
    }
}

/* ---- changing them ------------------------------------------------------------------------------------------------- */

static void ring(struct fbxi_ntb_registers *r, uint64_t op, uint64_t bits)
{
    switch (op) {
    case FBXI_DB_SET:
        r->db |= bits;
        r->db_told &= ~bits;
        break;
    case FBXI_DB_CLEAR: r->db &= ~bits; break;
    case FBXI_DB_SET_MASK: r->db_mask |= bits; break;
    default:
        r->db_told &= ~(bits & r->db_mask); /* unmasked over a pending bit: that is an event */
        r->db_mask &= ~bits;
        break;
    }
}

/* Mark it as done, in the same change. What the registers said about another queue goes to that queue first. */
static void done(fbx_fabric *f, struct fbxi_ntb_registers *r, const struct fbxi_ntb_write *w)
{
    if (!w->queue)
        return;
    uint64_t at = (uint64_t)((uint8_t *)w->queue - f->base);
    if (r->queue && r->queue != at) {
        struct fbxl_queue *before = fbxi_heap_at(f, r->queue, sizeof *before);
        if (before && fbx_peek(&before->ntb_applied) < r->sequence)
            fbx_publish(&before->ntb_applied, r->sequence);
    }
    r->queue = at;
    r->sequence = w->sequence;
}

static int done_before(const fbx_fabric *f, const struct fbxi_ntb_registers *r, const struct fbxi_ntb_write *w)
{
    return w->queue && (w->sequence <= fbx_observe(&w->queue->ntb_applied) ||
                        (r->queue == (uint64_t)((uint8_t *)w->queue - f->base) && w->sequence <= r->sequence));
}

/* The sender learns that its message found the register full. */
static int reject(fbx_fabric *f, uint32_t sender, uint64_t bit)
{
    struct fbxl_ntb *d = fbxi_ntb_device(f, sender);
    if (!d)
        return 0;
    if (fbxi_lock(f, &d->lock, BUSY_NS) < 0)
        return FBX_E_BUSY;
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    r.msg_sts |= bit;
    r.msg_told &= ~bit;
    fbxi_ntb_put(d, &r);
    fbxi_unlock(f, &d->lock);
    if (msg_events(fbxi_ntb_profile(f, sender), &r))
        fbxi_ntb_notify(f, sender, d);
    return 0;
}

int fbxi_ntb_apply(fbx_fabric *f, uint32_t node, const struct fbxi_ntb_write *w)
{
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(f, node);
    struct fbxl_ntb *d = fbxi_ntb_device(f, node);
    const uint64_t reg = w->reg, in = 1ull << (MSG_IN_SHIFT + (reg & 15));
    int status = 0;
    if (!d || w->source >= f->node_count || !exists(p, w))
        return FBX_E_INVALID;
    if (fbxi_lock(f, &d->lock, BUSY_NS) < 0)
        return FBX_E_BUSY;
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    const uint64_t bells = db_events(p, &r), messages = msg_events(p, &r), interrupts = msi_events(&r);
    const int again = done_before(f, &r, w);
    if (!again) {
        if (w->kind == FBXL_ENTRY_DOORBELL) {
            ring(&r, reg, w->value & fbxi_ntb_valid(p));
        } else if (w->kind == FBXL_ENTRY_SPAD) {
            fbx_poke(&d->spad[reg], (uint32_t)w->value);
        } else if (w->kind == FBXL_ENTRY_MSI) {
            if (!msi_known(d, &r, w)) {
                fbxi_unlock(f, &d->lock);
                return FBX_E_INVALID; /* of a vector that was freed, or garbage: it interrupts nobody */
            }
            r.msi_pending |= 1ull << reg / 4;
        } else if (!(r.msg_sts & in)) {
            fbx_poke(&d->message[reg].value, (uint32_t)w->value);
            fbx_poke(&d->message[reg].source, w->source);
            r.msg_sts |= in;
            r.msg_told &= ~in;
        } else {
            /* Two devices' locks are never held at once. Whatever becomes free meanwhile, this message is lost. */
            fbxi_unlock(f, &d->lock);
            if ((status = reject(f, w->source, 1ull << reg)) || fbxi_lock(f, &d->lock, BUSY_NS) < 0)
                return FBX_E_BUSY;
            r = fbxi_ntb_read(d);
        }
        done(f, &r, w);
        fbxi_ntb_put(d, &r);
    }
    fbxi_unlock(f, &d->lock);
    /* What was an event before has been told of; but a deliverer that died may not have come to it. */
    if (again || db_events(p, &r) & ~bells || msg_events(p, &r) & ~messages || msi_events(&r) & ~interrupts)
        fbxi_ntb_notify(f, node, d);
    return 0;
}

void fbxi_ntb_rejected(fbx_fabric *f, uint32_t node, uint64_t bits)
{
    for (uint32_t i = 0; i < FBX_NTB_MESSAGES; i++)
        if (bits >> i & 1)
            (void)reject(f, node, 1ull << i);
}

uint64_t fbxi_ntb_take_rejected(fbx_fabric *f, uint32_t node)
{
    struct fbxl_ntb *d = fbxi_ntb_device(f, node);
    const uint64_t all = out_bits(fbxi_ntb_profile(f, node));
    if (!d || !(fbxi_ntb_read(d).msg_sts & all) || fbxi_lock(f, &d->lock, BUSY_NS) < 0)
        return 0;
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    uint64_t bits = r.msg_sts & all;
    r.msg_sts &= ~bits;
    fbxi_ntb_put(d, &r);
    fbxi_unlock(f, &d->lock);
    return bits;
}

int fbxi_ntb_sample(fbx_fabric *f, uint32_t node, uint32_t what, uint64_t index, uint64_t *value)
{
    struct fbxl_ntb *d = fbxi_ntb_device(f, node);
    if (what <= 1)
        return fbxi_ntb_doorbell(f, node, (int)what, value);
    if (what != 2 || index >= fbxi_ntb_profile(f, node)->spads)
        return FBX_E_INVALID;
    *value = d ? fbx_observe(&d->spad[index]) : 0;
    return 0;
}

int fbxi_ntb_doorbell(fbx_fabric *f, uint32_t node, int mask, uint64_t *bits)
{
    struct fbxl_ntb *d = fbxi_ntb_device(f, node);
    struct fbxi_ntb_registers r = {0};
    if (d)
        r = fbxi_ntb_read(d);
    *bits = (mask ? r.db_mask : r.db) & fbxi_ntb_valid(fbxi_ntb_profile(f, node));
    return 0;
}

/* ---- a node's own device -------------------------------------------------------------------------------------------- */

int fbxi_ntb_usable(fbx_node *n)
{
    fbx_fabric *f = n->fabric;
    if (fbx_peek(&n->closed) || fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the handle of %s is closed", n->facts->name);
    if (fbx_peek(&f->header->state) & FBXL_CLOSED)
        return fbxi_fail(FBX_E_CLOSED, "fabric '%s' has been taken down", f->name);
    return 0;
}

/* When the next of what this node waits for is due: what travels to it, and its own messages, which may come back. */
static uint64_t due(fbx_node *n)
{
    fbx_fabric *f = n->fabric;
    uint64_t first = fbxi_next_due(f, n->index);
    uint32_t count = fbxi_ntb_profile(f, n->index)->messages ? fbx_observe(&n->used_targets_count) : 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t at = fbxi_next_due(f, n->used_targets[i]);
        first = at < first ? at : first;
    }
    return first;
}

/* Before software looks at its own registers it sees what has arrived there, and which of its messages were not taken. */
int fbxi_ntb_own(fbx_node *n, struct fbxl_ntb **d)
{
    int status = fbxi_ntb_usable(n);
    if (!status)
        status = fbxi_ntb_get(n->fabric, n->index, d);
    if (status)
        return status;
    fbx_fabric *f = n->fabric;
    if (fbx_observe(n->pending))
        fbxi_deliver(f, n->index, fbxi_now(&f->clock));
    uint32_t count = fbxi_ntb_profile(f, n->index)->messages ? fbx_observe(&n->used_targets_count) : 0;
    for (uint32_t i = 0; i < count; i++)
        if (fbx_observe(&f->nodes[n->used_targets[i]].pending))
            fbxi_deliver(f, n->used_targets[i], fbxi_now(&f->clock));
    return 0;
}

int fbxi_ntb_own_lock(fbx_node *n, struct fbxl_ntb **d)
{
    int status = fbxi_ntb_own(n, d);
    if (!status && fbxi_lock(n->fabric, &(*d)->lock, FBX_STALL_NS) < 0)
        status = fbxi_fail(FBX_E_BUSY, "a stopped process holds the registers of %s", n->facts->name);
    return status;
}

int fbx_db_valid_mask(fbx_node *n, uint64_t *bits)
{
    *bits = fbxi_ntb_valid(fbxi_ntb_profile(n->fabric, n->index));
    return fbxi_ntb_usable(n);
}

int fbx_db_vector_count(fbx_node *n)
{
    int status = fbxi_ntb_usable(n);
    return status ? status : (int)fbxi_ntb_profile(n->fabric, n->index)->vectors;
}

static uint64_t vector_mask(const struct fbxi_ntb_profile *p, uint32_t vector)
{
    if (p->vectors == 1)
        return fbxi_ntb_valid(p);
    return vector < p->doorbells ? 1ull << vector : 0; /* the one beyond is the link's */
}

int fbx_db_vector_mask(fbx_node *n, uint32_t vector, uint64_t *bits)
{
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(n->fabric, n->index);
    int status = fbxi_ntb_usable(n);
    *bits = 0;
    if (status)
        return status;
    if (vector >= p->vectors)
        return fbxi_fail(FBX_E_INVALID, "%s has %u doorbell vectors, no vector %u", n->facts->name, p->vectors, vector);
    *bits = vector_mask(p, vector);
    return 0;
}

static int read_doorbell(fbx_node *n, int mask, uint64_t *bits)
{
    struct fbxl_ntb *d;
    *bits = 0;
    int status = fbxi_ntb_own(n, &d);
    return status ? status : fbxi_ntb_doorbell(n->fabric, n->index, mask, bits);
}

int fbx_db_read(fbx_node *n, uint64_t *bits) { return read_doorbell(n, 0, bits); }
int fbx_db_read_mask(fbx_node *n, uint64_t *bits) { return read_doorbell(n, 1, bits); }

static int change_doorbell(fbx_node *n, uint64_t op, uint64_t bits)
{
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(n->fabric, n->index);
    struct fbxl_ntb *d;
    if (op == FBXI_DB_SET && !p->peer_registers)
        return fbxi_fail(FBX_E_INVALID, "the device of %s cannot set its own doorbells", n->facts->name);
    if (bits & ~fbxi_ntb_valid(p))
        return fbxi_fail(FBX_E_INVALID, "0x%llx: %s has doorbells 0x%llx", (unsigned long long)bits, n->facts->name,
                         (unsigned long long)fbxi_ntb_valid(p));
    int status = fbxi_ntb_own_lock(n, &d);
    if (status)
        return status;
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    ring(&r, op, bits);
    fbxi_ntb_put(d, &r);
    fbxi_unlock(n->fabric, &d->lock);
    if ((op == FBXI_DB_SET || op == FBXI_DB_CLEAR_MASK) && db_events(p, &r))
        fbxi_ntb_notify(n->fabric, n->index, d);
    return 0;
}

int fbx_db_set(fbx_node *n, uint64_t bits) { return change_doorbell(n, FBXI_DB_SET, bits); }
int fbx_db_clear(fbx_node *n, uint64_t bits) { return change_doorbell(n, FBXI_DB_CLEAR, bits); }
int fbx_db_set_mask(fbx_node *n, uint64_t bits) { return change_doorbell(n, FBXI_DB_SET_MASK, bits); }
int fbx_db_clear_mask(fbx_node *n, uint64_t bits) { return change_doorbell(n, FBXI_DB_CLEAR_MASK, bits); }

int fbx_spad_count(fbx_node *n)
{
    int status = fbxi_ntb_usable(n);
    return status ? status : (int)fbxi_ntb_profile(n->fabric, n->index)->spads;
}

static int own_spad(fbx_node *n, uint32_t sidx, struct fbxl_ntb **d)
{
    uint32_t count = fbxi_ntb_profile(n->fabric, n->index)->spads;
    if (sidx >= count)
        return fbxi_fail(FBX_E_INVALID, "%s has %u scratchpads, no scratchpad %u", n->facts->name, count, sidx);
    return fbxi_ntb_own(n, d);
}

int fbx_spad_read(fbx_node *n, uint32_t sidx, uint32_t *value)
{
    struct fbxl_ntb *d;
    *value = UINT32_MAX;
    if (!fbxi_ntb_profile(n->fabric, n->index)->spads)
        return fbxi_ntb_usable(n);
    int status = own_spad(n, sidx, &d);
    if (!status)
        *value = fbx_observe(&d->spad[sidx]);
    return status;
}

int fbx_spad_write(fbx_node *n, uint32_t sidx, uint32_t value)
{
    struct fbxl_ntb *d;
    int status = own_spad(n, sidx, &d);
    if (!status)
        fbx_publish(&d->spad[sidx], value);
    return status;
}

int fbx_msg_count(fbx_node *n)
{
    int status = fbxi_ntb_usable(n);
    return status ? status : (int)fbxi_ntb_profile(n->fabric, n->index)->messages;
}

int fbx_msg_inbits(fbx_node *n, uint64_t *bits)
{
    *bits = in_bits(fbxi_ntb_profile(n->fabric, n->index));
    return fbxi_ntb_usable(n);
}

int fbx_msg_outbits(fbx_node *n, uint64_t *bits)
{
    *bits = out_bits(fbxi_ntb_profile(n->fabric, n->index));
    return fbxi_ntb_usable(n);
}

int fbx_msg_read_sts(fbx_node *n, uint64_t *bits)
{
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(n->fabric, n->index);
    struct fbxl_ntb *d;
    *bits = 0;
    int status = fbxi_ntb_own(n, &d);
    if (!status)
        *bits = fbxi_ntb_read(d).msg_sts & (in_bits(p) | out_bits(p));
    return status;
}

enum { STS_CLEAR, MASK_SET, MASK_CLEAR };
static int change_message(fbx_node *n, int what, uint64_t bits)
{
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(n->fabric, n->index);
    struct fbxl_ntb *d;
    if (!p->messages || bits & ~(in_bits(p) | out_bits(p)))
        return fbxi_fail(FBX_E_INVALID, "0x%llx: %s has %u message registers", (unsigned long long)bits, n->facts->name,
                         p->messages);
    int status = fbxi_ntb_own_lock(n, &d);
    if (status)
        return status;
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    if (what == STS_CLEAR) {
        r.msg_sts &= ~bits;
    } else if (what == MASK_SET) {
        r.msg_mask |= bits;
    } else {
        r.msg_told &= ~(bits & r.msg_mask);
        r.msg_mask &= ~bits;
    }
    fbxi_ntb_put(d, &r);
    fbxi_unlock(n->fabric, &d->lock);
    if (what == MASK_CLEAR && msg_events(p, &r))
        fbxi_ntb_notify(n->fabric, n->index, d);
    return 0;
}

int fbx_msg_clear_sts(fbx_node *n, uint64_t bits) { return change_message(n, STS_CLEAR, bits); }
int fbx_msg_set_mask(fbx_node *n, uint64_t bits) { return change_message(n, MASK_SET, bits); }
int fbx_msg_clear_mask(fbx_node *n, uint64_t bits) { return change_message(n, MASK_CLEAR, bits); }

int fbx_msg_read(fbx_node *n, uint32_t midx, uint32_t *pidx, uint32_t *value)
{
    uint32_t count = fbxi_ntb_profile(n->fabric, n->index)->messages;
    struct fbxl_ntb *d;
    *value = *pidx = UINT32_MAX;
    if (!count)
        return fbxi_ntb_usable(n);
    if (midx >= count)
        return fbxi_fail(FBX_E_INVALID, "%s has %u message registers, no register %u", n->facts->name, count, midx);
    int status = fbxi_ntb_own_lock(n, &d);
    if (status)
        return status;
    uint32_t source = fbx_peek(&d->message[midx].source);
    *value = fbx_peek(&d->message[midx].value);
    fbxi_unlock(n->fabric, &d->lock);
    int found = fbx_node_pidx(n, source);
    if (found >= 0)
        *pidx = (uint32_t)found;
    return 0;
}

/* ---- ports and links ------------------------------------------------------------------------------------------------ */

/* Every node but switches is a port; they are numbered in the order of the topology. */
static int is_port(const fbx_fabric *f, uint32_t node) { return f->node_facts[node].kind != FBXL_SWITCH; }

static uint32_t port_of(const fbx_fabric *f, uint32_t node)
{
    uint32_t port = 0;
    for (uint32_t i = 0; i < node; i++)
        port += is_port(f, i);
    return port;
}

int fbx_port_number(fbx_node *n)
{
    int status = fbxi_ntb_usable(n);
    return status ? status : (int)port_of(n->fabric, n->index);
}

int fbx_peer_port_count(fbx_node *n)
{
    int status = fbxi_ntb_usable(n);
    return status ? status : (int)port_of(n->fabric, n->fabric->node_count) - 1;
}

int fbxi_ntb_peer(fbx_node *n, uint32_t pidx, uint32_t *peer)
{
    const fbx_fabric *f = n->fabric;
    uint32_t at = 0;
    for (uint32_t i = 0; i < f->node_count; i++)
        if (is_port(f, i) && i != n->index && at++ == pidx) {
            *peer = i;
            return 0;
        }
    return fbxi_fail(FBX_E_INVALID, "%s has %u peers, no peer %u", n->facts->name, at, pidx);
}

int fbx_peer_node(fbx_node *n, uint32_t pidx)
{
    uint32_t peer;
    int status = fbxi_ntb_usable(n);
    if (!status)
        status = fbxi_ntb_peer(n, pidx, &peer);
    return status ? status : (int)peer;
}

int fbx_peer_port_number(fbx_node *n, uint32_t pidx)
{
    int peer = fbx_peer_node(n, pidx);
    return peer < 0 ? peer : (int)port_of(n->fabric, (uint32_t)peer);
}

int fbx_node_pidx(fbx_node *n, uint32_t peer)
{
    int status = fbxi_ntb_usable(n);
    if (status)
        return status;
    if (peer >= n->fabric->node_count || peer == n->index || !is_port(n->fabric, peer))
        return fbxi_fail(FBX_E_INVALID, "node %u is no peer of %s", peer, n->facts->name);
    uint32_t port = port_of(n->fabric, peer);
    return (int)(peer > n->index ? port - 1 : port);
}

int fbx_peer_port_idx(fbx_node *n, int port)
{
    const fbx_fabric *f = n->fabric;
    int status = fbxi_ntb_usable(n), at = 0;
    if (status)
        return status;
    for (uint32_t i = 0; i < f->node_count; i++)
        if (is_port(f, i) && at++ == port && i != n->index)
            return fbx_node_pidx(n, i);
    return fbxi_fail(FBX_E_INVALID, "port %d is no peer of %s", port, n->facts->name);
}

int fbxi_ntb_linked(fbx_fabric *f, uint32_t a, uint32_t b)
{
    uint32_t directions[FBX_MAX_HOPS], hops;
    if (fbx_observe(&f->nodes[a].ntb_down) || fbx_observe(&f->nodes[b].ntb_down) ||
        fbx_observe(&f->nodes[a].state) == FBXL_LOST || fbx_observe(&f->nodes[b].state) == FBXL_LOST ||
        fbxi_way(f, a, b, 0, directions, &hops))
        return 0;
    for (uint32_t i = 0; i < hops; i++)
        if (fbx_observe(&f->links[directions[i] / 2].state))
            return 0;
    return 1;
}

static uint64_t peers_up(fbx_fabric *f, uint32_t node)
{
    uint64_t up = 0;
    uint32_t pidx = 0;
    for (uint32_t i = 0; i < f->node_count && pidx < 64; i++)
        if (is_port(f, i) && i != node)
            up |= (uint64_t)fbxi_ntb_linked(f, node, i) << pidx++;
    return up;
}

int fbx_ntb_link_is_up(fbx_node *n, uint64_t *peers, uint32_t *speed, uint32_t *width)
{
    fbx_fabric *f = n->fabric;
    int status = fbxi_ntb_usable(n);
    uint64_t up = status ? 0 : peers_up(f, n->index);
    uint32_t peer, directions[FBX_MAX_HOPS], hops = 0;
    if (up && (fbxi_ntb_peer(n, (uint32_t)__builtin_ctzll(up), &peer) || fbxi_way(f, n->index, peer, 0, directions, &hops)))
        hops = 0;
    if (peers)
        *peers = up;
    uint64_t value[FBX_LINK_KEYS] = {0};
    if (hops)
        fbxi_link_current(f, directions[hops - 1] / 2, value);
    if (speed)
        *speed = (uint32_t)value[FBX_LINK_GEN];
    if (width)
        *width = (uint32_t)value[FBX_LINK_LANES];
    return status;
}

int fbx_ntb_peer_is_up(fbx_node *n, uint32_t pidx)
{
    int peer = fbx_peer_node(n, pidx);
    return peer < 0 ? peer : fbxi_ntb_linked(n->fabric, n->index, (uint32_t)peer);
}

static int crosses(fbx_fabric *f, uint32_t a, uint32_t b, uint32_t link)
{
    uint32_t directions[FBX_MAX_HOPS], hops;
    if (fbxi_way(f, a, b, 0, directions, &hops))
        return 0;
    for (uint32_t i = 0; i < hops; i++)
        if (directions[i] / 2 == link)
            return 1;
    return 0;
}

void fbxi_ntb_links_changed(fbx_fabric *f, uint32_t link, uint32_t node)
{
    for (uint32_t i = 0; i < f->node_count; i++) {
        struct fbxl_ntb *d = fbxi_ntb_device(f, i);
        int touched = node != UINT32_MAX;
        for (uint32_t k = 0; d && !touched && k < f->node_count; k++)
            touched = k != i && is_port(f, k) && crosses(f, i, k, link);
        if (!d || !touched)
            continue;
        fbx_add(&d->link_changes, 1);
        fbxi_ntb_notify(f, i, d);
    }
}

/* ---- events --------------------------------------------------------------------------------------------------------- */

/* Peers' states are looked at again only when something of the fabric's control state has changed. */
static uint64_t peers_now(fbx_node *n)
{
    fbx_fabric *f = n->fabric;
    uint64_t epoch = fbx_observe(&f->header->control_epoch) + fbx_observe(&f->header->sessions_reaped) + 1;
    if (fbx_observe(&n->link_epoch) != epoch) {
        fbx_poke(&n->link_peers, peers_up(f, n->index));
        fbx_publish(&n->link_epoch, epoch);
    }
    return fbx_peek(&n->link_peers);
}

static int link_event(fbx_node *n, struct fbxl_ntb *d, const struct fbxi_ntb_registers *r, uint64_t *up)
{
    *up = peers_now(n);
    return r->link_told != fbx_observe(&d->link_changes) || r->link_seen != *up;
}

static int any_event(fbx_node *n, struct fbxl_ntb *d)
{
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(n->fabric, n->index);
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    uint64_t up;
    return db_events(p, &r) || msg_events(p, &r) || msi_events(&r) || link_event(n, d, &r, &up);
}

static int take(fbx_node *n, struct fbxl_ntb *d, struct fbx_ntb_event *out, uint32_t room)
{
    fbx_fabric *f = n->fabric;
    const struct fbxi_ntb_profile *p = fbxi_ntb_profile(f, n->index);
    const uint32_t fd = fbx_observe(&n->event_fd);
    char drained[256];
    /* First the bytes, then the events: what comes later rings again. */
    while (fd && read((int)fd - 1, drained, sizeof drained) == (ssize_t)sizeof drained)
        ;
    if (!any_event(n, d))
        return 0;
    if (fbxi_lock(f, &d->lock, FBX_STALL_NS) < 0)
        return fbxi_fail(FBX_E_BUSY, "a stopped process holds the registers of %s", n->facts->name);
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    uint64_t up, changes = fbx_observe(&d->link_changes), bells = db_events(p, &r), messages = msg_events(p, &r);
    uint32_t count = 0;
    if (count < room && link_event(n, d, &r, &up)) {
        out[count++] = (struct fbx_ntb_event){FBX_NTB_LINK, 0, up};
        r.link_told = changes;
        r.link_seen = up;
    }
    for (uint32_t v = 0; v < p->vectors && bells && count < room; v++) {
        uint64_t bits = bells & vector_mask(p, v);
        if (!bits)
            continue;
        out[count++] = (struct fbx_ntb_event){FBX_NTB_DOORBELL, v, bits};
        r.db_told |= bits;
        bells &= ~bits;
    }
    if (messages && count < room) {
        out[count++] = (struct fbx_ntb_event){FBX_NTB_MESSAGE, 0, messages};
        r.msg_told |= messages;
    }
    for (uint64_t left = msi_events(&r); left && count < room; left &= left - 1) {
        uint32_t vector = (uint32_t)__builtin_ctzll(left);
        out[count++] = (struct fbx_ntb_event){FBX_NTB_MSI, vector, 1ull << vector};
        r.msi_pending &= ~(1ull << vector);
    }
    if (count)
        fbxi_ntb_put(d, &r);
    fbxi_unlock(f, &d->lock);
    fbx_count(&n->shared->events, count);
    if (fd && any_event(n, d))
        fifo_ring(f, n->index);
    return (int)count;
}

int fbxi_ntb_any(fbx_node *n)
{
    struct fbxl_ntb *d;
    return fbxi_ntb_own(n, &d) || any_event(n, d); /* an error is worth a look, too */
}

int fbx_ntb_wait_event(fbx_node *n, struct fbx_ntb_event *out, uint32_t room, uint64_t max_wait_ns)
{
    fbx_fabric *f = n->fabric;
    struct fbxl_ntb *d;
    static _Thread_local int processors;
    uint64_t begin = 0, ticks;
    if (!room)
        return fbxi_fail(FBX_E_INVALID, "no room for an event");
    if (!processors) {
        cpu_set_t set;
        processors = sched_getaffinity(0, sizeof set, &set) ? 2 : CPU_COUNT(&set);
    }
    for (;;) {
        int status = fbxi_ntb_own(n, &d);
        if (status)
            return status;
        uint32_t seen = fbx_observe(&d->changed);
        if ((status = take(n, d, out, room)))
            return status;
        if (f->clock.kind != FBX_REAL || !max_wait_ns)
            return FBX_E_AGAIN;
        uint64_t ns = fbxi_monotonic_ns();
        if (!begin)
            begin = ns;
        if (ns - begin >= max_wait_ns)
            return FBX_E_AGAIN;
        if (ns - begin < SPIN_NS && processors > 1) {
            for (int i = 0; i < 50; i++)
                fbx_relax();
            continue;
        }
        uint64_t limit = max_wait_ns - (ns - begin), now = fbxi_now(&f->clock);
        if (limit > SLICE_NS)
            limit = SLICE_NS;
        fbx_add(&d->waiters, 1);
        /* What is on its way fires when it arrives, though nobody else may come by to deliver it. Whoever posts more wakes
         * us to look again. */
        uint64_t at = due(n);
        if (at <= now) /* a stopped process delivers it: it counts as not yet arrived */
            fbxi_futex_wait(&d->changed, seen, 100000u);
        else if (at != UINT64_MAX && at <= now + 200000000u)
            fbxi_wait(&f->clock, at, limit, FBX_SPIN_LAST_NS, NULL, &ticks);
        else {
            if (at != UINT64_MAX && (at - now) / 2000u < limit)
                limit = (at - now) / 2000u; /* half of it: the rest is waited for exactly */
            if (at != UINT64_MAX)
                fbxi_slept(&f->clock, limit);
            /* Pairs with: add then look for waiters in fbxi_ntb_notify() and fbxi_ntb_posted(). */
            if (fbx_observe(&d->changed) == seen)
                fbxi_futex_wait(&d->changed, seen, limit);
        }
        fbx_add(&d->waiters, 0xffffffffu);
    }
}

int fbx_ntb_event_fd(fbx_node *n)
{
    fbx_fabric *f = n->fabric;
    struct fbxl_ntb *d;
    int status = fbxi_ntb_own(n, &d);
    if (status)
        return status;
    if (fbx_observe(&n->event_fd))
        return (int)fbx_observe(&n->event_fd) - 1;
    if (!f->directory[0])
        return fbxi_fail(FBX_E_UNSUPPORTED, "a fabric that was opened by descriptors has no directory for event files");
    char path[400];
    fifo_path(f, n->index, path, sizeof path);
    (void)peers_up(f, n->index); /* the service thread, which must not build it, finds the way to each peer ready */
    pthread_mutex_lock(&n->mutex);
    if (!fbx_observe(&n->event_fd)) {
        int fd = mkfifo(path, 0600) && errno != EEXIST ? -1 : fifo_open(f, n->index);
        if (fd < 0) {
            status = fbxi_fail_system(FBX_E_SYSTEM, "cannot make %s", path);
        } else {
            /* From now on whoever raises an event writes a byte. */
            fbx_add(&n->shared->event_fds, 1);
            fbx_publish(&n->event_fd, (uint32_t)fd + 1);
            if (fbx_peek(&f->header->state) & FBXL_CLOSED)
                unlink(path); /* its end came between */
        }
    }
    pthread_mutex_unlock(&n->mutex);
    if (!status && any_event(n, d))
        fifo_ring(f, n->index);
    return status ? status : (int)fbx_observe(&n->event_fd) - 1;
}

void fbxi_ntb_look(fbx_node *n)
{
    fbx_fabric *f = n->fabric;
    struct fbxl_ntb *d = fbxi_ntb_device(f, n->index);
    int readable = 0;
    fbxi_deliver(f, n->index, fbxi_now(&f->clock));
    /* Whoever raised an event may have died before it wrote its byte, and a peer that dies writes none. */
    if (d && any_event(n, d) && !ioctl((int)fbx_observe(&n->event_fd) - 1, FIONREAD, &readable) && !readable)
        fifo_ring(f, n->index);
}

void fbxi_ntb_close(fbx_node *n)
{
    uint32_t fd = fbx_swap(&n->event_fd, 0);
    if (!fd)
        return;
    close((int)fd - 1);
    if (fbx_peek(&n->fabric->forked))
        return;
    if (fbx_add(&n->shared->event_fds, 0xffffffffu) == 1 && n->fabric->flags & FBX_PRIVATE) {
        char path[400]; /* a fabric without files ends without anybody who looks for them */
        fifo_path(n->fabric, n->index, path, sizeof path);
        unlink(path);
    }
}
