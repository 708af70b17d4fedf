/* SPDX-License-Identifier: Apache-2.0
 *
 * fabrex: a PCIe NTB memory fabric without the hardware.
 *
 * Conventions. Functions return 0 or a negative `enum fbx_code`; fbx_last_error() says more, per thread. Time is
 * uint64_t picoseconds of fabric time. Sizes are bytes. A global address (`gva`) names a byte of the fabric; with
 * FBX_BUS set it is instead an address on the calling node's own PCIe bus. Values are little-endian. A failed load also
 * sets its result to all ones, as hardware does.
 *
 * A node handle may be used by several threads. Blocking calls give up after `max_wait_ns` of real time where they
 * take it and return FBX_E_AGAIN with the operation still under way, so that a binding can look for signals.
 */
#ifndef FABREX_H
#define FABREX_H

#ifndef FBX_CDEF
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#define FBX_API __attribute__((visibility("default")))
#define FBX_VERSION "0.1.0"
#define FBX_BUS (1ull << 63)
#else
#define FBX_API
#endif

#include "pcie.h"

/* Of what machines of one fabric say to each other, agents and frames: it must be the same on all of them. */
#define FBX_WIRE_VERSION 1

/* The one table of errors: code, name, what to do about it. Python maps each to one exception class. */
#define FBX_ERRORS(X)                                                                                                  \
    X(-1, LINK_DOWN, "a link on the way is down; bring it up or wait for the link event")                              \
    X(-2, PEER_LOST, "the process that was the peer node died; attach it again")                                       \
    X(-3, COMPLETION_TIMEOUT, "no completion came; the peer is stopped or its link is broken")                         \
    X(-4, WAIT_TIMEOUT, "what was waited for did not happen in the time given")                                        \
    X(-5, UNSUPPORTED, "the completer does not support this request")                                                  \
    X(-6, ABORT, "the window or the completer does not permit this access")                                            \
    X(-7, POISONED, "the data is marked as damaged; write it anew")                                                    \
    X(-8, ADDRESS, "the address is in no region of the fabric or leaves its region")                                   \
    X(-9, TOPOLOGY, "the description of the fabric is wrong")                                                          \
    X(-10, NOT_FOUND, "no such fabric, node or name here; `fabricctl list` shows the fabrics")                          \
    X(-11, EXISTS, "the name is taken; choose another, or end the other one first")                                     \
    X(-12, NO_MEMORY, "too little memory; use a larger /dev/shm, a directory on disk, or smaller buffers")             \
    X(-13, QUEUE_FULL, "the queue is full and its target does not drain it")                                           \
    X(-14, LAYOUT, "the fabric was made by another version of fabrex; use the same one in all its processes")          \
    X(-15, CLOSED, "the handle is closed, or belongs to the process before fork; open it anew here")                   \
    X(-16, ALIGNMENT, "loads, stores and atomics take 1, 2, 4, 8, 16, 32 or 64 naturally aligned bytes")               \
    X(-17, VALUE, "the value does not fit the size")                                                                   \
    X(-18, BUSY, "another process holds on to it or is stopped in the middle of an operation; try again")             \
    X(-19, DENIED, "the fabric belongs to another user")                                                               \
    X(-20, WINDOW, "the device profile does not allow this window")                                                    \
    X(-21, INVALID, "an argument is outside what is allowed")                                                          \
    X(-22, SYSTEM, "the operating system refused")                                                                     \
    X(-23, CORRUPT, "the segment is truncated or damaged; `fabricctl prune` removes it")                               \
    X(-24, NO_WINDOW, "no window of this node reaches the address; program one, or use `windows: auto`")               \
    X(-25, STALE, "the handle is of a buffer that was freed")                                                          \
    X(-26, AGAIN, "not yet; call again")                                                                               \
    X(-27, NAME, "names are 1 to 63 of the characters A-Z a-z 0-9 _ . - and do not begin with a dot or hyphen")  \
    X(-28, CANCELLED, "cancel() ended it; bytes_done says how much had arrived")

enum fbx_code {
    FBX_OK = 0,
#define FBX_X(code, name, hint) FBX_E_##name = code,
    FBX_ERRORS(FBX_X)
#undef FBX_X
};

struct fbx_error {
    int code, op, node, injected;
    int system_errno, reserved;
    uint64_t gva;
    char text[256];
};
/* The calling thread's last failure. */
FBX_API const struct fbx_error *fbx_last_error(void);
/* "LINK_DOWN"; NULL for a number that is no code. */
FBX_API const char *fbx_error_name(int code);
FBX_API const char *fbx_error_hint(int code);

typedef struct fbx_fabric fbx_fabric;
typedef struct fbx_node fbx_node;

/* ---- creating and finding fabrics ---------------------------------------------------------------------------- */

enum fbx_kind { FBX_HOST = 1, FBX_ACCELERATOR = 2, FBX_MEMORY = 3, FBX_SWITCH = 4 };
enum fbx_ordering { FBX_POSTED = 0, FBX_IMMEDIATE = 1, FBX_ADVERSARIAL = 2 };
enum fbx_clock { FBX_REAL = 0, FBX_VIRTUAL = 1 };
enum fbx_flags { FBX_PERSISTENT = 1, FBX_TIMING = 2, FBX_AUTO_WINDOWS = 4, FBX_STRICT = 8, FBX_NO_SERVICE = 64,
                 FBX_PRIVATE = 128 /* no files: nobody else can open it, and it ends with its handle */ };
enum fbx_profile_id { FBX_PROFILE_FABREX, FBX_PROFILE_XEON_GEN3, FBX_PROFILE_XEON_GEN4, FBX_PROFILE_AMD,
                      FBX_PROFILE_IDT, FBX_PROFILE_SWITCHTEC, FBX_PROFILE_EPF, FBX_PROFILES };

struct fbx_config_node {
    const char *name;
    uint32_t kind, profile, machine, access_bytes, dma_tags;
    uint64_t delay_ps, pio_read_ps, pio_write_ps, dma_setup_write_ps, dma_setup_read_ps;
    uint32_t wc; /* stores through its windows combine unless a window says otherwise */
};
struct fbx_config_region {
    uint32_t node; /* regions of one node follow one another, nodes in order */
    const char *tier;
    uint64_t bytes, latency_ps, rate_bps;
    const uint64_t *jitter; /* of the latency: as of a link's delay */
    uint64_t jitter_points;
};
struct fbx_config_link {
    const char *name, *port_a, *port_b;
    uint32_t node_a, node_b;
    uint32_t kind; /* 0 PCIe: gen .. rcb; 1 Ethernet: mtu, overhead_bytes, rate_bps */
    uint32_t gen, lanes, mps, mrrs, rcb, mtu, overhead_bytes, home;
    uint32_t posted_credits_header, posted_credits_data; /* data in units of 16 bytes; 0: infinite */
    uint32_t nonposted_credits_header, nonposted_credits_data, completion_credits_header, completion_credits_data;
    uint32_t tags, pad; /* non-posted requests that the node at an end may have outstanding; 0: 32 */
    uint64_t rate_bps, delay_ps;
    /* What is added to the delay of each packet, by chance: pairs of a share of 2^32 and the ps that it stays below, both rising,
     * from share 0 to share 2^32, at most 256; straight between them. NULL and 0: nothing. */
    const uint64_t *jitter;
    uint64_t jitter_points;
};
struct fbx_config {
    const char *name, *directory; /* directory NULL: /dev/shm */
    uint32_t flags, ordering, clock, dilation_num, dilation_den, pad;
    uint64_t seed;
    uint32_t node_count, region_count, link_count, buffer_limit, name_limit, client_limit;
    const struct fbx_config_node *nodes;
    const struct fbx_config_region *regions;
    const struct fbx_config_link *links;
    const void *topology; /* kept as it is for those who open the fabric */
    uint64_t topology_bytes;
    /* A fabric on several machines: each makes an instance of its own from the same topology (0: one machine). */
    uint32_t machine, machine_count;
    const char *const *machine_names;
    uint64_t fabric_id; /* random, the same on all of them */
};

