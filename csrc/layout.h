/* SPDX-License-Identifier: Apache-2.0
 *
 * The bytes of a fabric's control segment. Every process of the fabric, whatever it was compiled with, agrees on them
 * or refuses to attach (layout hash). Fixed-width integers and offsets from the segment's base only; no pointers.
 * Who writes a line stands beside it. Nothing here has behaviour.
 *
 *   header | node[] | region[] | link[] | direction[] | session[] | requester[] | lane[] | buffer[] | name[] | heap
 *
 * Tables are sparse. An entry is committed (fallocate) before its first use, and `high` says below which index entries
 * may be touched; so a full /dev/shm is an error code and not a bus error.
 */
#ifndef FBX_LAYOUT_H
#define FBX_LAYOUT_H

#include "atomics.h"

#define FBX_MAGIC 0x3142465845524246ull /* "FBREXFB1" */
#define FBX_LAYOUT_VERSION 2u
#define FBX_LINE 64u
#define FBX_NAME_BYTES 64u /* with the terminating NUL */
#define FBX_TIER_BYTES 32u
#define FBX_PORT_BYTES 32u

#define FBX_SLOT_SHIFT 40u /* a region's range of global addresses: one slot of 1 TiB, slot 0 stays empty */
#define FBX_SLOT_MASK ((1ull << FBX_SLOT_SHIFT) - 1)
#define FBX_COMMIT_SHIFT 16u /* memory is committed in pieces of 64 KiB */
#define FBX_COMMIT_BYTES (1ull << FBX_COMMIT_SHIFT)
#define FBX_FIXED_BYTES 65536u /* start of each region that alloc never hands out */
#define FBX_BITS_PAGE (1ull << 31) /* region bytes that one 4 KiB page of its commit bitmap covers */
#define FBX_TOP_WORDS 8u /* 512 bitmap pages: regions of up to 1 TiB */
#define FBX_BAR_BASE (1ull << 62) /* bus address of the first window of a node */

#define FBX_CAL_SLOTS 2048u /* slots in a link's calendar of reservations */

/* A lock that names its holder: session index + 1 in the low 16 bits, that session's incarnation above. See lock.c. */
struct fbxl_lock {
    fbx_au64 holder;
    fbx_au32 waiters; /* futex word of those who sleep */
    fbx_au32 takeovers; /* times the lock was taken from a dead holder */
};

struct fbxl_table {
    uint64_t offset;
    uint32_t stride, capacity;
    fbx_au32 high; /* entries below may be touched; grows under the control lock */
    uint32_t pad;
};

enum { /* indices of header.table */
    FBXL_NODES, FBXL_REGIONS, FBXL_LINKS, FBXL_DIRECTIONS, FBXL_SESSIONS, FBXL_REQUESTERS, FBXL_LANES, FBXL_BUFFERS,
    FBXL_NAMES, FBXL_BUCKETS, FBXL_TABLES
};

struct fbxl_extension { /* what later versions add without moving anything */
    uint32_t id, version;
    uint64_t offset, bytes;
};

enum { FBXL_EVENTS = 1 }; /* ids of extensions */

enum { FBXL_OWNED = 1, FBXL_TIMING = 2, FBXL_AUTO_WINDOWS = 4, FBXL_STRICT = 8, FBXL_EXPLICIT_FENCE = 16,
       FBXL_COUNTED = 256 /* with TIMING: the model's time is counted, not waited for (clock.c) */,
       FBXL_CLOSED = 32 /* in state: the fabric was taken down */ };

