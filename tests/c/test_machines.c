/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations between machines, over TCP: what they do, in which order, and what is left of them when connections break. */
#include "machines.h"

#include <time.h>

static void operations(uint32_t flags, uint32_t ordering)
{
    struct bed b;
    fbx_node *h0, *h1, *wrong;
    uint64_t value = 0;
    bed_make(&b, 2, FBX_AUTO_WINDOWS | flags, ordering);
    MUST(fbx_node_attach(b.fabric[0], "host0", FBX_OWNER, &h0));
    MUST(fbx_node_attach(b.fabric[1], "host1", FBX_OWNER, &h1));
    CHECK(fbx_node_attach(b.fabric[0], "host1", FBX_OWNER, &wrong) == FBX_E_INVALID);

    const uint64_t there = bed_gva(1, 0), here = bed_gva(0, 0);
    MUST(fbx_load(h0, there, 8, &value));
    CHECK_EQ(value, 0);
    for (uint32_t bytes = 1; bytes <= 8; bytes *= 2) {
        uint64_t want = 0x1122334455667788ull >> (64 - 8 * bytes);
        MUST(fbx_store(h0, there + 64, bytes, want));
        MUST(fbx_load(h0, there + 64, bytes, &value));
        CHECK_EQ(value, want);
    }
    MUST(fbx_load(h1, there + 64, 8, &value));
    CHECK_EQ(value, 0x1122334455667788ull);
    MUST(fbx_fetch_add(h0, there + 128, 8, 5, &value));
    CHECK_EQ(value, 0);
    MUST(fbx_fetch_add(h0, there + 128, 4, 2, &value));
    CHECK_EQ(value, 5);
    MUST(fbx_swap_value(h0, there + 128, 8, 70, &value));
    CHECK_EQ(value, 7);
    uint64_t expected[2] = {70, 0}, desired[2] = {71, 9}, old[2];
    MUST(fbx_compare_swap(h0, there + 128, 16, expected, desired, old));
    CHECK_EQ(old[0], 70);
    MUST(fbx_compare_swap(h0, there + 128, 16, expected, expected, old));
    CHECK(old[0] == 71 && old[1] == 9);

    uint8_t wide[64], back[64];
    for (int i = 0; i < 64; i++)
        wide[i] = (uint8_t)(i * 3);
    MUST(fbx_store_wide(h0, there + 256, 64, wide));
    MUST(fbx_load_wide(h0, there + 256, 64, back));
    CHECK(!memcmp(wide, back, 64));

    static uint8_t many[3000001], again[3000001];
    for (size_t i = 0; i < sizeof many; i++)
        many[i] = (uint8_t)(i * 7 + i / 999);
    const uint64_t bulk = flags & FBX_TIMING ? 70001 : sizeof many;
    MUST(fbx_write(h0, there + 100001, many, bulk));
    MUST(fbx_read(h0, there + 100001, again, bulk));
    CHECK(!memcmp(many, again, bulk));
    MUST(fbx_flush(h0, UINT32_MAX, FBX_CHECK));
    memset(again, 0, sizeof again);
    MUST(fbx_read(h1, there + 100001, again, bulk));
    CHECK(!memcmp(many, again, bulk));

    /* The other way, and both at once. */
    MUST(fbx_store(h1, here, 8, 99));
    MUST(fbx_flush(h1, 0, 0));
    MUST(fbx_load(h0, here, 8, &value));
    CHECK_EQ(value, 99);

    /* Errors are what they are on one machine. */
    CHECK(fbx_load(h0, bed_gva(1, 64u << 20), 8, &value) == FBX_E_ADDRESS);
    CHECK(fbx_write(h0, bed_gva(1, (64u << 20) - 10), many, 11) == FBX_E_ADDRESS);
    CHECK(fbx_load(h0, there + 1, 8, &value) == FBX_E_ALIGNMENT);
    void *raw;
    int writable;
    CHECK(fbx_map(h0, there, 64, &raw, &writable) == FBX_E_UNSUPPORTED);

    fbx_node_free(h0);
    fbx_node_free(h1);
    bed_end(&b);
}

