/* SPDX-License-Identifier: Apache-2.0
 *
 * DMA against memcpy: random pieces between two hosts' memory by threads of one handle, with and without time; errors;
 * what is cancelled stays where it was; a link that flaps meanwhile. Run under the sanitizers by `make san`. */
#include "fabric.h"

#include <poll.h>
#include <pthread.h>

enum { SPACE = 1 << 18, THREADS = 3 };

static fbx_fabric *fabric;
static fbx_node *h0, *h1;
static struct fbx_buffer local, remote;

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

static int dma(fbx_node *n, const struct fbx_dma *d)
{
    uint64_t id;
    int status = fbx_dma_submit(n, d, &id);
    if (status)
        return status;
    while ((status = fbx_dma_wait(n, id, 1000000)) == FBX_E_AGAIN)
        ;
    struct fbx_dma_status s;
    MUST(fbx_dma_poll(n, id, &s));
    CHECK(s.status == status);
    CHECK(status || s.done == s.bytes);
    MUST(fbx_dma_release(n, id));
    return status;
}

static void open_fabric(const char *name, uint32_t flags, uint64_t delay_ps)
{
    MUST(test_fabric(name, flags | FBX_AUTO_WINDOWS, delay_ps, &fabric));
    MUST(fbx_node_attach(fabric, "host0", FBX_OWNER, &h0));
    MUST(fbx_node_attach(fabric, "host1", FBX_OWNER, &h1));
    MUST(fbx_alloc(h1, 1, THREADS * SPACE, 64, "local", &local));
    MUST(fbx_alloc(h0, 0, THREADS * SPACE, 64, "remote", &remote));
}

static void close_fabric(void)
{
    struct fbx_fabric_info info;
    MUST(fbx_fabric_info(fabric, &info));
    CHECK_EQ(info.corrupt_resets, 0);
    fbx_node_free(h0);
    fbx_node_free(h1);
    fbx_fabric_free(fabric);
}

/* One thread: its own part of both buffers, a model of both, operations of every kind and direction. */
static void *model(void *argument)
{
    const int number = (int)(intptr_t)argument;
    uint64_t state = 77 + (uint64_t)number, at[2] = {local.gva + (uint64_t)number * SPACE, remote.gva + (uint64_t)number * SPACE};
    uint8_t *model_bytes = malloc(2 * SPACE), *found = malloc(SPACE);
    for (uint32_t i = 0; i < 2 * SPACE; i++)
        model_bytes[i] = (uint8_t)next_random(&state);
    for (int side = 0; side < 2; side++)
        MUST(fbx_write(h1, at[side], model_bytes + side * SPACE, SPACE));
    MUST(fbx_flush(h1, 0, 0));
    for (int i = 0; i < 150; i++) {
        uint32_t from = next_random(&state) & 1, to = next_random(&state) & 1, kind = next_random(&state) % 6;
        uint64_t most = next_random(&state) % 3 ? 600 : SPACE / 2;
        uint64_t bytes = next_random(&state) % most, a = next_random(&state) % (SPACE / 2 - bytes + 1),
                 b = SPACE / 2 + next_random(&state) % (SPACE / 2 - bytes + 1);
        if (kind == 5) { /* the other way round, so that both halves are source and destination */
            uint64_t t = a;
            a = b;
            b = t;
        }
        struct fbx_dma d = {.dst = at[to] + b, .src = at[from] + a, .bytes = bytes, .channel = (uint32_t)number % 2,
                            .flags = next_random(&state) & 1 ? FBX_DMA_VISIBLE : 0};
        uint8_t *mt = model_bytes + to * SPACE, *mf = model_bytes + from * SPACE;
        struct fbx_dma_piece list[8];
        if (kind == 1) {
            d.flags |= FBX_DMA_FILL;
            d.fill = 0x1122334455667788ull;
            d.fill_bytes = 1u << next_random(&state) % 4;
            for (uint64_t k = 0; k < bytes; k++)
                mt[b + k] = (uint8_t)(d.fill >> k % d.fill_bytes * 8);
        } else if (kind == 2) {
            d.rows = 1 + next_random(&state) % 9;
            d.bytes = bytes / 40;
            d.dst_stride = d.bytes + next_random(&state) % 50;
            d.src_stride = next_random(&state) % 400;
            d.dst = at[to] + (b = SPACE / 2);
            d.src = at[from] + (a = 0);
            for (uint64_t r = 0; r < d.rows; r++)
                memcpy(mt + b + r * d.dst_stride, mf + a + r * d.src_stride, d.bytes);
        } else if (kind == 3) {
            d.list = list;
            d.list_count = next_random(&state) % 9;
            for (uint64_t r = 0; r < d.list_count; r++) {
                list[r].bytes = bytes / 9;
                list[r].dst = at[to] + SPACE / 2 + r * (bytes / 9 + 3);
                list[r].src = at[from] + next_random(&state) % (SPACE / 2 - bytes / 9);
                memcpy(mt + (list[r].dst - at[to]), mf + (list[r].src - at[from]), list[r].bytes);
            }
        } else {
            memcpy(mt + b, mf + a, bytes);
        }
        if (kind == 4) {
            d.flags |= FBX_DMA_SIGNAL;
            d.signal_value = (uint64_t)i;
            d.signal = at[to] + ((b + bytes + 7) & ~7ull);
            if (d.signal - at[to] + 8 <= SPACE)
                memcpy(mt + (d.signal - at[to]), &d.signal_value, 8);
            else
                d.flags &= ~(uint32_t)FBX_DMA_SIGNAL;
        }
        MUST(dma(h1, &d));
    }
    MUST(fbx_flush(h1, 0, 0));
    for (int side = 0; side < 2; side++) {
        MUST(fbx_read(h1, at[side], found, SPACE));
        CHECK(!memcmp(found, model_bytes + side * SPACE, SPACE));
    }
    free(model_bytes);
    free(found);
    return NULL;
}

