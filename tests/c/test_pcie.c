/* SPDX-License-Identifier: Apache-2.0
 *
 * Link arithmetic: published figures, invalid links, saturation, and packet counts against a loop that cuts one packet at a time.
 */
#include "pcie.h"

#include "check.h"

static const uint32_t packet_sizes[] = {128, 256, 512, 1024, 2048, 4096};
static const uint32_t lane_counts[] = {1, 2, 4, 8, 12, 16, 32};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static uint64_t mega(uint64_t bps)
{
    return (bps + 500000) / 1000000;
}

static void published_figures(void)
{
    const struct fbx_pcie_link gen3 = {3, 8, 256, 512, 64}, gen4 = {4, 16, 256, 512, 64}, gen5 = {5, 16, 256, 512, 64};

    CHECK_EQ(fbx_pcie_ack_limit(&gen3), 203);
    CHECK_EQ(mega(fbx_pcie_raw_bps(&gen3)), 63015);
    CHECK_EQ(mega(fbx_pcie_tlp_bps(&gen3)), 57885);
    CHECK_EQ(mega(fbx_pcie_write_bps(&gen3, 64)), 42098);
    CHECK_EQ(mega(fbx_pcie_write_bps(&gen3, 256)), 52923);
    CHECK_EQ(mega(fbx_pcie_write_bps(&gen3, 257)), 48775);
    CHECK_EQ(mega(fbx_pcie_read_bps(&gen3, 64)), 44103);
    CHECK_EQ(mega(fbx_pcie_read_bps(&gen3, 513)), 51824);
    CHECK_EQ(mega(fbx_pcie_read_write_bps(&gen3, 64)), 33077);
    CHECK_EQ(mega(fbx_pcie_tlp_bps(&gen4)), 227400);
    CHECK_EQ(mega(fbx_pcie_write_bps(&gen4, 64)), 165382);
    CHECK_EQ(mega(fbx_pcie_write_bps(&gen4, 512)), 207909);
    CHECK_EQ(mega(fbx_pcie_read_bps(&gen4, 512)), 210922);
    CHECK_EQ(mega(fbx_pcie_tlp_bps(&gen5)), 454800);
    CHECK_EQ(mega(fbx_pcie_write_bps(&gen5, 512)), 415817);
    CHECK_EQ(mega(fbx_pcie_read_bps(&gen5, 512)), 421844);
}

static void flit_mode(void)
{
    const struct fbx_pcie_link link = {6, 16, 256, 512, 64};

    CHECK_EQ(fbx_pcie_ack_limit(&link), 0);
    CHECK_EQ(fbx_pcie_raw_bps(&link), UINT64_C(944000000000));
    CHECK_EQ(fbx_pcie_tlp_bps(&link), UINT64_C(944000000000));
}

static void invalid_links(void)
{
    const struct {
        struct fbx_pcie_link link;
        int error;
    } cases[] = {
        {{3, 8, 256, 512, 64}, 0},
        {{0, 8, 256, 512, 64}, FBX_PCIE_EGEN},
        {{7, 8, 256, 512, 64}, FBX_PCIE_EGEN},
        {{UINT32_MAX, 8, 256, 512, 64}, FBX_PCIE_EGEN},
        {{3, 0, 256, 512, 64}, FBX_PCIE_ELANES},
        {{3, 3, 256, 512, 64}, FBX_PCIE_ELANES},
        {{3, 33, 256, 512, 64}, FBX_PCIE_ELANES},
        {{3, UINT32_MAX, 256, 512, 64}, FBX_PCIE_ELANES},
        {{3, 8, 0, 512, 64}, FBX_PCIE_EMPS},
        {{3, 8, 64, 512, 64}, FBX_PCIE_EMPS},
        {{3, 8, 384, 512, 64}, FBX_PCIE_EMPS},
        {{3, 8, 8192, 512, 64}, FBX_PCIE_EMPS},
        {{3, 8, 256, 0, 64}, FBX_PCIE_EMRRS},
        {{3, 8, 256, 8192, 64}, FBX_PCIE_EMRRS},
        {{3, 8, 256, 512, 0}, FBX_PCIE_ERCB},
        {{3, 8, 256, 512, 256}, FBX_PCIE_ERCB},
    };

    for (unsigned i = 0; i < COUNT(cases); i++) {
        const struct fbx_pcie_link *link = &cases[i].link;

        CHECK(fbx_pcie_check(link) == cases[i].error);
        if (cases[i].error == 0)
            continue;
        CHECK_EQ(fbx_pcie_raw_bps(link) | fbx_pcie_tlp_bps(link) | fbx_pcie_ack_limit(link), 0);
        CHECK_EQ(fbx_pcie_write_wire_bytes(link, 64) | fbx_pcie_request_wire_bytes(link, 64), 0);
        CHECK_EQ(fbx_pcie_completion_wire_bytes(link, 64) | fbx_pcie_completion_wire_bytes_at(link, 0, 64), 0);
        CHECK_EQ(fbx_pcie_write_wire_bytes_at(link, 0, 64) | fbx_pcie_request_wire_bytes_at(link, 0, 64), 0);
        CHECK_EQ(fbx_pcie_write_tlps_at(link, 0, 64) | fbx_pcie_request_tlps_at(link, 0, 64), 0);
        CHECK_EQ(fbx_pcie_completion_tlps_at(link, 0, 64), 0);
        CHECK_EQ(fbx_pcie_write_bps(link, 64) | fbx_pcie_read_bps(link, 64) | fbx_pcie_read_write_bps(link, 64), 0);
        CHECK_EQ(fbx_pcie_ps_per_byte(link), UINT64_MAX);
        CHECK_EQ(fbx_pcie_raw_ps_per_byte(link), UINT64_MAX);
    }
}

