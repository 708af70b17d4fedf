/* SPDX-License-Identifier: Apache-2.0
 *
 * fabrex from C, through libfabrex as any program would use it. Arguments: COMMAND DIRECTORY FABRIC NODE GVA ...
 *
 *   plain  BATCHES            timing off: scalar operations, a gather of 4,096, bulk writes and DMA beside memcpy between the same memory
 *   posted BATCHES            timing on: what it takes to issue a posted store
 *   poll   COUNT raw|api|wait watch a word of the node's own memory: say each stamp, and how much later it was seen
 *   send   COUNT raw|api GAP  write time stamps there, one every GAP ns; say those at which it was interrupted
 *   bell   COUNT futex|wait|poll|events   wait for, or poll, doorbell 0 of the node: how much later each was seen; futex: bare
 *   ring   COUNT futex|wait|poll|events GAP   ring it (host1's), one every GAP ns; say those at which it was interrupted
 *   push   BYTES START_PS NS  bulk writes, one after the other, from fabric time START_PS for NS; says bytes and ns
 *   dma    BYTES START_PS NS  the same by DMA, four descriptors at a time
 *   chase  BATCHES PEERS LINES   follow addresses through lines of PEERS nodes' first regions, and pointers through the same
 */
#define _GNU_SOURCE
#include "fabrex.h"
#include "measure.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

static void must(int status, const char *what)
{
    if (status) {
        fprintf(stderr, "%s: %s: %s\n", what, fbx_error_name(status), fbx_last_error()->text);
        exit(1);
    }
}

static double bench(fbx_node *node, int kind, const uint64_t *gvas, uint64_t gva_count, uint64_t count)
{
    /* The median of slices, as MEASURE does it. */
    const uint64_t slices = gva_count > 1 || kind == FBX_WAIT || count < SLICES * 1000 ? 1 : SLICES;
    double slice[SLICES];
    for (uint64_t i = 0; i < slices; i++) {
        uint64_t total;
        must(fbx_bench(node, kind, gvas, gva_count, 8, count / slices, NULL, &total), "fbx_bench");
        slice[i] = (double)total / (double)(count / slices) / 1e3;
    }
    return median(slice, slices);
}

static void dma_copy(fbx_node *node, const struct fbx_dma *d)
{
    uint64_t id;
    must(fbx_dma_submit(node, d, &id), "fbx_dma_submit");
    must(fbx_dma_wait(node, id, UINT64_MAX), "fbx_dma_wait");
    fbx_dma_release(node, id);
}

/* Small descriptors: what submitting one takes, and what each takes of a channel that is always full. */
static void descriptors(fbx_node *node, const struct fbx_dma *d)
{
    enum { COUNT = 20000 };
    static uint64_t samples[COUNT];
    static double each[COUNT];
    uint64_t total;
    must(fbx_bench_dma(node, d, 64, COUNT, samples, &total), "fbx_bench_dma");
    for (uint32_t i = 0; i < COUNT; i++)
        each[i] = (double)samples[i] / 1e3;
    say("dma_submit", d->bytes, median(each, COUNT));
    must(fbx_bench_dma(node, d, 64, COUNT, NULL, &total), "fbx_bench_dma");
    say("dma_queue", d->bytes, (double)total / COUNT / 1e3);
}