struct fbxl_header {
    /* line 0: written once, by the creator; the magic last */
    fbx_au64 magic;
    uint32_t version, header_bytes;
    uint64_t layout_hash;
    uint32_t page_bytes, line_bytes;
    uint64_t instance; /* random; region segments carry it in their names */
    uint64_t control_bytes;
    uint32_t uid, creator_pid;
    uint64_t creator_start; /* ticks since boot, field 22 of /proc/PID/stat */
    /* line 1 */
    uint8_t boot_id[16], machine_id[16];
    uint32_t flags, ordering;
    uint64_t seed;
    uint64_t created_unix_ns;
    uint64_t pad1;
    /* line 2: the clock (clock.c) */
    uint32_t clock_kind, tick_source;
    uint64_t epoch_ticks;
    uint64_t ps_per_tick_q32; /* 32 fractional bits, dilation included */
    uint64_t tick_hz;
    uint32_t dilation_num, dilation_den;
    uint32_t tick_cost_ps, pad2;
    fbx_au64 counted_ticks; /* the clock of a fabric with FBXL_COUNTED */
    uint64_t pad3;
    /* line 3 */
    char name[FBX_NAME_BYTES];
    /* tables and extensions: offsets written once */
    struct fbxl_table table[FBXL_TABLES];
    struct fbxl_extension extension[16];
    uint64_t topology_offset, topology_bytes;
    uint64_t heap_offset, heap_bytes;
    fbx_au64 heap_free[24]; /* freed blocks by power of two, under the control lock */
    uint64_t pad4[4];
    /* a line of its own: the control lock; its holder writes the two words behind it */
    _Alignas(64) struct fbxl_lock control;
    fbx_au64 heap_used;
    fbx_au64 control_epoch; /* counts control changes */
    uint64_t pad5[4];
    /* waiter words (futex): names and buffers came or went; barriers; any */
    _Alignas(64) fbx_au32 names_changed;
    fbx_au32 names_waiters;
    fbx_au32 state; /* FBXL_CLOSED */
    uint32_t pad6;
    fbx_au64 registrations; /* counts changes of what is registered */
    uint32_t pad10[10];
    /* the fault plan's slot and the trace's switch, for those who bring them */
    _Alignas(64) fbx_au64 fault_plan;
    fbx_au64 fault_generation;
    fbx_au64 trace_order; /* counts what was recorded; written by the lock's holder */
    fbx_au32 trace_on; /* processes that record */
    uint32_t pad7;
    struct fbxl_lock trace_lock; /* while somebody records, whoever records reserves one after the other */
    uint64_t pad8[2];
    /* counters of what should never happen; anyone adds */
    _Alignas(64) fbx_au64 corrupt_resets;
    fbx_au64 takeovers;
    fbx_au64 reservations_clamped;
    fbx_au64 sessions_reaped;
    uint64_t pad9[4];
};

enum { FBXL_HOST = 1, FBXL_ACCELERATOR, FBXL_MEMORY, FBXL_SWITCH };
enum { FBXL_POWERED = 0, FBXL_LOST = 1, FBXL_OFF = 2 };

struct fbxl_node {
    /* written once */
    char name[FBX_NAME_BYTES];
    uint32_t kind, profile;
    uint32_t first_region, region_count;
    uint32_t rank, machine; /* rank among hosts and accelerators; ~0 for others. Machine: where its memory lives */
    uint64_t delay_ps; /* cut-through delay of a switch */
    uint32_t access_bytes, tags; /* CPU access width of one PIO request; DMA read tags */
    uint64_t pio_read_ps, pio_write_ps;
    uint64_t dma_setup_write_ps, dma_setup_read_ps;
    uint32_t mw_count, lut_count; /* direct windows first, then LUT windows */
    uint32_t wc, pad0; /* stores through its windows combine unless a window says otherwise */
    uint64_t mw_max_bytes;
    /* state line: written under the control lock or by a reaper */
    _Alignas(64) fbx_au32 state;
    fbx_au32 incarnation; /* of the owner; rises by one each time one attaches */
    fbx_au32 owner; /* requester index + 1, 0 for none */
    fbx_au32 mw_next; /* next window that multiplexing takes */
    fbx_au64 mw_table; /* heap offset of the window table, 0 while all are as the manager left them */
    struct fbxl_lock mw_lock; /* who changes a window; with mw_journal it makes changes crash-consistent */
    fbx_au64 lost_at_ps;
    fbx_au64 ntb; /* heap offset of struct fbxl_ntb, 0 until first used */
    fbx_au32 ntb_down; /* its NTB is disabled: nothing crosses it, either way */
    fbx_au32 event_fds; /* descriptors on its event FIFO that are open, or were when their process died */
    /* delivery line: producers set marks, deliverers clear them */
    _Alignas(64) fbx_au64 pending; /* bit (queue ordinal & 63): something is queued towards this node */
    fbx_au64 queues; /* heap offset of the first queue that ends here */
    fbx_au32 queue_count;
    fbx_au32 raw_views; /* somebody looks at memory here without the API: its owner's thread delivers */
    fbx_au64 registered_next; /* where the next range of registered memory is looked for */
    uint64_t pad1[4];
    _Alignas(64) struct fbxl_lock delivery;
    fbx_au64 delivering_queue, delivering_seq; /* what the holder is at, for the curious */
    uint64_t pad2[4];
    /* counters: anyone adds */
    _Alignas(64) fbx_au64 posted_dropped; /* posted writes that vanished: link, node, window */
    fbx_au64 delivered;
    fbx_au64 aer_correctable, aer_nonfatal, aer_fatal;
    fbx_au64 events; /* of its NTB, taken */
    fbx_au64 dropped_told, aer_told; /* what the fabric's events have told of the counters */
};

