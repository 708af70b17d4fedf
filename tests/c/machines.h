/* SPDX-License-Identifier: Apache-2.0
 *
 * machines.h - a fabric on several machines, all of them in this process: host0 … hostN-1 around sw0, one machine each, with a
 * directory of its own. A thread stands for the agents: it makes connections over loopback TCP and admits them. */
#ifndef FBX_TESTS_MACHINES_H
#define FBX_TESTS_MACHINES_H

#include "fabric.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define BED_MACHINES 4

struct bed {
    uint32_t count;
    fbx_fabric *fabric[BED_MACHINES];
    char directory[BED_MACHINES][128];
    int agent[BED_MACHINES], listener;
    pthread_t thread;
    int stop, refuse; /* refuse: no new connections */
    pthread_mutex_t mutex;
    int last[64], lasts; /* descriptors of the requesters' ends, duplicated, to break them */
};

/* A connected pair over loopback TCP, as between two machines. */
static int bed_pair(struct bed *b, int pair[2])
{
    struct sockaddr_in at;
    socklen_t length = sizeof at;
    if (getsockname(b->listener, (struct sockaddr *)&at, &length))
        return -1;
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(pair[0], (struct sockaddr *)&at, sizeof at))
        return -1;
    pair[1] = accept4(b->listener, NULL, NULL, SOCK_CLOEXEC);
    return pair[1] < 0 ? -1 : 0;
}

/* A change of the fabric: one thread makes them, so they have an order. A window's is its home's. */
static void bed_change(struct bed *b, int fd, const uint8_t *request)
{
    static uint64_t epoch;
    uint8_t answer[16 + 200] = {0};
    struct fbx_change c = {0};
    int status = 0, made;
    memcpy(&c.what, request + 4, 4);
    memcpy(&c.index, request + 8, 4);
    memcpy(&c.keys, request + 12, 4);
    memcpy(c.value, request + 16, sizeof c.value);
    epoch++;
    for (uint32_t i = 0; i < b->count; i++) {
        const int window = c.what == FBX_CHANGE_WINDOW || c.what == FBX_CHANGE_WINDOW_CLEAR;
        int failed = window && c.index != i ? 0 : fbx_change_make(b->fabric[i], &c, &made);
        if (failed)
            snprintf((char *)answer + 16, 200, "%.199s", fbx_last_error()->text);
        status = status ? status : failed;
        fbx_machine_epoch(b->fabric[i], i, epoch);
    }
    memcpy(answer, &status, 4);
    memcpy(answer + 8, &epoch, 8);
    send(fd, answer, 16 + strlen((const char *)answer + 16), MSG_NOSIGNAL);
}

static void bed_answer(struct bed *b, uint32_t from, int fd)
{
    uint8_t request[256];
    int pair[2];
    ssize_t got = recv(fd, request, sizeof request, 0);
    if (got == 144 && !memcmp(request, "FXCH", 4)) {
        bed_change(b, fd, request);
        return;
    }
    if (got != 8)
        return;
    uint32_t to = request[4];
    if (__atomic_load_n(&b->refuse, __ATOMIC_SEQ_CST) || to >= b->count || bed_pair(b, pair))
        return;
    fbx_gateway_adopt(b->fabric[to], pair[1], from);
    pthread_mutex_lock(&b->mutex);
    if (b->lasts < 64)
        b->last[b->lasts++] = dup(pair[0]);
    pthread_mutex_unlock(&b->mutex);
    uint8_t reply[4] = {0};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec part = {reply, 4};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &pair[0], sizeof(int));
    sendmsg(fd, &message, MSG_NOSIGNAL);
    close(pair[0]);
}

static void *bed_agents(void *argument)
{
    struct bed *b = argument;
    struct pollfd wait[BED_MACHINES];
    while (!__atomic_load_n(&b->stop, __ATOMIC_SEQ_CST)) {
        for (uint32_t i = 0; i < b->count; i++)
            wait[i] = (struct pollfd){b->agent[i], POLLIN, 0};
        poll(wait, b->count, 20);
        for (uint32_t i = 0; i < b->count; i++)
            if (wait[i].revents) {
                int fd = accept4(b->agent[i], NULL, NULL, SOCK_CLOEXEC);
                if (fd >= 0) {
                    bed_answer(b, i, fd);
                    close(fd);
                }
            }
    }
    return NULL;
}

