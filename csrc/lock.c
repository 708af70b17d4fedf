/* SPDX-License-Identifier: Apache-2.0
 *
 * Who is alive, and locks that survive the death of their holder.
 *
 * A session is one opened fabric of one process. It is alive while it holds an open-file-description lock on its own
 * byte of the control file, far behind the file's end: the kernel releases that at death, whatever kills the process,
 * and it means the same in every container. Process ids are kept for people to read and never decide anything.
 *
 * A lock word names its holder's session and incarnation. A dead holder's lock is taken over by a compare-and-swap from
 * exactly that word, and the taker repairs what the lock protects; a living holder's lock is never stolen.
 */
#include "event.h"
#include "internal.h"
#include "registered.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOCK_BASE (1ll << 50)

#ifdef FBX_SITES
#include <signal.h>
extern const struct fbx_site __start_fbx_sites[], __stop_fbx_sites[];
static int armed_site = -1, armed_countdown;
void fbx_site_hit(const struct fbx_site *site)
{
    if (site - __start_fbx_sites == armed_site && --armed_countdown == 0)
        kill(getpid(), SIGKILL);
}
void fbx_site_arm(int site, int nth)
{
    armed_site = site;
    armed_countdown = nth;
}
int fbx_site_count(void) { return (int)(__stop_fbx_sites - __start_fbx_sites); }
const struct fbx_site *fbx_site_at(int i) { return &__start_fbx_sites[i]; }
#endif

static int byte_lock(int fd, int command, uint32_t session, short type, short *found)
{
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = LOCK_BASE + session, .l_len = 1};
    int result;
    do
        result = fcntl(fd, command, &range);
    while (result && errno == EINTR);
    if (found)
        *found = range.l_type;
    return result;
}

int fbxi_session_dead(fbx_fabric *f, uint32_t session, uint32_t incarnation)
{
    if (session >= f->capacity[FBXL_SESSIONS])
        return 1;
    if (session == f->session && incarnation == f->session_incarnation)
        return 0;
    if (session < fbxi_high(f, FBXL_SESSIONS) &&
        fbx_observe(&f->sessions[session].incarnation) != incarnation)
        return 1; /* somebody else has the slot by now, so the one asked for is gone */
    short found = F_UNLCK;
    if (byte_lock(f->fd, F_OFD_GETLK, session, F_WRLCK, &found))
        return 0; /* the kernel does not say: never steal on a guess */
    return found == F_UNLCK;
}

int fbx_session_alive(fbx_fabric *f, uint32_t session)
{
    if (session >= fbxi_high(f, FBXL_SESSIONS))
        return 0;
    return !fbxi_session_dead(f, session, fbx_observe(&f->sessions[session].incarnation));
}

static uint64_t identity(uint32_t session, uint32_t incarnation) { return ((uint64_t)incarnation << 16) | (session + 1u); }

