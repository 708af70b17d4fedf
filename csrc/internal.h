/* SPDX-License-Identifier: Apache-2.0
 *
 * What one process keeps of a fabric: mappings, caches, handles. Shared words are in layout.h; this is private memory.
 */
#ifndef FBX_INTERNAL_H
#define FBX_INTERNAL_H

#include "clock.h"
#include "error.h"
#include "fabrex.h"
#include "layout.h"

#include <pthread.h>
#include <stddef.h>

#define FBX_MAX_HOPS 24u
#define FBX_CLASSES 8u /* traffic classes */
#define FBX_PATHS 4u /* ways between two nodes that operations can choose from */
#define FBX_HOLD_BYTES (256u << 10) /* most that is copied under one in-operation mark */
/* No write waits longer than this behind its link's delays: a word that says so was scribbled over. */
#define FBX_BACKLOG_PS 4000000000000ull
#define FBX_STALL_NS 1000000000ull /* how long to wait for another process that holds something we need */

struct fbxi_region_map { /* mapped on first use; both views of the same pages */
    uint8_t *rw, *ro;
    uint8_t *bits; /* commit bitmap, behind the data */
    int fd; /* -1, or passed by another process */
};

struct fbxi_figures;
struct fbxi_route {
    uint32_t target, hops;
    /* What follows from its links' figures, as last looked at (fbxi_route_refresh). */
    fbx_au32 mps, mrrs;
    fbx_au64 fixed_ps; /* delays of the way, one direction */
    fbx_au64 version; /* counts refreshes */
    uint32_t path;
    struct fbxl_queue *queue[FBX_CLASSES]; /* towards the target, by traffic class; NULL until the first posted write */
    fbx_au32 looked[FBX_CLASSES]; /* how many queues the target had when none was found */
    fbx_au64 drained[FBX_CLASSES]; /* sequence of the last write there when this handle drained its write-combining buffers */
    /* Round trips made and their payloads: [0] by the home thread, [1] by others. They reach the links' counters when
     * somebody looks (fbxi_publish_counts); eight locked additions would cost a load more than its reservations. */
    struct fbxi_trips {
        fbx_au64 trips, request_bytes, completion_bytes;
    } made[2], published[2];
    struct fbxi_hop {
        struct fbxl_direction *out, *back;
        const struct fbxi_figures *out_figures, *back_figures; /* replaced when the link is set: use fbxi_out() */
        fbx_au64 which; /* change of the link that they are of */
        uint32_t direction;
        uint32_t elsewhere; /* reserved on another machine: it takes no time here; FBXI_TAKEN: its time, and no reservation */
    } hop[FBX_MAX_HOPS];
};
#define FBXI_TAKEN 2u
/* The first link of a way, in its direction. */
static inline const struct fbxi_figures *fbxi_out(const struct fbxi_route *route)
{
    return fbx_observe_pointer(&route->hop[0].out_figures);
}

/* What a requester may do with one region, resolved. Only the handle's home thread keeps these; other threads resolve
 * each time, so that nobody reads a half-filled one. */
struct fbxi_xl {
    uint64_t generation; /* of the requester when it was resolved; 0: never */
    uint64_t lo, hi; /* offsets of the region that the window reaches */
    uint32_t perm, mapping, target, region;
    int32_t status; /* 0, or why nothing passes: LINK_DOWN, PEER_LOST */
    uint32_t attr; /* of every request through its window: FBX_RO, FBX_IDO */
    uint32_t away, pad; /* machine + 1 if the memory is another machine's; `base` is NULL then */
    uint64_t shortened; /* how far the short way reaches */
    uint8_t *base; /* the region's first byte */
    struct fbxi_route *route; /* NULL: local */
};

/* The hot part of it: 16 bytes, four a line, because a fabric has a thousand regions. In pieces of FBX_COMMIT_BYTES, which
 * no aligned access crosses; a span of 0 sends the access down the long way. */
struct fbxi_tlb {
    uint8_t *base;
    uint32_t lo;
    uint32_t span : 30, load : 1, store : 1;
};

struct fbx_node {
    /* what the fast path reads, in two lines */
    const void *home; /* thread whose lane this is */
    fbx_au32 *lane;
    fbx_au64 *generation;
    uint64_t generation_seen;
    struct fbxi_tlb *tlb;
    uint64_t tlb_count;
    fbx_au64 *pending;
    uint32_t explicit_fence;
    fbx_au32 closed;
    /* May accesses take the short way: 0 none, 1 all, 2 those to our own memory. Without injected time all, with it local
     * ones; and none while posted writes are on their way to us, because then each access delivers first. */
    uint32_t may_shorten;

