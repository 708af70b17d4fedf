/* SPDX-License-Identifier: Apache-2.0
 *
 * pcie.c - the arithmetic of one PCIe link; see pcie.h for what it owns and must not know.
 *
 * Rates are kept as exact rationals until the one rounding at the end, because a rounded rate times a large size is visibly
 * wrong, and because two machines must agree on every bit. 128-bit intermediates are enough for that; why is said where they
 * are formed.
 */
#include "pcie.h"

#include <stdbool.h>

__extension__ typedef unsigned __int128 u128;

/* Bytes around a TLP on the wire in the non-flit generations: framing 2, sequence number 2, LCRC 4. */
#define TLP_FRAME 8u
/* With the headers of a 64-bit memory request (4 DW) and of a completion (3 DW), no ECRC. */
#define REQUEST_OVERHEAD (TLP_FRAME + 16u)
#define COMPLETION_OVERHEAD (TLP_FRAME + 12u)

/* No memory request crosses a naturally aligned 4 KiB boundary. */
#define PAGE 4096u

#define PS_TIMES_BITS ((u128)8000000000000u) /* ps per second times bits per byte */

struct rational {
    uint64_t num, den;
};

/* Bit/s of one lane after encoding, in lowest terms. Transfer rates 2.5, 5, 8, 16, 32, 64 GT/s; 4/5, 64/65 and, for flits,
 * 236/256. */
static const struct rational lane_bps[] = {
    {0, 1},
    {UINT64_C(2000000000), 1},
    {UINT64_C(4000000000), 1},
    {UINT64_C(102400000000), 13},
    {UINT64_C(204800000000), 13},
    {UINT64_C(409600000000), 13},
    {UINT64_C(59000000000), 1},
};

/* Bit i set: i lanes exist. */
#define LANE_COUNTS                                                                                                               \
    ((UINT64_C(1) << 1) | (UINT64_C(1) << 2) | (UINT64_C(1) << 4) | (UINT64_C(1) << 8) | (UINT64_C(1) << 12) |                    \
     (UINT64_C(1) << 16) | (UINT64_C(1) << 32))

static bool packet_size_ok(uint32_t bytes)
{
    return bytes >= 128 && bytes <= 4096 && (bytes & (bytes - 1)) == 0;
}

int fbx_pcie_check(const struct fbx_pcie_link *link)
{
    if (link->gen < 1 || link->gen > 6)
        return FBX_PCIE_EGEN;
    if (link->lanes > 32 || !((LANE_COUNTS >> link->lanes) & 1))
        return FBX_PCIE_ELANES;
    if (!packet_size_ok(link->mps))
        return FBX_PCIE_EMPS;
    if (!packet_size_ok(link->mrrs))
        return FBX_PCIE_EMRRS;
    if (link->rcb != 64 && link->rcb != 128)
        return FBX_PCIE_ERCB;
    return 0;
}

static bool usable(const struct fbx_pcie_link *link)
{
    return fbx_pcie_check(link) == 0;
}

static uint64_t saturate(u128 value)
{
    return value > UINT64_MAX ? UINT64_MAX : (uint64_t)value;
}

/* Nearest integer to num / den, halves up. The caller sees to it that num + den / 2 fits. */
static uint64_t divide_nearest(u128 num, u128 den)
{
    return saturate((num + den / 2) / den);
}

/* n / unit rounded up, for a unit that is a power of two. */
static uint64_t ceil_div(uint64_t n, uint32_t unit)
{
    return (n >> __builtin_ctz(unit)) + ((n & (unit - 1)) != 0);
}

/* The specification tabulates AckLimit by width and payload; its tables are this formula. 28 is the framing and header that
 * the specification allows for, f its AckFactor, d the internal delay (19, 70, 115) in symbol times. The factor of x12 is that
 * of x16, and beyond 512 bytes of payload no factor changes any more. */
uint32_t fbx_pcie_ack_limit(const struct fbx_pcie_link *link)
{
    uint32_t tenths, delay;

    if (!usable(link) || link->gen == 6)
        return 0;
    if (link->mps <= 256)
        tenths = link->lanes >= 12 ? 30 : link->lanes == 8 ? 25 : 14;
    else
        tenths = link->lanes >= 12 ? 20 : 10;
    delay = link->gen == 1 ? 19 : link->gen == 2 ? 70 : 115;
    return (link->mps + 28) * tenths / (10 * link->lanes) + delay;
}

static struct rational raw_rate(const struct fbx_pcie_link *link)
{
    struct rational rate = lane_bps[link->gen];

