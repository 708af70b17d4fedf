/* SPDX-License-Identifier: Apache-2.0
 *
 * DMA: descriptors that move bytes between any two addresses while their issuer does something else.
 *
 * Each node handle has channels; a channel executes its descriptors one after the other as a resumable record: step() takes
 * the head as far as the clock allows and says when to come again. Who steps: the submitter once (that is all that a small
 * transfer without injected time needs), then the engine, one thread per opened fabric that sleeps while there is nothing to
 * do, or a thread that waits and lends itself meanwhile, so that no completion pays for a hand-off. `claimed` says who is in
 * a step; nobody holds it while waiting.
 *
 * Time. What the engine reads from afar is asked for in requests of MRRS, `tags` of them outstanding; what it sends away
 * leaves in packets of MPS. A chunk of the transfer (4 KiB, more on long ways) is reserved on the links as it is issued, its
 * source is sampled when the request is there, and its bytes are stored when they arrive. What still travels when the last
 * byte has left goes into the posted queue.
 *
 * Descriptors are executed from private copies. What others may know of them is in dma_queue.c.
 */
#include "dma_queue.h"
#include "event.h"
#include "away.h"
#include "journey.h"
#include "ordering.h"
#include "pcie.h"
#include "registered.h"
#include "trace.h"
#include "tier.h"
#include "timing.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#define NEVER UINT64_MAX
#define RING 64u /* chunks planned and not yet stored */
#define PACKET 256u /* what the adversary sends at a time */
#define PIECE 4096u /* no request and no entry of a posted queue crosses 4 KiB */
#define LONGEST_CHUNK (64u << 10)
#define BULK_BYTES (64u << 10) /* of so much, a chunk is this long: planning one costs as much as copying 4 KiB does */
#define BULK_CHUNK (16u << 10)
#define AHEAD_PS 2000000u /* links are reserved this long before a chunk is issued */
#define AHEAD_MOST_PS 200000000u /* on a slow link by the time of a chunk, up to so much: who wakes late keeps its turn */
#define POST_AHEAD_PS 500000u /* what will still travel is posted so long before the last byte departs: posting takes time */
#define INLINE_BYTES (64u << 10) /* without injected time, a transfer of up to this is made inside submit */
#define STEP_BYTES (256u << 10) /* moved in one step, that others may look in between */
#define TARGETS 16u
#define JOBS_BLOCK 64u
#define JOBS_BLOCKS 1024u
#define TELL_NS 10000000u /* between two events of one handle */

_Static_assert(FBX_DMA_CHANNEL_LIMIT == FBX_DMA_CHANNELS && FBX_DMA_QUEUE_LIMIT == FBX_DMA_DEPTH, "what is promised is there");

struct job {
    struct job *next; /* of the channel, or of the free ones */
    uint64_t id;
    struct channel *channel;
    struct fbx_dma d;
    struct fbx_dma_piece *list;
    struct fbxl_dma_slot *slot;
    struct fbx_error *error;
    uint64_t total, issued_ps, trace_id;
    uint32_t trace_site;
    fbx_au64 moved, completes_ps, next_ps;
    fbx_au32 done, kind, waiters; /* done: futex word */
    int32_t status;
    int fd; /* eventfd, -1 while nobody asked for one */
    uint32_t index, holders, forgotten;
};

/* Which region an address means, for all addresses from `first` to `end`. */
struct side {
    struct fbxi_xl x;
    uint64_t first, end;
    uint32_t path;
};

struct chunk {
    uint64_t dst, src, position, taken, moved; /* taken: sampled; moved: stored or posted */
    uint64_t samples_ps, starts_ps, arrives_ps; /* starts: about when its first byte arrives; arrives: its last */
    uint64_t leaves_ps; /* its last byte; 0 if it does not leave this node */
    uint32_t bytes, remote;
};

/* Requests of one source: when each can leave and when its data is here. */
struct reader {
    const struct fbxi_route *route;
    uint64_t version; /* of its figures */
    uint64_t issue_ps, return_ps, memory_ps; /* when the next request, completion, access to the source may begin */
    uint64_t gap_ps; /* between requests, at least, by non-posted credits */
    uint64_t trip_ps, slowest; /* one request there and back on idle links; ps per byte of the narrowest link back */
    uint64_t requests, planned;
    uint32_t tags, mrrs, mps;
    struct {
        uint64_t first, count, first_ps, last_ps; /* requests, and when the data of the first and the last of them came */
    } past[RING];
};

enum { IDLE, MOVES, POSTS, SETTLES, SIGNALS, FLUSHES };

/* DMA from or to another machine goes in pieces of one frame each: some are asked for at a time, and written in order. */
#define AWAY_PIECES 8u
#define AWAY_BYTES (64u << 10)
struct away {
    uint32_t head, tail;
    /* How time is planned here for ways of which a part is at home elsewhere. */
    struct whole {
        const struct fbxi_route *of; /* and of which version of it; NULL: not built */
        uint64_t version;
        struct fbxi_route all, there; /* all of the way, what is elsewhere only timed; and that part alone */
    } from, to;
    uint64_t shift_ps; /* by how much later than planned the last answers were, in all */
    struct away_piece {
        struct fbx_op op;
        uint64_t dst, src, position, moved;
        uint64_t first_ps, last_ps, shift_ps; /* when its bytes are here, as planned with that shift */
        uint32_t bytes, phase;
        uint8_t *at;
    } piece[AWAY_PIECES];
    uint8_t bytes[AWAY_PIECES][AWAY_BYTES];
};
enum { AWAY_READS, AWAY_READY, AWAY_WRITES };

struct channel {
    fbx_node *node;
    pthread_mutex_t mutex; /* the list and its length */
    struct job *head, **tail; /* only who has claimed it takes the head away */
    fbx_au32 length, claimed, lenders;
    fbx_au32 lent; /* somebody was waiting when its last job ended: probably somebody will again */
    uint32_t number;
    struct fbxl_dma_slot *slots;
    uint64_t submitted;

    /* of the job that runs; whoever has claimed the channel */
    uint32_t phase, begun, target_count, targets[TARGETS], jumped, remote_source;
    uint64_t piece, inside, position; /* what is planned next */
    struct side dst, src;
    struct reader reader;
    struct chunk ring[RING];
    uint32_t ring_head, ring_sampled, ring_tail;
    uint64_t chunk_bytes, ahead_ps, source_ps, write_ps, sink_ps, last_arrives_ps, completes_ps, free_ps;
    uint64_t next_ps, final_ps; /* when to come again; final_ps: that is the end of the job, and nothing moves then */
    uint64_t stalled_ns, own_tail;
    uint8_t *bounce, *scratch;
    uint64_t bounce_bytes;
    struct away *away;
    uint64_t by_network; /* FBXI_BY_NETWORK: a piece of the job was late by it */
    uint32_t is_away; /* of the job: one side at least is another machine's */
    struct fbx_op op;
};

struct fbxi_dma {
    fbx_node *node;
    struct fbxi_dma *next; /* of the engine */
    pthread_mutex_t mutex; /* jobs, and their way to done */
    struct channel *channel[FBX_DMA_CHANNELS];
    struct job *block[JOBS_BLOCKS], *free;
    uint32_t blocks;
    uint64_t generation;
    fbx_au64 told_ns, untold; /* when an event told of a failure, and how many failed since */
};

struct fbxi_engine {
    pthread_mutex_t mutex; /* the list, held during a round of steps */
    struct fbxi_dma *list;
    pthread_t thread;
    uint32_t running;
    fbx_au32 stop, wake, wanted; /* wanted: somebody else wants the mutex */
    fbx_au32 asleep; /* AWAKE, ASLEEP, NAPS */
};

enum { AWAKE, ASLEEP, NAPS };
#define NAP_NS 100000u
#define NAPS_NS 1000000u

static uint64_t min64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t max64(uint64_t a, uint64_t b) { return a > b ? a : b; }

static int timed(const fbx_node *n) { return (n->fabric->flags & FBXL_TIMING) != 0; }

/* Without a thread of ours whoever asks also executes. */
static int has_engine(const fbx_fabric *f) { return f->clock.kind == FBX_REAL && !(f->flags & FBX_NO_SERVICE); }

/* ---- pieces ---------------------------------------------------------------------------------------------------------- */

static uint64_t piece_count(const struct job *j) { return j->list ? j->d.list_count : j->d.rows; }

static struct fbx_dma_piece piece_at(const struct job *j, uint64_t i)
{
    if (j->list)
        return j->list[i];
    return (struct fbx_dma_piece){j->d.dst + i * j->d.dst_stride, j->d.src + i * j->d.src_stride, j->d.bytes};
}

/* Packets of at most `most` bytes for `bytes` at `offset`: none crosses 4 KiB. */
static uint64_t packets(uint64_t offset, uint64_t bytes, uint64_t most)
{
    uint64_t first = min64(bytes, PIECE - (offset & (PIECE - 1))), rest = bytes - first;
    if (most > PIECE)
        most = PIECE;
    return (first + most - 1) / most + rest / PIECE * (PIECE / most) + (rest % PIECE + most - 1) / most;
}

/* ---- translate and admit ---------------------------------------------------------------------------------------------- */

static int look(fbx_node *n, struct side *s, uint64_t gva, uint64_t *offset, uint64_t *span)
{
    uint64_t generation = fbx_observe(n->generation);
    if (s->x.generation != generation || gva < s->first || gva >= s->end) {
        s->x.generation = 0;
        int status = fbxi_resolve(n, gva, 1, generation, &s->x, offset);
        if (!status)
            status = fbxi_on_path(n, &s->x, s->path);
        if (status) {
            s->x.generation = 0;
            return status;
        }
        s->first = gva - (*offset - s->x.lo);
        s->end = gva + (s->x.hi - *offset);
    }
    *offset = s->x.lo + (gva - s->first);
    *span = s->end - gva;
    return 0;
}

static int admit(fbx_node *n, uint32_t kind, const struct side *s, uint64_t gva, uint32_t perm)
{
    if (!(s->x.perm & perm))
        return fbxi_refuse(n, (int)kind, gva, FBX_E_ABORT, s->x.target);
    return s->x.status ? fbxi_refuse(n, (int)kind, gva, s->x.status, s->x.target) : 0;
}

/* All of [gva, gva + bytes) must be reachable; where it begins comes back. */
static int reach(struct channel *ch, uint32_t kind, struct side *s, uint64_t gva, uint64_t bytes, uint32_t perm,
                 uint32_t *region, uint64_t *offset)
{
    fbx_node *n = ch->node;
    const fbx_fabric *f = n->fabric;
    uint64_t span;
    for (uint64_t at = 0, o; at < bytes; at += span) {
        int status = look(n, s, gva + at, &o, &span);
        if (!status)
            status = admit(n, kind, s, gva + at, perm);
        if (status)
            return status;
        if (!at) {
            *region = s->x.region;
            *offset = o;
        }
        if (span < bytes - at && (s->x.hi == f->region_facts[s->x.region].bytes || gva + bytes < gva))
            return fbxi_fail_at(FBX_E_ADDRESS, (int)kind, (int)n->index, gva, "%llu bytes from 0x%llx leave %s of %s",
                                (unsigned long long)bytes, (unsigned long long)gva, f->region_facts[s->x.region].tier,
                                f->node_facts[s->x.target].name);
    }
    return 0;
}

static int overlap_fault(struct channel *ch, const struct job *j, uint64_t dst, uint64_t src)
{
    return fbxi_fail_at(FBX_E_INVALID, (int)fbx_peek(&j->kind), (int)ch->node->index, dst,
                        "the destination 0x%llx and the source 0x%llx overlap", (unsigned long long)dst,
                        (unsigned long long)src);
}

/* Do rows overlap? Those of the destination are apart; row i of it meets row k of the source where they begin less than a
 * row from each other. */
static int rows_overlap(const struct fbx_dma *d, uint64_t dst, uint64_t src)
{
    for (uint64_t i = 0; i < d->rows; i++) {
        uint64_t at = dst + i * d->dst_stride, low = at + 1 > d->bytes ? at + 1 - d->bytes : 0, k = 0;
        if (low > src)
            k = d->src_stride ? (low - src + d->src_stride - 1) / d->src_stride : d->rows;
        if (d->src_stride == 0 && src >= low)
            k = 0;
        if (k < d->rows && src + k * d->src_stride < at + d->bytes)
            return 1;
    }
    return 0;
}

static void add_target(struct channel *ch, uint32_t target)
{
    for (uint32_t i = 0; i < ch->target_count && i < TARGETS; i++)
        if (ch->targets[i] == target)
            return;
    if (ch->target_count < TARGETS)
        ch->targets[ch->target_count] = target;
    ch->target_count++;
}

static void lengthen(struct channel *ch, const struct fbxi_route *route, uint64_t most)
{
    if (!route || !route->hops)
        return;
    /* The ring must hold what the way holds. */
    while (ch->chunk_bytes * 2 <= most &&
           fbx_bytes_to_ps(fbxi_out(route)->ps_per_byte_q24, ch->chunk_bytes) * (RING - 4) < 2 * fbx_peek(&route->fixed_ps))
        ch->chunk_bytes *= 2;
}