FBX_API int fbx_fabric_create(const struct fbx_config *config, fbx_fabric **out);
FBX_API int fbx_fabric_open(const char *directory, const char *name, fbx_fabric **out);
/* Open by descriptors that another process passed: the control segment's, and one per region (-1: not reachable). */
FBX_API int fbx_fabric_open_fds(int control_fd, const int *region_fds, uint32_t count, fbx_fabric **out);
/* End this session: detach its nodes; an owned fabric ends with its creator's close. Memory stays mapped until free. */
FBX_API int fbx_fabric_close(fbx_fabric *fabric);
FBX_API void fbx_fabric_free(fbx_fabric *fabric);
/* Take a fabric down by name. Without `force`, BUSY while anyone else is attached. */
FBX_API int fbx_fabric_destroy(const char *directory, const char *name, int force);
/* Remove the fabric if its life is over (owned without an owner, an earlier boot, half made). 1: removed, 0: it lives. */
FBX_API int fbx_fabric_reclaim(const char *directory, const char *name);
/* Reclaim all such fabrics of this user in `directory`, and files that half-made ones left. Returns how many went. */
FBX_API int fbx_fabric_prune(const char *directory);

struct fbx_fabric_info {
    char name[64], directory[256];
    uint64_t instance, control_bytes, memory_bytes, committed_bytes, created_unix_ns, seed;
    uint32_t node_count, region_count, link_count, session_count, requester_count, queue_count, uid, creator_pid;
    uint32_t flags, ordering, clock, owner_alive, closed, links_changed; /* links that are not set as the topology says */
    uint64_t corrupt_resets, takeovers, reservations_clamped, sessions_reaped, control_epoch;
    uint64_t tick_hz, tick_cost_ps, now_ps, fabric_id;
};
FBX_API int fbx_fabric_info(fbx_fabric *fabric, struct fbx_fabric_info *out);
FBX_API int fbx_fabric_probe(const char *directory, const char *name, struct fbx_fabric_info *out);
FBX_API const void *fbx_fabric_topology(fbx_fabric *fabric, uint64_t *bytes);
FBX_API uint64_t fbx_fabric_now(fbx_fabric *fabric);
/* The caller has slept for so long by the kernel's clock: where time is counted, it has passed; elsewhere it has anyhow. */
FBX_API void fbx_fabric_slept(fbx_fabric *fabric, uint64_t ns);
/* Look for dead sessions now; returns how many were cleaned up. */
FBX_API int fbx_fabric_reap(fbx_fabric *fabric);
FBX_API int fbx_session_alive(fbx_fabric *fabric, uint32_t session);
FBX_API int fbx_virtual_set(fbx_fabric *fabric, uint64_t now_ps);

struct fbx_node_info {
    char name[64];
    uint32_t kind, profile, rank, state, incarnation, owner_pid, client_count, first_region, region_count, machine;
    uint32_t mw_count, lut_count;
    uint64_t posted_dropped, delivered, aer_correctable, aer_nonfatal, aer_fatal, pending;
};
struct fbx_region_info {
    char tier[32];
    uint32_t node, index;
    uint64_t bytes, gva, bus, latency_ps, committed, allocated;
};
struct fbx_link_info {
    char name[192];
    uint32_t node[2], kind, gen, lanes, mps, mrrs, rcb, up, changed; /* changed: not as the topology describes it */
    uint64_t rate_bps, delay_ps;
    uint64_t bytes[2], tlps[2], dropped[2];
};
FBX_API int fbx_node_find(fbx_fabric *fabric, const char *name);
FBX_API int fbx_node_info(fbx_fabric *fabric, uint32_t node, struct fbx_node_info *out);
FBX_API int fbx_region_info(fbx_fabric *fabric, uint32_t region, struct fbx_region_info *out);
FBX_API int fbx_link_find(fbx_fabric *fabric, const char *name);
FBX_API int fbx_link_info(fbx_fabric *fabric, uint32_t link, struct fbx_link_info *out);
/* Disable or enable a link. After disable has returned nothing crosses it any more; BUSY if a requester is stopped. */
FBX_API int fbx_link_set(fbx_fabric *fabric, uint32_t link, int up);

/* What may be set of a link that runs: a PCIe link has no RATE_BPS, MTU and OVERHEAD_BYTES, an Ethernet link DELAY_PS and
 * those. Credits of data are units of 16 bytes; 0 is infinite. */
enum fbx_link_key { FBX_LINK_DELAY_PS, FBX_LINK_GEN, FBX_LINK_LANES, FBX_LINK_MPS, FBX_LINK_MRRS, FBX_LINK_RCB, FBX_LINK_RATE_BPS,
                    FBX_LINK_MTU, FBX_LINK_OVERHEAD_BYTES, FBX_LINK_POSTED_CREDITS_HEADER, FBX_LINK_POSTED_CREDITS_DATA,
                    FBX_LINK_NONPOSTED_CREDITS_HEADER, FBX_LINK_NONPOSTED_CREDITS_DATA, FBX_LINK_COMPLETION_CREDITS_HEADER,
                    FBX_LINK_COMPLETION_CREDITS_DATA, FBX_LINK_TAGS, FBX_LINK_KEYS };
/* Set those values of a link whose bit (1 << key) is in `keys`, all or none; `keys` 0: back to what the topology says. What
 * is on its way keeps its times; whatever is issued after the call has returned, by any process, has the new ones. */
FBX_API int fbx_link_configure(fbx_fabric *fabric, uint32_t link, uint32_t keys, const uint64_t *values);
/* The FBX_LINK_KEYS values in force, or (described) those of the topology. */
FBX_API int fbx_link_values(fbx_fabric *fabric, uint32_t link, int described, uint64_t *values);

/* ---- events --------------------------------------------------------------------------------------------------------- */