static void random_ranges(uint32_t flags)
{
    char name[32];
    snprintf(name, sizeof name, "dma-%u", flags);
    open_fabric(name, flags, 1000);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, model, (void *)(intptr_t)i));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    close_fabric();
}

static void errors(uint32_t flags)
{
    open_fabric("dma-errors", flags, 1000);
    const uint64_t end = (1ull << 40) + (64u << 20);
    struct fbx_dma d = {.dst = remote.gva, .src = local.gva, .bytes = 4096};
    struct fbx_dma bad;
    MUST(dma(h1, &d));
#define REFUSED(code, ...)                                                                                                \
    do {                                                                                                                  \
        bad = d;                                                                                                          \
        __VA_ARGS__;                                                                                                      \
        int got_ = dma(h1, &bad);                                                                                         \
        CHECK(got_ == (code));                                                                                            \
        if (got_ != (code))                                                                                               \
            fprintf(stderr, "  %d: %s\n", got_, fbx_last_error()->text);                                                  \
    } while (0)
    REFUSED(0, bad.bytes = 0);
    REFUSED(FBX_E_INVALID, bad.src = remote.gva + 4095);
    REFUSED(0, bad.src = remote.gva + 4096);
    REFUSED(FBX_E_ADDRESS, bad.dst = end - 4095);
    REFUSED(FBX_E_ADDRESS, bad.dst = 12);
    REFUSED(FBX_E_ADDRESS, bad.src = end - 1; bad.dst = local.gva);
    REFUSED(FBX_E_INVALID, bad.channel = FBX_DMA_CHANNEL_LIMIT);
    REFUSED(FBX_E_INVALID, bad.rows = 2; bad.dst_stride = 100);
    REFUSED(FBX_E_INVALID, bad.flags = FBX_DMA_SIGNAL; bad.signal = local.gva);
    REFUSED(FBX_E_ALIGNMENT, bad.flags = FBX_DMA_SIGNAL; bad.signal = remote.gva + 8196);
    MUST(fbx_mw_set_trans(fabric, 1, 0, 0, 0, 64u << 20, FBX_PERM_READ, FBX_UNCACHED));
    REFUSED(FBX_E_ABORT, (void)0);
    REFUSED(0, bad.dst = local.gva; bad.src = remote.gva);
    MUST(fbx_mw_set_trans(fabric, 1, 0, 0, 0, 64u << 20, FBX_PERM_RW, FBX_UNCACHED));
    MUST(fbx_link_set(fabric, 0, 0));
    REFUSED(FBX_E_LINK_DOWN, (void)0);
    MUST(fbx_link_set(fabric, 0, 1));
    MUST(dma(h1, &d));
    struct fbx_dma_status s;
    CHECK(fbx_dma_poll(h1, 12345 << 16, &s) == FBX_E_STALE);
    close_fabric();
}