    rate.num *= link->lanes;
    return rate;
}

/* raw * (1 - 16/ack - 4/1538) = raw * (767 ack - 12304) / (769 ack). AckLimit is at least 33, so the rate is positive.
 * Largest numerator: generation 5, x32, mps 4096 (ack 372), below 2^62; largest denominator: 13 * 769 * 4239, below 2^26. */
static struct rational tlp_rate(const struct fbx_pcie_link *link)
{
    struct rational rate = raw_rate(link);
    uint64_t ack = fbx_pcie_ack_limit(link);

    if (ack != 0) {
        rate.num *= 767 * ack - 12304;
        rate.den *= 769 * ack;
    }
    return rate;
}

uint64_t fbx_pcie_raw_bps(const struct fbx_pcie_link *link)
{
    struct rational rate;

    if (!usable(link))
        return 0;
    rate = raw_rate(link);
    return divide_nearest(rate.num, rate.den);
}

uint64_t fbx_pcie_tlp_bps(const struct fbx_pcie_link *link)
{
    struct rational rate;

    if (!usable(link))
        return 0;
    rate = tlp_rate(link);
    return divide_nearest(rate.num, rate.den);
}

/* Sizes without an address. Below 2^65, so the caller may add a few. */

static u128 write_bytes(const struct fbx_pcie_link *link, uint64_t n)
{
    return (u128)n + (u128)REQUEST_OVERHEAD * ceil_div(n, link->mps);
}

static u128 request_bytes(const struct fbx_pcie_link *link, uint64_t n)
{
    return (u128)REQUEST_OVERHEAD * ceil_div(n, link->mrrs);
}

static u128 completion_bytes(const struct fbx_pcie_link *link, uint64_t n)
{
    return (u128)n + (u128)COMPLETION_OVERHEAD * ceil_div(n, link->mps);
}

uint64_t fbx_pcie_write_wire_bytes(const struct fbx_pcie_link *link, uint64_t n)
{
    return usable(link) ? saturate(write_bytes(link, n)) : 0;
}

uint64_t fbx_pcie_request_wire_bytes(const struct fbx_pcie_link *link, uint64_t n)
{
    return usable(link) ? saturate(request_bytes(link, n)) : 0;
}

uint64_t fbx_pcie_completion_wire_bytes(const struct fbx_pcie_link *link, uint64_t n)
{
    return usable(link) ? saturate(completion_bytes(link, n)) : 0;
}

/* Sizes with an address. A range is a part of a page, whole pages, and a part of a page; inside a page a packet starts where
 * the one before it ended, which after the first is on a double word (so only the first one's start can be odd). */

struct pages {
    uint32_t offset; /* of the range in its first page */
    uint32_t head;   /* bytes in the first page; everything, if it does not leave that page */
    uint64_t whole;  /* pages after it */
    uint32_t tail;   /* bytes in the last, partial page */
};

static struct pages cut_at_pages(uint64_t address, uint64_t n)
{
    struct pages cut = {.offset = (uint32_t)(address % PAGE)};
    uint64_t rest;

    cut.head = PAGE - cut.offset;
    if (cut.head >= n) {
        cut.head = (uint32_t)n;
        return cut;
    }
    rest = n - cut.head;
    cut.whole = rest / PAGE;
    cut.tail = (uint32_t)(rest % PAGE);
    return cut;
}

/* Bytes from the double word that holds the first byte; at most PAGE, as offset + length is. */
static uint32_t span(uint32_t offset, uint32_t length)
{
    return length ? (offset & 3) + length : 0;
}

static uint64_t packets(struct pages cut, uint32_t unit)
{
    return ceil_div(span(cut.offset, cut.head), unit) + cut.whole * (PAGE / unit) + ceil_div(cut.tail, unit);
}

static u128 payload(struct pages cut)
{
    return (u128)cut.whole * PAGE + ((span(cut.offset, cut.head) + 3) & ~3u) + ((cut.tail + 3) & ~3u);
}

/* Completions of one request of `length` bytes whose first double word is at `offset`. One that fits mps needs no boundary; else
 * the first stops at the last RCB within mps, which leaves the rest aligned. */
static uint32_t completions_of(const struct fbx_pcie_link *link, uint32_t offset, uint32_t length)
{
    uint32_t first;

    if (length <= link->mps)
        return length != 0;
    first = link->mps - (offset & (link->rcb - 1));
    return 1 + (uint32_t)ceil_div(length - first, link->mps);
}

