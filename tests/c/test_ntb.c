/* SPDX-License-Identifier: Apache-2.0
 *
 * The NTB device under threads: doorbells rung and taken at once with exact counts, registers programmed by several, waits
 * that are woken, messages that are refused; link_disable as a barrier. Run under the sanitizers by `make san`. */
#include "fabric.h"
#include "ntb.h"

#include <poll.h>
#include <pthread.h>

enum { RINGERS = 3, ROUNDS = 600 };

static fbx_fabric *fabric;
static fbx_node *h0, *h1;
static uint32_t finished;

/* Each thread has bits of its own, and rings one only when it has been taken and cleared. */
static void *ring(void *argument)
{
    const uint64_t bit = 1ull << *(const int *)argument;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t bits = bit;
        while (bits & bit)
            MUST(fbx_peer_db_read(h0, 0, &bits));
        MUST(fbx_peer_db_set(h0, 0, bit));
        MUST(fbx_peer_spad_write(h0, 0, (uint32_t)*(const int *)argument, (uint32_t)i + 1));
        MUST(fbx_flush(h0, 1, 0));
    }
    __atomic_add_fetch(&finished, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void *program(void *argument)
{
    (void)argument;
    for (int i = 0; i < ROUNDS; i++) { /* bits of nobody else */
        uint64_t bits;
        MUST(fbx_db_set_mask(h1, 1ull << 40));
        MUST(fbx_db_set(h1, 1ull << 40));
        MUST(fbx_db_read(h1, &bits));
        CHECK(bits >> 40 & 1);
        MUST(fbx_db_clear(h1, 1ull << 40));
        MUST(fbx_db_clear_mask(h1, 1ull << 40));
        MUST(fbx_spad_write(h1, 100, (uint32_t)i));
    }
    return NULL;
}

static void exact_counts(int use_fd)
{
    pthread_t threads[RINGERS + 1];
    int numbers[RINGERS], counts[64] = {0};
    uint32_t value;
    finished = 0;
    int fd = use_fd ? fbx_ntb_event_fd(h1) : -1;
    CHECK(!use_fd || fd >= 0);
    for (int i = 0; i < RINGERS; i++) {
        numbers[i] = i;
        CHECK(!pthread_create(&threads[i], NULL, ring, &numbers[i]));
    }
    CHECK(!pthread_create(&threads[RINGERS], NULL, program, NULL));
    for (int idle = 0; idle < 40;) {
        struct fbx_ntb_event events[8];
        struct pollfd ready = {fd, POLLIN, 0};
        if (use_fd && poll(&ready, 1, 100) == 0)
            idle++;
        int count = fbx_ntb_wait_event(h1, events, 8, use_fd ? 0 : 100000000u);
        CHECK(count > 0 || count == FBX_E_AGAIN);
        for (int i = 0; i < count; i++) {
            CHECK_EQ(events[i].kind, FBX_NTB_DOORBELL);
            CHECK_EQ(events[i].bits, 1ull << events[i].vector);
            counts[events[i].vector & 63]++;
            MUST(fbx_db_clear(h1, events[i].bits));
        }
        if (count < 0 && __atomic_load_n(&finished, __ATOMIC_RELAXED) == RINGERS)
            break;
    }
    for (int i = 0; i <= RINGERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < RINGERS; i++) {
        CHECK_EQ(counts[i], ROUNDS);
        MUST(fbx_spad_read(h1, (uint32_t)i, &value));
        CHECK_EQ(value, ROUNDS);
    }
    CHECK_EQ(counts[40], 0);
}

static void *flood(void *argument)
{
    (void)argument;
    while (!__atomic_load_n(&finished, __ATOMIC_RELAXED)) {
        MUST(fbx_peer_spad_write(h0, 0, 7, 1));
        MUST(fbx_peer_db_set(h0, 0, 1u << 7));
    }
    return NULL;
}

/* After disable has returned nothing arrives: what is cleared stays clear. */
static void barrier(void)
{
    pthread_t thread;
    uint64_t bits;
    uint32_t value;
    finished = 0;
    CHECK(!pthread_create(&thread, NULL, flood, NULL));
    for (int i = 0; i < 60; i++) {
        fbx_node *closes = i & 1 ? h0 : h1;
        MUST(fbx_ntb_link_disable(closes));
        MUST(fbx_spad_write(h1, 7, 0));
        MUST(fbx_db_clear(h1, 1u << 7));
        for (int k = 0; k < 50; k++) {
            MUST(fbx_spad_read(h1, 7, &value));
            MUST(fbx_db_read(h1, &bits));
            CHECK_EQ(value, 0);
            CHECK_EQ(bits & 1u << 7, 0);
        }
        MUST(fbx_ntb_link_enable(closes, FBX_NTB_SPEED_AUTO, -1));
    }
    __atomic_store_n(&finished, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
}

static void messages(void)
{
    uint64_t in, out, sts;
    uint32_t value, pidx;
    MUST(fbx_msg_inbits(h1, &in));
    MUST(fbx_msg_outbits(h0, &out));
    MUST(fbx_peer_msg_write(h0, 0, 1, 11));
    MUST(fbx_peer_msg_write(h0, 0, 1, 12)); /* finds it full */
    MUST(fbx_flush(h0, 1, 0));
    MUST(fbx_msg_read(h1, 1, &pidx, &value));
    CHECK_EQ(value, 11);
    CHECK_EQ(pidx, 0);
    MUST(fbx_msg_read_sts(h1, &sts));
    CHECK_EQ(sts, (in & -in) << 1);
    MUST(fbx_msg_read_sts(h0, &sts));
    CHECK_EQ(sts, (out & -out) << 1);
    MUST(fbx_msg_clear_sts(h0, sts));
    MUST(fbx_msg_clear_sts(h1, in));
    CHECK_EQ(fbx_peer_msg_write(h0, 0, 99, 1), FBX_E_INVALID);
    CHECK_EQ(fbx_peer_msg_write(h0, 1, 0, 1), FBX_E_INVALID);
}

/* A deliverer that dies after it changed the registers leaves the entry in its queue: whoever comes next does it again. */
static void done_again(void)
{
    struct fbxl_queue *one, *two;
    struct fbx_ntb_event event;
    uint64_t bits;
    uint32_t value;
    MUST(fbxi_queue_get(fabric, 0, 1, 0, &one));
    MUST(fbxi_queue_get(fabric, 0, 1, 1, &two));
    struct fbxi_ntb_write first = {FBXL_ENTRY_DOORBELL, 0, FBXI_DB_SET, 1u << 9, one, 1};
    struct fbxi_ntb_write other = {FBXL_ENTRY_DOORBELL, 0, FBXI_DB_SET, 1u << 10, two, 1};
    struct fbxi_ntb_write spad = {FBXL_ENTRY_SPAD, 0, 9, 5, one, 2};
    MUST(fbxi_ntb_apply(fabric, 1, &first));
    CHECK_EQ(fbx_ntb_wait_event(h1, &event, 1, 0), 1);
    MUST(fbx_db_clear(h1, 1u << 9));
    MUST(fbxi_ntb_apply(fabric, 1, &first)); /* nothing in between */
    MUST(fbxi_ntb_apply(fabric, 1, &other));
    MUST(fbxi_ntb_apply(fabric, 1, &first)); /* another queue's entry in between */
    MUST(fbx_db_read(h1, &bits));
    CHECK_EQ(bits, 1u << 10);
    CHECK_EQ(fbx_ntb_wait_event(h1, &event, 1, 0), 1);
    CHECK_EQ(event.bits, 1u << 10);
    MUST(fbx_db_clear(h1, 1u << 10));
    MUST(fbxi_ntb_apply(fabric, 1, &other));
    CHECK_EQ(fbx_ntb_wait_event(h1, &event, 1, 0), FBX_E_AGAIN);
    MUST(fbxi_ntb_apply(fabric, 1, &spad));
    MUST(fbx_spad_write(h1, 9, 6));
    MUST(fbxi_ntb_apply(fabric, 1, &spad));
    MUST(fbx_spad_read(h1, 9, &value));
    CHECK_EQ(value, 6);
    /* What no producer writes is refused and changes nothing. */
    struct fbxi_ntb_write wrong[] = {{FBXL_ENTRY_SPAD, 0, FBX_NTB_SPADS, 1, NULL, 0}, {FBXL_ENTRY_MESSAGE, 0, 8, 1, NULL, 0},
                                     {FBXL_ENTRY_DOORBELL, 0, 4, 1, NULL, 0}, {FBXL_ENTRY_MSI, 0, 0, 1, NULL, 0},
                                     {FBXL_ENTRY_DOORBELL, 99, 0, 1, NULL, 0}, {FBXL_ENTRY_SPAD, 0, 1ull << 60, 1, NULL, 0}};
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        CHECK_EQ(fbxi_ntb_apply(fabric, 1, &wrong[i]), FBX_E_INVALID);
    MUST(fbx_db_read(h1, &bits));
    CHECK_EQ(bits, 0);
}

/* The message of a vector, once for each entry of a queue, and only for the descriptor that is valid. */
static void interrupts(void)
{
    struct fbxl_queue *q;
    struct fbx_msi_desc desc, other;
    struct fbx_ntb_event event;
    uint64_t pending, address;
    MUST(fbxi_queue_get(fabric, 0, 1, 2, &q)); /* nobody else's */
    CHECK_EQ(fbx_msi_request(h1, &desc), 0);
    CHECK_EQ(fbx_msi_request(h1, &other), 1);
    struct fbxi_ntb_write once = {FBXL_ENTRY_MSI, 0, desc.addr_offset, desc.data, q, 100};
    MUST(fbxi_ntb_apply(fabric, 1, &once));
    CHECK_EQ(fbx_ntb_wait_event(h1, &event, 1, 0), 1);
    CHECK_EQ(event.kind, FBX_NTB_MSI);
    CHECK_EQ(event.vector, 0);
    MUST(fbxi_ntb_apply(fabric, 1, &once)); /* a deliverer died: not twice */
    CHECK_EQ(fbx_ntb_wait_event(h1, &event, 1, 0), FBX_E_AGAIN);
    struct fbxi_ntb_write wrong[] = {{FBXL_ENTRY_MSI, 0, desc.addr_offset, desc.data + 1, NULL, 0},
                                     {FBXL_ENTRY_MSI, 0, other.addr_offset + 4, 0, NULL, 0},
                                     {FBXL_ENTRY_MSI, 0, 2, desc.data, NULL, 0},
                                     {FBXL_ENTRY_MSI, 0, 4 * FBX_NTB_MSIS, desc.data, NULL, 0},
                                     {FBXL_ENTRY_MSI, 0, 1ull << 40, desc.data, NULL, 0}};
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        CHECK_EQ(fbxi_ntb_apply(fabric, 1, &wrong[i]), FBX_E_INVALID);
    MUST(fbx_msi_set_mask(h1, 3));
    MUST(fbx_msi_peer_trigger(h0, 0, &other));
    MUST(fbx_msi_peer_addr(h0, 0, &desc, &address));
    MUST(fbx_store(h0, address, 4, desc.data));
    CHECK_EQ(fbx_store(h0, address, 8, desc.data), FBX_E_UNSUPPORTED);
    MUST(fbx_flush(h0, 1, 0));
    MUST(fbx_msi_read_pending(h1, &pending));
    CHECK_EQ(pending, 3);
    CHECK_EQ(fbx_ntb_wait_event(h1, &event, 1, 0), FBX_E_AGAIN);
    MUST(fbx_msi_clear_mask(h1, 2));
    CHECK_EQ(fbx_ntb_wait_event(h1, &event, 1, 0), 1);
    CHECK_EQ(event.vector, 1);
    MUST(fbx_msi_free(h1, 0));
    MUST(fbx_msi_free(h1, 1));
    CHECK_EQ(fbx_msi_free(h1, 1), FBX_E_INVALID);
    CHECK_EQ(fbx_msi_free(h1, 1u << 30), FBX_E_INVALID);
    MUST(fbx_msi_read_pending(h1, &pending));
    CHECK_EQ(pending, 0);
}

static void run(uint32_t flags)
{
    char name[32];
    snprintf(name, sizeof name, "ntb-%u", flags);
    MUST(test_fabric(name, flags | FBX_AUTO_WINDOWS, 1000, &fabric));
    MUST(fbx_node_attach(fabric, "host0", FBX_OWNER, &h0));
    MUST(fbx_node_attach(fabric, "host1", FBX_OWNER, &h1));
    struct fbx_ntb_event event;
    CHECK_EQ(fbx_ntb_wait_event(h1, &event, 1, 0), FBX_E_AGAIN);
    CHECK_EQ(fbx_ntb_wait_event(h1, &event, 0, 0), FBX_E_INVALID);
    messages();
    while (fbx_ntb_wait_event(h1, &event, 1, 0) > 0 || fbx_ntb_wait_event(h0, &event, 1, 0) > 0)
        ;
    if (!(flags & FBX_TIMING))
        done_again();
    interrupts();
    exact_counts(0);
    exact_counts(1);
    barrier();
    fbx_node_free(h1);
    fbx_node_free(h0);
    struct fbx_fabric_info info;
    MUST(fbx_fabric_info(fabric, &info));
    CHECK_EQ(info.corrupt_resets, 0);
    fbx_fabric_free(fabric);
}

int main(void)
{
    run(0);
    run(FBX_TIMING);
    CHECK_EQ(test_leftovers(), 0);
    return check_report();
}