    fbx_fabric *fabric;
    uint32_t index, requester, kind, incarnation;
    struct fbxl_node *shared;
    const struct fbxl_node *facts;
    struct fbxl_requester *slot;
    struct fbxl_stats *stats;
    struct fbxi_xl *xl;
    struct fbxi_route **routes; /* by target node and path */
    fbx_au64 *dependencies;
    uint64_t binding_ps, own_ps; /* what a timed call costs beside its wait: with its binding, and from C */
    uint32_t attr, tc; /* of operations that do not say otherwise */
    fbx_au64 requests; /* names for what the adversary decides about */
    fbx_au64 fence_floor;
    fbx_au64 *tag_free_ps; /* when each tag of a non-posted request is free again; 1,024, NULL without injected time */
    fbx_au32 tag_next;
    fbx_au64 dropped_checked; /* of slot->dropped: what flush(check) has told */
    fbx_au32 used_targets_count;
    uint32_t *used_targets; /* nodes that this handle wrote to since it was opened */
    uint8_t *used_target;
    pthread_mutex_t mutex; /* long way: translation, routes, extra lanes */
    struct fbxi_extra_lane {
        struct fbxi_extra_lane *next;
        const void *thread;
        fbx_au32 *lane;
    } *extra;
    struct fbxi_dma *dma; /* dma.c; NULL before the first submission */
    struct fbx_node *next;
    fbx_au32 event_fd; /* descriptor + 1 of the FIFO of its NTB's events; 0: none yet */
    fbx_au64 link_epoch, link_peers; /* peers whose link was up when the fabric's control state had that age */
    fbx_au32 forked_lane; /* where marks go in a child that inherited the handle */
    struct fbxi_peer *peers[FBX_MACHINES]; /* socket.c: connections to other machines, made at first use */
    uint64_t away_dropped[FBX_MACHINES]; /* our posted writes that were lost there, as far as we have been told */
    /* A gateway's handle, for a requester of another machine: no windows of its own, and its time counts from proxy_now. */
    uint32_t proxy;
    uint64_t proxy_now;
    struct fbxl_node *proxy_facts;
};

struct fbx_fabric {
    uint8_t *base;
    struct fbxl_header *header;
    struct fbxl_node *nodes;
    struct fbxl_region *regions;
    struct fbxl_link *links;
    struct fbxl_direction *directions;
    struct fbxl_session *sessions;
    struct fbxl_requester *requesters;
    struct fbxl_lane *lanes;
    struct fbxl_buffer *buffers;
    struct fbxl_name *names;
    fbx_au32 *buckets;
    uint64_t mapped_bytes;
    int fd;
    uint32_t session, session_incarnation;
    uint64_t identity; /* our name in locks */
    uint32_t node_count, region_count, link_count;
    /* What never changes, copied and checked when the fabric was opened: used as sizes, indices and shifts, it must not be
     * what somebody scribbles into shared memory later. */
    struct fbxl_node *node_facts;
    struct fbxl_region *region_facts;
    struct fbxl_link *link_facts;
    struct fbxi_figures **figures; /* by direction: what its link was set to so far */
    pthread_mutex_t figures_mutex; /* their lists, and tiers; taken last */
    struct fbxi_tier **tiers; /* by region, with a rate: made on first use */
    struct fbxi_jitter **tier_jitter, **link_jitter; /* NULL: none */
    uint64_t seed;
    uint32_t tiers_limited; /* some tier has a rate or a jitter */
    uint32_t capacity[FBXL_TABLES], stride[FBXL_TABLES];
    uint64_t table_offset[FBXL_TABLES];
    uint64_t heap_offset, heap_bytes, instance, events_offset;
    uint32_t uid;
    uint32_t flags, ordering, creator, observer;
    fbx_au32 closed, forked;
    struct fbxi_clock clock;
    struct fbxi_region_map *maps;
    uint32_t **trees; /* by source node: the direction by which each node is reached */
    uint32_t *adjacent_first, *adjacent;
    fbx_node *node_list;
    pthread_mutex_t mutex; /* trees, nodes and what else is filled on first use */
    pthread_mutex_t map_mutex; /* maps; taken last, also inside a delivery */
    pthread_t service;
    uint32_t service_running;
    fbx_au32 service_stop;
    pthread_mutex_t engine_mutex; /* making the engine; taken before `mutex` */
    struct fbxi_engine *engine; /* dma.c: the thread that executes DMA; NULL before the first submission */
    struct fbxl_machines *machines; /* NULL: the fabric is on one machine */
    uint32_t machine, machine_count;
    uint64_t identity_of_fabric; /* in handles of buffers: the same on all machines */
    fbx_au64 half_trip_ps[FBX_MACHINES]; /* half the shortest round trip seen */
    struct fbxi_net *net; /* socket.c: connections of this process; made at first use */
    struct fbxi_gateway *gateway; /* gateway.c: this process serves the machine */
    fbx_au64 watched; /* bit (node & 63): the service thread delivers there what we have posted, for its event FIFO */
    pthread_mutex_t registered_mutex;
    struct fbxi_registered *registered; /* registered.c; NULL until somebody registers or uses registered memory */
    uint32_t *node_sessions; /* scratch of the reaper */
    char directory[256], name[FBX_NAME_BYTES];
    struct fbx_sim *sim; /* sim.c; NULL: the clock is real, or moved by hand */
    struct fbxi_tracer *tracer, *tracer_kept; /* trace.c; tracer NULL: off */
    uint32_t trace_site, recording; /* recording: operations tell the trace whenever they are looked at */
    struct fbxi_choices *choices; /* choice.c; NULL: what the seed says, without a log */
    uint64_t choice_seed, choice_count[16];
    struct fbx_fabric *next; /* registry of the process, for fork */
};