/* What a dead session leaves: its requesters, lanes, nodes. Idempotent; the caller holds the session's byte. */
static void bury(fbx_fabric *f, uint32_t session)
{
    struct fbxl_session *s = &f->sessions[session];
    uint32_t incarnation = fbx_peek(&s->incarnation);
    uint32_t high = fbxi_high(f, FBXL_REQUESTERS);
    for (uint32_t i = 0; i < high; i++) {
        struct fbxl_requester *r = &f->requesters[i];
        if (fbx_observe(&r->state) == FBXL_FREE || fbx_observe(&r->session) != session + 1 ||
            r->session_incarnation != incarnation)
            continue;
        uint32_t node = r->node;
        fbx_poke(&r->state, FBXL_DYING);
        if (node < f->node_count && r->kind == FBX_OWNER && fbx_observe(&f->nodes[node].owner) == i + 1) {
            /* The peers must learn of it before the slot can be taken again.
             * Pairs with: fbx_observe(&node->state) where routes are resolved. Breaks: loads from a dead host succeed. */
            fbx_poke(&f->nodes[node].lost_at_ps, fbxi_now(&f->clock));
            fbx_publish(&f->nodes[node].state, FBXL_LOST);
            fbx_publish(&f->nodes[node].owner, 0);
            fbxi_invalidate_dependents(f, f->link_count + node);
            fbxi_event(f, &(struct fbxi_event){FBX_EVENT_NODE_LOST, node, UINT32_MAX, UINT32_MAX, s->pid, 0});
        } else if (node < f->node_count) {
            fbxi_event(f, &(struct fbxi_event){FBX_EVENT_NODE_DETACHED, node, UINT32_MAX, UINT32_MAX, s->pid, r->kind});
        }
        uint32_t lanes = fbxi_high(f, FBXL_LANES);
        for (uint32_t l = 0; l < lanes; l++)
            if (fbx_peek(&f->lanes[l].requester) == i + 1) {
                fbx_poke(&f->lanes[l].in_operation, 0);
                fbx_publish(&f->lanes[l].requester, 0);
            }
        fbx_publish(&r->state, FBXL_FREE);
    }
    fbxi_registered_bury(f, session, incarnation);
    /* It may have died after it changed a window or a link and before it told anybody. */
    for (uint32_t i = 0; i < high; i++)
        fbx_add(&f->requesters[i].generation, 1);
    /* Unnamed buffers of the dead have no other friend; named ones may be waited for by others and stay. */
    uint32_t buffers = fbxi_high(f, FBXL_BUFFERS);
    for (uint32_t i = 0; i < buffers; i++) {
        struct fbxl_buffer *b = &f->buffers[i];
        uint32_t state = fbx_observe(&b->state);
        if ((state == FBXL_BUFFER_LIVE || state == FBXL_BUFFER_RESERVED) && b->session == session &&
            b->session_incarnation == incarnation && (!b->name[0] || state == FBXL_BUFFER_RESERVED)) {
            uint32_t region = b->region;
            if (region < f->region_count) {
                fbx_poke(&f->regions[region].list_broken, 1);
                fbx_count(&f->regions[region].allocated, 0 - b->bytes);
            }
            fbx_publish(&b->state, FBXL_BUFFER_FREE);
        }
    }
    fbx_count(&f->header->sessions_reaped, 1);
    fbx_publish(&s->state, FBXL_FREE);
    fbx_add(&f->header->names_changed, 1);
    fbxi_futex_wake(&f->header->names_changed);
}

int fbxi_session_reserve(int fd, uint32_t session) { return byte_lock(fd, F_OFD_SETLK, session, F_WRLCK, NULL); }

int fbxi_sessions_held(int fd)
{
    struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_BASE, .l_len = 65536};
    return fcntl(fd, F_OFD_GETLK, &range) || range.l_type != F_UNLCK;
}

int fbxi_session_open(fbx_fabric *f)
{
    for (uint32_t i = f->creator ? 0 : 1; i < f->capacity[FBXL_SESSIONS]; i++) { /* the first is the creator's for ever */
        if (i < fbxi_high(f, FBXL_SESSIONS) && fbx_observe(&f->sessions[i].state) == FBXL_LIVE && f->session != i) {
            short found = F_UNLCK;
            if (byte_lock(f->fd, F_OFD_GETLK, i, F_WRLCK, &found) || found != F_UNLCK)
                continue;
        }
        if (byte_lock(f->fd, F_OFD_SETLK, i, F_WRLCK, NULL)) {
            if (errno == EAGAIN || errno == EACCES)
                continue;
            return fbxi_fail_system(FBX_E_SYSTEM, "cannot lock a session of the fabric's file");
        }
        int status = fbxi_table_take(f, FBXL_SESSIONS, i);
        if (status)
            return status;
        struct fbxl_session *s = &f->sessions[i];
        if (fbx_observe(&s->state) != FBXL_FREE)
            bury(f, i);
        f->session = i;
        f->session_incarnation = fbx_peek(&s->incarnation) + 1;
        s->pid = (uint32_t)getpid();
        s->start = fbxi_process_start(s->pid);
        fbx_poke(&s->asks, 0);
        fbx_poke(&s->mailbox, 0);
        fbx_publish(&s->incarnation, f->session_incarnation);
        fbx_publish(&s->state, FBXL_LIVE);
        f->identity = identity(i, f->session_incarnation);
        return 0;
    }
    return fbxi_fail(FBX_E_BUSY, "all %u sessions of the fabric are in use", f->capacity[FBXL_SESSIONS]);
}