struct fbxl_window { /* 64 bytes, two snapshots and a switch */
    fbx_au64 which; /* bit 0: the snapshot in force; the rest counts changes */
    struct fbxl_window_snapshot {
        fbx_au64 translation; /* bus address at the peer */
        fbx_au64 bytes; /* 0: nothing is programmed */
        fbx_au32 peer_perm; /* peer node | permission << 24 | attributes << 26 | mapping << 28 | state << 30 */
        uint32_t pad;
    } snapshot[2];
    fbx_au64 stuck; /* bits of the translation register that do not take a 1: an injected fault */
};
enum { FBXL_MW_DEFAULT = 0, FBXL_MW_SET = 1, FBXL_MW_CLEARED = 2 };

struct fbxl_region {
    char tier[FBX_TIER_BYTES];
    uint32_t node, index; /* index within the node */
    uint64_t bytes;
    uint64_t bus; /* address on the node's own bus */
    uint64_t latency_ps, ps_per_byte_q24;
    uint64_t flags;
    uint32_t jitter_points, pad0;
    uint64_t jitter; /* heap offset of pairs: share of 2^32, ps of latency more */
    _Alignas(64) struct fbxl_lock lock; /* allocator and commit map */
    fbx_au64 prefix; /* bytes committed from the start, no holes */
    fbx_au64 committed; /* bytes in all */
    fbx_au64 allocated;
    fbx_au32 first_buffer; /* index + 1 of the lowest live buffer: a list by address, rebuilt from the table if broken */
    fbx_au32 list_broken;
    fbx_au64 reserved_at; /* heap offset of reservations of its rate (a direction and a calendar), 0 until first used */
    _Alignas(64) fbx_au64 top[FBX_TOP_WORDS]; /* which pages of the bitmap are committed */
};

#define FBX_LINK_VALUES 16u /* as many as there are keys, or more */
struct fbxl_link {
    char name[FBX_NAME_BYTES * 3];
    uint32_t node[2];
    char port[2][FBX_PORT_BYTES];
    uint32_t kind; /* 0 PCIe, 1 Ethernet */
    uint32_t home; /* machine on which it is reserved */
    uint64_t value[FBX_LINK_VALUES]; /* as the topology says, by enum fbx_link_key */
    uint64_t jitter; /* heap offset of pairs: share of 2^32, ps of delay more */
    uint32_t jitter_points, pad0;
    _Alignas(64) fbx_au32 state; /* 0 up, 1 down */
    fbx_au32 generation;
    fbx_au64 down_at_ps;
    /* What it is set to now: 0 as described; else bit 0 is the snapshot in force and the rest counts changes. The snapshots
     * are at heap offset `setting`. Written under the control lock. */
    fbx_au64 which, setting;
    uint64_t pad1[4];
};
#define FBX_CAL_LENGTHS 27u /* slots of 2^14 to 2^40 ps */
struct fbxl_link_setting {
    struct {
        fbx_au64 value[FBX_LINK_VALUES];
    } snapshot[2];
    fbx_au64 calendar[2][FBX_CAL_LENGTHS]; /* heap offset by direction and length of a slot, where it is not the described one */
};