static void reader_for(fbx_node *n, struct reader *r, const struct fbxi_route *route, uint64_t latency_ps)
{
    struct fbxi_flight out, back;
    r->route = route;
    r->version = fbx_peek(&route->version);
    r->mrrs = fbx_peek(&route->mrrs) < 64 ? 64 : fbx_peek(&route->mrrs) > PIECE ? PIECE : fbx_peek(&route->mrrs);
    r->mps = fbx_peek(&route->mps) < 64 ? 64 : fbx_peek(&route->mps);
    /* Completions come back into the node's own port: what it has credits for is all that may be outstanding. */
    const struct fbxi_figures *own = fbxi_out(route);
    const uint64_t cpls = packets(0, r->mrrs, r->mps);
    r->tags = n->facts->tags ? n->facts->tags : 1;
    r->tags = (uint32_t)max64(1, min64(min64(r->tags, own->completions / cpls), own->completion_bytes / r->mrrs));
    r->gap_ps = 0;
    for (uint32_t i = 0; i < route->hops; i++)
        r->gap_ps = max64(r->gap_ps, fbx_observe_pointer(&route->hop[i].out_figures)->request_gap_ps);
    fbxi_send(route, 0, 0, 0, 1, FBX_MRD_HEADER, 0, 0, &out);
    fbxi_send(route, 1, out.arrives_ps + latency_ps, r->mrrs, packets(0, r->mrrs, r->mps), FBX_CPLD_HEADER, 0, 0, &back);
    r->trip_ps = back.arrives_ps;
    r->slowest = 0;
    for (uint32_t i = 0; i < route->hops; i++)
        r->slowest = max64(r->slowest, fbx_observe_pointer(&route->hop[i].back_figures)->ps_per_byte_q24);
}

static int begin(struct channel *ch, struct job *j, uint64_t now)
{
    fbx_node *n = ch->node;
    const fbx_fabric *f = n->fabric;
    const int fill = (j->d.flags & FBX_DMA_FILL) != 0;
    uint32_t dst_region = 0, src_region = 0, signal_target = UINT32_MAX;
    uint64_t dst_offset = 0, src_offset = 0, latency = 0, count = piece_count(j);
    int status = 0;
    ch->begun = 1;
    if (ch->dst.path != j->d.path)
        ch->dst.x.generation = ch->src.x.generation = 0;
    ch->dst.path = ch->src.path = j->d.path;
    ch->piece = ch->inside = ch->position = 0;
    ch->ring_head = ch->ring_sampled = ch->ring_tail = 0;
    ch->target_count = ch->jumped = ch->remote_source = ch->is_away = 0;
    ch->by_network = 0;
    ch->stalled_ns = ch->own_tail = ch->last_arrives_ps = ch->completes_ps = 0;
    ch->ahead_ps = AHEAD_PS;
    ch->chunk_bytes = j->total >= BULK_BYTES ? BULK_CHUNK : PIECE;
    ch->reader.route = NULL;
    ch->reader.requests = ch->reader.planned = 0;
    if ((status = fbxi_usable(n, FBX_DMA_WRITE, j->d.dst)))
        return status;
    uint64_t longest_read = LONGEST_CHUNK;
    for (uint64_t i = 0; i < count; i++) {
        struct fbx_dma_piece p = piece_at(j, i);
        if (!p.bytes)
            continue;
        if ((status = reach(ch, FBX_DMA_WRITE, &ch->dst, p.dst, p.bytes, FBX_PERM_WRITE, &dst_region, &dst_offset)))
            return status;
        ch->is_away |= ch->dst.x.away != 0;
        if (ch->dst.x.route) {
            add_target(ch, ch->dst.x.target);
            fbxi_use_target(n, ch->dst.x.target);
            lengthen(ch, ch->dst.x.route, LONGEST_CHUNK * 4);
        }
        if (!ch->dst.x.base && !ch->dst.x.away)
            ch->chunk_bytes = max64(ch->chunk_bytes, LONGEST_CHUNK); /* each costs a call of the kernel, or a question */
        if (signal_target == UINT32_MAX)
            signal_target = ch->dst.x.target;
        else if (signal_target != ch->dst.x.target && (j->d.flags & FBX_DMA_SIGNAL))
            return fbxi_fail_at(FBX_E_INVALID, FBX_DMA_WRITE, (int)n->index, p.dst,
                                "a signal travels behind the data, so all of the data must go to one node");
        if (fill)
            continue;
        if ((status = reach(ch, FBX_DMA_READ, &ch->src, p.src, p.bytes, FBX_PERM_READ, &src_region, &src_offset)))
            return status;
        ch->is_away |= ch->src.x.away != 0;
        latency = max64(latency, f->region_facts[src_region].latency_ps);
        if (ch->src.x.route) {
            fbx_poke(&j->kind, FBX_DMA_READ);
            ch->remote_source = 1;
            reader_for(n, &ch->reader, ch->src.x.route, f->region_facts[src_region].latency_ps);
            while (longest_read > ch->reader.mrrs && longest_read > (uint64_t)ch->reader.tags * ch->reader.mrrs)
                longest_read /= 2;
            lengthen(ch, ch->src.x.route, longest_read);
        }
        if (!ch->src.x.base && !ch->src.x.away)
            ch->chunk_bytes = max64(ch->chunk_bytes, ch->src.x.route ? longest_read : LONGEST_CHUNK);
        if (src_region == dst_region && src_offset < dst_offset + p.bytes && dst_offset < src_offset + p.bytes && j->list)
            return overlap_fault(ch, j, p.dst, p.src);
        if (i == 0 && !j->list && src_region == dst_region && rows_overlap(&j->d, dst_offset, src_offset))
            return overlap_fault(ch, j, p.dst, p.src);
    }
    if (j->d.flags & FBX_DMA_SIGNAL) {
        if (j->d.signal & 7)
            return fbxi_fail_at(FBX_E_ALIGNMENT, FBX_DMA_WRITE, (int)n->index, j->d.signal,
                                "a signal is 8 aligned bytes, 0x%llx is not", (unsigned long long)j->d.signal);
        if ((status = reach(ch, FBX_DMA_WRITE, &ch->dst, j->d.signal, 8, FBX_PERM_WRITE, &dst_region, &dst_offset)))
            return status;
        if (signal_target != UINT32_MAX && signal_target != ch->dst.x.target)
            return fbxi_fail_at(FBX_E_INVALID, FBX_DMA_WRITE, (int)n->index, j->d.signal,
                                "the signal is in %s and the data in %s: they take different ways",
                                f->node_facts[ch->dst.x.target].name, f->node_facts[signal_target].name);
        if (ch->dst.x.route)
            add_target(ch, ch->dst.x.target);
    }
    ch->phase = MOVES;
    if (ch->is_away) {
        if (!ch->away && !(ch->away = malloc(sizeof *ch->away)))
            return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
        ch->away->head = ch->away->tail = 0;
        ch->away->from.of = ch->away->to.of = NULL;
        ch->away->shift_ps = 0;
        if (ch->remote_source)
            ch->chunk_bytes = min64(ch->chunk_bytes, longest_read);
        const uint64_t begins =
            timed(n) ? max64(j->issued_ps, ch->free_ps) + (ch->remote_source ? n->facts->dma_setup_read_ps : n->facts->dma_setup_write_ps) : 0;
        ch->source_ps = ch->remote_source || fill ? begins : begins + latency;
        ch->write_ps = ch->sink_ps = ch->completes_ps = begins;
        ch->reader.issue_ps = ch->reader.return_ps = ch->reader.memory_ps = begins;
        return 0;
    }
    if (!timed(n) || !j->total)
        return 0;
    if (ch->remote_source) {
        ch->chunk_bytes = min64(ch->chunk_bytes, longest_read);
        if (ch->bounce_bytes < ch->chunk_bytes * RING) {
            free(ch->bounce);
            ch->bounce_bytes = 0;
            if (posix_memalign((void **)&ch->bounce, 64, ch->chunk_bytes * RING)) {
                ch->bounce = NULL;
                return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
            }
            ch->bounce_bytes = ch->chunk_bytes * RING;
        }
        const struct fbxl_queue *q = fbxi_own_queue(n, ch->src.x.route, j->d.tc);
        ch->own_tail = q ? fbx_observe(&((struct fbxl_queue *)(uintptr_t)q)->tail) : 0;
    }
    /* Deadlines are absolute: from the submission, or from the end of the descriptor before it. */
    uint64_t start = max64(j->issued_ps, ch->free_ps);
    (void)now;
    start += ch->remote_source ? n->facts->dma_setup_read_ps : n->facts->dma_setup_write_ps;
    if (fbxi_adversarial(f)) { /* an engine may take its time to begin */
        start += fbxi_unfair_ps(n->fabric, FBXI_CHOICE_DELAY, fbxi_choice_key(n->requester, n->index, 32u, fbx_add(&n->requests, 1)) | 1ull << 32);
        ch->chunk_bytes = min64(ch->chunk_bytes, PIECE);
    }
    ch->source_ps = ch->remote_source || fill ? start : start + latency;
    ch->write_ps = ch->sink_ps = ch->completes_ps = start;
    ch->reader.issue_ps = ch->reader.return_ps = ch->reader.memory_ps = start;
    return 0;
}

/* ---- time ------------------------------------------------------------------------------------------------------------- */

static uint64_t memory_time(const fbx_fabric *f, uint32_t region, uint64_t bytes)
{
    uint64_t rate = f->region_facts[region].ps_per_byte_q24;
    return rate ? fbx_bytes_to_ps(rate, bytes) : 0;
}

/* When the data of a request came, and its tag was free again. 0: so long ago that it is forgotten. */
static uint64_t tag_free(const struct reader *r, uint64_t request)
{
    for (uint64_t i = 1; i <= RING && i <= r->planned; i++) {
        const __typeof__(r->past[0]) *p = &r->past[(r->planned - i) % RING];
        if (request < p->first)
            continue;
        uint64_t inside = request - p->first;
        if (inside >= p->count || p->count < 2)
            return p->last_ps;
        return p->first_ps + (p->last_ps - p->first_ps) / (p->count - 1) * inside;
    }
    return 0;
}

static uint64_t read_issue(const struct reader *r)
{
    return r->requests >= r->tags ? max64(r->issue_ps, tag_free(r, r->requests - r->tags)) : r->issue_ps;
}

/* One request of `bytes` there and back on idle links. */
static uint64_t trip(const struct reader *r, uint64_t bytes)
{
    if (bytes >= r->mrrs)
        return r->trip_ps;
    uint64_t headers = packets(0, r->mrrs, r->mps) - packets(0, bytes, r->mps);
    return r->trip_ps - fbx_bytes_to_ps(r->slowest, r->mrrs - bytes + headers * FBX_CPLD_HEADER);
}

/* One chunk's requests and completions. `floor_ps`: earlier posted writes on the way, which requests push before them. */
static int plan_read(fbx_fabric *f, struct reader *r, uint32_t region, uint64_t offset, uint64_t bytes,
                     uint64_t floor_ps, int reserve, uint64_t now, uint64_t *samples_ps, uint64_t *first_ps, uint64_t *last_ps)
{
    const uint64_t count = packets(offset, bytes, r->mrrs), cpls = packets(offset, bytes, r->mps);
    const uint64_t issue = read_issue(r), last = r->requests + count - 1;
    const uint64_t last_issue = last >= r->tags && count <= r->tags ? max64(issue, tag_free(r, last - r->tags)) : issue;
    struct fbxi_flight out, back;
    int clamped = fbxi_send(r->route, 0, issue, 0, count, FBX_MRD_HEADER, 1, reserve, &out);
    r->issue_ps = max64(max64(out.departs_ps, last_issue), issue + count * r->gap_ps);
    /* The burst's first request is there before its last. */
    uint64_t sample = out.arrives_ps - (out.departs_ps - issue) / count * (count - 1);
    sample = max64(sample, floor_ps);
    sample = max64(sample + fbxi_tier_latency(f, region, now == FBX_ASK ? FBX_ASK : sample), r->memory_ps);
    r->memory_ps = fbxi_tier_access(f, region, sample, bytes, 1, now, &sample);
    clamped |= fbxi_send(r->route, 1, max64(sample, r->return_ps), bytes, cpls, FBX_CPLD_HEADER, 1, reserve, &back);
    uint64_t arrives = max64(back.arrives_ps, r->memory_ps);
    const uint64_t fixed_ps = fbx_peek(&r->route->fixed_ps);
    const uint64_t due = arrives > back.jitter_ps ? arrives - back.jitter_ps : 0;
    r->return_ps = max64(back.departs_ps, due > fixed_ps ? due - fixed_ps : 0);
    uint64_t spread = fbx_bytes_to_ps(r->slowest, bytes + cpls * FBX_CPLD_HEADER) / count * (count - 1);
    const uint64_t rest = bytes > (count - 1) * r->mrrs ? bytes - (count - 1) * r->mrrs : 1;
    *last_ps = max64(arrives, last_issue + trip(r, rest));
    *first_ps = min64(*last_ps, max64(issue + trip(r, bytes), arrives > spread ? arrives - spread : 0));
    *samples_ps = sample;
    __typeof__(r->past[0]) *past = &r->past[r->planned++ % RING];
    past->first = r->requests;
    past->count = count;
    past->first_ps = *first_ps;
    past->last_ps = *last_ps;
    r->requests += count;
    return clamped;
}

/* Deadlines are absolute, also of an engine that was kept from the processor. But links remember only so much: what it does
 * later than that competes with nobody, and only asks. */
static int reserves(const struct fbxi_route *route, uint64_t at_ps, uint64_t now)
{
    return !route->hops || at_ps + ((uint64_t)(FBX_CAL_SLOTS / 4 * 3) << fbxi_out(route)->slot_shift) > now;
}

static uint64_t plan_at(const struct channel *ch, const struct job *j)
{
    if (ch->remote_source && !(j->d.flags & FBX_DMA_FILL))
        return ch->reader.route ? read_issue(&ch->reader) : ch->reader.issue_ps;
    return max64(max64(ch->write_ps, ch->source_ps), ch->sink_ps);
}

