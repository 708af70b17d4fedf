/* SPDX-License-Identifier: Apache-2.0
 *
 * A gateway as who speaks to it in bytes sees it: connections that end, come again or are held by a child, requesters that do not
 * read their answers, and many of them at once. */
#include "machines.h"
#include "wire.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define PATIENCE_MS 5000

struct raw { /* a requester of machine 1, at the gateway of machine 0 */
    int fd;
    uint64_t session, sequence, received;
    uint8_t bytes[2 * FBXW_FRAME], payload[FBXW_PAYLOAD]; /* of the frame that came last */
    size_t here;
};

static void nap_ms(uint32_t ms)
{
    struct timespec nap = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&nap, NULL);
}

static int raw_send(struct raw *r, struct fbxw_frame *w, const void *payload)
{
    static _Thread_local uint8_t out[FBXW_FRAME];
    w->sequence = w->kind == FBXW_ACK || w->kind == FBXW_HELLO ? 0 : ++r->sequence;
    fbxw_encode(out, w);
    if (w->payload)
        memcpy(out + FBXW_HEADER, payload, w->payload);
    for (size_t at = 0, size = FBXW_HEADER + w->payload; at < size;) {
        ssize_t sent = send(r->fd, out + at, size - at, MSG_NOSIGNAL);
        if (sent < 0)
            return -1;
        at += (size_t)sent;
    }
    return 0;
}

/* The next frame: 1, 0 if nothing comes in that time, -1 at the end of the connection. */
static int raw_next(struct raw *r, struct fbxw_frame *w, int ms)
{
    for (;;) {
        if (r->here >= FBXW_HEADER) {
            if (fbxw_decode(r->bytes, w))
                return -1;
            const size_t size = FBXW_HEADER + w->payload;
            if (r->here >= size) {
                memcpy(r->payload, r->bytes + FBXW_HEADER, w->payload);
                memmove(r->bytes, r->bytes + size, r->here - size);
                r->here -= size;
                return 1;
            }
        }
        struct pollfd wait = {r->fd, POLLIN, 0};
        if (poll(&wait, 1, ms) <= 0)
            return 0;
        ssize_t got = recv(r->fd, r->bytes + r->here, sizeof r->bytes - r->here, 0);
        if (got <= 0)
            return -1;
        r->here += (size_t)got;
    }
}

/* The next frame of that kind; others are passed over. */
static int raw_await(struct raw *r, struct fbxw_frame *w, uint8_t kind)
{
    int what;
    while ((what = raw_next(r, w, PATIENCE_MS)) > 0 && w->kind != kind)
        ;
    return what;
}

/* Greet on a connection that the gateway gets with the greeting in it. */
static void raw_greet(struct bed *b, struct raw *r, uint32_t node, int resumed)
{
    int pair[2];
    struct fbxw_hello h = {.fabric = 0x1234567, .machine = 1, .node = node, .layout = FBXW_VERSION, .resumed = (uint32_t)resumed,
                           .received = r->received};
    struct fbxw_frame w = {.kind = FBXW_HELLO, .payload = FBXW_HELLO_BYTES};
    uint8_t hello[FBXW_HELLO_BYTES];
    memcpy(h.session, &r->session, sizeof r->session);
    fbxw_encode_hello(hello, &h);
    MUST(bed_pair(b, pair));
    r->fd = pair[0];
    r->here = 0;
    raw_send(r, &w, hello);
    MUST(fbx_gateway_adopt(b->fabric[0], pair[1], 1));
}

static void raw_open(struct bed *b, struct raw *r, uint64_t session, uint32_t node)
{
    struct fbxw_frame w;
    memset(r, 0, sizeof *r);
    r->session = session;
    raw_greet(b, r, node, 0);
    CHECK(raw_await(r, &w, FBXW_WELCOME) == 1);
    CHECK_EQ(w.status, 0);
}

static struct fbxw_frame store(uint64_t value)
{
    return (struct fbxw_frame){.kind = FBXW_STORE, .address = bed_gva(0, 64), .length = 8, .value = value};
}

static struct fbxw_frame ping(void) { return (struct fbxw_frame){.kind = FBXW_ERRAND, .what = FBXW_PING}; }

static uint64_t connected(struct bed *b)
{
    struct fbx_gateway_info info;
    MUST(fbx_gateway_info(b->fabric[0], &info));
    return info.connected;
}

