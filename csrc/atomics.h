/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory orderings of the core, by name. This is the only file that may say `atomic_`.
 *
 * Shared control words are declared `fbx_au32`/`fbx_au64` in layout.h and go through the first group.
 * User memory (regions) is plain bytes that programs of any language touch; it goes through the `fbx_mem_*`
 * group, whose accesses are single-copy atomic up to 8 aligned bytes.
 *
 * Built with FBX_SITES, every publish and claim is a numbered site at which a test can kill the process:
 * once before the word changes and once after it.
 */
#ifndef FBX_ATOMICS_H
#define FBX_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__SANITIZE_THREAD__)
#define FBX_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FBX_TSAN 1
#endif
#endif

typedef _Atomic(uint32_t) fbx_au32;
typedef _Atomic(uint64_t) fbx_au64;

_Static_assert(sizeof(fbx_au64) == 8 && sizeof(fbx_au32) == 4, "shared words must have the size of their integers");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a lock inside an atomic would not be shared between processes");

#ifdef FBX_SITES
struct fbx_site {
    const char *file, *function;
    int line, after;
};
void fbx_site_hit(const struct fbx_site *site);
/* Kill this process when it comes to `site` for the nth time. */
void fbx_site_arm(int site, int nth);
int fbx_site_count(void);
const struct fbx_site *fbx_site_at(int site);
#define FBX_SITE_(when)                                                                                                \
    do {                                                                                                               \
        static const struct fbx_site site_ __attribute__((section("fbx_sites"), used, aligned(8))) = {                 \
            __FILE__, __func__, __LINE__, when};                                                                       \
        fbx_site_hit(&site_);                                                                                          \
    } while (0)
#else
#define FBX_SITE_(when) ((void)0)
#endif

/* Load what a peer published: everything it wrote before the publish is visible after it. */
#define fbx_observe(word) atomic_load_explicit((word), memory_order_acquire)
/* Load a value that orders nothing (a counter, a hint that is checked again later). */
#define fbx_peek(word) atomic_load_explicit((word), memory_order_relaxed)
/* Store a value that orders nothing. */
#define fbx_poke(word, value) atomic_store_explicit((word), (value), memory_order_relaxed)
/* Store after everything written before it. */
#define fbx_publish(word, value)                                                                                       \
    do {                                                                                                               \
        FBX_SITE_(0);                                                                                                  \
        atomic_store_explicit((word), (value), memory_order_release);                                                  \
        FBX_SITE_(1);                                                                                                  \
    } while (0)
/* Full fence: store, then look at what another may have stored before looking at ours (Dekker). */
#ifdef FBX_TSAN
/* The thread sanitizer knows no fences: give it a word that every fence touches. */
static fbx_au32 fbx_fence_word __attribute__((unused));
#define fbx_fence_sleep() ((void)atomic_fetch_add_explicit(&fbx_fence_word, 0, memory_order_seq_cst))
#else
#define fbx_fence_sleep() atomic_thread_fence(memory_order_seq_cst)
#endif
/* After plain copies out of shared memory, before what is done because of them; and the reverse for copies into it. */
#ifdef FBX_TSAN
#define fbx_fence_load() fbx_fence_sleep()
#define fbx_fence_store() fbx_fence_sleep()
#else
#define fbx_fence_load() atomic_thread_fence(memory_order_acquire)
#define fbx_fence_store() atomic_thread_fence(memory_order_release)
#endif
/* Order for the compiler only; the other side pays with membarrier(2). */
#define fbx_compiler_fence() atomic_signal_fence(memory_order_seq_cst)

/* Read-modify-write, all sequentially consistent: on the processors at hand that costs what acquire-release does. */
#define fbx_add(word, value) atomic_fetch_add_explicit((word), (value), memory_order_seq_cst)
#define fbx_or(word, value) atomic_fetch_or_explicit((word), (value), memory_order_seq_cst)
#define fbx_and(word, value) atomic_fetch_and_explicit((word), (value), memory_order_seq_cst)
#define fbx_swap(word, value) atomic_exchange_explicit((word), (value), memory_order_seq_cst)
/* A counter that only reports read. */
#define fbx_count(word, value) ((void)atomic_fetch_add_explicit((word), (value), memory_order_relaxed))

