/* SPDX-License-Identifier: Apache-2.0
 *
 * Kill a process before and after every publish and every claim of the core, while another works on the same fabric: no
 * hang, no leak, no lost or torn payload, nothing left locked. Built with FBX_SITES; without it there is nothing to do. */
#include "fabric.h"

#ifndef FBX_SITES
int main(void)
{
    printf("test_sites: built without sites, nothing to do\n");
    return 0;
}
#else
#include "atomics.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#define FLAG_OFFSET 8192u

static void fill(uint64_t *words, uint64_t value)
{
    for (int i = 0; i < 512; i++)
        words[i] = value;
}

#define FAST_PS 1000u
#define SLOW_PS 2000000u

/* Two values that go together: whoever finds one of them must find the other. */
static int set_link(fbx_fabric *f, uint64_t delay_ps)
{
    uint64_t value[FBX_LINK_KEYS] = {0};
    value[FBX_LINK_DELAY_PS] = delay_ps;
    value[FBX_LINK_GEN] = delay_ps == FAST_PS ? 5 : 1;
    return fbx_link_configure(f, 1, 1u << FBX_LINK_DELAY_PS | 1u << FBX_LINK_GEN, value);
}

/* The old values or the new ones, and the survivor's own routes follow them: the one it kept, then one that it looks up. */
static void check_link(fbx_fabric *f, fbx_node *n)
{
    struct fbx_link_info link, other;
    struct fbx_estimate e;
    MUST(fbx_link_info(f, 0, &other));
    MUST(fbx_link_info(f, 1, &link));
    CHECK(link.delay_ps == FAST_PS ? link.gen == 5 : link.delay_ps == SLOW_PS && link.gen == 1);
    struct fbx_op op;
    memset(&op, 0, sizeof op);
    op.kind = FBX_LOAD;
    op.gva = 2ull << 40;
    op.bytes = 8;
    int status = fbx_op_begin(n, &op);
    if (status == FBX_E_LINK_DOWN)
        return; /* the victim had disabled its NTB */
    CHECK_EQ(op.completes_ps - op.issued_ps >= 2 * link.delay_ps, 1);
    CHECK_EQ(op.completes_ps - op.issued_ps < 2 * link.delay_ps + 500000, 1);
    while (status == FBX_E_AGAIN)
        status = fbx_op_wait(n, &op, UINT64_MAX);
    CHECK_EQ(status, 0);
    MUST(fbx_estimate(n, FBX_LOAD, 2ull << 40, 8, &e));
    CHECK(e.completes_ps >= 2 * (link.delay_ps + other.delay_ps));
    CHECK(e.completes_ps < 2 * (link.delay_ps + other.delay_ps) + 100000); /* packets */
}