/* What has happened to a fabric: the last 1,024 events are kept, numbered from 0. `a` and `b` are: NODE_ATTACHED, NODE_DETACHED:
 * process and role (enum fbx_attach); NODE_LOST: process; LINK_SET, one for each value: key (enum
 * fbx_link_key) and value; WINDOW_SET: translation and bytes, and `link`
 * is the peer; WRITES_DROPPED, AER: how many since the last such event, and in all; DMA_FAILED: the error (negated) and how many
 * more failed since the last such event; FABRIC_*: process. `other` is the window. */
#define FBX_EVENT_KINDS(X)                                                                                             \
    X(1, FABRIC_UP) X(2, FABRIC_DOWN) X(3, NODE_ATTACHED) X(4, NODE_DETACHED) X(5, NODE_LOST) X(6, LINK_DOWN) X(7, LINK_UP)   \
    X(8, LINK_SET) X(9, LINK_RESET) X(10, WINDOW_SET) X(11, WINDOW_CLEARED) X(12, NTB_DISABLED) X(13, NTB_ENABLED)        \
    X(14, WRITES_DROPPED) X(15, AER) X(16, DMA_FAILED)
enum fbx_event_kind {
#define FBX_X(number, name) FBX_EVENT_##name = number,
    FBX_EVENT_KINDS(FBX_X)
#undef FBX_X
};
struct fbx_event {
    uint64_t number, ps, unix_ns; /* fabric time and the time of day */
    uint32_t kind, node, other, link; /* UINT32_MAX: none */
    uint64_t a, b;
};
/* "LINK_DOWN"; NULL for a number that is no kind. */
FBX_API const char *fbx_event_name(uint32_t kind);
/* Numbers of the oldest event that is still there, and of the next one. */
FBX_API int fbx_events_range(fbx_fabric *fabric, uint64_t *first, uint64_t *next);
/* Read up to `room` events from number *cursor on; returns how many. *cursor becomes the number to go on with, and *lost
 * grows by those that were overwritten before they were read. */
FBX_API int fbx_events_read(fbx_fabric *fabric, uint64_t *cursor, struct fbx_event *out, uint32_t room, uint64_t *lost);
/* Sleep until there is an event `cursor`: 0, AGAIN after max_wait_ns or a signal, CLOSED when no more will come. */
FBX_API int fbx_events_wait(fbx_fabric *fabric, uint64_t cursor, uint64_t max_wait_ns);
/* A handle that only looks on: for fbx_fabric_topology() and fbx_events_*(), CLOSED for everything else. It does not keep
 * anybody from taking the fabric down. */
FBX_API int fbx_fabric_observe(const char *directory, const char *name, fbx_fabric **out);

/* ---- nodes ------------------------------------------------------------------------------------------------------ */

enum fbx_attach { FBX_OWNER = 0, FBX_CLIENT = 1, FBX_ANY = 2 };
FBX_API int fbx_node_attach(fbx_fabric *fabric, const char *name, int kind, fbx_node **out);
FBX_API int fbx_node_detach(fbx_node *node);
FBX_API void fbx_node_free(fbx_node *node);
FBX_API uint32_t fbx_node_index(const fbx_node *node);
FBX_API int fbx_node_is_owner(const fbx_node *node);

/* ---- windows ---------------------------------------------------------------------------------------------------- */

enum fbx_perm { FBX_PERM_NONE = 0, FBX_PERM_READ = 1, FBX_PERM_WRITE = 2, FBX_PERM_RW = 3 };
/* Or-ed to a window's permission: attributes of every request that goes through it. */
enum { FBX_WINDOW_RO = 4, FBX_WINDOW_IDO = 8 };
/* UNCACHED: each store is a packet of its own, in order, and a bulk write is packets of the CPU's access width.
 * WRITE_COMBINING: stores wait in buffers of 64 bytes, which leave in any order until fbx_drain(), an uncached access, a
 * read, an atomic or a flush. MANAGED, what the manager's own windows are: bulk writes leave as full packets of 64 bytes,
 * single stores in order, unless the node's `wc` says that they combine too. */
enum fbx_mapping { FBX_UNCACHED = 0, FBX_WRITE_COMBINING = 1, FBX_MANAGED = 2 };
struct fbx_window_info {
    uint32_t index, peer, perm, mapping, lut, programmed, attr, pad;
    uint64_t translation, bytes, bus, max_bytes, address_align, size_align, min_bytes;
};
FBX_API int fbx_mw_count(fbx_fabric *fabric, uint32_t node);
FBX_API int fbx_mw_info(fbx_fabric *fabric, uint32_t node, uint32_t widx, struct fbx_window_info *out);
/* Point outbound window `widx` of `node` at `bytes` from bus address `translation` of `peer`. */
FBX_API int fbx_mw_set_trans(fbx_fabric *fabric, uint32_t node, uint32_t widx, uint32_t peer, uint64_t translation,
                             uint64_t bytes, int perm, int mapping);
/* After clear has returned nothing lands through the window any more. */
FBX_API int fbx_mw_clear_trans(fbx_fabric *fabric, uint32_t node, uint32_t widx);
/* A fault: these bits of the window's translation register no longer take a 1 (0: repaired). set_trans reads back what it
 * wrote; if that differs it fails with SYSTEM (EIO), as the drivers do, and the window leads nowhere. */
FBX_API int fbx_mw_inject_stuck(fbx_fabric *fabric, uint32_t node, uint32_t widx, uint64_t bits);

/* ---- memory ----------------------------------------------------------------------------------------------------- */

struct fbx_buffer {
    char name[64];
    uint32_t index, generation, region, node;
    uint64_t gva, bytes, offset, instance;
};
FBX_API int fbx_alloc(fbx_node *node, uint32_t region, uint64_t bytes, uint64_t align, const char *name,
                      struct fbx_buffer *out);
FBX_API int fbx_free(fbx_fabric *fabric, const struct fbx_buffer *buffer);
FBX_API int fbx_buffer_find(fbx_fabric *fabric, const char *name, struct fbx_buffer *out);
FBX_API int fbx_buffer_check(fbx_fabric *fabric, const struct fbx_buffer *buffer);
FBX_API int fbx_buffer_list(fbx_fabric *fabric, uint32_t *cursor, struct fbx_buffer *out);
/* The bytes themselves, functional and untimed: committed, writable unless every window to them is read-only. */
FBX_API int fbx_map(fbx_node *node, uint64_t gva, uint64_t bytes, void **out, int *writable);
/* A view that fbx_map() gave is no longer looked at. */
FBX_API void fbx_unmap(fbx_node *node, uint64_t gva);
FBX_API int fbx_commit(fbx_fabric *fabric, uint64_t gva, uint64_t bytes);

/* Memory that a program already has (a tensor's storage) gets an address like any other: peers load, store and copy there as
 * they do in regions, at the cost of the node's first tier. Nobody can map it: bytes move by this process, by the kernel
 * (process_vm_readv) where it copies between processes, or by this process's service thread. PINNED: the memory stays
 * where it is until fbx_deregister() has returned, so that it may be touched directly; without it, memory that was freed
 * meanwhile makes operations fail (UNSUPPORTED) and nothing worse. SERVICE: never by the kernel. */