struct fbxl_direction { /* index 2*link + (0: from node[0] to node[1], 1: back) */
    /* reservations: all requesters */
    _Alignas(64) fbx_au64 calendar; /* heap offset, 0 until first used */
    fbx_au64 debt; /* units of bulk that small traffic displaced and later bulk must pay */
    fbx_au64 bytes, tlps; /* counters */
    fbx_au64 dropped;
    fbx_au64 bulk_packet_ps; /* one packet of the bulk that was reserved last */
    uint64_t pad1[2];
};

enum { FBXL_FREE = 0, FBXL_TAKEN = 1, FBXL_LIVE = 2, FBXL_DYING = 3 };

struct fbxl_session { /* one opened fabric of one process; alive while it holds the lock on its byte of the file */
    fbx_au32 state;
    fbx_au32 incarnation;
    uint32_t pid, pad0;
    uint64_t start;
    fbx_au64 heartbeat_ps; /* its service thread was here */
    fbx_au32 leader; /* it watches the others */
    fbx_au32 wake; /* futex word of its service thread */
    fbx_au64 asks; /* bit (session & 63): that one asks something about memory registered here */
    fbx_au64 mailbox; /* heap offset of what it asks others, 0 until first used */
    uint64_t pad1;
};

struct fbxl_requester {
    fbx_au32 state;
    fbx_au32 incarnation;
    fbx_au32 session; /* index + 1 */
    uint32_t node;
    uint32_t kind; /* 0 owner, 1 client */
    uint32_t function; /* requester function number on its node */
    uint32_t session_incarnation, pad0;
    fbx_au64 stats; /* heap offset of struct fbxl_stats */
    fbx_au64 dependencies; /* heap offset of a bitmap of links, then of nodes, that cached routes depend on */
    fbx_au64 dropped; /* its posted writes that vanished, wherever that was */
    fbx_au64 dma; /* heap offset of struct fbxl_dma, 0 before its first DMA */
    _Alignas(64) fbx_au64 generation; /* changes whenever a cached route may be wrong: written by whoever changes */
    fbx_au64 away; /* heap offset of struct fbxl_away, 0 before it first wrote to another machine */
    /* of a gateway's requester, which stands for one on another machine: whose, and how many of its posted writes came */
    fbx_au64 proxy_of; /* (machine + 1) << 32 | requester; 0: its own */
    fbx_au64 proxy_posted;
    fbx_au32 proxy_incarnation;
    uint32_t pad3;
    uint64_t pad2[3];
};

/* What a requester has sent to other machines: its own process counts. */
#define FBX_MACHINES 64u
struct fbxl_away {
    fbx_au64 posted[FBX_MACHINES]; /* posted writes that have left towards each */
    fbx_au64 settled[FBX_MACHINES]; /* of them, as many as are known to be there */
};

/* The machines of a fabric that has several; each has a control segment of its own, made from the same topology. Found by
 * the extension FBXL_EXTENSION_MACHINES. */
enum { FBXL_EXTENSION_MACHINES = 64 };
enum { FBXL_MACHINE_UP = 0, FBXL_MACHINE_LOST = 1 };
struct fbxl_machine {
    char name[FBX_NAME_BYTES];
    fbx_au32 state; /* FBXL_MACHINE_*: written by this machine's agent */
    fbx_au32 pad0;
    fbx_au64 lost_at_ps;
    fbx_au64 connects, frames, late; /* connections made, answers taken, answers that came after their modelled time */
    fbx_au64 gave_up; /* posted writes and operations lost because it could not be reached */
    /* its clock against ours, for reports only: theirs - ours in ps; error bound in ns << 32 | drift in parts per billion */
    fbx_au64 clock_offset, clock_quality;
};
struct fbxl_machines {
    uint64_t fabric; /* random; the same on all of them */
    uint32_t machine, count; /* this one's number */
    fbx_au64 windows; /* changes of windows that processes of this machine made: its agent has them numbered */
    uint64_t pad[5];
    struct fbxl_machine of[FBX_MACHINES];
    /* The last change of the fabric (links, windows, membership) that each is known to have made: written by the agent. */
    fbx_au64 epoch[FBX_MACHINES];
};

