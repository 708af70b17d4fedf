/* SPDX-License-Identifier: Apache-2.0
 *
 * The reservations of timing.c against models that know more: an ideal first-come queue in order of arrival, and an
 * arbiter that serves ports in turn, packet by packet. */
#include "check.h"
#include "timing.h"

#include <stdlib.h>

static uint64_t state = 88172645463325252ull;
static uint64_t random64(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}
static double uniform(void) { return (double)(random64() >> 11) / 9007199254740992.0; }

static double natural_log(double x)
{
    /* log by halving and a series: the core's tests link no libm */
    int k = 0;
    while (x < 0.5)
        x *= 2, k--;
    double y = (x - 1) / (x + 1), sum = 0, power = y;
    for (int i = 1; i < 40; i += 2, power *= y * y)
        sum += power / i;
    return 2 * sum + k * 0.69314718055994531;
}

struct link {
    struct fbxl_direction d;
    struct fbxi_figures figures;
    fbx_au64 calendar[FBX_CAL_SLOTS];
};

static struct link *link_new(uint64_t tlp_ps)
{
    struct link *l = aligned_alloc(64, (sizeof *l + 63) & ~63ull);
    memset(l, 0, sizeof *l);
    l->figures.tlp_ps = tlp_ps;
    l->figures.slot_shift = 14;
    l->figures.calendar = l->calendar;
    while ((1ull << l->figures.slot_shift) < 2 * tlp_ps)
        l->figures.slot_shift++;
    return l;
}

struct packet {
    uint64_t issued, at, duration, start;
    int near;
};

static int by_issue(const void *a, const void *b)
{
    const struct packet *x = a, *y = b;
    return x->issued < y->issued ? -1 : x->issued > y->issued;
}
static int by_arrival(const void *a, const void *b)
{
    const struct packet *x = *(struct packet *const *)a, *y = *(struct packet *const *)b;
    return x->at < y->at ? -1 : x->at > y->at;
}

/* Traffic from behind a hop of `far_ps` is reserved that much before it arrives; local traffic when it arrives. Both
 * share a link at `load`. How late is the local traffic, against an ideal queue in order of arrival? */
static void shared_last_hop(uint64_t packet_ps, double load, uint64_t far_ps, double allowed_ps)
{
    enum { COUNT = 200000 };
    struct packet *p = calloc(COUNT, sizeof *p), **order = calloc(COUNT, sizeof(*order));
    double t = 1e9, gap = (double)packet_ps / load;
    for (int i = 0; i < COUNT; i++) {
        t += -gap * natural_log(1 - uniform());
        p[i].at = (uint64_t)t;
        p[i].near = uniform() < 0.5;
        p[i].issued = p[i].at - (p[i].near ? 0 : far_ps);
        p[i].duration = packet_ps;
    }
    for (int i = 0; i < COUNT; i++)
        order[i] = &p[i];
    qsort(p, COUNT, sizeof *p, by_issue);
    struct link *l = link_new(packet_ps);
    double ours = 0, ideal = 0, count = 0;
    for (int i = 0; i < COUNT; i++) {
        uint64_t end;
        CHECK(fbxi_reserve(&l->d, &l->figures, p[i].at, p[i].duration, 0, &p[i].start, &end) == 0);
        CHECK(p[i].start >= p[i].at);
        CHECK(end >= p[i].start + p[i].duration);
        if (p[i].near) {
            ours += (double)(p[i].start - p[i].at);
            count++;
        }
    }
    qsort(order, COUNT, sizeof *order, by_arrival);
    uint64_t busy = 0;
    for (int i = 0; i < COUNT; i++) {
        uint64_t start = order[i]->at > busy ? order[i]->at : busy;
        busy = start + order[i]->duration;
        if (order[i]->near)
            ideal += (double)(start - order[i]->at);
    }
    ours /= count;
    ideal /= count;
    printf("  shared last hop, packets of %.1f ns, load %.0f %%: ours %.2f ns, ideal %.2f ns\n", (double)packet_ps / 1e3,
           load * 100, ours / 1e3, ideal / 1e3);
    CHECK(ours - ideal < allowed_ps && ideal - ours < allowed_ps);
    free(l);
    free(order);
    free(p);
}