/* Take `word` from `expected` to `desired`; true if it was ours to take. */
static inline bool fbx_claim_(fbx_au64 *word, uint64_t expected, uint64_t desired)
{
    return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_seq_cst, memory_order_acquire);
}
static inline bool fbx_claim32_(fbx_au32 *word, uint32_t expected, uint32_t desired)
{
    return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_seq_cst, memory_order_acquire);
}
#ifdef FBX_SITES
#define fbx_claim(word, expected, desired)                                                                             \
    ({                                                                                                                 \
        FBX_SITE_(0);                                                                                                  \
        bool claimed_ = fbx_claim_((word), (expected), (desired));                                                     \
        if (claimed_)                                                                                                  \
            FBX_SITE_(1);                                                                                              \
        claimed_;                                                                                                      \
    })
#define fbx_claim32(word, expected, desired)                                                                           \
    ({                                                                                                                 \
        FBX_SITE_(0);                                                                                                  \
        bool claimed_ = fbx_claim32_((word), (expected), (desired));                                                   \
        if (claimed_)                                                                                                  \
            FBX_SITE_(1);                                                                                              \
        claimed_;                                                                                                      \
    })
#else
#define fbx_claim(word, expected, desired) fbx_claim_((word), (expected), (desired))
#define fbx_claim32(word, expected, desired) fbx_claim32_((word), (expected), (desired))
#endif

static inline void fbx_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* ---- user memory ------------------------------------------------------------------------------------------------ */

/* One access of 1, 2, 4 or 8 naturally aligned bytes, little-endian value. Acquire: a load that finds a flag also
 * finds what the flag's writer stored before it, as a CPU's load from uncached space would. */
static inline uint64_t fbx_mem_load(const void *at, uint32_t size)
{
    switch (size) {
    case 1: return __atomic_load_n((const uint8_t *)at, __ATOMIC_ACQUIRE);
    case 2: return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
    case 4: return __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE);
    default: return __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE);
    }
}

static inline void fbx_mem_store(void *at, uint64_t value, uint32_t size)
{
    switch (size) {
    case 1: __atomic_store_n((uint8_t *)at, (uint8_t)value, __ATOMIC_RELEASE); break;
    case 2: __atomic_store_n((uint16_t *)at, (uint16_t)value, __ATOMIC_RELEASE); break;
    case 4: __atomic_store_n((uint32_t *)at, (uint32_t)value, __ATOMIC_RELEASE); break;
    default: __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELEASE); break;
    }
}

static inline uint64_t fbx_mem_fetch_add(void *at, uint64_t value, uint32_t size)
{
    if (size == 4)
        return __atomic_fetch_add((uint32_t *)at, (uint32_t)value, __ATOMIC_SEQ_CST);
    return __atomic_fetch_add((uint64_t *)at, value, __ATOMIC_SEQ_CST);
}

static inline uint64_t fbx_mem_swap(void *at, uint64_t value, uint32_t size)
{
    if (size == 4)
        return __atomic_exchange_n((uint32_t *)at, (uint32_t)value, __ATOMIC_SEQ_CST);
    return __atomic_exchange_n((uint64_t *)at, value, __ATOMIC_SEQ_CST);
}

