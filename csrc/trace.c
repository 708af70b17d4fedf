/* SPDX-License-Identifier: Apache-2.0
 *
 * The trace of one process: a ring of records in private memory that grows to its limit and then keeps the newest. Its digest
 * covers every record, so that a long run has a hash without keeping all of it. The digest takes integers in a fixed
 * order, never bytes of memory: it is the same whatever the machine.
 */
#include "trace.h"

#include <stdlib.h>

struct fbxi_tracer {
    pthread_mutex_t mutex; /* real clock only: several threads */
    struct fbxi_trace_record *ring;
    uint64_t room, limit, count; /* allocated; most; ever made */
    uint64_t next_id, digest[2];
};

static inline uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t fbxi_trace_digest(const void *data, uint64_t bytes)
{
    const uint8_t *at = data;
    uint64_t d = bytes * 0x9E3779B97F4A7C15ull, word;
    for (uint64_t done = 0; done < bytes; done += 8) {
        uint64_t left = bytes - done < 8 ? bytes - done : 8;
        word = 0;
        for (uint64_t i = 0; i < left; i++)
            word |= (uint64_t)at[done + i] << (8 * i);
        if (bytes <= 8)
            return word;
        d = fold(d ^ word ^ 0xA0761D6478BD642Full, 0xE7037ED1A0B428DBull ^ done);
    }
    return d;
}

static void digest(uint64_t d[2], const struct fbxi_trace_record *r)
{
    const uint64_t words[14] = {r->at_ps, r->id, r->gva, r->bytes, r->digest, r->issued_ps, r->departs_ps, r->arrives_ps,
                                r->completes_ps, r->sequence, r->passed,
                                (uint64_t)(uint16_t)r->status | (uint64_t)r->node << 16 | (uint64_t)r->target << 32 | (uint64_t)r->rule << 48,
                                (uint64_t)r->event | (uint64_t)r->kind << 8 | (uint64_t)r->tc << 16 | (uint64_t)r->attr << 24, 0};
    uint64_t a = d[0], b = d[1];
    for (int i = 0; i < 14; i += 2) {
        a = fold(a ^ words[i] ^ 0xA0761D6478BD642Full, words[i + 1] ^ 0xE7037ED1A0B428DBull);
        b = (b ^ a ^ words[i + 1]) * 0x9E3779B97F4A7C15ull + words[i];
        b ^= b >> 32;
    }
    d[0] = a + b;
    d[1] = b;
}

static void append(struct fbxi_tracer *t, const struct fbxi_trace_record *record)
{
    if (t->count >= t->room && t->room < t->limit) {
        uint64_t room = t->room ? 2 * t->room : 256;
        if (room > t->limit)
            room = t->limit;
        struct fbxi_trace_record *more = realloc(t->ring, room * sizeof *more);
        if (more) {
            t->ring = more;
            t->room = room;
        } else {
            t->limit = t->room; /* the newest stay: the digest misses nothing */
        }
    }
    if (t->room)
        t->ring[t->count % t->room] = *record;
    t->count++;
    digest(t->digest, record);
}

void fbxi_trace_append(fbx_fabric *f, const struct fbxi_trace_record *record)
{
    struct fbxi_tracer *t = f->tracer;
    if (f->clock.kind != FBX_REAL) {
        append(t, record);
        return;
    }
    pthread_mutex_lock(&t->mutex);
    append(t, record);
    pthread_mutex_unlock(&t->mutex);
}

uint64_t fbxi_trace_id(fbx_fabric *f)
{
    struct fbxi_tracer *t = f->tracer;
    if (!t)
        return 0;
    if (f->clock.kind != FBX_REAL)
        return ++t->next_id;
    pthread_mutex_lock(&t->mutex);
    uint64_t id = ++t->next_id;
    pthread_mutex_unlock(&t->mutex);
    return id;
}

void fbxi_trace_free(fbx_fabric *f)
{
    struct fbxi_tracer *t = f->tracer_kept;
    f->tracer = f->tracer_kept = NULL;
    if (t) {
        pthread_mutex_destroy(&t->mutex);
        free(t->ring);
        free(t);
    }
}

int fbx_trace_start(fbx_fabric *f, uint64_t room)
{
    struct fbxi_tracer *t = f->tracer_kept;
    if (room < 1 || room > 1ull << 32)
        return fbxi_fail(FBX_E_INVALID, "a trace of %llu records", (unsigned long long)room);
    if (!t) {
        t = calloc(1, sizeof *t);
        if (!t)
            return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
        pthread_mutex_init(&t->mutex, NULL);
    }
    if (t->room > room) { /* the ring's size is what count is taken modulo of */
        free(t->ring);
        t->ring = NULL;
        t->room = 0;
    }
    t->limit = room;
    t->count = t->next_id = 0;
    t->digest[0] = 0x243F6A8885A308D3ull; /* digits of pi: anything that is not 0 */
    t->digest[1] = 0x13198A2E03707344ull;
    f->trace_site = 0;
    f->tracer = f->tracer_kept = t;
    return 0;
}

int fbx_trace_stop(fbx_fabric *f)
{
    f->tracer = NULL; /* another thread may be appending still: the memory goes with the fabric */
    return 0;
}

uint64_t fbx_trace_count(fbx_fabric *f, uint64_t out[2])
{
    const struct fbxi_tracer *t = f->tracer_kept;
    out[0] = t ? t->digest[0] : 0;
    out[1] = t ? t->digest[1] : 0;
    return t ? t->count : 0;
}

uint64_t fbx_trace_copy(fbx_fabric *f, uint64_t *first, struct fbx_trace_record *out, uint64_t count)
{
    struct fbxi_tracer *t = f->tracer_kept;
    if (!t)
        return 0;
    if (f->clock.kind == FBX_REAL)
        pthread_mutex_lock(&t->mutex);
    uint64_t oldest = t->count > t->room ? t->count - t->room : 0, copied = 0;
    if (*first < oldest)
        *first = oldest;
    for (uint64_t i = *first; i < t->count && copied < count; i++)
        out[copied++] = t->ring[i % t->room];
    if (f->clock.kind == FBX_REAL)
        pthread_mutex_unlock(&t->mutex);
    return copied;
}

void fbx_trace_site(fbx_fabric *f, uint32_t site) { f->trace_site = site; }

int fbx_record(fbx_fabric *f, int on)
{
    if (on && !f->tracer)
        return fbxi_fail(FBX_E_INVALID, "start the trace first");
    if (f->recording != (uint32_t)!!on)
        fbx_count(&f->header->trace_on, on ? 1 : 0xffffffffu);
    f->recording = !!on;
    return 0;
}
