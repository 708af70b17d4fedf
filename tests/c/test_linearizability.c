/* SPDX-License-Identifier: Apache-2.0
 *
 * Four processes change and read the same registers of one NTB device at random, two of them its own host's, two from other
 * hosts; every operation is recorded with its interval, and the history of each register must be one that a register
 * which does one thing at a time could have had (linear.h). A posted write takes effect between its issue and the end of the
 * flush, or of the round trip, that pushed it. Doorbells and masks are words of 64 bits here: a read that tears them, or that
 * mixes two changes, fits nowhere; neither does a message with another's sender.
 *
 * The test must be able to fail. So it also runs with processes that break the rules on purpose: that change a register
 * without its lock, that read half a word twice, that call a posted write visible when it was issued. Each must be found out.
 *
 * LINEARIZABILITY_OPERATIONS=N: so many operations in all instead of the default. Prints one line of JSON. */
#include "fabric.h"
#include "linear.h"
#include "ntb.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

enum { P = LINEAR_PROCESSES, PIECE = 8192, SPADS = 8, MESSAGES = 4, BATCH = 3 };
enum { DOORBELL, MASK, FIRST_SPAD, FIRST_MESSAGE = FIRST_SPAD + SPADS, OBJECTS = FIRST_MESSAGE + MESSAGES };
enum breakage { HONEST, UNLOCKED, TORN, UNFLUSHED, BREAKAGES };
static const char *const breakages[] = {"none", "no lock", "halves", "no flush"};

struct shared {
    uint32_t go, finished, failed, stop; /* pieces that may begin; processes times pieces that have ended */
    uint32_t count[P];
    struct linear_op ops[P][PIECE + 64];
};
static struct shared *shared;

/* A processor's stores leave it some time after the instruction, and its loads may be done before one that reads the clock:
 * without the barriers an interval could end before what is in it has happened. */