static void plain(fbx_fabric *fabric, fbx_node *node, uint64_t gva, int rounds)
{
    enum { GATHERED = 4096 };
    static uint64_t gvas[GATHERED], values[GATHERED];
    char *data = malloc(BULK_MAX);
    void *view;
    int writable;
    memset(data, 1, BULK_MAX);
    must(fbx_map(node, gva, BULK_MAX, &view, &writable), "fbx_map");
    struct fbx_node_info own;
    struct fbx_buffer near;
    void *source;
    must(fbx_node_info(fabric, fbx_node_index(node), &own), "fbx_node_info");
    must(fbx_alloc(node, own.first_region, BULK_MAX, 4096, "", &near), "fbx_alloc");
    must(fbx_map(node, near.gva, BULK_MAX, &source, &writable), "fbx_map");
    memset(source, 1, BULK_MAX);
    for (uint64_t i = 0; i < GATHERED; i++)
        gvas[i] = gva + i * 64;
    bench(node, FBX_LOAD, &gva, 1, 1000000);
    for (int round = 0; round < rounds; round++) {
        say("load", 8, bench(node, FBX_LOAD, &gva, 1, 500000));
        say("store", 8, bench(node, FBX_STORE, &gva, 1, 500000));
        say("fetch_add", 8, bench(node, FBX_FETCH_ADD, &gva, 1, 500000));
        double each[SLICES];
        for (int i = -4; i < (int)SLICES; i++) { /* some to warm up */
            uint64_t begin = now_ns(), done;
            struct fbx_op op = {.kind = FBX_OTHER};
            done = 0;
            must(fbx_gather(node, &op, gvas, GATHERED, 8, values, &done, UINT64_MAX), "fbx_gather");
            if (i >= 0)
                each[i] = (double)(now_ns() - begin) / GATHERED;
        }
        say("gather", 8, median(each, SLICES));
        for (unsigned i = 0; i < BULK_SIZES; i++) {
            MEASURE("write", bulk_bytes[i], bulk_count(bulk_bytes[i]), must(fbx_write(node, gva, data, bulk_bytes[i]), "fbx_write"));
            MEASURE("memcpy_there", bulk_bytes[i], bulk_count(bulk_bytes[i]), {
                memcpy(view, data, bulk_bytes[i]);
                __asm__ __volatile__("" ::: "memory");
            });
            const struct fbx_dma d = {.dst = gva, .src = near.gva, .bytes = bulk_bytes[i]};
            MEASURE("dma", bulk_bytes[i], bulk_count(bulk_bytes[i]), dma_copy(node, &d));
            MEASURE("memcpy_shared", bulk_bytes[i], bulk_count(bulk_bytes[i]), {
                memcpy(view, source, bulk_bytes[i]);
                __asm__ __volatile__("" ::: "memory");
            });
        }
        const struct fbx_dma small = {.dst = gva, .src = near.gva, .bytes = 8};
        descriptors(node, &small);
    }
    must(fbx_free(fabric, &near), "fbx_free");
}

/* Bursts that the queue holds, with nobody at the target; and without end, so that delivery is in it. */
static void posted(fbx_node *node, uint64_t gva, int rounds)
{
    for (int round = 0; round < rounds; round++) {
        double each[SLICES];
        for (int burst = -5; burst < (int)SLICES; burst++) {
            must(fbx_flush(node, UINT32_MAX, 0), "fbx_flush");
            double ns = bench(node, FBX_STORE, &gva, 1, 512);
            if (burst >= 0)
                each[burst] = ns;
        }
        say("posted_store", 8, median(each, SLICES));
        bench(node, FBX_STORE, &gva, 1, 5000);
        say("posted_store_sustained", 8, bench(node, FBX_STORE, &gva, 1, 50000));
        must(fbx_flush(node, UINT32_MAX, 0), "fbx_flush");
    }
}

static uint64_t *word_at(fbx_node *node, uint64_t gva)
{
    void *view;
    int writable;
    must(fbx_map(node, gva, 64, &view, &writable), "fbx_map");
    return view;
}

#define AWAY_PS 20000000u /* a step that takes longer was interrupted */
#define THE_END 1u /* no time stamp: the sender has been running for longer */

static void poll_stamps(fbx_fabric *fabric, fbx_node *node, uint64_t gva, uint64_t count, const char *how)
{
    uint64_t *word = word_at(node, gva), last = 0, seen = 0, n = 0;
    struct {
        uint64_t stamp, took;
    } *taken = calloc(count + 1, sizeof *taken);
    struct fbx_op op = {.kind = FBX_OTHER};
    const uint64_t limit = now_ns() + 30000000000u;
    __atomic_store_n(word, 0, __ATOMIC_RELEASE);
    say("ready", 8, 0);
    uint64_t look = fbx_fabric_now(fabric);
    for (uint32_t spins = 0; n <= count; spins++) {
        if (how[0] == 'r')
            seen = __atomic_load_n(word, __ATOMIC_ACQUIRE);
        else if (how[0] == 'a')
            must(fbx_load(node, gva, 8, &seen), "fbx_load");
        else
            fbx_wait_until(node, &op, gva, 8, FBX_NE, last, UINT64_MAX, 500, &seen);
        const uint64_t before = look;
        look = fbx_fabric_now(fabric);
        if (seen == last) {
            if (!(spins & 0xffff) && now_ns() > limit)
                break;
            continue;
        }
        last = seen;
        if (seen == THE_END)
            break;
        if (look - before < AWAY_PS) /* otherwise the watcher was not on its processor, and this says nothing */
            taken[n].stamp = seen, taken[n++].took = look - seen;
    }
    for (uint64_t i = n / 10; i < n; i++)
        printf("%s %llu %.3f\n", how, (unsigned long long)taken[i].stamp, (double)taken[i].took / 1e3);
    fflush(stdout);
}

