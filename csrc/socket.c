/* SPDX-License-Identifier: Apache-2.0
 *
 * The transport between machines: frames over TCP, one connection per node handle and machine.
 *
 * Who does what. A caller that submits also sends, unless it has just done so: what follows within some microseconds is sent
 * together. A caller that waits also receives, for itself and for all others of the same stream; the rest sleep. One thread per
 * opened fabric makes connections, sends what nobody sent, takes acknowledgements while nobody waits, and gives up
 * what cannot be reached. It is not on the way of an operation whose caller waits for it.
 *
 * A connection that breaks is made anew, and the stream goes on where it was (stream.c): the gateway keeps what it has
 * answered until it is acknowledged, and takes no frame twice. Only when that does not succeed for a while, or the machine
 * is lost, is the stream given up; what it held then fails, or counts as dropped if it was posted.
 */
#include "transport.h"

#include "door.h"
#include "looking.h"
#include "ntb.h"
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define TX_BYTES (1ull << 20) /* sent and not acknowledged: what a fast network holds, and a processor's cache */
#define RX_BYTES (256u << 10)
#define SIP_BYTES 4096u
#define ACK_BYTES (256u << 10) /* taken and not acknowledged, before we say so unasked */
#define TOGETHER_NS 20000u /* frames that follow a sent one this soon wait for each other */
#define TOGETHER_BYTES (32u << 10)
#define TRY_NS 120000u /* a try lasts until a gateway that sleeps has answered: else two that both sleep never find out that they need not */
#define SLEEP_MS 20
#define DIAL_NS 1000000000ull /* how long the agent, and the gateway's welcome, may take */
#define RETRY_NS 20000000ull
#define SILENCE_NS 600000000ull /* asked and not heard for so long: the connection is broken; a machine is lost only after 1.5 s (agent.py) */
#define PROBE_NS 300000000ull
#define GIVE_UP_NS 3000000000ull /* without a connection for so long: the stream is given up */
#define PARTING_NS 500000000ull /* who leaves waits so long for a connection to send what it still has */
#define SLOTS_LIMIT 65536u

enum { IDLE, DIALS, GREETS, UP };
enum { FREE, WAITS, ANSWERED, FORGOTTEN };

struct slot {
    uint8_t state;
    uint16_t turn;
    uint32_t next, into_bytes, owed;
    uint8_t *into;
    int32_t status;
    uint32_t bytes, mark_count, unmarked; /* unmarked: marks came that found no place */
    int64_t took_ps;
    uint64_t value[2];
    struct fbxw_mark *mark;
};

struct fbxi_peer {
    struct fbxi_peer *next;
    fbx_fabric *fabric;
    fbx_node *node; /* NULL: the process's own */
    uint32_t machine;
    pthread_mutex_t mutex; /* all that follows */
    pthread_cond_t answered;
    struct fbxi_stream stream;
    uint32_t state, receiving, closing, resumed, probing, sleepers, trying;
    struct fbxi_looking looking;
    uint32_t busy_nap; /* the thread looks again within 2 ms: enough for requests, whose caller comes back for the answer */
    fbx_au32 users; /* threads inside a call: it is freed when they are out */
    int dial_fd;
    uint8_t session[16];
    uint64_t look_ns, waited_ns, down_ns, tried_ns, heard_ns, pushed_ns, asked_ns;
    uint64_t posted, posted_before, posted_sequence; /* in all; before this session; sequence of the last one, 0: settled */
    struct fbxl_away *shared;
    struct slot *slots;
    uint32_t slot_count, free_slot, waiting, owed;
    uint32_t direct_ticket; /* whose payload is being read to its place; ~0: none */
    uint8_t *scratch;
    uint8_t greeting[FBXW_HEADER];
    uint32_t greeting_bytes;
};

struct fbxi_net {
    pthread_mutex_t mutex; /* the list */
    struct fbxi_peer *list, *process[FBX_MACHINES];
    pthread_t thread;
    uint32_t running;
    fbx_au32 stop, wake, napping;
};

static void wake(struct fbxi_net *net)
{
    if (!fbx_observe(&net->napping))
        return;
    fbx_publish(&net->wake, 1);
    fbxi_futex_wake(&net->wake);
}

/* ---- answers ---------------------------------------------------------------------------------------------------------- */

static struct slot *slot_of(struct fbxi_peer *p, uint32_t ticket)
{
    uint32_t index = ticket & 0xffff;
    return index < p->slot_count && p->slots[index].turn == ticket >> 16 ? &p->slots[index] : NULL;
}