static uint64_t now_ns(void)
{
    struct timespec t;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    clock_gettime(CLOCK_MONOTONIC, &t);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

struct worker {
    fbx_fabric *fabric;
    fbx_node *node;
    uint64_t seed, inbit;
    uint32_t process, pidx; /* what the registers' host is to this one */
    uint32_t count, open; /* the last `open` ones are posted and not pushed yet */
    int wrong;
    enum breakage broken;
};

static void pushed(struct worker *w, uint64_t end)
{
    for (; w->open; w->open--)
        shared->ops[w->process][w->count - w->open].end = end;
}

static void flush(struct worker *w)
{
    w->wrong |= fbx_flush(w->node, 1, 0);
    pushed(w, now_ns());
}

static void far_side(struct worker *w, struct linear_op *op, uint64_t some, uint32_t k)
{
    const uint64_t dice = next_random(&w->seed) % 16;
    int posted = 1;
    uint32_t word = 0;
    if (dice < 4) {
        op->kind = dice & 1 ? LINEAR_SET : LINEAR_CLEAR;
        op->object = dice < 2 ? DOORBELL : MASK;
        op->value = some;
        w->wrong |= dice == 0   ? fbx_peer_db_clear(w->node, w->pidx, some)
                    : dice == 1 ? fbx_peer_db_set(w->node, w->pidx, some)
                    : dice == 2 ? fbx_peer_db_clear_mask(w->node, w->pidx, some)
                                : fbx_peer_db_set_mask(w->node, w->pidx, some);
    } else if (dice < 7) {
        op->kind = LINEAR_WRITE;
        op->object = (uint16_t)(FIRST_SPAD + k % SPADS);
        op->value = (uint32_t)some;
        w->wrong |= fbx_peer_spad_write(w->node, w->pidx, k % SPADS, (uint32_t)some);
    } else if (dice < 11) {
        op->kind = LINEAR_SEND;
        op->object = (uint16_t)(FIRST_MESSAGE + k % MESSAGES);
        op->value = (uint64_t)w->process << 32 | (uint32_t)some; /* host1 calls its peers as this program numbers them */
        w->wrong |= fbx_peer_msg_write(w->node, w->pidx, k % MESSAGES, (uint32_t)some);
    } else {
        op->kind = LINEAR_READ;
        posted = 0;
        if (dice < 14) {
            op->object = (uint16_t)(FIRST_SPAD + k % SPADS);
            w->wrong |= fbx_peer_spad_read(w->node, w->pidx, k % SPADS, &word);
            op->value = word;
        } else {
            op->object = dice == 14 ? DOORBELL : MASK;
            w->wrong |= dice == 14 ? fbx_peer_db_read(w->node, w->pidx, &op->value) : fbx_peer_db_read_mask(w->node, w->pidx, &op->value);
        }
        op->end = now_ns();
        pushed(w, op->end); /* a read pushes what was posted before it */
    }
    w->count++;
    if (posted)
        w->open++;
    if (posted && w->broken == UNFLUSHED)
        pushed(w, now_ns());
    if (w->open >= BATCH || (w->open && next_random(&w->seed) % 3 == 0))
        flush(w);
}

/* A change of the doorbell by somebody who forgot the lock. */
static void change_unlocked(struct worker *w, int set, uint64_t bits)
{
    struct fbxl_ntb *d = fbxi_ntb_device(w->fabric, 1);
    struct fbxi_ntb_registers r = fbxi_ntb_read(d);
    r.db = set ? r.db | bits : r.db & ~bits;
    sched_yield();
    fbxi_ntb_put(d, &r);
}

static void near_side(struct worker *w, struct linear_op *op, uint64_t some, uint32_t k)
{
    const uint64_t dice = next_random(&w->seed) % 16;
    uint32_t word = 0, pidx = 0;
    uint64_t other = 0;
    op->value = some;
    if (dice < 4) {
        op->kind = dice & 1 ? LINEAR_SET : LINEAR_CLEAR;
        op->object = dice < 2 ? DOORBELL : MASK;
        if (w->broken == UNLOCKED && dice < 2 && w->process == 2)
            change_unlocked(w, dice == 1, some);
        else
            w->wrong |= dice == 0   ? fbx_db_clear(w->node, some)
                        : dice == 1 ? fbx_db_set(w->node, some)
                        : dice == 2 ? fbx_db_clear_mask(w->node, some)
                                    : fbx_db_set_mask(w->node, some);
    } else if (dice < 7) {
        op->kind = LINEAR_READ;
        op->object = dice < 6 ? DOORBELL : MASK;
        w->wrong |= dice < 6 ? fbx_db_read(w->node, &op->value) : fbx_db_read_mask(w->node, &op->value);
        if (w->broken == TORN && dice < 6) {
            sched_yield();
            w->wrong |= fbx_db_read(w->node, &other);
            op->value = (op->value & UINT32_MAX) | (other & ~(uint64_t)UINT32_MAX);
        }
    } else if (dice < 9) {
        op->kind = LINEAR_WRITE;
        op->object = (uint16_t)(FIRST_SPAD + k % SPADS);
        op->value = (uint32_t)some;
        w->wrong |= fbx_spad_write(w->node, k % SPADS, (uint32_t)some);
    } else if (dice < 11) {
        op->kind = LINEAR_READ;
        op->object = (uint16_t)(FIRST_SPAD + k % SPADS);
        w->wrong |= fbx_spad_read(w->node, k % SPADS, &word);
        op->value = word;
    } else {
        op->object = (uint16_t)(FIRST_MESSAGE + k % MESSAGES);
        op->kind = dice < 13 ? LINEAR_TAKE : dice < 14 ? LINEAR_STATUS : LINEAR_MESSAGE;
        if (op->kind == LINEAR_TAKE) {
            w->wrong |= fbx_msg_clear_sts(w->node, w->inbit << k % MESSAGES);
        } else if (op->kind == LINEAR_STATUS) {
            w->wrong |= fbx_msg_read_sts(w->node, &op->value);
            op->value = op->value / w->inbit >> k % MESSAGES & 1;
        } else {
            w->wrong |= fbx_msg_read(w->node, k % MESSAGES, &pidx, &word);
            op->value = (uint64_t)pidx << 32 | word;
        }
    }
    op->end = now_ns();
    w->count++;
}

static void work(uint32_t process, enum breakage broken, uint32_t pieces)
{
    struct worker w = {.process = process, .seed = 88172645463325252ull + 7919 * process, .broken = broken};
    w.wrong = fbx_fabric_open(test_dir(), "linear", &w.fabric);
    if (!w.wrong)
        w.wrong = fbx_node_attach(w.fabric, process == 0 ? "host0" : process == 1 ? "host2" : "host1",
                                  process == 3 ? FBX_CLIENT : FBX_OWNER, &w.node);
    w.pidx = process == 1;
    if (!w.wrong)
        w.wrong = fbx_msg_inbits(w.node, &w.inbit);
    w.inbit &= ~w.inbit + 1;
    for (uint32_t piece = 1; piece <= pieces && !w.wrong; piece++) {
        while (__atomic_load_n(&shared->go, __ATOMIC_ACQUIRE) < piece)
            usleep(20);
        if (__atomic_load_n(&shared->stop, __ATOMIC_ACQUIRE))
            break;
        w.count = 0;
        while (w.count < PIECE) {
            struct linear_op *op = &shared->ops[process][w.count];
            /* Bits from all over the word, few of them, so that a read says much. */
            const uint64_t some = 1ull << next_random(&w.seed) % 64 | 1ull << next_random(&w.seed) % 64;
            op->process = process;
            op->begin = now_ns();
            (process < 2 ? far_side : near_side)(&w, op, some, (uint32_t)(next_random(&w.seed) >> 40));
        }
        flush(&w);
        shared->count[process] = w.count;
        __atomic_add_fetch(&shared->finished, 1, __ATOMIC_RELEASE);
    }
    if (w.wrong) {
        fprintf(stderr, "process %u: %s\n", process, fbx_last_error()->text);
        __atomic_store_n(&shared->failed, 1, __ATOMIC_RELEASE);
    }
    if (w.node)
        fbx_node_free(w.node);
    if (w.fabric)
        fbx_fabric_free(w.fabric);
    _exit(w.wrong != 0);
}

/* Sort a piece by register and go on with each. */
static int decide(struct linear_object objects[OBJECTS], struct linear_op *culprit)
{
    static struct linear_op sorted[P][PIECE + 64];
    const struct linear_op *ops[OBJECTS][P];
    uint64_t counts[OBJECTS][P];
    for (uint32_t p = 0; p < P; p++) {
        uint64_t at = 0;
        for (uint32_t object = 0; object < OBJECTS; object++) {
            ops[object][p] = &sorted[p][at];
            for (uint32_t i = 0; i < shared->count[p]; i++)
                if (shared->ops[p][i].object == object)
                    sorted[p][at++] = shared->ops[p][i];
            counts[object][p] = (uint64_t)(&sorted[p][at] - ops[object][p]);
        }
    }
    for (uint32_t object = 0; object < OBJECTS; object++) {
        int answer = linear_check(&objects[object], ops[object], counts[object], culprit);
        if (answer)
            return answer;
    }
    return LINEAR_YES;
}

/* What happened to that register around an operation that fits nowhere. */
static void explain(const struct linear_op *culprit)
{
    static const char *const kinds[LINEAR_KINDS] = {"read", "write", "set", "clear", "send", "take", "status", "message"};
    fprintf(stderr, "register %u: an operation fits nowhere (*); process, begin and end in ns, operation, value:\n", culprit->object);
    for (uint32_t p = 0; p < P; p++)
        for (uint32_t i = 0; i < shared->count[p]; i++) {
            const struct linear_op *op = &shared->ops[p][i];
            if (op->object == culprit->object && op->end + 1000 >= culprit->begin && op->begin <= culprit->end)
                fprintf(stderr, "%s %u %8lld %8lld %-7s %016llx\n", memcmp(op, culprit, sizeof *op) ? " " : "*", p,
                        (long long)(op->begin - culprit->begin), (long long)(op->end - culprit->begin), kinds[op->kind],
                        (unsigned long long)op->value);
        }
}

static struct total {
    uint64_t operations, widest;
} total;

/* Has a process ended, in whatever way? It must not before we say so. */
static int somebody_ended(void)
{
    siginfo_t info = {0};
    return !waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid;
}

/* Returns whether the history is linearizable. */
static int history(uint32_t flags, uint64_t delay_ps, enum breakage broken, uint64_t operations)
{
    struct linear_object objects[OBJECTS];
    struct linear_op culprit = {0};
    const uint32_t pieces = (uint32_t)((operations + P * PIECE - 1) / (P * PIECE));
    fbx_fabric *fabric;
    pid_t children[P];
    int answer = LINEAR_YES;
    MUST(test_fabric("linear", flags | FBX_AUTO_WINDOWS | FBX_NO_SERVICE, delay_ps, &fabric));
    memset(shared, 0, sizeof *shared);
    for (uint32_t i = 0; i < OBJECTS; i++)
        linear_init(&objects[i], 0);
    fflush(NULL);
    for (uint32_t p = 0; p < P; p++)
        if (!(children[p] = fork()))
            work(p, broken, pieces);
    for (uint32_t piece = 1; piece <= pieces; piece++) {
        __atomic_store_n(&shared->go, piece, __ATOMIC_RELEASE);
        while (__atomic_load_n(&shared->finished, __ATOMIC_ACQUIRE) < piece * P && !(piece < pieces && somebody_ended()) &&
               !__atomic_load_n(&shared->failed, __ATOMIC_ACQUIRE))
            usleep(100);
        if (__atomic_load_n(&shared->finished, __ATOMIC_ACQUIRE) < piece * P) {
            __atomic_store_n(&shared->stop, 1, __ATOMIC_RELEASE);
            __atomic_store_n(&shared->go, pieces, __ATOMIC_RELEASE);
            break; /* its status says why */
        }
        for (uint32_t p = 0; p < P; p++)
            total.operations += shared->count[p];
        if (answer == LINEAR_YES && (answer = decide(objects, &culprit)) == LINEAR_NO && !broken)
            explain(&culprit);
        if (answer != LINEAR_YES && broken) { /* what we wanted to see */
            __atomic_store_n(&shared->stop, 1, __ATOMIC_RELEASE);
            __atomic_store_n(&shared->go, pieces, __ATOMIC_RELEASE);
            break;
        }
    }
    for (uint32_t p = 0; p < P; p++) {
        int status;
        CHECK(waitpid(children[p], &status, 0) == children[p]);
        CHECK_EQ(status, 0);
    }
    for (uint32_t i = 0; i < OBJECTS; i++) {
        total.widest = objects[i].widest > total.widest ? objects[i].widest : total.widest;
        linear_free(&objects[i]);
    }
    CHECK(answer != LINEAR_TOO_WIDE);
    fbx_fabric_free(fabric);
    return answer == LINEAR_YES;
}

/* ---- the checker itself -------------------------------------------------------------------------------------------- */

static int judge(const struct linear_op *list, uint32_t count)
{
    struct linear_object object;
    struct linear_op sorted[P][16], culprit;
    const struct linear_op *ops[P];
    uint64_t counts[P] = {0};
    for (uint32_t i = 0; i < count; i++)
        sorted[list[i].process][counts[list[i].process]++] = list[i];
    for (uint32_t p = 0; p < P; p++)
        ops[p] = sorted[p];
    linear_init(&object, 0);
    int answer = linear_check(&object, ops, counts, &culprit);
    linear_free(&object);
    return answer;
}

static void small_histories(void)
{
#define JUDGE(wanted, ...)                                                                                              \
    do {                                                                                                                \
        const struct linear_op list[] = {__VA_ARGS__};                                                                  \
        CHECK_EQ(judge(list, sizeof list / sizeof list[0]), wanted);                                                    \
    } while (0)
    /* begin, end, value, kind, object, process */
    JUDGE(LINEAR_YES, {1, 2, 5, LINEAR_WRITE, 0, 0}, {3, 4, 5, LINEAR_READ, 0, 1});
    JUDGE(LINEAR_NO, {1, 2, 5, LINEAR_WRITE, 0, 0}, {3, 4, 0, LINEAR_READ, 0, 1}); /* stale */
    JUDGE(LINEAR_YES, {1, 9, 5, LINEAR_WRITE, 0, 0}, {3, 4, 0, LINEAR_READ, 0, 1}, {5, 6, 5, LINEAR_READ, 0, 1});
    JUDGE(LINEAR_NO, {1, 9, 5, LINEAR_WRITE, 0, 0}, {3, 4, 5, LINEAR_READ, 0, 1}, {5, 6, 0, LINEAR_READ, 0, 2}); /* back in time */
    JUDGE(LINEAR_NO, {1, 2, 3, LINEAR_SET, 0, 0}, {3, 4, 4, LINEAR_SET, 0, 1}, {5, 6, 3, LINEAR_READ, 0, 1}); /* lost update */
    JUDGE(LINEAR_YES, {1, 9, 3, LINEAR_SET, 0, 0}, {1, 9, 1, LINEAR_CLEAR, 0, 1}, {10, 11, 2, LINEAR_READ, 0, 2});
    JUDGE(LINEAR_NO, {1, 9, 3, LINEAR_SET, 0, 0}, {1, 9, 1, LINEAR_CLEAR, 0, 0}, {10, 11, 3, LINEAR_READ, 0, 2}); /* one's own order */
    JUDGE(LINEAR_NO, {1, 9, 3, LINEAR_SET, 0, 0}, {2, 4, 1, LINEAR_READ, 0, 1}); /* half of it */
    const uint64_t mine = 7, other = 1ull << 32 | 8;
    JUDGE(LINEAR_YES, {1, 2, mine, LINEAR_SEND, 0, 0}, {3, 4, other, LINEAR_SEND, 0, 1}, {5, 6, mine, LINEAR_MESSAGE, 0, 2});
    JUDGE(LINEAR_NO, {1, 2, mine, LINEAR_SEND, 0, 0}, {3, 4, other, LINEAR_SEND, 0, 1}, {5, 6, other, LINEAR_MESSAGE, 0, 2});
    JUDGE(LINEAR_YES, {1, 2, mine, LINEAR_SEND, 0, 0}, {3, 4, 0, LINEAR_TAKE, 0, 2}, {5, 6, 0, LINEAR_STATUS, 0, 2},
          {5, 6, mine, LINEAR_MESSAGE, 0, 3}, {7, 8, other, LINEAR_SEND, 0, 1}, {9, 10, other, LINEAR_MESSAGE, 0, 2});
    JUDGE(LINEAR_NO, {1, 9, mine, LINEAR_SEND, 0, 0}, {1, 9, other, LINEAR_SEND, 0, 1}, {10, 11, (other & ~255ull) | 7, LINEAR_MESSAGE, 0, 2});
}

/* ---- windows: a setting is seen whole ---------------------------------------------------------------------------------- */

#define WINDOW 40u

static void set_window(fbx_fabric *f, uint64_t k, int torn)
{
    if (!torn) {
        MUST(fbx_mw_set_trans(f, 0, WINDOW, 1, k * 4096, (k + 1) * 4096, FBX_PERM_RW, FBX_UNCACHED));
        return;
    }
    struct fbxl_window *w = (struct fbxl_window *)(void *)(f->base + fbx_observe(&f->nodes[0].mw_table)) + WINDOW;
    struct fbxl_window_snapshot *s = &w->snapshot[fbx_observe(&w->which) & 1];
    fbx_poke(&s->translation, k * 4096);
    sched_yield();
    fbx_poke(&s->bytes, (k + 1) * 4096);
}

/* Two processes program one window, two look at it. Returns how many looks saw half of one setting and half of another. */
static uint32_t torn_windows(int torn, uint32_t rounds)
{
    fbx_fabric *fabric, *f;
    pid_t children[P];
    memset(shared, 0, sizeof *shared);
    MUST(test_fabric("windows", FBX_AUTO_WINDOWS | FBX_NO_SERVICE, 1000, &fabric));
    set_window(fabric, 0, 0);
    fflush(NULL);
    for (uint32_t p = 0; p < P; p++)
        if (!(children[p] = fork())) {
            uint32_t halves = 0;
            check_failed = 0; /* of this process */
            MUST(fbx_fabric_open(test_dir(), "windows", &f));
            for (uint64_t i = 0; p < 2 ? i < rounds : __atomic_load_n(&shared->finished, __ATOMIC_ACQUIRE) < 2; i++) {
                struct fbx_window_info w;
                if (p < 2) {
                    set_window(f, (i * 2 + p) % 500, torn);
                    continue;
                }
                MUST(fbx_mw_info(f, 0, WINDOW, &w));
                halves += w.bytes != w.translation + 4096;
            }
            __atomic_add_fetch(p < 2 ? &shared->finished : &shared->count[0], p < 2 ? 1 : halves, __ATOMIC_RELEASE);
            fbx_fabric_free(f);
            _exit(check_report());
        }
    for (uint32_t p = 0; p < P; p++) {
        int status;
        CHECK(waitpid(children[p], &status, 0) == children[p]);
        CHECK_EQ(status, 0);
    }
    fbx_fabric_free(fabric);
    return shared->count[0];
}

int main(void)
{
    const char *asked = getenv("LINEARIZABILITY_OPERATIONS");
    const uint64_t wanted = asked ? strtoull(asked, NULL, 0) : 200000;
    test_hosts = 3;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || !wanted)
        return 2;
    small_histories();
    const uint64_t begin = now_ns();
    int linear = 1;
    /* With time posted writes are on their way for a while; without, they are there at once. */
    linear &= history(FBX_TIMING, 20000, HONEST, wanted / 3);
    linear &= history(FBX_TIMING, 2000000, HONEST, wanted / 3);
    linear &= history(0, 0, HONEST, wanted - 2 * (wanted / 3));
    CHECK(linear);
    const struct total honest = total;
    const double seconds = (double)(now_ns() - begin) / 1e9;
    uint32_t found = 0;
    for (int broken = UNLOCKED; broken < BREAKAGES; broken++) {
        int seen = !history(FBX_TIMING, 500000, (enum breakage)broken, 2000000);
        if (!seen)
            fprintf(stderr, "not found out: %s\n", breakages[broken]);
        found += (uint32_t)seen;
    }
    CHECK_EQ(found, BREAKAGES - 1);
    CHECK_EQ(torn_windows(0, 3000), 0);
    CHECK(torn_windows(1, 3000) > 0);
    CHECK_EQ(test_leftovers(), 0);
    printf("{\"operations\": %llu, \"processes\": %u, \"registers\": %u, \"linearizable\": %s, \"widest\": %llu, \"seconds\": %.1f, "
           "\"breakages\": %u, \"breakages_found\": %u}\n",
           (unsigned long long)honest.operations, (unsigned)P, (unsigned)OBJECTS, linear ? "true" : "false",
           (unsigned long long)honest.widest, seconds, (unsigned)BREAKAGES - 1, found);
    return check_report();
}