/* What `bytes` take on the narrowest link of a way. */
static uint64_t narrowest_ps(const struct fbxi_route *route, int back, uint64_t bytes)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < route->hops; i++)
        most = max64(most, fbx_observe_pointer(back ? &route->hop[i].back_figures : &route->hop[i].out_figures)->ps_per_byte_q24);
    return fbx_bytes_to_ps(most, bytes);
}

/* Reserve the next chunk. */
static int plan(struct channel *ch, struct job *j, uint64_t now)
{
    fbx_node *n = ch->node;
    fbx_fabric *f = n->fabric;
    const int fill = (j->d.flags & FBX_DMA_FILL) != 0;
    struct fbx_dma_piece p = piece_at(j, ch->piece);
    while (ch->inside >= p.bytes) {
        ch->piece++;
        ch->inside = 0;
        p = piece_at(j, ch->piece);
    }
    uint64_t dst_offset, src_offset = 0, span, step = p.bytes - ch->inside, mask = ch->chunk_bytes - 1;
    int status = look(n, &ch->dst, p.dst + ch->inside, &dst_offset, &span);
    if (!status)
        status = admit(n, FBX_DMA_WRITE, &ch->dst, p.dst + ch->inside, FBX_PERM_WRITE);
    if (status)
        return status;
    step = min64(step, span);
    if (!fill) {
        status = look(n, &ch->src, p.src + ch->inside, &src_offset, &span);
        if (!status)
            status = admit(n, FBX_DMA_READ, &ch->src, p.src + ch->inside, FBX_PERM_READ);
        if (status)
            return status;
        step = min64(step, span);
    }
    struct fbxi_route *from = fill ? NULL : ch->src.x.route, *to = ch->dst.x.route;
    /* What is left at the end travels in short pieces: only what has not arrived when the last byte departs is posted. */
    if (j->total - ch->position <= BULK_CHUNK)
        mask = min64(mask, (j->total - ch->position > 2 * PIECE ? 2 * PIECE : PIECE) - 1);
    step = min64(step, mask + 1 - ((from ? src_offset : dst_offset) & mask));
    struct chunk *c = &ch->ring[ch->ring_tail % RING];
    *c = (struct chunk){.dst = p.dst + ch->inside, .src = p.src + ch->inside, .position = ch->position,
                        .bytes = (uint32_t)step, .remote = from != NULL};
    uint64_t ready_first, ready, took = 0;
    int clamped = 0;
    if (from)
        took = narrowest_ps(from, 1, step);
    if (to)
        took = max64(took, narrowest_ps(to, 0, step));
    ch->ahead_ps = max64(AHEAD_PS, min64(took, AHEAD_MOST_PS));
    if (from) {
        if (ch->reader.route != from || ch->reader.version != fbx_peek(&from->version))
            reader_for(n, &ch->reader, from, f->region_facts[ch->src.x.region].latency_ps);
        const int reserve = reserves(from, read_issue(&ch->reader), now);
        struct fbxl_queue *q = fbxi_own_queue(n, from, j->d.tc);
        clamped |= plan_read(f, &ch->reader, ch->src.x.region, src_offset, step, q ? fbx_observe(&q->last_arrives) : 0,
                             reserve, now, &c->samples_ps, &ready_first, &ready);
        if (fbxi_adversarial(f)) {
            uint64_t late = fbxi_unfair_ps(f, FBXI_CHOICE_DELAY, fbxi_choice_key(n->requester, n->index, 32u, fbx_add(&n->requests, 1)) | 1ull << 31);
            c->samples_ps += late;
            ready_first += late;
            ready += late;
        }
        fbxi_count_way(from, 0, 0, packets(src_offset, step, ch->reader.mrrs), FBX_MRD_HEADER);
        fbxi_count_way(from, 1, step, packets(src_offset, step, ch->reader.mps), FBX_CPLD_HEADER);
    } else {
        ready_first = ch->source_ps;
        ready = ch->source_ps += fill ? 0 : memory_time(f, ch->src.x.region, step);
    }
    if (to) {
        uint64_t at = max64(ch->write_ps, ready_first), tlps = packets(dst_offset, step, fbx_peek(&to->mps) < 64 ? 64 : fbx_peek(&to->mps));
        struct fbxi_flight flight;
        clamped |= fbxi_send(to, 0, at, step, tlps, FBX_MWR_HEADER, 1, reserves(to, at, now), &flight);
        flight.arrives_ps = fbxi_tier_write(f, ch->dst.x.region, flight.arrives_ps, fbx_bytes_to_ps(fbxi_out(to)->ps_per_byte_q24, step), step, 1, now);
        fbxi_count_way(to, 0, step, tlps, FBX_MWR_HEADER);
        uint64_t departs = max64(flight.departs_ps, ready);
        struct fbxl_queue *q = fbxi_own_queue(n, to, j->d.tc);
        const uint64_t through = max64(flight.arrives_ps, ready + fbx_peek(&to->fixed_ps));
        c->arrives_ps = max64(through, fbx_peek(&n->fence_floor));
        if (q && !fbxi_adversarial(f)) /* there the queue itself says what comes after what */
            c->arrives_ps = max64(c->arrives_ps, fbx_observe(&q->last_arrives));
        /* Credits let the source run ahead of the narrowest link by as much and no further. */
        uint64_t ahead = fbx_peek(&to->fixed_ps) + fbxi_out(to)->credit_ps + flight.jitter_ps;
        if (through > departs + ahead)
            departs = through - ahead;
        ch->write_ps = c->leaves_ps = departs;
        ch->completes_ps = max64(ch->completes_ps, departs);
        if (f->ordering == FBX_IMMEDIATE)
            c->arrives_ps = max64(at, c->samples_ps);
    } else {
        c->arrives_ps = max64(max64(ch->sink_ps, ready_first) + memory_time(f, ch->dst.x.region, step), ready);
        ch->sink_ps = c->arrives_ps;
        ch->completes_ps = max64(ch->completes_ps, c->arrives_ps);
    }
    c->starts_ps = max64(ch->last_arrives_ps, to ? ready_first + to->fixed_ps : ready_first);
    c->arrives_ps = ch->last_arrives_ps = max64(c->arrives_ps, ch->last_arrives_ps);
    if (clamped)
        fbx_count(&f->header->reservations_clamped, 1);
    fbx_poke(&j->completes_ps, ch->completes_ps);
    ch->ring_tail++;
    ch->inside += step;
    ch->position += step;
    return 0;
}

int fbxi_dma_estimate(fbx_node *n, int kind, const struct fbxi_xl *x, uint64_t offset, uint64_t bytes, struct fbx_estimate *out)
{
    fbx_fabric *f = n->fabric;
    uint64_t setup = kind == FBX_DMA_READ ? n->facts->dma_setup_read_ps : n->facts->dma_setup_write_ps;
    const uint64_t own_ps = n->facts->region_count ? memory_time(f, n->facts->first_region, bytes) : 0;
    /* What it pushes comes from memory of its own. */
    if (kind == FBX_DMA_WRITE && n->facts->region_count && x->route)
        setup += f->region_facts[n->facts->first_region].latency_ps;
    const struct fbxi_route *route = x->route;
    struct fbxi_flight there;
    if (!route) {
        out->departs_ps = out->arrives_ps = out->completes_ps =
            setup + f->region_facts[x->region].latency_ps + memory_time(f, x->region, bytes);
        return 0;
    }
    out->hops = route->hops;
    if (kind == FBX_DMA_WRITE) {
        uint64_t tlps = packets(offset, bytes, fbx_peek(&route->mps) < 64 ? 64 : fbx_peek(&route->mps));
        fbxi_send(route, 0, setup, bytes, tlps, FBX_MWR_HEADER, 1, 0, &there);
        there.arrives_ps = fbxi_tier_write(n->fabric, x->region, there.arrives_ps, fbx_bytes_to_ps(fbxi_out(route)->ps_per_byte_q24, bytes), bytes, 1, FBX_ASK);
        uint64_t ahead = fbx_peek(&route->fixed_ps) + fbxi_out(route)->credit_ps + there.jitter_ps;
        out->departs_ps = there.arrives_ps > there.departs_ps + ahead ? there.arrives_ps - ahead : there.departs_ps;
        out->arrives_ps = there.arrives_ps;
        /* Memory slower than the links holds it back. */
        out->departs_ps = max64(out->departs_ps, setup + own_ps);
        out->arrives_ps = max64(out->arrives_ps, out->departs_ps + fbx_peek(&route->fixed_ps));
        out->completes_ps = out->departs_ps;
        out->wire_bytes = bytes + tlps * FBX_MWR_HEADER;
        return 0;
    }
    /* The same plan as a transfer's, on links that nobody else uses; a long one goes on as it went at last. */
    struct reader r;
    memset(&r, 0, sizeof r);
    reader_for(n, &r, route, f->region_facts[x->region].latency_ps);
    r.issue_ps = r.return_ps = r.memory_ps = setup;
    uint64_t chunk = PIECE, done = 0, first, last = setup, begins = 0, half_done = 0, half_ps = 0, sample = 0;
    while (chunk > r.mrrs && chunk > (uint64_t)r.tags * r.mrrs)
        chunk /= 2;
    for (uint32_t i = 0; done < bytes; i++) {
        uint64_t step = min64(bytes - done, chunk - ((offset + done) & (chunk - 1)));
        plan_read(f, &r, x->region, offset + done, step, 0, 0, FBX_ASK, &sample, &first, &last);
        if (!i) {
            out->departs_ps = r.issue_ps;
            begins = first;
        }
        done += step;
        if (i == 2048) {
            half_done = done;
            half_ps = last;
        }
        if (i == 4096 && done < bytes) {
            uint64_t more = (uint64_t)((unsigned __int128)(last - half_ps) * (bytes - done) / (done - half_done));
            sample += more;
            last += more;
            break;
        }
    }
    out->arrives_ps = sample;
    out->completes_ps = max64(last, begins + own_ps); /* where the data goes */
    out->wire_bytes = bytes + packets(offset, bytes, r.mrrs) * FBX_MRD_HEADER + packets(offset, bytes, r.mps) * FBX_CPLD_HEADER;
    return 0;
}

/* ---- move ------------------------------------------------------------------------------------------------------------- */

static int deliver_due(const fbx_node *n, uint32_t target, uint64_t now)
{
    return fbx_observe(&n->fabric->nodes[target].pending) ? fbxi_deliver(n->fabric, target, now) : 0;
}

static const uint8_t zeros[PIECE] __attribute__((aligned(64)));

/* Copy out of a region; what of it was never written is zeros. */
static void copy_from(fbx_fabric *f, uint8_t *to, const uint8_t *from, uint32_t region, uint64_t offset, uint64_t bytes, int stream)
{
    if (fbxi_committed(f, region, offset, bytes)) {
        if (stream)
            fbx_mem_stream(to, from, bytes);
        else
            fbx_mem_copy(to, from, bytes);
        return;
    }
    for (uint64_t done = 0, step; done < bytes; done += step) {
        step = min64(bytes - done, PIECE - ((offset + done) & (PIECE - 1)));
        int there = fbxi_committed(f, region, offset + done, step);
        fbx_mem_copy(to + done, there ? from + done : zeros, step);
    }
}

/* The same as transfer() does, marked, where one side at least is memory that only one process has. */
static int transfer_registered(struct channel *ch, uint8_t *to, uint64_t dst_offset, const uint8_t *from, uint64_t src_offset, uint64_t bytes,
                               int stream, uint64_t *done)
{
    fbx_fabric *f = ch->node->fabric;
    const struct fbxi_xl *dst = &ch->dst.x, *src = &ch->src.x;
    int status = 0;
    if (!to)
        to = dst->base ? dst->base + dst_offset : fbxi_registered_pointer(f, dst->region, dst_offset, bytes, 1);
    if (!from)
        from = !src->base                                            ? fbxi_registered_pointer(f, src->region, src_offset, bytes, 0)
               : fbxi_committed(f, src->region, src_offset, bytes) ? src->base + src_offset
                                                                     : NULL;
    if (to && from) {
        if (stream)
            fbx_mem_stream(to, from, bytes);
        else
            fbx_mem_copy(to, from, bytes);
        *done = bytes;
    } else if (to && !src->base) {
        status = fbxi_registered_read(f, src->region, src_offset, to, bytes, done);
    } else if (to) {
        copy_from(f, to, src->base + src_offset, src->region, src_offset, bytes, stream);
        *done = bytes;
    } else if (from) {
        status = fbxi_registered_write(f, dst->region, dst_offset, from, bytes, 1, done);
    } else {
        uint8_t piece[PIECE];
        while (!status && *done < bytes) {
            uint64_t step = min64(bytes - *done, PIECE), taken = 0, given = 0;
            if (src->base)
                copy_from(f, piece, src->base + src_offset + *done, src->region, src_offset + *done, step, 0);
            else
                status = fbxi_registered_read(f, src->region, src_offset + *done, piece, step, &taken);
            if (!status)
                status = fbxi_registered_write(f, dst->region, dst_offset + *done, piece, step, 1, &given);
            *done += given;
        }
    }
    fbx_fence_store();
    return status;
}

/* Move up to `bytes`, of which `*moved` have moved: from address `src`, or from private bytes `from`; to address `dst`, or to
 * private bytes `to`. AGAIN: the delivery there is in a stopped process's hands. */