enum fbx_register_flags { FBX_REGISTER_PINNED = 1, FBX_REGISTER_READ_ONLY = 2, FBX_REGISTER_SERVICE = 4 };
struct fbx_registration {
    uint64_t gva, bytes;
    uint32_t index, generation, node, pad;
};
FBX_API int fbx_register(fbx_node *node, void *address, uint64_t bytes, uint32_t flags, struct fbx_registration *out);
/* After it has returned nobody touches the memory any more; BUSY if a stopped process may still, and it must stay. */
FBX_API int fbx_deregister(fbx_fabric *fabric, const struct fbx_registration *registration);

/* ---- names ------------------------------------------------------------------------------------------------------ */

FBX_API int fbx_put(fbx_fabric *fabric, const char *key, const void *value, uint64_t bytes);
/* `*bytes` is the room at `value` and becomes the value's size; NO_MEMORY if it does not fit. */
FBX_API int fbx_get(fbx_fabric *fabric, const char *key, void *value, uint64_t *bytes);
FBX_API int fbx_names_wait(fbx_fabric *fabric, uint32_t seen, uint64_t max_wait_ns);
FBX_API uint32_t fbx_names_seen(fbx_fabric *fabric);
/* Arrive at barrier `name`; *ticket is 0 at first. AGAIN until all `expected` ranks have arrived. */
FBX_API int fbx_barrier(fbx_node *node, const char *name, uint32_t expected, uint64_t *ticket, uint64_t max_wait_ns);
/* Take back an arrival that will not be waited for. */
FBX_API int fbx_barrier_leave(fbx_node *node, const char *name, uint64_t ticket);

/* ---- operations ------------------------------------------------------------------------------------------------- */

enum fbx_op_kind { FBX_LOAD, FBX_STORE, FBX_READ, FBX_WRITE, FBX_FETCH_ADD, FBX_SWAP, FBX_CAS, FBX_FLUSH, FBX_WAIT,
                   FBX_DMA_READ, FBX_DMA_WRITE, FBX_OTHER };
enum fbx_op_attr { FBX_RO = 1, FBX_IDO = 2, FBX_CHECK = 4, FBX_PLAIN = 8 /* neither, whatever the default of node or window */ };
/* Why one request passed another: rows and columns of the table in the PCI Express Base Specification, section 2.4.1
 * (transaction ordering), and what happens before requests reach it. See docs/concepts/ordering.md. */
enum fbx_rule {
    FBX_RULE_NONE = 0,
    FBX_RULE_RO = 1, /* A2b: the later write, or D2b: the later read's completion, has relaxed ordering */
    FBX_RULE_IDO = 2, /* A2b: the later request has ID-based ordering and another requester */
    FBX_RULE_TC = 3, /* they are of different traffic classes */
    FBX_RULE_PATH = 4, /* they go different ways, or to different nodes */
    FBX_RULE_COMBINING = 5, /* both were in write-combining buffers that had not been drained */
    FBX_RULE_TEAR = 6, /* one access of several pieces, taken in another order */
    FBX_RULE_STALE = 7 /* a cache held what the later access should have seen */
};
enum fbx_op_state { FBX_ISSUED, FBX_TRAVELS, FBX_MOVES, FBX_RETURNS, FBX_DONE, FBX_AWAY };

/* One operation, resumable: begin, then advance or wait until its status is no longer AGAIN. */
struct fbx_op {
    uint64_t gva, bytes;
    void *buffer; /* read: destination; write, store and load of more than 8 bytes: the bytes */
    uint64_t operand[4]; /* store: value; atomics: expected and desired, low word first; results come back in [0..1] */
    uint16_t kind, path;
    uint8_t tc, attr, state, poison;
    int32_t status;
    uint32_t requester, incarnation, injected, target;
    uint64_t sequence, trace_id, generation;
    uint64_t issued_ps, departs_ps, arrives_ps, completes_ps, next_ps;
    uint64_t done; /* bytes that have moved */
    uint64_t private_[40];
};
FBX_API int fbx_op_begin(fbx_node *node, struct fbx_op *op);
FBX_API int fbx_op_advance(fbx_node *node, struct fbx_op *op);
FBX_API int fbx_op_wait(fbx_node *node, struct fbx_op *op, uint64_t max_wait_ns);
/* Give up an operation that is under way, before its record or its buffer goes. What has left is not called back. */
FBX_API void fbx_op_forget(fbx_node *node, struct fbx_op *op);

FBX_API int fbx_load(fbx_node *node, uint64_t gva, uint32_t bytes, uint64_t *value);
FBX_API int fbx_store(fbx_node *node, uint64_t gva, uint32_t bytes, uint64_t value);
FBX_API int fbx_load_wide(fbx_node *node, uint64_t gva, uint32_t bytes, void *out);
FBX_API int fbx_store_wide(fbx_node *node, uint64_t gva, uint32_t bytes, const void *data);
FBX_API int fbx_fetch_add(fbx_node *node, uint64_t gva, uint32_t bytes, uint64_t value, uint64_t *old);
FBX_API int fbx_swap_value(fbx_node *node, uint64_t gva, uint32_t bytes, uint64_t value, uint64_t *old);
FBX_API int fbx_compare_swap(fbx_node *node, uint64_t gva, uint32_t bytes, const uint64_t *expected,
                             const uint64_t *desired, uint64_t *old);
FBX_API int fbx_read(fbx_node *node, uint64_t gva, void *out, uint64_t bytes);
FBX_API int fbx_write(fbx_node *node, uint64_t gva, const void *data, uint64_t bytes);
/* Many accesses, one after the other. `*done` counts those that are complete and is where the next call goes on; what is
 * under way when AGAIN is returned is in `op`, whose kind is FBX_OTHER before the first call. */
FBX_API int fbx_gather(fbx_node *node, struct fbx_op *op, const uint64_t *gvas, uint64_t count, uint32_t bytes_each,
                       void *out, uint64_t *done, uint64_t max_wait_ns);
FBX_API int fbx_scatter(fbx_node *node, struct fbx_op *op, const uint64_t *gvas, uint64_t count, uint32_t bytes_each,
                        const void *values, uint64_t *done, uint64_t max_wait_ns);
/* Attributes and traffic class of this handle's operations that do not say otherwise. */
FBX_API int fbx_set_order(fbx_node *node, uint32_t attr, uint32_t tc);
FBX_API int fbx_drain(fbx_node *node);
FBX_API int fbx_fence(fbx_node *node);
/* Earlier posted writes to `target` (all targets: ~0) are visible there on return. */
FBX_API int fbx_flush(fbx_node *node, uint32_t target, uint32_t attr);
/* The nodes that this handle has written to, and whether any posted write of it was lost since the last such check
 * (LINK_DOWN): what a flush of all is made of, for bindings that wait in slices with operations of kind FBX_FLUSH
 * (operand[0]: the node). */
