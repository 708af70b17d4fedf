/* SPDX-License-Identifier: Apache-2.0
 *
 * What other machines ask of this one beside its memory: names and barriers (of the directory's machine), allocation, what windows
 * are set to. Runs on the gateway's second thread, one after the other, because some of it waits. Changes of the fabric as a whole
 * are none of it: the agents make them (machine.c, fabrex/net).
 */
#include "gateway.h"

#include "call.h"

#include <stdio.h>
#include <stdlib.h>

static uint64_t word(const struct fbxi_errand *e, uint32_t i)
{
    return e->frame.payload >= 8 * (i + 1) ? fbxw_get64(e->payload + 8 * i) : 0;
}

static int here(const fbx_fabric *f, uint32_t node)
{
    return node < f->node_count && !fbxi_is_away(f, node) ? 0 : fbxi_fail(FBX_E_NOT_FOUND, "node %u is not at home here", node);
}

static int directory(const fbx_fabric *f)
{
    return f->machine == FBXI_DIRECTORY ? 0 : fbxi_fail(FBX_E_INVALID, "this machine keeps no names");
}

static int put(fbx_fabric *f, struct fbxi_errand *e)
{
    const char *key = (const char *)e->payload;
    const uint32_t length = (uint32_t)strlen(key) + 1;
    const uint64_t at = e->frame.address, total = e->frame.value;
    const uint32_t step = e->frame.payload >= length ? e->frame.payload - length : 0;
    if (total > 16u << 20 || at > total || step > total - at)
        return fbxi_fail(FBX_E_INVALID, "a value of %llu bytes at %llu", (unsigned long long)total, (unsigned long long)at);
    if (!at && step == total)
        return fbx_put(f, key, e->payload + length, total);
    if (!at) {
        free(e->assembly);
        e->assembly = malloc(total);
        e->assembly_bytes = e->assembly ? total : 0;
    }
    if (e->assembly_bytes != total)
        return fbxi_fail(FBX_E_INVALID, "a piece of a value whose beginning is not here");
    memcpy(e->assembly + at, e->payload + length, step);
    return at + step == total ? fbx_put(f, key, e->assembly, total) : 0;
}

static int get(fbx_fabric *f, struct fbxi_errand *e)
{
    uint64_t bytes = FBXW_PAYLOAD, at = e->frame.address;
    char key[FBX_NAME_BYTES];
    snprintf(key, sizeof key, "%.*s", (int)sizeof key - 1, (const char *)e->payload);
    int status = at ? FBX_E_NO_MEMORY : fbx_get(f, key, e->payload, &bytes);
    if (status == FBX_E_NO_MEMORY) {
        /* It takes several frames: the asker gets all of one value, however often it changes meanwhile. */
        if (!at) {
            free(e->assembly);
            e->assembly = malloc(bytes);
            e->assembly_bytes = e->assembly ? bytes : 0;
            status = e->assembly ? fbx_get(f, key, e->assembly, &bytes) : fbxi_fail(FBX_E_NO_MEMORY, "no memory");
            if (status)
                return status;
            e->assembly_bytes = bytes;
        }
        if (at > e->assembly_bytes)
            return fbxi_fail(FBX_E_INVALID, "byte %llu of a value of %llu", (unsigned long long)at, (unsigned long long)e->assembly_bytes);
        e->bytes = e->assembly_bytes - at < FBXW_PAYLOAD ? (uint32_t)(e->assembly_bytes - at) : FBXW_PAYLOAD;
        memcpy(e->payload, e->assembly + at, e->bytes);
        e->frame.value = e->assembly_bytes;
        return 0;
    }
    if (!status) {
        e->bytes = (uint32_t)bytes;
        e->frame.value = bytes;
    }
    return status;
}

static int buffer_of(const struct fbxi_errand *e, struct fbx_buffer *b)
{
    if (e->frame.payload != FBXI_BUFFER_BYTES)
        return fbxi_fail(FBX_E_INVALID, "%u bytes are no buffer", e->frame.payload);
    fbxi_unpack_buffer(e->payload, b);
    return 0;
}

static int give_buffer(struct fbxi_errand *e, const struct fbx_buffer *b)
{
    fbxi_pack_buffer(b, e->payload);
    e->bytes = FBXI_BUFFER_BYTES;
    return 0;
}

