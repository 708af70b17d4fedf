/* SPDX-License-Identifier: Apache-2.0
 *
 * The log of decisions and what overrides them: for runs under the virtual clock, where one thread decides everything.
 */
#include "choice.h"

#include <stdlib.h>

struct fbxi_choices {
    struct fbx_choice *log; /* decisions that were not 0, in the order made */
    uint64_t count, room, made;
    struct fbx_choice *fixed; /* sorted by kind and key */
    uint64_t fixed_count;
    uint32_t logging, only;
};

static int by_name(const void *a, const void *b)
{
    const struct fbx_choice *x = a, *y = b;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    return x->key < y->key ? -1 : x->key > y->key;
}

uint64_t fbxi_choice_decide(fbx_fabric *f, uint32_t kind, uint64_t key, uint64_t n, uint64_t drawn)
{
    struct fbxi_choices *c = f->choices;
    struct fbx_choice name = {.kind = kind, .key = key};
    c->made++;
    if (c->fixed_count || c->only) {
        const struct fbx_choice *found =
            c->fixed_count ? bsearch(&name, c->fixed, c->fixed_count, sizeof *c->fixed, by_name) : NULL;
        if (found)
            drawn = found->value < n ? found->value : n - 1;
        else if (c->only)
            drawn = 0;
    }
    if (c->logging && drawn) {
        if (c->count == c->room) {
            uint64_t room = c->room ? 2 * c->room : 256;
            struct fbx_choice *more = realloc(c->log, room * sizeof *more);
            if (!more)
                return drawn; /* a shorter log makes a longer explanation, nothing worse */
            c->log = more;
            c->room = room;
        }
        name.value = drawn;
        name.n = n;
        name.at_ps = fbxi_now(&f->clock);
        c->log[c->count++] = name;
    }
    return drawn;
}

void fbxi_choices_free(fbx_fabric *f)
{
    if (f->choices) {
        free(f->choices->log);
        free(f->choices->fixed);
        free(f->choices);
        f->choices = NULL;
    }
}

uint64_t fbx_choose(fbx_fabric *f, uint32_t kind, uint64_t count) { return kind < 16 ? fbxi_choice(f, kind, count) : 0; }

int fbx_choice_plan(fbx_fabric *f, const struct fbx_choice *fixed, uint64_t count, uint32_t flags)
{
    if (f->clock.kind != FBX_VIRTUAL)
        return fbxi_fail(FBX_E_INVALID, "decisions are logged and overridden under the virtual clock only");
    fbxi_choices_free(f);
    if (!count && !flags)
        return 0;
    struct fbxi_choices *c = calloc(1, sizeof *c);
    if (c && count)
        c->fixed = malloc(count * sizeof *fixed);
    if (!c || (count && !c->fixed)) {
        free(c);
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory for %llu decisions", (unsigned long long)count);
    }
    if (count) {
        memcpy(c->fixed, fixed, count * sizeof *fixed);
        qsort(c->fixed, count, sizeof *c->fixed, by_name);
    }
    c->fixed_count = count;
    c->logging = (flags & FBX_CHOICE_LOG) != 0;
    c->only = (flags & FBX_CHOICE_ONLY) != 0;
    f->choices = c;
    return 0;
}

uint64_t fbx_choice_log(fbx_fabric *f, struct fbx_choice *out, uint64_t room)
{
    const struct fbxi_choices *c = f->choices;
    if (!c)
        return 0;
    if (room)
        memcpy(out, c->log, (room < c->count ? room : c->count) * sizeof *out);
    return c->count;
}
