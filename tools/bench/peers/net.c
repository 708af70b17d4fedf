/* SPDX-License-Identifier: Apache-2.0
 *
 * Operations between two machines over loopback TCP, beside a bare TCP connection between the same two processes: what the
 * transport adds to the network. Without injected time. A round measures each once; the driver repeats it. */
#define _GNU_SOURCE
#include "fabrex.h"
#include "measure.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define OUTSTANDING 64u

static void die(const char *what)
{
    const struct fbx_error *e = fbx_last_error();
    fprintf(stderr, "%s: %s\n", what, e && e->text[0] ? e->text : "failed");
    exit(1);
}

static void all(int fd, void *at, size_t bytes, int out)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = out ? send(fd, (char *)at + done, bytes - done, MSG_NOSIGNAL) : recv(fd, (char *)at + done, bytes - done, 0);
        if (n <= 0)
            exit(out ? 1 : 0);
        done += (size_t)n;
    }
}

static fbx_fabric *make(const char *directory, uint32_t machine, uint64_t id)
{
    static const char *const names[2] = {"m0", "m1"};
    struct fbx_config_node nodes[3] = {{.name = "host0", .kind = FBX_HOST}, {.name = "host1", .kind = FBX_HOST, .machine = 1},
                                       {.name = "sw0", .kind = FBX_SWITCH}};
    struct fbx_config_region regions[2] = {{.node = 0, .tier = "dram", .bytes = 256u << 20}, {.node = 1, .tier = "dram", .bytes = 256u << 20}};
    struct fbx_config_link links[2];
    memset(links, 0, sizeof links);
    for (uint32_t i = 0; i < 2; i++)
        links[i] = (struct fbx_config_link){.name = i ? "l1" : "l0", .node_a = i, .node_b = 2, .gen = 4, .lanes = 16, .mps = 256,
                                            .mrrs = 512, .rcb = 64, .delay_ps = 5000, .home = i};
    struct fbx_config config = {.name = "net", .directory = directory, .flags = FBX_AUTO_WINDOWS, .node_count = 3, .region_count = 2,
                                .link_count = 2, .nodes = nodes, .regions = regions, .links = links, .machine = machine,
                                .machine_count = 2, .machine_names = names, .fabric_id = id};
    fbx_fabric *f;
    if (fbx_fabric_create(&config, &f))
        die("create");
    return f;
}

static int listener(struct sockaddr_in *at)
{
    socklen_t length = sizeof *at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)at, sizeof *at) || listen(fd, 8) || getsockname(fd, (struct sockaddr *)at, &length))
        die("listen");
    return fd;
}

static int dial(const struct sockaddr_in *at)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (const struct sockaddr *)at, sizeof *at))
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* The other machine: its gateway, and the bare connection's other end. One byte says what a connection is for. */
static void other(const char *directory, uint64_t id, int doors)
{
    static char block[1 << 20];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    fbx_fabric *f = make(directory, 1, id);
    if (fbx_gateway_start(f))
        die("gateway");
    for (;;) {
        int one = 1, fd = accept4(doors, NULL, NULL, SOCK_CLOEXEC);
        char what;
        all(fd, &what, 1, 0);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (what == 'g') {
            fbx_gateway_adopt(f, fd, 0);
        } else if (what == 'q') {
            break;
        } else if (!fork()) {
            uint64_t count;
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;) {
                if (what == 'p') { /* ping-pong of 8 bytes */
                    all(fd, block, 8, 0);
                    all(fd, block, 8, 1);
                } else { /* stream: take so many bytes, say so */
                    all(fd, &count, 8, 0);
                    for (uint64_t left = count; left;) {
                        size_t step = left < 65536 ? left : 65536;
                        all(fd, block, step, 0);
                        left -= step;
                    }
                    all(fd, block, 8, 1);
                }
            }
        } else {
            close(fd);
        }
    }
    fbx_fabric_free(f);
    _exit(0);
}

struct agent {
    int fd;
    struct sockaddr_in there;
};

static void *agent(void *argument)
{
    struct agent *a = argument;
    for (;;) {
        int fd = accept4(a->fd, NULL, NULL, SOCK_CLOEXEC);
        char request[8], reply[4] = {0}, g = 'g';
        if (fd < 0 || recv(fd, request, 8, 0) != 8)
            return NULL;
        int made = dial(&a->there);
        all(made, &g, 1, 1);
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
        memcpy(CMSG_DATA(c), &made, sizeof(int));
        sendmsg(fd, &message, 0);
        close(made);
        close(fd);
    }
}