struct fbxl_lane { /* one thread's in-operation mark */
    fbx_au32 in_operation;
    fbx_au32 requester; /* index + 1, 0 for free */
    uint32_t pad[14];
};

enum { FBXL_BUFFER_FREE = 0, FBXL_BUFFER_RESERVED, FBXL_BUFFER_LIVE, FBXL_BUFFER_QUARANTINED };
struct fbxl_buffer {
    char name[FBX_NAME_BYTES];
    fbx_au32 state, generation;
    uint32_t region, session, session_incarnation;
    fbx_au32 next; /* index + 1 of the next higher buffer of the region */
    uint64_t offset, bytes;
    uint64_t kind; /* FBXL_BUFFER_MEMORY or FBXL_BUFFER_REGISTERED */
    /* of registered memory, as its process knows it; `nonce_at` is where that process keeps `nonce` */
    uint64_t address, start, nonce_at, nonce;
    uint32_t pid, flags;
    uint64_t reserved[5];
};
enum { FBXL_BUFFER_MEMORY = 0, FBXL_BUFFER_REGISTERED = 1 };

struct fbxl_name { /* put/get values, barriers, names of buffers: chained in hash buckets, all under the control lock */
    char name[FBX_NAME_BYTES];
    fbx_au32 state; /* FBXL_NAME_* */
    fbx_au32 next; /* index + 1 of the next entry of the bucket */
    fbx_au64 which; /* low bit: the value in force; the rest counts changes */
    struct {
        fbx_au64 offset; /* heap */
        fbx_au32 bytes, capacity;
    } value[2];
    fbx_au32 round, expected; /* barrier; value[0] is then a word per node: who has arrived */
    uint32_t pad[2];
};
enum { FBXL_NAME_FREE = 0, FBXL_NAME_VALUE, FBXL_NAME_BARRIER, FBXL_NAME_BUFFER, FBXL_NAME_AWAY };

/* A queue of posted writes from one node towards another in one traffic class: producers under `producer`, deliverers
 * under the target's delivery lock. Cells of 64 bytes; an entry is a header and its payload, never wrapping. */
struct fbxl_queue {
    uint32_t source, target, traffic_class, ordinal; /* traffic_class: class | path << 3 */
    uint32_t cells, pad0;
    fbx_au64 next; /* heap offset of the next queue of the same target */
    fbx_au64 ntb_applied; /* last entry that changed the target's registers, as far as they themselves do not say it */
    uint64_t pad1[3]; /* the cells follow the queue itself */
    _Alignas(64) struct fbxl_lock producer;
    fbx_au64 tail; /* cells ever produced */
    fbx_au64 last_arrives; /* FIFO: nothing behind arrives before this */
    fbx_au64 sequence;
    fbx_au64 scalar_bytes, scalar_tlps; /* counted here, under the lock, instead of on each link of the way */
    uint64_t pad2;
    _Alignas(64) fbx_au64 head; /* cells ever delivered */
    uint64_t pad3[7];
};
enum { FBXL_ENTRY_SKIP = 0, FBXL_ENTRY_WRITE = 1, FBXL_ENTRY_DOORBELL, FBXL_ENTRY_SPAD, FBXL_ENTRY_MESSAGE, FBXL_ENTRY_MSI };
enum { FBXL_ENTRY_RO = 1, FBXL_ENTRY_IDO = 2, FBXL_ENTRY_DROPPED = 4, FBXL_ENTRY_POISON = 8, FBXL_ENTRY_SCALAR = 16,
       FBXL_ENTRY_COMBINING = 32, /* was in a write-combining buffer */
       FBXL_ENTRY_APPLIED = 64 /* visible, though entries before it are not */ };
