/* SPDX-License-Identifier: Apache-2.0
 *
 * Registered memory: bytes that a program already has get addresses like any other. Each node has one more slot of the
 * global address space for them, behind the slots of all regions, and a registration takes a range of it. What nobody can
 * map must be moved by somebody who has it:
 *
 *   the process itself      copies, through the kernel where the bytes are not pinned, so that memory which was freed
 *                           meanwhile is an error and not a fault
 *   another process         asks the kernel to copy (process_vm_readv), where it permits that; a number that only the
 *                           registering process knows is read first, since process ids mean nothing across containers
 *   where it does not, and for atomics, which the kernel does not offer: asks the process's service thread, through a
 *                           mailbox in the control segment
 *
 * The table of buffers holds the registrations. Others use what stands there only to ask the kernel, which checks it; the
 * process itself uses a private copy. Ranges are not used again before all others have been, so what still points to a
 * registration that ended meets nothing.
 */
#include "registered.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

#define ASK_BYTES (64u << 10)
#define PAGE 4096u
#define VERIFIED_NS 10000000u /* process ids are not used again that soon */
#define VERIFIED 16u

enum { ASK_IDLE, ASK_ASKED, ASK_TAKEN, ASK_DONE };
enum { ASK_READ = 100, ASK_WRITE };

struct ask { /* one session's mailbox; the asker writes before ASKED, the asked one between TAKEN and DONE */
    fbx_au32 state; /* futex word */
    uint32_t kind, index, generation;
    uint64_t to; /* identity of the session that is asked */
    uint64_t at, bytes; /* within the registration */
    uint64_t operand[4];
    int32_t status;
    uint32_t pad[9];
    uint8_t data[ASK_BYTES];
};

struct own { /* what this process registered, as it said it */
    uint32_t index, generation, node, flags;
    uint8_t *address;
    uint64_t bytes;
};

struct fbxi_registered { /* of one opened fabric; made at first use, under `mutex` of the fabric's registrations */
    uint64_t seen; /* header.registrations when `all` was filled */
    struct fbxi_registration *all; /* by region and offset */
    uint32_t count, room;
    struct own *own;
    uint32_t own_count, own_room;
    uint64_t nonce;
    pthread_mutex_t asking; /* one question at a time */
    uint32_t refused; /* the kernel does not copy between us and others */
    struct {
        uint64_t nonce, until_ns;
    } verified[VERIFIED]; /* processes that were looked at lately: under the fabric's registered_mutex */
};

/* ---- who is registered ------------------------------------------------------------------------------------------------ */