static void send_stamps(fbx_fabric *fabric, fbx_node *node, uint64_t gva, uint64_t count, const char *how, uint64_t gap_ns)
{
    uint64_t *word = word_at(node, gva), next = fbx_fabric_now(fabric);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t stamp;
        while ((stamp = fbx_fabric_now(fabric)) < next)
            ;
        if (how[0] == 'r')
            __atomic_store_n(word, stamp, __ATOMIC_RELEASE);
        else
            must(fbx_store(node, gva, 8, stamp), "fbx_store");
        if (fbx_fabric_now(fabric) - stamp > AWAY_PS)
            printf("away %llu 0\n", (unsigned long long)stamp);
        next = stamp + gap_ns * 1000 + (stamp >> 4) % 200000; /* not in step with the watcher's rounds */
    }
    while (fbx_fabric_now(fabric) < next + 5000000000u)
        ;
    if (how[0] == 'r') {
        __atomic_store_n(word, THE_END, __ATOMIC_RELEASE);
    } else {
        must(fbx_store(node, gva, 8, THE_END), "fbx_store");
        must(fbx_flush(node, UINT32_MAX, 0), "fbx_flush");
    }
}

struct bell { /* raw shared memory: when it was rung, the bare futex, and that no more comes */
    uint64_t stamp;
    uint32_t rung, over;
};

static struct bell *bell_at(fbx_node *node, uint64_t gva)
{
    struct bell *bell = (struct bell *)(void *)word_at(node, gva);
    fbx_unmap(node, gva); /* nobody need keep it current for us: doorbells are not in it */
    return bell;
}

static void watch_bell(fbx_fabric *fabric, fbx_node *node, uint64_t gva, uint64_t count, const char *how)
{
    struct bell *bell = bell_at(node, gva);
    struct fbx_ntb_event event;
    uint64_t bits, n = 0, last = 0;
    struct {
        uint64_t stamp, took;
    } *taken = calloc(count + 1, sizeof *taken);
    memset(bell, 0, sizeof *bell);
    while (fbx_ntb_wait_event(node, &event, 1, 0) > 0)
        ;
    say("ready", 8, 0);
    const uint64_t limit = now_ns() + 30000000000u;
    uint32_t seen = 0;
    uint64_t look = fbx_fabric_now(fabric);
    for (uint32_t spins = 0; n < count && !__atomic_load_n(&bell->over, __ATOMIC_ACQUIRE); spins++) {
        int rung;
        if (how[0] == 'f') {
            const struct timespec second = {1, 0};
            while (__atomic_load_n(&bell->rung, __ATOMIC_ACQUIRE) == seen && !bell->over)
                syscall(SYS_futex, &bell->rung, FUTEX_WAIT, seen, &second, NULL, 0);
            seen = __atomic_load_n(&bell->rung, __ATOMIC_ACQUIRE);
            rung = 1;
        } else if (how[0] == 'p') {
            must(fbx_db_read(node, &bits), "fbx_db_read");
            rung = (int)(bits & 1);
        } else {
            rung = fbx_ntb_wait_event(node, &event, 1, how[0] == 'w' ? 1000000000u : 0) > 0 && event.kind == FBX_NTB_DOORBELL;
        }
        const uint64_t before = look, stamp = __atomic_load_n(&bell->stamp, __ATOMIC_ACQUIRE);
        look = fbx_fabric_now(fabric);
        if (rung && how[0] != 'f')
            must(fbx_db_clear(node, 1), "fbx_db_clear");
        if (!(spins & 0xffff) && now_ns() > limit)
            break;
        if (rung && stamp != last && (how[0] == 'f' || how[0] == 'w' || look - before < AWAY_PS))
            taken[n].stamp = stamp, taken[n++].took = look - stamp;
        last = rung ? stamp : last;
    }
    for (uint64_t i = n / 10; i < n; i++)
        printf("%s %llu %.3f\n", how, (unsigned long long)taken[i].stamp, (double)taken[i].took / 1e3);
    fflush(stdout);
}