FBX_API uint32_t fbx_written_nodes(fbx_node *node, uint32_t *out, uint32_t room);
FBX_API int fbx_check_lost(fbx_node *node);
enum fbx_compare { FBX_EQ, FBX_NE, FBX_LT, FBX_LE, FBX_GT, FBX_GE };
/* Wait until the unsigned value at `gva` compares so; AGAIN after max_wait_ns or at fabric time deadline_ps. `op` as for
 * fbx_gather(). */
FBX_API int fbx_wait_until(fbx_node *node, struct fbx_op *op, uint64_t gva, uint32_t bytes, int compare, uint64_t value,
                           uint64_t deadline_ps, uint64_t max_wait_ns, uint64_t *last);
/* Deliver what is due at this node; returns the number of writes delivered. */
FBX_API int fbx_progress(fbx_node *node);

/* ---- DMA -------------------------------------------------------------------------------------------------------- */

/* Descriptors are executed one after the other in each channel, by a thread of the handle's process (or by a thread that
 * waits), and are this process's: they end with its handle. Done means: the source may be used again and the last write has
 * been issued; it is visible at its arrival, or at once with FBX_DMA_VISIBLE. */
enum fbx_dma_limits { FBX_DMA_CHANNEL_LIMIT = 64, FBX_DMA_QUEUE_LIMIT = 64 }; /* channels; descriptors in each */
enum fbx_dma_flags { FBX_DMA_VISIBLE = 1, FBX_DMA_FILL = 2, FBX_DMA_SIGNAL = 4, FBX_DMA_RO = 8, FBX_DMA_IDO = 16 };
struct fbx_dma_piece {
    uint64_t dst, src, bytes;
};
struct fbx_dma {
    uint64_t dst, src, bytes; /* any two addresses, local or remote; they must not overlap */
    uint64_t rows; /* 0 and 1: one; else rows of `bytes` each, these strides apart */
    uint64_t dst_stride, src_stride;
    const struct fbx_dma_piece *list; /* not NULL: these pieces instead; copied by the call */
    uint64_t list_count;
    uint64_t signal, signal_value; /* FBX_DMA_SIGNAL: 8 bytes stored behind the data, in the destination's node */
    uint64_t fill; /* FBX_DMA_FILL: no source, but this pattern of fill_bytes (1, 2, 4 or 8) */
    uint32_t fill_bytes, flags, channel, tc, path, pad;
};
struct fbx_dma_status {
    int32_t status; /* AGAIN while it is under way */
    uint32_t kind; /* FBX_DMA_READ if a source is remote, FBX_DMA_WRITE otherwise; known when it runs */
    uint64_t bytes, done; /* done: have arrived, in the order of the descriptor; all of them on success */
    uint64_t issued_ps, completes_ps; /* completes_ps: when it is, or as far as it is planned will be, complete */
    uint64_t next_ps; /* under way on a clock that is not real: when to poll again; 0: at once, or when those before it end */
};
/* Queue it. QUEUE_FULL: the channel holds as many as it takes. Whatever else goes wrong is its completion's status.
 * `id` NULL: nobody will ask; otherwise fbx_dma_release() it some time. */
FBX_API int fbx_dma_submit(fbx_node *node, const struct fbx_dma *descriptor, uint64_t *id);
/* How far it is; never waits. STALE for an id that was released. */
FBX_API int fbx_dma_poll(fbx_node *node, uint64_t id, struct fbx_dma_status *out);
/* Its status, once it is complete; executes the channel meanwhile. */
FBX_API int fbx_dma_wait(fbx_node *node, uint64_t id, uint64_t max_wait_ns);
/* 1: it was under way; it ends with CANCELLED, and nothing of it lands after this call. 0: it was complete. */
FBX_API int fbx_dma_cancel(fbx_node *node, uint64_t id);
/* An eventfd that becomes readable at completion; the core's, closed at release. */
FBX_API int fbx_dma_fd(fbx_node *node, uint64_t id);
FBX_API int fbx_dma_release(fbx_node *node, uint64_t id);

/* What the model says an operation takes on the idle fabric: nothing is moved and nothing reserved. */
struct fbx_estimate {
    uint64_t departs_ps, arrives_ps, completes_ps, hops, wire_bytes;
};
FBX_API int fbx_estimate(fbx_node *node, int kind, uint64_t gva, uint64_t bytes, struct fbx_estimate *out);

struct fbx_fidelity {
    uint64_t count, late, failed, late_ps_total, late_ps_max, bytes;
    uint64_t preempted, network; /* of the late ones, why: either, both or none of these */
    uint64_t late_hist[40]; /* bin b: lateness in [2^b, 2^(b+1)) ps */
};
FBX_API int fbx_fidelity(fbx_fabric *fabric, int kind, struct fbx_fidelity *out);
/* What a language's binding adds to each call: the last wait is shortened by it, so that modelled time is what the
 * caller sees. */
FBX_API int fbx_set_binding_cost(fbx_node *node, uint64_t ps);

/* ---- the NTB device ---------------------------------------------------------------------------------------------

 * One per node; the functions are named after the Linux kernel's (include/linux/ntb.h). A peer is named by its index:
 * 0 .. fbx_peer_port_count() - 1, the other nodes by rising port number. What the device profile lacks answers as the
 * kernel does for drivers without it: reads give ~0 (scratchpads, messages) or 0 (doorbells), writes are INVALID. Writes
 * to a peer are posted: behind the data that was written before them, never an error of the fabric (unless strict). */

FBX_API int fbx_port_number(fbx_node *node);
FBX_API int fbx_peer_port_count(fbx_node *node);
FBX_API int fbx_peer_port_number(fbx_node *node, uint32_t pidx);
FBX_API int fbx_peer_port_idx(fbx_node *node, int port);
/* Which node a peer index means, and back. */
FBX_API int fbx_peer_node(fbx_node *node, uint32_t pidx);
FBX_API int fbx_node_pidx(fbx_node *node, uint32_t peer);

enum fbx_ntb_speed { FBX_NTB_SPEED_AUTO = -1, FBX_NTB_SPEED_NONE = 0 };
/* *peers: bit pidx is set where the link to that peer is up (the first 64). Speed (generation) and width (lanes) are of
 * this node's own link, 0 while nothing is up. Each may be NULL. */
FBX_API int fbx_ntb_link_is_up(fbx_node *node, uint64_t *peers, uint32_t *speed, uint32_t *width);
FBX_API int fbx_ntb_peer_is_up(fbx_node *node, uint32_t pidx);
/* What the link is limited to is taken as the hint that it is. */
FBX_API int fbx_ntb_link_enable(fbx_node *node, int max_speed, int max_width);
/* After it has returned nothing crosses this node's NTB any more, either way; BUSY if a requester is stopped. */
FBX_API int fbx_ntb_link_disable(fbx_node *node);

/* Which share of the peer's resources is this node's: its index among that peer's peers; and the last of the peer's windows
 * that this share may use, so that no two of its peers take the same. */