static inline void *fbxi_at(const fbx_fabric *f, uint64_t offset) { return f->base + offset; }
/* `bytes` of the heap at an offset that was read from shared memory: NULL if they are not all there. */
static inline void *fbxi_heap_at(const fbx_fabric *f, uint64_t offset, uint64_t bytes)
{
    return offset >= f->heap_offset && bytes <= f->mapped_bytes && offset <= f->mapped_bytes - bytes && !(offset & 7)
               ? f->base + offset
               : NULL;
}
/* Entries of a table that may be touched. */
static inline uint32_t fbxi_high(const fbx_fabric *f, int table)
{
    uint32_t high = fbx_observe(&f->header->table[table].high);
    return high < f->capacity[table] ? high : f->capacity[table];
}

/* Whether a node's memory and registers are another machine's. */
static inline int fbxi_is_away(const fbx_fabric *f, uint32_t node)
{
    return __builtin_expect(f->machines != NULL, 0) && f->node_facts[node].machine != f->machine;
}

/* ---- segment.c: files, mappings, commitment ------------------------------------------------------------------- */
int fbxi_commit_control(fbx_fabric *f, uint64_t offset, uint64_t bytes);
int fbxi_heap(fbx_fabric *f, uint64_t bytes, uint64_t *offset); /* control lock held; zeroed; by power of two */
void fbxi_heap_free(fbx_fabric *f, uint64_t offset, uint64_t bytes);
int fbxi_map_region(fbx_fabric *f, uint32_t region, struct fbxi_region_map **out);
int fbxi_commit(fbx_fabric *f, uint32_t region, uint64_t offset, uint64_t bytes);
/* Whether a write up to `end` needs fbxi_commit() first. Registered memory is there or it is not. */
static inline int fbxi_uncommitted(const fbx_fabric *f, uint32_t region, uint64_t end)
{
    return region < f->region_count && end > fbx_observe(&f->regions[region].prefix);
}
/* First uncommitted or committed boundary: true if [offset, offset+bytes) is committed whole. */
int fbxi_committed(fbx_fabric *f, uint32_t region, uint64_t offset, uint64_t bytes);
int fbxi_table_take(fbx_fabric *f, int table, uint32_t index); /* commit an entry before its first use */
int fbxi_name_ok(const char *name);
int fbxi_reopen(int fd); /* the same file, another open file description: locks of one are not held by the other */
int fbxi_read_file(const char *path, char *out, size_t room);
uint64_t fbxi_process_start(uint32_t pid);

