/* SPDX-License-Identifier: Apache-2.0
 *
 * The asking side of errands. Each is one frame there and one back; what is larger than a frame takes several. */
#include "call.h"

#include "transport.h"

#include <stdlib.h>
#include <time.h>

_Thread_local int fbxi_on_errand;

int fbxi_call(fbx_fabric *f, fbx_node *n, uint32_t machine, struct fbxw_frame *w, const void *payload, uint32_t bytes,
              void *into, uint32_t *room, uint64_t max_wait_ns)
{
    const struct fbxi_transport *transport = fbxi_transport_to(f, machine);
    struct fbxi_peer *peer;
    struct fbxi_answer answer;
    uint32_t ticket;
    const uint64_t begin = fbxi_monotonic_ns();
    const char *name = machine < f->machine_count ? f->machines->of[machine].name : "?";
    w->kind = FBXW_ERRAND;
    w->payload = bytes;
    int status = transport->open(f, n, machine, &peer);
    if (status)
        return status;
    while ((status = transport->submit(peer, w, payload, into, room ? *room : 0, &ticket)) == FBX_E_AGAIN) {
        uint64_t waited = fbxi_monotonic_ns() - begin;
        if (waited > max_wait_ns || (status = transport->room(peer, bytes, fbxw_answer_bytes(w), max_wait_ns - waited)))
            return fbxi_fail(status && status != FBX_E_AGAIN ? status : FBX_E_COMPLETION_TIMEOUT, "machine %s does not answer", name);
    }
    if (!status) {
        transport->push(peer);
        uint64_t waited = fbxi_monotonic_ns() - begin;
        status = transport->poll(peer, ticket, waited < max_wait_ns ? max_wait_ns - waited : 0, &answer);
        if (status == FBX_E_AGAIN) {
            transport->forget(peer, ticket);
            status = FBX_E_COMPLETION_TIMEOUT;
        }
    }
    if (status)
        return fbxi_fail(status, status == FBX_E_PEER_LOST ? "machine %s is lost" : "machine %s does not answer", name);
    w->value = answer.value[0];
    w->address = answer.value[1];
    w->status = answer.status;
    free(answer.mark);
    if (room)
        *room = answer.bytes < *room ? answer.bytes : *room;
    return 0;
}

/* The failure of an errand, with the words of the other side, which come as its payload. */
static int told(const struct fbxw_frame *w, uint8_t *text, uint32_t bytes)
{
    if (!w->status || w->status == FBX_E_AGAIN)
        return w->status;
    if (!fbx_error_name(w->status))
        return fbxi_fail(FBX_E_CORRUPT, "the other machine answers %d, which is no code", w->status);
    return fbxi_fail(w->status, "%.*s", (int)bytes, (const char *)text);
}

static int ask(fbx_fabric *f, fbx_node *n, uint32_t machine, struct fbxw_frame *w, const void *payload, uint32_t bytes)
{
    uint8_t text[256];
    uint32_t room = sizeof text;
    int status = fbxi_call(f, n, machine, w, payload, bytes, text, &room, FBXI_CALL_NS);
    return status ? status : told(w, text, room);
}

void fbxi_pack_buffer(const struct fbx_buffer *b, uint8_t at[FBXI_BUFFER_BYTES])
{
    memcpy(at, b->name, 64);
    fbxw_put32(at + 64, b->index);
    fbxw_put32(at + 68, b->generation);
    fbxw_put32(at + 72, b->region);
    fbxw_put32(at + 76, b->node);
    fbxw_put64(at + 80, b->gva);
    fbxw_put64(at + 88, b->bytes);
    fbxw_put64(at + 96, b->offset);
    fbxw_put64(at + 104, b->instance);
}

void fbxi_unpack_buffer(const uint8_t at[FBXI_BUFFER_BYTES], struct fbx_buffer *b)
{
    memcpy(b->name, at, 64);
    b->name[63] = 0;
    b->index = fbxw_get32(at + 64);
    b->generation = fbxw_get32(at + 68);
    b->region = fbxw_get32(at + 72);
    b->node = fbxw_get32(at + 76);
    b->gva = fbxw_get64(at + 80);
    b->bytes = fbxw_get64(at + 88);
    b->offset = fbxw_get64(at + 96);
    b->instance = fbxw_get64(at + 104);
}

static uint32_t home_of(const fbx_fabric *f, uint32_t region)
{
    return region < f->region_count ? f->node_facts[f->region_facts[region].node].machine : FBXI_DIRECTORY;
}

int fbxi_call_put(fbx_fabric *f, const char *key, const void *value, uint64_t bytes)
{
    const uint32_t length = (uint32_t)strlen(key) + 1, most = FBXW_PAYLOAD - length;
    uint8_t *frame = malloc(FBXW_PAYLOAD);
    int status = frame ? 0 : fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    for (uint64_t at = 0; !status;) {
        uint32_t step = bytes - at < most ? (uint32_t)(bytes - at) : most;
        struct fbxw_frame w = {.what = FBXW_PUT, .address = at, .value = bytes};
        memcpy(frame, key, length);
        memcpy(frame + length, (const uint8_t *)value + at, step);
        status = ask(f, NULL, FBXI_DIRECTORY, &w, frame, length + step);
        at += step;
        if (at >= bytes)
            break;
    }
    free(frame);
    return status;
}