/* A flag behind data, read by the target in a loop; and its mirror: data pushed to the reader, a flag at home. */
static void order(uint32_t flags)
{
    struct bed b;
    fbx_node *h0, *h1;
    bed_make(&b, 2, FBX_AUTO_WINDOWS | flags, FBX_POSTED);
    MUST(fbx_node_attach(b.fabric[0], "host0", FBX_OWNER, &h0));
    MUST(fbx_node_attach(b.fabric[1], "host1", FBX_OWNER, &h1));
    uint64_t value, flag;
    unsigned bad = 0, mirror = 0;
    for (uint64_t i = 1; i <= 300; i++) {
        MUST(fbx_store(h0, bed_gva(1, 512), 8, i));
        MUST(fbx_store(h0, bed_gva(1, 1024), 8, i));
        do
            MUST(fbx_load(h1, bed_gva(1, 1024), 8, &flag));
        while (flag != i);
        MUST(fbx_load(h1, bed_gva(1, 512), 8, &value));
        bad += value != i;
        /* host1 writes to host0 and then sets a flag at home, which host0 reads: the completion pushes the write. */
        MUST(fbx_store(h1, bed_gva(0, 512), 8, i));
        MUST(fbx_store(h1, bed_gva(1, 2048), 8, i));
        MUST(fbx_load(h0, bed_gva(1, 2048), 8, &flag));
        MUST(fbx_load(h0, bed_gva(0, 512), 8, &value));
        mirror += flag == i && value != i;
    }
    CHECK_EQ(bad, 0);
    CHECK_EQ(mirror, 0);
    fbx_node_free(h0);
    fbx_node_free(h1);
    bed_end(&b);
}

static void outstanding(void)
{
    struct bed b;
    fbx_node *h0;
    enum { N = 600 };
    static struct fbx_op op[N];
    bed_make(&b, 2, FBX_AUTO_WINDOWS, FBX_POSTED);
    MUST(fbx_node_attach(b.fabric[0], "host0", FBX_OWNER, &h0));
    for (int i = 0; i < N; i++) {
        op[i] = (struct fbx_op){.kind = FBX_FETCH_ADD, .gva = bed_gva(1, 64), .bytes = 8, .operand = {1}};
        CHECK(fbx_op_begin(h0, &op[i]) == FBX_E_AGAIN);
    }
    for (int i = 0; i < N; i++)
        CHECK(op[i].state == FBX_AWAY);
    /* Every third is not waited for. */
    for (int i = 0; i < N; i += 3)
        fbx_op_forget(h0, &op[i]);
    uint64_t seen = 0, value;
    for (int i = 0; i < N; i++)
        if (i % 3) {
            MUST(fbx_op_wait(h0, &op[i], UINT64_MAX));
            CHECK(op[i].operand[0] >= seen);
            seen = op[i].operand[0];
        }
    MUST(fbx_load(h0, bed_gva(1, 64), 8, &value));
    CHECK_EQ(value, N);
    fbx_node_free(h0);
    bed_end(&b);
}

static void *breaker(void *argument)
{
    struct bed *b = argument;
    for (int i = 0; i < 20; i++) {
        struct timespec nap = {0, 45000000};
        nanosleep(&nap, NULL);
        bed_break(b);
    }
    return NULL;
}