static int slot_take(struct fbxi_peer *p, uint32_t *ticket)
{
    if (p->free_slot == UINT32_MAX) {
        uint32_t count = p->slot_count ? p->slot_count * 2 : 64;
        struct slot *more = count <= SLOTS_LIMIT ? realloc(p->slots, count * sizeof *more) : NULL;
        if (!more)
            return FBX_E_QUEUE_FULL;
        p->slots = more;
        for (uint32_t i = p->slot_count; i < count; i++) {
            memset(&more[i], 0, sizeof *more);
            more[i].next = i + 1 < count ? i + 1 : UINT32_MAX;
        }
        p->free_slot = p->slot_count;
        p->slot_count = count;
    }
    struct slot *s = &p->slots[p->free_slot];
    *ticket = p->free_slot | (uint32_t)s->turn << 16;
    p->free_slot = s->next;
    s->state = WAITS;
    s->mark_count = s->bytes = s->unmarked = 0;
    s->mark = NULL;
    s->into = NULL;
    s->into_bytes = 0;
    p->waiting++;
    return 0;
}

static void slot_give(struct fbxi_peer *p, struct slot *s)
{
    free(s->mark);
    s->mark = NULL;
    s->state = FREE;
    s->turn++;
    s->next = p->free_slot;
    p->free_slot = (uint32_t)(s - p->slots);
}

static void answer(struct fbxi_peer *p, struct slot *s, int32_t status)
{
    p->waiting--;
    p->owed -= s->owed;
    if (s->state == FORGOTTEN) {
        slot_give(p, s);
        return;
    }
    s->status = status;
    s->state = ANSWERED;
}

static void settle(struct fbxi_peer *p)
{
    /* All that was posted is there once the last of it is acknowledged; less is not worth counting. */
    if (p->shared && p->posted_sequence && fbxi_stream_settled(&p->stream)) {
        fbx_publish(&p->shared->settled[p->machine], p->posted);
        p->posted_sequence = 0;
    }
}

/* ---- giving up -------------------------------------------------------------------------------------------------------- */

static void fresh_session(struct fbxi_peer *p)
{
    p->stream.head = p->stream.sent = p->stream.tail = 0;
    p->stream.sequence = p->stream.received = p->stream.acknowledged = 0;
    p->resumed = p->probing = 0;
    p->posted_before = p->posted;
    if (getrandom(p->session, sizeof p->session, 0) != sizeof p->session)
        memcpy(p->session, &p, sizeof p); /* never seen; a name that is merely unlikely still does */
}

/* Nobody reads the connection any more. The mutex is released meanwhile. */
static void quiet(struct fbxi_peer *p)
{
    while (p->receiving) {
        if (p->stream.fd >= 0)
            shutdown(p->stream.fd, SHUT_RDWR); /* wakes who sleeps on it */
        pthread_mutex_unlock(&p->mutex);
        sched_yield();
        pthread_mutex_lock(&p->mutex);
    }
}

static void drop(struct fbxi_peer *p)
{
    quiet(p);
    if (p->dial_fd >= 0)
        close(p->dial_fd);
    p->dial_fd = -1;
    p->greeting_bytes = 0;
    fbxi_stream_drop(&p->stream);
    p->direct_ticket = UINT32_MAX;
    if (p->state == UP)
        p->down_ns = fbxi_monotonic_ns();
    p->state = IDLE;
}

/* The stream cannot go on. What was posted and is not known to be there is lost, the rest ends with `status`. */
static void give_up(struct fbxi_peer *p, int32_t status)
{
    fbx_fabric *f = p->fabric;
    uint64_t lost = 0;
    quiet(p);
    for (uint64_t at = p->stream.head; at != p->stream.tail;) {
        uint8_t header[FBXW_HEADER];
        for (uint32_t i = 0; i < FBXW_HEADER; i++)
            header[i] = p->stream.tx[(at + i) & (p->stream.tx_bytes - 1)];
        lost += (uint64_t)fbxw_posted(header[3]);
        at += FBXW_HEADER + fbxw_get32(header + 4);
    }
    if (lost && p->node) {
        fbx_count(&p->node->slot->dropped, lost);
        fbx_count(&p->node->shared->aer_nonfatal, lost);
    }
    for (uint32_t i = 0; i < p->slot_count; i++)
        if (p->slots[i].state == WAITS || p->slots[i].state == FORGOTTEN) {
            lost++;
            answer(p, &p->slots[i], status);
        }
    fbx_count(&f->machines->of[p->machine].gave_up, lost);
    if (p->shared)
        fbx_publish(&p->shared->settled[p->machine], p->posted);
    p->posted_sequence = 0;
    drop(p);
    fresh_session(p);
    pthread_cond_broadcast(&p->answered);
}

static int lost_status(const struct fbxi_peer *p)
{
    return fbx_observe(&p->fabric->machines->of[p->machine].state) == FBXL_MACHINE_LOST ? FBX_E_PEER_LOST : 0;
}

/* ---- receiving -------------------------------------------------------------------------------------------------------- */