FBX_API int fbx_peer_resource_idx(fbx_node *node, uint32_t pidx);
FBX_API int fbx_peer_highest_mw_idx(fbx_node *node, uint32_t pidx);

/* Inbound windows: through which the peer looks at this node. They are the peer's outbound windows, and whoever programs one
 * last decides where it leads. */
FBX_API int fbx_ntb_mw_count(fbx_node *node, uint32_t pidx);
FBX_API int fbx_ntb_mw_set_trans(fbx_node *node, uint32_t pidx, uint32_t widx, uint64_t address, uint64_t bytes);
/* INVALID for a window that shows another node. */
FBX_API int fbx_ntb_mw_clear_trans(fbx_node *node, uint32_t pidx, uint32_t widx);
/* LINK_DOWN while the link to the peer is down. */
FBX_API int fbx_mw_get_align(fbx_node *node, uint32_t pidx, uint32_t widx, uint64_t *address_align, uint64_t *size_align,
                             uint64_t *size_max);

FBX_API int fbx_db_valid_mask(fbx_node *node, uint64_t *bits);
FBX_API int fbx_db_vector_count(fbx_node *node);
FBX_API int fbx_db_vector_mask(fbx_node *node, uint32_t vector, uint64_t *bits);
FBX_API int fbx_db_read(fbx_node *node, uint64_t *bits);
FBX_API int fbx_db_set(fbx_node *node, uint64_t bits);
FBX_API int fbx_db_clear(fbx_node *node, uint64_t bits);
FBX_API int fbx_db_read_mask(fbx_node *node, uint64_t *bits);
FBX_API int fbx_db_set_mask(fbx_node *node, uint64_t bits);
FBX_API int fbx_db_clear_mask(fbx_node *node, uint64_t bits);
FBX_API int fbx_peer_db_read(fbx_node *node, uint32_t pidx, uint64_t *bits);
FBX_API int fbx_peer_db_set(fbx_node *node, uint32_t pidx, uint64_t bits);
FBX_API int fbx_peer_db_clear(fbx_node *node, uint32_t pidx, uint64_t bits);
FBX_API int fbx_peer_db_read_mask(fbx_node *node, uint32_t pidx, uint64_t *bits);
FBX_API int fbx_peer_db_set_mask(fbx_node *node, uint32_t pidx, uint64_t bits);
FBX_API int fbx_peer_db_clear_mask(fbx_node *node, uint32_t pidx, uint64_t bits);

FBX_API int fbx_spad_count(fbx_node *node);
FBX_API int fbx_spad_read(fbx_node *node, uint32_t sidx, uint32_t *value);
FBX_API int fbx_spad_write(fbx_node *node, uint32_t sidx, uint32_t value);
FBX_API int fbx_peer_spad_read(fbx_node *node, uint32_t pidx, uint32_t sidx, uint32_t *value);
FBX_API int fbx_peer_spad_write(fbx_node *node, uint32_t pidx, uint32_t sidx, uint32_t value);

FBX_API int fbx_msg_count(fbx_node *node);
FBX_API int fbx_msg_inbits(fbx_node *node, uint64_t *bits);
FBX_API int fbx_msg_outbits(fbx_node *node, uint64_t *bits);
FBX_API int fbx_msg_read_sts(fbx_node *node, uint64_t *bits);
FBX_API int fbx_msg_clear_sts(fbx_node *node, uint64_t bits);
FBX_API int fbx_msg_set_mask(fbx_node *node, uint64_t bits);
FBX_API int fbx_msg_clear_mask(fbx_node *node, uint64_t bits);
/* *pidx: who sent it. */
FBX_API int fbx_msg_read(fbx_node *node, uint32_t midx, uint32_t *pidx, uint32_t *value);
/* A register that still holds a message takes no other: the sender's outbound status bit says so. */
FBX_API int fbx_peer_msg_write(fbx_node *node, uint32_t pidx, uint32_t midx, uint32_t value);

/* Interrupts by message (the kernel's ntb_msi). A handle takes a vector of its node's device and passes the descriptor to
 * peers, by whatever way; who has it writes `data` at `addr_offset` of the node's interrupt page, behind its data. What
 * matches no vector that somebody holds (its holder freed it) is dropped and counted. Vectors end with their handle. */
struct fbx_msi_desc {
    uint32_t addr_offset, data;
};
FBX_API int fbx_msi_count(fbx_node *node);
/* Returns the vector; INVALID if none is free. */
FBX_API int fbx_msi_request(fbx_node *node, struct fbx_msi_desc *out);
FBX_API int fbx_msi_free(fbx_node *node, uint32_t vector);
/* Bit per vector. A message for a masked vector stays pending; several before it is told are one. */
FBX_API int fbx_msi_read_pending(fbx_node *node, uint64_t *vectors);
FBX_API int fbx_msi_read_mask(fbx_node *node, uint64_t *vectors);
FBX_API int fbx_msi_set_mask(fbx_node *node, uint64_t vectors);
FBX_API int fbx_msi_clear_mask(fbx_node *node, uint64_t vectors);
FBX_API int fbx_msi_peer_trigger(fbx_node *node, uint32_t pidx, const struct fbx_msi_desc *desc);
/* Where on this node's bus a store of 4 bytes is that message. */
FBX_API int fbx_msi_peer_addr(fbx_node *node, uint32_t pidx, const struct fbx_msi_desc *desc, uint64_t *address);

/* The requester-ID table: which functions of this node (its owner is 0, its clients are the others) may send requests across
 * its NTB. Of others posted writes vanish and are counted, all else is UNSUPPORTED. Everybody may until it is set. */
FBX_API int fbx_node_function(fbx_node *node);
/* Entries that the device has; 0: it has no table, and setting it is INVALID. */
FBX_API int fbx_rid_count(fbx_node *node);
FBX_API int fbx_rid_set(fbx_node *node, const uint32_t *functions, uint32_t count);
/* Let everybody pass again. */
FBX_API int fbx_rid_open(fbx_node *node);
/* The functions in it: returns how many there are; NOT_FOUND while everybody may pass. */
FBX_API int fbx_rid_get(fbx_node *node, uint32_t *functions, uint32_t room);

enum fbx_ntb_event_kind { FBX_NTB_DOORBELL = 1, FBX_NTB_MESSAGE = 2, FBX_NTB_LINK = 3, FBX_NTB_MSI = 4 };
struct fbx_ntb_event {
    uint32_t kind, vector; /* doorbell, MSI: of which interrupt vector */
    uint64_t bits; /* doorbell bits; message status bits; peers whose link is up; the MSI vector's bit */
};
/* Take the events that are there: returns how many (at most `room`), or AGAIN after max_wait_ns of real time. Each
 * setting of an unmasked bit is told once, to one taker. Registers keep their bits until they are cleared. */
FBX_API int fbx_ntb_wait_event(fbx_node *node, struct fbx_ntb_event *out, uint32_t room, uint64_t max_wait_ns);
/* A descriptor that is readable while there are events (it may be without: then wait_event finds none). It belongs to
 * the node's handle. */
