/* SPDX-License-Identifier: Apache-2.0
 *
 * The gateway of a machine: executes what requesters of other machines ask of nodes that live here.
 *
 * Each requester there is a session here, with a handle of its own (a proxy): its posted writes enter the same queues, reserve
 * the same links (those that are at home here) and obey the same rules as anybody's. Order is a matter of the session, and no step
 * of an operation waits: what is not due lies in a heap, what finds a queue full holds up its own session only. So any number of
 * threads, the *keepers*, shares the sessions, each of which stays with one; how many is a question of processors. What may
 * wait (allocation, names, links) runs on a thread of its own (errands.c).
 *
 * A session outlives its connection for a while. Frames are numbered; one that comes again after a reconnect is not executed
 * again, and answers are kept until they are acknowledged (stream.c).
 *
 * All that comes is bounded before it is used. Who is admitted is decided before a connection gets here.
 */
#include "gateway.h"

#include "journey.h"
#include "looking.h"
#include "ntb.h"
#include "stream.h"
#include "timing.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TX_BYTES (1ull << 20)
#define RX_BYTES (256u << 10)
#define GREET_NS 2000000000ull /* a connection says who it is within this */
#define LINGER_NS 5000000000ull /* a session without a connection ends after this: longer than its other side tries */
#define ACK_BYTES (128u << 10)
#define ACK_NS 2000000u /* however busy others keep us: whoever has sent something takes silence for a break */
#define TURN 256u /* frames of one session before the others have their turn */
#define ASIDE_NS 20000000ull /* between two moves to another processor, at first and at most */
#define ASIDE_MOST_NS 10000000000ull
#define HOLD_NS 6000000u /* after a move we look on so long in any case: who asks finds out in his turn that it is of use */
#define PUSH_BYTES (128u << 10) /* answers wait for the turn's end, but no more than this */
#define SESSIONS 4096u /* of a keeper */
#define KEEPERS 16u
#define SWEEP_NS 1000000u /* how often all sessions are looked at, whether something came or not */
#define LOOKS 16u /* at the socket that was of use last, before the kernel is asked about all */
#define LOOKS_NS 50000u /* or for so long, if it keeps us busy */
#define MARKS_RETRY_PS 100000000u
#define AHEAD_PS 1000000000000ull /* nobody sends more than a second early */

struct ask { /* a request that waits for its time */
    struct fbx_op op;
    struct session *session;
    struct ask *next; /* of the free ones */
    struct fbxw_frame frame;
    uint64_t base_ps, slack_ps, seen_done;
    uint32_t moved_up, owed, dma;
    uint32_t answers; /* it has been done, with this status, and waits for room for its answer */
    int32_t status;
    uint32_t buffer_bytes;
    uint8_t *buffer; /* of a READ */
    uint8_t wide[64];
};

struct session {
    struct session *next, *next_active, *next_moved;
    struct keeper *keeper;
    struct fbxi_stream stream;
    uint8_t id[16];
    uint32_t machine, node, requester, incarnation;
    fbx_node *proxy;
    uint32_t greeted, readable, ended, dirty, blocked, over, dead, messages; /* ended: the other side sends no more */
    uint32_t active; /* in its keeper's list of those that have something to do */
    uint32_t asks, errands; /* that point here */
    uint64_t owed; /* bytes that their answers may take */
    uint64_t since_ns; /* it came, or lost its connection */
    uint64_t level_ns; /* when all that it had sent was acknowledged */
    uint64_t retry_ps;
    struct fbx_op posted; /* a posted write that could not be issued at once: nothing behind it is taken before it is */
    struct fbxw_frame held;
    uint8_t *payload; /* its bytes */
    uint8_t *assembly;
    uint64_t assembly_bytes;
    struct fbxi_owned *owned; /* unnamed buffers that its process has allocated here: they end with it */
};

struct keeper {
    struct fbxi_gateway *gateway;
    fbx_fabric *fabric;
    pthread_t thread;
    int epoll, event, runs;
    pthread_mutex_t mutex; /* what others leave here */
    struct adopted {
        struct adopted *next;
        int fd;
        uint32_t machine;
    } *adopted;
    struct session *moved; /* from the first keeper, which reads who a connection is */
    struct fbxi_errand *done;
    /* the thread's own */
    struct session *sessions, *active;
    struct session *hot; /* whom we served last: its socket is looked at directly */
    uint32_t session_count, sweep;
    struct ask **heap, *free;
    uint32_t heap_count, heap_room;
    fbx_au64 frames, garbage, resumed, expired, connected, count;
};

struct fbxi_gateway {
    fbx_fabric *fabric;
    pthread_t clerk;
    fbx_au32 stop;
    pthread_mutex_t mutex; /* the errands */
    pthread_cond_t work;
    struct fbxi_errand *errands, **errands_end;
    struct fbxi_owned *left; /* of sessions that are over */
    uint32_t keepers;
    struct keeper keeper[KEEPERS];
};

