/* SPDX-License-Identifier: Apache-2.0
 *
 * Reservations of links, lock-free.
 *
 * A directed link has a calendar: a ring of slots, each 2^slot_shift ps long (two full packets or more), indexed by
 * absolute time. Traffic reserves the time at which it reaches the link, not the time at which it was issued, so what is on
 * its way from afar does not delay what is near. One 64-bit word is a slot:
 *
 *     tag 17 | tail 11 | bulk 12 | idle 12 | fill 12        in units of 2^(slot_shift - 11) ps; a full slot is 2048 units
 *
 * fill: where the last small packet of the slot ends, from its start. tail: where the busy time that ends there began; who
 * arrives in it queues at its end, exactly as in a first-come queue. idle: time before the tail that nobody took; a packet
 * that was issued later but arrives earlier finds its place there. bulk: time in the slot that long transfers hold. A small
 * packet passes between the packets of bulk, as an arbiter that serves ports in turn would let it: it waits for the rest of
 * the packet on the wire and displaces bulk, which pays later (debt).
 *
 * Every change is one compare-and-swap of one word. A process that dies between two of them leaves at most one packet's
 * time reserved for nothing; a word of a time long past is recognised by its tag and is empty.
 */
#include "timing.h"

#include "pcie.h"

#define FULL 2048u
#define FIELD 0xfffu
#define TAG 0x1ffffu
#define UNIT_BITS 11u

struct slot {
    uint32_t fill, idle, bulk, tail;
};

static inline struct slot unpack(uint64_t word, uint64_t tag)
{
    struct slot s = {0, 0, 0, 0};
    /* A word of the next turn of the ring: this slot's time is long past, and nobody may take it any more. */
    if (word && (((word >> 47) - tag) & TAG) == 1)
        return (struct slot){FULL, 0, 0, 0};
    if (word >> 47 == (tag & TAG)) {
        s.fill = (uint32_t)word & FIELD;
        s.idle = (uint32_t)(word >> 12) & FIELD;
        s.bulk = (uint32_t)(word >> 24) & FIELD;
        s.tail = (uint32_t)(word >> 36) & 0x7ff;
        /* A scribbled word must not lead to endless or backward time. */
        if (s.fill > FULL || s.idle > s.tail || s.tail > s.fill || s.bulk > FULL)
            s = (struct slot){0, 0, 0, 0};
    }
    return s;
}

static inline uint64_t pack(struct slot s, uint64_t tag)
{
    return (tag & TAG) << 47 | (uint64_t)s.tail << 36 | (uint64_t)s.bulk << 24 | (uint64_t)s.idle << 12 | s.fill;
}

/* 24 bits that are as good as random and the same on every machine. */
static inline uint64_t scatter(uint64_t at_ps) { return (at_ps * 0x9E3779B97F4A7C15ull) >> 40; }

/* Units for a duration: rounded up or down in proportion, so that many short packets add up to what they take. */
static inline uint64_t units(uint64_t duration_ps, uint64_t at_ps, uint32_t unit)
{
    return (duration_ps + (scatter(at_ps) & ((1ull << unit) - 1))) >> unit;
}

/* What a packet of the bulk on the link takes: at most a full one. */
static inline uint64_t packet_of(const struct fbxl_direction *d, const struct fbxi_figures *figures)
{
    uint64_t ps = fbx_peek(&d->bulk_packet_ps);
    return ps && ps < figures->tlp_ps ? ps : figures->tlp_ps;
}