FBX_API int fbx_ntb_event_fd(fbx_node *node);

/* ---- decisions and the trace -------------------------------------------------------------------------------------

 * What a seed decided, and what happened. Decisions are logged and overridden under the virtual clock only; a trace can be
 * taken of any fabric, and has what this process did. */

struct fbx_choice {
    uint64_t key, value, n, at_ps; /* value: one of 0 .. n-1; 0 is the harmless one */
    uint32_t kind, pad;
};
enum fbx_choice_flags {
    FBX_CHOICE_LOG = 1, /* remember decisions that are not 0 */
    FBX_CHOICE_ONLY = 2 /* decisions that are not in the table are 0 */
};
/* From now on these decisions are as in the table, the others as the seed says or 0. Both 0: no table, no log. */
/* One of 0 .. count-1, as the seed says; 0 for what is no fabric's. */
FBX_API uint64_t fbx_choose(fbx_fabric *fabric, uint32_t kind, uint64_t count);
FBX_API int fbx_choice_plan(fbx_fabric *fabric, const struct fbx_choice *fixed, uint64_t count, uint32_t flags);
/* Copy the log; returns how many there are. */
FBX_API uint64_t fbx_choice_log(fbx_fabric *fabric, struct fbx_choice *out, uint64_t room);

enum fbx_trace_event {
    FBX_TRACE_OP = 1, /* an operation is complete for its issuer; its times and status are known */
    FBX_TRACE_VISIBLE = 2, /* a posted write is delivered */
    FBX_TRACE_DROPPED = 3, /* a posted write vanished */
    FBX_TRACE_CONTROL = 4, /* a link or a node changed: kind says what, target which */
    FBX_TRACE_NOTE = 5, /* for whoever runs programs */
    FBX_TRACE_BEGIN = 6, /* recording: an operation begins; sequence: its place among all that is recorded; passed: its requester */
    FBX_TRACE_STEP = 7 /* recording: it was taken further, as of at_ps */
};
struct fbx_trace_record {
    uint64_t at_ps, id; /* id: the operation's, from 1; a write's VISIBLE has that of the write */
    uint64_t gva, bytes;
    uint64_t digest; /* the value of up to 8 bytes; a digest of more */
    uint64_t issued_ps, departs_ps, arrives_ps, completes_ps;
    uint64_t sequence; /* of a posted write in its queue */
    uint64_t passed; /* VISIBLE: id of the earlier write that this one passed, 0 for none */
    uint32_t site; /* where in the program: a number that the binding gave; no part of the digest of the trace */
    int16_t status;
    uint16_t node, target;
    uint16_t rule; /* VISIBLE: by which rule it passed; the core's number */
    uint8_t event, kind, tc, attr; /* tc: traffic class | path << 3 */
};
/* Trace from now on what this process does: the last `room` records stay. Anew if it was on: ids start at 1 again. */
FBX_API int fbx_trace_start(fbx_fabric *fabric, uint64_t room);
FBX_API int fbx_trace_stop(fbx_fabric *fabric);
/* Record, beside the rest, when operations begin and are taken further, so that the same can be done again under the virtual
 * clock. While a process records, its operations and those of others that record reserve links one after the other. */
FBX_API int fbx_record(fbx_fabric *fabric, int on);
/* Records made in all; the digest of them all, those that did not stay included (two words). */
FBX_API uint64_t fbx_trace_count(fbx_fabric *fabric, uint64_t digest[2]);
/* Copy up to `count` records from number `first` on; returns how many. Numbers that did not stay are skipped: *first
 * becomes the number of the first one copied. */
FBX_API uint64_t fbx_trace_copy(fbx_fabric *fabric, uint64_t *first, struct fbx_trace_record *out, uint64_t count);
/* The place in the program that operations begun from now on belong to. */
FBX_API void fbx_trace_site(fbx_fabric *fabric, uint32_t site);

/* ---- programs under the virtual clock -----------------------------------------------------------------------------

 * One thread runs any number of programs, one at a time, on a private fabric whose clock is virtual. The running program
 * says what it waits for; fbx_sim_next() moves time on and says which program runs then. How programs are switched (coroutines,
 * callbacks) is the caller's matter. Everything follows from the seed: the same one gives the same run, bit for bit. */

typedef struct fbx_sim fbx_sim;
enum fbx_sim_limits { FBX_SIM_NOBODY = 0x7fffffff };
enum fbx_sim_end {
    FBX_SIM_DONE = -1001, /* all programs have ended, and what they wrote is visible */
    FBX_SIM_DEADLOCK = -1002, /* nothing can happen any more, and a program waits */
    FBX_SIM_LIMIT = -1003, /* time or the number of events has reached its limit */
    FBX_SIM_LOOK = -1004 /* nothing special: look for signals and call again */
};
enum fbx_sim_state { FBX_SIM_ENDED, FBX_SIM_READY, FBX_SIM_OPERATES, FBX_SIM_POLLS, FBX_SIM_PARKED };
enum fbx_sim_what { FBX_SIM_MEMORY = 1, FBX_SIM_EVENTS = 2, FBX_SIM_NAMES = 3, FBX_SIM_DMA = 4, FBX_SIM_CHANGE = 5, FBX_SIM_SLEEP = 6 };
struct fbx_sim_options {
    uint64_t step_ps; /* what an operation costs its program at least */
    uint64_t limit_ps, limit_events; /* 0: none */
    uint32_t stalls; /* keep programs from the processor now and then, as the seed says */
    uint32_t pad;
};
struct fbx_sim_task {
    uint32_t state, what, node, size;
    int32_t compare, result;
    uint64_t gva, value, last, next_ps, deadline_ps, since_ps, operations;
    uint32_t op_kind, op_target;
};
/* The fabric must be private and virtual, and nobody attached. What it looks like now is what a reset brings back. */
FBX_API int fbx_sim_open(fbx_fabric *fabric, fbx_sim **out);
FBX_API void fbx_sim_free(fbx_sim *sim);
/* As new: no memory written, no time passed, nobody attached (nodes must have been detached), no program. */
FBX_API int fbx_sim_reset(fbx_sim *sim, uint64_t seed, const struct fbx_sim_options *options);
/* A program that runs on `node`; returns its number. It is ready at once. */
FBX_API int fbx_sim_spawn(fbx_sim *sim, fbx_node *node);
/* The program that runs now, or FBX_SIM_NOBODY. */
FBX_API uint32_t fbx_sim_current(const fbx_sim *sim);
/* What the running program waits for: an operation that fbx_op_begin() answered with `status` (it stays where it is until then);
 * a time; a value in memory, polled with loads; something else. Or that it has ended. */
FBX_API void fbx_sim_op(fbx_sim *sim, fbx_node *node, struct fbx_op *op, int status);
FBX_API void fbx_sim_sleep(fbx_sim *sim, uint64_t until_ps);
FBX_API void fbx_sim_wait_until(fbx_sim *sim, fbx_node *node, uint64_t gva, uint32_t bytes, int compare, uint64_t value,
                                uint64_t deadline_ps);