struct fbxl_entry { /* 64 bytes: payloads of up to 16 bytes travel in the header's own cell */
    fbx_au64 arrives_ps; /* looked at without the lock, to learn whether anything is due */
    uint64_t sequence;
    uint32_t region;
    uint32_t bytes;
    uint64_t offset;
    uint16_t cells;
    uint8_t kind, flags;
    uint16_t requester;
    uint16_t poison;
    uint64_t trace_id;
    uint8_t inline_payload[16];
};

/* DMA of one requester. Its own process writes, and executes from private copies; others look here for what is under way
 * (a buffer that is freed meanwhile is not given to anybody else). */
#define FBX_DMA_CHANNELS 64u
#define FBX_DMA_DEPTH 64u /* descriptors that a channel takes, the running one included */
#define FBX_DMA_RANGES 5u
struct fbxl_dma_slot {
    fbx_au64 state; /* 0 free; else 1 | descriptor's number << 1 */
    fbx_au64 done; /* bytes that have arrived */
    uint64_t bytes;
    uint32_t channel, range_count;
    struct {
        fbx_au64 first, end; /* global addresses that it reads or writes; end 0: unused, ~0: anything */
    } range[FBX_DMA_RANGES];
    uint64_t pad[2];
};
struct fbxl_dma {
    fbx_au64 live; /* slots in use in all channels */
    uint64_t pad[7];
    fbx_au64 channel[FBX_DMA_CHANNELS]; /* heap offset of FBX_DMA_DEPTH slots */
};

/* The registers of a node's NTB device. Doorbells, messages and what was told of them change together: two snapshots and a
 * switch, written under the lock. Counts, valid bits and shifts are the profile's and never stand here. */
#define FBX_NTB_SPADS 128u
#define FBX_NTB_MESSAGES 8u
#define FBX_NTB_MSIS 64u
#define FBX_NTB_FUNCTIONS 256u /* requester functions that a table can name */
#define FBX_NTB_FUNCTION_WORDS 4u
struct fbxl_ntb_state {
    fbx_au64 db, db_mask, db_told; /* told: bits whose event somebody has taken since they were last set or unmasked */
    fbx_au64 msg_sts, msg_mask, msg_told;
    fbx_au64 link_seen, link_told; /* peers that were up, and link_changes, when the last link event was taken */
    fbx_au64 queue, sequence; /* the posted write applied last: doing it again does nothing */
    fbx_au64 msi_pending, msi_mask, msi_used; /* interrupt vectors: told clears pending; used: somebody holds it */
    uint64_t pad[3];
};
struct fbxl_ntb {
    /* who changes a register, mostly deliverers at the node itself */
    struct fbxl_lock lock;
    fbx_au64 which; /* bit 0: the snapshot in force; the rest counts changes */
    fbx_au32 changed; /* futex word of those who wait for events */
    uint32_t pad0;
    uint64_t pad1[4];
    /* what senders look at with each write: seldom changed, so it stays in their caches */
    fbx_au32 waiters;
    uint32_t pad2;
    fbx_au64 link_changes; /* times a link that this node depends on came or went */
    fbx_au64 rid_which; /* requester-ID table. Bit 0: the snapshot in force; bit 1: it is enforced; the rest counts changes */
    uint64_t pad3[5];
    struct fbxl_ntb_state state[2];
    struct {
        fbx_au32 value, source; /* filled while its status bit is clear */
    } message[FBX_NTB_MESSAGES];
    fbx_au32 spad[FBX_NTB_SPADS];
    struct {
        fbx_au32 data; /* what a message must say to be this vector's; another one each time it is given out */
        fbx_au32 requester, incarnation; /* index + 1 of who holds it */
        uint32_t pad;
    } msi[FBX_NTB_MSIS];
    fbx_au64 rid0[FBX_NTB_FUNCTION_WORDS]; /* bit per function of this node: it may cross the NTB */
    fbx_au64 rid1[FBX_NTB_FUNCTION_WORDS];
};