static void take_marks(struct slot *s, const uint8_t *at, uint32_t count)
{
    struct fbxw_mark *more;
    if (!count)
        return;
    if (count > FBXW_MARKS || s->mark_count > FBXW_MARKS_MOST - count ||
        !(more = realloc(s->mark, (s->mark_count + count) * sizeof *more))) {
        s->unmarked = 1; /* it cannot be said to have passed nothing */
        return;
    }
    s->mark = more;
    for (uint32_t i = 0; i < count; i++, at += FBXW_MARK_BYTES)
        s->mark[s->mark_count++] = (struct fbxw_mark){fbxw_get32(at), fbxw_get32(at + 4), fbxw_get64(at + 8)};
}

static void take_done(struct fbxi_peer *p, const struct fbxw_frame *w, const uint8_t *payload)
{
    struct slot *s = slot_of(p, w->ticket);
    if (!s || (s->state != WAITS && s->state != FORGOTTEN))
        return;
    s->took_ps = w->ahead_ps;
    s->value[0] = w->value;
    s->value[1] = w->address;
    uint32_t marks = 0, bytes = w->payload;
    if (w->kind == FBXW_DONE && w->what && w->what <= FBXW_MARKS && (uint32_t)w->what * FBXW_MARK_BYTES <= bytes) {
        marks = w->what;
        bytes -= marks * FBXW_MARK_BYTES;
    }
    if (payload && bytes && s->state == WAITS) /* NULL: it is where it belongs already */
        memcpy(s->into, payload, bytes < s->into_bytes ? bytes : s->into_bytes);
    s->bytes = bytes;
    take_marks(s, payload + bytes, marks);
    answer(p, s, s->unmarked && !w->status ? FBX_E_NO_MEMORY : w->status);
    fbx_count(&p->fabric->machines->of[p->machine].frames, 1);
}

/* What has been read, under the mutex. 0 or GARBAGE. */
static int dispatch(struct fbxi_peer *p, uint64_t *rejected)
{
    struct fbxi_stream *s = &p->stream;
    struct fbxw_frame w;
    const uint8_t *payload;
    uint32_t available;
    int what;
    if (s->direct && s->direct_left)
        return 0;
    if (s->direct) {
        /* The frame whose header was seen before is complete now. */
        memcpy(&w, p->scratch + FBXW_PAYLOAD, sizeof w);
        fbxi_stream_took(s, &w);
        take_done(p, &w, NULL);
        p->direct_ticket = UINT32_MAX;
    }
    while ((what = fbxi_stream_next(s, &w, &payload, &available)) > 0) {
        if (w.kind < FBXW_DONE && w.kind != FBXW_ACK)
            return FBXI_GARBAGE;
        if (what == 2) {
            struct slot *slot = w.kind == FBXW_DATA ? slot_of(p, w.ticket) : NULL;
            s->sip = w.kind == FBXW_DATA ? SIP_BYTES : 0;
            if (!slot || slot->state != WAITS || slot->into_bytes < w.payload || w.payload - available < 4096)
                break;
            memcpy(p->scratch + FBXW_PAYLOAD, &w, sizeof w);
            p->direct_ticket = w.ticket;
            fbxi_stream_direct(s, &w, slot->into, available);
            if (fbxi_stream_acked(s, w.ack))
                return FBXI_GARBAGE;
            break;
        }
        if (fbxi_stream_acked(s, w.ack))
            return FBXI_GARBAGE;
        if (w.kind == FBXW_DONE || w.kind == FBXW_DATA)
            take_done(p, &w, payload);
        else if (w.kind == FBXW_NOTE && w.what == FBXW_NOTE_MESSAGES)
            *rejected |= w.value;
        else if (w.kind == FBXW_NOTE && w.what == FBXW_NOTE_MARKS && slot_of(p, w.ticket) && slot_of(p, w.ticket)->state == WAITS)
            take_marks(slot_of(p, w.ticket), payload, w.payload / FBXW_MARK_BYTES);
        fbxi_stream_took(s, &w);
    }
    settle(p);
    if (s->unacknowledged_bytes > ACK_BYTES && fbxi_stream_room(s, 0)) {
        struct fbxw_frame ack = {.kind = FBXW_ACK};
        fbxi_stream_put(s, &ack, NULL);
        if (fbxi_stream_push(s) == FBXI_BROKEN)
            return FBXI_GARBAGE;
    }
    return what < 0 ? what : 0;
}