/* Connections break all the time: atomics are counted exactly, and posted writes are neither lost nor reordered. */
static void breaks(uint32_t flags)
{
    struct bed b;
    fbx_node *h0, *h1;
    pthread_t thread;
    uint64_t value, count = 0, bad = 0;
    bed_make(&b, 2, FBX_AUTO_WINDOWS | flags, FBX_POSTED);
    MUST(fbx_node_attach(b.fabric[0], "host0", FBX_OWNER, &h0));
    MUST(fbx_node_attach(b.fabric[1], "host1", FBX_OWNER, &h1));
    MUST(fbx_load(h0, bed_gva(1, 64), 8, &value));
    pthread_create(&thread, NULL, breaker, &b);
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    static uint8_t block[100000], back[100000];
    do {
        MUST(fbx_fetch_add(h0, bed_gva(1, 64), 8, 1, &value));
        bad += value != count;
        count++;
        MUST(fbx_store(h0, bed_gva(1, 128), 8, count));
        if (count % 64 == 0) {
            memset(block, (int)count, sizeof block);
            const uint64_t bytes = flags & FBX_TIMING ? 5000 : sizeof block;
            MUST(fbx_write(h0, bed_gva(1, 65536), block, bytes));
            MUST(fbx_read(h0, bed_gva(1, 65536), back, bytes));
            bad += memcmp(block, back, bytes) != 0;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - begin.tv_sec < 2 && !check_failed);
    pthread_join(thread, NULL);
    CHECK_EQ(bad, 0);
    MUST(fbx_flush(h0, 1, FBX_CHECK));
    MUST(fbx_load(h1, bed_gva(1, 64), 8, &value));
    CHECK_EQ(value, count);
    MUST(fbx_load(h1, bed_gva(1, 128), 8, &value));
    CHECK_EQ(value, count);
    struct fbx_gateway_info info;
    MUST(fbx_gateway_info(b.fabric[1], &info));
    CHECK(info.resumed > 1);
    CHECK_EQ(info.garbage, 0);
    fbx_node_free(h0);
    fbx_node_free(h1);
    bed_end(&b);
}

/* A machine that is lost ends what waits for it, and nothing hangs. */
static void lost(void)
{
    struct bed b;
    fbx_node *h0;
    uint64_t value;
    struct fbx_machine_info info;
    bed_make(&b, 2, FBX_AUTO_WINDOWS, FBX_POSTED);
    MUST(fbx_node_attach(b.fabric[0], "host0", FBX_OWNER, &h0));
    MUST(fbx_store(h0, bed_gva(1, 64), 8, 1));
    MUST(fbx_flush(h0, 1, 0));
    __atomic_store_n(&b.refuse, 1, __ATOMIC_SEQ_CST);
    bed_break(&b);
    MUST(fbx_store(h0, bed_gva(1, 64), 8, 2)); /* nobody is told at once */
    MUST(fbx_machine_set(b.fabric[0], 1, FBX_MACHINE_LOST));
    CHECK(fbx_load(h0, bed_gva(1, 64), 8, &value) == FBX_E_PEER_LOST);
    CHECK_EQ(value, UINT64_MAX);
    CHECK(fbx_flush(h0, 1, 0) == FBX_E_PEER_LOST);
    CHECK(fbx_check_lost(h0) == FBX_E_LINK_DOWN);
    MUST(fbx_machine_info(b.fabric[0], 1, &info));
    CHECK_EQ(info.state, FBX_MACHINE_LOST);
    /* It comes back, admitted anew. */
    __atomic_store_n(&b.refuse, 0, __ATOMIC_SEQ_CST);
    MUST(fbx_machine_set(b.fabric[0], 1, FBX_MACHINE_UP));
    MUST(fbx_load(h0, bed_gva(1, 64), 8, &value));
    CHECK(value == 1 || value == 2);
    /* Unreachable without anybody saying so: operations end by themselves. */
    __atomic_store_n(&b.refuse, 1, __ATOMIC_SEQ_CST);
    bed_break(&b);
    CHECK(fbx_load(h0, bed_gva(1, 64), 8, &value) == FBX_E_COMPLETION_TIMEOUT);
    fbx_node_free(h0);
    bed_end(&b);
}

static void names(void)
{
    struct bed b;
    fbx_node *h[3];
    char text[64];
    uint64_t bytes;
    bed_make(&b, 3, FBX_AUTO_WINDOWS, FBX_POSTED);
    MUST(fbx_node_attach(b.fabric[0], "host0", FBX_OWNER, &h[0]));
    MUST(fbx_node_attach(b.fabric[1], "host1", FBX_OWNER, &h[1]));
    MUST(fbx_node_attach(b.fabric[2], "host2", FBX_OWNER, &h[2]));
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "key%d", i);
        MUST(fbx_put(b.fabric[i], text, text, 5));
    }
    for (int i = 0; i < 9; i++) {
        char key[16], back[64];
        snprintf(key, sizeof key, "key%d", i / 3);
        bytes = sizeof back;
        MUST(fbx_get(b.fabric[i % 3], key, back, &bytes));
        CHECK(bytes == 5 && !strcmp(key, back));
    }
    static uint8_t large[1000000], back[1000000];
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (uint8_t)(i * 13 + i / 4096);
    MUST(fbx_put(b.fabric[2], "large", large, sizeof large));
    bytes = 10;
    CHECK(fbx_get(b.fabric[1], "large", back, &bytes) == FBX_E_NO_MEMORY);
    CHECK_EQ(bytes, sizeof large);
    MUST(fbx_get(b.fabric[1], "large", back, &bytes));
    CHECK(!memcmp(large, back, sizeof large));
    bytes = 8;
    CHECK(fbx_get(b.fabric[2], "none", back, &bytes) == FBX_E_NOT_FOUND);

    /* Buffers: made anywhere, on any machine's memory, found from everywhere; names are taken once. */
    struct fbx_buffer buffer[3][3], found;
    for (int who = 0; who < 3; who++)
        for (uint32_t where = 0; where < 3; where++) {
            snprintf(text, sizeof text, "b%d.%u", who, where);
            MUST(fbx_alloc(h[who], where, 1000, 64, text, &buffer[who][where]));
            CHECK(fbx_alloc(h[(who + 1) % 3], where, 1000, 64, text, &found) == FBX_E_EXISTS);
        }
    for (int who = 0; who < 3; who++)
        for (uint32_t where = 0; where < 3; where++)
            for (int i = 0; i < 3; i++) {
                snprintf(text, sizeof text, "b%d.%u", who, where);
                MUST(fbx_buffer_find(b.fabric[i], text, &found));
                CHECK(found.gva == buffer[who][where].gva && found.bytes == 1000 && found.node == where);
                MUST(fbx_buffer_check(b.fabric[i], &found));
                MUST(fbx_store(h[i], found.gva, 8, 7));
            }
    for (int who = 0; who < 3; who++)
        for (uint32_t where = 0; where < 3; where++) {
            MUST(fbx_free(b.fabric[(who + 1) % 3], &buffer[who][where]));
            snprintf(text, sizeof text, "b%d.%u", who, where);
            CHECK(fbx_buffer_find(b.fabric[who], text, &found) == FBX_E_NOT_FOUND);
            CHECK(fbx_buffer_check(b.fabric[(who + 2) % 3], &buffer[who][where]) == FBX_E_STALE);
        }

    /* A barrier of three. */
    for (int round = 0; round < 3; round++) {
        uint64_t ticket[3] = {0, 0, 0};
        CHECK(fbx_barrier(h[2], "meet", 3, &ticket[2], 0) == FBX_E_AGAIN);
        CHECK(fbx_barrier(h[0], "meet", 3, &ticket[0], 0) == FBX_E_AGAIN);
        MUST(fbx_barrier(h[1], "meet", 3, &ticket[1], 0));
        MUST(fbx_barrier(h[2], "meet", 3, &ticket[2], 0));
        MUST(fbx_barrier(h[0], "meet", 3, &ticket[0], 0));
    }
    uint64_t ticket = 0;
    CHECK(fbx_barrier(h[1], "meet", 3, &ticket, 0) == FBX_E_AGAIN);
    MUST(fbx_barrier_leave(h[1], "meet", ticket));

    /* Links and windows are changed for all machines. */
    uint64_t value;
    int link = fbx_link_find(b.fabric[0], "link1");
    MUST(fbx_link_set(b.fabric[2], (uint32_t)link, 0));
    CHECK(fbx_load(h[0], bed_gva(1, 0), 8, &value) == FBX_E_LINK_DOWN);
    CHECK(fbx_load(h[1], bed_gva(0, 0), 8, &value) == FBX_E_LINK_DOWN);
    MUST(fbx_load(h[2], bed_gva(0, 0), 8, &value));
    MUST(fbx_link_set(b.fabric[1], (uint32_t)link, 1));
    MUST(fbx_load(h[0], bed_gva(1, 0), 8, &value));
    struct fbx_window_info window;
    MUST(fbx_mw_set_trans(b.fabric[2], 0, 1, 1, 4096, 4096, FBX_PERM_READ, FBX_UNCACHED));
    MUST(fbx_mw_info(b.fabric[1], 0, 1, &window));
    CHECK(window.translation == 4096 && window.bytes == 4096 && window.perm == FBX_PERM_READ);
    MUST(fbx_load(h[0], bed_gva(1, 4096), 8, &value));
    CHECK(fbx_load(h[0], bed_gva(1, 0), 8, &value) == FBX_E_NO_WINDOW);
    CHECK(fbx_store(h[0], bed_gva(1, 4096), 8, 1) == FBX_E_ABORT);
    MUST(fbx_mw_clear_trans(b.fabric[2], 0, 1));
    CHECK(fbx_load(h[0], bed_gva(1, 4096), 8, &value) == FBX_E_NO_WINDOW);
    uint64_t theirs, trip;
    MUST(fbx_machine_ping(b.fabric[0], 2, 1000000000, &theirs, &trip));
    CHECK(trip > 0);
    for (int i = 0; i < 3; i++)
        fbx_node_free(h[i]);
    bed_end(&b);
}