/* ---- lock.c ------------------------------------------------------------------------------------------------------ */
int fbxi_session_dead(fbx_fabric *f, uint32_t session, uint32_t incarnation);
int fbxi_session_open(fbx_fabric *f);
int fbxi_session_reserve(int fd, uint32_t session); /* its byte of a file that is being made */
int fbxi_sessions_held(int fd); /* whether anybody holds any byte */
void fbxi_session_close(fbx_fabric *f);
/* 0 taken, 1 taken from a dead holder (repair what it was at), BUSY after timeout_ns. */
int fbxi_lock_slow(fbx_fabric *f, struct fbxl_lock *lock, uint64_t timeout_ns);
static inline int fbxi_lock(fbx_fabric *f, struct fbxl_lock *lock, uint64_t timeout_ns)
{
    if (__builtin_expect(fbx_claim(&lock->holder, 0, f->identity), 1))
        return 0;
    return fbxi_lock_slow(f, lock, timeout_ns);
}
int fbxi_trylock(fbx_fabric *f, struct fbxl_lock *lock);
static inline void fbxi_unlock(fbx_fabric *f, struct fbxl_lock *lock)
{
    (void)f;
    /* Pairs with: the claim in fbxi_lock(). Breaks: the next holder sees half of what we did. */
    fbx_publish(&lock->holder, 0);
}
int fbxi_control_lock(fbx_fabric *f);
void fbxi_control_unlock(fbx_fabric *f);
int fbxi_reap(fbx_fabric *f);
int fbxi_membarrier_register(void);
void fbxi_membarrier(const fbx_fabric *f);
void fbxi_futex_wait(fbx_au32 *word, uint32_t seen, uint64_t ns);
void fbxi_futex_wake(fbx_au32 *word);
void fbxi_service_wake(fbx_fabric *f); /* our own service thread looks at once */

/* A thread of the library's own: a small stack, and every signal blocked. 0 or errno. */
int fbxi_thread_start(pthread_t *thread, void *(*run)(void *), void *argument);

/* ---- generations (lock.c): who changes something that routes were cached from ---------------------------------- */
/* Bump the requesters whose cached routes depend on it, wait until older marks have cleared. BUSY: one is stopped. */
int fbxi_invalidate_node_routes(fbx_fabric *f, uint32_t node); /* requesters of that node */
int fbxi_invalidate_dependents(fbx_fabric *f, uint32_t bit); /* requesters with that dependency bit */

/* ---- window.c ---------------------------------------------------------------------------------------------------- */
struct fbxi_target {
    uint32_t region, target, perm, attr, mapping, window;
    uint64_t offset, lo, hi;
};
int fbxi_translate(fbx_fabric *f, uint32_t node, uint64_t address, uint64_t bytes, struct fbxi_target *out);
/* The same for a gateway's requester, whose windows are at home and have been looked through there. */
int fbxi_translate_here(fbx_fabric *f, uint64_t address, uint64_t bytes, struct fbxi_target *out);
int fbxi_profile_windows(const struct fbx_config *config, uint32_t node, uint32_t regions, uint32_t *direct,
                         uint32_t *lut, uint64_t *max_bytes);

/* ---- route.c ------------------------------------------------------------------------------------------------------ */
/* Whether a link of that way is reserved on another machine. */
int fbxi_elsewhere(const fbx_fabric *f, uint32_t source, uint32_t target, uint32_t link);
int fbxi_route_build(fbx_fabric *f, uint32_t source, uint32_t target, uint32_t path, struct fbxi_route *route);
/* Has a link of the way been set since the route was looked at? */
int fbxi_route_changed(const fbx_fabric *f, const struct fbxi_route *route);
/* Take over what its links are set to now. One thread at a time. */
int fbxi_route_refresh(fbx_fabric *f, struct fbxi_route *route);
int fbxi_routes_init(fbx_fabric *f);
/* The directions of the way, last hop first; room for FBX_MAX_HOPS. Path 0 is the shortest way, each further one the
 * shortest that shares no link with those before it; INVALID if there is none. */
int fbxi_way(fbx_fabric *f, uint32_t source, uint32_t target, uint32_t path, uint32_t *directions, uint32_t *count);