/* What has happened, for those who look on (event.c). An extension; anyone writes. */
#define FBX_EVENTS 1024u
#define FBX_EVENT_WORDS 6u
struct fbxl_event {
    fbx_au64 number; /* of the event, plus 1; 0 while it is written */
    fbx_au64 word[FBX_EVENT_WORDS]; /* fabric time, wall time, kind | other << 32, node | link << 32, a, b */
    fbx_au64 sum; /* over number and words: two writers a turn of the ring apart may meet */
};
struct fbxl_events {
    fbx_au64 next; /* number of the next event */
    fbx_au32 changed; /* futex word of those who wait for one */
    fbx_au32 sleepers;
    uint64_t pad[6];
    struct fbxl_event event[FBX_EVENTS];
};

#define FBX_OP_KINDS 12u
#define FBX_HIST_BINS 40u
struct fbxl_stats { /* of one requester; its own threads add */
    struct {
        fbx_au64 count, late, failed, preempted;
        fbx_au64 late_ps_total, late_ps_max;
        fbx_au64 bytes, count_home; /* count by the home thread, which alone writes it */
        fbx_au64 late_hist[FBX_HIST_BINS]; /* bin b: lateness in [2^b, 2^(b+1)) ps */
        fbx_au64 network; /* of the late ones: another machine's answer was not there in time */
        uint64_t pad[7];
    } kind[FBX_OP_KINDS];
};

_Static_assert(sizeof(struct fbxl_window) == 64, "a window must fit a line: two cores program neighbours");
_Static_assert(sizeof(struct fbxl_session) == 64, "one writer a line");
_Static_assert(sizeof(struct fbxl_lane) == 64, "in-operation marks of two threads must not share a line");
_Static_assert(sizeof(struct fbxl_queue) == 192, "the queue and its cells fill a block of 64 KiB");
_Static_assert(sizeof(struct fbxl_ntb_state) == 128 && sizeof(struct fbxl_ntb) == 2048, "snapshots on lines of their own");
_Static_assert(sizeof(struct fbxl_entry) == 64, "an entry's header is one cell");
_Static_assert(sizeof(struct fbxl_dma_slot) == 128, "two lines a descriptor: neighbours run at the same time");
_Static_assert(sizeof(struct fbxl_requester) == 128, "the generation word has a line of its own");
_Static_assert(sizeof(struct fbxl_machine) == 128 && sizeof(struct fbxl_machines) % 64 == 0, "lines of their own");
_Static_assert(sizeof(struct fbxl_direction) == 64, "reservations of two directions must not share a line");
_Static_assert(sizeof(struct fbxl_event) == 64, "an event is one line");
_Static_assert(sizeof(struct fbxl_header) <= 4096, "the header is one page");

/* Identifies the layout: version, sizes of everything above, constants. Checked at attach. */
#define FBX_HASH_(h, v) (((h) ^ (uint64_t)(v)) * 0x9E3779B97F4A7C15ull + ((h) >> 29))
static inline uint64_t fbxi_layout_hash(void)
{
    uint64_t h = FBX_LAYOUT_VERSION;
    const uint64_t of[] = {sizeof(struct fbxl_header), sizeof(struct fbxl_node), sizeof(struct fbxl_region),
        sizeof(struct fbxl_link), sizeof(struct fbxl_direction), sizeof(struct fbxl_session),
        sizeof(struct fbxl_requester), sizeof(struct fbxl_lane), sizeof(struct fbxl_buffer), sizeof(struct fbxl_name),
        sizeof(struct fbxl_queue), sizeof(struct fbxl_entry), sizeof(struct fbxl_stats), sizeof(struct fbxl_window),
        sizeof(struct fbxl_dma), sizeof(struct fbxl_dma_slot), sizeof(struct fbxl_ntb), sizeof(struct fbxl_link_setting),
        sizeof(struct fbxl_events), sizeof(struct fbxl_machines),
        FBX_SLOT_SHIFT, FBX_COMMIT_SHIFT, FBX_CAL_SLOTS, FBX_BAR_BASE, __BYTE_ORDER__};
    for (unsigned i = 0; i < sizeof of / sizeof of[0]; i++)
        h = FBX_HASH_(h, of[i]);
    return h;
}

#endif