int fbxi_owned_add(fbx_fabric *f, struct fbxi_owned **owned, const struct fbx_buffer *b)
{
    struct fbxi_owned *o = *owned;
    if (o && o->count == o->room) {
        /* Those that have been freed meanwhile, by whomever, go first. */
        uint32_t kept = 0;
        for (uint32_t i = 0; i < o->count; i++)
            if (!fbxi_check_here(f, &o->buffer[i]))
                o->buffer[kept++] = o->buffer[i];
        o->count = kept;
    }
    if (!o || o->count > o->room / 2) {
        const uint32_t room = o ? o->room * 2 : 16;
        struct fbxi_owned *more = realloc(o, sizeof *o + room * sizeof o->buffer[0]);
        if (!more && (!o || o->count == o->room))
            return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
        if (more) {
            if (!o)
                more->count = 0;
            more->room = room;
            *owned = o = more;
        }
    }
    o->buffer[o->count++] = *b;
    return 0;
}

void fbxi_owned_free(fbx_fabric *f, struct fbxi_owned *owned)
{
    for (uint32_t i = 0; i < owned->count; i++)
        fbxi_free_here(f, &owned->buffer[i]); /* stale: somebody was faster */
    free(owned);
}

static int run(fbx_fabric *f, struct fbxi_errand *e)
{
    const struct fbxw_frame *w = &e->frame;
    const char *text = (const char *)e->payload;
    struct fbx_buffer b;
    struct fbx_window_info info;
    int status = 0;
    switch (w->what) {
    case FBXW_PUT: return (status = directory(f)) ? status : put(f, e);
    case FBXW_GET: return (status = directory(f)) ? status : get(f, e);
    case FBXW_FIND:
        if ((status = directory(f)) || (status = fbx_buffer_find(f, text, &b)))
            return status;
        return give_buffer(e, &b);
    case FBXW_NAME:
    case FBXW_UNNAME:
        if ((status = directory(f)) || (status = buffer_of(e, &b)))
            return status;
        return w->what == FBXW_NAME ? fbxi_name_buffer(f, &b) : fbxi_unname_buffer(f, &b);
    case FBXW_ALLOC:
        if (w->aux >= f->region_count || (status = here(f, f->region_facts[w->aux].node)))
            return status ? status : fbxi_fail(FBX_E_INVALID, "no region %u here", w->aux);
        if ((status = fbxi_alloc_here(f, 1, w->aux, w->value, w->address, text, &b)))
            return status;
        if (!text[0] && (status = fbxi_owned_add(f, e->owned, &b))) {
            struct fbx_error kept = *fbx_last_error();
            fbxi_free_here(f, &b);
            return fbxi_fail(status, "%s", kept.text);
        }
        return give_buffer(e, &b);
    case FBXW_FREE:
    case FBXW_CHECK:
        if ((status = buffer_of(e, &b)) || b.region >= f->region_count || (status = here(f, f->region_facts[b.region].node)))
            return status ? status : fbxi_fail(FBX_E_STALE, "no such buffer here");
        return w->what == FBXW_FREE ? fbxi_free_here(f, &b) : fbxi_check_here(f, &b);
    case FBXW_BARRIER:
    case FBXW_LEAVE: {
        uint64_t ticket = w->value;
        if (!e->proxy || (status = directory(f)))
            return status ? status : fbxi_fail(FBX_E_INVALID, "a barrier is for nodes");
        status = w->what == FBXW_BARRIER ? fbx_barrier(e->proxy, text, w->aux, &ticket, 0) : fbx_barrier_leave(e->proxy, text, ticket);
        e->frame.value = ticket;
        return status;
    }
    case FBXW_WINDOW_INFO:
        if ((status = here(f, w->aux)) || (status = fbx_mw_info(f, w->aux, (uint32_t)word(e, 0), &info)))
            return status;
        fbxw_put64(e->payload, info.peer);
        fbxw_put64(e->payload + 8, info.perm | (uint64_t)info.attr << 32);
        fbxw_put64(e->payload + 16, info.mapping);
        fbxw_put64(e->payload + 24, info.programmed);
        fbxw_put64(e->payload + 32, info.translation);
        fbxw_put64(e->payload + 40, info.bytes);
        e->bytes = 48;
        return 0;
    default: return fbxi_fail(FBX_E_UNSUPPORTED, "errand %u is none", w->what);
    }
}

void fbxi_errand_run(fbx_fabric *f, struct fbxi_errand *e)
{
    fbxi_on_errand = 1;
    int status = run(f, e);
    if (status && status != FBX_E_AGAIN) {
        /* Why, in words: the asker shows them. */
        const char *why = fbx_last_error()->code == status ? fbx_last_error()->text : "";
        e->bytes = (uint32_t)strlen(why);
        memcpy(e->payload, why, e->bytes);
    }
    e->frame.status = status;
}