static int transfer(struct channel *ch, fbx_au32 *lane, uint64_t dst, uint8_t *to, uint64_t src, const uint8_t *from,
                    uint64_t bytes, uint64_t now, int stream, uint64_t *moved)
{
    fbx_node *n = ch->node;
    fbx_fabric *f = n->fabric;
    int attempts = 0, status;
    while (*moved < bytes) {
        uint64_t step = min64(bytes - *moved, FBX_HOLD_BYTES), dst_offset = 0, src_offset = 0, span;
        if (!to) {
            if ((status = look(n, &ch->dst, dst + *moved, &dst_offset, &span)) ||
                (status = admit(n, FBX_DMA_WRITE, &ch->dst, dst + *moved, FBX_PERM_WRITE)))
                return status;
            step = min64(step, span);
        }
        if (!from) {
            if ((status = look(n, &ch->src, src + *moved, &src_offset, &span)) ||
                (status = admit(n, FBX_DMA_READ, &ch->src, src + *moved, FBX_PERM_READ)))
                return status;
            step = min64(step, span);
        }
        if (!to && fbxi_uncommitted(f, ch->dst.x.region, dst_offset + step) &&
            (status = fbxi_commit(f, ch->dst.x.region, dst_offset, step)))
            return status;
        fbxi_mark(n, lane);
        uint64_t generation = fbx_observe(n->generation);
        if ((!to && ch->dst.x.generation != generation) || (!from && ch->src.x.generation != generation)) {
            fbxi_unmark(lane);
            if ((status = fbxi_usable(n, FBX_DMA_WRITE, dst)))
                return status;
            if (++attempts > 1000)
                return fbxi_fail(FBX_E_BUSY, "the routes of %s change faster than it can look", n->facts->name);
            continue;
        }
        if (!to && deliver_due(n, ch->dst.x.target, now) < 0) {
            fbxi_unmark(lane);
            return FBX_E_AGAIN;
        }
        if (!from)
            deliver_due(n, ch->src.x.target, now);
        if ((!to && !ch->dst.x.base) || (!from && !ch->src.x.base)) {
            uint64_t done = 0;
            status = transfer_registered(ch, to ? to + *moved : NULL, dst_offset, from ? from + *moved : NULL, src_offset, step, stream, &done);
            fbxi_unmark(lane);
            *moved += done;
            if (status)
                return status;
            continue;
        }
        uint8_t *at = to ? to + *moved : ch->dst.x.base + dst_offset;
        if (from && stream)
            fbx_mem_stream(at, from + *moved, step);
        else if (from)
            fbx_mem_copy(at, from + *moved, step);
        else
            copy_from(f, at, ch->src.x.base + src_offset, ch->src.x.region, src_offset, step, stream);
        fbx_fence_store();
        fbxi_unmark(lane);
        *moved += step;
    }
    return 0;
}

/* The pattern of a fill for bytes from `position` on. */
static const uint8_t *pattern(struct channel *ch, const struct job *j, uint64_t position)
{
    return ch->scratch + position % j->d.fill_bytes;
}

static int scratch(struct channel *ch, const struct job *j)
{
    if (!ch->scratch && posix_memalign((void **)&ch->scratch, 64, PIECE + 64)) {
        ch->scratch = NULL;
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    }
    if (j->d.flags & FBX_DMA_FILL) {
        uint64_t word = j->d.fill;
        for (uint32_t bytes = j->d.fill_bytes; bytes < 8; bytes *= 2)
            word = (word & ((1ull << bytes * 8) - 1)) | word << bytes * 8;
        for (uint32_t i = 0; i < PIECE + 64; i += 8)
            memcpy(ch->scratch + i, &word, 8);
    }
    return 0;
}

static void note(struct job *j, uint64_t moved)
{
    fbx_poke(&j->moved, moved);
    if (j->slot)
        fbx_poke(&j->slot->done, moved);
}

/* How much of a chunk has arrived: it does so piece by piece, which is also how the work of storing it is spread. */
static uint64_t arrived(const struct chunk *c, uint64_t now)
{
    if (now >= c->arrives_ps)
        return c->bytes;
    if (c->bytes <= PIECE || now <= c->starts_ps)
        return c->moved;
    return max64(c->moved, (uint64_t)((unsigned __int128)c->bytes * (now - c->starts_ps) / (c->arrives_ps - c->starts_ps)) & ~(uint64_t)(PIECE - 1));
}

/* When more of it will have arrived. */
static uint64_t arrives_next(const struct chunk *c)
{
    if (c->bytes - c->moved <= PIECE || c->starts_ps >= c->arrives_ps)
        return c->arrives_ps;
    return c->starts_ps + (uint64_t)((unsigned __int128)(c->arrives_ps - c->starts_ps) * ((c->moved & ~(uint64_t)(PIECE - 1)) + PIECE) / c->bytes) + 1;
}

/* Store what of the first `limit` bytes of a chunk has not been stored. */
static int store(struct channel *ch, struct job *j, fbx_au32 *lane, struct chunk *c, uint64_t limit, uint64_t now)
{
    int status = 0;
    if (j->d.flags & FBX_DMA_FILL) {
        while (!status && c->moved < limit) {
            uint64_t end = min64(limit, (c->moved / PIECE + 1) * PIECE), step = end - c->moved, done = 0;
            status = transfer(ch, lane, c->dst + c->moved, NULL, 0, pattern(ch, j, c->position + c->moved), step, now, 0, &done);
            c->moved += done;
        }
    } else {
        const uint8_t *from = c->remote ? ch->bounce + (uint64_t)(c - ch->ring) * ch->chunk_bytes : NULL;
        status = transfer(ch, lane, c->dst, NULL, c->src, from, limit, now, j->total >= FBX_STREAM_BYTES, &c->moved);
    }
    note(j, c->position + c->moved);
    return status;
}

/* Another process is delivering: the living finish soon, a stopped one is what completion timeouts are for. */
static int stalled(struct channel *ch, uint64_t now)
{
    uint64_t ns = fbxi_monotonic_ns();
    if (!ch->stalled_ns)
        ch->stalled_ns = ns;
    if (ns - ch->stalled_ns > FBX_STALL_NS)
        return fbxi_fail(FBX_E_COMPLETION_TIMEOUT, "a stopped process holds the delivery");
    ch->next_ps = timed(ch->node) ? now + 100000u : 0;
    return FBX_E_AGAIN;
}

static int move_untimed(struct channel *ch, struct job *j, fbx_au32 *lane)
{
    fbx_node *n = ch->node;
    uint64_t now = UINT64_MAX, budget = STEP_BYTES, count = piece_count(j);
    const int stream = j->total >= FBX_STREAM_BYTES;
    while (ch->piece < count) {
        struct fbx_dma_piece p = piece_at(j, ch->piece);
        if (ch->inside >= p.bytes) {
            ch->piece++;
            ch->inside = 0;
            continue;
        }
        uint64_t step = min64(p.bytes - ch->inside, budget), done = 0;
        const uint8_t *from = NULL;
        if (!step) {
            ch->next_ps = 0;
            return FBX_E_AGAIN;
        }
        if (j->d.flags & FBX_DMA_FILL) {
            step = min64(step, PIECE);
            from = pattern(ch, j, ch->position);
        }
        if (n->fabric->clock.kind != FBX_REAL || fbx_observe(n->pending))
            now = fbxi_now(&n->fabric->clock);
        int status = transfer(ch, lane, p.dst + ch->inside, NULL, p.src + ch->inside, from, step, now, stream, &done);
        ch->inside += done;
        ch->position += done;
        budget -= done;
        note(j, ch->position);
        if (status)
            return status == FBX_E_AGAIN ? stalled(ch, 0) : status;
        ch->stalled_ns = 0;
    }
    return 0;
}

/* Let what of a chunk has not been stored travel on its own. */
static int post_chunk(struct channel *ch, struct job *j, fbx_au32 *lane, struct chunk *c, uint64_t now)
{
    fbx_node *n = ch->node;
    fbx_fabric *f = n->fabric;
    int status, attempts = 0;
    while (c->moved < c->bytes) {
        uint64_t offset, span, gva = c->dst + c->moved;
        struct fbxl_queue *q;
        if ((status = look(n, &ch->dst, gva, &offset, &span)) ||
            (status = admit(n, FBX_DMA_WRITE, &ch->dst, gva, FBX_PERM_WRITE)))
            return status;
        if (!ch->dst.x.route) { /* a window that leads home by now */
            status = store(ch, j, lane, c, c->bytes, now);
            return status == FBX_E_AGAIN ? stalled(ch, now) : status;
        }
        uint64_t step = min64(min64(c->bytes - c->moved, span), PIECE), taken = 0;
        if (fbxi_adversarial(f)) /* packets, each of which may be late by itself */
            step = min64(step, PACKET - (offset & (PACKET - 1)));
        const uint8_t *payload;
        if (j->d.flags & FBX_DMA_FILL)
            payload = pattern(ch, j, c->position + c->moved);
        else if (c->remote)
            payload = ch->bounce + (uint64_t)(c - ch->ring) * ch->chunk_bytes + c->moved;
        else {
            payload = ch->scratch;
            if ((status = transfer(ch, lane, 0, ch->scratch, c->src + c->moved, NULL, step, now, 0, &taken)))
                return status;
        }
        if ((status = fbxi_posted_queue(n, ch->dst.x.route, j->d.tc, &q)) || (status = fbxi_commit(f, ch->dst.x.region, offset, step)))
            return status;
        const uint32_t attr = ch->dst.x.attr | (j->d.flags & FBX_DMA_RO ? FBX_RO : 0) | (j->d.flags & FBX_DMA_IDO ? FBX_IDO : 0);
        struct fbxi_post post = {.region = ch->dst.x.region, .bytes = (uint32_t)step, .kind = FBXL_ENTRY_WRITE, .flags = attr,
                                 .requester = n->requester, .offset = offset, .arrives_ps = c->arrives_ps,
                                 .trace_id = fbxi_tracing(f) ? j->trace_id : 0, .payload = payload};
        fbxi_mark(n, lane);
        bool current = fbx_observe(n->generation) == ch->dst.x.generation;
        if (current)
            status = fbxi_post(f, q, &post);
        fbxi_unmark(lane);
        if (!current) {
            if ((status = fbxi_usable(n, FBX_DMA_WRITE, gva)))
                return status;
            if (++attempts > 1000)
                return fbxi_fail(FBX_E_BUSY, "the routes of %s change faster than it can look", n->facts->name);
            continue;
        }
        if (status == FBX_E_AGAIN) {
            if (post.arrives_ps <= now)
                return stalled(ch, now);
            ch->next_ps = post.arrives_ps;
            return FBX_E_AGAIN;
        }
        if (status)
            return status;
        c->moved += step;
    }
    return 0;
}

static void trace_job(const struct channel *ch, const struct job *j, int status)
{
    fbx_fabric *f = ch->node->fabric;
    const struct fbx_dma_piece p = piece_count(j) ? piece_at(j, 0) : (struct fbx_dma_piece){j->d.dst, j->d.src, 0};
    const struct fbxi_trace_record r = {
        .at_ps = timed(ch->node) ? fbxi_now(&f->clock) : 0, .id = j->trace_id, .gva = p.dst, .bytes = j->total, .digest = p.src,
        .issued_ps = j->issued_ps, .completes_ps = fbx_peek(&j->completes_ps), .site = j->trace_site, .status = (int16_t)status,
        .node = (uint16_t)ch->node->index, .target = (uint16_t)(ch->dst.x.route ? ch->dst.x.target : ch->node->index),
        .event = FBX_TRACE_OP, .kind = (uint8_t)fbx_peek(&j->kind), .tc = (uint8_t)j->d.tc,
        .attr = (uint8_t)((j->d.flags & FBX_DMA_RO ? FBX_RO : 0) | (j->d.flags & FBX_DMA_IDO ? FBX_IDO : 0))};
    fbxi_trace(f, &r);
}

/* What was stored as it arrived, without a stay in the queue. */
static void trace_chunk(const struct channel *ch, const struct job *j, const struct chunk *c)
{
    const struct fbxi_trace_record r = {
        .at_ps = c->arrives_ps, .arrives_ps = c->arrives_ps, .id = j->trace_id, .gva = c->dst, .bytes = c->bytes,
        .node = (uint16_t)ch->node->index, .target = (uint16_t)ch->dst.x.target, .event = FBX_TRACE_VISIBLE, .kind = FBXL_ENTRY_WRITE};
    fbxi_trace(ch->node->fabric, &r);
}