/* Read and dispatch once, as the stream's only reader. Called with the mutex; it is released while reading. */
static int receive(struct fbxi_peer *p, int wait)
{
    uint64_t rejected = 0;
    p->receiving = 1;
    pthread_mutex_unlock(&p->mutex);
    int got = fbxi_stream_fill(&p->stream, wait);
    pthread_mutex_lock(&p->mutex);
    p->receiving = 0;
    if (got > 0) {
        p->heard_ns = 0;
        p->probing = 0;
        if (dispatch(p, &rejected))
            got = FBXI_BROKEN;
    }
    if (got < 0)
        drop(p);
    if (p->sleepers && got)
        pthread_cond_broadcast(&p->answered);
    if (rejected && p->node) {
        pthread_mutex_unlock(&p->mutex);
        fbxi_ntb_rejected(p->fabric, p->node->index, rejected);
        pthread_mutex_lock(&p->mutex);
    }
    return got;
}

static void push_locked(struct fbxi_peer *p)
{
    if (p->state != UP || !fbxi_stream_waiting(&p->stream))
        return;
    p->pushed_ns = fbxi_monotonic_ns();
    if (fbxi_stream_push(&p->stream) == FBXI_BROKEN && !p->receiving)
        drop(p);
}

/* ---- connecting ------------------------------------------------------------------------------------------------------- */

static void dial(struct fbxi_peer *p, uint64_t now)
{
    uint8_t request[8] = "FXAG";
    p->tried_ns = now;
    int fd = fbxi_door(p->fabric);
    fbxw_put32(request + 4, p->machine);
    if (fd >= 0 && send(fd, request, sizeof request, MSG_NOSIGNAL) == sizeof request) {
        p->dial_fd = fd;
        p->state = DIALS;
        fd = -1;
    }
    if (fd >= 0)
        close(fd);
}

static void greet(struct fbxi_peer *p, int fd)
{
    const fbx_fabric *f = p->fabric;
    uint8_t bytes[FBXW_HEADER + FBXW_HELLO_BYTES];
    struct fbxw_hello hello = {.fabric = f->machines->fabric, .machine = f->machine,
                               .node = p->node ? p->node->index : UINT32_MAX,
                               .requester = p->node ? p->node->requester : f->session,
                               .incarnation = p->node ? p->node->incarnation : f->session_incarnation,
                               .received = p->stream.received, .resumed = p->resumed, .layout = FBXW_VERSION, .posted = p->posted_before};
    struct fbxw_frame w = {.kind = FBXW_HELLO, .payload = FBXW_HELLO_BYTES};
    int yes = 1;
    memcpy(hello.session, p->session, sizeof hello.session);
    fbxw_encode(bytes, &w);
    fbxw_encode_hello(bytes + FBXW_HEADER, &hello);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes); /* fails on what is no TCP, where nothing needs it */
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    close(p->dial_fd);
    p->dial_fd = fd;
    p->greeting_bytes = 0;
    p->state = GREETS;
    if (send(fd, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof bytes)
        drop(p);
}

static void hear_agent(struct fbxi_peer *p)
{
    uint8_t reply[4];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {reply, sizeof reply};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(p->dial_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    int fd = -1;
    const struct cmsghdr *c = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    if (fd >= 0 && got == 4 && !fbxw_get32(reply)) {
        greet(p, fd);
        return;
    }
    if (fd >= 0)
        close(fd);
    drop(p);
}

static void hear_welcome(struct fbxi_peer *p, uint64_t now)
{
    ssize_t got = recv(p->dial_fd, p->greeting + p->greeting_bytes, FBXW_HEADER - p->greeting_bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        drop(p);
        return;
    }
    p->greeting_bytes += (uint32_t)got;
    if (p->greeting_bytes < FBXW_HEADER)
        return;
    struct fbxw_frame w;
    if (fbxw_decode(p->greeting, &w) || w.kind != FBXW_WELCOME || w.payload) {
        drop(p);
        return;
    }
    if (w.status) {
        /* It does not know us any more, or does not want us: nothing that it had can be answered. */
        give_up(p, w.status == FBX_E_PEER_LOST || w.status == FBX_E_DENIED || w.status == FBX_E_STALE ? w.status : FBX_E_PEER_LOST);
        return;
    }
    int fd = p->dial_fd;
    const struct timeval slice = {0, SLEEP_MS * 1000};
    p->dial_fd = -1;
    /* Who waits sleeps in the read itself; all others ask not to wait. */
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &slice, sizeof slice);
    if (fbxi_stream_resume(&p->stream, fd, w.value)) {
        drop(p);
        return;
    }
    p->state = UP;
    p->resumed = 1;
    p->heard_ns = p->asked_ns = now;
    fbx_count(&p->fabric->machines->of[p->machine].connects, 1);
    settle(p);
    push_locked(p);
    pthread_cond_broadcast(&p->answered);
}

/* ---- the thread ------------------------------------------------------------------------------------------------------- */

