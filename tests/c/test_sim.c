/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs under the virtual clock, from C: a scheduler of callbacks; the same seed gives the same trace; and a reset leaves
 * the segments as they were when they were made, byte by byte. */
#include "fabric.h"
#include "internal.h"

static fbx_fabric *fabric;
static fbx_sim *sim;

/* ---- every byte that is not zero ---------------------------------------------------------------------------------------- */

enum { PIECE = 4096 };
struct image {
    uint64_t count, room, *offset;
    uint8_t (*page)[PIECE];
};

static void add(struct image *image, uint64_t offset, const uint8_t *page)
{
    static const uint8_t zeros[PIECE];
    if (!memcmp(page, zeros, PIECE))
        return;
    if (image->count == image->room) {
        image->room = image->room ? 2 * image->room : 64;
        image->offset = realloc(image->offset, image->room * sizeof *image->offset);
        image->page = realloc(image->page, image->room * sizeof *image->page);
        if (!image->offset || !image->page)
            abort();
    }
    image->offset[image->count] = offset;
    memcpy(image->page[image->count++], page, PIECE);
}

static void take_file(struct image *image, int fd, uint64_t tag)
{
    uint8_t page[PIECE];
    off_t end = lseek(fd, 0, SEEK_END);
    for (off_t at = lseek(fd, 0, SEEK_DATA); at >= 0 && at < end;) {
        off_t hole = lseek(fd, at, SEEK_HOLE);
        for (; at < hole; at += PIECE) {
            memset(page, 0, sizeof page);
            if (pread(fd, page, sizeof page, at) < 0)
                abort();
            if (!tag && at == 0) { /* what a reset gives anew, on purpose */
                memset(page + offsetof(struct fbxl_header, instance), 0, 8);
                memset(page + offsetof(struct fbxl_header, seed), 0, 8);
            }
            add(image, tag << 48 | (uint64_t)at, page);
        }
        at = lseek(fd, hole, SEEK_DATA);
    }
}

static void take(struct image *image)
{
    image->count = 0;
    take_file(image, fabric->fd, 0);
    for (uint32_t i = 0; i < fabric->region_count; i++)
        if (fabric->maps[i].fd >= 0)
            take_file(image, fabric->maps[i].fd, i + 1);
}

static void compare(const struct image *a, const struct image *b)
{
    CHECK_EQ(a->count, b->count);
    for (uint64_t i = 0; i < a->count && i < b->count; i++) {
        CHECK_EQ(a->offset[i], b->offset[i]);
        if (a->offset[i] != b->offset[i])
            break;
        for (unsigned k = 0; k < PIECE; k++)
            if (a->page[i][k] != b->page[i][k]) {
                fprintf(stderr, "byte 0x%llx is %u, not %u\n", (unsigned long long)a->offset[i] + k, b->page[i][k], a->page[i][k]);
                CHECK(!"as it was");
                break;
            }
    }
}

/* ---- programs: one step for each turn --------------------------------------------------------------------------------------- */

struct program {
    fbx_node *node;
    uint32_t turn, ended;
    uint64_t seen;
};

static void issue(struct program *p, int kind, uint64_t gva, uint64_t value, uint32_t attr)
{
    void *wide;
    struct fbx_op *op = fbx_sim_record(sim, &wide);
    CHECK(op != NULL);
    memset(op, 0, sizeof *op);
    op->kind = (uint16_t)kind;
    op->gva = gva;
    op->bytes = 8;
    op->operand[0] = value;
    op->attr = (uint8_t)attr;
    fbx_sim_op(sim, p->node, op, fbx_op_begin(p->node, op));
}

static void writer(struct program *p, uint64_t there)
{
    switch (p->turn++) {
    case 0: issue(p, FBX_STORE, there, 42, 0); break;
    case 1: issue(p, FBX_STORE, there + 64, 1, FBX_RO); break;
    case 2: issue(p, FBX_FETCH_ADD, there + 128, 5, 0); break;
    case 3: fbx_sim_sleep(sim, fbx_fabric_now(fabric) + 1000000); break;
    default: fbx_sim_exit(sim); p->ended = 1;
    }
}

static void reader(struct program *p, uint64_t here)
{
    void *wide;
    switch (p->turn++) {
    case 0: fbx_sim_wait_until(sim, p->node, here + 64, 8, FBX_EQ, 1, UINT64_MAX); break;
    case 1:
        CHECK_EQ(fbx_sim_result(sim, &p->seen), 0);
        CHECK_EQ(p->seen, 1);
        issue(p, FBX_LOAD, here, 0, 0);
        break;
    default:
        p->seen = fbx_sim_record(sim, &wide)->operand[0];
        fbx_sim_exit(sim);
        p->ended = 1;
    }
}

