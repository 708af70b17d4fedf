/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes as a peer that is admitted may send them: to a gateway, behind a good greeting, as frames with mutated fields or as they
 * come. It must answer or cut the connection, and neither crash nor grow. Run with FRAMES=N it sends N frames of its own making
 * and says what became of them. */
#include "../c/fabric.h"
#include "wire.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

static fbx_fabric *fabric;
static char directory[128];
static uint64_t frames_sent, connections, taken; /* taken: the last sequence that the session behind the greeting has had */

static void make(void)
{
    static const char *const names[2] = {"m0", "m1"};
    struct fbx_config_node nodes[3] = {{.name = "host0", .kind = FBX_HOST}, {.name = "host1", .kind = FBX_HOST, .machine = 1},
                                       {.name = "sw0", .kind = FBX_SWITCH}};
    struct fbx_config_region regions[2] = {{.node = 0, .tier = "dram", .bytes = 1u << 20}, {.node = 1, .tier = "dram", .bytes = 1u << 20}};
    struct fbx_config_link links[2];
    memset(links, 0, sizeof links);
    for (uint32_t i = 0; i < 2; i++)
        links[i] = (struct fbx_config_link){.name = i ? "l1" : "l0", .node_a = i, .node_b = 2, .gen = 4, .lanes = 16, .mps = 256,
                                            .mrrs = 512, .rcb = 64, .delay_ps = 5000, .home = i};
    snprintf(directory, sizeof directory, "%s", test_dir());
    struct fbx_config config = {.name = "frames", .directory = directory, .flags = FBX_AUTO_WINDOWS | (getenv("TIMED") ? FBX_TIMING : 0),
                                .node_count = 3, .region_count = 2, .link_count = 2, .nodes = nodes, .regions = regions, .links = links,
                                .machine_count = 2, .machine_names = names, .fabric_id = 77};
    if (fbx_fabric_create(&config, &fabric) || fbx_gateway_start(fabric))
        abort();
}

static void leave(void)
{
    fbx_fabric_free(fabric);
    test_leftovers();
}