/* An end that comes together with the last bytes is seen, of each of several. */
static void ends(void)
{
    struct bed b;
    enum { ALL = 4 };
    static struct raw r[ALL];
    bed_make(&b, 2, FBX_AUTO_WINDOWS, FBX_POSTED);
    for (uint64_t round = 1; round <= 10 && !check_failed; round++) {
        for (uint64_t i = 0; i < ALL; i++)
            raw_open(&b, &r[i], 48 * (ALL * round + i), UINT32_MAX); /* one keeper's, with 1, 3 and 4 of them */
        nap_ms(3); /* it sleeps: what it finds then is both */
        for (int i = 0; i < ALL; i++) {
            struct fbxw_frame w = ping();
            raw_send(&r[i], &w, NULL);
            shutdown(r[i].fd, SHUT_WR);
        }
        for (int i = 0; i < ALL; i++) {
            struct fbxw_frame w;
            int what;
            while ((what = raw_next(&r[i], &w, PATIENCE_MS)) > 0)
                ;
            CHECK_EQ(what, -1);
            close(r[i].fd);
        }
    }
    for (int i = 0; i < PATIENCE_MS && connected(&b); i++)
        nap_ms(1); /* it is told before it is counted */
    CHECK_EQ(connected(&b), 0);
    bed_end(&b);
}

/* A session that goes on over a new connection while others have something to do delays none of them. */
static void comes_again(void)
{
    struct bed b;
    enum { OTHERS = 8 };
    static struct raw busy, again, other[OTHERS];
    static uint8_t block[32768];
    struct fbxw_frame w;
    bed_make(&b, 2, FBX_AUTO_WINDOWS, FBX_POSTED);
    raw_open(&b, &busy, 48, UINT32_MAX);
    raw_open(&b, &again, 96, UINT32_MAX);
    for (int i = 0; i < OTHERS; i++)
        raw_open(&b, &other[i], 144 + 48 * (uint64_t)i, UINT32_MAX); /* one keeper's, with 1, 3 and 4 of them */
    for (int round = 0; round < 40 && !check_failed; round++) {
        /* Something that takes a while, so that all the rest is found at once. */
        for (int i = 0; i < 4; i++) {
            w = (struct fbxw_frame){.kind = FBXW_WRITE, .address = bed_gva(0, 0), .payload = sizeof block};
            raw_send(&busy, &w, block);
        }
        for (int i = 0; i < OTHERS / 2; i++)
            w = ping(), raw_send(&other[i], &w, NULL);
        const int before = again.fd;
        w = ping();
        raw_send(&again, &w, NULL);
        for (int i = OTHERS / 2; i < OTHERS; i++)
            w = ping(), raw_send(&other[i], &w, NULL);
        again.sequence = 0; /* it says how far it came */
        raw_greet(&b, &again, UINT32_MAX, 1);
        CHECK(raw_await(&again, &w, FBXW_WELCOME) == 1);
        CHECK_EQ(w.status, 0);
        again.sequence = w.value;
        for (int i = 0; i < OTHERS; i++)
            CHECK(raw_await(&other[i], &w, FBXW_DONE) == 1);
        close(before);
    }
    close(busy.fd), close(again.fd);
    for (int i = 0; i < OTHERS; i++)
        close(other[i].fd);
    bed_end(&b);
}

/* What is not acknowledged is kept as it was said, however much is asked and posted beside it. */
static void keeps(void)
{
    struct bed b;
    enum { READS = 16 };
    static struct raw r;
    struct fbxw_frame w;
    bed_make(&b, 2, FBX_AUTO_WINDOWS | FBX_TIMING, FBX_POSTED);
    raw_open(&b, &r, 5, 1);
    w = ping(); /* never acknowledged: all that follows stays behind it */
    raw_send(&r, &w, NULL);
    CHECK(raw_await(&r, &w, FBXW_DONE) == 1);
    for (uint32_t i = 0; i < READS; i++) { /* pieces of DMA, whose answers come later than what follows */
        w = (struct fbxw_frame){.kind = FBXW_READ, .what = 1, .address = bed_gva(0, 0), .length = i + 1 < READS ? FBXW_PAYLOAD : 54000,
                                .ticket = i, .ahead_ps = INT64_MAX};
        raw_send(&r, &w, NULL);
    }
    int what = 1;
    uint32_t data = 0;
    for (int i = 0; i < 2000 && what > 0 && !data; i++) { /* each of them acknowledged by a frame, as long as there is room */
        w = store(1);
        raw_send(&r, &w, NULL);
        what = raw_next(&r, &w, 20);
        data += what == 1 && w.kind == FBXW_DATA;
    }
    while (data < READS && raw_next(&r, &w, PATIENCE_MS) > 0)
        data += w.kind == FBXW_DATA;
    CHECK_EQ(data, READS);
    /* It was never told that anything came, and says all of it again. */
    const int before = r.fd;
    uint64_t last = 0;
    raw_greet(&b, &r, 1, 1);
    CHECK(raw_await(&r, &w, FBXW_WELCOME) == 1);
    for (data = 0; data < READS && raw_next(&r, &w, PATIENCE_MS) > 0;) {
        if (w.sequence)
            CHECK_EQ(w.sequence, ++last);
        data += w.kind == FBXW_DATA && w.payload == (w.ticket + 1 < READS ? FBXW_PAYLOAD : 54000);
    }
    CHECK_EQ(data, READS);
    close(before), close(r.fd);
    bed_end(&b);
}