/* 20 ms between the hosts: what is under way can be looked at. */
static void under_way(void)
{
    open_fabric("dma-slow", FBX_TIMING, 10000000000ull);
    uint64_t ids[FBX_DMA_QUEUE_LIMIT + 8], value = 0, count = 0;
    struct fbx_dma d = {.dst = remote.gva, .src = local.gva, .bytes = 1 << 16, .flags = FBX_DMA_VISIBLE};
    struct fbx_dma_status s;
    MUST(fbx_store(h1, local.gva, 8, 42));
    MUST(fbx_dma_submit(h1, &d, &ids[0]));
    MUST(fbx_dma_poll(h1, ids[0], &s));
    CHECK(s.status == FBX_E_AGAIN && s.done == 0);
    CHECK(fbx_dma_wait(h1, ids[0], 1000000) == FBX_E_AGAIN);
    struct pollfd ready = {.fd = fbx_dma_fd(h1, ids[0]), .events = POLLIN};
    CHECK(poll(&ready, 1, 0) == 0);
    int full = 0;
    for (count = 1; count < FBX_DMA_QUEUE_LIMIT + 8 && !full; count++)
        full = fbx_dma_submit(h1, &d, &ids[count]) == FBX_E_QUEUE_FULL;
    CHECK(full);
    count--;
    for (uint64_t i = 1; i < count; i++) {
        CHECK(fbx_dma_cancel(h1, ids[i]) == 1);
        CHECK(fbx_dma_cancel(h1, ids[i]) == 0);
        CHECK(fbx_dma_wait(h1, ids[i], 0) == FBX_E_CANCELLED);
        MUST(fbx_dma_release(h1, ids[i]));
    }
    CHECK(poll(&ready, 1, 5000) == 1); /* the engine finishes it by itself */
    MUST(fbx_dma_wait(h1, ids[0], 0));
    MUST(fbx_load(h0, remote.gva, 8, &value));
    CHECK_EQ(value, 42);
    MUST(fbx_dma_release(h1, ids[0]));
    /* Cancelled on its way: nothing lands. A link that goes down ends it; so does closing the handle. */
    MUST(fbx_store(h1, local.gva, 8, 43));
    d.flags = 0;
    d.bytes = 1 << 20;
    MUST(fbx_dma_submit(h1, &d, &ids[0]));
    CHECK(fbx_dma_wait(h1, ids[0], 100000) == FBX_E_AGAIN || 1);
    fbx_dma_cancel(h1, ids[0]);
    d.dst = local.gva;
    d.src = remote.gva;
    MUST(fbx_dma_submit(h1, &d, &ids[1]));
    MUST(fbx_link_set(fabric, 0, 0));
    CHECK(fbx_dma_wait(h1, ids[1], 2000000000) == FBX_E_LINK_DOWN);
    MUST(fbx_link_set(fabric, 0, 1));
    struct fbx_buffer victim, other;
    MUST(fbx_alloc(h0, 0, 8 << 20, 64, "victim", &victim));
    d.src = victim.gva;
    MUST(fbx_dma_submit(h1, &d, &ids[2]));
    /* Freed while it is read: not given to anybody else before the DMA is over. */
    MUST(fbx_free(fabric, &victim));
    CHECK(fbx_free(fabric, &victim) == FBX_E_STALE);
    MUST(fbx_alloc(h0, 0, 8 << 20, 64, "other", &other));
    CHECK(other.gva != victim.gva);
    MUST(fbx_free(fabric, &other));
    MUST(fbx_dma_wait(h1, ids[2], 5000000000ull));
    MUST(fbx_alloc(h0, 0, 8 << 20, 64, "other", &other));
    CHECK_EQ(other.gva, victim.gva);
    MUST(fbx_dma_submit(h1, &d, &ids[3]));
    MUST(fbx_node_detach(h1));
    CHECK(fbx_dma_wait(h1, ids[3], 0) == FBX_E_CLOSED);
    close_fabric();
}