static int by_place(const void *a, const void *b)
{
    const struct fbxi_registration *x = a, *y = b;
    if (x->region != y->region)
        return x->region < y->region ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static struct fbxi_registered *state_of(fbx_fabric *f)
{
    struct fbxi_registered *r = fbx_observe_pointer(&f->registered);
    if (r)
        return r;
    pthread_mutex_lock(&f->registered_mutex);
    if (!f->registered && (r = calloc(1, sizeof *r))) {
        const char *way = getenv("FABREX_REGISTERED");
        r->seen = UINT64_MAX;
        r->refused = way && !strcmp(way, "service");
        while (!r->nonce)
            if (getrandom(&r->nonce, sizeof r->nonce, 0) != sizeof r->nonce)
                break;
        pthread_mutex_init(&r->asking, NULL);
        fbx_publish_pointer(&f->registered, r);
    }
    r = f->registered;
    pthread_mutex_unlock(&f->registered_mutex);
    return r;
}

/* Read the table anew if it changed. Mutex held. */
static int refresh(fbx_fabric *f, struct fbxi_registered *r)
{
    /* Pairs with: the addition in changed(). Breaks: a registration that is not found. */
    uint64_t now = fbx_observe(&f->header->registrations);
    if (r->seen == now)
        return 0;
    uint32_t high = fbxi_high(f, FBXL_BUFFERS);
    r->count = 0;
    for (uint32_t i = 0; i < high; i++) {
        struct fbxl_buffer *b = &f->buffers[i];
        if (fbx_observe(&b->state) != FBXL_BUFFER_LIVE || b->kind != FBXL_BUFFER_REGISTERED)
            continue;
        struct fbxi_registration g = {
            .region = b->region, .index = i, .generation = fbx_observe(&b->generation), .session = b->session,
            .incarnation = b->session_incarnation, .pid = b->pid, .flags = b->flags, .offset = b->offset, .bytes = b->bytes,
            .address = b->address, .start = b->start, .nonce_at = b->nonce_at, .nonce = b->nonce};
        if (fbx_observe(&b->state) != FBXL_BUFFER_LIVE || fbx_observe(&b->generation) != g.generation)
            continue;
        if (g.region < f->region_count || g.region >= f->region_count + f->node_count || !g.bytes || g.bytes > FBX_SLOT_MASK ||
            g.offset > FBX_SLOT_MASK - g.bytes || g.pid > INT32_MAX) {
            fbx_count(&f->header->corrupt_resets, 1);
            continue;
        }
        if (r->count == r->room) {
            uint32_t room = r->room ? r->room * 2 : 64;
            struct fbxi_registration *more = realloc(r->all, room * sizeof *more);
            if (!more)
                return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
            r->all = more;
            r->room = room;
        }
        r->all[r->count++] = g;
    }
    if (r->count)
        qsort(r->all, r->count, sizeof *r->all, by_place);
    r->seen = now;
    return 0;
}

int fbxi_registered_find(fbx_fabric *f, uint32_t region, uint64_t offset, struct fbxi_registration *out)
{
    struct fbxi_registered *r = state_of(f);
    if (!r)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    int found = 0;
    pthread_mutex_lock(&f->registered_mutex);
    int status = refresh(f, r);
    if (!status) {
        uint32_t low = 0, high = r->count;
        while (low < high) { /* the last one that begins at or before it */
            uint32_t middle = low + (high - low) / 2;
            const struct fbxi_registration *g = &r->all[middle];
            if (g->region < region || (g->region == region && g->offset <= offset))
                low = middle + 1;
            else
                high = middle;
        }
        if (low && r->all[low - 1].region == region && offset - r->all[low - 1].offset < r->all[low - 1].bytes) {
            *out = r->all[low - 1];
            found = 1;
        }
    }
    pthread_mutex_unlock(&f->registered_mutex);
    if (status)
        return status;
    if (!found)
        return fbxi_fail_at(FBX_E_ADDRESS, -1, -1, ((uint64_t)(region + 1) << FBX_SLOT_SHIFT) + offset,
                            "no memory of %s is registered at 0x%llx, or it no longer is",
                            f->node_facts[region - f->region_count].name,
                            (unsigned long long)(((uint64_t)(region + 1) << FBX_SLOT_SHIFT) + offset));
    return 0; /* whether its process lives is seen by whoever goes there */
}

void fbxi_registered_forget(fbx_fabric *f)
{
    struct fbxi_registered *r = fbx_observe_pointer(&f->registered);
    if (!r)
        return;
    pthread_mutex_lock(&f->registered_mutex);
    r->seen = UINT64_MAX;
    r->count = 0;
    pthread_mutex_unlock(&f->registered_mutex);
}

int fbxi_registers(fbx_fabric *f, uint32_t node)
{
    struct fbxi_registered *r = fbx_observe_pointer(&f->registered);
    int any = 0;
    if (!r)
        return 0;
    pthread_mutex_lock(&f->registered_mutex);
    for (uint32_t i = 0; i < r->own_count && !any; i++)
        any = r->own[i].node == node;
    pthread_mutex_unlock(&f->registered_mutex);
    return any;
}

/* ---- in the process that has it ---------------------------------------------------------------------------------------- */

/* What we registered under that index, as we said it: 0 if it is not ours. */
static int own_of(fbx_fabric *f, uint32_t index, uint32_t generation, struct own *out)
{
    struct fbxi_registered *r = state_of(f);
    int found = 0;
    pthread_mutex_lock(&f->registered_mutex);
    for (uint32_t i = 0; r && i < r->own_count && !found; i++)
        if (r->own[i].index == index && r->own[i].generation == generation) {
            *out = r->own[i];
            found = 1;
        }
    pthread_mutex_unlock(&f->registered_mutex);
    return found;
}

static int gone(void)
{
    return fbxi_fail(FBX_E_UNSUPPORTED, "the memory behind a registration is no longer there: it was freed or has shrunk");
}

/* Copy by the kernel between us and a process, in pieces, until one fails. Returns 0, EFAULT, EPERM… */
static int kernel_copy(pid_t pid, uint64_t address, void *data, uint64_t bytes, int write, uint64_t *done)
{
    while (*done < bytes) {
        struct iovec ours = {(uint8_t *)data + *done, bytes - *done};
        struct iovec theirs = {(void *)(uintptr_t)(address + *done), bytes - *done};
        ssize_t moved = write ? process_vm_writev(pid, &ours, 1, &theirs, 1, 0) : process_vm_readv(pid, &ours, 1, &theirs, 1, 0);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            return moved < 0 ? errno : EFAULT;
        *done += (uint64_t)moved;
    }
    return 0;
}

static int permit(const struct own *o, uint64_t at, uint64_t bytes, int writes)
{
    if (at > o->bytes || bytes > o->bytes - at)
        return fbxi_fail(FBX_E_ADDRESS, "%llu bytes from there leave the registered memory", (unsigned long long)bytes);
    if (writes && o->flags & FBX_REGISTER_READ_ONLY)
        return fbxi_fail(FBX_E_ABORT, "the memory was registered for reading only");
    return 0;
}

static int own_copy(const struct own *o, uint64_t at, void *data, uint64_t bytes, int write, uint64_t *done)
{
    int status = permit(o, at, bytes, write);
    if (status)
        return status;
    if (!(o->flags & FBX_REGISTER_PINNED)) {
        int failed = kernel_copy(getpid(), (uint64_t)(uintptr_t)o->address + at, data, bytes, write, done);
        if (!failed)
            return 0;
        if (failed != EPERM && failed != ENOSYS)
            return gone();
    }
    if (write)
        fbx_mem_copy(o->address + at + *done, (uint8_t *)data + *done, bytes - *done);
    else
        fbx_mem_copy((uint8_t *)data + *done, o->address + at + *done, bytes - *done);
    *done = bytes;
    return 0;
}

static int own_atomic(const struct own *o, uint64_t at, int kind, uint32_t bytes, uint64_t operand[4])
{
    int status = permit(o, at, bytes, 1);
    uint64_t probe[2], done = 0;
    if (status)
        return status;
    uint8_t *word = o->address + at;
    if ((uintptr_t)word & (bytes - 1))
        return fbxi_fail(FBX_E_ALIGNMENT, "the registered memory is not aligned to %u bytes there", bytes);
    /* Look first whether it is there. Whoever frees memory between that and the next line has broken a promise. */
    if (!(o->flags & FBX_REGISTER_PINNED) && kernel_copy(getpid(), (uint64_t)(uintptr_t)word, probe, bytes, 0, &done) == EFAULT)
        return gone();
    switch (kind) {
    case FBX_FETCH_ADD: operand[0] = fbx_mem_fetch_add(word, operand[0], bytes); break;
    case FBX_SWAP: operand[0] = fbx_mem_swap(word, operand[0], bytes); break;
    case FBX_CAS:
        if (bytes == 16)
            fbx_mem_cas16(word, &operand[0], &operand[2], &operand[0]);
        else
            operand[0] = fbx_mem_cas(word, operand[0], operand[2], bytes);
        break;
    default: return fbxi_fail(FBX_E_INVALID, "operation %d is no atomic", kind);
    }
    return 0;
}

/* A scalar is read and written whole. */
static int own_scalar(const struct own *o, uint64_t at, uint32_t bytes, uint64_t *value, int write)
{
    uint64_t done = 0;
    int status = permit(o, at, bytes, write);
    if (status)
        return status;
    if (!(o->flags & FBX_REGISTER_PINNED) || ((uintptr_t)(o->address + at) & (bytes - 1)))
        return own_copy(o, at, value, bytes, write, &done);
    if (write)
        fbx_mem_store(o->address + at, *value, bytes);
    else
        *value = fbx_mem_load(o->address + at, bytes);
    return 0;
}

/* ---- from another process ------------------------------------------------------------------------------------------------ */

/* May the kernel copy for us, and is it that process? 0, ESRCH if it died, or another reason why not. */
static int kernel_refuses(fbx_fabric *f, const struct fbxi_registration *g)
{
    struct fbxi_registered *r = state_of(f);
    uint64_t nonce = 0, done = 0;
    if (!r || r->refused || g->flags & FBX_REGISTER_SERVICE || !g->nonce)
        return EPERM;
    const uint64_t now = fbxi_monotonic_ns();
    __typeof__(r->verified[0]) *v = &r->verified[g->session % VERIFIED];
    pthread_mutex_lock(&f->registered_mutex);
    int known = v->nonce == g->nonce && v->until_ns > now;
    pthread_mutex_unlock(&f->registered_mutex);
    if (known)
        return 0;
    int failed = kernel_copy((pid_t)g->pid, g->nonce_at, &nonce, sizeof nonce, 0, &done);
    if (failed || nonce != g->nonce)
        return fbxi_session_dead(f, g->session, g->incarnation) ? ESRCH : EPERM;
    pthread_mutex_lock(&f->registered_mutex);
    v->nonce = nonce;
    v->until_ns = now + VERIFIED_NS;
    pthread_mutex_unlock(&f->registered_mutex);
    return 0;
}

static void wake_owner(fbx_fabric *f, const struct fbxi_registration *g)
{
    if (g->session >= fbxi_high(f, FBXL_SESSIONS))
        return;
    fbx_publish(&f->sessions[g->session].wake, 1);
    fbxi_futex_wake(&f->sessions[g->session].wake);
}

static struct ask *mailbox(fbx_fabric *f)
{
    fbx_au64 *word = &f->sessions[f->session].mailbox;
    struct ask *a = fbxi_heap_at(f, fbx_observe(word), sizeof *a);
    if (a || fbxi_control_lock(f))
        return a;
    uint64_t offset = 0;
    if (!fbxi_heap(f, sizeof *a, &offset))
        fbx_publish(word, offset);
    fbxi_control_unlock(f);
    return fbxi_heap_at(f, offset, sizeof *a);
}

/* One question to the process that has it, and its answer. */
static int ask(fbx_fabric *f, const struct fbxi_registration *g, uint32_t kind, uint64_t at, uint64_t bytes, void *data, uint64_t operand[4])
{
    struct fbxi_registered *r = state_of(f);
    const uint64_t begin = fbxi_monotonic_ns();
    if (!r || f->session == UINT32_MAX || g->session >= fbxi_high(f, FBXL_SESSIONS))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    pthread_mutex_lock(&r->asking);
    struct ask *a = mailbox(f);
    int status = a ? 0 : fbxi_fail(FBX_E_NO_MEMORY, "no room for a question");
    /* An earlier question that was given up may still be in somebody's hands. */
    while (!status && fbx_observe(&a->state) == ASK_TAKEN) {
        uint32_t s = (uint32_t)(a->to & 0xffff) - 1u;
        if (fbxi_session_dead(f, s, (uint32_t)(a->to >> 16)) || a->to == f->identity)
            break;
        if (fbxi_monotonic_ns() - begin > FBX_STALL_NS)
            status = fbxi_fail(FBX_E_COMPLETION_TIMEOUT, "a stopped process has not answered an earlier question");
        fbxi_futex_wait(&a->state, ASK_TAKEN, 1000000u);
    }
    if (!status) {
        a->kind = kind;
        a->index = g->index;
        a->generation = g->generation;
        a->to = (uint64_t)g->incarnation << 16 | (g->session + 1u);
        a->at = at;
        a->bytes = bytes;
        a->status = FBX_E_BUSY;
        if (operand)
            memcpy(a->operand, operand, sizeof a->operand);
        if (kind == ASK_WRITE)
            memcpy(a->data, data, bytes);
        /* Pairs with: the claim in serve_one(). Breaks: a question that is half written. */
        fbx_publish(&a->state, ASK_ASKED);
        fbx_or(&f->sessions[g->session].asks, 1ull << (f->session & 63));
        wake_owner(f, g);
        for (uint32_t round = 0;; round++) {
            uint32_t now = fbx_observe(&a->state);
            if (now == ASK_DONE)
                break;
            if (round < 2000) {
                fbx_relax();
                continue;
            }
            fbxi_futex_wait(&a->state, now, 1000000u);
            if (fbxi_session_dead(f, g->session, g->incarnation)) {
                status = fbxi_fail(FBX_E_PEER_LOST, "the process that registered the memory died");
                break;
            }
            /* What has been taken is being done and must end; what has not can be taken back. */
            if (fbxi_monotonic_ns() - begin > FBX_STALL_NS && fbx_claim32(&a->state, ASK_ASKED, ASK_IDLE)) {
                status = fbxi_fail(FBX_E_COMPLETION_TIMEOUT, "the process that registered the memory is stopped, or serves nobody");
                break;
            }
            if (fbxi_monotonic_ns() - begin > 2 * FBX_STALL_NS) {
                status = fbxi_fail(FBX_E_COMPLETION_TIMEOUT, "the process that registered the memory stopped while it moved it");
                break;
            }
        }
        if (!status) {
            status = a->status;
            if (status)
                fbxi_fail(status, "%s", status == FBX_E_UNSUPPORTED ? "the memory behind a registration is no longer there: it was freed or has shrunk"
                                                                    : fbx_error_hint(status));
            else if (kind == ASK_READ)
                memcpy(data, a->data, bytes);
            if (operand)
                memcpy(operand, a->operand, sizeof a->operand);
            fbx_publish(&a->state, ASK_IDLE);
        }
    }
    pthread_mutex_unlock(&r->asking);
    return status;
}

static void serve_one(fbx_fabric *f, struct ask *a)
{
    if (!fbx_claim32(&a->state, ASK_ASKED, ASK_TAKEN))
        return;
    /* From here on private copies: the asker may be anybody. */
    const uint32_t kind = a->kind, index = a->index, generation = a->generation;
    const uint64_t at = a->at, bytes = a->bytes;
    uint64_t done = 0, operand[4];
    memcpy(operand, a->operand, sizeof operand);
    struct own o;
    int status = FBX_E_ADDRESS;
    if (own_of(f, index, generation, &o)) {
        if ((kind == ASK_READ || kind == ASK_WRITE) && bytes <= 8 && bytes && !(bytes & (bytes - 1)))
            status = own_scalar(&o, at, (uint32_t)bytes, (uint64_t *)(void *)a->data, kind == ASK_WRITE);
        else if (kind == ASK_READ || kind == ASK_WRITE)
            status = bytes <= ASK_BYTES ? own_copy(&o, at, a->data, bytes, kind == ASK_WRITE, &done) : FBX_E_INVALID;
        else if (bytes == 4 || bytes == 8 || (bytes == 16 && kind == FBX_CAS))
            status = own_atomic(&o, at, (int)kind, (uint32_t)bytes, operand);
        else
            status = FBX_E_INVALID;
    }
    memcpy(a->operand, operand, sizeof operand);
    a->status = status;
    /* Pairs with: fbx_observe(&a->state) of the asker. Breaks: an answer that is half written. */
    fbx_publish(&a->state, ASK_DONE);
    fbxi_futex_wake(&a->state);
}

int fbxi_registered_serve(fbx_fabric *f)
{
    struct fbxl_session *s = &f->sessions[f->session];
    if (!fbx_observe(&s->asks))
        return 0;
    uint64_t asks = fbx_swap(&s->asks, 0);
    uint32_t high = fbxi_high(f, FBXL_SESSIONS);
    for (uint32_t i = 0; asks && i < high; i++) {
        struct ask *a = asks >> (i & 63) & 1 ? fbxi_heap_at(f, fbx_observe(&f->sessions[i].mailbox), sizeof *a) : NULL;
        if (a && fbx_observe(&a->state) == ASK_ASKED && a->to == f->identity)
            serve_one(f, a);
    }
    return 1;
}

/* ---- the ways ---------------------------------------------------------------------------------------------------------- */

static int move(fbx_fabric *f, uint32_t region, uint64_t offset, void *data, uint64_t bytes, int write, int may_ask, uint64_t *done)
{
    struct fbxi_registration g;
    struct own o;
    int status = fbxi_registered_find(f, region, offset, &g);
    if (status)
        return status;
    const uint64_t at = offset - g.offset;
    if (bytes > g.bytes - at)
        return fbxi_fail(FBX_E_ADDRESS, "%llu bytes from there leave the registered memory", (unsigned long long)bytes);
    if (write && g.flags & FBX_REGISTER_READ_ONLY)
        return fbxi_fail(FBX_E_ABORT, "the memory was registered for reading only");
    if (g.session == f->session && own_of(f, g.index, g.generation, &o)) {
        if (write && bytes <= 8 && !(bytes & (bytes - 1)) && !*done) {
            uint64_t value = 0;
            memcpy(&value, data, bytes);
            if (!(status = own_scalar(&o, at, (uint32_t)bytes, &value, 1)))
                *done = bytes;
            return status;
        }
        return own_copy(&o, at, data, bytes, write, done);
    }
    int failed = kernel_refuses(f, &g);
    if (!failed)
        failed = kernel_copy((pid_t)g.pid, g.address + at, data, bytes, write, done);
    if (failed == ESRCH)
        return fbxi_fail(FBX_E_PEER_LOST, "the process that registered the memory died");
    if (failed != EPERM && failed != ENOSYS)
        return failed ? gone() : 0;
    if (!may_ask) {
        wake_owner(f, &g);
        return FBX_E_BUSY;
    }
    while (*done < bytes) {
        uint64_t step = bytes - *done < ASK_BYTES ? bytes - *done : ASK_BYTES;
        status = ask(f, &g, write ? ASK_WRITE : ASK_READ, at + *done, step, (uint8_t *)data + *done, NULL);
        if (status)
            return status;
        *done += step;
    }
    return 0;
}

int fbxi_registered_read(fbx_fabric *f, uint32_t region, uint64_t offset, void *to, uint64_t bytes, uint64_t *done)
{
    return move(f, region, offset, to, bytes, 0, 1, done);
}

int fbxi_registered_write(fbx_fabric *f, uint32_t region, uint64_t offset, const void *from, uint64_t bytes, int may_ask, uint64_t *done)
{
    return move(f, region, offset, (void *)(uintptr_t)from, bytes, 1, may_ask, done);
}

uint8_t *fbxi_registered_pointer(fbx_fabric *f, uint32_t region, uint64_t offset, uint64_t bytes, int writes)
{
    struct fbxi_registration g;
    struct own o;
    if (fbxi_registered_find(f, region, offset, &g) || g.session != f->session || !own_of(f, g.index, g.generation, &o) ||
        !(o.flags & FBX_REGISTER_PINNED) || (writes && o.flags & FBX_REGISTER_READ_ONLY) || offset - g.offset > o.bytes ||
        bytes > o.bytes - (offset - g.offset))
        return NULL;
    return o.address + (offset - g.offset);
}

int fbxi_registered_load(fbx_fabric *f, uint32_t region, uint64_t offset, uint32_t bytes, uint64_t *value)
{
    struct fbxi_registration g;
    struct own o;
    uint64_t done = 0;
    int status = fbxi_registered_find(f, region, offset, &g);
    *value = 0;
    if (status)
        return status;
    if (g.session == f->session && own_of(f, g.index, g.generation, &o))
        return own_scalar(&o, offset - g.offset, bytes, value, 0);
    return move(f, region, offset, value, bytes, 0, 1, &done);
}

int fbxi_registered_atomic(fbx_fabric *f, uint32_t region, uint64_t offset, int kind, uint32_t bytes, uint64_t operand[4])
{
    struct fbxi_registration g;
    struct own o;
    int status = fbxi_registered_find(f, region, offset, &g);
    if (status)
        return status;
    const uint64_t at = offset - g.offset;
    if (bytes > g.bytes - at)
        return fbxi_fail(FBX_E_ADDRESS, "%u bytes from there leave the registered memory", bytes);
    if (g.flags & FBX_REGISTER_READ_ONLY)
        return fbxi_fail(FBX_E_ABORT, "the memory was registered for reading only");
    if (g.session == f->session && own_of(f, g.index, g.generation, &o))
        return own_atomic(&o, at, kind, bytes, operand);
    return ask(f, &g, (uint32_t)kind, at, bytes, NULL, operand);
}

/* ---- registering ------------------------------------------------------------------------------------------------------- */

static void changed(fbx_fabric *f) { fbx_add(&f->header->registrations, 1); }

/* A range of the node's slot that no live registration touches, from where the last one ended. Control lock held. */
static int place(fbx_fabric *f, uint32_t region, uint64_t address, uint64_t bytes, uint64_t *out)
{
    struct fbxl_node *node = &f->nodes[region - f->region_count];
    const uint64_t inside = address & (PAGE - 1), most = 1ull << FBX_SLOT_SHIFT;
    uint64_t start = fbx_peek(&node->registered_next);
    int wrapped = 0;
    uint32_t high = fbxi_high(f, FBXL_BUFFERS);
    for (;;) {
        start = (start + PAGE - 1) & ~(uint64_t)(PAGE - 1);
        if (start < FBX_FIXED_BYTES)
            start = FBX_FIXED_BYTES;
        if (start > most || bytes + inside > most - start) {
            if (wrapped++)
                return fbxi_fail(FBX_E_NO_MEMORY, "%llu bytes find no addresses: 1 TiB of %s may be registered at a time",
                                 (unsigned long long)bytes, f->node_facts[region - f->region_count].name);
            start = 0;
            continue;
        }
        uint64_t clash = 0;
        for (uint32_t i = 0; i < high; i++) {
            const struct fbxl_buffer *b = &f->buffers[i];
            if (fbx_observe(&f->buffers[i].state) == FBXL_BUFFER_LIVE && b->kind == FBXL_BUFFER_REGISTERED && b->region == region &&
                b->offset < start + inside + bytes && start < b->offset + b->bytes && b->offset + b->bytes > clash)
                clash = b->offset + b->bytes;
        }
        if (!clash) {
            *out = start + inside;
            fbx_poke(&node->registered_next, start + inside + bytes);
            return 0;
        }
        start = clash;
    }
}

int fbx_register(fbx_node *n, void *address, uint64_t bytes, uint32_t flags, struct fbx_registration *out)
{
    fbx_fabric *f = n->fabric;
    const uint32_t region = fbxi_registered_region(f, n->index);
    const uint64_t begins = (uint64_t)(uintptr_t)address;
    memset(out, 0, sizeof *out);
    if (fbx_peek(&n->closed) || fbx_peek(&f->closed) || fbx_peek(&f->forked) || f->session == UINT32_MAX)
        return fbxi_fail(FBX_E_CLOSED, "the node's handle is closed");
    if (!bytes || bytes >= FBX_SLOT_MASK || begins + bytes < begins || !address || flags & ~7u)
        return fbxi_fail(FBX_E_INVALID, "%llu bytes at %p: registered memory has 1 byte to 1 TiB, and an address", (unsigned long long)bytes,
                         address);
    uint8_t probe;
    uint64_t first = 0, last = 0;
    if (kernel_copy(getpid(), begins, &probe, 1, 0, &first) == EFAULT || kernel_copy(getpid(), begins + bytes - 1, &probe, 1, 0, &last) == EFAULT)
        return fbxi_fail(FBX_E_ADDRESS, "%llu bytes at %p are not memory of this process", (unsigned long long)bytes, address);
    struct fbxi_registered *r = state_of(f);
    if (!r)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    int status = fbxi_control_lock(f);
    if (status)
        return status;
    uint32_t high = fbxi_high(f, FBXL_BUFFERS), index = 0;
    while (index < high && fbx_observe(&f->buffers[index].state) != FBXL_BUFFER_FREE)
        index++;
    uint64_t offset = 0;
    status = fbxi_table_take(f, FBXL_BUFFERS, index);
    if (!status)
        status = place(f, region, begins, bytes, &offset);
    struct fbxl_buffer *b = &f->buffers[index];
    if (!status) {
        pthread_mutex_lock(&f->registered_mutex);
        if (r->own_count == r->own_room) {
            uint32_t room = r->own_room ? r->own_room * 2 : 16;
            struct own *more = realloc(r->own, room * sizeof *more);
            if (more) {
                r->own = more;
                r->own_room = room;
            }
        }
        if (r->own_count < r->own_room)
            r->own[r->own_count++] = (struct own){index, fbx_peek(&b->generation) + 1, n->index, flags, address, bytes};
        else
            status = fbxi_fail(FBX_E_NO_MEMORY, "no memory");
        pthread_mutex_unlock(&f->registered_mutex);
    }
    if (!status) {
        memset(b->name, 0, sizeof b->name);
        b->region = region;
        b->session = f->session;
        b->session_incarnation = f->session_incarnation;
        b->offset = offset;
        b->bytes = bytes;
        b->kind = FBXL_BUFFER_REGISTERED;
        b->address = begins;
        b->nonce_at = (uint64_t)(uintptr_t)&r->nonce;
        b->nonce = r->nonce;
        b->pid = (uint32_t)getpid();
        b->start = f->sessions[f->session].start;
        b->flags = flags;
        fbx_count(&b->generation, 1);
        /* Pairs with: fbx_observe(&b->state) in refresh(). Breaks: a registration that is half filled in. */
        fbx_publish(&b->state, FBXL_BUFFER_LIVE);
        changed(f);
        *out = (struct fbx_registration){.gva = ((uint64_t)(region + 1) << FBX_SLOT_SHIFT) + offset, .bytes = bytes, .index = index,
                                         .generation = fbx_peek(&b->generation), .node = n->index};
    }
    fbxi_control_unlock(f);
    if (!status && fbxi_session_dead(f, f->session, f->session_incarnation))
        status = FBX_E_CLOSED;
    if (!status) {
        fbx_publish(&f->sessions[f->session].wake, 1); /* the service thread looks oftener from now on */
        fbxi_futex_wake(&f->sessions[f->session].wake);
    }
    return status;
}

int fbx_deregister(fbx_fabric *f, const struct fbx_registration *r)
{
    struct own o;
    if (fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the memory was registered before fork");
    if (!own_of(f, r->index, r->generation, &o))
        return fbxi_fail(FBX_E_STALE, "that memory is not registered by this process, or no longer");
    int status = 0;
    if (!fbx_peek(&f->closed) && f->session != UINT32_MAX) {
        struct fbxl_buffer *b = &f->buffers[r->index];
        if (fbx_observe(&b->state) == FBXL_BUFFER_LIVE && fbx_observe(&b->generation) == r->generation) {
            fbx_count(&b->generation, 1);
            fbx_publish(&b->state, FBXL_BUFFER_FREE);
            changed(f);
        }
        /* What moves meanwhile has marked itself: once that has ended, nothing touches the bytes any more. */
        status = fbxi_invalidate_dependents(f, f->link_count + o.node);
        if (status)
            return status;
        /* A delivery does not mark itself; it holds the lock. */
        if (fbxi_lock(f, &f->nodes[o.node].delivery, FBX_STALL_NS) < 0)
            return fbxi_fail(FBX_E_BUSY, "a stopped process holds the delivery to %s", f->node_facts[o.node].name);
        fbxi_unlock(f, &f->nodes[o.node].delivery);
    }
    pthread_mutex_lock(&f->registered_mutex);
    struct fbxi_registered *all = f->registered;
    for (uint32_t i = 0; i < all->own_count; i++)
        if (all->own[i].index == r->index && all->own[i].generation == r->generation) {
            all->own[i] = all->own[--all->own_count];
            break;
        }
    pthread_mutex_unlock(&f->registered_mutex);
    return 0;
}

void fbxi_registered_bury(fbx_fabric *f, uint32_t session, uint32_t incarnation)
{
    uint32_t high = fbxi_high(f, FBXL_BUFFERS), any = 0;
    for (uint32_t i = 0; i < high; i++) {
        struct fbxl_buffer *b = &f->buffers[i];
        if (fbx_observe(&b->state) != FBXL_BUFFER_LIVE || b->kind != FBXL_BUFFER_REGISTERED || b->session != session ||
            b->session_incarnation != incarnation)
            continue;
        fbx_count(&b->generation, 1);
        fbx_publish(&b->state, FBXL_BUFFER_FREE);
        any = 1;
    }
    fbx_poke(&f->sessions[session].asks, 0);
    if (any)
        changed(f);
}

void fbxi_registered_end(fbx_fabric *f)
{
    struct fbxi_registered *r = f->registered;
    if (!r || f->session == UINT32_MAX)
        return;
    fbxi_registered_bury(f, f->session, f->session_incarnation);
    for (uint32_t i = 0; i < r->own_count; i++)
        fbxi_invalidate_dependents(f, f->link_count + r->own[i].node);
}

void fbxi_registered_close(fbx_fabric *f)
{
    struct fbxi_registered *r = f->registered;
    if (!r)
        return;
    pthread_mutex_destroy(&r->asking);
    free(r->all);
    free(r->own);
    free(r);
    f->registered = NULL;
}