/* A child of the serving process that has not yet let go of what it inherited neither keeps a connection nor a session. */
static void children(void)
{
    struct bed b;
    static struct raw r;
    struct fbxw_frame w = {.kind = 200}, last;
    uint8_t garbage[FBXW_HEADER] = {0};
    bed_make(&b, 2, FBX_AUTO_WINDOWS, FBX_POSTED);
    for (uint64_t i = 1; i <= 5 && !check_failed; i++) {
        raw_open(&b, &r, i, UINT32_MAX);
        pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); /* as fork(), before it has told anybody */
        if (!child)
            for (;;)
                pause();
        CHECK(send(r.fd, garbage, sizeof garbage, MSG_NOSIGNAL) == sizeof garbage);
        CHECK_EQ(raw_next(&r, &w, PATIENCE_MS), -1);
        close(r.fd);
        nap_ms(5);
        raw_open(&b, &r, i + 100, UINT32_MAX);
        w = ping();
        raw_send(&r, &w, NULL);
        CHECK(raw_await(&r, &last, FBXW_DONE) == 1);
        close(r.fd);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    bed_end(&b);
}

struct flood {
    struct raw *raw;
    int stop;
};

static void *flood(void *argument)
{
    struct flood *f = argument;
    enum { MANY = 1024 }; /* takes longer there than here */
    static _Thread_local uint8_t out[MANY * FBXW_HEADER];
    while (!__atomic_load_n(&f->stop, __ATOMIC_SEQ_CST)) {
        for (uint32_t i = 0; i < MANY; i++) {
            struct fbxw_frame w = store(i);
            w.sequence = ++f->raw->sequence;
            fbxw_encode(out + i * FBXW_HEADER, &w);
        }
        for (size_t at = 0; at < sizeof out;) {
            ssize_t sent = send(f->raw->fd, out + at, sizeof out - at, MSG_NOSIGNAL);
            if (sent < 0)
                return NULL;
            at += (size_t)sent;
        }
        while (recv(f->raw->fd, f->raw->bytes, sizeof f->raw->bytes, MSG_DONTWAIT) > 0)
            ;
    }
    return NULL;
}

/* Who posts little is told that it came while others post without end. */
static void busy_others(void)
{
    struct bed b;
    enum { LOUD = 3 };
    static struct raw loud[LOUD], quiet;
    struct flood f[LOUD];
    struct fbxw_frame w;
    pthread_t thread[LOUD];
    bed_make(&b, 2, FBX_AUTO_WINDOWS, FBX_POSTED);
    raw_open(&b, &quiet, 48, 1);
    for (uint64_t i = 0; i < LOUD; i++) {
        raw_open(&b, &loud[i], 96 + 48 * i, 1); /* one keeper's, with 1, 3 and 4 of them */
        f[i] = (struct flood){&loud[i], 0};
        pthread_create(&thread[i], NULL, flood, &f[i]);
    }
    for (uint64_t i = 1; i <= 20; i++) {
        w = store(i);
        raw_send(&quiet, &w, NULL);
        CHECK(raw_await(&quiet, &w, FBXW_ACK) == 1);
        CHECK(w.ack == i);
        if (check_failed)
            break;
    }
    for (int i = 0; i < LOUD; i++) {
        __atomic_store_n(&f[i].stop, 1, __ATOMIC_SEQ_CST);
        pthread_join(thread[i], NULL);
        close(loud[i].fd);
    }
    close(quiet.fd);
    bed_end(&b);
}