static int move_timed(struct channel *ch, struct job *j, fbx_au32 *lane, uint64_t now)
{
    fbx_node *n = ch->node;
    fbx_fabric *f = n->fabric;
    uint64_t budget = STEP_BYTES;
    int status;
    for (;;) {
        while (ch->ring_sampled != ch->ring_tail) {
            struct chunk *c = &ch->ring[ch->ring_sampled % RING];
            if (c->remote) {
                if (c->samples_ps > now)
                    break;
                /* Requests push what this node wrote before them. */
                uint64_t offset, span;
                struct fbxl_queue *q = NULL;
                if (ch->own_tail && !(status = look(n, &ch->src, c->src, &offset, &span)))
                    q = fbxi_own_queue(n, ch->src.x.route, j->d.tc);
                if (q && fbx_observe(&q->head) < ch->own_tail && q->source == n->index) {
                    fbxi_deliver(f, ch->src.x.target, now);
                    if (fbx_observe(&q->head) < ch->own_tail)
                        return stalled(ch, now);
                }
                /* Due already, and nothing before it: no way for the bytes to spend in between. */
                if (c->arrives_ps <= now && ch->ring_head == ch->ring_sampled && !c->taken) {
                    c->remote = 0;
                    ch->ring_sampled++;
                    break;
                }
                status = transfer(ch, lane, 0, ch->bounce + (uint64_t)(ch->ring_sampled % RING) * ch->chunk_bytes, c->src, NULL,
                                  c->bytes, now, 0, &c->taken);
                if (status)
                    return status == FBX_E_AGAIN ? stalled(ch, now) : status;
            }
            ch->ring_sampled++;
        }
        while (ch->ring_head != ch->ring_sampled) {
            struct chunk *c = &ch->ring[ch->ring_head % RING];
            if (fbxi_adversarial(f) && c->leaves_ps) {
                /* It travels in the queue, where the adversary is. */
                if (c->leaves_ps > now)
                    break;
                if ((status = post_chunk(ch, j, lane, c, now)))
                    return status;
                ch->stalled_ns = 0;
                ch->ring_head++;
                continue;
            }
            const uint64_t before = c->moved, limit = arrived(c, now);
            if (limit == before && limit < c->bytes)
                break;
            status = store(ch, j, lane, c, limit, now);
            if (status)
                return status == FBX_E_AGAIN ? stalled(ch, now) : status;
            ch->stalled_ns = 0;
            budget -= min64(budget, c->moved - before);
            if (c->moved < c->bytes)
                break;
            if (fbxi_tracing(f) && ch->dst.x.route)
                trace_chunk(ch, j, c);
            ch->ring_head++;
        }
        if (ch->position < j->total && ch->ring_tail - ch->ring_head < RING && plan_at(ch, j) <= now + ch->ahead_ps) {
            if ((status = plan(ch, j, now)))
                return status;
            if (budget)
                continue;
        }
        uint64_t next = NEVER;
        ch->final_ps = 0;
        if (ch->position >= j->total) {
            if (ch->remote_source && ch->ring_head == ch->ring_tail && ch->src.x.generation) {
                ch->completes_ps = fbxi_pushed_by_completion(n, ch->src.x.target, j->d.tc | j->d.path << 3, j->d.flags & FBX_DMA_RO ? FBX_RO : 0, ch->completes_ps);
                fbx_poke(&j->completes_ps, ch->completes_ps);
            }
            uint64_t end = ch->completes_ps;
            if (f->clock.kind == FBX_REAL && ch->ring_head != ch->ring_tail && ch->ring[ch->ring_head % RING].arrives_ps > end)
                end = end > POST_AHEAD_PS ? end - POST_AHEAD_PS : 0;
            if (now >= end && ch->ring_sampled == ch->ring_tail) {
                if (ch->remote_source)
                    deliver_due(n, n->index, now);
                return 0;
            }
            next = end;
        } else if (ch->ring_tail - ch->ring_head < RING) {
            uint64_t at = plan_at(ch, j);
            next = at > ch->ahead_ps ? at - ch->ahead_ps : 0;
        }
        if (ch->ring_sampled != ch->ring_tail)
            next = min64(next, ch->ring[ch->ring_sampled % RING].samples_ps);
        if (ch->ring_head != ch->ring_sampled)
            next = min64(next, fbxi_adversarial(f) && ch->ring[ch->ring_head % RING].leaves_ps ? ch->ring[ch->ring_head % RING].leaves_ps
                                                                                               : arrives_next(&ch->ring[ch->ring_head % RING]));
        if (next <= now && budget) {
            now = max64(now, fbxi_now(&f->clock));
            if (next <= now)
                continue;
        }
        ch->next_ps = budget ? next : 0;
        if (ch->position >= j->total && next == ch->completes_ps && !(j->d.flags & (FBX_DMA_SIGNAL | FBX_DMA_VISIBLE)))
            ch->final_ps = next;
        return FBX_E_AGAIN;
    }
}

/* So many microseconds of this computer, in the fabric's time. */
static uint64_t real_us(const struct fbxi_clock *clock, uint64_t us)
{
    return (uint64_t)((unsigned __int128)(us * clock->ticks_per_us) * clock->ps_per_tick_q32 >> 32);
}

/* What is under way to or from other machines is not waited for any more. */
static void away_drop(struct channel *ch)
{
    struct away *a = ch->away;
    for (; ch->is_away && a && a->head != a->tail; a->head++)
        if (a->piece[a->head % AWAY_PIECES].phase != AWAY_READY)
            fbx_op_forget(ch->node, &a->piece[a->head % AWAY_PIECES].op);
    ch->is_away = 0;
}

static void away_op(const struct job *j, struct away_piece *p, int kind, uint64_t gva)
{
    memset(&p->op, 0, offsetof(struct fbx_op, private_));
    p->op.kind = (uint16_t)kind;
    p->op.gva = gva;
    p->op.bytes = p->bytes;
    p->op.buffer = p->at;
    p->op.tc = (uint8_t)j->d.tc;
    p->op.path = (uint16_t)j->d.path;
    p->op.attr = (uint8_t)((j->d.flags & FBX_DMA_RO ? FBX_RO : 0) | (j->d.flags & FBX_DMA_IDO ? FBX_IDO : 0));
}

/* The way to the target of `x` in all its length; NULL and no status: it has none. */
static int whole_way(fbx_node *n, const struct fbxi_xl *x, struct whole *w, struct fbxi_route **out)
{
    *out = x->away ? &w->all : x->route;
    if (!x->away || !x->route || (w->of == x->route && w->version == fbx_peek(&x->route->version)))
        return 0;
    int status = fbxi_route_build(n->fabric, n->index, x->target, x->route->path, &w->all);
    if (status)
        return status;
    w->there = w->all;
    for (uint32_t i = 0; i < w->all.hops; i++) {
        w->there.hop[i].elsewhere = !w->all.hop[i].elsewhere;
        w->all.hop[i].elsewhere = w->all.hop[i].elsewhere ? FBXI_TAKEN : 0;
    }
    w->of = x->route;
    w->version = fbx_peek(&x->route->version);
    return (status = fbxi_route_refresh(n->fabric, &w->all)) ? status : fbxi_route_refresh(n->fabric, &w->there);
}

/* What the way there alone takes if nobody else is on it. */
static uint64_t there_ps(const struct whole *w, int back, uint64_t bytes, uint64_t tlps, uint32_t header)
{
    struct fbxi_flight flight;
    fbxi_send(&w->there, back, 0, bytes, tlps, header, 1, 0, &flight);
    return flight.arrives_ps;
}

/* When a piece is asked for and when it should be here: as plan() does it for memory of this machine, chunk by chunk. */
static int away_plan_read(struct channel *ch, const struct job *j, struct away_piece *p, uint64_t offset, uint64_t now,
                          struct fbxi_away_plan *plan)
{
    fbx_node *n = ch->node;
    fbx_fabric *f = n->fabric;
    struct fbxi_route *from;
    const uint64_t latency = f->region_facts[ch->src.x.region].latency_ps;
    int status = whole_way(n, &ch->src.x, &ch->away->from, &from);
    if (status)
        return status;
    if (ch->reader.route != from || ch->reader.version != fbx_peek(&from->version))
        reader_for(n, &ch->reader, from, latency);
    struct reader idle = ch->reader;
    uint64_t sample, first, last, idle_last = 0;
    plan->issue_ps = read_issue(&ch->reader);
    for (uint64_t done = 0; done < p->bytes;) {
        const uint64_t left = j->total - ch->position - done;
        uint64_t mask = ch->chunk_bytes - 1;
        if (left <= BULK_CHUNK)
            mask = min64(mask, (left > 2 * PIECE ? 2 * PIECE : PIECE) - 1);
        const uint64_t step = min64(p->bytes - done, mask + 1 - ((offset + done) & mask));
        plan_read(f, &idle, ch->src.x.region, offset + done, step, 0, 0, FBX_ASK, &sample, &first, &idle_last);
        if (plan_read(f, &ch->reader, ch->src.x.region, offset + done, step, 0, reserves(from, read_issue(&ch->reader), now), now,
                      &sample, &first, &last))
            fbx_count(&f->header->reservations_clamped, 1);
        if (!done) {
            p->first_ps = first;
            plan->crosses_ps = sample;
        }
        done += step;
    }
    p->last_ps = plan->ends_ps = last;
    p->shift_ps = ch->away->shift_ps;
    fbxi_count_way(from, 0, 0, packets(offset, p->bytes, ch->reader.mrrs), FBX_MRD_HEADER);
    fbxi_count_way(from, 1, p->bytes, packets(offset, p->bytes, ch->reader.mps), FBX_CPLD_HEADER);
    if (!ch->src.x.away)
        return 0;
    const struct whole *w = &ch->away->from;
    const uint64_t request = there_ps(w, 0, 0, 1, FBX_MRD_HEADER), before = request + latency;
    plan->crosses_ps = plan->crosses_ps > before ? plan->crosses_ps - before : 0;
    plan->expected_ps = before + there_ps(w, 1, p->bytes, (p->bytes + ch->reader.mps - 1) / ch->reader.mps, FBX_CPLD_HEADER);
    /* And what the network makes of moments that clocks of two computers do not share. */
    plan->rounding_ps = plan->expected_ps / 16 + real_us(&f->clock, 30);
    plan->held_ps = last > idle_last ? last - idle_last : 0;
    return 0;
}

/* When a piece of which the first byte is here at `first` and the last at `last` leaves for where it goes. */
static int away_plan_write(struct channel *ch, const struct away_piece *p, uint64_t offset, uint64_t now, struct fbxi_away_plan *plan)
{
    fbx_node *n = ch->node;
    fbx_fabric *f = n->fabric;
    struct fbxi_route *to;
    int status = whole_way(n, &ch->dst.x, &ch->away->to, &to);
    if (status)
        return status;
    const uint64_t mps = fbx_peek(&to->mps) < 64 ? 64 : fbx_peek(&to->mps);
    uint64_t through = 0, at = 0;
    for (uint64_t done = 0; done < p->bytes;) {
        const uint64_t mask = ch->chunk_bytes - 1, step = min64(p->bytes - done, mask + 1 - ((offset + done) & mask));
        const uint64_t tlps = packets(offset + done, step, mps);
        /* Its bytes come one after the other. */
        const uint64_t first = p->first_ps + (p->last_ps - p->first_ps) / p->bytes * done;
        const uint64_t last = done + step == p->bytes ? p->last_ps : p->first_ps + (p->last_ps - p->first_ps) / p->bytes * (done + step);
        struct fbxi_flight flight;
        at = max64(ch->write_ps, first);
        if (!done)
            plan->issue_ps = at;
        if (fbxi_send(to, 0, at, step, tlps, FBX_MWR_HEADER, 1, reserves(to, at, now), &flight))
            fbx_count(&f->header->reservations_clamped, 1);
        flight.arrives_ps = fbxi_tier_write(f, ch->dst.x.region, flight.arrives_ps, fbx_bytes_to_ps(fbxi_out(to)->ps_per_byte_q24, step), step, 1, now);
        fbxi_count_way(to, 0, step, tlps, FBX_MWR_HEADER);
        uint64_t departs = max64(flight.departs_ps, last);
        through = max64(flight.arrives_ps, last + fbx_peek(&to->fixed_ps));
        const uint64_t ahead = fbx_peek(&to->fixed_ps) + fbxi_out(to)->credit_ps + flight.jitter_ps;
        if (through > departs + ahead)
            departs = through - ahead;
        ch->write_ps = departs;
        done += step;
    }
    plan->ends_ps = ch->write_ps;
    const uint64_t rest = there_ps(&ch->away->to, 0, p->bytes, packets(offset, p->bytes, mps), FBX_MWR_HEADER);
    plan->crosses_ps = through > rest ? through - rest : 0;
    return 0;
}

/* An answer was later than planned: others are on the way there. What has not been asked for is as much later. */
static void away_shift(struct channel *ch, struct away_piece *p)
{
    struct away *a = ch->away;
    struct reader *r = &ch->reader;
    const uint64_t more = p->op.completes_ps > p->last_ps ? p->op.completes_ps - p->last_ps : 0, all = p->shift_ps + more;
    p->first_ps += more;
    p->last_ps += more;
    if (!more || all <= a->shift_ps)
        return;
    const uint64_t by = all - a->shift_ps;
    a->shift_ps = all;
    r->issue_ps += by;
    r->return_ps += by;
    r->memory_ps += by;
    for (uint32_t i = 0; i < RING && i < r->planned; i++) {
        r->past[i].first_ps += by;
        r->past[i].last_ps += by;
    }
}

