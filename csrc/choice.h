/* SPDX-License-Identifier: Apache-2.0
 *
 * Decisions that a seed makes: which delay, which of several ready programs, whether this write passes that one.
 *
 * Each decision has a kind and a key (its stable name: source, target, class and sequence of a write; a program and how many
 * times it has been asked). What the seed says depends on nothing else, so that changing one decision leaves the others as
 * they were; that is what makes a failing run small. 0 is always the harmless answer: no delay, the usual order. A log and
 * a table of overrides can be attached (virtual clock only); without them a decision is some multiplications.
 */
#ifndef FBX_CHOICE_H
#define FBX_CHOICE_H
#include "internal.h"

enum fbxi_choice_kind {
    FBXI_CHOICE_SCHEDULE = 1, /* which of the programs that are ready at the same time */
    FBXI_CHOICE_STALL = 2, /* how long a program is kept from the processor after an operation */
    FBXI_CHOICE_DELAY = 3, /* how much later a write arrives than the model says */
    FBXI_CHOICE_PASS = 4, /* whether a write passes what is before it, where the rules permit it */
    FBXI_CHOICE_TEAR = 5, /* in which order the lines of a wide read are sampled */
    FBXI_CHOICE_COMBINE = 6, /* when a write-combining buffer leaves */
    FBXI_CHOICE_STALE = 7, /* whether a cached line is used again */
    FBXI_CHOICE_OTHER = 8
};

/* 64 bits that depend on all of (seed, kind, key): integer arithmetic only, the same on every machine. */
static inline uint64_t fbxi_choice_bits(uint64_t seed, uint64_t kind, uint64_t key)
{
    uint64_t x = seed + kind * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    x ^= x >> 31;
    x += key * 0xD1342543DE82EF95ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

/* The log and overrides say what becomes of a decision whose seed says `drawn`. */
uint64_t fbxi_choice_decide(fbx_fabric *f, uint32_t kind, uint64_t key, uint64_t n, uint64_t drawn);

/* One of 0 .. n-1 by the name `key`; 0 for n below 2. */
static inline uint64_t fbxi_choice_at(fbx_fabric *f, uint32_t kind, uint64_t key, uint64_t n)
{
    if (n < 2)
        return 0;
    uint64_t drawn = (uint64_t)(((unsigned __int128)fbxi_choice_bits(f->choice_seed, kind, key) * n) >> 64);
    return __builtin_expect(f->choices != NULL, 0) ? fbxi_choice_decide(f, kind, key, n, drawn) : drawn;
}

/* Harmless but once in `one_in` times; then one of 1 .. n-1. */
static inline uint64_t fbxi_choice_rare(fbx_fabric *f, uint32_t kind, uint64_t key, uint64_t n, uint64_t one_in)
{
    if (n < 2)
        return 0;
    const uint64_t bits = fbxi_choice_bits(f->choice_seed, kind, key);
    uint64_t drawn = 0;
    if ((uint64_t)(((unsigned __int128)bits * one_in) >> 64) == 0)
        drawn = 1 + (uint64_t)(((unsigned __int128)(bits * 0x9E3779B97F4A7C15ull ^ bits >> 32) * (n - 1)) >> 64);
    return __builtin_expect(f->choices != NULL, 0) ? fbxi_choice_decide(f, kind, key, n, drawn) : drawn;
}

/* The same as fbxi_choice_at(), named by how many of this kind there have been in this process. */
static inline uint64_t fbxi_choice(fbx_fabric *f, uint32_t kind, uint64_t n)
{
    return fbxi_choice_at(f, kind, f->choice_count[kind & 15]++, n);
}

/* A name for a decision about write `sequence` of a stream: class | path << 3, and 32 for requests, which a requester counts.
 * Bits 31 to 33 are the caller's, for several decisions about one. */
static inline uint64_t fbxi_choice_key(uint32_t source, uint32_t target, uint32_t stream, uint64_t sequence)
{
    return (uint64_t)(source & 0xfff) << 52 | (uint64_t)(target & 0xfff) << 40 | (uint64_t)(stream & 0x3f) << 34 |
           (sequence & 0x7fffffffull);
}

void fbxi_choices_free(fbx_fabric *f);
#endif