static void registers(uint32_t flags)
{
    struct bed b;
    fbx_node *h0, *h1;
    uint64_t bits;
    uint32_t word, from;
    bed_make(&b, 2, FBX_AUTO_WINDOWS | flags, FBX_POSTED);
    MUST(fbx_node_attach(b.fabric[0], "host0", FBX_OWNER, &h0));
    MUST(fbx_node_attach(b.fabric[1], "host1", FBX_OWNER, &h1));
    MUST(fbx_store(h0, bed_gva(1, 64), 8, 5));
    MUST(fbx_peer_db_set(h0, 0, 1u << 3));
    struct fbx_ntb_event event;
    int count = 0;
    for (int i = 0; i < 200 && count <= 0; i++)
        count = fbx_ntb_wait_event(h1, &event, 1, 20000000);
    CHECK(count == 1 && event.kind == FBX_NTB_DOORBELL && event.bits == 1u << 3);
    uint64_t value;
    MUST(fbx_load(h1, bed_gva(1, 64), 8, &value));
    CHECK_EQ(value, 5);
    MUST(fbx_peer_db_read(h0, 0, &bits));
    CHECK_EQ(bits, 1u << 3);
    MUST(fbx_peer_db_set_mask(h0, 0, 6));
    MUST(fbx_peer_db_read_mask(h0, 0, &bits));
    CHECK_EQ(bits, 6);
    MUST(fbx_peer_spad_write(h0, 0, 4, 77));
    MUST(fbx_peer_spad_read(h0, 0, 4, &word));
    CHECK_EQ(word, 77);
    MUST(fbx_spad_read(h1, 4, &word));
    CHECK_EQ(word, 77);
    /* The second message finds its register full: the sender's device says so. */
    MUST(fbx_peer_msg_write(h0, 0, 1, 11));
    MUST(fbx_peer_msg_write(h0, 0, 1, 12));
    MUST(fbx_flush(h0, 1, 0));
    for (int i = 0; i < 1000; i++) {
        MUST(fbx_msg_read_sts(h0, &bits));
        if (bits)
            break;
        struct timespec nap = {0, 1000000};
        nanosleep(&nap, NULL);
    }
    CHECK_EQ(bits, 2);
    MUST(fbx_msg_read(h1, 1, &from, &word));
    CHECK(word == 11 && from == 0);
    MUST(fbx_ntb_link_disable(h1));
    CHECK(fbx_load(h0, bed_gva(1, 64), 8, &value) == FBX_E_LINK_DOWN);
    CHECK(!fbx_ntb_peer_is_up(h0, 0));
    MUST(fbx_ntb_link_enable(h1, -1, -1));
    MUST(fbx_load(h0, bed_gva(1, 64), 8, &value));
    fbx_node_free(h0);
    fbx_node_free(h1);
    bed_end(&b);
}

int main(int argc, char **argv)
{
    const int only = argc > 1 ? atoi(argv[1]) : 0;
#define PART(number, call) \
    if (!only || only == (number)) \
    call
    /* With one thread to a gateway, and with several, whatever the processors would bear. */
    for (int keepers = 1; keepers <= 3; keepers += 2) {
        setenv("FABREX_GATEWAY_THREADS", keepers == 1 ? "1" : "3", 1);
        PART(1, operations(0, FBX_POSTED));
        PART(2, operations(FBX_TIMING, FBX_POSTED));
        PART(3, operations(FBX_TIMING, FBX_IMMEDIATE));
        PART(4, order(0));
        PART(5, order(FBX_TIMING));
        PART(6, outstanding());
        PART(7, breaks(0));
        PART(8, breaks(FBX_TIMING));
        PART(9, lost());
        PART(10, names());
        PART(11, registers(0));
        PART(12, registers(FBX_TIMING));
    }
    CHECK_EQ(test_leftovers(), 0);
    return check_report();
}