/* The next piece: asked for, or there at once where its source is this machine's. */
static int away_begin(struct channel *ch, struct job *j, fbx_au32 *lane, uint64_t now)
{
    fbx_node *n = ch->node;
    struct away *a = ch->away;
    const int fill = (j->d.flags & FBX_DMA_FILL) != 0;
    struct fbx_dma_piece d = piece_at(j, ch->piece);
    uint64_t offset, span, taken = 0;
    while (ch->inside >= d.bytes) {
        ch->piece++;
        ch->inside = 0;
        d = piece_at(j, ch->piece);
    }
    struct away_piece *p = &a->piece[a->tail % AWAY_PIECES];
    uint64_t step = min64(d.bytes - ch->inside, timed(n) ? AWAY_BYTES / 4 : AWAY_BYTES);
    int status = look(n, &ch->dst, d.dst + ch->inside, &offset, &span);
    step = min64(step, span);
    if (!status && !fill) {
        status = look(n, &ch->src, d.src + ch->inside, &offset, &span);
        step = min64(step, span);
    }
    if (status)
        return status;
    p->dst = d.dst + ch->inside;
    p->src = d.src + ch->inside;
    p->position = ch->position;
    p->bytes = (uint32_t)step;
    p->moved = 0;
    p->at = a->bytes[a->tail % AWAY_PIECES];
    p->phase = AWAY_READY;
    p->first_ps = p->last_ps = 0;
    struct fbxi_away_plan plan = {0};
    if (fill) {
        for (uint32_t done = 0; done < p->bytes; done += PIECE)
            memcpy(p->at + done, pattern(ch, j, p->position + done), min64(p->bytes - done, PIECE));
    } else if (!ch->src.x.away) {
        if ((status = transfer(ch, lane, 0, p->at, p->src, NULL, step, timed(n) ? now : UINT64_MAX, 0, &taken)))
            return status == FBX_E_AGAIN ? stalled(ch, now) : status;
        ch->stalled_ns = 0;
    }
    if (timed(n) && !fill && ch->src.x.route && (status = away_plan_read(ch, j, p, offset, now, &plan)))
        return status;
    if (timed(n) && (fill || !ch->src.x.route)) {
        p->first_ps = ch->source_ps;
        p->last_ps = ch->source_ps += fill ? 0 : memory_time(n->fabric, ch->src.x.region, step);
    }
    if (!fill && ch->src.x.away) {
        away_op(j, p, FBX_DMA_READ, p->src);
        status = fbxi_away_dma_begin(n, &p->op, &plan);
        if (status && status != FBX_E_AGAIN)
            return status;
        p->phase = AWAY_READS;
    }
    a->tail++;
    ch->inside += step;
    ch->position += step;
    return 0;
}

static int move_away(struct channel *ch, struct job *j, fbx_au32 *lane, uint64_t now)
{
    fbx_node *n = ch->node;
    struct away *a = ch->away;
    uint64_t budget = STEP_BYTES;
    uint32_t before;
    int status;
again:
    before = a->head;
    while (ch->position < j->total && a->tail - a->head < AWAY_PIECES)
        if ((status = away_begin(ch, j, lane, now)))
            return status;
    for (uint32_t i = a->head; i != a->tail; i++) {
        struct away_piece *p = &a->piece[i % AWAY_PIECES];
        if (p->phase != AWAY_READS)
            continue;
        if (p->op.state == FBX_AWAY) {
            status = fbxi_away_advance(n, &p->op, 0);
            if (status && status != FBX_E_AGAIN)
                return status;
        }
        if (p->op.state == FBX_AWAY || (p->op.state == FBX_RETURNS && p->op.completes_ps > now))
            continue;
        ch->by_network |= p->op.private_[0] & FBXI_BY_NETWORK;
        p->op.state = FBX_DONE;
        p->phase = AWAY_READY;
        if (timed(n))
            away_shift(ch, p);
    }
    for (; a->head != a->tail; a->head++) {
        struct away_piece *p = &a->piece[a->head % AWAY_PIECES];
        uint64_t offset, span;
        if (p->phase == AWAY_READS)
            break;
        if ((status = look(n, &ch->dst, p->dst, &offset, &span)) ||
            (status = admit(n, FBX_DMA_WRITE, &ch->dst, p->dst, FBX_PERM_WRITE)))
            return status;
        if (!ch->dst.x.away) {
            status = transfer(ch, lane, p->dst, NULL, 0, p->at, p->bytes, timed(n) ? now : UINT64_MAX, 0, &p->moved);
            if (status)
                return status == FBX_E_AGAIN ? stalled(ch, now) : status;
            ch->stalled_ns = 0;
            if (timed(n)) {
                ch->sink_ps = max64(max64(ch->sink_ps, p->first_ps) + memory_time(n->fabric, ch->dst.x.region, p->bytes), p->last_ps);
                ch->completes_ps = max64(ch->completes_ps, ch->sink_ps);
            }
        } else {
            if (p->phase == AWAY_READY) {
                struct fbxi_away_plan plan = {0};
                if (timed(n) && (status = away_plan_write(ch, p, offset, now, &plan)))
                    return status;
                away_op(j, p, FBX_DMA_WRITE, p->dst);
                p->phase = AWAY_WRITES;
                status = fbxi_away_dma_begin(n, &p->op, &plan);
            } else {
                status = p->op.state == FBX_AWAY ? fbxi_away_advance(n, &p->op, 0) : 0;
            }
            if (p->op.state == FBX_AWAY)
                break;
            if (status && status != FBX_E_AGAIN)
                return status;
            ch->completes_ps = max64(ch->completes_ps, p->op.completes_ps);
            ch->by_network |= p->op.private_[0] & FBXI_BY_NETWORK;
            p->op.state = FBX_DONE;
        }
        note(j, p->position + p->bytes);
    }
    if (a->head == a->tail && ch->position >= j->total)
        return 0;
    fbx_poke(&j->completes_ps, ch->completes_ps);
    if (a->head != before && ch->position < j->total && budget) {
        budget -= min64(budget, (uint64_t)(a->head - before) * AWAY_BYTES / 4);
        now = timed(n) ? fbxi_now(&n->fabric->clock) : now;
        goto again;
    }
    /* The network is looked at as often as its own time asks for, whatever modelled time is stretched by; and not before
     * something is due. */
    const struct away_piece *p = &a->piece[a->head % AWAY_PIECES];
    const uint64_t soon = fbxi_now(&n->fabric->clock) + real_us(&n->fabric->clock, a->tail - a->head == AWAY_PIECES ? 5 : 1);
    const uint64_t due = a->head == a->tail || !timed(n) ? 0
                         : p->phase == AWAY_WRITES           ? (p->op.state == FBX_AWAY ? p->op.next_ps : 0)
                         : p->op.state == FBX_RETURNS        ? p->op.completes_ps
                                                             : p->last_ps;
    ch->next_ps = max64(soon, due);
    return FBX_E_AGAIN;
}

/* The last byte has departed. The rest travels on its own. */
static int post_rest(struct channel *ch, struct job *j, fbx_au32 *lane, uint64_t now)
{
    int status;
    for (; ch->ring_head != ch->ring_tail; ch->ring_head++)
        if ((status = post_chunk(ch, j, lane, &ch->ring[ch->ring_head % RING], now)))
            return status;
    return 0;
}

/* ---- steps ------------------------------------------------------------------------------------------------------------ */

static void prepare(struct channel *ch, int kind, uint64_t gva, uint64_t bytes)
{
    ch->op.kind = (uint16_t)kind;
    ch->op.gva = gva;
    ch->op.bytes = bytes;
    ch->op.buffer = NULL;
    ch->op.tc = ch->op.attr = 0;
    ch->op.path = 0;
    ch->op.trace_id = 0;
    ch->op.state = FBX_DONE;
    ch->begun = 0;
}

static int run_op(struct channel *ch)
{
    int status = ch->begun ? fbx_op_advance(ch->node, &ch->op) : fbx_op_begin(ch->node, &ch->op);
    ch->begun = 1;
    if (status == FBX_E_AGAIN)
        ch->next_ps = timed(ch->node) ? ch->op.next_ps : 0;
    return status;
}

static int run(struct channel *ch, struct job *j, uint64_t now)
{
    fbx_node *n = ch->node;
    int status = fbxi_usable(n, (int)fbx_peek(&j->kind), j->d.dst);
    fbx_au32 *lane = status ? NULL : fbxi_lane(n);
    if (!lane)
        return status ? status : fbxi_fail(FBX_E_CLOSED, "the handle of %s is closed", n->facts->name);
    if (n->fabric->sim)
        n->fabric->trace_site = j->trace_site;
    if (ch->phase == IDLE && ((status = begin(ch, j, now)) || (status = scratch(ch, j))))
        return status;
    if (ch->phase == MOVES) {
        status = !j->total ? 0 : ch->is_away ? move_away(ch, j, lane, now) : timed(n) ? move_timed(ch, j, lane, now) : move_untimed(ch, j, lane);
        if (status)
            return status;
        ch->phase = POSTS;
    }
    if (ch->phase == POSTS) {
        if ((status = post_rest(ch, j, lane, now)))
            return status;
        ch->phase = SETTLES;
    }
    if (ch->phase == SETTLES) {
        if (timed(n) && j->total && now < ch->completes_ps && (now = fbxi_now(&n->fabric->clock)) < ch->completes_ps) {
            ch->next_ps = ch->completes_ps;
            if (!(j->d.flags & (FBX_DMA_SIGNAL | FBX_DMA_VISIBLE)))
                ch->final_ps = ch->next_ps;
            return FBX_E_AGAIN;
        }
        ch->phase = SIGNALS;
        prepare(ch, FBX_STORE, j->d.signal, 8);
    }
    if (ch->phase == SIGNALS) {
        if (j->d.flags & FBX_DMA_SIGNAL) {
            uint64_t offset, span;
            if (!ch->begun) {
                if ((status = look(n, &ch->dst, j->d.signal, &offset, &span)) ||
                    (status = admit(n, FBX_DMA_WRITE, &ch->dst, j->d.signal, FBX_PERM_WRITE)))
                    return status;
                ch->op.operand[0] = j->d.signal_value;
                ch->op.path = (uint16_t)j->d.path;
                ch->op.tc = (uint8_t)j->d.tc; /* the data's stream, and in its order whatever the default */
                ch->op.attr = FBX_PLAIN;
            }
            if ((status = run_op(ch)))
                return status;
            if (timed(n))
                ch->completes_ps = max64(ch->completes_ps, ch->op.completes_ps);
        }
        ch->phase = FLUSHES;
        if (!(j->d.flags & FBX_DMA_VISIBLE))
            ch->target_count = 0;
        ch->begun = 0;
    }
    while (ch->target_count) {
        if (!ch->begun) {
            prepare(ch, FBX_FLUSH, 0, 0);
            ch->op.operand[0] = ch->targets[min64(ch->target_count, TARGETS) - 1];
        }
        if ((status = run_op(ch)))
            return status;
        if (timed(n))
            ch->completes_ps = max64(ch->completes_ps, ch->op.completes_ps);
        ch->target_count--;
        ch->begun = 0;
    }
    note(j, j->total);
    return 0;
}

/* Claimed, so it stays the head; pairs with the publication in enqueue(). */
static struct job *head_of(struct channel *ch) { return fbx_observe_pointer(&ch->head); }

static void give_back(struct fbxi_dma *dma, struct job *j)
{
    free(j->list);
    free(j->error);
    if (j->fd >= 0)
        close(j->fd);
    j->list = NULL;
    j->error = NULL;
    j->fd = -1;
    j->id = 0;
    j->next = dma->free;
    dma->free = j;
}

/* An event, or one more that the next event counts: a program that goes on submitting what fails must not fill the ring. */
static void tell_failure(fbx_node *n, int status)
{
    struct fbxi_dma *dma = n->dma;
    const uint64_t now = fbxi_monotonic_ns();
    uint64_t told = fbx_peek(&dma->told_ns);
    if ((told && now - told < TELL_NS) || !fbx_claim(&dma->told_ns, told, now))
        fbx_count(&dma->untold, 1);
    else
        fbxi_event(n->fabric, &(struct fbxi_event){FBX_EVENT_DMA_FAILED, n->index, UINT32_MAX, UINT32_MAX, (uint64_t)-status, fbx_swap(&dma->untold, 0)});
}

/* Claimed. It is complete, however it went. */
static void finish(struct channel *ch, struct job *j, int status)
{
    fbx_node *n = ch->node;
    struct fbxi_dma *dma = n->dma;
    const struct fbx_error *last = fbx_last_error();
    struct fbx_error *error = NULL;
    const int first = head_of(ch) == j;
    if (status && (error = malloc(sizeof *error))) {
        *error = *last;
        if (last->code != status) {
            fbxi_fail_at(status, (int)fbx_peek(&j->kind), (int)n->index, j->d.dst, "%s", fbx_error_hint(status));
            *error = *last;
        }
        error->op = (int)fbx_peek(&j->kind);
    }
    if (status && status != FBX_E_CANCELLED && status != FBX_E_CLOSED)
        tell_failure(n, status);
    if (first && timed(n)) {
        if (status && ch->ring_head != ch->ring_tail && ch->phase != IDLE && ch->dst.x.route)
            fbxi_vanish(n, ch->dst.x.target, ch->dst.x.route);
        fbxi_count_operation(n, (int)fbx_peek(&j->kind), j->total, status, ch->jumped | ch->by_network, status ? 0 : ch->completes_ps,
                             fbxi_now(&n->fabric->clock));
        ch->free_ps = status ? fbxi_now(&n->fabric->clock) : ch->completes_ps;
        fbx_poke(&j->completes_ps, ch->free_ps);
    }
    if (fbxi_tracing(n->fabric))
        trace_job(ch, j, status);
    if (first)
        away_drop(ch);
    if (first) {
        fbx_poke(&ch->lent, fbx_peek(&ch->lenders) != 0);
        ch->phase = IDLE;
        ch->final_ps = 0;
    }
    pthread_mutex_lock(&ch->mutex);
    for (struct job **at = &ch->head; *at; at = &(*at)->next)
        if (*at == j) {
            fbx_publish_pointer(at, j->next);
            if (!j->next)
                ch->tail = at;
            break;
        }
    if (j->slot)
        fbxi_dma_hide(n->fabric, n->requester, j->slot);
    j->slot = NULL;
    fbx_publish(&ch->length, fbx_peek(&ch->length) - 1);
    pthread_mutex_unlock(&ch->mutex);
    pthread_mutex_lock(&dma->mutex);
    j->status = status;
    j->error = error;
    /* Pairs with: fbx_observe(&j->done) of those who wait. Breaks: a status that is not there yet. */
    fbx_publish(&j->done, 1);
    if (j->fd >= 0) {
        uint64_t one = 1;
        if (write(j->fd, &one, sizeof one) < 0)
            errno = 0; /* it is readable already */
    }
    if (j->forgotten && !j->holders)
        give_back(dma, j);
    pthread_mutex_unlock(&dma->mutex);
    /* Who waits says so, then looks at `done`. (It may be another's job by now: then a wake too many.) */
    fbx_fence_sleep();
    if (fbx_peek(&j->waiters))
        fbxi_futex_wake(&j->done);
}