static void ring_bell(fbx_fabric *fabric, fbx_node *node, uint64_t gva, uint64_t count, const char *how, uint64_t gap_ns)
{
    struct bell *bell = bell_at(node, gva);
    uint64_t next = fbx_fabric_now(fabric);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t stamp;
        while ((stamp = fbx_fabric_now(fabric)) < next)
            ;
        __atomic_store_n(&bell->stamp, stamp, __ATOMIC_RELEASE);
        if (how[0] == 'f') {
            __atomic_add_fetch(&bell->rung, 1, __ATOMIC_RELEASE);
            syscall(SYS_futex, &bell->rung, FUTEX_WAKE, 1, NULL, NULL, 0);
        } else {
            must(fbx_peer_db_set(node, 0, 1), "fbx_peer_db_set");
        }
        if (how[0] != 'f' && how[0] != 'w' && fbx_fabric_now(fabric) - stamp > AWAY_PS)
            printf("away %llu 0\n", (unsigned long long)stamp);
        next = stamp + gap_ns * 1000 + (stamp >> 4) % 200000; /* not in step with the watcher's rounds */
    }
    while (fbx_fabric_now(fabric) < next + 5000000000u)
        ;
    __atomic_store_n(&bell->over, 1, __ATOMIC_RELEASE);
    __atomic_add_fetch(&bell->rung, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &bell->rung, FUTEX_WAKE, 1, NULL, NULL, 0);
}

enum { UNDER_WAY = 4 };

/* Push through DMA: a descriptor that is done makes room for the next. What counts is what the engine completed in time. */
static void push_dma(fbx_fabric *fabric, fbx_node *node, uint64_t gva, uint64_t bytes, uint64_t start, uint64_t ns)
{
    struct fbx_node_info own;
    struct fbx_buffer near;
    uint64_t ids[UNDER_WAY], sent = 0, now, begin = 0, last = 0;
    must(fbx_node_info(fabric, fbx_node_index(node), &own), "fbx_node_info");
    must(fbx_alloc(node, own.first_region, bytes, 4096, "", &near), "fbx_alloc");
    const struct fbx_dma d = {.dst = gva, .src = near.gva, .bytes = bytes};
    dma_copy(node, &d);
    say("ready", 8, 0);
    while ((now = fbx_fabric_now(fabric)) < start)
        usleep(now + 2000000000u < start ? 1000 : 50);
    for (uint32_t i = 0; i < UNDER_WAY; i++)
        must(fbx_dma_submit(node, &d, &ids[i]), "fbx_dma_submit");
    for (uint64_t i = 0; last < start + ns * 1000; i++) {
        struct fbx_dma_status status;
        must(fbx_dma_wait(node, ids[i % UNDER_WAY], UINT64_MAX), "fbx_dma_wait");
        must(fbx_dma_poll(node, ids[i % UNDER_WAY], &status), "fbx_dma_poll");
        must(fbx_dma_release(node, ids[i % UNDER_WAY]), "fbx_dma_release");
        last = status.completes_ps;
        if (i < UNDER_WAY)
            begin = last; /* the first meet those that have not begun */
        else if (last < start + ns * 1000)
            sent += bytes, now = last;
        must(fbx_dma_submit(node, &d, &ids[i % UNDER_WAY]), "fbx_dma_submit");
    }
    say("pushed", sent, (double)(now - begin) / 1e3);
    for (uint32_t i = 0; i < UNDER_WAY; i++)
        fbx_dma_cancel(node, ids[i]);
    must(fbx_free(fabric, &near), "fbx_free");
}

static void push(fbx_fabric *fabric, fbx_node *node, uint64_t gva, uint64_t bytes, uint64_t start, uint64_t ns)
{
    char *data = calloc(1, bytes);
    uint64_t sent = 0, now, last;
    must(fbx_write(node, gva, data, 64), "fbx_write");
    say("ready", 8, 0);
    while ((now = fbx_fabric_now(fabric)) < start)
        usleep(now + 2000000000u < start ? 1000 : 50);
    /* The first write meets those that have not begun, the last those that have ended: neither counts. */
    must(fbx_write(node, gva, data, bytes), "fbx_write");
    const uint64_t begin = last = fbx_fabric_now(fabric), end = start + ns * 1000;
    for (;;) {
        must(fbx_write(node, gva, data, bytes), "fbx_write");
        if ((now = fbx_fabric_now(fabric)) > end)
            break;
        sent += bytes;
        last = now;
    }
    say("pushed", sent, (double)(last - begin) / 1e3);
}