static __attribute__((noinline)) int reserve_small(struct fbxl_direction *d, const struct fbxi_figures *figures, uint64_t at_ps,
                                                   uint64_t duration_ps, uint64_t *start_ps, uint64_t *end_ps)
{
    const uint32_t shift = figures->slot_shift, unit = shift - UNIT_BITS;
    fbx_au64 *const calendar = figures->calendar;
    uint32_t need = (uint32_t)units(duration_ps, at_ps, unit);
    uint64_t number = at_ps >> shift;
    uint32_t offset = (uint32_t)((at_ps >> unit) & (FULL - 1));
    bool started = false;
    for (uint32_t walked = 0; walked < FBX_CAL_SLOTS / 2; walked++, number++, offset = 0) {
        fbx_au64 *word = &calendar[number % FBX_CAL_SLOTS];
        const uint64_t tag = number / FBX_CAL_SLOTS;
        for (;;) {
            uint64_t seen = fbx_peek(word);
            struct slot s = unpack(seen, tag);
            uint32_t begin, displaced = 0, rest = 0;
            const uint32_t before = s.fill - s.idle + s.bulk;
            uint64_t wait_ps = 0;
            if (offset >= s.fill) {
                begin = offset;
                s.idle += offset - s.fill;
                s.tail = offset;
                s.fill = offset + need;
            } else if (offset < s.tail && (s.idle || s.fill < FULL)) {
                /* Before the last busy time, so it goes first; what does not fit the idle time moves those behind it on.
                 * Where exactly the others before the tail lie is forgotten: they were in the way with the share of that
                 * time that they take, and then for half of one on average. */
                uint32_t taken = s.idle < need ? s.idle : need;
                uint64_t random = scatter(at_ps);
                begin = offset;
                if ((random & 0xfff) * s.tail < (uint64_t)(s.tail - s.idle) << 12)
                    wait_ps = (duration_ps * (random >> 12)) >> 12;
                s.idle -= taken;
                s.fill += need - taken;
            } else if (s.fill < FULL) {
                begin = s.fill;
                s.fill += need;
            } else {
                break; /* full of small packets: the next slot */
            }
            if (s.fill > FULL) {
                rest = s.fill - FULL;
                s.fill = FULL;
            }
            uint32_t after = s.fill - s.idle + s.bulk;
            if (after > FULL) {
                displaced = after - FULL < s.bulk ? after - FULL : s.bulk;
                s.bulk -= displaced;
            }
            if (!fbx_claim(word, seen, pack(s, tag)))
                continue;
            if (displaced)
                fbx_count(&d->debt, displaced);
            if (!started) {
                started = true;
                *start_ps = begin == offset && walked == 0 ? at_ps + wait_ps : (number << shift) + ((uint64_t)begin << unit);
                /* The packet of bulk that is on the wire just then goes first: on average half of one, in proportion to
                 * how busy bulk keeps the link. */
                if (s.bulk + displaced) {
                    uint64_t random = scatter(*start_ps + 1);
                    if ((random & (FULL - 1)) < (before < FULL ? before : FULL))
                        *start_ps += (packet_of(d, figures) * (random >> 12)) >> 12;
                }
                *end_ps = *start_ps + duration_ps;
            } else {
                uint64_t end = (number << shift) + ((uint64_t)(begin + (need - rest)) << unit);
                if (end > *end_ps)
                    *end_ps = end;
            }
            if (!rest)
                return 0;
            need = rest;
            break;
        }
    }
    /* More is waiting than a calendar holds: the end of it is as far as this model looks. */
    if (!started)
        *start_ps = number << shift;
    *end_ps = (number << shift) + duration_ps;
    return 1;
}

/* Where nobody has taken anything of the slot yet, and it fits, that is all there is to do: the same as above, at once. */
static inline int reserve_first(struct fbxl_direction *d, const struct fbxi_figures *figures, uint64_t at_ps, uint64_t duration_ps,
                                uint64_t *start_ps, uint64_t *end_ps)
{
    const uint32_t shift = figures->slot_shift, unit = shift - UNIT_BITS;
    const uint64_t number = at_ps >> shift, tag = number / FBX_CAL_SLOTS;
    const uint32_t offset = (uint32_t)((at_ps >> unit) & (FULL - 1)), fill = offset + (uint32_t)units(duration_ps, at_ps, unit);
    fbx_au64 *word = &figures->calendar[number % FBX_CAL_SLOTS];
    const uint64_t seen = fbx_peek(word);
    /* 0: this slot's; 1: the next turn's. */
    if ((seen && (((seen >> 47) - tag) & TAG) <= 1) || fill > FULL ||
        !fbx_claim(word, seen, pack((struct slot){.fill = fill, .idle = offset, .tail = offset}, tag)))
        return reserve_small(d, figures, at_ps, duration_ps, start_ps, end_ps);
    *start_ps = at_ps;
    *end_ps = at_ps + duration_ps;
    return 0;
}