/* See after one stream; returns when to come again, in ns from now. Called with its mutex. */
static uint64_t tend(struct fbxi_peer *p, uint64_t now)
{
    const int busy = !fbxi_stream_settled(&p->stream) || p->waiting;
    int lost = lost_status(p);
    if (lost && (busy || p->state != IDLE))
        give_up(p, lost);
    if (lost)
        return UINT64_MAX;
    if (p->state != UP) {
        if (!busy)
            return UINT64_MAX;
        if (!p->down_ns)
            p->down_ns = now;
        if (now - p->down_ns > GIVE_UP_NS) {
            give_up(p, FBX_E_COMPLETION_TIMEOUT);
            p->down_ns = 0;
            return UINT64_MAX;
        }
        if (p->state == IDLE && (!p->tried_ns || now - p->tried_ns > RETRY_NS))
            dial(p, now);
        if (p->state == DIALS)
            hear_agent(p);
        if (p->state == GREETS)
            hear_welcome(p, now);
        if (p->state == UP)
            p->down_ns = 0;
        else if (p->state != IDLE && now - p->tried_ns > DIAL_NS)
            drop(p);
        return 500000u;
    }
    push_locked(p);
    if (!p->receiving && p->state == UP)
        while (p->state == UP && receive(p, 0) > 0)
            ;
    if (p->state != UP)
        return 1000u;
    /* Heard_ns is 0 when something has come since we looked last. */
    if (!p->heard_ns || !busy)
        p->heard_ns = now;
    if (busy && now - p->heard_ns > SILENCE_NS) { /* whoever sleeps on it is woken: quiet() */
        drop(p);
        return 1000u;
    }
    if (p->waiting && !p->probing && now - p->heard_ns > PROBE_NS && fbxi_stream_settled(&p->stream) &&
        fbxi_stream_room(&p->stream, 0)) {
        /* All is acknowledged and an answer is outstanding: ask whether anybody is there. It must be acknowledged. */
        struct fbxw_frame ping = {.kind = FBXW_ERRAND, .what = FBXW_PING, .ticket = UINT32_MAX};
        fbxi_stream_put(&p->stream, &ping, NULL);
        p->probing = 1;
        push_locked(p);
    }
    if (p->stream.unacknowledged_bytes && fbxi_stream_room(&p->stream, 0) && !fbxi_stream_waiting(&p->stream)) {
        struct fbxw_frame ack = {.kind = FBXW_ACK};
        fbxi_stream_put(&p->stream, &ack, NULL);
        push_locked(p);
    }
    p->busy_nap = busy != 0;
    if (fbxi_stream_waiting(&p->stream))
        return 50000u;
    return busy ? 2000000u : 200000000u;
}

static void *net_thread(void *argument)
{
    fbx_fabric *f = argument;
    struct fbxi_net *net = f->net;
    while (!fbx_observe(&net->stop)) {
        uint64_t nap = 200000000u;
        /* Before we look. Pairs with: the mutex of the stream, which wake() comes after. Breaks: a frame that is put between our
         * look and our sleep waits for all of it. */
        fbx_publish(&net->napping, 1);
        pthread_mutex_lock(&net->mutex);
        for (struct fbxi_peer *p = net->list; p; p = p->next) {
            pthread_mutex_lock(&p->mutex);
            uint64_t again = p->closing ? UINT64_MAX : tend(p, fbxi_monotonic_ns());
            pthread_mutex_unlock(&p->mutex);
            nap = again < nap ? again : nap;
        }
        pthread_mutex_unlock(&net->mutex);
        if (nap <= 1000000u)
            fbx_publish(&net->napping, 0);
        fbxi_futex_wait(&net->wake, 0, nap);
        fbx_publish(&net->napping, 0);
        fbx_publish(&net->wake, 0);
    }
    return NULL;
}

static int net_of(fbx_fabric *f, struct fbxi_net **out)
{
    int status = 0;
    *out = fbx_observe_pointer(&f->net);
    if (*out)
        return 0;
    pthread_mutex_lock(&f->mutex);
    if (!f->net) {
        struct fbxi_net *net = calloc(1, sizeof *net);
        if (net) {
            pthread_mutex_init(&net->mutex, NULL);
            fbx_publish_pointer(&f->net, net);
            net->running = !fbxi_thread_start(&net->thread, net_thread, f);
            if (!net->running)
                status = fbxi_fail(FBX_E_SYSTEM, "cannot start a thread for the network");
        } else {
            status = fbxi_fail(FBX_E_NO_MEMORY, "no memory");
        }
    }
    *out = f->net;
    pthread_mutex_unlock(&f->mutex);
    return status;
}

static void peer_free(struct fbxi_peer *p)
{
    for (uint32_t i = 0; i < p->slot_count; i++)
        free(p->slots[i].mark);
    if (p->dial_fd >= 0)
        close(p->dial_fd);
    fbxi_stream_free(&p->stream);
    free(p->slots);
    free(p->scratch);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->answered);
    free(p);
}