static void chase(fbx_fabric *fabric, fbx_node *node, int rounds, uint64_t peers, uint64_t lines)
{
    uint64_t count = peers * lines, *gvas = malloc(count * sizeof *gvas), seed = 88172645463325252u;
    struct line {
        uint64_t gva;
        struct line *next;
    } **views = malloc(count * sizeof *views);
    for (uint64_t p = 0; p < peers; p++) {
        struct fbx_region_info region;
        must(fbx_region_info(fabric, (uint32_t)p + 1, &region), "fbx_region_info"); /* one region a node; node 0 is this one */
        for (uint64_t l = 0; l < lines; l++) {
            /* Not all at the same place of a page: they would share a few sets of the caches. */
            uint64_t at = region.gva + 65536 + l * 4096 + (p * 7 + l * 13) % 64 * 64;
            void *view;
            int writable;
            must(fbx_map(node, at, 64, &view, &writable), "fbx_map");
            gvas[p * lines + l] = at;
            views[p * lines + l] = view;
        }
    }
    for (uint64_t i = count - 1; i; i--) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        uint64_t k = seed % (i + 1), gva = gvas[i];
        struct line *view = views[i];
        gvas[i] = gvas[k], gvas[k] = gva;
        views[i] = views[k], views[k] = view;
    }
    for (uint64_t i = 0; i < count; i++) {
        views[i]->gva = gvas[(i + 1) % count];
        views[i]->next = views[(i + 1) % count];
    }
    struct line *at = views[0];
    uint64_t gva = gvas[0];
    /* Short pieces in turn, so that whatever disturbs one side disturbs the other. A piece is at most one tour. */
    const uint64_t piece = count < 20000 ? count : 20000;
    enum { PIECES = 200 };
    static double api[PIECES], bare[PIECES], same[PIECES];
    for (int round = -1; round < rounds; round++) { /* the first to warm up */
        for (int i = 0; i < PIECES; i++) {
            uint64_t total;
            must(fbx_bench(node, FBX_WAIT, &gva, 1, 8, piece, NULL, &total), "fbx_bench");
            api[i] = (double)total / (double)piece / 1e3;
            uint64_t begin = fbx_fabric_now(fabric);
            for (uint64_t k = 0; k < piece; k++)
                at = *(struct line *volatile *)&at->next;
            bare[i] = (double)(fbx_fabric_now(fabric) - begin) / (double)piece / 1e3;
        }
        for (int i = 0; i < PIECES; i++) {
            uint64_t total;
            must(fbx_bench(node, FBX_LOAD, gvas, 1, 8, 20000, NULL, &total), "fbx_bench");
            same[i] = (double)total / 20000 / 1e3;
        }
        if (round >= 0) {
            say("chase_api", count * 64, median(api, PIECES));
            say("chase_bare", count * 64, median(bare, PIECES));
            say("load_same", 8, median(same, PIECES));
        }
    }
    if (!at)
        exit(1);
}

int main(int argc, char **argv)
{
    fbx_fabric *fabric;
    fbx_node *node;
    if (argc < 7)
        return 2;
    must(fbx_fabric_open(argv[2], argv[3], &fabric), "fbx_fabric_open");
    must(fbx_node_attach(fabric, argv[4], FBX_ANY, &node), "fbx_node_attach");
    const char *command = argv[1];
    uint64_t gva = strtoull(argv[5], NULL, 0), number = strtoull(argv[6], NULL, 0);
    if (!strcmp(command, "plain"))
        plain(fabric, node, gva, (int)number);
    else if (!strcmp(command, "posted"))
        posted(node, gva, (int)number);
    else if (!strcmp(command, "poll") && argc == 8)
        poll_stamps(fabric, node, gva, number, argv[7]);
    else if (!strcmp(command, "send") && argc == 9)
        send_stamps(fabric, node, gva, number, argv[7], strtoull(argv[8], NULL, 0));
    else if (!strcmp(command, "bell") && argc == 8)
        watch_bell(fabric, node, gva, number, argv[7]);
    else if (!strcmp(command, "ring") && argc == 9)
        ring_bell(fabric, node, gva, number, argv[7], strtoull(argv[8], NULL, 0));
    else if (!strcmp(command, "push") && argc == 9)
        push(fabric, node, gva, number, strtoull(argv[7], NULL, 0), strtoull(argv[8], NULL, 0));
    else if (!strcmp(command, "dma") && argc == 9)
        push_dma(fabric, node, gva, number, strtoull(argv[7], NULL, 0), strtoull(argv[8], NULL, 0));
    else if (!strcmp(command, "chase") && argc == 9)
        chase(fabric, node, (int)number, strtoull(argv[7], NULL, 0), strtoull(argv[8], NULL, 0));
    else
        return 2;
    fbx_fabric_close(fabric);
    fbx_fabric_free(fabric);
    return 0;
}