int fbxi_call_get(fbx_fabric *f, const char *key, void *value, uint64_t *bytes)
{
    const uint64_t have = *bytes;
    uint64_t total = 0, at = 0;
    uint8_t *frame = malloc(FBXW_PAYLOAD);
    int status = frame ? 0 : fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    while (!status) {
        struct fbxw_frame w = {.what = FBXW_GET, .address = at};
        uint32_t room = FBXW_PAYLOAD;
        status = fbxi_call(f, NULL, FBXI_DIRECTORY, &w, key, (uint32_t)strlen(key) + 1, frame, &room, FBXI_CALL_NS);
        if (status || (status = told(&w, frame, room < 256 ? room : 256)))
            break;
        total = w.value;
        if (total > have) {
            *bytes = total;
            status = fbxi_fail(FBX_E_NO_MEMORY, "the value of '%s' has %llu bytes", key, (unsigned long long)total);
            break;
        }
        if (room > total - at)
            room = (uint32_t)(total - at);
        memcpy((uint8_t *)value + at, frame, room);
        at += room;
        if (at >= total || !room)
            break;
    }
    if (!status)
        *bytes = total;
    free(frame);
    return status;
}

int fbxi_call_find(fbx_fabric *f, const char *name, struct fbx_buffer *out)
{
    struct fbxw_frame w = {.what = FBXW_FIND};
    uint8_t bytes[256];
    uint32_t room = sizeof bytes;
    int status = fbxi_call(f, NULL, FBXI_DIRECTORY, &w, name, (uint32_t)strlen(name) + 1, bytes, &room, FBXI_CALL_NS);
    if (status || (status = told(&w, bytes, room)))
        return status;
    if (room != FBXI_BUFFER_BYTES)
        return fbxi_fail(FBX_E_CORRUPT, "the directory's answer is no buffer");
    fbxi_unpack_buffer(bytes, out);
    return 0;
}

int fbxi_call_name(fbx_fabric *f, const struct fbx_buffer *b)
{
    struct fbxw_frame w = {.what = FBXW_NAME};
    uint8_t bytes[FBXI_BUFFER_BYTES];
    fbxi_pack_buffer(b, bytes);
    return ask(f, NULL, FBXI_DIRECTORY, &w, bytes, sizeof bytes);
}

int fbxi_call_unname(fbx_fabric *f, const struct fbx_buffer *b)
{
    struct fbxw_frame w = {.what = FBXW_UNNAME};
    uint8_t bytes[FBXI_BUFFER_BYTES];
    fbxi_pack_buffer(b, bytes);
    return ask(f, NULL, FBXI_DIRECTORY, &w, bytes, sizeof bytes);
}

int fbxi_call_alloc(fbx_fabric *f, uint32_t region, uint64_t bytes, uint64_t align, const char *name, struct fbx_buffer *out)
{
    struct fbxw_frame w = {.what = FBXW_ALLOC, .aux = region, .value = bytes, .address = align};
    uint8_t answer[256];
    uint32_t room = sizeof answer;
    const char *called = name ? name : "";
    /* As the process, not as one of its nodes: what it allocates ends with it, and not with a handle. */
    int status = fbxi_call(f, NULL, home_of(f, region), &w, called, (uint32_t)strlen(called) + 1, answer, &room, FBXI_CALL_NS);
    if (status || (status = told(&w, answer, room)))
        return status;
    if (room != FBXI_BUFFER_BYTES)
        return fbxi_fail(FBX_E_CORRUPT, "the answer is no buffer");
    fbxi_unpack_buffer(answer, out);
    if (out->region != region || out->bytes != bytes)
        return fbxi_fail(FBX_E_CORRUPT, "the answer is another buffer");
    return 0;
}

int fbxi_call_buffer(fbx_fabric *f, uint32_t what, const struct fbx_buffer *b)
{
    struct fbxw_frame w = {.what = (uint16_t)what};
    uint8_t bytes[FBXI_BUFFER_BYTES];
    fbxi_pack_buffer(b, bytes);
    return ask(f, NULL, home_of(f, b->region), &w, bytes, sizeof bytes);
}

int fbxi_call_barrier(fbx_node *n, const char *name, uint32_t expected, uint64_t *ticket, uint64_t max_wait_ns)
{
    const uint64_t begin = fbxi_monotonic_ns();
    for (uint64_t nap_ns = 100000u;; nap_ns = nap_ns < 2000000u ? nap_ns * 2 : nap_ns) {
        struct fbxw_frame w = {.what = FBXW_BARRIER, .aux = expected, .value = *ticket};
        int status = ask(n->fabric, n, FBXI_DIRECTORY, &w, name, (uint32_t)strlen(name) + 1);
        if (status != FBX_E_COMPLETION_TIMEOUT)
            *ticket = status == FBX_E_AGAIN ? w.value : 0;
        if (status != FBX_E_AGAIN || fbxi_monotonic_ns() - begin + nap_ns > max_wait_ns)
            return status;
        struct timespec nap = {0, (long)nap_ns};
        clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
        fbxi_slept(&n->fabric->clock, nap_ns);
    }
}

int fbxi_call_leave(fbx_node *n, const char *name, uint64_t ticket)
{
    struct fbxw_frame w = {.what = FBXW_LEAVE, .value = ticket};
    return ask(n->fabric, n, FBXI_DIRECTORY, &w, name, (uint32_t)strlen(name) + 1);
}