static int peer_open(fbx_fabric *f, fbx_node *n, uint32_t machine, struct fbxi_peer **out)
{
    struct fbxi_net *net;
    if (!f->machines || machine >= f->machine_count || machine == f->machine)
        return fbxi_fail(FBX_E_INVALID, "machine %u is none to talk to", machine);
    if (n && (*out = fbx_observe_pointer(&n->peers[machine])))
        return 0;
    int status = net_of(f, &net);
    if (status)
        return status;
    struct fbxi_peer **place = n ? &n->peers[machine] : &net->process[machine];
    if ((*out = fbx_observe_pointer(place)))
        return 0;
    /* Its count of posted writes stands in shared memory: answers to others wait for them (gateway.c). */
    uint64_t offset = 0;
    if (n && !(offset = fbx_observe(&n->slot->away))) {
        if ((status = fbxi_control_lock(f)))
            return status;
        if (!(offset = fbx_observe(&n->slot->away)) && !(status = fbxi_heap(f, sizeof(struct fbxl_away), &offset)))
            fbx_publish(&n->slot->away, offset);
        fbxi_control_unlock(f);
        if (status)
            return status;
    }
    struct fbxi_peer *p = calloc(1, sizeof *p);
    if (!p || !(p->scratch = malloc(FBXW_PAYLOAD + sizeof(struct fbxw_frame))) || fbxi_stream_init(&p->stream, TX_BYTES, RX_BYTES)) {
        free(p ? p->scratch : NULL);
        free(p);
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    }
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->answered, &attributes);
    pthread_condattr_destroy(&attributes);
    p->fabric = f;
    p->node = n;
    p->machine = machine;
    p->dial_fd = -1;
    fbxi_looking_fresh(&p->looking);
    p->free_slot = p->direct_ticket = UINT32_MAX;
    p->shared = n ? fbxi_heap_at(f, offset, sizeof *p->shared) : NULL;
    if (p->shared)
        p->posted = fbx_peek(&p->shared->posted[machine]);
    fresh_session(p);
    pthread_mutex_lock(&net->mutex);
    if (*place) { /* another thread was faster */
        peer_free(p);
    } else {
        p->next = net->list;
        net->list = p;
        fbx_publish_pointer(place, p);
    }
    *out = *place;
    pthread_mutex_unlock(&net->mutex);
    return 0;
}

/* ---- submit, poll ------------------------------------------------------------------------------------------------------ */

static int enter(struct fbxi_peer *p)
{
    fbx_count(&p->users, 1);
    pthread_mutex_lock(&p->mutex);
    int lost = lost_status(p);
    if (lost && (p->waiting || !fbxi_stream_settled(&p->stream)))
        give_up(p, lost);
    return p->closing ? FBX_E_CLOSED : lost;
}

static int leave(struct fbxi_peer *p, int status)
{
    pthread_mutex_unlock(&p->mutex);
    fbx_count(&p->users, 0xffffffffu);
    return status;
}

static int peer_submit(struct fbxi_peer *p, struct fbxw_frame *w, const void *payload, void *into, uint32_t into_bytes,
                       uint32_t *ticket)
{
    int status = enter(p);
    if (!status && (!fbxi_stream_room(&p->stream, w->payload + FBXW_HEADER) || (ticket && p->owed + fbxw_answer_bytes(w) > FBXW_OWED)))
        status = FBX_E_AGAIN; /* a header's room is kept for acknowledgements */
    if (!status && ticket && !(status = slot_take(p, ticket))) {
        struct slot *s = slot_of(p, *ticket);
        s->into = into;
        s->into_bytes = into_bytes;
        s->owed = fbxw_answer_bytes(w);
        p->owed += s->owed;
        w->ticket = *ticket;
    }
    if (status)
        return leave(p, status);
    const int idle = fbxi_stream_settled(&p->stream) && p->waiting <= 1;
    fbxi_stream_put(&p->stream, w, payload);
    if (!ticket && fbxw_posted(w->kind)) {
        p->posted_sequence = w->sequence;
        p->posted++;
        if (p->shared)
            fbx_publish(&p->shared->posted[p->machine], p->posted);
    }
    if (idle)
        p->heard_ns = 0; /* silence counts from here */
    if (p->state == UP) {
        if (p->stream.tail - p->stream.sent >= TOGETHER_BYTES || fbxi_monotonic_ns() - p->pushed_ns > TOGETHER_NS)
            push_locked(p);
    }
    const int left = p->state != UP || (fbxi_stream_waiting(&p->stream) && !(ticket && p->busy_nap));
    struct fbxi_net *net = p->fabric->net;
    leave(p, 0);
    if (left)
        wake(net);
    return 0;
}