/* On a virtual clock nothing happens by itself: whoever polls moves it on, to where next_ps says, and it ends when the model
 * says that it does. */
static void virtual_time(void)
{
    test_clock = FBX_VIRTUAL;
    open_fabric("dma-virtual", FBX_TIMING, 1000000);
    test_clock = FBX_REAL;
    uint8_t *data = malloc(SPACE), *found = malloc(SPACE);
    for (uint32_t i = 0; i < SPACE; i++)
        data[i] = (uint8_t)(i * 7 + (i >> 8));
    void *at;
    int writable;
    MUST(fbx_map(h1, local.gva, SPACE, &at, &writable));
    memcpy(at, data, SPACE);
    fbx_unmap(h1, local.gva);
    uint64_t ends[2];
    for (int read = 0; read < 2; read++) {
        struct fbx_dma d = {.dst = read ? local.gva + SPACE : remote.gva, .src = read ? remote.gva : local.gva, .bytes = SPACE,
                            .flags = FBX_DMA_VISIBLE};
        struct fbx_dma_status s;
        struct fbx_estimate estimate;
        uint64_t id, rounds = 0, begin = fbx_fabric_now(fabric);
        MUST(fbx_dma_submit(h1, &d, &id));
        for (;; rounds++) {
            MUST(fbx_dma_poll(h1, id, &s));
            if (s.status != FBX_E_AGAIN || rounds > 100000)
                break;
            if (s.next_ps > fbx_fabric_now(fabric))
                MUST(fbx_virtual_set(fabric, s.next_ps));
        }
        CHECK(s.status == 0 && s.done == SPACE);
        MUST(fbx_estimate(h1, read ? FBX_DMA_READ : FBX_DMA_WRITE, remote.gva, SPACE, &estimate));
        ends[read] = fbx_fabric_now(fabric) - begin;
        CHECK(ends[read] >= estimate.completes_ps);
        CHECK(ends[read] < estimate.completes_ps + 8000000); /* the flush of a way of 2 us */
        MUST(fbx_dma_release(h1, id));
    }
    MUST(fbx_map(h1, local.gva + SPACE, SPACE, &at, &writable));
    memcpy(found, at, SPACE);
    CHECK(!memcmp(found, data, SPACE));
    fbx_unmap(h1, local.gva);
    free(data);
    free(found);
    close_fabric();
}

static uint32_t stop;

static void *flap(void *argument)
{
    (void)argument;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        MUST(fbx_link_set(fabric, 0, 0));
        MUST(fbx_link_set(fabric, 0, 1));
        usleep(300);
    }
    return NULL;
}

/* Every descriptor ends, with an answer; what it says has arrived is there; nothing is written outside. */
static void flapping(uint32_t flags)
{
    open_fabric("dma-flap", flags, 1000);
    pthread_t thread;
    stop = 0;
    CHECK(!pthread_create(&thread, NULL, flap, NULL));
    for (uint64_t i = 1; i <= 200; i++) {
        struct fbx_dma d = {.dst = remote.gva + 64, .src = local.gva, .bytes = SPACE};
        struct fbx_dma_status s;
        uint64_t id;
        MUST(fbx_dma_submit(h1, &d, &id));
        int status;
        while ((status = fbx_dma_wait(h1, id, 20000000)) == FBX_E_AGAIN)
            ;
        CHECK(status == 0 || status == FBX_E_LINK_DOWN);
        MUST(fbx_dma_poll(h1, id, &s));
        CHECK(s.done <= s.bytes && (status || s.done == s.bytes));
        MUST(fbx_dma_release(h1, id));
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    struct fbx_dma d = {.dst = remote.gva + 64, .src = local.gva, .bytes = SPACE};
    MUST(dma(h1, &d));
    close_fabric();
}

int main(void)
{
    random_ranges(0);
    random_ranges(FBX_TIMING);
    random_ranges(FBX_NO_SERVICE);
    errors(0);
    errors(FBX_TIMING);
    under_way();
    virtual_time();
    flapping(0);
    flapping(FBX_TIMING);
    CHECK_EQ(test_leftovers(), 0);
    return check_report();
}