void fbxi_session_close(fbx_fabric *f)
{
    if (f->session == UINT32_MAX)
        return;
    fbx_publish(&f->sessions[f->session].state, FBXL_FREE);
    byte_lock(f->fd, F_OFD_SETLK, f->session, F_UNLCK, NULL);
    f->session = UINT32_MAX;
}

int fbxi_reap(fbx_fabric *f)
{
    int reaped = 0;
    uint32_t high = fbxi_high(f, FBXL_SESSIONS);
    for (uint32_t i = 0; i < high; i++) {
        if (i == f->session || fbx_observe(&f->sessions[i].state) == FBXL_FREE)
            continue;
        short found = F_UNLCK;
        if (byte_lock(f->fd, F_OFD_GETLK, i, F_WRLCK, &found) || found != F_UNLCK)
            continue;
        if (byte_lock(f->fd, F_OFD_SETLK, i, F_WRLCK, NULL))
            continue; /* another reaper was faster */
        if (fbx_observe(&f->sessions[i].state) != FBXL_FREE) {
            bury(f, i);
            reaped++;
        }
        byte_lock(f->fd, F_OFD_SETLK, i, F_UNLCK, NULL);
    }
    return reaped;
}

int fbx_fabric_reap(fbx_fabric *f)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    return fbxi_reap(f);
}

/* ---- locks ------------------------------------------------------------------------------------------------------ */

void fbxi_futex_wait(fbx_au32 *word, uint32_t seen, uint64_t ns)
{
    struct timespec limit = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, NULL, 0);
}

void fbxi_service_wake(fbx_fabric *f)
{
    fbx_publish(&f->sessions[f->session].wake, 1);
    fbxi_futex_wake(&f->sessions[f->session].wake);
}

void fbxi_futex_wake(fbx_au32 *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0); }

int fbxi_trylock(fbx_fabric *f, struct fbxl_lock *lock)
{
    uint64_t holder = fbx_peek(&lock->holder);
    if (!holder)
        return fbx_claim(&lock->holder, 0, f->identity) ? 0 : FBX_E_BUSY;
    uint32_t session = (uint32_t)(holder & 0xffff) - 1u;
    if (holder != f->identity && fbxi_session_dead(f, session, (uint32_t)(holder >> 16)) &&
        fbx_claim(&lock->holder, holder, f->identity)) {
        fbx_count(&lock->takeovers, 1);
        fbx_count(&f->header->takeovers, 1);
        return 1;
    }
    return FBX_E_BUSY;
}

int fbxi_lock_slow(fbx_fabric *f, struct fbxl_lock *lock, uint64_t timeout_ns)
{
    uint64_t begin = 0, nap_ns = 0;
    for (uint32_t round = 1;; round++) {
        for (int i = 0; i < 200; i++) {
            if (!fbx_peek(&lock->holder) && fbx_claim(&lock->holder, 0, f->identity))
                return 0;
            fbx_relax();
        }
        int status = fbxi_trylock(f, lock);
        if (status >= 0)
            return status;
        uint64_t now = fbxi_monotonic_ns();
        if (!begin)
            begin = now;
        if (now - begin > timeout_ns)
            return FBX_E_BUSY;
        nap_ns = nap_ns ? (nap_ns < 1000000u ? nap_ns * 2 : nap_ns) : 2000u;
        fbx_count(&lock->waiters, 1);
        struct timespec nap = {0, (long)nap_ns};
        clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
        fbx_count(&lock->waiters, 0xffffffffu);
    }
}

int fbxi_control_lock(fbx_fabric *f)
{
    int status = fbxi_lock(f, &f->header->control, 5 * FBX_STALL_NS);
    if (status < 0)
        return fbxi_fail(FBX_E_BUSY, "another process holds the fabric's control lock and does not let go");
    return 0; /* every structure under this lock is consistent at every store, so a takeover repairs nothing */
}