/* Everything that a client does, once. `shared` is a buffer of host0 that the survivor watches. */
static int repertoire(fbx_fabric *f, uint64_t shared, uint64_t value, int control)
{
    fbx_node *n = NULL;
    uint64_t old, words[512], pair[2] = {0, 0}, size = sizeof words;
    struct fbx_buffer a, b;
    int bad = fbx_node_attach(f, "host1", FBX_CLIENT, &n);
    if (!bad)
        bad = fbx_ntb_link_enable(n, -1, -1); /* as one that died after it disabled the link did not */
    if (bad)
        return bad;
    char name[32];
    snprintf(name, sizeof name, "victim-%llu", (unsigned long long)value);
    bad = fbx_alloc(n, 0, 100000, 64, NULL, &a);
    if (!bad)
        bad = fbx_alloc(n, 1, 5000, 4096, name, &b);
    for (uint64_t round = 0; round < 3 && !bad; round++) {
        /* payload, then the flag behind it on the same way */
        fill(words, value * 8 + round);
        bad = fbx_write(n, shared, words, 4096);
        if (!bad)
            bad = fbx_store(n, shared + FLAG_OFFSET, 8, value * 8 + round);
        if (!bad)
            bad = fbx_store_wide(n, shared + FLAG_OFFSET + 64, 64, words);
        if (!bad)
            bad = fbx_fetch_add(n, shared + FLAG_OFFSET + 128, 8, 1, &old);
        if (!bad)
            bad = fbx_compare_swap(n, shared + FLAG_OFFSET + 144, 16, pair, pair, pair);
        if (!bad)
            bad = fbx_load(n, a.gva, 8, &old);
        if (!bad)
            bad = fbx_fence(n);
    }
    if (!bad)
        bad = fbx_flush(n, UINT32_MAX, 0);
    if (!bad)
        bad = fbx_put(f, "key", words, 1000);
    if (!bad)
        bad = fbx_get(f, "key", words, &size);
    if (!bad)
        bad = fbx_buffer_find(f, name, &b);
    /* what goes to the registers of host0, and its own */
    uint32_t pad = 0;
    for (uint32_t round = 0; round < 2 && !bad; round++) {
        bad = fbx_peer_spad_write(n, 0, 3, (uint32_t)value);
        if (!bad)
            bad = fbx_peer_db_set(n, 0, 2);
        if (!bad)
            bad = fbx_peer_msg_write(n, 0, 0, (uint32_t)value);
        if (!bad)
            bad = fbx_peer_spad_read(n, 0, 3, &pad);
        if (!bad && pad != (uint32_t)value)
            bad = FBX_E_CORRUPT;
        if (!bad)
            bad = fbx_db_set_mask(n, 1);
        if (!bad)
            bad = fbx_db_set(n, 3);
        if (!bad)
            bad = fbx_db_clear_mask(n, 1);
        if (!bad)
            bad = fbx_db_clear(n, 3);
    }
    /* interrupt vectors: those of the dead must not run out; and who may cross the NTB */
    struct fbx_msi_desc desc;
    const uint32_t everybody[] = {0, 1, 2, 3};
    if (!bad) {
        int vector = fbx_msi_request(n, &desc);
        bad = vector < 0 ? vector : fbx_msi_set_mask(n, 1ull << vector);
        if (!bad)
            bad = fbx_msi_clear_mask(n, 1ull << vector);
        if (!bad)
            bad = fbx_msi_peer_trigger(n, 0, &desc); /* nobody there holds it: it is dropped */
        if (!bad)
            bad = fbx_msi_free(n, (uint32_t)vector);
    }
    if (!bad && control)
        bad = fbx_rid_set(n, everybody, 4);
    if (!bad && control)
        bad = fbx_rid_open(n);
    if (!bad && control) {
        bad = fbx_ntb_link_disable(n);
        if (!bad)
            bad = fbx_ntb_link_enable(n, -1, -1);
    }
    if (!bad && control) {
        bad = fbx_mw_set_trans(f, 1, 40, 0, 0, 1u << 20, FBX_PERM_RW, FBX_UNCACHED);
        if (!bad)
            bad = fbx_mw_clear_trans(f, 1, 40);
        if (!bad)
            bad = fbx_link_set(f, 1, 0);
        if (!bad)
            bad = fbx_link_set(f, 1, 1);
        if (!bad)
            bad = set_link(f, FAST_PS);
        if (!bad)
            bad = set_link(f, SLOW_PS);
    }
    if (!bad)
        bad = fbx_free(f, &b);
    if (!bad)
        bad = fbx_free(f, &a);
    fbx_node_free(n);
    return bad;
}

static void victim(const char *name, int site, int nth, uint64_t shared, uint64_t value)
{
    fbx_fabric *f = NULL;
    fbx_site_arm(site, nth);
    int bad = name ? fbx_fabric_open(test_dir(), name, &f) : test_fabric("born", FBX_AUTO_WINDOWS | FBX_TIMING, 1000, &f);
    if (!bad && name)
        bad = shared ? repertoire(f, shared, value, 1) : set_link(f, value);
    fbx_fabric_free(f);
    _exit(bad ? 3 : 0);
}

/* Wait for the child; 1: it was killed, 0: it ended well, -1: it hung or failed. */
static int reap_child(pid_t child, fbx_fabric *f, fbx_node *n, uint64_t shared)
{
    struct timespec nap = {0, 200000};
    int status;
    for (int i = 0; i < 50000; i++) {
        pid_t got = waitpid(child, &status, WNOHANG);
        if (got == child) {
            if (WIFSIGNALED(status))
                return WTERMSIG(status) == SIGKILL ? 1 : -1;
            return WEXITSTATUS(status) ? -1 : 0;
        }
        if (n) { /* the survivor works on while the other dies */
            uint64_t flag = 0, words[512];
            int bad = fbx_load(n, shared + FLAG_OFFSET, 8, &flag);
            CHECK(bad == 0);
            if (!bad && fbx_read(n, shared, words, 4096) == 0) {
                /* What was written before the flag is there: each word is of that round, or of a later one. */
                uint64_t torn = 0;
                for (int k = 0; k < 512; k++)
                    torn += words[k] < flag && words[k] / 8 == flag / 8;
                CHECK_EQ(torn, 0);
            }
        }
        nanosleep(&nap, NULL);
    }
    (void)f;
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return -1;
}