static int reserve_bulk(struct fbxl_direction *d, const struct fbxi_figures *figures, uint64_t at_ps, uint64_t duration_ps,
                        uint64_t *start_ps, uint64_t *end_ps)
{
    const uint32_t shift = figures->slot_shift, unit = shift - UNIT_BITS;
    fbx_au64 *const calendar = figures->calendar;
    uint64_t need = units(duration_ps, at_ps, unit);
    if (fbx_peek(&d->debt)) {
        uint64_t debt = fbx_swap(&d->debt, 0);
        need += debt < FULL * 64ull ? debt : FULL * 64ull;
    }
    uint64_t number = at_ps >> shift;
    uint32_t offset = (uint32_t)((at_ps >> unit) & (FULL - 1));
    bool started = false;
    for (uint32_t walked = 0; walked < FBX_CAL_SLOTS / 2; walked++, number++, offset = 0) {
        fbx_au64 *word = &calendar[number % FBX_CAL_SLOTS];
        const uint64_t tag = number / FBX_CAL_SLOTS;
        for (;;) {
            uint64_t seen = fbx_peek(word);
            struct slot s = unpack(seen, tag);
            uint32_t used = s.fill - s.idle + s.bulk;
            uint32_t room = used < FULL ? FULL - used : 0;
            if (room > FULL - offset)
                room = FULL - offset;
            if (!room)
                break;
            uint32_t take = need < room ? (uint32_t)need : room;
            s.bulk += take;
            if (!fbx_claim(word, seen, pack(s, tag)))
                continue;
            uint32_t begin = used > offset ? used : offset;
            if (!started) {
                started = true;
                *start_ps = begin == offset && walked == 0 ? at_ps : (number << shift) + ((uint64_t)begin << unit);
            }
            need -= take;
            if (!need) {
                *end_ps = (number << shift) + ((uint64_t)(begin + take) << unit);
                if (*end_ps < *start_ps + duration_ps)
                    *end_ps = *start_ps + duration_ps;
                return 0;
            }
            break;
        }
    }
    if (!started)
        *start_ps = number << shift;
    *end_ps = (number << shift) + (need << unit);
    return 1;
}

int fbxi_reserve(struct fbxl_direction *d, const struct fbxi_figures *figures, uint64_t at_ps, uint64_t duration_ps, int bulk,
                 uint64_t *start_ps, uint64_t *end_ps)
{
    return bulk ? reserve_bulk(d, figures, at_ps, duration_ps, start_ps, end_ps)
                : reserve_first(d, figures, at_ps, duration_ps, start_ps, end_ps);
}

uint64_t fbxi_wire(const struct fbxi_figures *figures, uint64_t payload, uint64_t tlps, uint32_t header)
{
    uint64_t bytes = payload + tlps * header;
    return figures->ethernet ? fbx_ethernet_wire_bytes(figures->mtu, figures->overhead, bytes) : bytes;
}

/* What direction of a hop a packet takes, and that link's figures just now. */
static inline const struct fbxi_figures *hop_of(const struct fbxi_route *route, int back, uint32_t i, struct fbxl_direction **d)
{
    const struct fbxi_hop *hop = &route->hop[back ? route->hops - 1 - i : i];
    *d = back ? hop->back : hop->out;
    return back ? fbx_observe_pointer(&hop->back_figures) : fbx_observe_pointer(&hop->out_figures);
}

static inline uint64_t jitter(const struct fbxi_figures *figures, uint64_t start_ps, int reserve)
{
    if (__builtin_expect(!figures->jitter, 1))
        return 0;
    return reserve ? fbxi_jitter_at(figures->jitter, figures->jitter_seed, start_ps) : figures->jitter->mean_ps;
}