/* A machine that is lost is not listened to, though something of it is under way. */
static void lost(void)
{
    struct bed b;
    static struct raw r;
    struct fbxw_frame w;
    bed_make(&b, 2, FBX_AUTO_WINDOWS | FBX_TIMING, FBX_POSTED);
    raw_open(&b, &r, 7, 1);
    w = (struct fbxw_frame){.kind = FBXW_LOAD, .address = bed_gva(0, 0), .length = 8, .ahead_ps = INT64_MAX};
    raw_send(&r, &w, NULL);
    nap_ms(20);
    MUST(fbx_machine_set(b.fabric[0], 1, FBX_MACHINE_LOST));
    int what;
    while ((what = raw_next(&r, &w, 500)) > 0) /* the load is answered after a second */
        CHECK(w.kind == FBXW_ACK);
    CHECK_EQ(what, -1);
    close(r.fd);
    bed_end(&b);
}

/* An answer that waits for room keeps its bytes, whatever is put before it. */
static void waits_for_room(void)
{
    struct bed b;
    enum { READS = 15, HANDLES = 40 }; /* more than the marks of one frame */
    static struct raw r;
    static uint8_t block[FBXW_PAYLOAD];
    fbx_node *h[HANDLES];
    struct fbxw_frame w;
    bed_make(&b, 2, FBX_AUTO_WINDOWS, FBX_POSTED);
    for (int i = 0; i < HANDLES; i++)
        MUST(fbx_node_attach(b.fabric[0], "host0", i ? FBX_CLIENT : FBX_OWNER, &h[i]));
    memset(block, 77, sizeof block);
    MUST(fbx_write(h[0], bed_gva(0, 65536), block, sizeof block));
    raw_open(&b, &r, 9, 1);
    for (uint32_t i = 0; i <= READS; i++) { /* the last one fits in the ring, but marks that it might need do not */
        w = (struct fbxw_frame){.kind = FBXW_READ, .address = bed_gva(0, 65536), .length = i < READS ? FBXW_PAYLOAD : 63000, .ticket = i};
        raw_send(&r, &w, NULL);
    }
    for (int i = 0; i < READS; i++)
        CHECK(raw_await(&r, &w, FBXW_DATA) == 1);
    for (int i = 0; i < 5; i++) {
        w = store((uint64_t)i);
        raw_send(&r, &w, NULL);
        CHECK(raw_await(&r, &w, FBXW_ACK) == 1);
    }
    w = (struct fbxw_frame){.kind = FBXW_ACK, .ack = READS};
    raw_send(&r, &w, NULL);
    CHECK(raw_await(&r, &w, FBXW_DATA) == 1);
    CHECK(w.ticket == READS && w.payload == 63000 && !w.status);
    CHECK(!memcmp(r.payload, block, 63000));
    for (int i = 0; i < HANDLES; i++)
        fbx_node_free(h[i]);
    close(r.fd);
    bed_end(&b);
}

/* Counted time stands still while nobody does anything, though a message's fate is looked for. */
static void counted(void)
{
    struct bed b;
    fbx_node *h0, *h1;
    uint32_t word = 0, from;
    bed_make(&b, 2, FBX_AUTO_WINDOWS, FBX_ADVERSARIAL);
    MUST(fbx_node_attach(b.fabric[0], "host0", FBX_OWNER, &h0));
    MUST(fbx_node_attach(b.fabric[1], "host1", FBX_OWNER, &h1));
    MUST(fbx_peer_msg_write(h1, 0, 1, 11));
    MUST(fbx_flush(h1, 0, 0));
    MUST(fbx_msg_read(h0, 1, &from, &word));
    CHECK_EQ(word, 11);
    nap_ms(50);
    const uint64_t begin = fbx_fabric_now(b.fabric[0]);
    nap_ms(200);
    CHECK(fbx_fabric_now(b.fabric[0]) - begin < 5000000000ull); /* 5 of 200 ms */
    fbx_node_free(h0);
    fbx_node_free(h1);
    bed_end(&b);
}

int main(int argc, char **argv)
{
    const int only = argc > 1 ? atoi(argv[1]) : 0;
    const char *const keepers[] = {"1", "3"};
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 2; i++) {
        setenv("FABREX_GATEWAY_THREADS", keepers[i], 1);
#define PART(number, call) \
    if (!only || only == (number)) \
    call
        PART(1, ends());
        PART(2, comes_again());
        PART(3, keeps());
        PART(4, children());
        PART(5, busy_others());
        PART(6, lost());
        PART(7, counted());
        PART(8, waits_for_room());
    }
    CHECK_EQ(test_leftovers(), 0);
    return check_report();
}