/* Claimed. Take the channel as far as it goes now; returns when to come again, 0: at once, NEVER: it is empty. */
static uint64_t step(struct channel *ch, uint64_t now)
{
    for (uint32_t i = 0; i < 16; i++) {
        struct job *j = head_of(ch);
        if (!j)
            return NEVER;
        if (timed(ch->node) && (!now || i))
            now = max64(now, fbxi_now(&ch->node->fabric->clock));
        ch->final_ps = 0;
        int status = run(ch, j, now);
        if (status == FBX_E_AGAIN) {
            fbx_poke(&j->next_ps, ch->next_ps);
            return ch->next_ps;
        }
        finish(ch, j, status);
    }
    return 0;
}

static int claim(struct channel *ch) { return !fbx_peek(&ch->claimed) && fbx_claim32(&ch->claimed, 0, 1); }
/* Pairs with: the claim. Breaks: the next one to step sees half of the record. */
static void unclaim(struct channel *ch) { fbx_publish(&ch->claimed, 0); }

static void claim_surely(struct channel *ch)
{
    for (uint32_t i = 0; !claim(ch); i++) {
        if (i < 1000)
            fbx_relax();
        else
            sched_yield();
    }
}

/* ---- the engine -------------------------------------------------------------------------------------------------------- */

/* Until fabric time `until`, for `max_ns` at most, or until `word` is no longer `seen`. */
static void pause_until(const fbx_fabric *f, uint64_t until_ps, uint64_t max_ns, fbx_au32 *word, uint32_t seen, uint32_t wait_spin_ns,
                        uint32_t *jumped)
{
    const uint64_t spin_ns = 100000u;
    const struct fbxi_clock *clock = &f->clock;
    uint64_t now = fbxi_now(clock), ticks;
    if (until_ps <= now || fbx_observe(word) != seen)
        return;
    uint64_t left_ticks = fbxi_ps_to_ticks(clock, until_ps - now);
    uint64_t ns = clock->ticks_per_us ? (uint64_t)((unsigned __int128)left_ticks * 1000u / clock->ticks_per_us) : 0;
    if (ns > spin_ns) {
        const uint64_t nap_ns = min64(ns - spin_ns, min64(max_ns, fbxi_counts(clock) ? 1000u : 20000000u));
        fbxi_futex_wait(word, seen, nap_ns);
        fbxi_slept(clock, nap_ns);
    } else
        fbxi_wait(clock, until_ps, min64(max_ns, 2 * spin_ns), wait_spin_ns, jumped, &ticks);
}

/* To wake a thread that sleeps costs its waker microseconds, and most who submit soon wait, which moves the data as well. So for
 * a while after the last submission the engine sleeps in naps: what is in no hurry is found at the end of one. */
static void *engine(void *argument)
{
    fbx_fabric *f = argument;
    struct fbxi_engine *e = f->engine;
    uint32_t wakes = 0;
    uint64_t since_ns = 0;
    prctl(PR_SET_TIMERSLACK, 1000ul);
    while (!fbx_observe(&e->stop)) {
        uint32_t seen = fbx_observe(&e->wake), jumped = 0;
        uint64_t next = NEVER;
        pthread_mutex_lock(&e->mutex);
        for (struct fbxi_dma *dma = e->list; dma; dma = dma->next)
            for (uint32_t i = 0; i < FBX_DMA_CHANNELS; i++) {
                struct channel *ch = fbx_observe_pointer(&dma->channel[i]);
                /* Whoever lends a thread wakes us when it leaves. */
                if (!ch || !fbx_observe(&ch->length) || fbx_observe(&ch->lenders))
                    continue;
                if (!claim(ch)) {
                    next = 0;
                    continue;
                }
                next = min64(next, step(ch, 0));
                unclaim(ch);
            }
        pthread_mutex_unlock(&e->mutex);
        while (fbx_observe(&e->wanted) && !fbx_observe(&e->stop))
            sched_yield();
        if (next == NEVER) {
            const uint64_t now_ns = fbxi_monotonic_ns();
            if (seen != wakes) {
                wakes = seen;
                since_ns = now_ns;
            }
            const int naps = now_ns - since_ns < NAPS_NS;
            fbx_poke(&e->asleep, naps ? NAPS : ASLEEP);
            /* Pairs with: the addition in kick(). Breaks: a submission that nobody wakes us for. */
            fbx_fence_sleep();
            if (fbx_observe(&e->wake) == seen)
                fbxi_futex_wait(&e->wake, seen, naps ? NAP_NS : 1000000000u);
            fbx_poke(&e->asleep, AWAKE);
        } else if (next) {
            fbx_poke(&e->asleep, ASLEEP);
            fbx_fence_sleep();
            pause_until(f, next, NEVER, &e->wake, seen, FBX_SPIN_NS, &jumped);
            fbx_poke(&e->asleep, AWAKE);
        }
    }
    return NULL;
}

/* There is something to do that its issuer does not do itself; at once, or as soon as the engine looks. */
static void kick(const fbx_fabric *f, int at_once)
{
    struct fbxi_engine *e = fbx_observe_pointer(&f->engine);
    if (!e)
        return;
    fbx_add(&e->wake, 1);
    uint32_t asleep = fbx_observe(&e->asleep);
    if (asleep == ASLEEP || (asleep == NAPS && at_once))
        fbxi_futex_wake(&e->wake);
}

static int engine_start(fbx_fabric *f)
{
    struct fbxi_engine *e = calloc(1, sizeof *e);
    if (!e)
        return fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    pthread_mutex_init(&e->mutex, NULL);
    fbx_publish_pointer(&f->engine, e);
    if (!has_engine(f))
        return 0;
    int failed = fbxi_thread_start(&e->thread, engine, f);
    if (failed) {
        fbx_publish_pointer(&f->engine, NULL);
        free(e);
        errno = failed;
        return fbxi_fail_system(FBX_E_SYSTEM, "cannot start the DMA engine");
    }
    e->running = 1;
    return 0;
}

void fbxi_engine_stop(fbx_fabric *f)
{
    struct fbxi_engine *e = f->engine;
    if (!e || !e->running)
        return;
    fbx_publish(&e->stop, 1);
    fbx_add(&e->wake, 1);
    fbxi_futex_wake(&e->wake);
    pthread_join(e->thread, NULL);
    e->running = 0;
}

void fbxi_engine_free(fbx_fabric *f)
{
    fbxi_engine_stop(f);
    free(f->engine);
    f->engine = NULL;
}

/* The child has no such thread, and whatever it held is held for ever: leave all of it. */
void fbxi_engine_forked(fbx_fabric *f) { f->engine = NULL; }

/* ---- a handle's channels and jobs --------------------------------------------------------------------------------------- */

static int dma_of(fbx_node *n, struct fbxi_dma **out)
{
    fbx_fabric *f = n->fabric;
    int status = 0;
    *out = fbx_observe_pointer(&n->dma);
    if (*out)
        return 0;
    pthread_mutex_lock(&f->engine_mutex);
    if (!f->engine)
        status = engine_start(f);
    struct fbxi_dma *dma = n->dma;
    if (!status && !dma) {
        if ((dma = calloc(1, sizeof *dma))) {
            dma->node = n;
            pthread_mutex_init(&dma->mutex, NULL);
            struct fbxi_engine *e = f->engine;
            fbx_add(&e->wanted, 1);
            pthread_mutex_lock(&e->mutex);
            dma->next = e->list;
            e->list = dma;
            pthread_mutex_unlock(&e->mutex);
            fbx_add(&e->wanted, UINT32_MAX);
            fbx_publish_pointer(&n->dma, dma);
        } else {
            status = fbxi_fail(FBX_E_NO_MEMORY, "no memory");
        }
    }
    pthread_mutex_unlock(&f->engine_mutex);
    *out = dma;
    return status;
}

static int channel_of(fbx_node *n, struct fbxi_dma *dma, uint32_t number, struct channel **out)
{
    *out = fbx_observe_pointer(&dma->channel[number]);
    if (*out)
        return 0;
    struct channel *ch = calloc(1, sizeof *ch);
    int status = ch ? fbxi_dma_slots(n->fabric, n->requester, number, &ch->slots) : fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    if (status) {
        free(ch);
        return status;
    }
    ch->node = n;
    ch->number = number;
    ch->tail = &ch->head;
    pthread_mutex_init(&ch->mutex, NULL);
    pthread_mutex_lock(&dma->mutex);
    if (dma->channel[number]) {
        pthread_mutex_destroy(&ch->mutex);
        free(ch);
    } else {
        fbx_publish_pointer(&dma->channel[number], ch);
    }
    *out = dma->channel[number];
    pthread_mutex_unlock(&dma->mutex);
    return 0;
}

static struct job *job_new(struct fbxi_dma *dma)
{
    pthread_mutex_lock(&dma->mutex);
    if (!dma->free && dma->blocks < JOBS_BLOCKS) {
        struct job *block = calloc(JOBS_BLOCK, sizeof *block);
        for (uint32_t i = 0; block && i < JOBS_BLOCK; i++) {
            block[i].index = dma->blocks * JOBS_BLOCK + i;
            block[i].fd = -1;
            block[i].next = dma->free;
            dma->free = &block[i];
        }
        if (block)
            dma->block[dma->blocks++] = block;
    }
    struct job *j = dma->free;
    if (j) {
        dma->free = j->next;
        j->next = NULL;
        j->id = ++dma->generation << 16 | j->index;
        j->status = FBX_E_AGAIN;
        j->holders = 0;
        j->forgotten = 0;
        j->slot = NULL;
        fbx_poke(&j->done, 0);
        fbx_poke(&j->waiters, 0);
        fbx_poke(&j->moved, 0);
        fbx_poke(&j->completes_ps, 0);
        fbx_poke(&j->next_ps, 0);
        fbx_poke(&j->kind, FBX_DMA_WRITE);
    }
    pthread_mutex_unlock(&dma->mutex);
    return j;
}

/* The job of an id, held; NULL if there is none. */
static struct job *hold(fbx_node *n, uint64_t id)
{
    struct fbxi_dma *dma = fbx_peek(&n->fabric->forked) ? NULL : fbx_observe_pointer(&n->dma);
    uint32_t index = (uint32_t)(id & 0xffff);
    struct job *j = NULL;
    if (!dma)
        return NULL;
    pthread_mutex_lock(&dma->mutex);
    if (index / JOBS_BLOCK < dma->blocks)
        j = &dma->block[index / JOBS_BLOCK][index % JOBS_BLOCK];
    if (j && (j->id != id || !id || j->forgotten))
        j = NULL;
    if (j)
        j->holders++;
    pthread_mutex_unlock(&dma->mutex);
    return j;
}

static void let_go(fbx_node *n, struct job *j)
{
    pthread_mutex_lock(&n->dma->mutex);
    if (!--j->holders && j->forgotten && fbx_peek(&j->done))
        give_back(n->dma, j);
    pthread_mutex_unlock(&n->dma->mutex);
}

static int no_such(const fbx_node *n, uint64_t id)
{
    if (fbx_peek(&n->fabric->forked))
        return fbxi_fail(FBX_E_CLOSED, "the handle of %s is closed: it was made before fork", n->facts->name);
    return fbxi_fail(FBX_E_STALE, "no DMA %llx, or it was released", (unsigned long long)id);
}

static int check(const struct fbx_dma *d, uint64_t *total)
{
    if (d->channel >= FBX_DMA_CHANNELS || d->tc > 7 || d->path >= FBX_PATHS || d->flags > 31)
        return fbxi_fail(FBX_E_INVALID, "channel %u, traffic class %u, path %u, flags %#x: they go up to %u, 7, %u and 0x1f", d->channel,
                         d->tc, d->path, d->flags, FBX_DMA_CHANNELS - 1, FBX_PATHS - 1);
    if (d->flags & FBX_DMA_FILL && d->fill_bytes != 1 && d->fill_bytes != 2 && d->fill_bytes != 4 && d->fill_bytes != 8)
        return fbxi_fail(FBX_E_INVALID, "a pattern of %u bytes: 1, 2, 4 or 8", d->fill_bytes);
    if (d->list) {
        *total = 0;
        for (uint64_t i = 0; i < d->list_count; i++)
            if (__builtin_add_overflow(*total, d->list[i].bytes, total))
                return fbxi_fail(FBX_E_INVALID, "more bytes than there are addresses");
        return 0;
    }
    uint64_t rows = d->rows ? d->rows : 1, reach_bytes;
    if (rows > 1 && d->dst_stride < d->bytes)
        return fbxi_fail(FBX_E_INVALID, "rows of %llu bytes %llu apart overlap", (unsigned long long)d->bytes,
                         (unsigned long long)d->dst_stride);
    if (__builtin_mul_overflow(rows, d->bytes, total) || __builtin_mul_overflow(rows, d->dst_stride, &reach_bytes) ||
        __builtin_mul_overflow(rows, d->src_stride, &reach_bytes))
        return fbxi_fail(FBX_E_INVALID, "more bytes than there are addresses");
    return 0;
}