int main(void)
{
    /* One line a site, once: a hang must say where. */
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *only = getenv("SITE");
    fbx_fabric *f;
    fbx_node *n;
    struct fbx_buffer shared;
    int hit = 0, sites = fbx_site_count();
    MUST(test_fabric("sites", FBX_AUTO_WINDOWS | FBX_TIMING | FBX_NO_SERVICE, 1000, &f));
    MUST(fbx_node_attach(f, "host0", FBX_OWNER, &n));
    MUST(fbx_alloc(n, 0, 65536, 64, "shared", &shared));
    struct fbx_region_info before[2];
    uint64_t value = 1;
    /* Learn to know everything that is made on first use, so that what is left over later is a leak. */
    MUST(repertoire(f, shared.gva, value++, 1));
    MUST(fbx_region_info(f, 0, &before[0]));
    MUST(fbx_region_info(f, 1, &before[1]));
    for (int site = only ? atoi(only) : 0; site < (only ? atoi(only) + 1 : sites); site++)
        for (int nth = 1; nth <= 2; nth++) {
            pid_t child = fork();
            if (!child)
                victim("sites", site, nth, shared.gva, value);
            int end = reap_child(child, f, n, shared.gva);
            if (end < 0)
                fprintf(stderr, "site %d (%s:%d %s): the process hung or failed\n", site, fbx_site_at(site)->file,
                        fbx_site_at(site)->line, fbx_site_at(site)->after ? "after" : "before");
            CHECK(end >= 0);
            hit += end == 1;
            value++;
            if (end == 1) {
                CHECK(fbx_fabric_reap(f) >= 0);
                MUST(fbx_link_set(f, 0, 1));
                MUST(fbx_link_set(f, 1, 1));
                check_link(f, n);
                MUST(repertoire(f, shared.gva, value++, 1));
                check_link(f, n);
                /* A named buffer outlives its maker; give it back for it. */
                uint32_t cursor = 0;
                struct fbx_buffer b;
                while (!fbx_buffer_list(f, &cursor, &b))
                    if (!strncmp(b.name, "victim-", 7))
                        MUST(fbx_free(f, &b));
                for (uint32_t r = 0; r < 2; r++) {
                    struct fbx_region_info now;
                    MUST(fbx_region_info(f, r, &now));
                    if (now.allocated != before[r].allocated)
                        fprintf(stderr, "site %d (%s:%d): region %u has %llu bytes allocated, not %llu\n", site,
                                fbx_site_at(site)->file, fbx_site_at(site)->line, r, (unsigned long long)now.allocated,
                                (unsigned long long)before[r].allocated);
                    CHECK_EQ(now.allocated, before[r].allocated);
                }
                struct fbx_fabric_info info;
                MUST(fbx_fabric_info(f, &info));
                CHECK_EQ(info.session_count, 1);
                CHECK_EQ(info.requester_count, 1);
                CHECK_EQ(info.corrupt_resets, 0);
            }
        }
    printf("test_sites: %d sites, %d processes killed at one\n", sites, hit);
    CHECK(hit > sites / 3);

    /* One sets a link and dies, after it changed the values and before it told anybody: once it is buried all know. */
    hit = 0;
    for (int site = 0; !only && site < sites; site++)
        for (int nth = 1; nth <= 2; nth++) {
            struct fbx_link_info link;
            MUST(fbx_link_info(f, 1, &link));
            check_link(f, n); /* the survivor keeps the route from here on */
            pid_t child = fork();
            if (!child)
                victim("sites", site, nth, 0, link.delay_ps == FAST_PS ? SLOW_PS : FAST_PS);
            int end = reap_child(child, NULL, NULL, 0);
            CHECK(end >= 0);
            hit += end == 1;
            CHECK(fbx_fabric_reap(f) >= 0);
            check_link(f, n);
        }
    printf("test_sites: %d killed while they set a link\n", hit);
    fbx_node_free(n);
    fbx_fabric_free(f);

    /* The creator dies at each site: the name is free again, and what is left can be removed. */
    hit = 0;
    for (int site = 0; !only && site < sites; site++) {
        pid_t child = fork();
        if (!child)
            victim(NULL, site, 1, 0, 0);
        int end = reap_child(child, NULL, NULL, 0);
        CHECK(end >= 0);
        if (end != 1)
            continue;
        hit++;
        CHECK(fbx_fabric_reclaim(test_dir(), "born") >= 0);
        fbx_fabric *again;
        MUST(test_fabric("born", FBX_AUTO_WINDOWS | FBX_TIMING | FBX_NO_SERVICE, 1000, &again));
        fbx_fabric_free(again);
    }
    printf("test_sites: %d creators killed\n", hit);
    sleep(2); /* a half-made fabric is let alone for a moment */
    CHECK(fbx_fabric_prune(test_dir()) >= 0);
    CHECK_EQ(test_leftovers(), 0);
    return check_report();
}
#endif
