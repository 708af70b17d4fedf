/* SPDX-License-Identifier: Apache-2.0
 *
 * The registers of a node's NTB device and the events that they raise. */
#ifndef FBX_NTB_H
#define FBX_NTB_H
#include "internal.h"

struct fbxi_ntb_profile { /* what the silicon has */
    uint32_t doorbells, vectors, spads, messages;
    uint32_t msis, requesters; /* interrupt vectors for messages; entries of the requester-ID table */
    uint32_t peer_registers; /* a peer's doorbell and mask can be read and changed beyond ringing it */
};
const struct fbxi_ntb_profile *fbxi_ntb_profile(const fbx_fabric *f, uint32_t node);
uint64_t fbxi_ntb_valid(const struct fbxi_ntb_profile *p);

/* What decides about events: read and replaced as a whole, the latter under the device's lock. */
struct fbxi_ntb_registers {
    uint64_t db, db_mask, db_told, msg_sts, msg_mask, msg_told, link_seen, link_told, msi_pending, msi_mask, msi_used, queue,
        sequence;
};
struct fbxl_ntb *fbxi_ntb_device(fbx_fabric *f, uint32_t node); /* NULL before its first use */
struct fbxi_ntb_registers fbxi_ntb_read(struct fbxl_ntb *d);
void fbxi_ntb_put(struct fbxl_ntb *d, const struct fbxi_ntb_registers *r);
void fbxi_ntb_notify(fbx_fabric *f, uint32_t node, struct fbxl_ntb *d); /* there are new events */
/* A node's own device, after what is due there was delivered; with its lock. */
int fbxi_ntb_own(fbx_node *n, struct fbxl_ntb **d);
int fbxi_ntb_own_lock(fbx_node *n, struct fbxl_ntb **d);

/* The registers; made at first use, under the control lock. */
int fbxi_ntb_get(fbx_fabric *f, uint32_t node, struct fbxl_ntb **out);

enum { FBXI_DB_SET, FBXI_DB_CLEAR, FBXI_DB_SET_MASK, FBXI_DB_CLEAR_MASK }; /* reg of a DOORBELL write */
struct fbxi_ntb_write {
    uint32_t kind, source; /* FBXL_ENTRY_*; the node that wrote it */
    uint64_t reg, value;
    struct fbxl_queue *queue; /* NULL: it did not travel in one */
    uint64_t sequence;
};
/* Do it once, however often it is asked for. BUSY: a stopped process holds the registers. INVALID: there is no such one. */
int fbxi_ntb_apply(fbx_fabric *f, uint32_t node, const struct fbxi_ntb_write *w);
/* Something for the registers of `target` is on its way: those who wait for its events must know when it arrives. */
void fbxi_ntb_posted(fbx_fabric *f, uint32_t target);
/* The doorbell and mask in force. */
int fbxi_ntb_doorbell(fbx_fabric *f, uint32_t node, int mask, uint64_t *bits);

int fbxi_ntb_usable(fbx_node *n);
int fbxi_ntb_peer(fbx_node *n, uint32_t pidx, uint32_t *peer);
/* The same for who is about to write there: both devices have their registers. */
int fbxi_ntb_reach(fbx_node *n, uint32_t pidx, uint32_t *peer);
int fbxi_ntb_linked(fbx_fabric *f, uint32_t a, uint32_t b);
/* A link (or the NTB of a node) came or went: tell those whose way to a peer it is on. */
void fbxi_ntb_links_changed(fbx_fabric *f, uint32_t link, uint32_t node);
/* The service thread's look at a handle whose events somebody polls. */
void fbxi_ntb_look(fbx_node *n);
/* Whether there are events for the handle. */
int fbxi_ntb_any(fbx_node *n);
void fbxi_ntb_reset(fbx_fabric *f, uint32_t node);
void fbxi_ntb_close(fbx_node *n);

/* ntb_msi.c. Stores of this node to addresses of FBXI_MSI_SPACE are interrupt messages to a peer. */
#define FBXI_MSI_SHIFT 61
#define FBXI_MSI_SPACE 7ull
int fbxi_ntb_store_msi(fbx_node *n, uint64_t address, uint64_t bytes, uint64_t value);
void fbxi_ntb_msi_release(fbx_node *n);
/* ntb_requester.c: may requests of this node's function cross its NTB? */
int fbxi_ntb_permits(fbx_fabric *f, uint32_t node, uint32_t function);
#endif