/* Buffers, names, registers, DMA and a link that goes down: whatever a run may leave. */
static void dirty(fbx_node *h0, fbx_node *h1)
{
    struct fbx_buffer buffer;
    uint64_t ticket = 0, id, peers;
    MUST(fbx_alloc(h0, 0, 3 << 20, 64, "left", &buffer));
    MUST(fbx_put(fabric, "key", "value", 5));
    CHECK(fbx_barrier(h0, "barrier", 2, &ticket, 0) == FBX_E_AGAIN);
    MUST(fbx_db_set_mask(h1, 1));
    MUST(fbx_peer_spad_write(h0, (uint32_t)fbx_node_pidx(h0, 1), 0, 7));
    void *view;
    int writable;
    MUST(fbx_map(h0, buffer.gva, buffer.bytes, &view, &writable));
    memset(view, 0x5a, buffer.bytes);
    fbx_unmap(h0, buffer.gva);
    struct fbx_dma d = {.dst = 2ull << FBX_SLOT_SHIFT, .src = buffer.gva, .bytes = 1 << 20};
    MUST(fbx_dma_submit(h0, &d, &id));
    uint64_t value[FBX_LINK_KEYS] = {0};
    value[FBX_LINK_DELAY_PS] = 77000;
    MUST(fbx_link_configure(fabric, 0, 1u << FBX_LINK_DELAY_PS, value));
    MUST(fbx_link_set(fabric, 1, 0));
    MUST(fbx_ntb_link_is_up(h0, &peers, NULL, NULL));
}

static uint64_t run(uint64_t seed, int leave_much, uint64_t digest[2])
{
    fbx_node *h0, *h1;
    const struct fbx_sim_options options = {.step_ps = 10000, .stalls = 1};
    MUST(fbx_sim_reset(sim, seed, &options));
    MUST(fbx_trace_start(fabric, 1000));
    MUST(fbx_node_attach(fabric, "host0", FBX_OWNER, &h0));
    MUST(fbx_node_attach(fabric, "host1", FBX_OWNER, &h1));
    CHECK(fbx_sim_reset(sim, seed, &options) == FBX_E_BUSY);
    struct program programs[2] = {{.node = h0}, {.node = h1}};
    CHECK_EQ(fbx_sim_spawn(sim, h0), 0);
    CHECK_EQ(fbx_sim_spawn(sim, h1), 1);
    int next;
    while ((next = fbx_sim_next(sim)) >= 0) {
        CHECK_EQ(fbx_sim_current(sim), (uint32_t)next);
        (next ? reader : writer)(&programs[next], 2ull << FBX_SLOT_SHIFT);
    }
    CHECK(next == FBX_SIM_DONE);
    CHECK(programs[0].ended && programs[1].ended);
    fbx_trace_count(fabric, digest);
    if (leave_much)
        dirty(h0, h1);
    fbx_node_free(h0);
    fbx_node_free(h1);
    return programs[1].seen;
}

int main(void)
{
    struct image fresh = {0}, again = {0};
    test_clock = FBX_VIRTUAL;
    const uint32_t flags = FBX_TIMING | FBX_AUTO_WINDOWS | FBX_PRIVATE;
    for (uint32_t ordering = FBX_POSTED; ordering <= FBX_ADVERSARIAL; ordering++) {
        uint64_t first[2], second[2], other[2], late = 0;
        MUST(test_fabric("private", flags, 100000, &fabric));
        fabric->ordering = ordering;
        take(&fresh);
        MUST(fbx_sim_open(fabric, &sim));
        fbx_sim *twice;
        CHECK(fbx_sim_open(fabric, &twice) == FBX_E_BUSY);
        for (uint64_t seed = 0; seed < 200; seed++) {
            late += run(seed, seed % 8 == 3, first) != 42;
            run(seed + 1, 1, other);
            run(seed, 0, second);
            CHECK(first[0] == second[0] && first[1] == second[1]);
        }
        CHECK(ordering == FBX_ADVERSARIAL ? late > 0 : late == 0);
        run(7, 1, other);
        MUST(fbx_sim_reset(sim, 7, NULL));
        take(&again);
        compare(&fresh, &again);
        fbx_sim_free(sim);
        fbx_fabric_free(fabric);
    }
    /* Only such a fabric. */
    test_clock = FBX_REAL;
    MUST(test_fabric("real", FBX_TIMING | FBX_AUTO_WINDOWS, 100000, &fabric));
    CHECK(fbx_sim_open(fabric, &sim) == FBX_E_INVALID);
    CHECK(fbx_choice_plan(fabric, NULL, 0, FBX_CHOICE_LOG) == FBX_E_INVALID);
    fbx_fabric_free(fabric);
    CHECK_EQ(test_leftovers(), 0);
    free(fresh.offset);
    free(fresh.page);
    free(again.offset);
    free(again.page);
    return check_report();
}