static void cover(struct fbxi_range *ranges, uint32_t *count, uint64_t first, uint64_t bytes)
{
    uint64_t end = first + bytes;
    if (!bytes)
        return;
    if (first & FBX_BUS || end < first) {
        first = 0;
        end = NEVER;
    }
    /* One range for each region. */
    for (uint32_t i = 0; i < *count; i++)
        if (ranges[i].first >> FBX_SLOT_SHIFT == first >> FBX_SLOT_SHIFT) {
            ranges[i].first = min64(ranges[i].first, first);
            ranges[i].end = max64(ranges[i].end, end);
            return;
        }
    if (*count < FBX_DMA_RANGES)
        ranges[(*count)++] = (struct fbxi_range){first, end};
    else
        ranges[0] = (struct fbxi_range){0, NEVER};
}

/* *first: nothing was before it, so nobody is about to take it on. */
static int enqueue(struct channel *ch, struct job *j, int *first)
{
    fbx_node *n = ch->node;
    struct fbxi_range ranges[FBX_DMA_RANGES];
    uint32_t count = 0;
    if (j->list) {
        for (uint64_t i = 0; i < j->d.list_count; i++) {
            cover(ranges, &count, j->list[i].dst, j->list[i].bytes);
            if (!(j->d.flags & FBX_DMA_FILL))
                cover(ranges, &count, j->list[i].src, j->list[i].bytes);
        }
    } else {
        cover(ranges, &count, j->d.dst, (j->d.rows - 1) * j->d.dst_stride + j->d.bytes);
        if (!(j->d.flags & FBX_DMA_FILL))
            cover(ranges, &count, j->d.src, (j->d.rows - 1) * j->d.src_stride + j->d.bytes);
    }
    if (j->d.flags & FBX_DMA_SIGNAL)
        cover(ranges, &count, j->d.signal, 8);
    pthread_mutex_lock(&ch->mutex);
    uint32_t length = fbx_peek(&ch->length);
    if (length < FBX_DMA_DEPTH) {
        /* Slots are used in turn, so one that is free now was the oldest. A cancelled one may leave a gap: look on. */
        for (uint32_t i = 0; i < FBX_DMA_DEPTH && !j->slot; i++) {
            struct fbxl_dma_slot *slot = &ch->slots[(ch->submitted + i) % FBX_DMA_DEPTH];
            if (!fbx_peek(&slot->state))
                j->slot = slot;
        }
        ch->submitted++;
        if (j->slot)
            fbxi_dma_show(n->fabric, n->requester, j->slot, ch->submitted, ch->number, j->total, ranges, count);
        *first = !length;
        fbx_publish_pointer(ch->tail, j);
        ch->tail = &j->next;
        fbx_publish(&ch->length, length + 1);
    }
    pthread_mutex_unlock(&ch->mutex);
    if (length < FBX_DMA_DEPTH)
        return 0;
    return fbxi_fail_at(FBX_E_QUEUE_FULL, FBX_DMA_WRITE, (int)n->index, j->d.dst, "channel %u of %s holds %u descriptors",
                        ch->number, n->facts->name, FBX_DMA_DEPTH);
}

int fbx_dma_submit(fbx_node *n, const struct fbx_dma *d, uint64_t *id)
{
    fbx_fabric *f = n->fabric;
    struct fbxi_dma *dma;
    struct channel *ch;
    struct job *j;
    uint64_t total = 0;
    int first = 0;
    if (id)
        *id = 0;
    int status = fbxi_usable(n, FBX_DMA_WRITE, d->dst);
    if (!status)
        status = check(d, &total);
    if (!status)
        status = dma_of(n, &dma);
    if (!status)
        status = channel_of(n, dma, d->channel, &ch);
    if (status)
        return status;
    if (!(j = job_new(dma)))
        return fbxi_fail(FBX_E_QUEUE_FULL, "%u DMA of %s were never released", JOBS_BLOCK * JOBS_BLOCKS, n->facts->name);
    j->d = *d;
    j->d.rows = d->rows ? d->rows : 1;
    j->d.list = NULL;
    j->channel = ch;
    j->forgotten = j->holders = !id; /* held while we look; nobody can release an id that is not known yet */
    j->total = total;
    j->issued_ps = timed(n) ? fbxi_now(&f->clock) : 0;
    j->trace_id = fbxi_trace_id(f);
    j->trace_site = f->trace_site;
    if (d->list) {
        j->list = malloc((d->list_count ? d->list_count : 1) * sizeof *j->list);
        if (j->list)
            memcpy(j->list, d->list, d->list_count * sizeof *j->list);
        else
            status = fbxi_fail(FBX_E_NO_MEMORY, "no memory");
    }
    if (!status)
        status = enqueue(ch, j, &first);
    if (status) {
        pthread_mutex_lock(&dma->mutex);
        give_back(dma, j);
        pthread_mutex_unlock(&dma->mutex);
        return status;
    }
    /* With time the links are reserved as of now; without it a small one is complete on return. */
    if (first && (timed(n) || total <= INLINE_BYTES || !has_engine(f)) && claim(ch)) {
        step(ch, j->issued_ps);
        unclaim(ch);
    }
    /* Whoever executes what was before it executes this next. */
    if (first && fbx_observe(&ch->length) && !fbx_observe(&ch->lenders))
        kick(f, timed(n) && !fbx_peek(&ch->lent));
    if (id)
        *id = j->id;
    else
        let_go(n, j);
    return 0;
}

/* A job that nobody else takes on: there is no engine, or its handle is closed. */
static void help(fbx_node *n, struct job *j)
{
    if (!fbx_observe(&j->done) && (!has_engine(n->fabric) || fbx_peek(&n->closed)) && claim(j->channel)) {
        step(j->channel, 0);
        unclaim(j->channel);
    }
}

static int outcome(const fbx_node *n, const struct job *j)
{
    if (j->status && j->error)
        return fbxi_fail_at(j->status, j->error->op, (int)n->index, j->error->gva, "%s", j->error->text);
    return j->status;
}

int fbx_dma_poll(fbx_node *n, uint64_t id, struct fbx_dma_status *out)
{
    struct job *j = hold(n, id);
    memset(out, 0, sizeof *out);
    if (!j)
        return no_such(n, id);
    help(n, j);
    int done = fbx_observe(&j->done) != 0;
    out->status = done ? j->status : FBX_E_AGAIN;
    out->kind = fbx_peek(&j->kind);
    out->bytes = j->total;
    out->done = fbx_peek(&j->moved);
    out->issued_ps = j->issued_ps;
    out->completes_ps = fbx_peek(&j->completes_ps);
    out->next_ps = done ? 0 : fbx_peek(&j->next_ps);
    let_go(n, j);
    return 0;
}

int fbx_dma_wait(fbx_node *n, uint64_t id, uint64_t max_wait_ns)
{
    struct job *j = hold(n, id);
    if (!j)
        return no_such(n, id);
    fbx_fabric *f = n->fabric;
    struct channel *ch = j->channel;
    uint64_t begin_ns = 0, at_ps = 0, next, final;
    int lends = 0, status;
    for (uint32_t round = 0; !fbx_observe(&j->done); round++) {
        if (!lends++) {
            fbx_add(&ch->lenders, 1);
            begin_ns = max_wait_ns == NEVER ? 0 : fbxi_monotonic_ns();
        }
        next = final = 0;
        if (claim(ch)) {
            next = step(ch, at_ps);
            final = head_of(ch) == j ? ch->final_ps : 0;
            unclaim(ch);
        } else if (round & 1023) {
            fbx_relax();
        } else {
            sched_yield();
        }
        at_ps = 0;
        if (fbx_observe(&j->done))
            break;
        if (f->clock.kind != FBX_REAL)
            break;
        uint64_t left = NEVER;
        if (max_wait_ns != NEVER) {
            uint64_t spent = fbxi_monotonic_ns() - begin_ns;
            if (spent >= max_wait_ns)
                break;
            left = max_wait_ns - spent;
        }
        if (next && next != NEVER) {
            /* The last wait ends early by what it takes to get back to the caller. */
            uint64_t until = final && final > n->binding_ps ? final - n->binding_ps : next;
            fbx_add(&j->waiters, 1);
            pause_until(f, until, left, &j->done, 0, FBX_SPIN_LAST_NS, &ch->jumped);
            fbx_add(&j->waiters, UINT32_MAX);
            if (final && fbxi_now(&f->clock) >= until)
                at_ps = final;
        }
    }
    if (lends) {
        fbx_add(&ch->lenders, UINT32_MAX);
        if (fbx_observe(&ch->length))
            kick(f, timed(n) && !fbx_peek(&ch->lent));
    }
    status = fbx_observe(&j->done) ? outcome(n, j) : FBX_E_AGAIN;
    let_go(n, j);
    return status;
}

int fbx_dma_cancel(fbx_node *n, uint64_t id)
{
    struct job *j = hold(n, id);
    if (!j)
        return no_such(n, id);
    int ended = 0;
    while (!fbx_observe(&j->done) && !ended) {
        claim_surely(j->channel);
        if (head_of(j->channel) == j && j->channel->phase == SETTLES) {
            step(j->channel, 0); /* all of it is on its way already: it is too late */
        } else if (!fbx_observe(&j->done)) {
            fbxi_fail_at(FBX_E_CANCELLED, (int)fbx_peek(&j->kind), (int)n->index, j->d.dst, "cancelled after %llu of %llu bytes",
                         (unsigned long long)fbx_peek(&j->moved), (unsigned long long)j->total);
            finish(j->channel, j, FBX_E_CANCELLED);
            ended = 1;
        }
        unclaim(j->channel);
        if (fbx_observe(&j->channel->length))
            kick(n->fabric, 1);
    }
    let_go(n, j);
    return ended;
}

int fbx_dma_fd(fbx_node *n, uint64_t id)
{
    struct job *j = hold(n, id);
    if (!j)
        return no_such(n, id);
    pthread_mutex_lock(&n->dma->mutex);
    if (j->fd < 0)
        j->fd = eventfd(fbx_peek(&j->done) ? 1 : 0, EFD_CLOEXEC | EFD_NONBLOCK);
    int fd = j->fd;
    pthread_mutex_unlock(&n->dma->mutex);
    if (!fbx_observe(&j->done))
        kick(n->fabric, 1); /* whoever asks for it will sleep on it */
    if (fd < 0)
        fd = fbxi_fail_system(FBX_E_SYSTEM, "no eventfd");
    let_go(n, j);
    return fd;
}

int fbx_dma_release(fbx_node *n, uint64_t id)
{
    struct job *j = hold(n, id);
    if (!j)
        return no_such(n, id);
    pthread_mutex_lock(&n->dma->mutex);
    j->forgotten = 1;
    pthread_mutex_unlock(&n->dma->mutex);
    let_go(n, j);
    return 0;
}

uint64_t fbxi_dma_next(const fbx_node *n)
{
    uint64_t next = NEVER;
    for (uint32_t i = 0; n->dma && i < FBX_DMA_CHANNELS; i++) {
        const struct channel *ch = n->dma->channel[i];
        if (ch && ch->head)
            next = min64(next, fbx_peek(&ch->head->next_ps));
    }
    return next;
}

void fbxi_dma_step(fbx_node *n)
{
    for (uint32_t i = 0; n->dma && i < FBX_DMA_CHANNELS; i++) {
        struct channel *ch = n->dma->channel[i];
        if (ch && ch->head && claim(ch)) {
            step(ch, 0);
            unclaim(ch);
        }
    }
}

void fbxi_dma_detach(fbx_node *n)
{
    struct fbxi_dma *dma = fbx_observe_pointer(&n->dma);
    struct fbxi_engine *e = n->fabric->engine;
    if (!dma)
        return;
    if (e) {
        fbx_add(&e->wanted, 1);
        pthread_mutex_lock(&e->mutex);
        for (struct fbxi_dma **at = &e->list; *at; at = &(*at)->next)
            if (*at == dma) {
                *at = dma->next;
                break;
            }
        pthread_mutex_unlock(&e->mutex);
        fbx_add(&e->wanted, UINT32_MAX);
    }
    for (uint32_t i = 0; i < FBX_DMA_CHANNELS; i++) {
        struct channel *ch = fbx_observe_pointer(&dma->channel[i]);
        if (!ch)
            continue;
        claim_surely(ch);
        for (struct job *j; (j = head_of(ch));) {
            fbxi_fail(FBX_E_CLOSED, "the handle of %s was closed meanwhile", n->facts->name);
            finish(ch, j, FBX_E_CLOSED);
        }
        unclaim(ch);
    }
}

void fbxi_dma_free(fbx_node *n)
{
    struct fbxi_dma *dma = n->dma;
    if (!dma)
        return;
    for (uint32_t b = 0; b < dma->blocks; b++) {
        for (uint32_t i = 0; i < JOBS_BLOCK; i++) {
            struct job *j = &dma->block[b][i];
            free(j->list);
            free(j->error);
            if (j->fd >= 0)
                close(j->fd);
        }
        free(dma->block[b]);
    }
    for (uint32_t i = 0; i < FBX_DMA_CHANNELS; i++)
        if (dma->channel[i]) {
            pthread_mutex_destroy(&dma->channel[i]->mutex);
            free(dma->channel[i]->bounce);
            free(dma->channel[i]->away);
            free(dma->channel[i]->scratch);
            free(dma->channel[i]);
        }
    pthread_mutex_destroy(&dma->mutex);
    free(dma);
    n->dma = NULL;
}