/* Completions inside one page. mrrs is a multiple of every RCB, so all full requests lie alike. */
static uint32_t completions_in(const struct fbx_pcie_link *link, uint32_t offset, uint32_t length)
{
    uint32_t bytes = span(offset, length);

    offset &= ~3u;
    return bytes / link->mrrs * completions_of(link, offset, link->mrrs) + completions_of(link, offset, bytes % link->mrrs);
}

static uint64_t completions(const struct fbx_pcie_link *link, struct pages cut)
{
    return completions_in(link, cut.offset, cut.head) + cut.whole * completions_in(link, 0, PAGE) +
           completions_in(link, 0, cut.tail);
}

uint64_t fbx_pcie_write_tlps_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n)
{
    return usable(link) ? packets(cut_at_pages(address, n), link->mps) : 0;
}

uint64_t fbx_pcie_request_tlps_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n)
{
    return usable(link) ? packets(cut_at_pages(address, n), link->mrrs) : 0;
}

uint64_t fbx_pcie_completion_tlps_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n)
{
    return usable(link) ? completions(link, cut_at_pages(address, n)) : 0;
}

uint64_t fbx_pcie_write_wire_bytes_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n)
{
    struct pages cut = cut_at_pages(address, n);

    return usable(link) ? saturate(payload(cut) + (u128)REQUEST_OVERHEAD * packets(cut, link->mps)) : 0;
}

uint64_t fbx_pcie_request_wire_bytes_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n)
{
    /* At most 2^57 + 64 requests. */
    return usable(link) ? REQUEST_OVERHEAD * packets(cut_at_pages(address, n), link->mrrs) : 0;
}

uint64_t fbx_pcie_completion_wire_bytes_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n)
{
    struct pages cut = cut_at_pages(address, n);

    return usable(link) ? saturate(payload(cut) + (u128)COMPLETION_OVERHEAD * completions(link, cut)) : 0;
}

/* 8e12 << 24 is below 2^67; times a denominator below 2^26 it stays below 2^93. */
static uint64_t time_per_byte(struct rational rate)
{
    return divide_nearest((PS_TIMES_BITS << FBX_PS_PER_BYTE_SHIFT) * rate.den, rate.num);
}

uint64_t fbx_pcie_ps_per_byte(const struct fbx_pcie_link *link)
{
    return usable(link) ? time_per_byte(tlp_rate(link)) : UINT64_MAX;
}

uint64_t fbx_pcie_raw_ps_per_byte(const struct fbx_pcie_link *link)
{
    return usable(link) ? time_per_byte(raw_rate(link)) : UINT64_MAX;
}

uint64_t fbx_ethernet_ps_per_byte(uint64_t rate_bps)
{
    return rate_bps ? time_per_byte((struct rational){rate_bps, 1}) : UINT64_MAX;
}

uint64_t fbx_ethernet_wire_bytes(uint32_t mtu, uint32_t overhead_bytes, uint64_t n)
{
    if (n == 0)
        return 0;
    if (mtu == 0)
        return UINT64_MAX;
    return saturate((u128)n + (u128)overhead_bytes * (n / mtu + (n % mtu != 0)));
}

uint64_t fbx_bytes_to_ps(uint64_t ps_per_byte, uint64_t bytes)
{
    /* (2^64 - 1)^2 leaves room for the half. */
    return saturate(((u128)ps_per_byte * bytes + (1u << (FBX_PS_PER_BYTE_SHIFT - 1))) >> FBX_PS_PER_BYTE_SHIFT);
}

/* rate * n / wire. The numerator is below 2^62 * 2^64; the denominator below 2^26 * 2^66, its half cannot carry. */
static uint64_t goodput(const struct fbx_pcie_link *link, uint64_t n, u128 wire)
{
    struct rational rate = tlp_rate(link);

    return divide_nearest((u128)rate.num * n, wire * rate.den);
}

uint64_t fbx_pcie_write_bps(const struct fbx_pcie_link *link, uint64_t n)
{
    return usable(link) && n ? goodput(link, n, write_bytes(link, n)) : 0;
}

uint64_t fbx_pcie_read_bps(const struct fbx_pcie_link *link, uint64_t n)
{
    u128 out, back;

    if (!usable(link) || n == 0)
        return 0;
    out = request_bytes(link, n);
    back = completion_bytes(link, n);
    return goodput(link, n, out > back ? out : back);
}

uint64_t fbx_pcie_read_write_bps(const struct fbx_pcie_link *link, uint64_t n)
{
    /* The written data and the read requests leave in the same direction, and always outweigh the completions coming back. */
    return usable(link) && n ? goodput(link, n, write_bytes(link, n) + request_bytes(link, n)) : 0;
}