static void peer_push(struct fbxi_peer *p)
{
    if (!enter(p))
        push_locked(p);
    leave(p, 0);
}

/* Wait until something may have changed, as reader or beside the one there is. With the mutex. */
static void linger(struct fbxi_peer *p, uint64_t begin, uint64_t left_ns)
{
    static _Thread_local int processors;
    if (!processors) {
        cpu_set_t set;
        processors = sched_getaffinity(0, sizeof set, &set) ? 2 : CPU_COUNT(&set);
    }
    uint64_t now = fbxi_monotonic_ns();
    if (p->state != UP || p->receiving) {
        uint64_t until = now + (left_ns < 1000000u ? left_ns : 1000000u);
        struct timespec limit = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
        if (p->state != UP) {
            pthread_mutex_unlock(&p->mutex);
            wake(p->fabric->net);
            pthread_mutex_lock(&p->mutex);
            if (p->state == UP)
                return;
        }
        p->sleepers++;
        pthread_cond_timedwait(&p->answered, &p->mutex, &limit);
        p->sleepers--;
        return;
    }
    /* Looking on is quicker than being woken, if the other side runs meanwhile; where processors are scarce it keeps that side
     * from running. What it was worth lately decides. */
    const uint64_t spins = now - begin;
    if (now - p->waited_ns > FBXI_LOOK_FRESH_NS) {
        p->trying = 1;
        fbxi_looking_fresh(&p->looking);
    }
    p->waited_ns = now;
    if (processors > 1 && p->looking.ns > FBXI_LOOK_LEAST_NS && spins < (p->trying ? TRY_NS : p->looking.ns)) {
        int got = receive(p, 0);
        if (got > 0 && spins && now - p->look_ns < FBXI_LOOK_AWAY_NS) {
            fbxi_looking_useful(&p->looking);
            p->trying = 0;
        } else if (got > 0 && p->look_ns >= begin) { /* it came because we were stopped: the other side is on this processor */
            fbxi_looking_useless(&p->looking);
            p->trying = 0;
        }
        p->look_ns = now;
        return;
    }
    if (spins)
        fbxi_looking_useless(&p->looking);
    if (fbxi_looking_sleeps(&p->looking)) {
        p->trying = 1;
    } else if (spins && p->trying) {
        p->trying = 0;
        p->looking.ns = FBXI_LOOK_LEAST_NS;
    }
    if (!fbxi_stream_waiting(&p->stream) && left_ns >= SLEEP_MS * 1000000ull) {
        receive(p, 1);
        return;
    }
    p->receiving = 1;
    struct pollfd wait = {p->stream.fd, POLLIN, 0};
    if (fbxi_stream_waiting(&p->stream))
        wait.events |= POLLOUT;
    uint64_t ms = left_ns / 1000000u;
    pthread_mutex_unlock(&p->mutex);
    poll(&wait, 1, ms > SLEEP_MS ? SLEEP_MS : ms ? (int)ms : 1);
    pthread_mutex_lock(&p->mutex);
    p->receiving = 0;
    push_locked(p);
    if (p->state == UP && !p->receiving)
        receive(p, 0);
}

static int peer_poll(struct fbxi_peer *p, uint32_t ticket, uint64_t max_wait_ns, struct fbxi_answer *out)
{
    uint64_t begin = 0;
    enter(p);
    for (uint32_t round = 0;; round++) {
        struct slot *s = slot_of(p, ticket);
        if (!s || s->state == FREE)
            return leave(p, FBX_E_STALE);
        if (s->state == ANSWERED) {
            out->status = s->status;
            out->bytes = s->bytes;
            out->took_ps = s->took_ps;
            memcpy(out->value, s->value, sizeof out->value);
            out->mark_count = s->mark_count;
            out->mark = s->mark;
            s->mark = NULL;
            slot_give(p, s);
            return leave(p, 0);
        }
        int lost = p->closing ? FBX_E_CLOSED : lost_status(p);
        if (lost) {
            give_up(p, lost);
            continue;
        }
        push_locked(p);
        uint64_t now = fbxi_monotonic_ns();
        if (!begin)
            begin = now;
        if (round && now - begin >= max_wait_ns)
            return leave(p, FBX_E_AGAIN);
        if (!max_wait_ns) {
            if (p->state == UP && !p->receiving)
                receive(p, 0);
            continue;
        }
        linger(p, begin, max_wait_ns - (now - begin));
    }
}

static int peer_room(struct fbxi_peer *p, uint32_t payload, uint32_t answer_bytes, uint64_t max_wait_ns)
{
    uint64_t begin = fbxi_monotonic_ns();
    for (;;) {
        int status = enter(p);
        if (status || (fbxi_stream_room(&p->stream, payload + FBXW_HEADER) && p->owed + answer_bytes <= FBXW_OWED))
            return leave(p, status);
        push_locked(p);
        uint64_t now = fbxi_monotonic_ns();
        if (now - begin >= max_wait_ns)
            return leave(p, FBX_E_AGAIN);
        linger(p, begin, max_wait_ns - (now - begin));
        leave(p, 0);
    }
}