FBX_API void fbx_sim_watch(fbx_sim *sim, fbx_node *node, int what, uint64_t which, uint64_t deadline_ps);
/* An operation that was begun goes on by itself from now on; it must stay where it is until it is done or forgotten. */
FBX_API int fbx_sim_begun(fbx_sim *sim, fbx_node *node, struct fbx_op *op);
FBX_API void fbx_sim_forget(fbx_sim *sim, const struct fbx_op *op);
FBX_API void fbx_sim_exit(fbx_sim *sim);
/* All programs have ended, however that came: what is under way still arrives with fbx_sim_next(). */
FBX_API void fbx_sim_stop(fbx_sim *sim);
/* Move on: the program that runs now, or how it ended. */
FBX_API int fbx_sim_next(fbx_sim *sim);
/* Of the program that runs now: what became of its wait (AGAIN: the deadline came), and the value found. */
FBX_API int fbx_sim_result(fbx_sim *sim, uint64_t *value);
FBX_API int fbx_sim_look(fbx_sim *sim, uint32_t task, struct fbx_sim_task *out);
/* An operation's record that stays where it is while other programs run, and 64 bytes for its data: one for each program. */
FBX_API struct fbx_op *fbx_sim_record(fbx_sim *sim, void **wide);
FBX_API fbx_sim *fbx_sim_of(fbx_fabric *fabric);
/* How many events there were. */
FBX_API uint64_t fbx_sim_events(const fbx_sim *sim);
/* ---- several machines ------------------------------------------------------------------------------------------- */

/* Nodes may live on several machines (fbx_config.machine). Memory is reached by sockets there, through a *gateway* on each
 * machine. Connections are made and admitted by that machine's agent (fabrex.net in Python), which hands them over. */
enum fbx_machine_state { FBX_MACHINE_UP = 0, FBX_MACHINE_LOST = 1 };
struct fbx_machine_info {
    char name[64];
    uint32_t index, here, state, pad;
    uint64_t connects, frames, late, gave_up, lost_at_ps;
    uint64_t epoch; /* number of the last change of the fabric that it is known to have made */
    uint64_t windows; /* `here`: changes of windows that processes of this machine made */
    /* Its clock against this one, for reports: nothing is ordered by it. bound_ns 0: not measured yet. */
    int64_t clock_offset_ps;
    uint32_t clock_bound_ns;
    int32_t clock_drift_ppb;
};
FBX_API int fbx_machine_info(fbx_fabric *fabric, uint32_t machine, struct fbx_machine_info *out);
/* A lost machine's nodes are lost, here; it stays so until it is set up again. */
FBX_API int fbx_machine_set(fbx_fabric *fabric, uint32_t machine, int state);
/* A node of another machine died or came back there. */
FBX_API int fbx_node_set(fbx_fabric *fabric, uint32_t node, int lost);
/* Ask a machine's gateway whether it is there: its fabric time, and the round trip on ours. */
FBX_API int fbx_machine_ping(fbx_fabric *fabric, uint32_t machine, uint64_t max_wait_ns, uint64_t *their_ps, uint64_t *round_trip_ps);
/* A change of the fabric as a whole. On several machines fbx_link_set() and the like have the agent ask the coordinator for it,
 * which numbers changes; all machines make them in that order. */
enum fbx_change_kind {
    FBX_CHANGE_LINK = 1, /* link index; value 0: up */
    FBX_CHANGE_CONFIGURE, /* link index; keys and values by enum fbx_link_key */
    FBX_CHANGE_NTB, /* node index; value 0: down */
    FBX_CHANGE_WINDOW, /* node index; values: window, peer, translation, bytes, permission, mapping */
    FBX_CHANGE_WINDOW_CLEAR /* node index; value 0: window */
};
struct fbx_change {
    uint32_t what, index, keys, pad;
    uint64_t value[16];
};
/* For agents: make it on this machine and nowhere else. BUSY with *made: it is made, but a process is stopped in the middle of
 * an operation that began before. */
FBX_API int fbx_change_make(fbx_fabric *fabric, const struct fbx_change *change, int *made);
/* A machine has made all changes up to this one. */
FBX_API int fbx_machine_epoch(fbx_fabric *fabric, uint32_t machine, uint64_t epoch);
/* What the agent has measured of its clock. */
FBX_API int fbx_machine_clock(fbx_fabric *fabric, uint32_t machine, int64_t offset_ps, uint32_t bound_ns, int32_t drift_ppb);
/* Serve this machine's memory to the others, from a thread of this process; ends with the fabric's close. */
FBX_API int fbx_gateway_start(fbx_fabric *fabric);
/* An admitted connection from a process of `machine`; the descriptor is the gateway's from here on. */
FBX_API int fbx_gateway_adopt(fbx_fabric *fabric, int fd, uint32_t machine);
struct fbx_gateway_info {
    uint64_t sessions, connected, frames, garbage, resumed, expired;
};
FBX_API int fbx_gateway_info(fbx_fabric *fabric, struct fbx_gateway_info *out);
/* Where this machine's agent listens for processes that want a connection: a Unix socket (SOCK_SEQPACKET). Asked with
 * "FXAG" and a machine's number (32 bits, little-endian), it answers with a 32-bit status and, if that is 0, a descriptor.
 * Asked with "FXCH" and a change (what, index, keys: 32 bits; the values: 64), it answers when all machines have made it: a status
 * (32 bits), 4 bytes of nothing, the change's number (64 bits), and words. */
FBX_API int fbx_agent_path(fbx_fabric *fabric, char *out, uint64_t room);

/* ---- benchmarks and tests --------------------------------------------------------------------------------------- */

/* Time `count` operations inside C; samples_ps (count entries, may be NULL) receives each one's duration. */
FBX_API int fbx_bench(fbx_node *node, int kind, const uint64_t *gvas, uint64_t gva_count, uint64_t bytes,
                      uint64_t count, uint64_t *samples_ps, uint64_t *total_ps);
/* The same for a descriptor, with up to `depth` of it under way at once. Depth 1 times each from its submission to its
 * completion. Of more, `samples_ps` are their submissions alone, `total_ps` is that of all until the last is complete, and a
 * channel that is full is waited for, which counts in the total and in no sample. */
FBX_API int fbx_bench_dma(fbx_node *node, const struct fbx_dma *descriptor, uint32_t depth, uint64_t count,
                          uint64_t *samples_ps, uint64_t *total_ps);
FBX_API uint64_t fbx_ticks(void);
/* Static memory of the core: pointers to the functions that the _hot extension calls. */
FBX_API const void *fbx_hot_table(void);
FBX_API const void *fbx_sim_table(void);
FBX_API uint64_t fbx_layout_hash(void);

#ifndef FBX_CDEF
#ifdef __cplusplus
}
#endif
#endif
#endif