void fbxi_control_unlock(fbx_fabric *f)
{
    fbx_count(&f->header->control_epoch, 1);
    fbxi_unlock(f, &f->header->control);
}

/* ---- generations -------------------------------------------------------------------------------------------------- */

int fbxi_membarrier_register(void)
{
    return (int)syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0);
}

/* The fast path stores its mark and loads its generation with no fence between; this call puts one into every running
 * thread of every process that registered, which is all that attach. In a fabric whose creator may not use
 * membarrier(2) the fast path has the fence instead. */
void fbxi_membarrier(const fbx_fabric *f)
{
    fbx_fence_sleep();
    if (!(f->flags & FBXL_EXPLICIT_FENCE))
        syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
}

static int clear_marks(fbx_fabric *f, const uint8_t *bumped, uint32_t requesters)
{
    fbxi_membarrier(f);
    uint64_t begin = 0;
    uint32_t high = fbxi_high(f, FBXL_LANES);
    if (high > f->capacity[FBXL_LANES])
        high = f->capacity[FBXL_LANES];
    for (uint32_t i = 0; i < high; i++) {
        struct fbxl_lane *lane = &f->lanes[i];
        uint32_t requester = fbx_observe(&lane->requester);
        if (!requester || requester > requesters || !bumped[requester - 1])
            continue;
        struct fbxl_requester *r = &f->requesters[requester - 1];
        uint32_t session = fbx_observe(&r->session) - 1, incarnation = r->session_incarnation;
        for (uint32_t round = 0;; round++) {
            /* Pairs with: the publish of 0 that ends an operation. Breaks: a store lands after disable returned. */
            if (!fbx_observe(&lane->in_operation) || fbx_observe(&lane->requester) != requester)
                break;
            fbx_relax();
            if (round < 2000)
                continue;
            if (fbxi_session_dead(f, session, incarnation))
                break;
            uint64_t now = fbxi_monotonic_ns();
            if (!begin)
                begin = now;
            if (now - begin > FBX_STALL_NS)
                return fbxi_fail(FBX_E_BUSY, "process %u is stopped in the middle of an operation",
                                 session < f->capacity[FBXL_SESSIONS] ? f->sessions[session].pid : 0);
            struct timespec nap = {0, 50000};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
        }
    }
    return 0;
}

static int invalidate(fbx_fabric *f, uint32_t node, uint32_t bit)
{
    uint32_t high = fbxi_high(f, FBXL_REQUESTERS);
    if (high > f->capacity[FBXL_REQUESTERS])
        high = f->capacity[FBXL_REQUESTERS];
    uint8_t *bumped = calloc(high ? high : 1, 1);
    if (!bumped)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    /* What changed is stored already; a requester that sets its dependency bit after this fence sees the change.
     * Pairs with: the fence between set bit and read state in resolve(). Breaks: a stale route that nobody bumps. */
    fbx_fence_sleep();
    for (uint32_t i = 0; i < high; i++) {
        struct fbxl_requester *r = &f->requesters[i];
        if (fbx_observe(&r->state) == FBXL_FREE)
            continue;
        if (node != UINT32_MAX) {
            if (r->node != node)
                continue;
        } else {
            fbx_au64 *bits = fbxi_heap_at(f, fbx_observe(&r->dependencies), (f->link_count + f->node_count + 63u) / 64u * 8u);
            if (bits) {
                if (!(fbx_observe(&bits[bit / 64]) >> (bit % 64) & 1))
                    continue;
            }
        }
        fbx_add(&r->generation, 1);
        bumped[i] = 1;
    }
    int status = clear_marks(f, bumped, high);
    free(bumped);
    return status;
}

int fbxi_invalidate_node_routes(fbx_fabric *f, uint32_t node) { return invalidate(f, node, 0); }
int fbxi_invalidate_dependents(fbx_fabric *f, uint32_t bit) { return invalidate(f, UINT32_MAX, bit); }