/* Bytes of the packet that starts at `at`: double words up to `unit`, and not across 4 KiB. */
static uint64_t next_packet(uint64_t at, uint64_t end, uint64_t unit)
{
    uint64_t stop = at / 4 * 4 + unit;
    uint64_t page = at / 4096 * 4096 + 4096;

    stop = stop < page ? stop : page;
    stop = stop < end ? stop : end;
    return stop - at;
}

static uint64_t dwords(uint64_t at, uint64_t n)
{
    return (at + n + 3) / 4 - at / 4;
}

static void against_a_loop(const struct fbx_pcie_link *link, uint64_t address, uint64_t n)
{
    uint64_t end = address + n, count = 0, bytes = 0, answers = 0, back = 0;

    for (uint64_t at = address, step; at < end; at += step) {
        step = next_packet(at, end, link->mps);
        count++;
        bytes += 24 + 4 * dwords(at, step);
    }
    CHECK_EQ(fbx_pcie_write_tlps_at(link, address, n), count);
    CHECK_EQ(fbx_pcie_write_wire_bytes_at(link, address, n), bytes);

    count = 0;
    for (uint64_t at = address, step; at < end; at += step) {
        step = next_packet(at, end, link->mrrs);
        count++;
        for (uint64_t from = at, to; from < at + step; from = to) {
            to = at + step;
            if (dwords(from, to - from) * 4 > link->mps)
                to = (from / 4 * 4 + link->mps) / link->rcb * link->rcb;
            answers++;
            back += 20 + 4 * dwords(from, to - from);
        }
    }
    CHECK_EQ(fbx_pcie_request_tlps_at(link, address, n), count);
    CHECK_EQ(fbx_pcie_request_wire_bytes_at(link, address, n), 24 * count);
    CHECK_EQ(fbx_pcie_completion_tlps_at(link, address, n), answers);
    CHECK_EQ(fbx_pcie_completion_wire_bytes_at(link, address, n), back);
}

static void packets(void)
{
    const uint64_t starts[] = {0, 1, 3, 4, 60, 63, 64, 124, 127, 128, 255, 260, 2047, 4032, 4093, 4095, 4096, UINT64_C(0x1fffffffd)};
    const uint64_t sizes[] = {0, 1, 2, 3, 4, 5, 8, 63, 64, 65, 127, 128, 129, 255, 256, 257, 512, 513, 4093, 4096, 4097, 8191, 65537};
    struct fbx_pcie_link link = {3, 8, 0, 0, 0};

    for (unsigned m = 0; m < COUNT(packet_sizes); m++)
        for (unsigned r = 0; r < COUNT(packet_sizes); r++)
            for (link.rcb = 64; link.rcb <= 128; link.rcb += 64)
                for (unsigned a = 0; a < COUNT(starts); a++)
                    for (unsigned n = 0; n < COUNT(sizes); n++) {
                        link.mps = packet_sizes[m];
                        link.mrrs = packet_sizes[r];
                        against_a_loop(&link, starts[a], sizes[n]);
                    }
}