/* ---- posted.c ----------------------------------------------------------------------------------------------------- */
/* A stream is a traffic class on a path: class | path << 3. */
#define FBX_STREAMS (FBX_CLASSES * FBX_PATHS)
int fbxi_queue_get(fbx_fabric *f, uint32_t source, uint32_t target, uint32_t tc, struct fbxl_queue **out);
struct fbxl_queue *fbxi_queue_find(fbx_fabric *f, uint32_t source, uint32_t target, uint32_t tc);
struct fbxi_post {
    uint32_t region, bytes, kind, flags, requester;
    uint64_t offset, arrives_ps, sequence, trace_id;
    uint64_t drained; /* of what combines: sequence of the last write before its buffers were drained */
    const void *payload;
};
/* AGAIN: the queue is full; post->arrives_ps says when its head is due. */
int fbxi_post(fbx_fabric *f, struct fbxl_queue *queue, struct fbxi_post *post);
/* Whether one of the queue's first `tail` cells holds a write (of `requester`; ~0: of any) that is not visible yet. */
int fbxi_holds(fbx_fabric *f, struct fbxl_queue *q, uint64_t tail, uint32_t requester);
/* Deliver what is due at `target`. Returns the number delivered, or BUSY if a living holder has the delivery lock. */
int fbxi_deliver(fbx_fabric *f, uint32_t target, uint64_t until_ps);
int fbxi_deliver_now(fbx_fabric *f, uint32_t target, uint64_t until_ps); /* for who knows that something is due */
uint64_t fbxi_next_due(fbx_fabric *f, uint32_t target);
/* Drop what has not arrived yet in the queues that cross `direction` (link down) or start at `source` (~0: all). */
void fbxi_drop_undelivered(fbx_fabric *f, uint32_t link);
/* The same for all that comes from or goes to `node`. */
void fbxi_drop_of_node(fbx_fabric *f, uint32_t node);
/* Wait until what `source` has posted so far has arrived everywhere; BUSY if a stopped process holds it up. */
int fbxi_land(fbx_fabric *f, uint32_t source);
/* Add what scalar posted writes put on `link`, per direction. */
void fbxi_count_scalars(fbx_fabric *f, uint32_t link, uint64_t bytes[2], uint64_t tlps[2]);

/* ---- socket.c, gateway.c, away.c: other machines ------------------------------------------------------------------ */
void fbxi_net_stop(fbx_fabric *f);
void fbxi_net_free(fbx_fabric *f);
void fbxi_net_forked(fbx_fabric *f);
void fbxi_peers_close(fbx_node *n); /* what is under way ends with CLOSED; posted writes still land */
void fbxi_gateway_stop(fbx_fabric *f);
void fbxi_gateway_forked(fbx_fabric *f);
int fbxi_proxy_attach(fbx_fabric *f, uint32_t node, fbx_node **out); /* node.c */

/* ---- node.c -------------------------------------------------------------------------------------------------------- */
fbx_au32 *fbxi_lane(fbx_node *n);
void fbxi_node_forked(fbx_node *n);
void fbxi_publish_counts(fbx_node *n); /* op.c: add what its routes carried to the links' counters */
/* ntb_peer.c: a write of a register of `target`'s NTB, posted behind what this node wrote there before (kind: FBXL_ENTRY_*). */
int fbxi_post_register(fbx_node *n, uint32_t target, uint32_t kind, uint64_t reg, uint64_t value, uint32_t bytes);
uint64_t fbxi_calibrate(fbx_node *n); /* blocking.c: what a timed call from C costs beside its wait, ps */

/* ---- dma.c ----------------------------------------------------------------------------------------------------------- */
void fbxi_dma_detach(fbx_node *n); /* what is under way ends with CLOSED */
void fbxi_dma_free(fbx_node *n);
/* Where nothing runs by itself: when the handle's DMA wants to be stepped (UINT64_MAX: there is none), and doing so. */
uint64_t fbxi_dma_next(const fbx_node *n);
void fbxi_dma_step(fbx_node *n);
void fbxi_engine_stop(fbx_fabric *f);
void fbxi_engine_free(fbx_fabric *f);
void fbxi_engine_forked(fbx_fabric *f);
int fbxi_dma_estimate(fbx_node *n, int kind, const struct fbxi_xl *x, uint64_t offset, uint64_t bytes, struct fbx_estimate *out);

/* ---- service.c ----------------------------------------------------------------------------------------------------- */
int fbxi_service_start(fbx_fabric *f);
void fbxi_service_stop(fbx_fabric *f);

static inline const void *fbxi_thread(void)
{
    return __builtin_thread_pointer();
}

#endif