int main(int argc, char **argv)
{
    const int rounds = argc > 1 ? atoi(argv[1]) : 5;
    const uint64_t loads = argc > 2 ? strtoull(argv[2], NULL, 10) : 4000, bulk = argc > 3 ? strtoull(argv[3], NULL, 10) : 64u << 20;
    char place[64] = "/dev/shm/fabrex-bench-XXXXXX", directory[2][80];
    if (!mkdtemp(place))
        die("mkdtemp");
    for (int i = 0; i < 2; i++) {
        snprintf(directory[i], sizeof directory[i], "%s/m%d", place, i);
        mkdir(directory[i], 0700);
    }
    struct agent a;
    const uint64_t id = (uint64_t)getpid() << 20 | 1;
    int doors = listener(&a.there);
    pid_t child = fork();
    if (!child)
        other(directory[1], id, doors);
    fbx_fabric *f = make(directory[0], 0, id);
    fbx_node *n;
    if (fbx_node_attach(f, "host0", FBX_OWNER, &n))
        die("attach");
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    fbx_agent_path(f, at.sun_path, sizeof at.sun_path);
    a.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (bind(a.fd, (struct sockaddr *)&at, sizeof at) || listen(a.fd, 8))
        die("agent");
    pthread_t thread;
    pthread_create(&thread, NULL, agent, &a);

    char p = 'p', s = 's', q = 'q';
    int ping = dial(&a.there), stream = dial(&a.there);
    all(ping, &p, 1, 1);
    all(stream, &s, 1, 1);
    const uint64_t gva = (2ull << 40) + 64, block = (2ull << 40) + (1u << 20);
    uint64_t value = 0;
    char *data = malloc(bulk);
    memset(data, 7, bulk);
    static struct fbx_op op[OUTSTANDING];
    if (fbx_load(n, gva, 8, &value) || fbx_write(n, block, data, bulk) || fbx_read(n, block, data, bulk))
        die("first operations");
    for (int round = 0; round < rounds; round++) {
        MEASURE("pingpong_bare", 8, loads, (all(ping, &value, 8, 1), all(ping, &value, 8, 0)));
        MEASURE("load", 8, loads, if (fbx_load(n, gva, 8, &value)) die("load"));
        MEASURE("fetch_add", 8, loads, if (fbx_fetch_add(n, gva, 8, 1, &value)) die("fetch_add"));
        uint64_t begin = now_ns(), total = loads * 16, started = 0, ended = 0;
        for (; started < OUTSTANDING; started++) {
            op[started] = (struct fbx_op){.kind = FBX_LOAD, .gva = gva, .bytes = 8};
            fbx_op_begin(n, &op[started]);
        }
        for (; ended < total; ended++) {
            struct fbx_op *o = &op[ended % OUTSTANDING];
            while (fbx_op_wait(n, o, UINT64_MAX) == FBX_E_AGAIN)
                ;
            if (o->status)
                die("outstanding");
            if (started < total) {
                o->kind = FBX_LOAD;
                fbx_op_begin(n, o);
                started++;
            }
        }
        say("load_64_outstanding", 8, (double)(now_ns() - begin) / (double)total);
        begin = now_ns();
        for (uint64_t i = 0; i < loads * 16; i++)
            if (fbx_store(n, gva, 8, i))
                die("store");
        if (fbx_flush(n, 1, 0))
            die("flush");
        say("store_flushed_at_the_end", 8, (double)(now_ns() - begin) / (double)(loads * 16));
        for (int again = 0; again < 3; again++) {
            begin = now_ns();
            uint64_t count = bulk;
            all(stream, &count, 8, 1);
            for (uint64_t done = 0; done < bulk; done += 65536)
                all(stream, data + done, bulk - done < 65536 ? bulk - done : 65536, 1);
            all(stream, &value, 8, 0);
            say("stream_bare", bulk, (double)(now_ns() - begin));
            begin = now_ns();
            if (fbx_write(n, block, data, bulk) || fbx_flush(n, 1, 0))
                die("write");
            say("write", bulk, (double)(now_ns() - begin));
            begin = now_ns();
            if (fbx_read(n, block, data, bulk))
                die("read");
            say("read", bulk, (double)(now_ns() - begin));
        }
    }
    int quit = dial(&a.there);
    fbx_node_free(n);
    all(quit, &q, 1, 1);
    recv(quit, &q, 1, 0);
    unlink(at.sun_path);
    fbx_fabric_free(f);
    kill(child, SIGKILL);
    for (int i = 0; i < 2; i++)
        rmdir(directory[i]);
    rmdir(place);
    return 0;
}