int fbxi_send(const struct fbxi_route *route, int back, uint64_t at_ps, uint64_t payload, uint64_t tlps,
              uint32_t header, int bulk, int reserve, struct fbxi_flight *out)
{
    /* Switches cut through: the head of a packet goes on while its tail still comes in, so each hop starts when the head
     * reaches it and no hop ends before its predecessor's tail could have. */
    uint64_t head = at_ps, tail = at_ps;
    uint32_t hops = 0;
    int clamped = 0;
    out->jitter_ps = 0;
    for (uint32_t i = 0; i < route->hops; i++) {
        const uint32_t elsewhere = route->hop[back ? route->hops - 1 - i : i].elsewhere;
        if (__builtin_expect(elsewhere == 1, 0))
            continue;
        struct fbxl_direction *d;
        const struct fbxi_figures *figures = hop_of(route, back, i, &d);
        uint64_t wire = fbxi_wire(figures, payload, tlps, header);
        uint64_t duration = fbx_bytes_to_ps(figures->ps_per_byte_q24, wire), start = head, end = head + duration;
        if (reserve && !elsewhere) {
            if (bulk && tlps)
                fbx_poke(&d->bulk_packet_ps, duration / tlps);
            clamped |= fbxi_reserve(d, figures, head, duration, bulk, &start, &end);
        }
        if (end < tail)
            end = tail;
        if (!hops++)
            out->departs_ps = end;
        const uint64_t more = jitter(figures, start, reserve);
        out->jitter_ps += more;
        head = start + figures->delay_ps + more;
        tail = end + figures->delay_ps + more;
    }
    if (!hops)
        out->departs_ps = at_ps;
    out->arrives_ps = tail;
    return clamped;
}

void fbxi_figures_times(struct fbxi_figures *figures)
{
    const uint64_t rate = figures->ps_per_byte_q24;
    figures->small_ps[FBXI_REQUEST][0] = fbx_bytes_to_ps(rate, fbxi_wire(figures, 0, 1, FBX_MRD_HEADER));
    for (uint32_t log2_bytes = 0; log2_bytes < 7; log2_bytes++) {
        uint64_t bytes = 1ull << log2_bytes;
        figures->small_ps[FBXI_MWR][log2_bytes] = fbx_bytes_to_ps(rate, fbxi_wire(figures, bytes, 1, FBX_MWR_HEADER));
        figures->small_ps[FBXI_CPLD][log2_bytes] = fbx_bytes_to_ps(rate, fbxi_wire(figures, bytes, 1, FBX_CPLD_HEADER));
    }
}

int fbxi_send_small(const struct fbxi_route *route, int back, uint64_t at_ps, enum fbxi_small what, uint32_t log2_bytes,
                    struct fbxi_flight *out)
{
    uint64_t head = at_ps, tail = at_ps, start, end;
    int clamped = 0;
    uint32_t hops = 0;
    out->jitter_ps = 0;
    out->departs_ps = at_ps;
    for (uint32_t i = 0; i < route->hops; i++) {
        if (__builtin_expect(route->hop[back ? route->hops - 1 - i : i].elsewhere, 0))
            continue;
        struct fbxl_direction *d;
        const struct fbxi_figures *figures = hop_of(route, back, i, &d);
        clamped |= reserve_first(d, figures, head, figures->small_ps[what][log2_bytes], &start, &end);
        if (end < tail)
            end = tail;
        if (!hops++)
            out->departs_ps = end;
        const uint64_t more = jitter(figures, start, 1);
        out->jitter_ps += more;
        head = start + figures->delay_ps + more;
        tail = end + figures->delay_ps + more;
    }
    out->arrives_ps = tail;
    return clamped;
}

void fbxi_count_way(const struct fbxi_route *route, int back, uint64_t payload, uint64_t tlps, uint32_t header)
{
    for (uint32_t i = 0; i < route->hops; i++) {
        if (route->hop[i].elsewhere)
            continue;
        struct fbxl_direction *d;
        const struct fbxi_figures *figures = hop_of(route, back, back ? route->hops - 1 - i : i, &d);
        fbx_count(&d->bytes, fbxi_wire(figures, payload, tlps, header));
        fbx_count(&d->tlps, tlps);
    }
}