static void poke(struct keeper *g)
{
    uint64_t one = 1;
    while (write(g->event, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void activate(struct keeper *g, struct session *s)
{
    if (s->active)
        return;
    s->active = 1;
    s->next_active = g->active;
    g->active = s;
}

/* ---- what waits -------------------------------------------------------------------------------------------------------- */

static void heap_up(struct keeper *g, uint32_t i)
{
    struct ask *a = g->heap[i];
    for (; i && a->op.next_ps < g->heap[(i - 1) / 2]->op.next_ps; i = (i - 1) / 2)
        g->heap[i] = g->heap[(i - 1) / 2];
    g->heap[i] = a;
}

static int heap_put(struct keeper *g, struct ask *a)
{
    if (g->heap_count == g->heap_room) {
        uint32_t room = g->heap_room ? g->heap_room * 2 : 256;
        struct ask **more = realloc(g->heap, room * sizeof(*more));
        if (!more)
            return -1;
        g->heap = more;
        g->heap_room = room;
    }
    g->heap[g->heap_count++] = a;
    heap_up(g, g->heap_count - 1);
    return 0;
}

static struct ask *heap_take(struct keeper *g)
{
    struct ask *top = g->heap[0], *last = g->heap[--g->heap_count];
    uint32_t i = 0;
    for (uint32_t child; (child = 2 * i + 1) < g->heap_count; i = child) {
        if (child + 1 < g->heap_count && g->heap[child + 1]->op.next_ps < g->heap[child]->op.next_ps)
            child++;
        if (g->heap[child]->op.next_ps >= last->op.next_ps)
            break;
        g->heap[i] = g->heap[child];
    }
    if (g->heap_count)
        g->heap[i] = last;
    return top;
}

static struct ask *ask_new(struct keeper *g, struct session *s, const struct fbxw_frame *w)
{
    struct ask *a = g->free;
    if (a)
        g->free = a->next;
    else if (!(a = calloc(1, sizeof *a)))
        return NULL;
    a->session = s;
    a->frame = *w;
    a->moved_up = a->dma = a->answers = 0;
    a->seen_done = 0;
    s->asks++;
    a->owed = fbxw_answer_bytes(w);
    s->owed += a->owed;
    return a;
}

static void ask_free(struct keeper *g, struct ask *a)
{
    a->session->asks--;
    a->session->owed -= a->owed;
    if (a->buffer_bytes > 4096) {
        free(a->buffer);
        a->buffer = NULL;
        a->buffer_bytes = 0;
    }
    a->next = g->free;
    g->free = a;
}

/* ---- answers ---------------------------------------------------------------------------------------------------------- */

static void answer(struct session *s, const struct fbxw_frame *asked, struct fbxw_frame *w, const void *payload)
{
    w->kind = w->kind ? w->kind : FBXW_DONE;
    w->ticket = asked->ticket;
    fbxi_stream_put(&s->stream, w, payload);
    s->dirty = 1;
    activate(s->keeper, s);
}

/* Posted writes that processes of `node` sent to `machine` before this answer, and that may not be there yet: a completion
 * does not pass them. At most FBXW_MARKS of requesters *at and up; *at goes on where the next look begins. */
static uint32_t marks(fbx_fabric *f, uint32_t node, uint32_t machine, uint32_t *at, uint8_t *out)
{
    uint32_t count = 0, high = fbxi_high(f, FBXL_REQUESTERS);
    for (; *at < high && count < FBXW_MARKS; ++*at) {
        struct fbxl_requester *r = &f->requesters[*at];
        uint64_t offset = fbx_observe(&r->away);
        if (!offset || r->node != node || fbx_observe(&r->state) != FBXL_LIVE || fbx_peek(&r->proxy_of))
            continue;
        struct fbxl_away *away = fbxi_heap_at(f, offset, sizeof *away);
        uint64_t posted = away ? fbx_observe(&away->posted[machine]) : 0;
        if (!away || posted <= fbx_observe(&away->settled[machine]))
            continue;
        fbxw_put32(out, *at);
        fbxw_put32(out + 4, fbx_peek(&r->incarnation));
        fbxw_put64(out + 8, posted);
        out += FBXW_MARK_BYTES;
        count++;
    }
    return count;
}

/* Whether the ring has room for more marks than an answer's own room holds: a note of FBXW_MARKS for each so many requesters. */
static int marks_fit(const fbx_fabric *f, const struct session *s)
{
    const uint32_t high = fbxi_high(f, FBXL_REQUESTERS);
    const uint64_t notes = (high + FBXW_MARKS - 1) / FBXW_MARKS;
    return high <= FBXW_MARKS || s->dead ||
           s->stream.tail - s->stream.head + s->owed + notes * FBXW_NOTE_BYTES + 4 * FBXW_HEADER <= s->stream.tx_bytes;
}

/* Whether processes of this machine have ever written to another. */
static int any_away(const fbx_fabric *f)
{
    for (uint32_t i = 0; i < fbxi_high(f, FBXL_REQUESTERS); i++)
        if (fbx_observe(&f->requesters[i].away) && !fbx_peek(&f->requesters[i].proxy_of))
            return 1;
    return 0;
}

/* The bytes of a piece of DMA, and when the last of them is at the crossing. */
static int dma_read(fbx_node *proxy, struct ask *a)
{
    struct fbx_op read = {.kind = FBX_READ, .gva = a->frame.address, .bytes = a->frame.length, .buffer = a->op.buffer};
    struct fbxi_route *route;
    struct fbxi_flight back;
    int status = fbxi_untimed(proxy, &read);
    if (status || (status = fbxi_route_to(proxy, a->op.target, a->op.path, &route)))
        return status;
    const uint64_t most = fbx_peek(&route->mps) < 64 ? 64 : fbx_peek(&route->mps), count = (read.bytes + most - 1) / most;
    const uint32_t region = (uint32_t)(read.gva >> FBX_SLOT_SHIFT) - 1;
    fbxi_send(route, 1, a->op.arrives_ps + proxy->fabric->region_facts[region].latency_ps, read.bytes, count, FBX_CPLD_HEADER, 1, 1, &back);
    fbxi_count_way(route, 1, read.bytes, count, FBX_CPLD_HEADER);
    a->op.completes_ps = back.arrives_ps;
    return 0;
}

/* The bytes of a READ may lie where the next frame will be put: to the ask's own, if something is put before its answer. */
static int own_bytes(struct ask *a)
{
    if (a->frame.kind != FBXW_READ || a->op.buffer == a->buffer)
        return 0;
    if (a->buffer_bytes < a->frame.length) {
        const uint32_t room = a->frame.length <= 4096 ? 4096 : FBXW_PAYLOAD;
        free(a->buffer);
        a->buffer = malloc(room);
        a->buffer_bytes = a->buffer ? room : 0;
        if (!a->buffer)
            return FBX_E_NO_MEMORY;
    }
    memcpy(a->buffer, a->op.buffer, a->frame.length);
    a->op.buffer = a->buffer;
    return 0;
}

static void answer_ask(struct keeper *g, struct ask *a, int status)
{
    fbx_fabric *f = g->fabric;
    struct session *s = a->session;
    struct fbx_op *op = &a->op;
    struct fbxw_frame w = {0};
    uint8_t bytes[64 + FBXW_MARKS * FBXW_MARK_BYTES];
    const void *payload = bytes;
    if (a->dma && !status)
        status = dma_read(s->proxy, a);
    if (f->flags & FBXL_TIMING && op->completes_ps > a->base_ps)
        w.ahead_ps = (int64_t)(op->completes_ps - a->base_ps);
    w.status = status;
    w.value = op->operand[0];
    w.address = op->operand[1];
    if (status) {
        w.value = w.address = UINT64_MAX;
    } else if (a->frame.kind == FBXW_READ) {
        w.kind = FBXW_DATA;
        w.payload = a->frame.length;
        payload = op->buffer;
    } else if (a->frame.kind == FBXW_LOAD && a->frame.length > 8) {
        memcpy(bytes, a->wide, a->frame.length);
        w.payload = a->frame.length;
    } else if (a->frame.kind == FBXW_FLUSH) {
        w.value = fbx_peek(&s->proxy->slot->dropped);
    } else if (a->frame.kind == FBXW_SAMPLE) {
        uint64_t value = UINT64_MAX;
        if (fbxi_ntb_sample(f, a->frame.aux, a->frame.what, a->frame.address, &value))
            w.status = FBX_E_INVALID;
        w.value = value;
    }
    if (!status && !s->dead && op->target < f->node_count) {
        /* The last of them in the answer itself, if its payload is not elsewhere; all others in notes before it. */
        const int inside = a->frame.kind != FBXW_READ;
        uint8_t *some = inside ? bytes + w.payload : bytes;
        uint32_t at = 0, count, most = (fbxi_high(f, FBXL_REQUESTERS) + FBXW_MARKS - 1) / FBXW_MARKS;
        while ((count = marks(f, op->target, s->machine, &at, some)) && (count == FBXW_MARKS || !inside) && most--) {
            if (own_bytes(a)) { /* somebody here has written elsewhere for the first time since any_away() */
                w = (struct fbxw_frame){.status = FBX_E_NO_MEMORY, .value = UINT64_MAX, .address = UINT64_MAX};
                break;
            }
            payload = inside ? payload : op->buffer;
            struct fbxw_frame note = {.kind = FBXW_NOTE, .what = FBXW_NOTE_MARKS, .payload = count * FBXW_MARK_BYTES};
            answer(s, &a->frame, &note, some);
        }
        if (inside) {
            w.what = (uint16_t)count;
            w.payload += count * FBXW_MARK_BYTES;
        }
    }
    if (!s->dead)
        answer(s, &a->frame, &w, payload);
}

/* Take a request as far as it goes now. 1: it is answered and gone. */
static int step(struct keeper *g, struct ask *a, int status)
{
    struct fbx_op *op = &a->op;
    if (status == FBX_E_AGAIN && op->state == FBX_TRAVELS && a->slack_ps && (!a->moved_up || op->done != a->seen_done)) {
        /* The network took longer than the part of the way that it stands for: that much less is left to wait for. */
        op->arrives_ps -= a->slack_ps < op->arrives_ps ? a->slack_ps : op->arrives_ps;
        op->next_ps = op->arrives_ps;
        a->moved_up = 1;
        a->seen_done = op->done;
    }
    if (status == FBX_E_AGAIN && op->state != FBX_RETURNS)
        return 0;
    if (!marks_fit(g->fabric, a->session)) {
        /* Very many processes write to that machine, and it has not read what we have answered: it will. */
        a->answers = 1;
        a->status = status != FBX_E_AGAIN && status ? status : own_bytes(a);
        op->next_ps = fbxi_now(&g->fabric->clock) + MARKS_RETRY_PS;
        return 0;
    }
    answer_ask(g, a, status == FBX_E_AGAIN ? 0 : status);
    ask_free(g, a);
    return 1;
}

/* ---- requests --------------------------------------------------------------------------------------------------------- */

static void prepare(struct fbx_op *op, const struct fbxw_frame *w, int kind)
{
    op->kind = (uint16_t)kind;
    op->gva = w->address;
    op->bytes = w->length;
    op->buffer = NULL;
    op->operand[0] = w->value;
    op->operand[1] = op->operand[2] = op->operand[3] = 0;
    op->tc = w->tc & 7;
    op->attr = w->attr & (FBX_RO | FBX_IDO);
    op->path = (w->attr >> FBXW_PATH_SHIFT) % FBX_PATHS;
    op->trace_id = 0;
    op->sequence = 0;
}

static uint64_t base_time(const fbx_fabric *f, const struct fbxw_frame *w, uint64_t *slack)
{
    *slack = 0;
    if (!(f->flags & FBXL_TIMING))
        return 0;
    uint64_t now = fbxi_now(&f->clock);
    if (w->ahead_ps >= 0)
        return now + ((uint64_t)w->ahead_ps < AHEAD_PS ? (uint64_t)w->ahead_ps : AHEAD_PS);
    *slack = (uint64_t)-(w->ahead_ps + 1) + 1 < AHEAD_PS ? (uint64_t)-w->ahead_ps : AHEAD_PS;
    return now;
}

/* Whether a write, once begun, has left: its modelled stay in the requester's processor is the requester's business. */
static int issued(const struct fbx_op *op, int status)
{
    return status != FBX_E_AGAIN || op->state == FBX_RETURNS;
}

/* A posted write. 0: issued (or refused, which nobody is told); AGAIN: its session waits. */
static int post(struct keeper *g, struct session *s, const struct fbxw_frame *w, const uint8_t *payload)
{
    fbx_fabric *f = g->fabric;
    struct fbx_op *op = &s->posted;
    uint64_t slack;
    const int again = s->blocked != 0;
    if (w->kind == FBXW_REGISTER) {
        struct fbxl_ntb *d;
        if (w->aux >= f->node_count || fbxi_is_away(f, w->aux) || (w->length != 4 && w->length != 8) ||
            (!again && fbxi_ntb_get(f, w->aux, &d)))
            return 0;
        s->proxy->proxy_now = base_time(f, w, &slack);
        if (w->what == FBXL_ENTRY_MESSAGE && !s->messages && fbxi_ntb_get(f, s->node, &d))
            return 0;
        s->messages |= w->what == FBXL_ENTRY_MESSAGE;
        int status = fbxi_post_register(s->proxy, w->aux, w->what, w->address, w->value, w->length);
        s->retry_ps = fbxi_now(&f->clock) + 20000000u;
        return status == FBX_E_AGAIN ? FBX_E_AGAIN : 0;
    }
    int status;
    if (again) {
        status = fbx_op_advance(s->proxy, op);
    } else {
        prepare(op, w, w->kind == FBXW_STORE ? FBX_STORE : FBX_WRITE);
        if (w->kind == FBXW_WRITE)
            op->bytes = w->payload;
        if (w->payload) {
            if (w->kind == FBXW_STORE && w->payload != w->length)
                return 0;
            op->buffer = (void *)(uintptr_t)payload;
        } else if (w->kind == FBXW_STORE && w->length > 8) {
            return 0;
        }
        s->proxy->proxy_now = base_time(f, w, &slack);
        op->private_[7] = 0;
        status = fbx_op_begin(s->proxy, op);
    }
    s->retry_ps = op->next_ps;
    if (issued(op, status))
        return 0;
    if (!again && op->buffer) {
        /* It goes on without its connection, if need be, and is not begun twice. */
        if (!s->payload && !(s->payload = malloc(FBXW_PAYLOAD))) {
            fbxi_vanish(s->proxy, op->target, NULL);
            return 0;
        }
        memcpy(s->payload, payload, w->payload);
        op->buffer = s->payload;
    }
    return FBX_E_AGAIN;
}

static void refuse(struct session *s, const struct fbxw_frame *w, int status)
{
    struct fbxw_frame no = {.status = status, .value = UINT64_MAX, .address = UINT64_MAX};
    answer(s, w, &no, NULL);
}

static void request(struct keeper *g, struct session *s, const struct fbxw_frame *w, const uint8_t *payload)
{
    static const uint8_t kinds[] = {[FBXW_LOAD - FBXW_LOAD] = FBX_LOAD, [FBXW_READ - FBXW_LOAD] = FBX_READ,
                                    [FBXW_FETCH_ADD - FBXW_LOAD] = FBX_FETCH_ADD, [FBXW_SWAP - FBXW_LOAD] = FBX_SWAP,
                                    [FBXW_CAS - FBXW_LOAD] = FBX_CAS, [FBXW_FLUSH - FBXW_LOAD] = FBX_FLUSH,
                                    [FBXW_SAMPLE - FBXW_LOAD] = FBX_FLUSH};
    struct ask *a = ask_new(g, s, w);
    if (!a) {
        refuse(s, w, FBX_E_NO_MEMORY);
        return;
    }
    struct fbx_op *op = &a->op;
    prepare(op, w, kinds[w->kind - FBXW_LOAD]);
    int bad = 0;
    if (w->kind == FBXW_READ && w->what == 1 && g->fabric->flags & FBXL_TIMING) {
        /* A piece of DMA: a request that pushes what its node wrote before it; its bytes leave when it is here. */
        struct fbxi_target t;
        if ((bad = !w->length || w->length > FBXW_PAYLOAD || fbxi_translate_here(g->fabric, w->address, w->length, &t)) == 0) {
            op->kind = FBX_FLUSH;
            op->operand[0] = t.target;
            a->dma = 1;
        }
    }
    if (w->kind == FBXW_READ) {
        bad |= !w->length || w->length > FBXW_PAYLOAD;
        /* Without injected time it is read straight to where it is sent from; marks would go before it. */
        uint8_t *place = g->fabric->flags & FBXL_TIMING || bad || any_away(g->fabric) ? NULL : fbxi_stream_place(&s->stream, w->length);
        if (!bad && !place && a->buffer_bytes < w->length) {
            uint32_t room = w->length <= 4096 ? 4096 : FBXW_PAYLOAD;
            free(a->buffer);
            a->buffer = malloc(room);
            a->buffer_bytes = a->buffer ? room : 0;
            bad = !a->buffer;
        }
        op->buffer = place ? place : a->buffer;
    } else if (w->kind == FBXW_LOAD) {
        bad = w->length > sizeof a->wide;
        op->buffer = w->length > 8 ? a->wide : NULL;
    } else if (w->kind == FBXW_CAS) {
        bad = w->payload != 32;
        for (uint32_t i = 0; !bad && i < 4; i++)
            op->operand[i] = fbxw_get64(payload + 8 * i);
    } else if (w->kind == FBXW_FLUSH || w->kind == FBXW_SAMPLE) {
        bad = w->aux >= g->fabric->node_count || fbxi_is_away(g->fabric, w->aux);
        op->operand[0] = w->aux;
        op->gva = op->bytes = 0;
    }
    if (bad) {
        ask_free(g, a);
        refuse(s, w, FBX_E_INVALID);
        return;
    }
    a->base_ps = base_time(g->fabric, w, &a->slack_ps);
    s->proxy->proxy_now = a->base_ps;
    op->private_[7] = 0;
    if (!step(g, a, fbx_op_begin(s->proxy, op)) && heap_put(g, a)) {
        answer_ask(g, a, FBX_E_NO_MEMORY);
        ask_free(g, a);
    }
}

static void errand(struct keeper *g, struct session *s, const struct fbxw_frame *w, const uint8_t *payload)
{
    if (w->what == FBXW_PING) {
        struct fbxw_frame pong = {.value = fbxi_now(&g->fabric->clock)};
        answer(s, w, &pong, NULL);
        return;
    }
    struct fbxi_errand *e = malloc(sizeof *e);
    if (!e) {
        refuse(s, w, FBX_E_NO_MEMORY);
        return;
    }
    e->next = NULL;
    e->session = s;
    e->proxy = s->proxy;
    e->frame = *w;
    e->machine = s->machine;
    e->bytes = 0;
    s->owed += fbxw_answer_bytes(w);
    memcpy(e->payload, payload, w->payload);
    e->payload[w->payload] = 0;
    s->errands++;
    struct fbxi_gateway *all = g->gateway;
    pthread_mutex_lock(&all->mutex);
    *all->errands_end = e;
    all->errands_end = &e->next;
    pthread_cond_signal(&all->work);
    pthread_mutex_unlock(&all->mutex);
}

static void *clerk(void *argument)
{
    struct fbxi_gateway *g = argument;
    pthread_mutex_lock(&g->mutex);
    while (!fbx_observe(&g->stop)) {
        struct fbxi_errand *e = g->errands;
        struct fbxi_owned *left = g->left;
        if (left) {
            g->left = left->next;
            pthread_mutex_unlock(&g->mutex);
            fbxi_owned_free(g->fabric, left);
            pthread_mutex_lock(&g->mutex);
            continue;
        }
        if (!e) {
            pthread_cond_wait(&g->work, &g->mutex);
            continue;
        }
        g->errands = e->next;
        if (!g->errands)
            g->errands_end = &g->errands;
        pthread_mutex_unlock(&g->mutex);
        struct session *s = e->session; /* errands of a session run one after the other, all of them here */
        e->assembly = s->assembly;
        e->assembly_bytes = s->assembly_bytes;
        e->owned = &s->owned;
        fbxi_errand_run(g->fabric, e);
        s->assembly = e->assembly;
        s->assembly_bytes = e->assembly_bytes;
        struct keeper *to = s->keeper;
        pthread_mutex_lock(&to->mutex);
        e->next = to->done;
        to->done = e;
        pthread_mutex_unlock(&to->mutex);
        poke(to);
        pthread_mutex_lock(&g->mutex);
    }
    pthread_mutex_unlock(&g->mutex);
    return NULL;
}

/* ---- sessions --------------------------------------------------------------------------------------------------------- */

static int watch(struct keeper *g, struct session *s)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};
    return epoll_ctl(g->epoll, EPOLL_CTL_ADD, s->stream.fd, &event);
}

static void unwatch(struct keeper *g, struct session *s)
{
    struct epoll_event event = {.events = 0};
    epoll_ctl(g->epoll, EPOLL_CTL_DEL, s->stream.fd, &event);
}

static void cut(struct keeper *g, struct session *s)
{
    if (s->stream.fd >= 0) {
        /* A child that was forked just now may hold it still: closing it alone would neither end it nor its events. */
        unwatch(g, s);
        shutdown(s->stream.fd, SHUT_RDWR);
        fbx_count(&g->connected, UINT64_MAX);
    }
    fbxi_stream_drop(&s->stream);
    s->readable = s->ended = s->dirty = 0;
    s->since_ns = fbxi_monotonic_ns();
    if (!s->greeted)
        s->dead = 1;
    g->sweep = 1;
}

static void welcome(struct session *s, int fd, int status, uint64_t received)
{
    uint8_t bytes[FBXW_HEADER];
    struct fbxw_frame w = {.kind = FBXW_WELCOME, .status = status, .value = received};
    fbxw_encode(bytes, &w);
    (void)s;
    /* The first bytes on a fresh connection: they fit, or it is no connection. */
    if (send(fd, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        shutdown(fd, SHUT_RDWR);
}

/* A connection says whose it is. The session that it belongs to takes it over, or this one becomes that session. */
static void hello(struct keeper *g, struct session *s, const struct fbxw_frame *w, const uint8_t *payload)
{
    fbx_fabric *f = g->fabric;
    struct fbxw_hello h;
    int status = 0;
    if (w->payload < FBXW_HELLO_BYTES) {
        cut(g, s);
        return;
    }
    fbxw_decode_hello(payload, &h);
    if (h.machine != s->machine || h.machine == f->machine || h.machine >= f->machine_count || h.fabric != f->machines->fabric ||
        h.layout != FBXW_VERSION ||
        (h.node != UINT32_MAX && (h.node >= f->node_count || f->node_facts[h.node].machine != h.machine)))
        status = FBX_E_DENIED;
    else if (fbx_observe(&f->machines->of[h.machine].state) == FBXL_MACHINE_LOST)
        status = FBX_E_PEER_LOST;
    struct session *known = NULL;
    for (struct session *at = g->sessions; at && !status; at = at->next)
        if (at != s && at->greeted && !at->dead && at->machine == h.machine && !memcmp(at->id, h.session, 16))
            known = at;
    if (!status && h.resumed && !known)
        status = FBX_E_PEER_LOST;
    fbx_node *proxy = NULL;
    if (!status && !known && h.node != UINT32_MAX)
        status = fbxi_proxy_attach(f, h.node, &proxy);
    if (status) {
        welcome(s, s->stream.fd, status, 0);
        cut(g, s);
        return;
    }
    fbxi_stream_took(&s->stream, w);
    if (known) {
        /* The old connection may not know yet that it is broken. */
        cut(g, known);
        known->since_ns = 0;
        int fd = s->stream.fd;
        unwatch(g, s);
        s->stream.fd = -1;
        s->dead = 1;
        welcome(known, fd, 0, known->stream.received);
        if (fbxi_stream_resume(&known->stream, fd, h.received) || watch(g, known)) {
            cut(g, known);
            return;
        }
        known->readable = known->dirty = 1;
        activate(g, known);
        fbx_count(&g->resumed, 1);
        return;
    }
    s->proxy = proxy;
    s->node = h.node;
    s->requester = h.requester;
    s->incarnation = h.incarnation;
    memcpy(s->id, h.session, 16);
    s->greeted = 1;
    if (proxy) {
        fbx_poke(&proxy->slot->proxy_incarnation, h.incarnation);
        fbx_poke(&proxy->slot->proxy_posted, h.posted);
        /* Pairs with: fbx_observe(&r->proxy_of) in away.c. Breaks: the counter of one that was here before. */
        fbx_publish(&proxy->slot->proxy_of, (uint64_t)(h.machine + 1) << 32 | h.requester);
    }
    welcome(s, s->stream.fd, 0, 0);
}

static void unlink_session(struct keeper *g, struct session *s)
{
    for (struct session **at = &g->sessions; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    for (struct session **at = &g->active; s->active && *at; at = &(*at)->next_active)
        if (*at == s) {
            *at = s->next_active;
            s->active = 0;
            break;
        }
    if (g->hot == s)
        g->hot = NULL;
    g->session_count--;
    fbx_poke(&g->count, g->session_count);
}

/* A session with a connection is this keeper's from here on. */
static void take_over(struct keeper *g, struct session *s)
{
    s->keeper = g;
    s->next = g->sessions;
    g->sessions = s;
    g->session_count++;
    fbx_poke(&g->count, g->session_count);
    fbx_count(&g->connected, 1);
    s->readable = 1;
    activate(g, s);
    if (watch(g, s))
        cut(g, s);
}

/* Whose a session is, at any connection that it ever has. */
static struct keeper *keeper_of(struct keeper *g, const uint8_t *id)
{
    return &g->gateway->keeper[fbxw_get64(id) % g->gateway->keepers];
}

enum { HANDED_OVER = 2 };

/* A connection has said whose it is: its keeper hears it again from there. */
static void hand_over(struct keeper *g, struct session *s, struct keeper *to)
{
    unwatch(g, s);
    unlink_session(g, s);
    fbx_count(&g->connected, UINT64_MAX);
    pthread_mutex_lock(&to->mutex);
    s->next_moved = to->moved;
    to->moved = s;
    pthread_mutex_unlock(&to->mutex);
    poke(to);
}

static void close_session(struct keeper *g, struct session *s)
{
    cut(g, s);
    if (s->proxy) {
        fbx_publish(&s->proxy->slot->proxy_of, 0);
        fbx_node_free(s->proxy);
    }
    if (s->owned) {
        /* Freeing waits for locks: the clerk does it. */
        pthread_mutex_lock(&g->gateway->mutex);
        s->owned->next = g->gateway->left;
        g->gateway->left = s->owned;
        pthread_cond_signal(&g->gateway->work);
        pthread_mutex_unlock(&g->gateway->mutex);
    }
    free(s->assembly);
    free(s->payload);
    fbxi_stream_free(&s->stream);
    unlink_session(g, s);
    free(s);
}

/* Whether a frame that nobody asked for fits beside all the answers that are owed. */
static int room_beside(const struct session *s) { return fbxi_stream_room(&s->stream, (uint32_t)s->owed + FBXW_HEADER); }

/* Messages of this requester that found their register full: its own device, which is at home there, must say so. */
static void note_messages(struct keeper *g, struct session *s)
{
    uint64_t bits = s->proxy && room_beside(s) ? fbxi_ntb_take_rejected(g->fabric, s->node) : 0;
    if (!bits)
        return;
    struct fbxw_frame w = {.kind = FBXW_NOTE, .what = FBXW_NOTE_MESSAGES, .value = bits};
    fbxi_stream_put(&s->stream, &w, NULL);
    s->dirty = 1;
    activate(g, s);
}

static void send_answers(struct keeper *g, struct session *s, int idle)
{
    if (s->stream.fd < 0 || !s->greeted)
        return;
    const uint64_t behind = s->stream.received - s->stream.acknowledged;
    if (behind && (s->stream.unacknowledged_bytes > ACK_BYTES || (idle && !fbxi_stream_waiting(&s->stream)) || s->over) &&
        room_beside(s)) {
        struct fbxw_frame ack = {.kind = FBXW_ACK};
        fbxi_stream_put(&s->stream, &ack, NULL);
        s->dirty = 1;
    }
    if (s->dirty) {
        int status = fbxi_stream_push(&s->stream);
        s->dirty = status == 1; /* the rest goes when the socket takes it */
        if (status == FBXI_BROKEN)
            cut(g, s);
    }
}

/* Frames that are here. Returns whether something was done; HANDED_OVER: the session is another keeper's now. */
static int serve(struct keeper *g, struct session *s)
{
    struct fbxw_frame w;
    const uint8_t *payload;
    uint32_t available, turn = 0;
    int did = 0;
    if (s->blocked) {
        if (fbxi_now(&g->fabric->clock) < s->retry_ps || post(g, s, &s->held, s->payload) == FBX_E_AGAIN)
            return 0;
        s->blocked = 0;
        fbx_publish(&s->proxy->slot->proxy_posted, fbx_peek(&s->proxy->slot->proxy_posted) + 1);
        did = 1;
    }
    while (s->stream.fd >= 0 && turn < TURN) {
        int what = fbxi_stream_next(&s->stream, &w, &payload, &available);
        if (what == 0 || what == 2) {
            if (!s->readable)
                break;
            if (s->dirty && s->stream.tail - s->stream.sent > PUSH_BYTES)
                send_answers(g, s, 0);
            int got = fbxi_stream_fill(&s->stream, 0);
            /* A read that took less than it could emptied the socket: what comes now tells so itself. But an end that came
             * with the bytes has told already. */
            if (got == 0 || (got > 0 && s->stream.drained && !s->ended))
                s->readable = 0;
            if (got < 0) {
                /* What came whole before it broke has been taken already. */
                cut(g, s);
                break;
            }
            continue;
        }
        if (what < 0 || (w.kind == FBXW_HELLO) == s->greeted || (s->greeted && !w.sequence && w.kind != FBXW_ACK) ||
            fbxi_stream_acked(&s->stream, w.ack)) {
            fbx_count(&g->garbage, 1);
            s->dead |= s->greeted; /* its other side cannot be trusted to count either */
            cut(g, s);
            break;
        }
        if (w.kind == FBXW_HELLO) {
            struct keeper *to = w.payload < FBXW_HELLO_BYTES ? g : keeper_of(g, payload);
            if (to != g) {
                hand_over(g, s, to);
                return HANDED_OVER;
            }
            hello(g, s, &w, payload);
            did = 1;
            continue;
        }
        /* Room for an answer is needed before the question is taken: who does not read his answers asks no more. */
        if (w.kind != FBXW_ACK && !fbxw_posted(w.kind) &&
            s->stream.tail - s->stream.head + s->owed + fbxw_answer_bytes(&w) + 4 * FBXW_HEADER > s->stream.tx_bytes)
            break;
        did = 1;
        turn++;
        fbx_count(&g->frames, 1);
        /* Before it is answered, so that the answer acknowledges it; its bytes stay until more is read. */
        fbxi_stream_took(&s->stream, &w);
        if (fbxw_posted(w.kind)) {
            if (s->proxy && post(g, s, &w, payload) == FBX_E_AGAIN) {
                s->blocked = 1;
                s->held = w;
                break;
            }
            if (s->proxy)
                fbx_publish(&s->proxy->slot->proxy_posted, fbx_peek(&s->proxy->slot->proxy_posted) + 1);
        } else if (w.kind >= FBXW_LOAD && w.kind <= FBXW_SAMPLE) {
            if (s->proxy)
                request(g, s, &w, payload);
            else
                refuse(s, &w, FBX_E_INVALID);
        } else if (w.kind == FBXW_ERRAND) {
            errand(g, s, &w, payload);
        } else if (w.kind == FBXW_BYE) {
            s->over = 1;
        } else if (w.kind != FBXW_ACK) {
            refuse(s, &w, FBX_E_UNSUPPORTED);
        }
    }
    return did;
}

static void adopt(struct keeper *g, const struct adopted *a)
{
    struct session *s = g->session_count < SESSIONS ? calloc(1, sizeof *s) : NULL;
    int yes = 1;
    if (s && fbxi_stream_init(&s->stream, TX_BYTES, RX_BYTES)) {
        free(s);
        s = NULL;
    }
    if (!s) {
        close(a->fd);
        return;
    }
    s->stream.fd = a->fd;
    s->machine = a->machine;
    s->since_ns = fbxi_monotonic_ns();
    setsockopt(a->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    take_over(g, s);
}

/* What others have left here. */
static void take_left(struct keeper *g)
{
    pthread_mutex_lock(&g->mutex);
    struct adopted *list = g->adopted;
    g->adopted = NULL;
    struct session *moved = g->moved;
    g->moved = NULL;
    struct fbxi_errand *done = g->done;
    g->done = NULL;
    pthread_mutex_unlock(&g->mutex);
    while (list) {
        struct adopted *a = list;
        list = a->next;
        adopt(g, a);
        free(a);
    }
    while (moved) {
        struct session *s = moved;
        moved = s->next_moved;
        if (g->session_count < SESSIONS) {
            take_over(g, s);
        } else {
            fbxi_stream_free(&s->stream);
            free(s);
        }
    }
    while (done) {
        struct fbxi_errand *e = done;
        struct session *s = e->session;
        done = e->next;
        s->errands--;
        s->owed -= fbxw_answer_bytes(&(struct fbxw_frame){.kind = FBXW_ERRAND, .what = FBXW_ERRANDS});
        g->sweep |= s->dead;
        if (!s->dead) {
            struct fbxw_frame w = {.status = e->frame.status, .value = e->frame.value, .address = e->frame.address,
                                   .payload = e->bytes, .kind = FBXW_DATA};
            answer(s, &e->frame, &w, e->payload); /* its room was kept */
        }
        free(e);
    }
}

/* All that can be done at once: requests that are here, and answers to them. */
static int round_of(struct keeper *g)
{
    struct session *list = g->active;
    int did = 0;
    g->active = NULL;
    for (struct session *s = list, *next; s; s = next) {
        next = s->next_active;
        s->active = 0; /* not before its turn: who is activated meanwhile stays where he is in this list */
        int served = 0;
        if (s->readable || s->blocked || s->stream.rx_at != s->stream.rx_end)
            served = serve(g, s);
        did |= served != 0;
        if (served == HANDED_OVER)
            continue;
        if (served)
            g->hot = s;
        if (s->dirty)
            send_answers(g, s, 0);
        if (s->readable || s->blocked || s->dirty || s->stream.rx_at != s->stream.rx_end || s->stream.received != s->stream.acknowledged)
            activate(g, s);
    }
    return did;
}

/* Requests whose time has come. */
static int run_due(struct keeper *g, uint64_t now)
{
    int did = 0;
    while (g->heap_count && g->heap[0]->op.next_ps <= now) {
        struct ask *a = heap_take(g);
        if (a->session->dead) {
            g->sweep = 1;
            ask_free(g, a);
        } else if (!step(g, a, a->answers ? a->status : fbx_op_advance(a->session->proxy, &a->op))) {
            if (a->op.next_ps <= now)
                a->op.next_ps = now + 1; /* others have their turn first */
            heap_put(g, a);
        }
        did = 1;
    }
    return did;
}

/* Look at every session, quiet ones too: who is gone, and what nobody told us of. Returns whether to look again in 1 ms. */
static int sweep(struct keeper *g, uint64_t now_ns)
{
    fbx_fabric *f = g->fabric;
    int soon = 0;
    g->sweep = 0;
    for (struct session *s = g->sessions, *next; s; s = next) {
        next = s->next;
        if (s->messages)
            note_messages(g, s);
        if (s->stream.fd < 0 && !s->dead) {
            if (s->over || now_ns > s->since_ns + LINGER_NS) {
                s->dead = 1;
                fbx_count(&g->expired, s->over ? 0 : 1);
            }
        } else if (!s->greeted && now_ns > s->since_ns + GREET_NS) {
            cut(g, s);
        }
        if (fbx_observe(&f->machines->of[s->machine].state) == FBXL_MACHINE_LOST) {
            if (s->stream.fd >= 0)
                cut(g, s); /* nothing more of it is heard, whatever is under way */
            s->dead = 1;
        }
        if (s->dead && !s->asks && !s->errands && !s->blocked) {
            close_session(g, s);
            continue;
        }
        soon |= s->messages != 0; /* a message's fate is known when somebody delivers it: look now and then */
    }
    return soon;
}

/* Whether what came last over a connection was sent from the processor that we are on, as loopback's packets are. */
static int from_here(int fd)
{
    int from = -1;
    socklen_t bytes = sizeof from;
    return !getsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &from, &bytes) && from >= 0 && from == sched_getcpu();
}

/* Go to another of the processors that we may use: woken by who asks, we were put beside him, and would stay there, since no
 * balancer sees two that take turns. */
static void step_aside(void)
{
    cpu_set_t may, others;
    const int here = sched_getcpu();
    if (sched_getaffinity(0, sizeof may, &may) || here < 0)
        return;
    others = may;
    CPU_CLR((size_t)here, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
        (void)sched_setaffinity(0, sizeof may, &may);
}

static void *keeper(void *argument)
{
    struct keeper *g = argument;
    fbx_fabric *f = g->fabric;
    struct epoll_event events[64];
    uint64_t busy_ns = 0, look_ns = 0, swept_ns = 0, aside_ns = 0, aside_wait = ASIDE_NS, hold_ns = 0, served_ns = 0;
    uint64_t asked_ns = 0, before_ns = 0;
    uint32_t looks = 0;
    struct fbxi_looking looking = {0};
    cpu_set_t set;
    const int spins = sched_getaffinity(0, sizeof set, &set) || (uint32_t)CPU_COUNT(&set) > g->gateway->keepers;
    int timeout = 0, soon = 0;
    fbxi_looking_fresh(&looking);
    while (!fbx_observe(&g->gateway->stop)) {
        int count = 0, did = 0, waiting = 0;
        const int asks = !g->hot || g->hot->stream.fd < 0 || timeout || !(++looks % LOOKS) || before_ns - asked_ns > LOOKS_NS;
        if (!asks) {
            g->hot->readable = 1;
            activate(g, g->hot);
        } else {
            count = epoll_wait(g->epoll, events, 64, timeout);
        }
        for (int i = 0; i < count; i++) {
            struct session *s = events[i].data.ptr;
            if (!s) {
                uint64_t number;
                while (read(g->event, &number, sizeof number) < 0 && errno == EINTR)
                    ;
                take_left(g);
                continue;
            }
            if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                s->readable = 1;
            if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                s->ended = 1;
            activate(g, s);
        }
        const uint64_t now_ns = fbxi_monotonic_ns();
        asked_ns = asks ? now_ns : asked_ns;
        before_ns = now_ns;
        int more = 1;
        for (int round = 0; round < 4 && more; round++) {
            more = round_of(g);
            did |= more;
        }
        const uint64_t now = fbxi_now(&f->clock);
        did |= run_due(g, now);
        for (struct session *s = g->active; s; s = s->next_active) {
            if (s->stream.received == s->stream.acknowledged)
                s->level_ns = now_ns;
            send_answers(g, s, !did || now_ns > s->level_ns + ACK_NS);
        }
        if (g->sweep || now_ns - swept_ns > SWEEP_NS) {
            soon = sweep(g, now_ns);
            swept_ns = now_ns;
        }
        uint64_t due = g->heap_count ? g->heap[0]->op.next_ps : UINT64_MAX;
        for (struct session *s = g->active; s; s = s->next_active) {
            /* Its answers are not read, or it has not been told what came: it is looked at again soon. */
            waiting |= s->stream.fd >= 0 && !s->blocked && (s->readable || s->stream.received != s->stream.acknowledged);
            if (s->blocked && s->retry_ps < due)
                due = s->retry_ps;
        }
        /* Look on for a while before sleeping: the next request is often near, and waking up takes longer than serving it. */
        if (did && look_ns && now_ns - look_ns < FBXI_LOOK_AWAY_NS) {
            fbxi_looking_useful(&looking);
            aside_wait = ASIDE_NS;
        } else if (did && look_ns) {
            /* It came because we were stopped: who asks is on this processor, and we were in the way. */
            fbxi_looking_useless(&looking);
        }
        if (did && now_ns - served_ns > FBXI_LOOK_FRESH_NS)
            fbxi_looking_fresh(&looking);
        served_ns = did ? now_ns : served_ns;
        if (now_ns < hold_ns)
            looking.ns = FBXI_LOOK_MOST_NS;
        look_ns = did || timeout ? 0 : now_ns;
        if (did)
            busy_ns = now_ns;
        timeout = 200;
        if (did || (spins && busy_ns && now_ns - busy_ns < looking.ns)) {
            timeout = did && !more && looking.ns <= FBXI_LOOK_LEAST_NS && due == UINT64_MAX ? 200 : 0;
        } else if (due != UINT64_MAX && fbxi_counts(&f->clock)) {
            fbxi_slept(&f->clock, 1000u);
            timeout = 0;
        } else if (due != UINT64_MAX) {
            uint64_t ps = due > now ? due - now : 0;
            /* Fabric time may be stretched: a tick is what the clock says. */
            uint64_t us = fbxi_ps_to_ticks(&f->clock, ps) / f->clock.ticks_per_us;
            timeout = us < 1000 ? 0 : us / 1000 < 200 ? (int)(us / 1000) : 200;
        }
        if (timeout && busy_ns) {
            fbxi_looking_useless(&looking);
            if (fbxi_looking_sleeps(&looking) && spins && g->hot && g->hot->stream.fd >= 0 && now_ns > aside_ns &&
                from_here(g->hot->stream.fd)) {
                step_aside();
                hold_ns = now_ns + HOLD_NS;
                aside_ns = now_ns + aside_wait; /* of no use where the others are busy: ever more rarely */
                aside_wait = aside_wait * 2 < ASIDE_MOST_NS ? aside_wait * 2 : ASIDE_MOST_NS;
            }
            busy_ns = 0;
        }
        if ((waiting || soon) && timeout)
            timeout = 1;
        if (!timeout && !did && count == 0)
            fbx_relax();
    }
    while (g->sessions) {
        g->sessions->asks = g->sessions->errands = 0;
        close_session(g, g->sessions);
    }
    return NULL;
}

/* ---- life -------------------------------------------------------------------------------------------------------------- */

/* As many as the processors bear beside those who compute, and no more than there are nodes to serve. */
static uint32_t how_many(const fbx_fabric *f)
{
    const char *said = getenv("FABREX_GATEWAY_THREADS");
    cpu_set_t set;
    uint32_t nodes = 0, processors = sched_getaffinity(0, sizeof set, &set) ? 1 : (uint32_t)CPU_COUNT(&set);
    for (uint32_t i = 0; i < f->node_count; i++)
        nodes += f->node_facts[i].machine == f->machine && f->node_facts[i].kind != FBXL_SWITCH;
    uint32_t count = processors / 2 < nodes ? processors / 2 : nodes;
    if (said && atoi(said) > 0)
        count = (uint32_t)atoi(said);
    return count < 1 ? 1 : count < KEEPERS ? count : KEEPERS;
}

static int keeper_start(struct fbxi_gateway *all, struct keeper *g)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    g->gateway = all;
    g->fabric = all->fabric;
    g->epoll = epoll_create1(EPOLL_CLOEXEC);
    g->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (g->epoll < 0 || g->event < 0 || epoll_ctl(g->epoll, EPOLL_CTL_ADD, g->event, &event))
        return fbxi_fail_system(FBX_E_SYSTEM, "cannot make the gateway's descriptors");
    if ((errno = fbxi_thread_start(&g->thread, keeper, g)))
        return fbxi_fail_system(FBX_E_SYSTEM, "cannot start the gateway's thread");
    g->runs = 1;
    return 0;
}

static void keeper_end(struct keeper *g)
{
    for (struct adopted *a; (a = g->adopted); g->adopted = a->next, close(a->fd), free(a))
        ;
    for (struct session *s; (s = g->moved); g->moved = s->next_moved, fbxi_stream_free(&s->stream), free(s))
        ;
    for (struct fbxi_errand *e; (e = g->done); g->done = e->next, free(e))
        ;
    for (uint32_t i = 0; i < g->heap_count; i++) {
        free(g->heap[i]->buffer);
        free(g->heap[i]);
    }
    for (struct ask *a; (a = g->free); g->free = a->next, free(a->buffer), free(a))
        ;
    free(g->heap);
    if (g->epoll >= 0)
        close(g->epoll);
    if (g->event >= 0)
        close(g->event);
    pthread_mutex_destroy(&g->mutex);
}

/* Stop what runs of it, and free it. */
static void gateway_end(struct fbxi_gateway *all, int clerk_runs)
{
    pthread_mutex_lock(&all->mutex);
    fbx_publish(&all->stop, 1);
    pthread_cond_signal(&all->work);
    pthread_mutex_unlock(&all->mutex);
    if (clerk_runs)
        pthread_join(all->clerk, NULL);
    /* All of them before what one leaves with another is freed. */
    for (uint32_t i = 0; i < all->keepers; i++)
        if (all->keeper[i].runs) {
            poke(&all->keeper[i]);
            pthread_join(all->keeper[i].thread, NULL);
        }
    for (uint32_t i = 0; i < all->keepers; i++)
        keeper_end(&all->keeper[i]);
    for (struct fbxi_errand *e; (e = all->errands); all->errands = e->next, free(e))
        ;
    for (struct fbxi_owned *o; (o = all->left); all->left = o->next, free(o))
        ; /* the buffers go with the fabric */
    pthread_mutex_destroy(&all->mutex);
    pthread_cond_destroy(&all->work);
    free(all);
}

int fbx_gateway_start(fbx_fabric *f)
{
    if (fbx_peek(&f->closed) || fbx_peek(&f->forked))
        return fbxi_fail(FBX_E_CLOSED, "the fabric is closed");
    if (!f->machines)
        return fbxi_fail(FBX_E_INVALID, "fabric '%s' is on one machine: there is nobody to serve", f->name);
    if (f->gateway)
        return fbxi_fail(FBX_E_EXISTS, "this process serves the machine already");
    struct fbxi_gateway *all = calloc(1, sizeof *all);
    if (!all)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    all->fabric = f;
    all->errands_end = &all->errands;
    pthread_mutex_init(&all->mutex, NULL);
    pthread_cond_init(&all->work, NULL);
    const uint32_t count = how_many(f);
    int status = 0, clerk_runs = 0;
    if ((errno = fbxi_thread_start(&all->clerk, clerk, all)))
        status = fbxi_fail_system(FBX_E_SYSTEM, "cannot start the gateway's thread");
    clerk_runs = !status;
    all->keepers = count; /* before the first of them looks who another one is */
    for (uint32_t i = 0; i < count; i++) {
        all->keeper[i].epoll = all->keeper[i].event = -1;
        pthread_mutex_init(&all->keeper[i].mutex, NULL);
    }
    for (uint32_t i = 0; i < count && !status; i++)
        status = keeper_start(all, &all->keeper[i]);
    if (status) {
        gateway_end(all, clerk_runs);
        return status;
    }
    pthread_mutex_lock(&f->mutex);
    f->gateway = all;
    pthread_mutex_unlock(&f->mutex);
    return 0;
}

void fbxi_gateway_stop(fbx_fabric *f)
{
    /* Pairs with: the look under the same mutex in fbx_gateway_adopt(). Breaks: a connection for a gateway that is gone. */
    pthread_mutex_lock(&f->mutex);
    struct fbxi_gateway *all = f->gateway;
    f->gateway = NULL;
    pthread_mutex_unlock(&f->mutex);
    if (all)
        gateway_end(all, 1);
}

void fbxi_gateway_forked(fbx_fabric *f)
{
    struct fbxi_gateway *all = f->gateway;
    if (!all)
        return;
    f->gateway = NULL; /* the parent's; its memory stays, its descriptors must not outlive it here */
    for (uint32_t i = 0; i < all->keepers; i++) {
        struct keeper *g = &all->keeper[i];
        for (struct session *s = g->sessions; s; s = s->next)
            if (s->stream.fd >= 0)
                close(s->stream.fd);
        close(g->epoll);
        close(g->event);
    }
}

int fbx_gateway_adopt(fbx_fabric *f, int fd, uint32_t machine)
{
    pthread_mutex_lock(&f->mutex);
    struct keeper *g = f->gateway ? &f->gateway->keeper[0] : NULL;
    struct adopted *a = g && machine < f->machine_count && machine != f->machine ? malloc(sizeof *a) : NULL;
    if (!a) {
        pthread_mutex_unlock(&f->mutex);
        close(fd);
        return g ? fbxi_fail(FBX_E_INVALID, "machine %u is none to serve", machine)
                 : fbxi_fail(FBX_E_CLOSED, "this process does not serve the machine");
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    a->fd = fd;
    a->machine = machine;
    pthread_mutex_lock(&g->mutex);
    a->next = g->adopted;
    g->adopted = a;
    pthread_mutex_unlock(&g->mutex);
    poke(g);
    pthread_mutex_unlock(&f->mutex);
    return 0;
}

int fbx_gateway_info(fbx_fabric *f, struct fbx_gateway_info *out)
{
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&f->mutex);
    const struct fbxi_gateway *all = f->gateway;
    if (!all) {
        pthread_mutex_unlock(&f->mutex);
        return fbxi_fail(FBX_E_NOT_FOUND, "this process does not serve the machine");
    }
    for (uint32_t i = 0; i < all->keepers; i++) {
        const struct keeper *g = &all->keeper[i];
        out->sessions += fbx_peek(&g->count);
        out->connected += fbx_peek(&g->connected);
        out->frames += fbx_peek(&g->frames);
        out->garbage += fbx_peek(&g->garbage);
        out->resumed += fbx_peek(&g->resumed);
        out->expired += fbx_peek(&g->expired);
    }
    pthread_mutex_unlock(&f->mutex);
    return 0;
}