/* In order of arrival the calendar is the ideal queue, up to its unit. */
static void in_order_is_exact(void)
{
    struct link *l = link_new(9850);
    uint64_t busy = 0, worst = 0;
    double t = 1e9;
    for (int i = 0; i < 200000; i++) {
        uint64_t duration = 800 + random64() % 9000, start, end, at;
        t += -6000.0 * natural_log(1 - uniform());
        at = (uint64_t)t;
        fbxi_reserve(&l->d, &l->figures, at, duration, 0, &start, &end);
        uint64_t want = at > busy ? at : busy;
        busy = want + duration;
        uint64_t error = start > want ? start - want : want - start;
        if (error > worst)
            worst = error;
    }
    printf("  in order: worst error %.3f ns\n", (double)worst / 1e3);
    /* A unit of rounding per packet of a busy period; those of this load are some hundred packets long. */
    CHECK(worst < 2000);
    free(l);
}

/* Flows that push pieces one after the other share the link's rate and share it evenly. */
static void bulk_is_fair(int flows)
{
    struct link *l = link_new(9850);
    const uint64_t piece_ps = 157000, begin = 5000000;
    uint64_t cursor[64], served[64] = {0}, last = 0;
    for (int i = 0; i < flows; i++)
        cursor[i] = begin;
    for (int n = 0; n < 20000; n++) {
        int next = 0;
        for (int i = 1; i < flows; i++)
            if (cursor[i] < cursor[next])
                next = i;
        uint64_t start, end;
        CHECK(fbxi_reserve(&l->d, &l->figures, cursor[next], piece_ps, 1, &start, &end) == 0);
        CHECK(start >= cursor[next]);
        cursor[next] = end;
        served[next]++;
        if (end > last)
            last = end;
    }
    double sum = 0, squares = 0;
    for (int i = 0; i < flows; i++) {
        sum += (double)served[i];
        squares += (double)served[i] * (double)served[i];
    }
    double rate = 20000.0 * (double)piece_ps / (double)(last - begin), jain = sum * sum / (flows * squares);
    printf("  %d flows: %.4f of the rate, Jain %.5f\n", flows, rate, jain);
    CHECK(rate > 0.98 && rate < 1.02);
    CHECK(jain > 0.99);
    free(l);
}

/* A small packet beside bulk waits for the rest of the packet on the wire and passes; bulk pays for it. */
static void small_beside_bulk(void)
{
    struct link *l = link_new(9850);
    const uint64_t packet = 9850, small = 845, begin = 5000000;
    uint64_t cursor = begin, start, end, pieces = 0, smalls = 0;
    double waited = 0, expected = 0;
    uint64_t at = begin;
    for (int n = 0; n < 20000; n++) {
        at += 100000 + random64() % 100000;
        while (cursor < at + 2000000) { /* bulk has reserved ahead, as far as it does */
            fbxi_reserve(&l->d, &l->figures, cursor, 16 * packet, 1, &start, &end);
            cursor = end;
            pieces++;
        }
        fbxi_reserve(&l->d, &l->figures, at, small, 0, &start, &end);
        waited += (double)(start - at);
        /* Round robin of two ports, one always full: a packet of bulk is on the wire, uniformly far into it. */
        expected += uniform() * (double)packet;
        smalls++;
    }
    waited /= (double)smalls;
    expected /= (double)smalls;
    double used = (double)pieces * 16 * (double)packet + (double)smalls * (double)small;
    double rate = used / (double)(cursor - begin);
    printf("  small beside bulk: waits %.2f ns, per-packet arbiter %.2f ns; link used %.4f\n", waited / 1e3, expected / 1e3, rate);
    CHECK(waited < expected * 1.1 + 200 && waited > expected * 0.9 - 200);
    CHECK(rate > 0.99 && rate < 1.005);
    free(l);
}

/* Words that no process wrote must not hang or run backward. */
static void garbage(void)
{
    struct link *l = link_new(9850);
    for (int n = 0; n < 20000; n++) {
        for (unsigned i = 0; i < FBX_CAL_SLOTS; i++)
            if (n % 64 == 0)
                fbx_poke(&l->calendar[i], random64());
        uint64_t at = random64() % (1ull << 40), start, end;
        fbxi_reserve(&l->d, &l->figures, at, random64() % 1000000, n & 1, &start, &end);
        CHECK(start >= at && end >= start);
        CHECK(end - at < 1ull << 40);
    }
    free(l);
}

int main(void)
{
    in_order_is_exact();
    shared_last_hop(3100, 0.2, 2000000, 20000);
    shared_last_hop(9850, 0.2, 2000000, 20000);
    shared_last_hop(9850, 0.2, 200000, 20000);
    shared_last_hop(157000, 0.2, 2000000, 20000);
    shared_last_hop(1120000, 0.2, 2000000, 20000);
    bulk_is_fair(1);
    bulk_is_fair(2);
    bulk_is_fair(8);
    small_beside_bulk();
    garbage();
    return check_report();
}