/* Break every connection that was made so far; requesters make new ones. */
static void bed_break(struct bed *b)
{
    pthread_mutex_lock(&b->mutex);
    for (int i = 0; i < b->lasts; i++) {
        shutdown(b->last[i], SHUT_RDWR);
        close(b->last[i]);
    }
    b->lasts = 0;
    pthread_mutex_unlock(&b->mutex);
}

static void bed_make(struct bed *b, uint32_t count, uint32_t flags, uint32_t ordering)
{
    static const char *const hosts[BED_MACHINES] = {"host0", "host1", "host2", "host3"};
    static const char *const names[BED_MACHINES] = {"m0", "m1", "m2", "m3"};
    static const char *const lines[BED_MACHINES] = {"link0", "link1", "link2", "link3"};
    struct fbx_config_node nodes[BED_MACHINES + 1];
    struct fbx_config_region regions[BED_MACHINES];
    struct fbx_config_link links[BED_MACHINES];
    struct fbx_config config;
    memset(b, 0, sizeof *b);
    pthread_mutex_init(&b->mutex, NULL);
    memset(nodes, 0, sizeof nodes);
    memset(regions, 0, sizeof regions);
    memset(links, 0, sizeof links);
    b->count = count;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    b->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(!bind(b->listener, (struct sockaddr *)&any, sizeof any) && !listen(b->listener, 16));
    for (uint32_t i = 0; i < count; i++) {
        nodes[i] = (struct fbx_config_node){.name = hosts[i], .kind = FBX_HOST, .machine = i};
        regions[i] = (struct fbx_config_region){.node = i, .tier = "dram", .bytes = 64u << 20};
        links[i] = (struct fbx_config_link){.name = lines[i], .node_a = i, .node_b = count, .gen = 4, .lanes = 16, .mps = 256,
                                            .mrrs = 512, .rcb = 64, .delay_ps = 5000, .home = i};
    }
    nodes[count] = (struct fbx_config_node){.name = "sw0", .kind = FBX_SWITCH};
    for (uint32_t i = 0; i < count; i++) {
        memset(&config, 0, sizeof config);
        snprintf(b->directory[i], sizeof b->directory[i], "%s/%s", test_dir(), names[i]);
        mkdir(b->directory[i], 0700);
        config.name = "bed";
        config.directory = b->directory[i];
        config.flags = flags;
        config.ordering = ordering;
        config.node_count = count + 1;
        config.region_count = config.link_count = count;
        config.nodes = nodes;
        config.regions = regions;
        config.links = links;
        config.machine = i;
        config.machine_count = count;
        config.machine_names = names;
        config.fabric_id = 0x1234567;
        MUST(fbx_fabric_create(&config, &b->fabric[i]));
        MUST(fbx_gateway_start(b->fabric[i]));
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        MUST(fbx_agent_path(b->fabric[i], at.sun_path, sizeof at.sun_path));
        b->agent[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        CHECK(!bind(b->agent[i], (struct sockaddr *)&at, sizeof at) && !listen(b->agent[i], 16));
    }
    pthread_create(&b->thread, NULL, bed_agents, b);
}

static void bed_end(struct bed *b)
{
    for (uint32_t i = 0; i < b->count; i++)
        fbx_fabric_close(b->fabric[i]);
    __atomic_store_n(&b->stop, 1, __ATOMIC_SEQ_CST);
    pthread_join(b->thread, NULL);
    bed_break(b);
    for (uint32_t i = 0; i < b->count; i++) {
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        fbx_agent_path(b->fabric[i], at.sun_path, sizeof at.sun_path);
        unlink(at.sun_path);
        close(b->agent[i]);
        fbx_fabric_free(b->fabric[i]);
        CHECK(!rmdir(b->directory[i]));
    }
    close(b->listener);
}

static inline uint64_t bed_gva(uint32_t host, uint64_t offset) { return ((uint64_t)(host + 1) << 40) + offset; }

#endif
