/* SPDX-License-Identifier: Apache-2.0
 *
 * linear.h - is a history of operations on registers linearizable? Each operation has an interval in which it took effect and
 * what it was given or gave; the question is whether there is one order of them all, inside the intervals, that a register
 * which does one thing at a time could have gone through.
 *
 * Registers do not depend on one another, so each is decided by itself (a history is linearizable exactly if that of every
 * object is: Herlihy and Wing, 1990). The search keeps every state that the register may be in, together with how many of
 * each process's open operations have taken effect, and puts an operation in place no earlier than the end of some interval
 * forces it to ("just in time": Lowe, Testing for linearizability, 2017). When no state is left, there is no such order.
 * Operations of one process take effect in the order in which it issued them, also those whose intervals overlap: posted
 * writes of one requester do not pass one another.
 *
 * The reference model is linear_step(). It shares nothing with the core.
 */
#ifndef FBX_TESTS_LINEAR_H
#define FBX_TESTS_LINEAR_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINEAR_PROCESSES 4u
#define LINEAR_CONFIGS (1u << 15)

enum linear_kind {
    LINEAR_READ, LINEAR_WRITE, /* a word: what was read, what is written */
    LINEAR_SET, LINEAR_CLEAR, /* bits of a word */
    LINEAR_SEND, /* a message register takes it if it is empty, and otherwise keeps what it has */
    LINEAR_TAKE, /* it is empty from here on; what it held can still be read */
    LINEAR_STATUS, LINEAR_MESSAGE, /* whether it is full; what it holds and of whom */
    LINEAR_KINDS
};
#define LINEAR_FULL (1ull << 63)

struct linear_op {
    uint64_t begin, end; /* it took effect in between */
    uint64_t value;
    uint16_t kind, object;
    uint32_t process;
};

/* What the register is after an operation; 0 if the operation could not have gone so. */
static int linear_step(const struct linear_op *op, uint64_t *state)
{
    switch (op->kind) {
    case LINEAR_READ: return *state == op->value;
    case LINEAR_WRITE: *state = op->value; return 1;
    case LINEAR_SET: *state |= op->value; return 1;
    case LINEAR_CLEAR: *state &= ~op->value; return 1;
    case LINEAR_SEND:
        if (!(*state & LINEAR_FULL))
            *state = LINEAR_FULL | op->value;
        return 1;
    case LINEAR_TAKE: *state &= ~LINEAR_FULL; return 1;
    case LINEAR_STATUS: return *state >> 63 == op->value;
    case LINEAR_MESSAGE: return (*state & ~LINEAR_FULL) == op->value;
    default: return 0;
    }
}

struct linear_config {
    uint64_t state;
    uint8_t ahead[LINEAR_PROCESSES]; /* of its operations that have not ended, so many have taken effect */
};

struct linear_set {
    struct linear_config *config;
    uint32_t *slot; /* hash: index + 1 */
    uint32_t count;
};

struct linear_object { /* one register, from one piece of history to the next */
    struct linear_set now, next;
    uint64_t decided; /* operations that are in order */
    uint32_t widest; /* most configurations at once */
};

static void linear_set_init(struct linear_set *s)
{
    s->config = calloc(LINEAR_CONFIGS, sizeof *s->config);
    s->slot = calloc(2 * LINEAR_CONFIGS, sizeof *s->slot);
    s->count = 0;
    if (!s->config || !s->slot)
        abort();
}

static uint32_t linear_hash(const struct linear_config *c)
{
    uint32_t ahead;
    memcpy(&ahead, c->ahead, sizeof ahead);
    return (uint32_t)(((c->state ^ (uint64_t)ahead << 17) * 0x9E3779B97F4A7C15ull) >> 40) & (2 * LINEAR_CONFIGS - 1);
}

static void linear_set_empty(struct linear_set *s)
{
    for (uint32_t i = 0; i < s->count; i++) { /* only what is in use: most sets are tiny */
        uint32_t at = linear_hash(&s->config[i]);
        while (s->slot[at]) {
            s->slot[at] = 0;
            at = (at + 1) & (2 * LINEAR_CONFIGS - 1);
        }
    }
    s->count = 0;
}

/* 0 if there is no room. */
static int linear_set_add(struct linear_set *s, const struct linear_config *c)
{
    uint32_t at = linear_hash(c);
    while (s->slot[at]) {
        const struct linear_config *old = &s->config[s->slot[at] - 1];
        if (old->state == c->state && !memcmp(old->ahead, c->ahead, sizeof c->ahead))
            return 1;
        at = (at + 1) & (2 * LINEAR_CONFIGS - 1);
    }
    if (s->count == LINEAR_CONFIGS)
        return 0;
    s->config[s->count] = *c;
    s->slot[at] = ++s->count;
    return 1;
}

static void linear_init(struct linear_object *o, uint64_t state)
{
    struct linear_config first = {.state = state};
    linear_set_init(&o->now);
    linear_set_init(&o->next);
    linear_set_add(&o->now, &first);
    o->decided = 0;
    o->widest = 1;
}

static void linear_free(struct linear_object *o)
{
    free(o->now.config);
    free(o->now.slot);
    free(o->next.config);
    free(o->next.slot);
}

enum { LINEAR_YES, LINEAR_NO, LINEAR_TOO_WIDE };

/* Go on with operations of this object, process by process, in the order of issue; all of them have ended, and ends do not
 * decrease. `culprit`: the operation that fits nowhere. */
static int linear_check(struct linear_object *o, const struct linear_op *const ops[LINEAR_PROCESSES],
                        const uint64_t count[LINEAR_PROCESSES], struct linear_op *culprit)
{
    uint64_t ended[LINEAR_PROCESSES] = {0};
    for (;;) {
        uint32_t p = LINEAR_PROCESSES;
        for (uint32_t q = 0; q < LINEAR_PROCESSES; q++)
            if (ended[q] < count[q] && (p == LINEAR_PROCESSES || ops[q][ended[q]].end < ops[p][ended[p]].end))
                p = q;
        if (p == LINEAR_PROCESSES)
            return LINEAR_YES;
        /* This one ends now: it has taken effect, and whatever had begun may have done so before it. */
        const uint64_t end = ops[p][ended[p]].end;
        linear_set_empty(&o->next);
        for (uint32_t i = 0; i < o->now.count; i++) { /* grows while we go */
            const struct linear_config c = o->now.config[i];
            if (c.ahead[p]) {
                struct linear_config after = c;
                after.ahead[p]--;
                if (!linear_set_add(&o->next, &after))
                    return LINEAR_TOO_WIDE;
                continue;
            }
            for (uint32_t q = 0; q < LINEAR_PROCESSES; q++) {
                const uint64_t at = ended[q] + c.ahead[q];
                struct linear_config after = c;
                if (at >= count[q] || ops[q][at].begin > end || !linear_step(&ops[q][at], &after.state))
                    continue;
                after.ahead[q]++;
                if (!linear_set_add(&o->now, &after))
                    return LINEAR_TOO_WIDE;
            }
        }
        if (!o->next.count) {
            *culprit = ops[p][ended[p]];
            return LINEAR_NO;
        }
        struct linear_set swap = o->now;
        o->now = o->next;
        o->next = swap;
        if (o->now.count > o->widest)
            o->widest = o->now.count;
        ended[p]++;
        o->decided++;
    }
}

#endif