/* Send all of it, reading what comes back and throwing it away, until the other side has read it or has had enough. */
static void pump(int fd, const uint8_t *data, size_t size)
{
    static uint8_t sink[65536];
    size_t at = 0;
    while (at < size) {
        struct pollfd wait = {fd, POLLIN | POLLOUT, 0};
        if (poll(&wait, 1, 2000) <= 0)
            return;
        if (wait.revents & POLLIN && recv(fd, sink, sizeof sink, MSG_DONTWAIT) == 0)
            return;
        if (wait.revents & (POLLERR | POLLHUP))
            return;
        if (wait.revents & POLLOUT) {
            ssize_t sent = send(fd, data + at, size - at, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (sent < 0)
                return;
            at += (size_t)sent;
        }
    }
}

/* Every fourth goes on with the session of the connection before it, which may have ended meanwhile. */
static int greeted(void)
{
    static uint64_t session;
    int pair[2], bytes = 1 << 20;
    uint8_t hello[FBXW_HEADER + FBXW_HELLO_BYTES], said[FBXW_HEADER];
    struct fbxw_hello h = {.fabric = 77, .machine = 1, .node = connections % 5 ? 1 : UINT32_MAX, .layout = FBXW_VERSION,
                           .resumed = connections % 4 == 3};
    struct fbxw_frame w = {.kind = FBXW_HELLO, .payload = FBXW_HELLO_BYTES};
    connections++;
    session += !h.resumed;
    memcpy(h.session, &session, sizeof session);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        abort();
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    fbx_gateway_adopt(fabric, pair[1], 1);
    fbxw_encode(hello, &w);
    fbxw_encode_hello(hello + FBXW_HEADER, &h);
    pump(pair[0], hello, sizeof hello);
    struct pollfd wait = {pair[0], POLLIN, 0};
    taken = poll(&wait, 1, 2000) > 0 && recv(pair[0], said, sizeof said, 0) == sizeof said && !fbxw_decode(said, &w) ? w.value : 0;
    return pair[0];
}

/* Numbers that are worth trying. */
static uint64_t odd(uint64_t r)
{
    static const uint64_t list[] = {0, 1, 7, 8, 64, 65, 4095, 4096, 65535, 65536, 65537, 1u << 20, UINT32_MAX, UINT64_MAX, 1ull << 63,
                                    1ull << 40, (1ull << 40) + 64, (1ull << 40) + (1u << 20) - 8, 2ull << 40, 3ull << 40, 77};
    return list[r % (sizeof list / sizeof *list)];
}

/* A stream of frames from numbers: mostly right, so that they get past the first look, and wrong in one place or another. */
static size_t compose(uint8_t *out, size_t room, uint64_t count, uint64_t (*next)(void *), void *state)
{
    static const uint8_t kinds[] = {FBXW_STORE, FBXW_WRITE, FBXW_REGISTER, FBXW_LOAD, FBXW_READ, FBXW_FETCH_ADD, FBXW_SWAP, FBXW_CAS, FBXW_FLUSH,
                                    FBXW_SAMPLE, FBXW_ERRAND, FBXW_ACK, FBXW_LOAD, FBXW_STORE};
    size_t used = 0;
    uint64_t sequence = taken;
    for (uint64_t i = 0; i <= count; i++) {
        uint64_t r = next(state);
        if (i == count && (r % 64 == 0 || connections % 4 == 3))
            break; /* the next connection goes on with the session */
        struct fbxw_frame w = {.kind = i == count ? FBXW_BYE : 0};
        if (i < count)
            w.kind = r % 64 ? kinds[(r >> 8) % sizeof kinds] : (uint8_t)(r >> 16);
        w.address = r >> 20 & 7 ? (1ull << 40) + (next(state) & 0xfffff) : odd(next(state));
        if (r >> 23 & 3)
            w.address &= ~63ull;
        w.length = r >> 25 & 7 ? 1u << (next(state) & 7) : (uint32_t)odd(next(state));
        w.value = odd(next(state) >> 3);
        w.aux = r >> 28 & 3 ? 0 : (uint32_t)odd(next(state));
        w.what = w.kind == FBXW_ERRAND ? (uint16_t)(next(state) % (FBXW_ERRANDS + 2)) : (uint16_t)(next(state) & 7);
        w.attr = (uint8_t)(r >> 30);
        w.tc = (uint8_t)(r >> 38);
        w.ahead_ps = r >> 46 & 3 ? (int64_t)(next(state) & 0xfffff) - 0x80000 : (int64_t)odd(next(state));
        w.ticket = (uint32_t)(r >> 48);
        w.payload = w.kind == FBXW_CAS ? 32 : w.kind == FBXW_WRITE || w.kind == FBXW_ERRAND ? (uint32_t)(next(state) & 1023) : w.length > 8 && w.kind == FBXW_STORE && w.length <= 64 ? w.length : 0;
        w.sequence = w.kind == FBXW_ACK ? 0 : ++sequence;
        if (r >> 52 == 1)
            w.sequence = odd(next(state)); /* ends the session */
        if (used + FBXW_HEADER + w.payload > room)
            break;
        fbxw_encode(out + used, &w);
        for (uint32_t k = 0; k < w.payload; k++)
            out[used + FBXW_HEADER + k] = (uint8_t)(next(state) >> (k & 31));
        used += FBXW_HEADER + w.payload;
        frames_sent++;
    }
    return used;
}

struct bytes {
    const uint8_t *data;
    size_t size, at;
};
static uint64_t from_bytes(void *state)
{
    struct bytes *b = state;
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v = v << 8 | (b->size ? b->data[b->at++ % b->size] : 0);
    return v;
}
static uint64_t from_seed(void *state)
{
    uint64_t *s = state, z = *s += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

static uint64_t resident(void)
{
    uint64_t pages = 0, skipped;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%llu %llu", (unsigned long long *)&skipped, (unsigned long long *)&pages) != 2)
        pages = 0;
    if (f)
        fclose(f);
    return pages * 4096;
}

/* Nothing more comes; read until the gateway has taken all of it, or cut us off. */
static void drain(int fd)
{
    static uint8_t sink[65536];
    struct pollfd wait = {fd, POLLIN, 0};
    shutdown(fd, SHUT_WR);
    while (poll(&wait, 1, 5000) > 0 && recv(fd, sink, sizeof sink, MSG_DONTWAIT) > 0)
        ;
    close(fd);
}

/* FRAMES=N: so many, from SEED; says how it went. */
static void campaign(uint64_t wanted, uint64_t seed)
{
    static uint8_t buffer[1 << 20];
    uint64_t early = 0;
    struct timespec nap = {0, 1000000};
    while (frames_sent < wanted) {
        int fd = greeted();
        size_t size = compose(buffer, sizeof buffer, 1 + from_seed(&seed) % 2000, from_seed, &seed);
        if (from_seed(&seed) % 7 == 0)
            for (uint64_t k = from_seed(&seed) % 20; k; k--)
                buffer[from_seed(&seed) % size] = (uint8_t)from_seed(&seed);
        pump(fd, buffer, size);
        drain(fd);
        struct fbx_gateway_info info;
        for (int i = 0; i < 10000 && !fbx_gateway_info(fabric, &info) && info.sessions > 500; i++)
            nanosleep(&nap, NULL); /* sessions without a connection are kept for a while */
        if (!early && frames_sent > wanted / 4)
            early = resident();
    }
    struct fbx_gateway_info info;
    fbx_gateway_info(fabric, &info);
    printf("frames %llu connections %llu resumed %llu taken %llu garbage %llu grown %lld\n", (unsigned long long)frames_sent,
           (unsigned long long)connections, (unsigned long long)info.resumed, (unsigned long long)info.frames,
           (unsigned long long)info.garbage, (long long)(resident() - early));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t buffer[1 << 20];
    if (!fabric) {
        make();
        atexit(leave);
        if (getenv("FRAMES")) {
            campaign(strtoull(getenv("FRAMES"), NULL, 10), getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : 1);
            exit(0);
        }
    }
    int fd = greeted();
    if (size && data[0] & 1) {
        struct bytes b = {data, size, 1};
        pump(fd, buffer, compose(buffer, sizeof buffer, size / 8 + 1, from_bytes, &b));
    } else {
        pump(fd, data, size);
    }
    drain(fd);
    return 0;
}
