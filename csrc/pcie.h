/* SPDX-License-Identifier: Apache-2.0
 *
 * pcie.h - the arithmetic of one PCIe link: rates, packets, bytes on the wire.
 *
 * Owns: what a link of a given generation, width and packet sizes can carry, and how many TLPs and bytes an operation of a
 * given size and address becomes. Everything is a pure function of its arguments, in integers only, so that results are the
 * same on every machine; nothing here keeps state.
 *
 * Must not know: clocks, delays, queues, credits, windows, nodes. Where a byte goes and when is the business of link timing.
 *
 * Conventions. A "wire byte" is a byte that occupies the link at the TLP rate: payload, header, and the 8 bytes of framing,
 * sequence number and LCRC around each TLP. Every function but fbx_pcie_check() wants a link that fbx_pcie_check() accepts;
 * for any other it returns 0 (UINT64_MAX where the result is a time), never traps. Results that do not fit saturate at
 * UINT64_MAX. For n == 0 every result is 0: no bytes, no TLPs, no rate.
 *
 * Source: the model of Neugebauer et al., Understanding PCIe Performance for End Host Networking, SIGCOMM 2018, section 3;
 * docs/reference/pcie.md has the formulas, the generation 6 assumptions and what is an estimate.
 */
#ifndef FBX_PCIE_H
#define FBX_PCIE_H

#ifndef FBX_CDEF
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)
#endif

/* Fractional bits of a time per byte. */
#define FBX_PS_PER_BYTE_SHIFT 24

/* What both ends of a link were configured to. Plain memory, no padding. */
struct fbx_pcie_link {
    uint32_t gen;   /* 1..6 */
    uint32_t lanes; /* 1, 2, 4, 8, 12, 16, 32 */
    uint32_t mps;   /* maximum payload size in bytes: 128, 256, ... 4096 */
    uint32_t mrrs;  /* maximum read request size in bytes: 128, 256, ... 4096 */
    uint32_t rcb;   /* read completion boundary in bytes: 64, 128 */
};

/* What fbx_pcie_check() found first. */
enum fbx_pcie_error {
    FBX_PCIE_EGEN = -1,
    FBX_PCIE_ELANES = -2,
    FBX_PCIE_EMPS = -3,
    FBX_PCIE_EMRRS = -4,
    FBX_PCIE_ERCB = -5
};

/* 0, or the first of `enum fbx_pcie_error` that applies. */
int fbx_pcie_check(const struct fbx_pcie_link *link);

/* Bit/s of one direction after line encoding, rounded to nearest (halves up, here and below). Generations 1 and 2: 8b/10b;
 * 3 to 5: 128b/130b; 6: the 236 TLP bytes of each 256-byte flit. */
uint64_t fbx_pcie_raw_bps(const struct fbx_pcie_link *link);

/* Bit/s left for TLPs after ACK and flow-control DLLPs and SKP ordered sets; rounded once, from the exact rational.
 * Generations 1 to 5: raw * (1 - 8/AckLimit - 8/FCLimit - 4/1538), FCLimit = AckLimit. Generation 6: raw. */
uint64_t fbx_pcie_tlp_bps(const struct fbx_pcie_link *link);

/* AckLimit in symbol times: floor((mps + 28) * f / lanes) + d, see pcie.c; 0 for generation 6, which has no ACK DLLPs. */
uint32_t fbx_pcie_ack_limit(const struct fbx_pcie_link *link);

/* Wire bytes of n bytes, counted as the published model does: aligned, bytes rather than double words, mrrs >= mps. */
uint64_t fbx_pcie_write_wire_bytes(const struct fbx_pcie_link *link, uint64_t n);      /* n + 24 * ceil(n / mps) */
uint64_t fbx_pcie_request_wire_bytes(const struct fbx_pcie_link *link, uint64_t n);    /* 24 * ceil(n / mrrs) */
uint64_t fbx_pcie_completion_wire_bytes(const struct fbx_pcie_link *link, uint64_t n); /* n + 20 * ceil(n / mps) */

/* The fewest TLPs that the rules permit for bytes [address, address + n): payload in whole double words of at most mps, requests
 * of at most mrrs, neither across 4 KiB; each request answered by its own completions, all but the last ending at an RCB.
 * Only address % 4096 matters; the range may run past 2^64. */
uint64_t fbx_pcie_write_tlps_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n);
uint64_t fbx_pcie_request_tlps_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n);
uint64_t fbx_pcie_completion_tlps_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n);

/* The wire bytes of exactly those TLPs, with 64-bit headers whatever the address, and payload padded to double words. */
uint64_t fbx_pcie_write_wire_bytes_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n);
uint64_t fbx_pcie_request_wire_bytes_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n);
uint64_t fbx_pcie_completion_wire_bytes_at(const struct fbx_pcie_link *link, uint64_t address, uint64_t n);

/* Picoseconds per wire byte with FBX_PS_PER_BYTE_SHIFT fractional bits, rounded to nearest from the exact rational. */
uint64_t fbx_pcie_ps_per_byte(const struct fbx_pcie_link *link);     /* at the TLP rate */
uint64_t fbx_pcie_raw_ps_per_byte(const struct fbx_pcie_link *link); /* at the raw rate */
uint64_t fbx_ethernet_ps_per_byte(uint64_t rate_bps);                /* UINT64_MAX for a rate of 0 */

/* n + overhead_bytes * ceil(n / mtu): framing around each mtu bytes of payload. UINT64_MAX for an mtu of 0. */
uint64_t fbx_ethernet_wire_bytes(uint32_t mtu, uint32_t overhead_bytes, uint64_t n);

/* The time that bytes occupy a link, rounded to nearest picosecond. */
uint64_t fbx_bytes_to_ps(uint64_t ps_per_byte, uint64_t bytes);

/* Goodput: payload bit/s of back-to-back operations of n bytes, rounded to nearest from the exact rational. A read is limited
 * by the fuller of its two directions; of a read and a write at once (n bytes each), the rate of either one. */
uint64_t fbx_pcie_write_bps(const struct fbx_pcie_link *link, uint64_t n);
uint64_t fbx_pcie_read_bps(const struct fbx_pcie_link *link, uint64_t n);
uint64_t fbx_pcie_read_write_bps(const struct fbx_pcie_link *link, uint64_t n);

#ifndef FBX_CDEF
#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif

#endif /* FBX_PCIE_H */
