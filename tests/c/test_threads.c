/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads on one handle and on their own, while links go down and up and windows change: atomics counted exactly, words
 * never torn, nothing lands after a link was taken down. Run under the sanitizers by `make san`. */
#include "fabric.h"

#include <pthread.h>

enum { ROUNDS = 10000, THREADS = 3 };

static fbx_fabric *fabric;
static uint64_t base;
static uint32_t added[THREADS], stop;

struct worker {
    fbx_node *node;
    int number;
};

static int expected_failure(int status) { return status == FBX_E_LINK_DOWN || status == FBX_E_NO_WINDOW || status == FBX_E_ABORT; }

static void *work(void *argument)
{
    const struct worker *w = argument;
    fbx_node *n = w->node;
    uint64_t old, words[64], value = (uint64_t)(w->number + 1) * 0x0101010101010101ull;
    for (int i = 0; i < ROUNDS; i++) {
        int status = fbx_fetch_add(n, base, 8, 1, &old);
        if (!status)
            __atomic_add_fetch(&added[w->number], 1, __ATOMIC_RELAXED);
        else
            CHECK(expected_failure(status));
        /* Whole words of one value: whoever reads sees one of the writers' and no mixture. */
        status = fbx_store(n, base + 64, 8, value);
        CHECK(!status || expected_failure(status));
        status = fbx_load(n, base + 64, 8, &old);
        CHECK(status ? expected_failure(status) : old == 0 || old % 0x0101010101010101ull == 0);
        if (i % 64 == 0) {
            for (int k = 0; k < 64; k++)
                words[k] = value;
            status = fbx_write(n, base + 4096 + (uint64_t)w->number * 512, words, sizeof words);
            CHECK(!status || expected_failure(status));
            status = fbx_flush(n, UINT32_MAX, 0);
            CHECK(!status || expected_failure(status));
            status = fbx_put(fabric, "key", words, 64);
            CHECK(status == 0);
            uint64_t size = sizeof words;
            status = fbx_get(fabric, "key", words, &size);
            CHECK(status == 0 && size == 64 && words[0] == words[7]);
        }
        if (i % 256 == 0) {
            struct fbx_buffer b;
            MUST(fbx_alloc(n, 0, 4096, 64, NULL, &b));
            MUST(fbx_free(fabric, &b));
        }
    }
    __atomic_add_fetch(&stop, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void run(uint32_t flags, int flap)
{
    char name[32];
    snprintf(name, sizeof name, "threads-%u-%d", flags, flap);
    MUST(test_fabric(name, flags | FBX_AUTO_WINDOWS, 1000, &fabric));
    fbx_node *h0, *shared, *own;
    struct fbx_buffer buffer;
    MUST(fbx_node_attach(fabric, "host0", FBX_OWNER, &h0));
    MUST(fbx_node_attach(fabric, "host1", FBX_OWNER, &shared));
    MUST(fbx_node_attach(fabric, "host1", FBX_CLIENT, &own));
    MUST(fbx_alloc(h0, 0, 65536, 64, "target", &buffer));
    base = buffer.gva;
    stop = 0;
    memset(added, 0, sizeof added);
    struct worker workers[THREADS] = {{shared, 0}, {shared, 1}, {own, 2}};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, work, &workers[i]));
    uint64_t value = 0, round = 0;
    while (flap && __atomic_load_n(&stop, __ATOMIC_RELAXED) < THREADS) {
        MUST(fbx_link_set(fabric, 0, 0));
        /* Nothing lands now: what we write ourselves into our own memory stays. */
        MUST(fbx_store(h0, base + 64, 8, 0));
        for (int i = 0; i < 200; i++) {
            MUST(fbx_load(h0, base + 64, 8, &value));
            CHECK_EQ(value, 0);
        }
        MUST(fbx_link_set(fabric, 0, 1));
        MUST(fbx_mw_set_trans(fabric, 1, 0, 0, 0, 64u << 20, FBX_PERM_RW, FBX_UNCACHED));
        MUST(fbx_mw_set_trans(fabric, 1, 0, 0, 0, 64u << 20, FBX_PERM_RW, FBX_WRITE_COMBINING));
        /* A link is set while traffic crosses it: slots of its calendar get another length as well. */
        uint64_t link[FBX_LINK_KEYS] = {0};
        link[FBX_LINK_DELAY_PS] = 1000 + 1000 * (round % 3);
        link[FBX_LINK_GEN] = 1 + round % 5;
        link[FBX_LINK_LANES] = round % 2 ? 16 : 1;
        MUST(fbx_link_configure(fabric, 0, round % 7 ? 1u << FBX_LINK_DELAY_PS | 1u << FBX_LINK_GEN | 1u << FBX_LINK_LANES : 0, link));
        struct fbx_estimate e;
        MUST(fbx_estimate(own, FBX_LOAD, base, 8, &e));
        uint64_t delays = 2 * (1000 + (round % 7 ? link[FBX_LINK_DELAY_PS] : 1000));
        CHECK(e.completes_ps >= delays && e.completes_ps < delays + 1000000);
        round++;
    }
    uint64_t want = 0;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        want += added[i];
    }
    MUST(fbx_load(h0, base, 8, &value));
    CHECK_EQ(value, want);
    struct fbx_fabric_info info;
    MUST(fbx_fabric_info(fabric, &info));
    CHECK_EQ(info.corrupt_resets, 0);
    fbx_node_free(own);
    fbx_node_free(shared);
    fbx_node_free(h0);
    fbx_fabric_free(fabric);
}

int main(void)
{
    run(0, 0);
    run(FBX_TIMING, 0);
    run(0, 1);
    run(FBX_TIMING, 1);
    CHECK_EQ(test_leftovers(), 0);
    return check_report();
}