static void peer_forget(struct fbxi_peer *p, uint32_t ticket)
{
    enter(p);
    /* Somebody may be reading its payload to its place just now. */
    while (p->receiving && p->direct_ticket == ticket) {
        pthread_mutex_unlock(&p->mutex);
        sched_yield();
        pthread_mutex_lock(&p->mutex);
    }
    struct slot *s = slot_of(p, ticket);
    if (s && s->state == WAITS) {
        s->state = FORGOTTEN;
        if (p->direct_ticket == ticket && p->stream.direct)
            p->stream.direct = p->scratch; /* at most a payload is left of it */
    } else if (s && s->state == ANSWERED) {
        slot_give(p, s);
    }
    leave(p, 0);
}

/* ---- ending ------------------------------------------------------------------------------------------------------------ */

static void unlink_peer(struct fbxi_net *net, struct fbxi_peer *gone)
{
    pthread_mutex_lock(&net->mutex);
    for (struct fbxi_peer **at = &net->list; *at; at = &(*at)->next)
        if (*at == gone) {
            *at = gone->next;
            break;
        }
    pthread_mutex_unlock(&net->mutex);
}

static void peer_close(struct fbxi_net *net, struct fbxi_peer *p)
{
    pthread_mutex_lock(&p->mutex);
    /* What has departed survives us: see it on its way, for as long as a broken connection would be tried again. */
    uint64_t begin = fbxi_monotonic_ns();
    struct fbxw_frame bye = {.kind = FBXW_BYE};
    if (!lost_status(p) && (p->resumed || !fbxi_stream_settled(&p->stream)) && fbxi_stream_room(&p->stream, 0))
        fbxi_stream_put(&p->stream, &bye, NULL);
    while (!fbxi_stream_settled(&p->stream) && !lost_status(p) &&
           fbxi_monotonic_ns() - begin < (p->state == UP ? GIVE_UP_NS : PARTING_NS)) {
        tend(p, fbxi_monotonic_ns());
        pthread_mutex_unlock(&p->mutex);
        struct timespec nap = {0, 200000};
        clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
        pthread_mutex_lock(&p->mutex);
    }
    p->closing = 1;
    give_up(p, FBX_E_CLOSED);
    pthread_mutex_unlock(&p->mutex);
    while (fbx_observe(&p->users))
        sched_yield();
    unlink_peer(net, p);
    peer_free(p);
}

void fbxi_peers_close(fbx_node *n)
{
    for (uint32_t m = 0; m < FBX_MACHINES; m++)
        if (n->peers[m]) {
            peer_close(n->fabric->net, n->peers[m]);
            n->peers[m] = NULL;
        }
}

void fbxi_net_stop(fbx_fabric *f)
{
    struct fbxi_net *net = f->net;
    if (!net)
        return;
    for (uint32_t m = 0; m < FBX_MACHINES; m++)
        if (net->process[m]) {
            peer_close(net, net->process[m]);
            net->process[m] = NULL;
        }
    if (net->running) {
        fbx_publish(&net->stop, 1);
        fbx_publish(&net->napping, 1);
        wake(net);
        pthread_join(net->thread, NULL);
        net->running = 0;
    }
}

void fbxi_net_free(fbx_fabric *f)
{
    if (!f->net)
        return;
    while (f->net->list) {
        struct fbxi_peer *p = f->net->list;
        f->net->list = p->next;
        peer_free(p);
    }
    pthread_mutex_destroy(&f->net->mutex);
    free(f->net);
    f->net = NULL;
}

void fbxi_net_forked(fbx_fabric *f)
{
    if (!f->net)
        return;
    /* The parent's connections are the parent's: held here, they would outlive it. */
    f->net->running = 0;
    pthread_mutex_init(&f->net->mutex, NULL);
    for (struct fbxi_peer *p = f->net->list; p; p = p->next) {
        pthread_mutex_init(&p->mutex, NULL);
        if (p->dial_fd >= 0)
            close(p->dial_fd);
        p->dial_fd = -1;
        fbxi_stream_drop(&p->stream);
        p->state = IDLE;
        p->closing = 1;
    }
    for (fbx_node *n = f->node_list; n; n = n->next)
        memset(n->peers, 0, sizeof n->peers);
    memset(f->net->process, 0, sizeof f->net->process);
}

const struct fbxi_transport fbxi_socket = {"socket", peer_open, peer_submit, peer_push, peer_poll, peer_room, peer_forget};
