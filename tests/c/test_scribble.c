/* SPDX-License-Identifier: Apache-2.0
 *
 * A peer that writes garbage into the shared control words, anywhere and at any time, may make operations fail or wait
 * for their deadlines; it must never crash another process. */
#include "fabric.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

static uint64_t state;
static uint64_t random64(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* All that a process does, whatever it answers. */
static void work(double until)
{
    fbx_fabric *f;
    fbx_node *n, *m = NULL;
    if (fbx_fabric_open(test_dir(), "scribble", &f))
        _exit(0);
    if (fbx_node_attach(f, "host1", FBX_CLIENT, &n))
        _exit(0);
    while (seconds() < until) {
        struct fbx_buffer b, c;
        uint64_t old, words[128] = {1}, size = sizeof words;
        struct fbx_fabric_info fi;
        struct fbx_node_info ni;
        struct fbx_link_info li;
        struct fbx_region_info ri;
        struct fbx_window_info wi;
        struct fbx_fidelity fid;
        uint32_t cursor = 0;
        uint64_t gva = (1ull << 40) + (random64() % 8192) * 8;
        int named = random64() % 2;
        if (!fbx_alloc(n, (uint32_t)(random64() % 2), 1 + random64() % 100000, 64, named ? "named" : NULL, &b)) {
            fbx_buffer_find(f, "named", &c);
            fbx_buffer_list(f, &cursor, &c);
            fbx_write(n, b.gva, words, b.bytes < sizeof words ? b.bytes : sizeof words);
            fbx_free(f, &b);
        }
        for (int i = 0; i < 20; i++) {
            fbx_store(n, gva, 8, random64());
            fbx_load(n, gva, 8, &old);
            fbx_fetch_add(n, gva, 8, 1, &old);
            fbx_write(n, gva, words, 1000);
        }
        fbx_flush(n, UINT32_MAX, 0);
        fbx_put(f, "key", words, random64() % sizeof words);
        fbx_get(f, "key", words, &size);
        fbx_fabric_info(f, &fi);
        fbx_node_info(f, 0, &ni);
        fbx_link_info(f, 0, &li);
        fbx_region_info(f, 0, &ri);
        fbx_mw_info(f, 1, 3, &wi);
        fbx_fidelity(f, FBX_LOAD, &fid);
        fbx_mw_set_trans(f, 1, 70, 0, 0, 1u << 20, FBX_PERM_RW, FBX_UNCACHED);
        fbx_mw_clear_trans(f, 1, 70);
        fbx_fabric_reap(f);
        if (!m)
            fbx_node_attach(f, "host0", FBX_ANY, &m);
        else {
            fbx_node_free(m);
            m = NULL;
        }
    }
    _exit(0);
}

int main(void)
{
    const char *seeds = getenv("SCRIBBLE_SEEDS");
    for (uint64_t seed = 1; seed <= (seeds ? strtoull(seeds, NULL, 10) : 8); seed++) {
        fbx_fabric *f;
        fbx_node *n;
        uint64_t old;
        state = seed * 0x9E3779B97F4A7C15ull;
        /* A scribbled fabric cannot be taken down in order: it is persistent, and its files are removed. */
        MUST(test_fabric("scribble", FBX_AUTO_WINDOWS | FBX_TIMING | FBX_NO_SERVICE | FBX_PERSISTENT, 1000, &f));
        MUST(fbx_node_attach(f, "host0", FBX_OWNER, &n));
        MUST(fbx_fetch_add(n, 1ull << 40, 8, 1, &old));
        char path[128];
        snprintf(path, sizeof path, "%s/fabrex@%u@scribble", test_dir(), (unsigned)getuid());
        int fd = open(path, O_RDWR);
        struct stat file;
        CHECK(fd >= 0 && !fstat(fd, &file));
        uint8_t *bytes = mmap(NULL, (size_t)file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        CHECK(bytes != MAP_FAILED);
        double until = seconds() + 0.3;
        pid_t child = fork();
        if (!child)
            work(until);
        usleep(20000);
        /* Data extents of the sparse file: where anything is. */
        off_t extents[64][2];
        int count = 0, status = 0;
        for (off_t at = 0; count < 64 && (at = lseek(fd, at, SEEK_DATA)) >= 0;) {
            off_t end = lseek(fd, at, SEEK_HOLE);
            extents[count][0] = at;
            extents[count++][1] = end;
            at = end;
        }
        while (seconds() < until) {
            int e = (int)(random64() % (uint64_t)count);
            uint64_t at = (uint64_t)extents[e][0] + random64() % (uint64_t)(extents[e][1] - extents[e][0]);
            uint64_t value = random64() >> (random64() % 64);
            if (random64() % 4 == 0)
                value = UINT64_MAX;
            memcpy(bytes + (at & ~7ull), &value, 8);
            if (random64() % 8 == 0)
                usleep(20);
        }
        /* Locks that read as held by the living time out after seconds, each; that is a wait, not a hang. */
        double patience = seconds() + 60;
        pid_t got = 0;
        while (!(got = waitpid(child, &status, WNOHANG)) && seconds() < patience)
            usleep(1000);
        if (!got) {
            kill(child, SIGKILL);
            waitpid(child, &status, 0);
            fprintf(stderr, "seed %llu: still waiting after a minute\n", (unsigned long long)seed);
        }
        CHECK(got == child);
        if (got && WIFSIGNALED(status))
            fprintf(stderr, "seed %llu: the process died of signal %d\n", (unsigned long long)seed, WTERMSIG(status));
        CHECK(!got || !WIFSIGNALED(status));
        munmap(bytes, (size_t)file.st_size);
        close(fd);
        /* Our own handle must survive its closing as well. */
        fbx_node_free(n);
        fbx_fabric_free(f);
        char command[256];
        snprintf(command, sizeof command, "rm -f %s/fabrex@*", test_dir());
        CHECK(!system(command));
    }
    CHECK_EQ(test_leftovers(), 0);
    return check_report();
}