/* Returns the old value, whether or not it was replaced. */
static inline uint64_t fbx_mem_cas(void *at, uint64_t expected, uint64_t desired, uint32_t size)
{
    if (size == 4) {
        uint32_t e = (uint32_t)expected;
        __atomic_compare_exchange_n((uint32_t *)at, &e, (uint32_t)desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        return e;
    }
    __atomic_compare_exchange_n((uint64_t *)at, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}

/* 128-bit compare and swap on 16 aligned bytes; `old` receives what was there. Inline, so that nothing links libatomic,
 * whose fallback is a lock of one process. */
static inline void fbx_mem_cas16(void *at, const uint64_t expected[2], const uint64_t desired[2], uint64_t old[2])
{
#if defined(__x86_64__)
    uint64_t lo = expected[0], hi = expected[1];
    __asm__ __volatile__("lock cmpxchg16b %0"
                         : "+m"(*(unsigned __int128 *)at), "+a"(lo), "+d"(hi)
                         : "b"(desired[0]), "c"(desired[1])
                         : "cc", "memory");
    old[0] = lo;
    old[1] = hi;
#elif defined(__aarch64__)
    uint64_t lo, hi;
    uint32_t failed;
    /* A pair load is single-copy atomic only if the store-exclusive succeeds, so a mismatch stores back what it read. */
    do {
        __asm__ __volatile__("ldaxp %0, %1, [%2]" : "=&r"(lo), "=&r"(hi) : "r"(at) : "memory");
        bool same = lo == expected[0] && hi == expected[1];
        uint64_t new_lo = same ? desired[0] : lo, new_hi = same ? desired[1] : hi;
        __asm__ __volatile__("stlxp %w0, %1, %2, [%3]"
                             : "=&r"(failed)
                             : "r"(new_lo), "r"(new_hi), "r"(at)
                             : "memory");
    } while (failed);
    old[0] = lo;
    old[1] = hi;
#else
#error "128-bit compare and swap: port me"
#endif
}

/* Pointers that threads of one process hand each other: filled before they are published. */
#define fbx_publish_pointer(at, value) __atomic_store_n((at), (value), __ATOMIC_RELEASE)
#define fbx_observe_pointer(at) __atomic_load_n((at), __ATOMIC_ACQUIRE)

/* Bits of a shared map of bytes: set (returns the byte before), and looked at. */
static inline uint8_t fbx_bits_or(uint8_t *at, uint8_t bits) { return __atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST); }
static inline uint8_t fbx_bits_observe(const uint8_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }


/* Copy between user memory and a program's buffer. Several processes may touch the same bytes at once: that is what a
 * fabric is. Every aligned 8-byte piece is read and written whole, in increasing addresses, which memcpy does not
 * promise (it may store the tail first). The thread sanitizer is shown word-sized atomics. */
#if defined(__x86_64__) && !defined(FBX_TSAN)
#include <emmintrin.h>
#endif
#define FBX_WIDE_BYTES 1024u
size_t fbx_copy_wide(void *to, const void *from, size_t size); /* copy.c; how much it has copied, from the beginning */
static inline void fbx_mem_copy(void *to, const void *from, size_t size)
{
    uint8_t *t = to;
    const uint8_t *f = from;
    while (size && ((uintptr_t)t & 7)) {
        __atomic_store_n(t, __atomic_load_n(f, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
        t++, f++, size--;
    }
    if (!((uintptr_t)f & 7)) {
        if (size >= FBX_WIDE_BYTES) {
            size_t copied = fbx_copy_wide(t, f, size);
            t += copied, f += copied, size -= copied;
        }
#if defined(__x86_64__) && !defined(FBX_TSAN)
        /* 16-byte moves are two whole 8-byte pieces, and x86 keeps the order of stores. */
        for (; size >= 64; t += 64, f += 64, size -= 64) {
            __m128i a = _mm_loadu_si128((const __m128i *)(const void *)f);
            __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(f + 16));
            __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(f + 32));
            __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(f + 48));
            _mm_storeu_si128((__m128i *)(void *)t, a);
            _mm_storeu_si128((__m128i *)(void *)(t + 16), b);
            _mm_storeu_si128((__m128i *)(void *)(t + 32), c);
            _mm_storeu_si128((__m128i *)(void *)(t + 48), d);
        }
#endif
        for (; size >= 8; t += 8, f += 8, size -= 8)
            __atomic_store_n((uint64_t *)(void *)t, __atomic_load_n((const uint64_t *)(const void *)f, __ATOMIC_RELAXED),
                             __ATOMIC_RELAXED);
    } else {
        /* The private side is unaligned: memory of the fabric is the side that must be whole, and it may be either. */
        for (; size >= 8; t += 8, f += 8, size -= 8) {
            uint64_t word;
#ifdef FBX_TSAN
            for (uint32_t i = 0; i < 8; i++)
                ((uint8_t *)&word)[i] = __atomic_load_n(f + i, __ATOMIC_RELAXED);
#else
            memcpy(&word, f, 8);
#endif
            __atomic_store_n((uint64_t *)(void *)t, word, __ATOMIC_RELAXED);
        }
    }
    for (; size; t++, f++, size--)
        __atomic_store_n(t, __atomic_load_n(f, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
}

/* The same around the cache, for transfers that are larger than it: the destination is not read first. Its order is the
 * copy's; all of it is visible to whoever sees what is stored after the return. */
#define FBX_STREAM_BYTES (16u << 20)
void fbx_mem_stream(void *to, const void *from, size_t size);

#endif
