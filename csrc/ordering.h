/* SPDX-License-Identifier: Apache-2.0
 *
 * Which request may pass which: the rules of PCI Express, and an adversary that uses every one of them. Pure but for the
 * seed's decisions (choice.h): it reads no clock and touches no memory of the fabric's.
 *
 * Where nothing is adversarial, arrival times alone say what comes first, and a stream (source, target, traffic class) keeps
 * the order of issue. With `ordering: adversarial` the producer of a write decides when it arrives: later than the model
 * says by as much as the seed likes, and before earlier writes of its stream if a rule permits that. Delivery then follows
 * arrival times and knows no rules. What no rule permits is never arranged, so it cannot happen.
 */
#ifndef FBX_ORDERING_H
#define FBX_ORDERING_H
#include "choice.h"
#include "internal.h"

static inline int fbxi_adversarial(const fbx_fabric *f) { return __builtin_expect(f->ordering == FBX_ADVERSARIAL, 0) != 0; }

static inline int fbxi_same_words(const struct fbxl_entry *a, const struct fbxi_post *b)
{
    return a->region == b->region && a->offset / 8 <= (b->offset + b->bytes - 1) / 8 && b->offset / 8 <= (a->offset + a->bytes - 1) / 8;
}

/* By which rule may `later` pass `earlier` of the same stream? FBX_RULE_NONE: it may not. */
static inline uint32_t fbxi_may_pass(const struct fbxl_entry *earlier, const struct fbxi_post *later)
{
    if (later->flags & FBXL_ENTRY_RO)
        return FBX_RULE_RO;
    if (later->flags & FBXL_ENTRY_IDO && later->requester != earlier->requester)
        return FBX_RULE_IDO;
    /* Buffers leave in any order, whole or in parts, until they are drained; the same 8 bytes leave as they were last. */
    if (later->flags & FBXL_ENTRY_COMBINING && earlier->flags & FBXL_ENTRY_COMBINING && later->requester == earlier->requester &&
        earlier->sequence > later->drained && !fbxi_same_words(earlier, later))
        return FBX_RULE_COMBINING;
    return FBX_RULE_NONE;
}

/* How much later than the model says something arrives: most often not much, sometimes unfairly so. */
#define FBX_DELAYS 12u
static inline uint64_t fbxi_unfair_ps(fbx_fabric *f, uint32_t kind, uint64_t key)
{
    static const uint64_t ps[FBX_DELAYS] = {0,       0,       0,        40000,    150000,    500000,
                                            1500000, 4000000, 12000000, 30000000, 100000000, 400000000};
    return ps[fbxi_choice_at(f, kind, key, f->sim ? FBX_DELAYS : FBX_DELAYS - 1)];
}

/* Does a request that may pass what is before it do so? */
static inline int fbxi_passes(fbx_fabric *f, uint64_t key) { return fbxi_choice_at(f, FBXI_CHOICE_PASS, key, 4) != 0; }
#endif