static void saturation(void)
{
    const struct fbx_pcie_link link = {5, 32, 4096, 4096, 64}, narrow = {1, 1, 128, 128, 64};

    CHECK_EQ(fbx_pcie_write_wire_bytes(&link, UINT64_MAX), UINT64_MAX);
    CHECK_EQ(fbx_pcie_completion_wire_bytes(&link, UINT64_MAX), UINT64_MAX);
    CHECK_EQ(fbx_pcie_write_wire_bytes_at(&link, UINT64_MAX, UINT64_MAX), UINT64_MAX);
    CHECK_EQ(fbx_pcie_completion_wire_bytes_at(&link, UINT64_MAX, UINT64_MAX), UINT64_MAX);
    CHECK_EQ(fbx_pcie_write_tlps_at(&link, 0, UINT64_MAX), UINT64_C(1) << 52);
    CHECK_EQ(fbx_pcie_request_wire_bytes(&narrow, UINT64_MAX), UINT64_C(24) << 57);
    CHECK_EQ(fbx_pcie_request_wire_bytes_at(&narrow, 4095, UINT64_MAX), (UINT64_C(24) << 57) + 24);
    CHECK_EQ(fbx_ethernet_wire_bytes(1, UINT32_MAX, UINT64_MAX), UINT64_MAX);
    CHECK_EQ(fbx_ethernet_wire_bytes(0, 38, 1), UINT64_MAX);
    CHECK_EQ(fbx_ethernet_ps_per_byte(0), UINT64_MAX);
    CHECK_EQ(fbx_ethernet_ps_per_byte(1), UINT64_MAX);
    CHECK_EQ(fbx_bytes_to_ps(UINT64_MAX, UINT64_MAX), UINT64_MAX);
    for (unsigned i = 0; i < COUNT(lane_counts); i++)
        for (uint32_t gen = 1; gen <= 6; gen++)
            for (unsigned m = 0; m < COUNT(packet_sizes); m++) {
                struct fbx_pcie_link any = {gen, lane_counts[i], packet_sizes[m], 512, 64};
                uint64_t rate = fbx_pcie_tlp_bps(&any);

                CHECK_EQ(fbx_pcie_check(&any), 0);
                CHECK(rate > 0 && rate <= fbx_pcie_raw_bps(&any));
                CHECK(fbx_pcie_ps_per_byte(&any) >= fbx_pcie_raw_ps_per_byte(&any));
                /* A very large operation reaches the limit of full packets. */
                CHECK(fbx_pcie_write_bps(&any, UINT64_MAX) <= rate / (any.mps + 24) * any.mps + any.mps);
                CHECK(fbx_pcie_write_bps(&any, UINT64_MAX) >= rate / (any.mps + 24) * any.mps - 1);
            }
}

static void times(void)
{
    const struct fbx_pcie_link link = {1, 1, 128, 128, 64};
    uint64_t hundred = fbx_ethernet_ps_per_byte(UINT64_C(100000000000));

    CHECK_EQ(hundred, UINT64_C(80) << FBX_PS_PER_BYTE_SHIFT);
    CHECK_EQ(fbx_bytes_to_ps(hundred, 1500), 120000);
    CHECK_EQ(fbx_bytes_to_ps(hundred, 0), 0);
    CHECK_EQ(fbx_pcie_raw_ps_per_byte(&link), UINT64_C(4000) << FBX_PS_PER_BYTE_SHIFT);
    CHECK_EQ(fbx_bytes_to_ps(UINT64_C(1) << (FBX_PS_PER_BYTE_SHIFT - 1), 1), 1);
    CHECK_EQ(fbx_bytes_to_ps((UINT64_C(1) << (FBX_PS_PER_BYTE_SHIFT - 1)) - 1, 1), 0);
    CHECK_EQ(fbx_ethernet_wire_bytes(1500, 38, 1500), 1538);
    CHECK_EQ(fbx_ethernet_wire_bytes(1500, 38, 1501), 1577);
    CHECK_EQ(fbx_ethernet_wire_bytes(1500, 38, 0), 0);
    CHECK_EQ(fbx_pcie_read_bps(&link, 0) | fbx_pcie_write_bps(&link, 0) | fbx_pcie_read_write_bps(&link, 0), 0);
}

int main(void)
{
    published_figures();
    flit_mode();
    invalid_links();
    packets();
    saturation();
    times();
    return check_report();
}
